"""Every reader, given a damaged file: it returns what a valid file holds or raises Problem,
soon and in bounded memory."""
import contextlib
import gzip
import io
import json
import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import tiny_nsd
from utils import images, layout
from utils.completion import picture_features
from utils.errors import Problem
from utils.features import extraction
from utils.generate import captioning, gan_inversion
from utils.nsd import atlases, coco_captions, experiment, nifti_volumes, object_keys, s3, stimulus_file, trials
from utils.occlusion import occluded_pictures, occluded_stimuli, occluded_viewing
from utils.report import figures
from utils.storage import arrays, feature_shards, image_features, subject_matrices, text_files
from utils.storage import hdf5 as h5

SECONDS = 5  # for one damaged file; a whole one takes milliseconds
ROOM = 400 << 20  # bytes of address space that one read may add
COUNT, SIDE = 12, 8
SUBJECT = "subj01"
READERS = {}


@contextlib.contextmanager
def bounded():
    """A read that hangs is stopped, and one that asks for more than ROOM is refused memory: both fail the test."""
    def stop(*_):
        raise AssertionError(f"reading took more than {SECONDS} s")

    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def reader(key, whole, others=()):
    """Register a reader: a function of the folder that holds the file `key`, whose bytes whole() makes."""
    def registered(read):
        READERS[read.__name__] = (key, whole, others, read)
        return read

    return registered


# whole files


def hdf5(attributes=None, **datasets):
    whole = io.BytesIO()
    with h5py.File(whole, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values, compression="gzip" if np.size(values) > 2000 else None)
        for name, value in (attributes or {}).items():
            file.attrs[name] = value
    return whole.getvalue()


def pixels(count=COUNT):
    return np.random.default_rng(1).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)


def picture(form, **options):
    whole = io.BytesIO()
    Image.fromarray(pixels(1)[0]).save(whole, form, **options)
    return whole.getvalue()


def npy(array):
    whole = io.BytesIO()
    np.save(whole, array)
    return whole.getvalue()


def mat(compressed):
    whole = io.BytesIO()
    scipy.io.savemat(whole, {"feat": np.ones((1, 3, 4, 4), np.float32)}, do_compression=compressed)
    return whole.getvalue()


def coco():
    said = [{"image_id": 70, "caption": "a red square"}, {"image_id": 71, "caption": "a disc"}]
    return json.dumps({"annotations": said}).encode()


def split_of(rows):
    split = {"features": np.ones((rows, 4), np.float32), "stim_ids": np.arange(rows), "trial_rows": np.arange(rows)}
    return {f"{name}/{key}": values for name in trials.SPLITS for key, values in split.items()}


INFO = b",cocoId,cocoSplit,nsdId\n0,70,train2017,1\n1,71,train2017,2\n"
TRAIN = object_keys.captions_key("train2017")
EVENTS = ("\t".join(occluded_viewing.COLUMNS)
          + "\n0\t3\twhole\t3\tnone\tnone\t0\t0\n4\t3\toccluded\t3\tbar\tleft\t0\t0\n"
          "8\t3\toccluded\t4\tbar\tright\t0\t0\n").encode()
MASKS = {"masks/left": np.eye(SIDE, dtype=bool), "masks/right": ~np.eye(SIDE, dtype=bool)}
OBJECTS = {"labels": np.full((2, occluded_pictures.SMALL, occluded_pictures.SMALL), -1, np.int8), "stim_ids": [3, 4],
           "area": np.array([[0.1, np.nan], [0.2, 0.3]], np.float32), "kinds": np.ones((2, 2, 2), np.int8)}


# NSD's formats


@reader(tiny_nsd.DESIGN, tiny_nsd.expdesign)
def design(folder):
    found = experiment.design(s3.Folder(folder))
    assert found.shared.min() >= 0 and found.shared.max() < object_keys.STIMULI


@reader(tiny_nsd.RESPONSES, tiny_nsd.responses)
def responses(folder):
    found = experiment.responses(s3.Folder(folder), SUBJECT)
    assert found.stimuli.dtype == found.sessions.dtype == np.int64 and found.stimuli.max() < object_keys.STIMULI


@reader(tiny_nsd.ATLAS, lambda: tiny_nsd.nifti(tiny_nsd.labels()),
        [(tiny_nsd.CTAB, "\n".join(tiny_nsd.TABLE).encode())])
def atlas(folder):
    found = atlases.atlas(s3.Folder(folder), SUBJECT)
    assert found.labels.dtype == np.int32 and found.labels.T.shape == found.grid.shape


@reader(tiny_nsd.CTAB, lambda: "\n".join(tiny_nsd.TABLE).encode(),
        [(tiny_nsd.ATLAS, tiny_nsd.nifti(tiny_nsd.labels()))])
def label_table(folder):
    assert set(range(1, 8)) <= set(atlases.atlas(s3.Folder(folder), SUBJECT).values.values())


@reader(tiny_nsd.NCSNR, lambda: tiny_nsd.nifti(np.ones(tiny_nsd.SHAPE, np.float32)))
def noise_ceiling(folder):
    assert atlases.ncsnr(s3.Folder(folder), SUBJECT)[0].dtype == np.float32


@reader(tiny_nsd.BETAS.format(1), lambda: tiny_nsd.nifti(tiny_nsd.betas(1, 8)))
def betas(folder):
    with nifti_volumes.beta_volumes(s3.Folder(folder), SUBJECT, 1) as volumes:
        for volume in volumes:
            assert volume.dtype == np.int16 and volume.T.shape == volumes.grid.shape


@reader(tiny_nsd.INFO, lambda: INFO, [(TRAIN, coco()), (TRAIN.replace("train", "val"), coco())])
def stim_info(folder):
    assert set(coco_captions.captions(s3.Folder(folder))) <= set(range(object_keys.STIMULI))


@reader(TRAIN, coco, [(tiny_nsd.INFO, INFO)])
def captions(folder):
    for said in coco_captions.captions(s3.Folder(folder)).values():
        assert all(caption.strip() for caption in said) and "".join(said).encode()


@reader("nsd_stimuli.hdf5", lambda: hdf5(imgBrick=pixels()))
def stimuli(folder):
    with stimulus_file.Stimuli(folder / "nsd_stimuli.hdf5") as found:
        assert found.read([0, found.count - 1]).shape == (2, *found.shape[1:])


@reader("occluded.hdf5", lambda: hdf5({"kind": "bars", "ratio": 0.3}, imgBrick=pixels(), stim_ids=np.arange(COUNT),
                                      mask=np.zeros((COUNT, SIDE, SIDE), bool)))
def occluded_images(folder):
    with occluded_stimuli.OccludedStimuli(folder / "occluded.hdf5") as found:
        ids = found.ids[:2]
        assert found.read(ids).dtype == np.uint8 and found.masks(ids).dtype == bool and str(found.settings)


# occluded viewing


@reader(occluded_viewing.events_key(SUBJECT), lambda: EVENTS)
def events(folder):
    found = occluded_viewing.events(s3.Folder(folder), SUBJECT)
    assert found.stimuli.min() >= 0 and found.stimuli.max() < object_keys.STIMULI and not found.whole.all()


@reader("shown.hdf5",
        lambda: hdf5(imgBrick=pixels(2), stim_ids=[3, 4], mask_ids=np.array([b"left", b"right"]), **MASKS))
def shown(folder):
    trials_of = occluded_viewing.Events(np.array([3, 4]), np.array(["left", "right"]), np.array(["bar", "bar"]),
                                        np.array([False, False]))
    views, pairs = occluded_viewing.views(folder / "shown.hdf5", trials_of, np.array([3, 4]))
    assert views.hidden.shape == (2, occluded_pictures.SMALL, occluded_pictures.SMALL) and len(pairs) == 2


@reader("objects.hdf5", lambda: hdf5({"categories": ["disc", "square"]}, **OBJECTS))
def objects(folder):
    found = occluded_viewing.Annotation(folder / "objects.hdf5").pictures(np.zeros((1, 100, 100, 3), np.uint8), [4])
    assert np.isfinite(picture_features.context(found)).all()


# artifacts


@reader("nsdfeat/c/000000-000003.h5",
        lambda: hdf5({"model": "m"}, features=np.ones((3, 2, 4), np.float16), stim_ids=[0, 1, 2]))
def feature_shard(folder):
    shards = feature_shards.Shards(folder / "nsdfeat" / "c")
    shards.attributes()
    assert len(shards.read([2, 0], "x")) == 2


@reader("nsdfeat/old/000001.npy", lambda: npy(np.ones((2, 3), np.float32)))
def feature_file(folder):
    assert feature_shards.Shards(folder / "nsdfeat" / "old").read([1], "x").dtype.kind in "fiub"


@reader("subj01_each_c.h5", lambda: hdf5({"model": "m"}, **split_of(3)))
def subject_features(folder):
    with subject_matrices.SubjectFeatures(folder / "subj01_each_c.h5", "x") as matrix:
        for split in trials.SPLITS:
            assert len(matrix.stimuli(split)) == len(matrix.features(split)[:])


@reader("array.npy", lambda: npy(np.arange(60).reshape(12, 5)))
def array(folder):
    for mmap in (False, True):
        assert np.asarray(arrays.read_npy(folder / "array.npy", mmap=mmap)).dtype.kind in "biuf"


@reader("record.json", lambda: json.dumps({"made_by": "x", "options": {"a": 1}}).encode())
def record(folder):
    assert isinstance(text_files.read_json(folder / "record.json"), dict)


@reader("plain.mat", lambda: mat(compressed=False))
def vgg_features(folder):
    assert gan_inversion.read_mat(folder / "plain.mat", (3, 4, 4), "x").dtype == np.float32


@reader("packed.mat", lambda: mat(compressed=True))
def packed_vgg_features(folder):
    assert gan_inversion.read_mat(folder / "packed.mat", (3, 4, 4), "x").dtype == np.float32


@reader("sample.png", lambda: picture("PNG"))
def sample_png(folder):
    assert images.load(folder / "sample.png").ndim == 3


@reader("gan.tiff", lambda: picture("TIFF"))
def gan_tiff(folder):
    assert images.load(folder / "gan.tiff").dtype == np.uint8


@reader("captions.csv", lambda: b"a red square\na disc\n")
def decoded_captions(folder):
    assert len(captioning.read(folder / "captions.csv", 2, "x")) == 2


@reader("nsdfeat/blip_captions/captions.json", lambda: json.dumps({"3": ["a red square"], "4": ["a disc"]}).encode())
def blip_captions(folder):
    found = extraction.blip_captions(SimpleNamespace(workdir=folder, dataset="nsd"))
    assert all(isinstance(stimulus, int) and said for stimulus, said in found.items())


@reader("scores/per_image_scores_subj01_cvpr_clip.csv", lambda: b"imgidx,mean_corr,accuracy\n0,0.5,1.0\n1,0.4,0.5\n")
def per_image_scores(folder):
    assert all(isinstance(image, int)
               for image in figures.read_scores(layout.Workspace(folder, SUBJECT), "cvpr", "clip"))


@reader("identification/cvpr/subj01/clip.h5", lambda: hdf5(**{
    "originals/images": [0, 3], "originals/features": np.ones((2, 5), np.float32), "samples/images": [0, 3, 3],
    "samples/repeats": [0, 0, 1], "samples/features": np.ones((3, 5), np.float32)}))
def features_of_pictures(folder):
    found = image_features.ImageFeatures(layout.Workspace(folder, SUBJECT).identification("cvpr"), "clip")
    assert len(found.pictures) == 5 and all(found[each].shape == (5,) for each in found.pictures)


# damage


@st.composite
def damage(draw, content):
    """Bytes that differ from `content` here and there, cut short, or with a piece repeated; text and headers alike."""
    packed = content[:2] == b"\x1f\x8b" and draw(st.booleans())
    found = bytearray(gzip.decompress(content) if packed else content)
    for _ in range(draw(st.integers(0, 4))):
        # Headers are where damage can mislead a parser.
        at = draw(st.one_of(st.integers(0, min(len(found), 600) - 1), st.integers(0, len(found) - 1)))
        piece = draw(st.one_of(st.binary(min_size=1, max_size=1), st.sampled_from([
            b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"9" * 12, b"nan", b"-1", b"1e999", b"\n", b"\t",
            b'"', b"["])))
        found[at:at + len(piece)] = piece
    if draw(st.integers(0, 3)) == 0:
        at, size = draw(st.integers(0, len(found) - 1)), draw(st.integers(1, 64))
        found[at:at] = found[at:at + size]
    if draw(st.integers(0, 3)) == 0:
        del found[draw(st.integers(0, len(found))):]
    return gzip.compress(bytes(found), 1) if packed else bytes(found)


def attempt(name, folder, content):
    """Read damaged bytes; "read" or "refused"."""
    key, _, _, read = READERS[name]
    tiny_nsd.put(folder, key, content)
    with bounded():
        try:
            read(folder)
        except Problem as error:
            assert str(error)
            return "refused"
    return "read"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tmp_path_factory.mktemp(name) for name in READERS}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_as_a_valid_one_or_is_a_problem(folders, name):
    key, whole, others, _ = READERS[name]
    for other, content in others:
        tiny_nsd.put(folders[name], other, content)
    content = whole()
    assert attempt(name, folders[name], content) == "read"

    # The same damage in every run: what it finds depends on the readers alone.
    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(damage(content))
    def damaged(found):
        attempt(name, folders[name], found)

    damaged()


def test_a_heap_of_strings_that_would_make_the_hdf5_library_loop_is_refused(tmp_path):
    whole = bytearray(hdf5({"model": "m"}, stim_ids=[0]))
    entry = whole.index(b"GCOL") + 16
    whole[entry:entry + 16] = bytes(16)
    (tmp_path / "a.h5").write_bytes(whole)
    with h5.File(tmp_path / "a.h5", "x", "y") as file, pytest.raises(Problem, match="a heap of strings"):
        file.attributes()
