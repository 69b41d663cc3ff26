"""Features of a run's pictures: one HDF5 file per feature (docs/artifacts.md),
or the original pipeline's `.npy` per picture.

`originals/images` (n,) and `originals/features` (n, dims); `samples/images` (m,), `samples/repeats` (m,) and
`samples/features` (m, dims), float32, in order of image and repeat. Float32 is kept: correlations are compared to nine
digits, and half precision moves the fourth.
"""
import functools
import itertools
import shutil

import h5py
import numpy as np

from utils import __version__, layout
from utils.errors import Problem
from utils.storage import arrays, hdf5, locks, writing

ORIGINAL = "org"
AGAIN = "delete it and run img2feat_decoded.py again"


class ImageFeatures:
    """One feature of a run's pictures, read when asked for. A picture is (image, "org" or the repeat).

    pictures: set of those there. A picture that is in both forms is read from the HDF5 file.
    """

    def __init__(self, folder, feature):
        path = layout.image_features(folder, feature)
        self._file, self._rows = None, {}
        if path.exists():
            self._file = hdf5.File(path, "run img2feat_decoded.py", AGAIN)
            self._rows = _rows(self._file)
        self._npy = {(image, what): each for image, paths in layout.found_image_features(folder, feature).items()
                     for what, each in paths.items()}
        self.whole = set(self._rows)  # those in the HDF5 file
        self.pictures = self.whole | set(self._npy)

    def __getitem__(self, picture):
        """(dims,) features. Raises Problem for what is no features."""
        if picture in self._rows:
            group, row = self._rows[picture]
            return self._file.dataset(f"{group}/features", "fiu", 2)[row]
        path = self._npy[picture]
        array = arrays.read_npy(path)
        if array.dtype.kind not in "fiu" or not array.size:
            raise Problem(f"{path} holds {array.dtype} {array.shape}, not features", "delete it and run its stage")
        return array.reshape(-1)


def _rows(file, group=""):
    """{(image, "org" or repeat): (name of the group of datasets, row)} of an open file."""
    found, dims = {}, set()
    for kind in ("originals", "samples"):
        name = f"{group}{kind}"
        images = file.dataset(f"{name}/images", "iu", 1).whole().tolist()
        whats = (file.dataset(f"{name}/repeats", "iu", 1).whole().tolist() if kind == "samples"
                 else [ORIGINAL] * len(images))
        features = file.dataset(f"{name}/features", "fiu", 2)
        if not len(images) == len(whats) == len(features):
            file.refuse(f"has not one row of {name}/features a picture")
        dims |= {features.shape[1]} if images else set()
        found |= {picture: (name, row) for row, picture in enumerate(zip(images, whats))}
        if min(images, default=0) < 0 or len({*zip(images, whats)}) < len(images):
            file.refuse(f"has {name}/images that are not different pictures")
    if len(dims) > 1 or 0 in dims:
        file.refuse("has originals and samples of unlike or no size")
    return found


def by_image(pictures):
    """{image: ["org" and repeats, in order]} of pictures, in order of image."""
    found = {}
    for image, what in sorted(pictures, key=order):
        found.setdefault(image, []).append(what)
    return found


def order(picture):
    """Key to sort pictures by: image, then the original before the samples."""
    image, what = picture
    return image, -1 if what == ORIGINAL else what


class Parts:
    """What running img2feat_decoded.py have computed so far: a file per batch, until `assemble` joins them.

    Several processes, each with images of its own, write parts side by side; who joins or removes them does so `alone`.
    """

    def __init__(self, folder):
        self.folder, self.run = layout.image_features_parts(folder), folder

    def alone(self):
        """Keep other processes from writing, joining and removing parts during the block."""
        return locks.alone(self.run, "parts", said=f"{self.run.name}: waiting for another process that joins features")

    def found(self):
        return layout.plain_files(self.folder) if self.folder.exists() else []

    def features(self):
        """Names of the features that the parts hold."""
        names = set()
        for path in self.found():
            with hdf5.File(path, "run img2feat_decoded.py", AGAIN) as file:
                names |= {name for name in layout.EVALUATION_FEATURES if name in file}
        return names

    def clear(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def drop(self, names):
        """Remove some features from the parts."""
        for path in self.found():
            with hdf5.File(path, "run img2feat_decoded.py", AGAIN) as file:
                held = {name for name in layout.EVALUATION_FEATURES if name in file}
            if not held - set(names):
                path.unlink()
            elif held & set(names):
                with writing.atomic(path) as temporary, h5py.File(temporary, "w") as new, h5py.File(path) as old:
                    for name in sorted(held - set(names)):
                        old.copy(name, new)

    def write(self, features):
        """One batch. features: {feature: {picture: (dims,)}}."""
        size = sum(vector.nbytes for each in features.values() for vector in each.values())
        with self.alone():
            number = 1 + max((int(path.stem) for path in self.found()), default=-1)
            with (writing.atomic(layout.image_features_part(self.run, number)) as temporary,
                  arrays.new_h5(temporary, size) as file):
                for feature, vectors in features.items():
                    pictures = sorted(vectors, key=order)
                    _create(file.create_group(feature), pictures, len(vectors[pictures[0]]))
                    for picture, (group, row) in _numbered(pictures).items():
                        file[f"{feature}/{group}/features"][row] = vectors[picture]

    def pictures(self, feature):
        """The set of pictures that the parts hold of one feature."""
        return {picture for picture, _ in self._each(feature)}

    def _each(self, feature):
        """Yield (picture, function that reads its (dims,) features) of one feature, part by part."""
        for path in self.found():
            with hdf5.File(path, "run img2feat_decoded.py", AGAIN) as file:
                if feature in file:
                    for picture, (group, row) in _rows(file, f"{feature}/").items():
                        yield picture, lambda: file.dataset(f"{group}/features", "fiu", 2)[row]

    def assemble(self, feature, network):
        """Join the parts with what the feature's file and `.npy` files held before, in one new file; of a picture that
        is in several, what was written last counts.

        network: {"model", "revision"} of the network, as attributes. Raises Problem where features differ in size.
        """
        new, old = self.pictures(feature), ImageFeatures(self.run, feature)
        pictures = sorted(new | old.pictures, key=order)
        if old.whole == set(pictures) and all(np.array_equal(read(), old[each]) for each, read in self._each(feature)):
            return
        places = _numbered(pictures)
        first = next(read() for _, read in self._each(feature)) if new else old[pictures[0]]
        with writing.atomic(layout.image_features(self.run, feature)) as temporary:
            with arrays.new_h5(temporary, first.size * 4 * len(pictures)) as file:
                _create(file, pictures, first.size)
                kept = ((picture, functools.partial(old.__getitem__, picture)) for picture in old.pictures - new)
                for picture, read in itertools.chain(kept, self._each(feature)):
                    vector = read()
                    if vector.size != first.size:
                        raise Problem(f"{self.run} holds {feature} features of {first.size} and of {vector.size} "
                                      "numbers",
                                      "run img2feat_decoded.py with --overwrite")
                    group, row = places[picture]
                    file[f"{group}/features"][row] = vector
                for key, value in {"feature": feature, "code_version": __version__, **network}.items():
                    file.attrs[key] = str(value)


def _numbered(pictures):
    """{picture: (group, row)} of pictures in order."""
    counts, found = {"originals": 0, "samples": 0}, {}
    for picture in pictures:
        group = "originals" if picture[1] == ORIGINAL else "samples"
        found[picture] = (group, counts[group])
        counts[group] += 1
    return found


def _create(group, pictures, dims):
    """The datasets of pictures in order; their features are to be filled."""
    for name, mine in (("originals", [each for each in pictures if each[1] == ORIGINAL]),
                       ("samples", [each for each in pictures if each[1] != ORIGINAL])):
        group.create_dataset(f"{name}/images", data=np.array([image for image, _ in mine], np.int64))
        if name == "samples":
            group.create_dataset("samples/repeats", data=np.array([repeat for _, repeat in mine], np.int64))
        # Given its place now: left to the first write, the bytes of a file would depend on the order of writing.
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        group.create_dataset(f"{name}/features", (len(mine), dims), np.float32, dcpl=early)
