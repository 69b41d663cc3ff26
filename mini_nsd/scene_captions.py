"""Sentences that people might say of a scene."""
import numpy as np

from mini_nsd import scenes


_PLACES = {
    "meadow": ("on a green meadow", "in a grassy field", "on the grass", "in a meadow with hills behind"),
    "beach": ("on a sandy beach", "on the beach by the sea", "at the seaside", "on the sand near the water"),
    "desert": ("in the desert", "on desert sand", "in a hot desert under the sun", "on an orange desert plain"),
    "snow": ("in the snow", "on a snowy field", "on snow in front of mountains", "in a winter landscape"),
    "night": ("at night", "under the night sky", "in the moonlight", "in the dark at night"),
    "room": ("in a room", "on a tiled floor", "in a room with a tiled floor", "indoors on the tiles"),
}
_NUMBERS = ("no", "one", "two", "three", "four")


def captions(scene: scenes.Scene, n: int = 5) -> list:
    """`n` short English sentences about the scene, as varied as people's; the same ones every time.

    The nearest object comes first, with its colour and shape. Size, pattern, the objects behind it and the place
    are each left out of some of them.
    """
    rng = np.random.default_rng((scene.seed, scene.index, 1))
    templates = _CAPTIONS_OF_ONE if len(scene.objects) == 1 else _CAPTIONS_OF_MANY
    order = np.concatenate([rng.permutation(len(templates)) for _ in range(-(-n // len(templates)))])
    return [templates[k](scene, rng) for k in order[:n]]


def _noun(thing: scenes.Object, rng, size=0.5) -> str:
    """"a large striped red ball"; the size is named with probability `size`, a pattern with 0.8."""
    words = []
    if rng.random() < size and not 0.24 < thing.size < 0.40:
        words.append(str(rng.choice(("large", "big") if thing.size >= 0.40 else ("small", "little"))))
    if thing.pattern != "plain" and rng.random() < 0.8:
        words.append(thing.pattern)
    words += [thing.colour, thing.shape]
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def _place(scene: scenes.Scene, rng) -> str:
    return str(rng.choice(_PLACES[scene.background.kind]))


def _relation(front: scenes.Object, other: scenes.Object, rng) -> str:
    """How the nearer object lies to the other one."""
    apart = other.x - front.x
    if abs(apart) < 0.5 * (front.size + other.size) and rng.random() < 0.6:
        return "in front of"
    if abs(apart) < 0.08:
        return "in front of"
    side = "left" if apart > 0 else "right"
    return str(rng.choice((f"to the {side} of", f"on the {side} of", "next to", "near")))


def _listing(things, rng) -> str:
    nouns = [_noun(thing, rng, size=0.15) for thing in things]
    return ", ".join(nouns[:-1]) + " and " + nouns[-1]


def _related(scene, rng):
    front, second = scene.objects[:2]
    return f"{_noun(front, rng)} {_relation(front, second, rng)} {_noun(second, rng)} {_place(scene, rng)}"


def _with_others(scene, rng):
    front, others = scene.objects[0], scene.objects[1:]
    rest = _noun(others[0], rng) if len(others) == 1 else _listing(others[:2], rng)
    return f"{_noun(front, rng)} with {rest} behind it {_place(scene, rng)}"


def _list_of_all(scene, rng):
    return f"{_listing(scene.objects[:3], rng)} {_place(scene, rng)}"


def _counted(scene, rng):
    number = _NUMBERS[len(scene.objects)]
    return f"{_noun(scene.objects[0], rng)} is the closest of {number} objects {_place(scene, rng)}"


def _placeless(scene, rng):
    front, second = scene.objects[:2]
    return f"{_noun(front, rng)} {_relation(front, second, rng)} {_noun(second, rng)}"


def _there_is(scene, rng):
    near, where, far = _noun(scene.objects[0], rng), _place(scene, rng), _noun(scene.objects[1], rng)
    return f"there is {near} {where} and {far} farther away"


def _alone(scene, rng):
    return f"{_noun(scene.objects[0], rng)} {rng.choice(('alone', 'by itself', 'standing'))} {_place(scene, rng)}"


def _bare(scene, rng):
    return f"{_noun(scene.objects[0], rng)} {_place(scene, rng)}"


def _only(scene, rng):
    return f"there is only {_noun(scene.objects[0], rng)} {_place(scene, rng)}"


def _picture(scene, rng):
    return f"a picture of {_noun(scene.objects[0], rng, size=0.9)}"


def _sits(scene, rng):
    side = ("on the left", "in the middle", "on the right")[int(np.clip(scene.objects[0].x * 3, 0, 2))]
    return f"{_noun(scene.objects[0], rng)} {side} {_place(scene, rng)}"


_CAPTIONS_OF_MANY = (_related, _with_others, _list_of_all, _counted, _placeless, _there_is)
_CAPTIONS_OF_ONE = (_alone, _bare, _only, _picture, _sits)
