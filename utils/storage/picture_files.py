"""Pictures and figures to files, atomically."""
from PIL import Image

from utils import plotting
from utils.plotting import plt
from utils.storage import writing


def save(path, image):
    """(H, W, 3) uint8 → PNG, atomically."""
    with writing.atomic(path) as temporary:
        Image.fromarray(image).save(temporary, compress_level=1)


def save_figure(figure, path_of):
    """Write a figure as PDF and PNG, atomically, and close it; returns the two paths. path_of(ending) gives them."""
    paths = [path_of(ending) for ending in ("pdf", "png")]
    writing.sweep(paths[0].parent)
    for path, ending, metadata in zip(paths, ("pdf", "png"), ({"CreationDate": None}, {})):
        with writing.atomic(path) as temporary, plt.rc_context(plotting.STYLE):
            figure.savefig(temporary, format=ending, bbox_inches="tight", pad_inches=0.05, metadata=metadata)
    plt.close(figure)
    return paths
