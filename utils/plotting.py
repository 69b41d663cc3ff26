"""What all figures share: colours, style, a backend without a screen.

Colours are Okabe & Ito's (2008), which readers with any colour vision can tell apart; markers differ as well.
"""
import numpy as np

from utils import lazy


def _without_screen():
    import matplotlib

    matplotlib.use("Agg")


plt = lazy.module("matplotlib.pyplot", before=_without_screen)

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY, BLACK = "#8C8C8C", "#222222"
METHOD_COLOURS = {"cvpr": BLUE, "text": ORANGE, "gan": GREEN, "depth": PURPLE}
SERIES_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
SERIES_MARKERS = "osD^vPX"
WIDTH = 7.2  # inches: two columns of a journal
STYLE = {
    "font.family": "sans-serif", "font.size": 8, "axes.titlesize": 9, "axes.labelsize": 8, "legend.fontsize": 7.5,
    "xtick.labelsize": 8, "ytick.labelsize": 7.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.7, "xtick.major.width": 0.7, "ytick.major.width": 0.7, "pdf.fonttype": 42, "savefig.dpi": 300,
}


def evenly(length, count):
    """Positions of `count` of `length` things, evenly spaced from the first to the last; all of fewer."""
    return sorted({round(position) for position in np.linspace(0, length - 1, min(count, length))})
