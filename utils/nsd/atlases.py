"""Label volumes with their tables of names, and the noise ceiling."""
import re
from dataclasses import dataclass

import numpy as np

from utils import layout
from utils.errors import Problem
from utils.nsd import experiment, nifti_volumes, object_keys


@dataclass(frozen=True)
class Atlas:
    """labels (z, y, x) int32, values {name: label} without the background, and the Grid."""

    labels: np.ndarray
    values: dict
    grid: nifti_volumes.Grid
    keys: tuple


def atlas(root, subject, name="streams"):
    """A label volume of NSD's roi/ folder with its table (see `table_keys`).

    A volume of -1, 0 and 1 alone, such as nsdgeneral, needs no table: 1 then has the atlas's own name. Labels of 0 and
    below are background (NSD marks voxels outside the cortex -1).
    """
    key = object_keys.atlas_key(subject, name)
    volume, grid = nifti_volumes.read_volume(root, key)
    if not np.isfinite(volume).all() or (volume != np.round(volume)).any() or np.abs(volume).max() >= 1 << 31:
        raise Problem(f"{grid.name} holds something else than whole labels", object_keys.AGAIN)
    labels = volume.astype(np.int32)
    for table_key in object_keys.table_keys(subject, name):
        if root.exists(table_key):
            values = label_table(root.read(table_key), root.name(table_key))
            keys = (key, table_key)
            break
    else:
        if labels.max() > 1:
            raise Problem(f"no table names the labels of {name}: {' '.join(object_keys.table_keys(subject, name))}",
                          "get one of these files from NSD")
        values, keys = {name: 1}, (key,)
    unnamed = sorted(set(np.unique(labels[labels > 0]).tolist()) - set(values.values()))
    if unnamed:
        raise Problem(f"{grid.name} has label {experiment.listed(unnamed)}, which its table does not name",
                      object_keys.AGAIN)
    lacking = [roi for roi in layout.ROIS if roi not in values] if name == "streams" else []
    if lacking:
        raise Problem(f"{root.name(keys[-1])} does not name {' '.join(lacking)}", object_keys.AGAIN)
    return Atlas(labels, values, grid, keys)


def label_table(content, name):
    """{ROI name: label} of a FreeSurfer colour table: a label and a name per line, whatever follows; 0 is left out."""
    values = {}
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise Problem(f"{name} is not a label table ({error})", object_keys.AGAIN) from error
    for line in lines:
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) < 2 or not re.fullmatch(r"-?[0-9]{1,9}", fields[0]):
            raise Problem(f"{name} has the line {line!r}, not a label and a name", object_keys.AGAIN)
        label, roi = int(fields[0]), fields[1]
        if label <= 0:
            continue
        if not re.fullmatch(r"[A-Za-z0-9_.+-]+", roi):
            raise Problem(f"{name} has the ROI name {roi!r}, which cannot be part of a file name", "rename it there")
        if roi in values or label in values.values():
            raise Problem(f"{name} has {roi} or label {label} twice", object_keys.AGAIN)
        values[roi] = label
    if not values:
        raise Problem(f"{name} names no ROI", object_keys.AGAIN)
    return values


def ncsnr(root, subject):
    """The noise-ceiling signal-to-noise ratio of each voxel, (z, y, x) float32 with NaN where unknown, and its Grid."""
    volume, grid = nifti_volumes.read_volume(root, object_keys.ncsnr_key(subject))
    return volume.astype(np.float32), grid


def noise_ceiling(ratio, repeats):
    """Percent of the variance of an average over `repeats` trials that is signal, by ncsnr (NSD data manual)."""
    return 100 * ratio ** 2 / (ratio ** 2 + 1 / repeats)
