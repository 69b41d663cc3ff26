"""Batches that hold the same items in the same places however a run is cut into ranges.

Kernels round differently for another batch, so that a picture would depend on the --imgidx of the process that made it.
"""
from typing import NamedTuple

from utils import cli


class Batch(NamedTuple):
    """One forward pass. own: the items that this process makes. filled: those of the whole batch, with one of `own` in
    each place of another process's item: it counts for the arithmetic, and its result is thrown away. place: where
    `own` lies in it."""

    own: range
    filled: list
    place: slice


def aligned(chosen, count, size):
    """The Batches, counted in steps of `size` from item 0 of all `count`, that hold items of `chosen` (a range).

    Says how many are computed for nothing, if any are.
    """
    found = []
    for start in range(chosen.start // size * size, chosen.stop, size):
        whole = range(start, min(start + size, count))
        own = range(max(start, chosen.start), min(whole.stop, chosen.stop))
        found.append(Batch(own, [min(max(item, own.start), own.stop - 1) for item in whole],
                           slice(own.start - start, own.stop - start)))
    computed = sum(len(batch.filled) for batch in found)
    if computed > len(chosen):
        cli.say(f"{computed} are computed for {len(chosen)}: batches of {size} are counted from the first of all "
                f"{count}, so that every --imgidx gives the same bytes (a smaller --batch_size computes fewer)")
    return found
