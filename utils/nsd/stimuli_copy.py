"""A copy of some of NSD's images, read by range from nsd_stimuli.hdf5, in a file of the same form.

It has `imgBrick` as the whole file and, beside it, `stim_ids`: the 0-based 73k id of each row, ascending. The rows are
written in that order into a file that has its name when it is whole; a killed run goes on after the last that it noted.
"""
import os

import h5py
import numpy as np

from utils import cli, layout, system
from utils.errors import Problem
from utils.nsd import experiment, object_keys, ranges, remote_hdf5, stimulus_file
from utils.storage import provenance, text_files, writing

BATCH = 32  # images read together, 17 MB of NSD's
AGAIN = "run img2feat_sd.py without --subject, which fetches the whole file"


def fetch(root, path, ids, overwrite=False):
    """Let the local file `path` hold the images of `ids`, 0-based 73k ids, and those that it had; returns how many
    bytes came.

    A whole copy stays as it is. Raises Problem if what is there was fetched from another version of the file.
    """
    with writing.locked(path):
        version = root.version(object_keys.STIMULI_KEY)
        wanted = {"key": root.name(object_keys.STIMULI_KEY), "etag": version.tag, "of": version.size}
        old = np.zeros(0, np.int64)
        if path.exists() and not overwrite:
            _must_be(path, wanted, version)
            with stimulus_file.Stimuli(path) as stimuli:
                old = stimuli.ids
        ids = np.union1d(ids, old)
        if len(ids) == len(old):
            return 0
        link = ranges.Link(root.local)
        with ranges.Ranged(root, object_keys.STIMULI_KEY, link, version) as ranged, \
                remote_hdf5.File(ranged, AGAIN) as source:
            images = source.dataset("imgBrick", "u", ndim=4)
            if images.dtype != np.uint8 or images.shape[3] != 3 or 0 in images.shape:
                source.refuse(f"has imgBrick of {images.dtype} {images.shape}, not uint8 (n, H, W, 3)")
            if ids[-1] >= images.shape[0]:
                raise Problem(f"{ranged.name} has {images.shape[0]} images, none of 73k id {ids[-1]}",
                              "check the subject and NSD_ROOT")
            _write(path, ids, old, source, images, ranged, wanted)
            return ranged.received


def source_of(path):
    """{"key", "etag", "of"}: which file the choice of images at `path` was copied from; None if it is no such copy."""
    side = layout.sidecar(path)
    found = text_files.read_json(side) if side.exists() else {}
    return {name: found[name] for name in ("key", "etag", "of")} if "of" in found else None


def seen(root, subjects, test=False):
    """(n,) ascending 0-based 73k ids that any of the subjects saw, or of them the shared ones, which test."""
    design = experiment.design(root)
    ids = np.unique(np.concatenate([experiment.responses(root, subject, design).stimuli for subject in subjects]))
    return ids[np.isin(ids, design.shared)] if test else ids


def _must_be(path, wanted, version):
    side = layout.sidecar(path)
    found = text_files.read_json(side) if side.exists() else {}
    if found.get("etag", wanted["etag"]) != wanted["etag"] or "of" not in found and path.stat().st_size != version.size:
        raise Problem(f"{path} was not fetched from {wanted['key']} as it is now", "pass --overwrite to fetch it again")


def _write(path, ids, old, source, images, ranged, wanted):
    part, shape = layout.fetched(path), images.shape[1:]
    noted = part.with_name(part.name + ".json")
    size, row_bytes = len(ids), int(np.prod(shape))
    wanted = wanted | {"stimuli": size}
    mark = provenance.record("img2feat_sd.py", {"ids": ids.tolist()}) | wanted
    done = 0
    if part.exists() and noted.exists():
        found = text_files.read_json(noted)
        done = found.pop("done", 0) if not provenance.difference(found, mark) else 0
    if done:
        cli.say(f"{path.name}: going on after {done:,} of {size:,} images")
    else:
        part.unlink(missing_ok=True)
        _prepare(part, ids, shape)
        text_files.write_json(noted, mark | {"done": 0})
    at = _data_at(part)
    with open(part, "r+b") as file, cli.progress(total=size, initial=done, unit="img", desc=path.name) as bar:
        kept = stimulus_file.Stimuli(path) if len(old) else None
        for start in range(done, size, BATCH):
            batch = ids[start:start + BATCH]
            file.seek(at + start * row_bytes)
            file.write(np.ascontiguousarray(_read(batch, kept, old, source, images, ranged)))
            file.flush()
            os.fsync(file.fileno())
            text_files.write_json(noted, mark | {"done": start + len(batch)})
            bar.update(len(batch))
        if kept:
            kept.close()
    text_files.write_json(layout.sidecar(path), wanted)
    system.replace(part, path)
    noted.unlink()


def _read(batch, kept, old, source, images, ranged):
    """(n, H, W, 3) uint8 of a batch of ids: from the old copy what it has, the rest from NSD."""
    found = np.empty((len(batch), *images.shape[1:]), np.uint8)
    there = np.isin(batch, old)
    if there.any():
        found[there] = kept.read(batch[there])
    if not there.all():
        found[~there] = source.gather(batch[~there].tolist(), lambda row: _row(images, row))
        ranged.forget()
    return found


def _row(images, row):
    """One image. What was never written is a fault, not black."""
    if images.chunks:
        for place in remote_hdf5.covering(images, row):
            images.id.read_direct_chunk(place)
    return images[row]


def _prepare(part, ids, shape):
    """The file, whole but for the images, with room for them on the disk."""
    size = len(ids) * int(np.prod(shape))
    with h5py.File(part, "w") as file:
        file["stim_ids"] = ids
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((len(ids), *shape))
        h5py.h5d.create(file.id, b"imgBrick", h5py.h5t.STD_U8LE, space, plist)
    with open(part, "r+b") as file:
        try:
            system.reserve(file, max(part.stat().st_size, _data_at(part) + size))
        except OSError as error:
            raise Problem(f"{part} needs {size / 1e9:.2f} GB ({error.strerror})",
                          "make room or give another --workdir") from error


def _data_at(part):
    """The byte at which the images begin."""
    with h5py.File(part, "r") as file:
        return file["imgBrick"].id.get_offset()
