"""What people feed the stages by mistake: one line says what is wrong, and nothing is written."""
import io
import json
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

import amodal_completion
import diffusion_decoding
import dptemb2dpt
import generate_occluded_images
import img2feat_blip
import img2feat_decoded
import img2feat_dpt
import img2feat_sd1_parallel
import make_subjmri
import make_vgg19bdpy
import recon_icnn_image_vgg19_dgn_relu7gen_gd
import ridge
import run_pipeline
from tests import tiny_nsd
from tests.pipeline.test_safety import png
from utils import images, layout
from utils.errors import Problem
from utils.evaluate import caption_scores
from utils.features import extraction, subjstim
from utils.generate import reconstruction
from utils.nsd import coco_captions, experiment, object_keys, s3
from utils.occlusion import occluded_pictures, occluded_viewing
from utils.storage import arrays, feature_shards, picture_files, text_files

SUBJECT = ["--subject", "subj01"]


def written(workdir):
    """The files below a working folder, but for locks and mrifeat."""
    return [path for path in workdir.rglob("*")
            if path.is_file() and path.suffix != ".lock" and "mrifeat" not in path.parts]


# pictures


def saved(mode, form="PNG", **options):
    """A picture of that mode, 4 × 4 px."""
    whole = io.BytesIO()
    Image.new(mode, (4, 4)).save(whole, form, **options)
    return whole.getvalue()


def turned(form):
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    return saved("RGB", form, exif=exif)


PICTURES = {
    "with transparency": (saved("RGBA"), "is RGBA, not RGB"),
    "grey": (saved("L"), "is L, not RGB"),
    "grey with transparency": (saved("LA"), "is LA, not RGB"),
    "palette": (saved("P"), "is P, not RGB"),
    "black and white": (saved("1"), "is 1, not RGB"),
    "for print": (saved("CMYK", "TIFF"), "is CMYK, not RGB"),
    "16-bit grey": (saved("I;16"), "is I;16, not RGB"),
    "16-bit colour": (png(4, 4, 16, 4 * (b"\0" + bytes(24))), "16 bits a channel"),
    "turned by EXIF, PNG": (turned("PNG"), "turned by its EXIF"),
    "turned by EXIF, TIFF": (turned("TIFF"), "turned by its EXIF"),
    "turned by EXIF, JPEG": (turned("JPEG"), "turned by its EXIF"),
    "another size": (png(4, 5, data=5 * (b"\0" + bytes(12))), "is 4×5 px, not 4×4"),
    "cut short": (saved("RGB", compress_level=0)[:90], "not a whole picture"),
    "no picture": (b"hello", "not a whole picture"),
    "empty": (b"", "not a whole picture"),
}


@pytest.mark.parametrize("case", PICTURES)
def test_a_picture_of_another_kind_is_refused_never_converted(tmp_path, case):
    content, said = PICTURES[case]
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(Problem, match=said):
        images.load(tmp_path / "a.png", side=4)


def test_a_picture_among_the_samples_that_is_not_one_is_named_and_no_feature_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("NSD_MODELS", "tiny")
    ws = layout.Workspace(tmp_path, "subj01")
    folder = ws.samples("cvpr")
    picture_files.save(layout.original_image(folder, 0), np.zeros((512, 512, 3), np.uint8))
    Image.new("RGBA", (512, 512)).save(layout.sample_image(folder, 0, 0))
    text_files.write_json(layout.manifest(folder), {})
    with pytest.raises(Problem, match="00000_000.png is RGBA"):
        img2feat_decoded.main(["--workdir", str(tmp_path), *SUBJECT, "--gpu", "-1", "--usefeat", "alexnet5"])
    assert not list(ws.identification("cvpr").rglob("*.h5"))


# ranges and numbers


@pytest.mark.parametrize("main, flags", [
    (img2feat_sd1_parallel.main, []), (img2feat_blip.main, []), (img2feat_dpt.main, []), (make_vgg19bdpy.main, []),
    (generate_occluded_images.main, []), (diffusion_decoding.main, SUBJECT), (dptemb2dpt.main, SUBJECT),
    (recon_icnn_image_vgg19_dgn_relu7gen_gd.main, SUBJECT), (run_pipeline.main, SUBJECT)])
def test_a_reversed_range_is_refused_before_anything_is_read(tmp_path, monkeypatch, main, flags):
    monkeypatch.setenv("NSD_ROOT", str(tmp_path / "nowhere"))
    for asked in (["5", "3"], ["4", "4"]):
        with pytest.raises(Problem, match=f"--imgidx {' '.join(asked)} is empty — the range is half-open"):
            main(["--workdir", str(tmp_path), *flags, "--imgidx", *asked])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags, said",
                         [(["--guidance", "nan"], "no scale"), (["--strength", "1.5"], r"not in \(0, 1\]"),
                          (["--size", "0"], "shares"), (["--guided_below", "1.5"], "shares"),
                          (["--n_samples", "0"], "at least 1"), (["--steps", "0"], "at least 1")])
def test_settings_that_would_draw_nonsense_are_refused(tmp_path, flags, said):
    with pytest.raises(Problem, match=said):
        diffusion_decoding.main(["--workdir", str(tmp_path), *SUBJECT, *flags])
    assert not list(tmp_path.iterdir())


# captions


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny subject's data with pictures, and mrifeat/ made."""
    folder = tmp_path_factory.mktemp("made")
    tiny_nsd.build(folder / "nsd")
    tiny_nsd.build_stimuli(folder / "nsd", 110)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSD_ROOT", str(folder / "nsd"))
        make_subjmri.main(["--workdir", str(folder / "work")])
    return folder


@pytest.fixture
def world(made, tmp_path, monkeypatch):
    """A copy of it, to spoil."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("NSD_ROOT", str(tmp_path / "nsd"))
    monkeypatch.setenv("NSD_MODELS", "tiny")
    return tmp_path / "nsd"


def test_captions_that_lack_an_image_are_found_out_before_its_latents_are_computed(world, tmp_path):
    tiny_nsd.put(world, tiny_nsd.INFO, b"nsdId,cocoId,cocoSplit\n0,70,val2017\n1,71,val2017\n")
    said = [{"image_id": 70, "caption": "a square"}]
    tiny_nsd.put(world, object_keys.captions_key("val2017"), json.dumps({"annotations": said}).encode())
    with pytest.raises(Problem, match="no captions for 73k id 1 "):
        img2feat_sd1_parallel.main(["--workdir", str(tmp_path / "work"), "--imgidx", "0", "2", "--gpu", "-1"])
    assert not written(tmp_path / "work")


def test_an_image_named_twice_in_the_table_is_refused(world):
    tiny_nsd.put(world, tiny_nsd.INFO, b"nsdId,cocoId,cocoSplit\n0,70,val2017\n0,71,val2017\n")
    with pytest.raises(Problem, match="line 3 of .* has nsdId 0 again"):
        coco_captions.captions(s3.Folder(world))


def test_a_design_that_cannot_tell_0_based_ids_is_said(world, capsys):
    whole = io.BytesIO()
    scipy.io.savemat(whole, {"sharedix": np.array([tiny_nsd.SHARED])})
    tiny_nsd.put(world, tiny_nsd.DESIGN, whole.getvalue())
    experiment.responses(s3.Folder(world), "subj01", experiment.design(s3.Folder(world)))
    assert "warning: the design has no subjectim" in capsys.readouterr().err


# features


def shard(path, ids=(4, 5), features=None, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["stim_ids"] = np.array(ids)
        file["features"] = np.ones((2, 3), np.float32) if features is None else features
        for name, values in more.items():
            file[name] = values


def test_features_of_another_dtype_or_number_are_refused(tmp_path):
    folder = tmp_path / "c"
    shard(folder / "000004-000006.h5")
    shard(folder / "000006-000008.h5", (6, 7), np.ones((2, 3)))
    with pytest.raises(Problem, match=r"000006-000008.h5 holds float64 features .* float32 \(3,\)"):
        feature_shards.Shards(folder).read([4, 6], "x")
    for spoilt, said in (({"features": np.ones((3, 3), np.float32)}, "not one row of features a stimulus"),
                         ({"ids": (4, 4)}, "not different ids"), ({"ids": (-1, 4)}, "not different ids"),
                         ({"ids": (0.5, 4)}, "stim_ids of float64"),
                         ({"features": np.array([b"a", b"b"])}, "features of")):
        shard(tmp_path / "bad" / "000004-000006.h5", **spoilt)
        with pytest.raises(Problem, match=said):
            feature_shards.Shards(tmp_path / "bad").read([4], "x")


def test_nan_in_a_feature_leaves_no_prediction(world, tmp_path):
    ws = layout.Workspace(tmp_path / "work", "subj01")
    for stimulus in range(110):
        found = np.random.default_rng(stimulus).random((2, 3)).astype(np.float32)
        found[0, 1] = np.nan if stimulus == 8 else found[0, 1]
        arrays.write_npy(layout.feature_file(layout.features(ws.workdir, "odd"), stimulus), found)
    subjstim.gather(ws, "odd", "each", "nsd")
    with pytest.raises(ValueError, match="feature 1 of stimulus row .* is not finite — extract the features again"):
        ridge.main(["--workdir", str(ws.workdir), *SUBJECT, "--gpu", "-1", "--target", "odd", "--roi", "early"])
    assert not ws.scores(["early"], "odd").exists()


def test_nan_in_a_decoded_feature_draws_no_picture():
    found = np.zeros((3, 4, 2, 2), np.float32)
    found[2, 1, 0, 0] = np.nan
    inputs = SimpleNamespace(captions=None, c=found, pictures=False, latents=found,
                             model=SimpleNamespace(start_latents=lambda latents, how: latents),
                             args=SimpleNamespace(start="picture"))
    for read in (reconstruction.Inputs.text, reconstruction.Inputs.start):
        read(inputs, [1])
        with pytest.raises(Problem, match="decoded features of test image 2 are not finite"):
            read(inputs, [0, 2])


@pytest.mark.parametrize("depth_map",
                         [np.full((1, 1, 64, 64), np.nan), np.full((1, 1, 64, 64), 3.0), np.zeros((64, 64))])
def test_a_depth_map_that_is_none_is_named(tmp_path, depth_map):
    ws = layout.Workspace(tmp_path, "subj01")
    arrays.write_npy(ws.depth(5), depth_map.astype(np.float32))
    inputs = SimpleNamespace(depths=True, ws=ws, own=("nsd", None), _made=lambda path: path)
    with pytest.raises(Problem, match="000005.npy is no depth map"):
        reconstruction.Inputs.depth(inputs, [5])


def test_stimuli_that_the_subject_saw_and_the_file_lacks_are_counted(world, tmp_path, capsys):
    tiny_nsd.build_stimuli(world, 101)
    asked = SimpleNamespace(dataset="nsd", workdir=tmp_path / "work", subject="subj01", imgidx=None, stimuli_path=None,
                            occluded_path=None, occluded_dir=None)
    extraction.open_stimuli(asked)
    assert "lacks 2 of the stimuli that subj01 saw (the first is 73k id 101)" in capsys.readouterr().err


# a single test image


def test_one_test_image_has_predictions_but_no_correlation(tmp_path, monkeypatch, capsys, recwarn):
    sessions = ([5, 101, 5, 9, 6, 7, 11, 9], [11, 101, 9, 13, 12, 5, 12, 101], [13, 12, 11, 15, 101, 15])
    monkeypatch.setenv("NSD_ROOT", str(tiny_nsd.build(tmp_path / "nsd", sessions, (101,))))
    make_subjmri.main(["--workdir", str(tmp_path)])
    ws = layout.Workspace(tmp_path, "subj01")
    for stimulus in range(110):
        arrays.write_npy(layout.feature_file(layout.features(tmp_path, "c"), stimulus),
                         np.random.default_rng(stimulus).random(4).astype(np.float32))
    subjstim.gather(ws, "c", "each", "nsd")
    capsys.readouterr()
    ridge.main(["--workdir", str(tmp_path), *SUBJECT, "--gpu", "-1", "--target", "c", "--roi", "early"])
    assert "profile r = not defined" in capsys.readouterr().out and not recwarn.list
    assert np.isfinite(np.load(ws.scores(["early"], "c"))).all()
    assert text_files.read_json(layout.sidecar(ws.scores(["early"], "c")))["test_correlation"] is None


def test_one_caption_is_not_told_from_others(recwarn):
    found = caption_scores.score(["a red disc"], [["a red square"]], None)
    assert found["identification"] is None and found["overlap"] == pytest.approx(2 / 3)
    assert "cannot be told from others" in caption_scores.sentence(found) and not recwarn.list


# occluded viewing

SIDE = 8
SHOWN = [(100, "left"), (100, "right"), (101, "left"), (101, "right"), (102, "left"), (102, "right")]  # 0-based
EVENTS = [("whole", 100, "none")] + [("occluded", *pair) for pair in SHOWN for _ in range(2)]


def events(rows=EVENTS):
    lines = ["\t".join(occluded_viewing.COLUMNS)] + [
        f"{4 * row}\t3\t{kind}\t{stimulus}\tbar\t{mask}\t0\t0" for row, (kind, stimulus, mask) in enumerate(rows)]
    return "\n".join(lines).encode() + b"\n"


def occluded_betas(count=len(EVENTS), **how):
    return tiny_nsd.nifti(tiny_nsd.betas(9, count), **how)


def shown(**other):
    half = np.arange(SIDE) < SIDE // 2
    datasets = {"imgBrick": np.zeros((6, SIDE, SIDE, 3), np.uint8), "stim_ids": np.array([pair[0] for pair in SHOWN]),
                "mask_ids": np.array([pair[1].encode() for pair in SHOWN]),
                "masks/left": np.tile(half, (SIDE, 1)), "masks/right": np.tile(~half, (SIDE, 1))} | other
    return hdf5(datasets)


def objects(attributes=("disc", "square"), **other):
    side = occluded_pictures.SMALL
    datasets = {"labels": np.full((110, side, side), -1, np.int8), "stim_ids": np.arange(110),
                "area": np.full((110, 2), 0.1), "kinds": np.ones((110, 2, 2), np.uint8)} | other
    return hdf5(datasets, categories=list(attributes))


def hdf5(datasets, **attributes):
    whole = io.BytesIO()
    with h5py.File(whole, "w") as file:
        for name, values in datasets.items():
            if values is not None:
                file[name] = values
        for name, value in attributes.items():
            file.attrs[name] = value
    return whole.getvalue()


EVENTS_KEY, BETAS_KEY = occluded_viewing.events_key("subj01"), occluded_viewing.betas_key("subj01")
SHOWN_KEY, OBJECTS_KEY = occluded_viewing.SHOWN_KEY, occluded_viewing.OBJECTS_KEY
VIEWING = {
    "no events": (EVENTS_KEY, None, "events.tsv does not exist"),
    "events of another kind": (EVENTS_KEY, b"\xff\xfe\0", "events.tsv is not a table"),
    "no trial": (EVENTS_KEY, events([]), "has no trial"),
    "no mask_id": (EVENTS_KEY, events().replace(b"mask_id", b"mask"), "has no column mask_id"),
    "a row cut short": (EVENTS_KEY, events()[:-14], "line 14 of .* without a mask_id"),
    "an unknown trial_type": (EVENTS_KEY, events().replace(b"whole", b"blank"), "line 2 of .* trial_type 'blank'"),
    "a stim_id that is none": (EVENTS_KEY, events([("occluded", "cat", "left")]), "stim_id in line 2 of .* 'cat'"),
    "a stim_id out of range": (EVENTS_KEY, events([("occluded", 73000, "left")]), "line 2 of .* stim_id 73000"),
    "a negative stim_id": (EVENTS_KEY, events([("occluded", -1, "left")]), "line 2 of .* stim_id -1"),
    "1-based stim_ids": (EVENTS_KEY, events([(kind, stimulus + 1, mask) for kind, stimulus, mask in EVENTS]),
                         "no test stimuli"),
    "occluded without a mask": (EVENTS_KEY, events([("occluded", 100, "n/a")]), "line 2 of .* without a mask_id"),
    "all whole": (EVENTS_KEY, events([("whole", 100, "none")]), "no occluded trial"),
    "no betas": (BETAS_KEY, None, "betas.nii.gz does not exist"),
    "a volume too many": (BETAS_KEY, occluded_betas(len(EVENTS) + 1), "14 volumes, its events 13 trials"),
    "betas of another space": (BETAS_KEY, occluded_betas(affine=np.diag([3.0, 3, 3, 1])), "in another space"),
    "float betas": (BETAS_KEY, occluded_betas(dtype=np.float32), "float32, not int16"),
    "betas cut short": (BETAS_KEY, occluded_betas()[:1500], "truncated or corrupt"),
    "no shown.hdf5": (SHOWN_KEY, None, "shown.hdf5 does not exist"),
    "shown.hdf5 cut short": (SHOWN_KEY, shown()[:2000], "not a whole HDF5 file"),
    "no imgBrick": (SHOWN_KEY, shown(imgBrick=None), "no dataset imgBrick"),
    "pictures of floats": (SHOWN_KEY, shown(imgBrick=np.zeros((6, SIDE, SIDE, 3))), "imgBrick of float64"),
    "grey pictures": (SHOWN_KEY, shown(imgBrick=np.zeros((6, SIDE, SIDE), np.uint8)), "imgBrick of uint8"),
    "a picture too few": (SHOWN_KEY, shown(imgBrick=np.zeros((5, SIDE, SIDE, 3), np.uint8)),
                          "not one stim_id and mask_id"),
    "a picture twice": (SHOWN_KEY, shown(mask_ids=np.array([b"left"] * 6)), "not one stim_id and mask_id"),
    "a view that is not there": (SHOWN_KEY, shown(stim_ids=np.array([100, 100, 101, 101, 200, 200])),
                                 "lacks 2 pictures .* stimulus 102 behind left"),
    "no such mask": (SHOWN_KEY, shown(**{"masks/left": None}), "no dataset masks/left"),
    "a mask of another size": (SHOWN_KEY, shown(**{"masks/left": np.ones((4, 4), bool)}), "masks/left .* not a mask"),
    "a mask of shares": (SHOWN_KEY, shown(**{"masks/left": np.full((SIDE, SIDE), 0.5)}), "masks/left of float64"),
    "a mask that hides nothing": (SHOWN_KEY, shown(**{"masks/left": np.zeros((SIDE, SIDE), bool)}),
                                  "True where it hides"),
    "no annotated labels": (OBJECTS_KEY, objects(labels=None), "no dataset labels"),
    "labels of another size": (OBJECTS_KEY, objects(labels=np.full((110, 9, 9), -1, np.int8)), r"labels \(110, 9, 9\)"),
    "a label of no object": (OBJECTS_KEY, objects(labels=np.full((110, 100, 100), 2, np.int8)), "label of no object"),
    "an area below zero": (OBJECTS_KEY, objects(area=np.full((110, 2), -0.1)), "area out of"),
    "a kind too few": (OBJECTS_KEY, objects(("disc",)), "1 categories"),
    "stimuli without annotation": (OBJECTS_KEY, objects(stim_ids=np.arange(500, 610)), "have no annotation"),
}


@pytest.mark.parametrize("case", VIEWING)
def test_bad_occluded_viewing_is_one_problem_and_nothing_is_written(world, tmp_path, case):
    for key, content in ((EVENTS_KEY, events()), (BETAS_KEY, occluded_betas()), (SHOWN_KEY, shown()),
                         (OBJECTS_KEY, objects())):
        tiny_nsd.put(world, key, content)
    key, content, said = VIEWING[case]
    if content is None:
        (world / key).unlink()
    else:
        tiny_nsd.put(world, key, content)
    with pytest.raises(Problem, match=said):
        amodal_completion.main(["--workdir", str(tmp_path / "work"), *SUBJECT, "--gpu", "-1"])
    assert not written(tmp_path / "work")


def test_the_truth_of_a_simulation_that_is_damaged_is_one_problem(world):
    tiny_nsd.put(world, occluded_viewing.TRUTH_KEY, b'{"completion": 3}')
    with pytest.raises(Problem, match="not what mini_nsd wrote"):
        occluded_viewing.truth(s3.Folder(world))
