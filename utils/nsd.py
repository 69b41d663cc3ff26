"""The Natural Scenes Dataset's formats: design, responses, betas, atlas, noise ceiling, stimuli, captions.

docs/nsd_formats.md describes them. Ids are 1-based in NSD's design and responses, 0-based in everything this module
returns. Volumes are returned as (z, y, x) in C order, which is the order of the bytes in a NIfTI file (x fastest).
Whatever is not as NSD's manual says raises a Problem that names the key.
"""
import csv
import io
import json
import math
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import igzip, isal_zlib

from utils import cli, hdf5, layout, lazy, mat5
from utils.errors import Problem

nibabel = lazy.module("nibabel")

STIMULI = 73_000  # images in NSD (NSD data manual, "Experiments")
SCALE = 300  # a stored integer is percent signal change times this (NSD data manual, "Functional data (NSD)")
PREPARATION = "func1pt8mm"
BETAS = "betas_fithrf_GLMdenoise_RR"
VOLUME_LIMIT = 1 << 30  # bytes of an unpacked label or noise-ceiling volume
TABLE_LIMIT = 1 << 30  # bytes of a COCO annotation file
HEADER = 348  # bytes of a NIfTI-1 header
OFFSET_LIMIT = 1 << 20  # bytes before the data: the header and its extensions
AGAIN = "get the file from NSD again"
GZIP_FAULTS = (EOFError, igzip.BadGzipFile, isal_zlib.error, zlib.error)

DESIGN_KEY = "nsddata/experiments/nsd/nsd_expdesign.mat"
INFO_KEY = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
STIMULI_KEY = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"


def responses_key(subject):
    return f"nsddata/ppdata/{subject}/behav/responses.tsv"


def betas_prefix(subject):
    return f"nsddata_betas/ppdata/{subject}/{PREPARATION}/{BETAS}/"


def betas_key(subject, session):
    return f"{betas_prefix(subject)}betas_session{session:02}.nii.gz"


def betas_hdf5_key(subject, session):
    """The same betas with a chunk for each voxel (docs/nsd_formats.md)."""
    return f"{betas_prefix(subject)}betas_session{session:02}.hdf5"


def ncsnr_key(subject):
    return f"{betas_prefix(subject)}ncsnr.nii.gz"


def atlas_key(subject, name):
    return f"nsddata/ppdata/{subject}/{PREPARATION}/roi/{_file_name(name)}.nii.gz"


def table_keys(subject, name):
    """Where a label table may be: the subject's own, fsaverage's, then that of a volumetric atlas (MTL, thalamus).

    The volumes of one hemisphere (lh.streams) have the table of both (streams).
    """
    both = _file_name(name).removeprefix("lh.").removeprefix("rh.")
    return [*(f"nsddata/freesurfer/{owner}/label/{both}.mgz.ctab" for owner in (subject, "fsaverage")),
            f"nsddata/templates/{both}.ctab"]


def captions_key(split):
    """COCO's captions; split: train2017 or val2017."""
    return f"nsddata_stimuli/stimuli/nsd/annotations/captions_{split}.json"


def _file_name(name):
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.startswith("."):
        raise Problem(f"{name!r} is not the name of an atlas", "name a label volume of NSD's roi/ folder")
    return name


# design and responses


@dataclass(frozen=True)
class Design:
    """nsd_expdesign.mat, with 0-based ids.

    shared: (n,) int64 ids of the images that every subject was to see. images: (subjects, n) int64 ids by subject, or
    None. order: (trials,) int64 columns of `images` in the order of presentation, or None.
    """

    shared: np.ndarray
    images: np.ndarray | None
    order: np.ndarray | None


@dataclass(frozen=True)
class Responses:
    """responses.tsv, in scan order. stimuli: (trials,) int64 0-based ids. sessions: (trials,) int64, from 1."""

    stimuli: np.ndarray
    sessions: np.ndarray


def design(root):
    """NSD's design. Raises Problem for a file that is not one, or ids that are not 1-based."""
    name = root.name(DESIGN_KEY)
    content = root.read(DESIGN_KEY)
    try:
        fields = mat5.read(content, ("sharedix", "subjectim", "masterordering"))
    except ValueError as error:
        raise Problem(f"{name} is not a readable MAT file ({error})", AGAIN) from error
    if "sharedix" not in fields:
        raise Problem(f"{name} has no sharedix", AGAIN)
    shared = _one_based(fields["sharedix"].ravel(), STIMULI, f"sharedix of {name}")
    if len(np.unique(shared)) != len(shared):
        raise Problem(f"sharedix of {name} names an image twice", AGAIN)
    images = order = None
    if "subjectim" in fields:
        # A row of zeros is a subject that is not in this copy of the design; its ids become -1.
        images = _one_based(fields["subjectim"], STIMULI, f"subjectim of {name}", least=0)
        if not np.isin(shared, images).all():
            raise Problem(f"sharedix of {name} names images that no subject saw by its subjectim",
                          "both must be 1-based: get the file from NSD again")
    if "masterordering" in fields and images is not None:
        order = _one_based(fields["masterordering"].ravel(), images.shape[1], f"masterordering of {name}")
    return Design(shared, images, order)


def _one_based(numbers, most, what, least=1):
    """0-based int64 of 1-based whole numbers, `least` … `most`."""
    if numbers.dtype.kind not in "iuf" or numbers.size == 0:
        raise Problem(f"{what} holds no numbers", AGAIN)
    if not np.isfinite(numbers).all() or (numbers != np.round(numbers)).any():
        raise Problem(f"{what} holds something else than whole numbers", AGAIN)
    low, high = int(numbers.min()), int(numbers.max())
    if low < least or high > most:
        raise Problem(f"{what} holds {low} … {high}, not 1-based numbers up to {most}", AGAIN)
    return numbers.astype(np.int64) - 1


def responses(root, subject, against=None):
    """A subject's trials, in scan order.

    against: the Design that the stimuli must agree with. Raises Problem for ids that are not 1-based 73k ids, rows out
    of scan order, and stimuli that the design did not give this subject.
    """
    key = responses_key(subject)
    name = root.name(key)
    rows = table(root.read(key), "\t", name)
    wanted = ("SESSION", "RUN", "TRIAL", "73KID")
    found = {}
    for column in wanted:
        if column not in (rows[0] if rows else {}):
            if column in ("SESSION", "73KID"):
                raise Problem(f"{name} has no trials with a column {column}", AGAIN)
            continue
        found[column] = np.array([whole_number(row[column], f"{column} in line {line} of {name}")
                                  for line, row in enumerate(rows, start=2)])
    stimuli = _one_based(found["73KID"], STIMULI, f"73KID of {name}")
    _must_ascend([found[column] for column in wanted[:3] if column in found], name)
    if found["SESSION"].min() < 1:
        raise Problem(f"SESSION of {name} holds {found['SESSION'].min()}, but sessions count from 1", AGAIN)
    if against is not None:
        _must_agree(stimuli, against, subject, name)
    return Responses(stimuli, found["SESSION"])


def table(content, delimiter, name, todo=AGAIN):
    """[{column: text}] of a table with a header line; a short row has None in its last columns."""
    try:
        return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig")), delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"{name} is not a table ({error})", todo) from error


def whole_number(text, what, todo=AGAIN):
    """The whole number that a cell holds. Raises Problem, saying `what` it should be, if it holds another thing."""
    try:
        number = float(text)
        if number != int(number) or abs(number) >= 1 << 53:  # beyond, float64 has no whole numbers to tell apart
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise Problem(f"{what} is {text!r}, not a whole number", todo) from error
    return int(number)


def _must_ascend(columns, name):
    """Rows must be in scan order, none twice: session, then run, then trial."""
    rank = np.lexsort(columns[::-1])
    misplaced = np.flatnonzero(rank != np.arange(len(rank)))
    if misplaced.size:
        raise Problem(f"line {misplaced[0] + 2} of {name} is out of scan order", AGAIN)
    if len(columns) == 3:
        twice = np.flatnonzero(np.all([np.diff(column) == 0 for column in columns], axis=0))
        if twice.size:
            raise Problem(f"line {twice[0] + 3} of {name} repeats a trial", AGAIN)


def _must_agree(stimuli, against, subject, name):
    """The design says which image each trial showed; 0-based ids, for one, do not pass."""
    if against.images is None:
        cli.say(f"warning: the design has no subjectim, so whether 73KID of {name} is 1-based cannot be checked")
        return
    row = layout.SUBJECTS.index(subject)
    if row >= len(against.images) or against.images[row].min() < 0:
        raise Problem(f"the design names no images of {subject}", "give a subject that it has")
    own = against.images[row]
    if against.order is not None and len(stimuli) <= len(against.order):
        wrong = np.flatnonzero(stimuli != own[against.order[:len(stimuli)]])
    else:
        wrong = np.flatnonzero(~np.isin(stimuli, own))
    if wrong.size:
        raise Problem(f"line {wrong[0] + 2} of {name} has 73KID {stimuli[wrong[0]] + 1}, which the design does not "
                      f"show there ({wrong.size} such lines)", "73KID must be 1-based: get the file from NSD again")


# betas


def sessions(root, subject, in_design, limit=None):
    """The sessions to read: those in the design (`in_design`, any order) that have betas, at most the first `limit`.

    Those without betas are reported on stderr. Raises Problem if there is none, or if betas have no rows in the design.
    """
    pattern = re.compile(re.escape(betas_prefix(subject)) + r"betas_session(\d+)\.nii\.gz")
    there = {int(match[1]) for key, _ in root.list(betas_prefix(subject)) if (match := pattern.fullmatch(key))}
    wanted = sorted({int(session) for session in in_design})
    if not there:
        raise Problem(f"{root.name(betas_prefix(subject))} holds no betas_sessionNN.nii.gz",
                      "check NSD_ROOT and --subject")
    unknown = sorted(there - set(wanted))
    if unknown:
        raise Problem(f"{subject} has betas of session {_list(unknown)} without rows in responses.tsv",
                      "get responses.tsv from NSD again")
    if limit is not None:
        if limit > len(wanted):
            cli.say(f"--sessions {limit}: {subject} has {len(wanted)}, so all of them")
        wanted = wanted[:limit]
    absent = [session for session in wanted if session not in there]
    if absent:
        cli.say(f"warning: {subject} has no betas of session {_list(absent)}, "
                f"{len(wanted) - len(absent)} of {len(wanted)} sessions are used")
    used = [session for session in wanted if session in there]
    if not used:
        raise Problem(f"{subject} has betas of none of the {len(wanted)} sessions wanted", "give a larger --sessions")
    return used


def _list(numbers):
    return ", ".join(str(number) for number in numbers)


@dataclass(frozen=True)
class Grid:
    """A volume's voxels: shape (x, y, z) and affine (4, 4) to mm, or None where the header declares none."""

    name: str
    shape: tuple
    zooms: tuple
    affine: np.ndarray | None

    @classmethod
    def of(cls, header, name):
        declared = header["sform_code"] > 0 or header["qform_code"] > 0
        try:
            affine = header.get_best_affine() if declared else None
        except (ValueError, nibabel.spatialimages.HeaderDataError) as error:
            raise Problem(f"{name} declares no valid orientation ({error})", AGAIN) from error
        return cls(name, header.get_data_shape()[:3], tuple(float(zoom) for zoom in header["pixdim"][1:4]), affine)

    def must_match(self, other):
        """Raises Problem if `other` is another space: shape, voxel size, orientation, or origin by half a voxel."""
        for what, ours, theirs, same in (
            ("shape", self.shape, other.shape, self.shape == other.shape),
            ("voxel size (mm)", self.zooms, other.zooms, np.allclose(self.zooms, other.zooms, rtol=1e-3)),
            ("orientation", *self._placed(other)),
        ):
            if not same:
                raise Problem(f"{self.name} is in another space than {other.name}: {what} {_short(ours)} and "
                              f"{_short(theirs)}", f"use volumes of the same preparation ({PREPARATION})")

    def _placed(self, other):
        if self.affine is None or other.affine is None:
            return None, None, True
        half = min(self.zooms) / 2
        same = (np.allclose(self.affine[:3, :3], other.affine[:3, :3], atol=1e-2 * half)
                and np.allclose(self.affine[:3, 3], other.affine[:3, 3], atol=half))
        return self.affine[:3].tolist(), other.affine[:3].tolist(), same


def _short(numbers):
    return np.array2string(np.asarray(numbers), precision=3, separator=", ").replace("\n", "")


class BetaVolumes:
    """The betas of one key, streamed: iterating yields one (z, y, x) int16 array per trial, in trial order.

    Opening reads the header alone. Nothing is kept: a volume is valid until the next is asked for. After the last
    volume the gzip stream must end, with its checksum right. Raises Problem that names the key for whatever is wrong.
    raw: the key's bytes, if they are not to be read as one stream.
    """

    def __init__(self, root, key, raw=None):
        self.key = key
        self.name = root.name(self.key)
        self._raw = root.open(self.key) if raw is None else raw
        self._stream = igzip.open(self._raw, "rb")
        header = _header(self._read(HEADER), self.name)
        self.count, self._dtype = self._checked(header)
        self.grid = Grid.of(header, self.name)
        self._skip(_data_at(header, self.name) - HEADER)

    def _checked(self, header):
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        if len(shape) != 4 or min(shape) < 1:
            raise Problem(f"{self.name} has shape {shape}, not (x, y, z, trials)", AGAIN)
        if dtype.newbyteorder("=") != np.int16:
            raise Problem(f"{self.name} is {dtype.name}, not int16", "get NSD's volumes of betas")
        slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
        if slope not in (0, 1) and not np.isnan(slope) or slope == 1 and inter != 0 and not np.isnan(inter):
            raise Problem(f"{self.name} rescales its integers (slope {slope:g}, intercept {inter:g})", AGAIN)
        if math.prod(shape[:3]) * dtype.itemsize > VOLUME_LIMIT:
            raise Problem(f"{self.name} has volumes {shape[:3]} of more than {VOLUME_LIMIT >> 20} MiB", AGAIN)
        return shape[3], dtype

    def __iter__(self):
        x, y, z = self.grid.shape
        size = x * y * z * 2
        for trial in range(self.count):
            data = self._read(size, f"volume {trial + 1} of {self.count}")
            yield np.frombuffer(data, self._dtype).astype(np.int16, copy=False).reshape(z, y, x)
        if self._read(1, "the end", short=True):
            raise Problem(f"{self.name} goes on after its {self.count} volumes", AGAIN)

    def _skip(self, count):
        if count:
            self._read(count)

    def _read(self, count, what="the header", short=False):
        try:
            data = self._stream.read(count)
        except GZIP_FAULTS as error:
            raise Problem(f"{self.name} is truncated or corrupt in {what} ({error})", AGAIN) from error
        if len(data) < count and not short:
            raise Problem(f"{self.name} ends in {what}", AGAIN)
        return data

    def close(self):
        self._stream.close()
        self._raw.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def beta_volumes(root, subject, session, raw=None):
    """A session's betas, streamed; see BetaVolumes."""
    return BetaVolumes(root, betas_key(subject, session), raw)


def _header(data, name):
    """A NIfTI-1 header of either byte order."""
    try:
        header = nibabel.Nifti1Header(data, check=False)
        if header["sizeof_hdr"] != HEADER or bytes(header["magic"].tobytes())[:3] not in (b"n+1", b"ni1"):
            raise ValueError("no NIfTI-1 header")
        header.get_data_dtype()
        header.get_data_shape()
    except (ValueError, KeyError, nibabel.wrapstruct.WrapStructError, nibabel.spatialimages.HeaderDataError) as error:
        raise Problem(f"{name} is not a NIfTI-1 file ({error})", AGAIN) from error
    return header


def _volume(root, key):
    """A small volume: (z, y, x) array of its stored dtype, scaled if its header says so, and its Grid.

    No more is unpacked than the header's shape takes.
    """
    name = root.name(key)
    content = io.BytesIO(root.read(key))
    try:
        with igzip.open(content, "rb") as stream:
            header = _header(stream.read(HEADER), name)
            grid, shape, dtype = Grid.of(header, name), header.get_data_shape(), header.get_data_dtype()
            if len(shape) == 4 and shape[3] == 1:
                shape = shape[:3]
            if len(shape) != 3 or min(shape) < 1 or dtype.kind not in "iuf":
                raise Problem(f"{name} has {dtype} of shape {shape}, not numbers (x, y, z)", AGAIN)
            size = math.prod(shape) * dtype.itemsize
            if size > VOLUME_LIMIT:
                raise Problem(f"{name} unpacks to more than {VOLUME_LIMIT >> 20} MiB",
                              "check that it is the file it should be")
            stream.read(_data_at(header, name) - HEADER)
            data = stream.read(size + 1)
    except GZIP_FAULTS as error:
        raise Problem(f"{name} is truncated or corrupt ({error})", AGAIN) from error
    if len(data) != size:
        raise Problem(f"{name} holds {'more' if len(data) > size else 'less'} than its shape {shape} takes", AGAIN)
    try:
        slope, inter = header.get_slope_inter()
    except nibabel.spatialimages.HeaderDataError as error:
        raise Problem(f"{name} is not a whole NIfTI-1 file ({error})", AGAIN) from error
    values = np.frombuffer(data, dtype).reshape(shape[::-1])
    return nibabel.volumeutils.apply_read_scaling(values, slope, inter), grid


def _data_at(header, name):
    """The byte at which the data begin."""
    if not HEADER <= header["vox_offset"] <= OFFSET_LIMIT:
        raise Problem(f"{name} puts its data at byte {header['vox_offset']}", AGAIN)
    return int(header["vox_offset"])


# atlas and noise ceiling


@dataclass(frozen=True)
class Atlas:
    """labels (z, y, x) int32, values {name: label} without the background, and the Grid."""

    labels: np.ndarray
    values: dict
    grid: Grid
    keys: tuple


def atlas(root, subject, name="streams"):
    """A label volume of NSD's roi/ folder with its table (see `table_keys`).

    A volume of -1, 0 and 1 alone, such as nsdgeneral, needs no table: 1 then has the atlas's own name. Labels of 0 and
    below are background (NSD marks voxels outside the cortex -1).
    """
    key = atlas_key(subject, name)
    volume, grid = _volume(root, key)
    if not np.isfinite(volume).all() or (volume != np.round(volume)).any() or np.abs(volume).max() >= 1 << 31:
        raise Problem(f"{grid.name} holds something else than whole labels", AGAIN)
    labels = volume.astype(np.int32)
    for table_key in table_keys(subject, name):
        if root.exists(table_key):
            values = label_table(root.read(table_key), root.name(table_key))
            keys = (key, table_key)
            break
    else:
        if labels.max() > 1:
            raise Problem(f"no table names the labels of {name}: {' '.join(table_keys(subject, name))}",
                          "get one of these files from NSD")
        values, keys = {name: 1}, (key,)
    unnamed = sorted(set(np.unique(labels[labels > 0]).tolist()) - set(values.values()))
    if unnamed:
        raise Problem(f"{grid.name} has label {_list(unnamed)}, which its table does not name", AGAIN)
    lacking = [roi for roi in layout.ROIS if roi not in values] if name == "streams" else []
    if lacking:
        raise Problem(f"{root.name(keys[-1])} does not name {' '.join(lacking)}", AGAIN)
    return Atlas(labels, values, grid, keys)


def label_table(content, name):
    """{ROI name: label} of a FreeSurfer colour table: a label and a name per line, whatever follows; 0 is left out."""
    values = {}
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise Problem(f"{name} is not a label table ({error})", AGAIN) from error
    for line in lines:
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) < 2 or not re.fullmatch(r"-?[0-9]{1,9}", fields[0]):
            raise Problem(f"{name} has the line {line!r}, not a label and a name", AGAIN)
        label, roi = int(fields[0]), fields[1]
        if label <= 0:
            continue
        if not re.fullmatch(r"[A-Za-z0-9_.+-]+", roi):
            raise Problem(f"{name} has the ROI name {roi!r}, which cannot be part of a file name", "rename it there")
        if roi in values or label in values.values():
            raise Problem(f"{name} has {roi} or label {label} twice", AGAIN)
        values[roi] = label
    if not values:
        raise Problem(f"{name} names no ROI", AGAIN)
    return values


def ncsnr(root, subject):
    """The noise-ceiling signal-to-noise ratio of each voxel, (z, y, x) float32 with NaN where unknown, and its Grid."""
    volume, grid = _volume(root, ncsnr_key(subject))
    return volume.astype(np.float32), grid


def noise_ceiling(ratio, repeats):
    """Percent of the variance of an average over `repeats` trials that is signal, by ncsnr (NSD data manual)."""
    return 100 * ratio ** 2 / (ratio ** 2 + 1 / repeats)


# captions


class Captions(dict):
    """{0-based 73k id: [caption, …]}. Asking for an image without captions raises Problem.

    empty: {0-based 73k id: empty captions that were left out}.
    """

    def __init__(self):
        super().__init__()
        self.empty = {}

    def __missing__(self, stimulus):
        if stimulus in self.empty:
            raise Problem(f"all {self.empty[stimulus]} captions of 73k id {stimulus} are empty",
                          "mend COCO's captions_*2017.json, or leave this stimulus out")
        raise Problem(f"there are no captions for 73k id {stimulus}",
                      "nsd_stim_info_merged.csv and COCO's captions_*2017.json must cover it")


def captions(root, workdir=None):
    """The captions of every image in nsd_stim_info_merged.csv that COCO has some for, without blanks around them.

    Empty ones are left out, counted, and said in one warning.
    COCO's files are read from below NSD's stimuli, or from `workdir`/annotations if they are there: NSD's bucket may
    not hold them.
    """
    name = root.name(INFO_KEY)
    by_split, known = {}, set()
    for line, row in enumerate(table(root.read(INFO_KEY), ",", name), start=2):
        if not {"nsdId", "cocoId", "cocoSplit"} <= row.keys():
            raise Problem(f"{name} lacks one of the columns nsdId, cocoId, cocoSplit", AGAIN)
        if row["cocoSplit"] not in ("train2017", "val2017"):
            raise Problem(f"line {line} of {name} has cocoSplit {row['cocoSplit']!r}",
                          "it must be train2017 or val2017")
        stimulus = whole_number(row["nsdId"], f"nsdId in line {line} of {name}")
        if not 0 <= stimulus < STIMULI:
            raise Problem(f"line {line} of {name} has nsdId {stimulus}", f"it must be 0-based and below {STIMULI}")
        if stimulus in known:
            raise Problem(f"line {line} of {name} has nsdId {stimulus} again", AGAIN)
        known.add(stimulus)
        by_image = by_split.setdefault(row["cocoSplit"], {})
        by_image.setdefault(whole_number(row["cocoId"], f"cocoId in line {line} of {name}"), []).append(stimulus)
    found = Captions()
    for split, by_image in sorted(by_split.items()):
        for image, caption in _coco(root, split, workdir):
            for stimulus in by_image.get(image, ()):
                if caption:
                    found.setdefault(stimulus, []).append(caption)
                else:
                    found.empty[stimulus] = found.empty.get(stimulus, 0) + 1
    if found.empty:
        cli.say(f"warning: {sum(found.empty.values())} empty captions of {len(found.empty)} stimuli are left out "
                f"(the first is 73k id {min(found.empty)})")
    return found


def _coco(root, split, workdir):
    """(COCO image id, caption) pairs, in the file's order."""
    key = captions_key(split)
    local = layout.annotations(workdir) / Path(key).name if workdir is not None else None
    if local is not None and local.exists():
        if local.stat().st_size > TABLE_LIMIT:
            raise Problem(f"{local} has {local.stat().st_size:,} bytes", "COCO's caption files have less than 100 MB")
        name, content = local, local.read_bytes()
    elif root.exists(key):
        name, content = root.name(key), root.read(key, limit=TABLE_LIMIT)
    else:
        where = local or "annotations/ of the working folder"
        raise Problem(f"{root.name(key)} does not exist",
                      f"unpack COCO's annotations_trainval2017.zip and put {Path(key).name} at {where}")
    try:
        for annotation in json.loads(content)["annotations"]:
            if not isinstance(annotation["caption"], str):
                raise ValueError(f"the caption of image {annotation['image_id']} is no text")
            annotation["caption"].encode()  # JSON can hold half a character, which no file can
            yield int(annotation["image_id"]), annotation["caption"].strip()
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Problem(f"{name} is not a COCO caption file ({error})", "get it again") from error


def captions_of(found, stimuli):
    """[[caption, …] per stimulus] of 0-based 73k ids. Raises Problem for one without captions."""
    return [found[int(stimulus)] for stimulus in stimuli]


# stimuli


def stimuli_place(root, workdir):
    """Where NSD's images are read from: in place for a local root,
    else the copy that img2feat_sd.py keeps in `workdir`."""
    return root.path(STIMULI_KEY) if root.local else layout.stimuli(workdir)


def stimuli_path(root, workdir):
    """The file of NSD's images. Raises Problem where it is missing."""
    path = stimuli_place(root, workdir)
    if not path.is_file():
        raise Problem(f"{path} {'does not exist' if root.local else 'is missing'}",
                      "check NSD_ROOT" if root.local else "run img2feat_sd.py, which fetches it")
    return path


class Stimuli:
    """Images in an HDF5 file like nsd_stimuli.hdf5: `imgBrick` (n, H, W, 3) uint8, row = 0-based 73k id.

    A file with `stim_ids` (n,) holds those ids instead of 0 … n-1. ids: (n,) int64, ascending. stop: no id is as large.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._file = hdf5.File(path, "run img2feat_sd.py, which fetches it", "fetch or make it again")
        try:
            self._images = self._file.dataset("imgBrick", "biufc")
            self.shape, dtype = self._images.shape, self._images.dtype
            if dtype != np.uint8 or len(self.shape) != 4 or self.shape[3] != 3 or 0 in self.shape:
                raise Problem(f"imgBrick of {path} is {dtype} {self.shape}, not uint8 (n, H, W, 3)",
                              "get the file again")
            self.count, self._rows = self.shape[0], None
            self.ids, self.stop = np.arange(self.count), self.count
            if "stim_ids" in self._file:
                ids = self._file.dataset("stim_ids", "iu").ids()
                if ids.shape != (self.count,):
                    raise Problem(f"{path} has {self.count} images but stim_ids of shape {ids.shape}", "make it again")
                self._rows = {int(stimulus): row for row, stimulus in enumerate(ids)}
                self.ids, self.stop = np.sort(ids), STIMULI
        except Problem:
            self.close()
            raise

    def read(self, ids):
        """(len(ids), H, W, 3) uint8 images of 0-based 73k ids, in the order given; the disk is read in its own."""
        rows = np.array([self._row(stimulus) for stimulus in ids], np.int64)
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        order = np.argsort(rows, kind="stable")
        sorted_rows = rows[order]
        starts = np.flatnonzero(np.diff(sorted_rows, prepend=-2) > 1)
        for start, stop in zip(starts, [*starts[1:], len(rows)]):
            first, last = sorted_rows[start], sorted_rows[stop - 1]
            run = self._images[first:last + 1]
            out[order[start:stop]] = run[sorted_rows[start:stop] - first]
        return out

    def _row(self, stimulus):
        row = self._rows.get(int(stimulus), -1) if self._rows is not None else int(stimulus)
        if not 0 <= row < self.count:
            raise Problem(f"{self.path} has no image of 73k id {stimulus}", f"it holds {self.count} images")
        return row

    @property
    def whole(self):
        """Whether rows are 73k ids: the file is not a choice of images."""
        return self._rows is None

    def __contains__(self, name):
        """True if the file has a dataset of that name."""
        return name in self._file

    def check(self):
        """Read an image at the start, the middle and the end. Raises Problem if one cannot be read."""
        ids = [0, self.count // 2, self.count - 1]
        known = sorted(self._rows) if self._rows is not None else range(self.count)
        self.read([known[position] for position in ids])

    def close(self):
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
