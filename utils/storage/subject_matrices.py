"""A subject's features as matrices, training and test stimuli apart: each stimulus once, in ascending order."""
from pathlib import Path

import numpy as np

from utils.storage import arrays, hdf5, provenance, writing

CHUNK_BYTES = 1 << 20


class SubjectFeatures:
    """A subject's feature matrix, each stimulus once (docs/artifacts.md): `tr` and `te` groups of an open HDF5 file.

    `features` (stimuli, dims) float32 or float16, chunked for reading blocks of dims; `stim_ids` (stimuli,);
    `trial_rows` (trials,) maps trials to rows.
    """

    def __init__(self, path, made_by):
        self.file = hdf5.File(path, f"run {made_by}", "delete it and run its stage again")
        self.path = Path(path)
        self.attributes = {key: str(value) for key, value in self.file.attributes().items()}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def stimuli(self, split):
        """(stimuli,) int64 0-based 73k ids of the rows of `features`."""
        ids = self.file.dataset(f"{split}/stim_ids", "iu").ids()
        if len(ids) != len(self.features(split)):
            self.file.refuse(f"has not one row of {split}/features a stimulus")
        return ids

    def trial_rows(self, split):
        """(trials,) int64: the row of `features` that each trial shows."""
        rows = self.file.dataset(f"{split}/trial_rows", "iu", 1).whole()
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.features(split)):
            self.file.refuse(f"has {split}/trial_rows out of range")
        return rows.astype(np.int64)

    def features(self, split):
        """(stimuli, dims), read when indexed."""
        return self.file.dataset(f"{split}/features", "biuf", 2)


def write_subject_features(path, splits, attributes, wanted=None, progress=None, block=256):
    """Write a subject matrix from shards, and its record `wanted`, if there is one, beside it.

    splits: {"tr": (stim_ids (n,), trial_rows (trials,), read), "te": …}, where read(ids) gives (len(ids), …) features.
    attributes: what made the features. progress: called with the number of stimuli done.
    """
    first, _, read = next(iter(splits.values()))
    bytes_each = read(first[:1]).nbytes
    with writing.atomic(path) as temporary:
        with arrays.new_h5(temporary, bytes_each * sum(len(stimuli) for stimuli, *_ in splits.values())) as file:
            for split, (stimuli, trial_rows, read) in splits.items():
                group = file.create_group(split)
                group.create_dataset("stim_ids", data=np.asarray(stimuli, np.int64))
                group.create_dataset("trial_rows", data=np.asarray(trial_rows, np.int64))
                for start in range(0, len(stimuli), block):
                    features = read(stimuli[start:start + block])
                    features = features.reshape(len(features), -1)
                    if start == 0:
                        count, dims = len(stimuli), features.shape[1]
                        rows = min(count, block)
                        columns = max(1, min(dims, CHUNK_BYTES // (rows * features.dtype.itemsize)))
                        matrix = group.create_dataset("features", (count, dims), features.dtype, chunks=(rows, columns))
                    matrix[start:start + len(features)] = features
                    if progress:
                        progress(len(features))
            for key, value in sorted(attributes.items()):
                file.attrs[key] = str(value)
        if wanted is not None:
            provenance.finish(path, wanted, temporary)
