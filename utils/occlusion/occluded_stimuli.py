"""Files of occluded stimuli: an HDF5 laid out as NSD's, a folder of pictures, or what to hide when they are read.

What is hidden and how it is filled: `occluders`.
"""
import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from utils import layout
from utils.errors import Problem
from utils.nsd import stimuli_copy, stimulus_file
from utils.occlusion import occluders
from utils.storage import arrays, hdf5, provenance, text_files, writing

READ_IMAGES = 64  # at NSD's 425 × 425 × 3 bytes: 35 MB
LARGEST = 4096  # px: side that images are scaled to, at most
DIGESTED = 16  # pictures that tell a folder without a record from another
PART_IMAGES = 512  # a killed run loses at most this many
REQUIRED = ("kind", "ratio", "place", "fill", "seed", "input")  # what images of an occluder say of themselves


def fingerprint(stimuli):
    """What tells a file of stimuli from another without reading all 39 GB: its shape, and a digest of 16 images."""
    hashed = hashlib.blake2b(digest_size=16)
    copied = stimuli_copy.source_of(stimuli.path)
    if copied:  # a choice of images, which grows with the subjects, is as good as the file it was taken from
        return {"shape": list(stimuli.shape[1:]), "copied_from": copied}
    for row in sorted({round(row) for row in np.linspace(0, stimuli.count - 1, 16)}):
        hashed.update(stimuli.read([stimuli.ids[row]]).tobytes())
    return {"shape": list(stimuli.shape), "digest_of_16": hashed.hexdigest()}


def _occlude(stimuli, ids, options):
    """Yield (id, occluded image, mask), reading READ_IMAGES at a time.

    options: kind, ratio, place, fill, seed; image_size, if an image is scaled to that many px a side first.
    """
    for start in range(0, len(ids), READ_IMAGES):
        some = ids[start:start + READ_IMAGES]
        for index, image in zip(some, stimuli.read(some)):
            if options.get("image_size") is not None:
                image = np.asarray(Image.fromarray(image).resize((options["image_size"],) * 2,
                                                                 Image.Resampling.LANCZOS))
            hidden = _mask(options, index, image.shape)
            yield index, occluders.apply(image, hidden, options["fill"], options["seed"], index), hidden


def _mask(options, index, shape):
    return occluders.mask(options["kind"], options["ratio"], options["place"], options["seed"], index, shape[:2])


def _shape(stimuli, options):
    """(H, W, 3) of the occluded images."""
    side = options.get("image_size")
    return stimuli.shape[1:] if side is None else (side, side, 3)


def settings_of(options, source):
    """What images of an occluder say of themselves: the options that were given, and what they were made from."""
    said = options | {"input": json.dumps(source, sort_keys=True)}
    return {key: value for key, value in sorted(said.items()) if value is not None}


def subjects_to_hold(path, asked, wanted):
    """(subjects whose stimuli the file is to hold or None for all, whether that is more than a file there holds).

    A file that was made as `wanted` says keeps what it has: it serves every subject of one working folder. asked: the
    subjects now, or None.
    """
    side = layout.sidecar(path)
    made = text_files.read_json(side) if asked and Path(path).exists() and side.exists() else None
    if made is None or provenance.difference(made, {key: wanted[key] for key in ("options", "input", "images")}):
        return sorted(set(asked)) if asked else None, False
    if made.get("subjects") is None:
        return None, False
    subjects = sorted({*asked, *made["subjects"]})
    return subjects, subjects != made["subjects"]


def write_hdf5(stimuli, ids, path, wanted, overwrite, progress):
    """Write the occluded images of `ids` (ascending) to an HDF5 laid out as NSD's; False if that was done already.

    `imgBrick` (n, H, W, 3) uint8 and `mask` (n, H, W) bool, one gzip chunk an image; `stim_ids` (n,) int64; attributes:
    kind, ratio, place, fill, seed and where the images come from. stimuli: an `stimulus_file.Stimuli`. wanted: see
    `provenance.record`, with the occluder as its options. Parts of PART_IMAGES images are kept until the whole is
    joined, so a killed run resumes.
    """
    path = Path(path)
    if path.resolve() == stimuli.path.resolve():
        raise Problem(f"{path} is both input and output", "give another --output_path")
    with writing.locked(path):
        done = provenance.is_done(path, wanted, overwrite)
        if done and _has_no_images(path):
            raise Problem(f"{path} was made with --on_read and holds no images",
                          "pass --on_read, or --overwrite to write them")
        if not done:
            _write_hdf5(stimuli, ids, path, wanted, overwrite, progress)
        shutil.rmtree(layout.parts(path), ignore_errors=True)  # also what a run left that was killed right here
    return not done


def _write_hdf5(stimuli, ids, path, wanted, overwrite, progress):
    parts, shape = layout.parts(path), _shape(stimuli, wanted["options"])
    if parts.exists() and overwrite:
        shutil.rmtree(parts)
    provenance.claim_folder(parts, wanted, overwrite)
    part_ids = [ids[start:start + PART_IMAGES] for start in range(0, len(ids), PART_IMAGES)]
    for part in part_ids:
        part_path = _part_path(parts, part)
        if part_path.exists():
            progress(len(part))
            continue
        with writing.atomic(part_path) as temporary, arrays.new_h5(temporary, len(part) * math.prod(shape)) as file:
            brick, masks = _datasets(file, len(part), shape)
            for row, (_, image, hidden) in enumerate(_occlude(stimuli, part, wanted["options"])):
                brick[row], masks[row] = image, hidden
                progress(1)
    with writing.atomic(path) as temporary:
        with arrays.new_h5(temporary, sum(made.stat().st_size for made in layout.plain_files(parts))) as file:
            _join(file, parts, part_ids, shape)
            _describe(file, ids, wanted)
        provenance.finish(path, wanted)


def _describe(file, ids, wanted):
    file.create_dataset("stim_ids", data=np.array(ids, np.int64))
    for key, value in settings_of(wanted["options"], wanted["input"]).items():
        file.attrs[key] = value


def write_recipe(stimuli, ids, path, wanted, overwrite):
    """Write a file without images, from which `OccludedOnRead` occludes those of `ids` (ascending); False if that was
    done already.

    `stim_ids` (n,) int64, the attributes of `write_hdf5`, and `source`: where the whole images are, from the file.
    """
    path = Path(path)
    with writing.locked(path):
        if provenance.is_done(path, wanted, overwrite):
            return False
        source = os.path.relpath(stimuli.path.resolve(), path.resolve().parent)
        with writing.atomic(path) as temporary:
            with arrays.new_h5(temporary, 8 * len(ids)) as file:
                _describe(file, ids, wanted)
                file.attrs["source"] = source
            provenance.finish(path, wanted, temporary)
    return True


def _part_path(parts, ids):
    return layout.feature_shard(parts, int(ids[0]), int(ids[-1]) + 1)


def _datasets(file, count, shape):
    brick = file.create_dataset("imgBrick", (count, *shape), np.uint8, chunks=(1, *shape), compression="gzip")
    masks = file.create_dataset("mask", (count, *shape[:2]), bool, chunks=(1, *shape[:2]), compression="gzip")
    return brick, masks


def _join(file, parts, part_ids, shape):
    """Copy the compressed chunks of the parts, without inflating them."""
    datasets = _datasets(file, sum(len(part) for part in part_ids), shape)
    row = 0
    for part in part_ids:
        with h5py.File(_part_path(parts, part), "r") as piece:
            for source_row in range(len(part)):
                for target in datasets:
                    zeros = (0,) * (target.ndim - 1)
                    filters, chunk = piece[target.name].id.read_direct_chunk((source_row, *zeros))
                    target.id.write_direct_chunk((row, *zeros), chunk, filters)
                row += 1


def write_pngs(stimuli, ids, folder, wanted, overwrite, progress):
    """Write the occluded images of a range of ids as one PNG each, which keeps the occluder's edge; returns how many.

    Images that are there already are kept, unless overwrite. Those of another occluder never stay beside the new ones.
    """
    provenance.claim_folder(folder, wanted, overwrite, layout.found_stimulus_images)
    missing = [index for index in ids if overwrite or not layout.stimulus_image(folder, index).exists()]
    progress(len(ids) - len(missing))
    for first in missing:
        for index, image, _ in _occlude(stimuli, range(first, first + 1), wanted["options"]):
            with writing.atomic(layout.stimulus_image(folder, index)) as temporary:
                Image.fromarray(image).save(temporary, format="PNG")
            progress(1)
    return len(missing)


class OccludedStimuli(stimulus_file.Stimuli):
    """The images and masks that `write_hdf5` wrote, by 73k id; `read(ids)` gives the images as they are shown.

    ids: (n,) int64, ascending. count: one more than the largest id. settings: the occluder (kind, ratio, place, fill,
    seed) and its input. Raises Problem for a missing, broken or foreign file.
    """

    def __init__(self, path):
        if not Path(path).exists():
            raise Problem(f"{path} is missing", "run python generate_occluded_images.py")
        super().__init__(path)
        try:
            self._masks = self._file.dataset("mask", "biuf") if "mask" in self._file else None
            if (self._rows is None or self._masks is None
                    or (self._masks.dtype, self._masks.shape) != (bool, self.shape[:3])):
                raise Problem(f"{path} has no stim_ids or no mask (n, H, W)",
                              "make it with generate_occluded_images.py")
            self.settings = {key: _plain(value) for key, value in sorted(self._file.attributes().items())}
        except Problem:
            self.close()
            raise
        self.ids = np.array(list(self._rows))
        self.count = self.stop = int(self.ids.max()) + 1

    def masks(self, ids):
        """(len(ids), H, W) bool, True where hidden, in the order given."""
        return np.stack([self._masks[self._row(stimulus)] for stimulus in ids])


class OccludedOnRead:
    """The images that `write_recipe` names, occluded as they are read; as OccludedStimuli, and equal to the pixel.

    Raises Problem for a broken or foreign file, and where the whole images are gone or others than it was made for.
    """

    def __init__(self, path):
        self.path = Path(path)
        with hdf5.File(path, "run python generate_occluded_images.py", "make it again") as file:
            self.settings = {key: _plain(value) for key, value in sorted(file.attributes().items())}
            if "stim_ids" not in file or not {"source", *REQUIRED} <= self.settings.keys():
                raise Problem(f"{path} holds neither images nor what to hide of them",
                              "make it with generate_occluded_images.py")
            self.ids = np.sort(file.dataset("stim_ids", "iu").ids())
        source = self.path.resolve().parent / self.settings.pop("source")
        self._whole = stimulus_file.Stimuli(source)
        found = json.dumps(fingerprint(self._whole), sort_keys=True)
        if found != self.settings["input"]:
            self.close()
            raise Problem(f"{path} was made for other images than {source} holds",
                          "run generate_occluded_images.py --overwrite")
        self.count = self.stop = int(self.ids.max()) + 1
        self.shape = (len(self.ids), *_shape(self._whole, self.settings))

    def read(self, ids):
        """(len(ids), H, W, 3) uint8 in the order given."""
        return np.stack([image for _, image, _ in _occlude(self._whole, self._known(ids), self.settings)])

    def masks(self, ids):
        """(len(ids), H, W) bool, True where hidden, in the order given."""
        return np.stack([_mask(self.settings, stimulus, self.shape[1:]) for stimulus in self._known(ids)])

    def _known(self, ids):
        """The ids as a list of int. Raises Problem for one that the file does not name."""
        lacking = np.setdiff1d(ids, self.ids)
        if len(lacking):
            raise Problem(f"{self.path} has no image of 73k id {lacking[0]}", f"it holds {len(self.ids)} images")
        return np.asarray(ids).tolist()

    def close(self):
        self._whole.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class OccludedPictures:
    """A folder of occluded images, `{73k id:06}.png` as `write_pngs` wrote them or `.jpg`;
    as OccludedStimuli, without masks.

    settings: as of the same images in an HDF5 file; where no record in the folder says what occluded them, a digest of
    the first pictures stands for it. Raises Problem for a folder without pictures and for one id in two files.
    """

    def __init__(self, folder):
        self.path = Path(folder)
        found = layout.found_stimulus_images(folder)
        if not found:
            raise Problem(f"{folder} holds no pictures like 000123.png or 000123.jpg",
                          "run python generate_occluded_images.py --h5_path nsd_stimuli.hdf5 --outdir there")
        self._paths = {}
        for path in found:
            if self._paths.setdefault(int(path.stem), path) != path:
                raise Problem(f"{self._paths[int(path.stem)].name} and {path.name} of {folder} are one stimulus",
                              "take one of them out")
        self.ids = np.array(sorted(self._paths))
        self.count = self.stop = int(self.ids[-1]) + 1
        record = layout.manifest(folder)
        if record.exists():
            made = text_files.read_json(record)
            self.settings = settings_of(made.get("options", {}), made.get("input"))
        else:
            hashed = hashlib.blake2b(digest_size=16)
            for stimulus in self.ids[:DIGESTED]:
                hashed.update(self._paths[stimulus].read_bytes())
            self.settings = {"pictures": self.path.name, "digest": hashed.hexdigest()}

    def read(self, ids):
        """(len(ids), H, W, 3) uint8 in the order given. Raises Problem for pictures of unlike size."""
        from utils import images  # imports torch, which making occluders does without

        loaded = []
        for stimulus in map(int, ids):
            if stimulus not in self._paths:
                raise Problem(f"{self.path} has no image of 73k id {stimulus}", f"it holds {len(self.ids)} images")
            loaded.append(images.load(self._paths[stimulus]))
            if loaded[-1].shape != loaded[0].shape:
                raise Problem(f"{self._paths[stimulus]} is {loaded[-1].shape[:2]} px, others {loaded[0].shape[:2]}",
                              "make all pictures of one size")
        return np.stack(loaded)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def path_of(args):
    """Where the arguments say the occluded images are: a folder of pictures or an HDF5 file."""
    folder, file = getattr(args, "occluded_dir", None), getattr(args, "occluded_path", None)
    if folder and file:
        raise Problem("--occluded_dir with --occluded_path", "give one of them")
    return Path(folder or file or layout.occluded_stimuli(args.workdir))


def open_occluded(path):
    """The OccludedPictures of a folder, or the OccludedStimuli or OccludedOnRead of a file."""
    if Path(path).is_dir():
        return OccludedPictures(path)
    return OccludedOnRead(path) if Path(path).exists() and _has_no_images(path) else OccludedStimuli(path)


def _has_no_images(path):
    with hdf5.File(path, "run python generate_occluded_images.py", "make it again") as file:
        return "imgBrick" not in file


def is_occluded(path):
    """True if an HDF5 file of stimuli holds masks: its images are not whole."""
    with stimulus_file.Stimuli(path) as stimuli:
        return "mask" in stimuli


def _plain(value):
    """An attribute as a number or a string, for a record."""
    return value.item() if isinstance(value, np.generic) else str(value)
