"""The solids of a scene: what each covers, how deep it reaches, and where its surface faces."""
from dataclasses import dataclass

import numpy as np

from mini_nsd import scenes

# Solids. Each takes u (1, w), v (h, 1) in half-sizes from the centre (u right, v up) and a yaw.


@dataclass(frozen=True)
class _Solid:
    """A solid seen from the front, sampled on a grid; every array is (h, w).

    distance  signed, in half-sizes: negative inside the silhouette
    normal    three arrays: x right, y up, z towards the viewer
    s, t      surface coordinates that patterns follow, in half-sizes
    bulge     how far the surface comes towards the viewer from the object's centre plane, in half-sizes
    gloss     strength of the highlight
    """

    distance: np.ndarray
    normal: tuple
    s: np.ndarray
    t: np.ndarray
    bulge: np.ndarray
    gloss: float


def _ball(u, v, yaw):
    squared = u * u + v * v
    nz = np.sqrt(np.maximum(1 - squared, 0))
    s = np.arcsin(np.clip(u / np.sqrt(np.maximum(1 - v * v, 1e-3)), -1, 1))
    t = np.arcsin(np.clip(v, -1, 1)) + 0 * u
    shrink = 1 / np.maximum(np.sqrt(squared), 1)
    return _Solid(np.sqrt(squared) - 1, (u * shrink, v * shrink, nz), s, t, nz, 0.45)


def _cube(u, v, yaw):
    """A cube turned by `yaw` about the vertical and seen from above: two sides and the top."""
    cos, sin, lift = np.cos(yaw), np.sin(yaw), np.sin(scenes.CUBE_ELEVATION)
    right, left = np.array([cos, -sin * lift]), np.array([-sin, -cos * lift])    # images of the two level axes
    up = np.array([0.0, np.cos(scenes.CUBE_ELEVATION)])
    half = 1 / max(cos + sin, up[1] + (cos + sin) * lift)                        # fits the bounding square
    drop = -1 + half * (up[1] + (cos + sin) * lift)                              # rest on the square's lower edge
    faces = (   # (centre direction, one edge, other edge, outward normal)
        (up, right, left, (0.0, 1.1, 0.5)),     # longer than 1: the top is brighter than a side in any light
        (right, left, up, (cos, -sin * lift, sin * np.cos(scenes.CUBE_ELEVATION))),
        (left, right, up, (-sin, -cos * lift, cos * np.cos(scenes.CUBE_ELEVATION))),
    )
    distances, coordinates, normals, outline = [], [], [], -np.inf
    for centre, first, second, normal in faces:
        du, dv = u - half * centre[0], v - drop - half * centre[1]
        determinant = _cross(first, second)
        a = (du * second[1] - dv * second[0]) / determinant          # along each edge, the face spans ±half
        b = (dv * first[0] - du * first[1]) / determinant
        to_edge_a = (np.abs(a) - half) * abs(determinant) / np.hypot(*second)
        to_edge_b = (np.abs(b) - half) * abs(determinant) / np.hypot(*first)
        distances.append(np.maximum(to_edge_a, to_edge_b))
        coordinates.append((a, b))
        normals.append(normal)
        extent = half * (abs(_cross(first, centre)) + abs(_cross(second, centre)))      # the outline is a hexagon
        outline = np.maximum(outline, (np.abs(u * centre[1] - (v - drop) * centre[0]) - extent) / np.hypot(*centre))
    which = np.argmin(distances, axis=0)
    s, t = (np.choose(which, [c[k] for c in coordinates]) for k in (0, 1))
    nx, ny, nz = (np.choose(which, [np.float32(n[k]) for n in normals]) for k in range(3))
    away = np.hypot(u, v - drop) / np.float32(half * 1.45)
    return _Solid(outline, (nx, ny, nz), s, t, half * (1 - 0.6 * np.minimum(away, 1)), 0.0)


def _cross(a, b):
    return a[0] * b[1] - a[1] * b[0]


def _cone(u, v, yaw):
    """An upright cone with its point at v = 1; its base is an ellipse at the bottom."""
    base, width = -1 + scenes.LID, 0.86
    slope = width / (1 - base)
    side = (np.abs(u) - (1 - v) * slope) / np.hypot(1, slope)
    triangle = np.maximum(side, base - v)
    ellipse = _ellipse_distance(u, v - base, width, scenes.LID)
    radius = np.maximum(np.where(v > base, (1 - v) * slope, width), 1e-3)
    across = np.clip(u / radius, -1, 1)
    front = np.sqrt(1 - across * across)
    tilt = np.float32(1 / np.hypot(1, slope))
    normal = (across * tilt, np.float32(slope) * tilt + 0 * across, front * tilt)
    return _Solid(np.minimum(triangle, ellipse), normal, np.arcsin(across) * width, v + scenes.LID * front * radius,
                  front * np.minimum(radius, width), 0.15)


def _cylinder(u, v, yaw):
    """An upright can: the lid is an ellipse that tips towards the viewer."""
    width, top, base = 0.76, 1 - scenes.LID, -1 + scenes.LID
    body = np.maximum(np.abs(u) - width, np.abs(v) - top)
    lid = _ellipse_distance(u, v - top, width, scenes.LID)
    foot = _ellipse_distance(u, v - base, width, scenes.LID)
    across = np.clip(u / width, -1, 1) + 0 * v
    front = np.sqrt(1 - across * across)
    on_lid = lid < 0
    zero = np.float32(0)
    normal = (np.where(on_lid, zero, across), np.where(on_lid, np.float32(0.96), zero),
              np.where(on_lid, np.float32(0.28), front))
    t = np.where(on_lid, np.float32(0.155), v + scenes.LID * front)
    return _Solid(np.minimum(np.minimum(body, lid), foot), normal, np.arcsin(across) * width, t, front * width, 0.2)


def _ring(u, v, yaw):
    """A torus that stands upright and faces the viewer."""
    middle, tube = 0.70, 0.30
    radius = np.hypot(u, v)
    across = np.clip((radius - middle) / tube, -1, 1)
    front = np.sqrt(1 - across * across)
    inverse = 1 / np.maximum(radius, 1e-3)
    angle = np.arctan2(v, u)
    quarter = 0.62 * 8 / (2 * np.pi)        # eight stripes or dots around, whatever the period of the pattern
    return _Solid(np.abs(radius - middle) - tube, (across * u * inverse, across * v * inverse, front),
                  (radius - middle), angle * quarter, tube * front, 0.35)


def _star(u, v, yaw):
    """A five-pointed star with a ridge along each arm."""
    cos, sin = np.cos(np.float32(yaw)), np.sin(np.float32(yaw))
    across, along = cos * u + sin * v, cos * v - sin * u
    fifth, inner = 2 * np.pi / 5, 0.50
    angle = np.arctan2(across, along)
    sector = np.rint(angle / fifth)
    folded = angle - sector * fifth                              # within ±36° of the nearest point
    radius = np.hypot(across, along)
    px, py = radius * np.cos(folded), radius * np.abs(np.sin(folded))
    tip, notch = np.array([1.0, 0.0]), inner * np.array([np.cos(fifth / 2), np.sin(fifth / 2)])
    edge = notch - tip
    length = np.hypot(*edge)
    distance = ((py - tip[1]) * -edge[0] + (px - tip[0]) * edge[1]) / length
    out = sector * fifth + np.where(folded >= 0, 1, -1) * np.arctan2(-edge[0], edge[1]) - yaw
    nx, ny = 0.62 * np.sin(out), 0.62 * np.cos(out)
    return _Solid(distance, (nx, ny, np.float32(0.785) + 0 * nx), across, along,
                  np.clip(-distance, 0, 0.4), 0.0)


def _ellipse_distance(u, v, a, b):
    """Distance to an ellipse, exact on its outline and first-order around it."""
    implicit = (u / a) ** 2 + (v / b) ** 2 - 1
    slope = 2 * np.sqrt((u / a ** 2) ** 2 + (v / b ** 2) ** 2)
    return implicit / np.maximum(slope, 1e-3)


SOLIDS = {"ball": _ball, "cube": _cube, "cone": _cone, "cylinder": _cylinder, "ring": _ring, "star": _star}
