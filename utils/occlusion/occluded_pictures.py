"""Small pictures with their objects, whole or behind an occluder."""
from dataclasses import dataclass
from functools import cached_property

import numpy as np

SMALL = 100             # px: side of the pictures that features are taken from
CLEAR_SHARE = 0.5       # of an object's silhouette, and
CLEAR_AREA = 0.0025     # of the picture (a local cell): what a whole picture shows at least of an object in clear view


@dataclass(frozen=True)
class Pictures:
    """n small pictures and, where they are annotated, their objects.

    images (n, SMALL, SMALL, 3) uint8. labels (n, SMALL, SMALL) int8: position of the object seen at each pixel, -1 for
    none; None without annotation. area: n arrays (objects,), the whole silhouette's share of the picture.
    kinds: n arrays (objects, K) of 0 and 1, which of K categories each object is of.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    area: tuple = ()
    kinds: tuple = ()

    def take(self, rows):
        """The pictures of some rows, in the order given."""
        if self.labels is None:
            return Pictures(self.images[rows])
        return Pictures(self.images[rows], self.labels[rows], tuple(self.area[k] for k in rows),
                        tuple(self.kinds[k] for k in rows))

    def covered(self, hidden, fill):
        """These pictures behind an occluder of one colour. hidden (SMALL, SMALL) bool; fill (3,) levels of 255."""
        images = self.images.copy()
        images[:, hidden] = fill
        if self.labels is None:
            return Pictures(images)
        return Pictures(images, np.where(hidden, np.int8(-1), self.labels), self.area, self.kinds)

    @cached_property
    def seen(self):
        """n arrays (objects,): share of each object's silhouette in view."""
        return [np.bincount(picture[picture >= 0], minlength=len(area))[:len(area)] / picture.size / area
                for picture, area in zip(self.labels, self.area)]

    @cached_property
    def clear(self):
        """n arrays (objects,) bool: in clear view, neither a speck nor for the most part behind another object."""
        return [(seen >= CLEAR_SHARE) & (seen * area >= CLEAR_AREA) for seen, area in zip(self.seen, self.area)]


@dataclass(frozen=True)
class Views:
    """v occluded views. rows (v,): their picture among the test pictures. masks (v,) str: which mask hides it.

    hidden (v, SMALL, SMALL) bool. shown (v, SMALL, SMALL, 3) uint8.
    """

    rows: np.ndarray
    masks: np.ndarray
    hidden: np.ndarray
    shown: np.ndarray

    def take(self, chosen):
        return Views(self.rows[chosen], self.masks[chosen], self.hidden[chosen], self.shown[chosen])
