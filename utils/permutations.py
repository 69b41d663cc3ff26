"""Permutation tests: which permutations are drawn, and what p they give.

All permutations are equally likely, those that leave items in place among them: a permutation that must move every item
(a derangement) pairs a centred pattern with everything but itself, whose mean is not 0, and the test then rejects too
often (docs/amodal_completion.md has the rates). Where there are no more permutations than draws are asked for, each is
made once and p is exact.
"""
import itertools
import math

import numpy as np

TIE = 1e-12             # of a statistic's size: sums of the same numbers in another order are the same


def orders(count, draws, rng):
    """(m, count) int64, permutations of `count` items beside the identity, which is what was observed.

    All count! - 1 of them where count! ≤ draws, else `draws` drawn uniformly, fixed points and repeats allowed.
    """
    if is_exact(count, draws):
        return np.array(list(itertools.permutations(range(count))), np.int64)[1:].reshape(-1, count)
    return np.argsort(rng.random((draws, count)), axis=1)


def is_exact(count, draws):
    """Whether all permutations are made."""
    return count < 20 and math.factorial(count) <= draws


def smallest_p(count, draws):
    """The smallest p that `orders` can give: one out of all permutations, or out of the draws and what was observed."""
    return 1 / math.factorial(count) if is_exact(count, draws) else 1 / (draws + 1)


def induced(order, some):
    """(m, k) the permutations of the items `some` (k,) that permutations of all, (m, n), leave when the others go.

    An item's partner is the next of `some` in its cycle, so partners stay the same wherever they are there. Of uniform
    permutations it is uniform (the Chinese restaurant process is consistent under removal).
    """
    there = np.zeros(order.shape[1], bool)
    there[some] = True
    partner = order[:, some]
    rows = np.arange(len(order))[:, None]
    while not (kept := there[partner]).all():
        partner = np.where(kept, partner, order[rows, partner])
    return np.searchsorted(some, partner)


def p_value(observed, null):
    """One-sided p of an observed statistic among those of permutations (m,), itself counted (Phipson & Smyth 2010).

    Never 0; exact where the null is of all other permutations.
    """
    null = np.asarray(null)
    return float((1 + np.count_nonzero(null >= observed - TIE * max(1.0, abs(observed)))) / (len(null) + 1))
