"""img2feat_decoded.py: one file per run and feature, resumed, beside the original's files, and what reads both."""
import json

import h5py
import numpy as np
import pytest

import identification
import img2feat_decoded
from utils import layout
from utils.errors import Problem
from utils.evaluate import network_features
from utils.report import figures
from utils.storage import image_features, locks, picture_files, text_files

SUBJECT = "subj01"
IMAGES, SAMPLES = (0, 1, 2, 3), 2
COUNT = len(IMAGES) * (1 + SAMPLES)
FEATURES = ("alexnet5", "alexnet18")


@pytest.fixture
def ws(tmp_path, monkeypatch):
    """A working folder with 4 images × 2 samples of the run `cvpr`."""
    monkeypatch.setenv("NSD_MODELS", "tiny")
    ws = layout.Workspace(tmp_path, SUBJECT)
    draw(ws, IMAGES)
    text_files.write_json(layout.manifest(ws.samples("cvpr")), {"made_by": "a test"})
    return ws


def draw(ws, chosen):
    for image in chosen:
        for what in ("org", *range(SAMPLES)):
            rng = np.random.default_rng((image, 9 if what == "org" else what))
            picture = rng.integers(0, 256, (512, 512, 3), np.uint8)
            picture_files.save(ws.samples("cvpr") / f"{layout.image_stem(image, what)}.png", picture)


def extract(ws, *flags, features=FEATURES):
    img2feat_decoded.main(["--workdir", str(ws.workdir), "--subject", SUBJECT, "--gpu", "-1", "--batch_size", "5",
                           *(["--usefeat", *features] if features else []), *flags])


def files(ws):
    return sorted(path.name for path in layout.plain_files(ws.identification("cvpr")))


def contents(ws):
    return {path: path.read_bytes() for path in layout.plain_files(ws.identification("cvpr"))}


def test_a_feature_is_one_file_and_the_hidden_states_are_made_only_when_asked(ws, capsys):
    extract(ws, features=None)
    assert files(ws) == sorted(f"{name}.h5" for name in layout.USUAL_FEATURES)
    assert f"{COUNT} pictures × 5 features computed" in capsys.readouterr().out
    extract(ws, features=["clip_h6"])
    assert files(ws) == sorted(f"{name}.h5" for name in (*layout.USUAL_FEATURES, "clip_h6"))
    networks = text_files.read_json(layout.manifest(ws.identification("cvpr") / "networks"))
    with h5py.File(layout.image_features(ws.identification("cvpr"), "clip_h6")) as file:
        assert list(file["originals/images"]) == list(IMAGES)
        assert list(file["samples/images"]) == [image for image in IMAGES for _ in range(SAMPLES)]
        assert list(file["samples/repeats"]) == [0, 1] * len(IMAGES)
        assert len(file["originals/features"]) == len(IMAGES) and file["samples/features"].dtype == np.float32
        assert file.attrs["model"] == networks["clip"]["model"] and set(networks) == {"inception", "alexnet", "clip"}


def test_the_original_s_files_are_written_on_request_and_read_in_place_of_the_one_file(ws, capsys):
    extract(ws, "--npy")
    folder = ws.identification("cvpr")
    assert len(files(ws)) == len(FEATURES) * (1 + COUNT) and "00003_001_alexnet5.npy" in files(ws)

    def scores():
        identification.main(["--workdir", str(ws.workdir), "--subject", SUBJECT, "--usefeat", *FEATURES])
        return ws.per_image_scores("cvpr", "alexnet5").read_text(), capsys.readouterr().out.splitlines()[-2:]

    both = scores()
    for feature in FEATURES:
        layout.image_features(folder, feature).rename(ws.workdir / f"{feature}.h5")
    assert scores() == both
    extract(ws)  # takes over what an earlier version left, and computes nothing
    assert "0 pictures × 2 features computed" in capsys.readouterr().out
    for feature in FEATURES:
        assert layout.image_features(folder, feature).read_bytes() == (ws.workdir / f"{feature}.h5").read_bytes()
        for path in folder.glob(f"*_{feature}.npy"):
            path.unlink()
    assert scores() == both


def test_a_run_that_died_loses_at_most_a_batch_and_ends_with_the_same_bytes(ws, monkeypatch, capsys):
    extract(ws)
    expected = contents(ws)
    for path in expected:
        path.unlink()
    computed, load = [], network_features._load

    def dies(paths):
        computed.append(len(paths))
        if len(computed) == 3:
            raise KeyboardInterrupt
        return load(paths)

    with monkeypatch.context() as patch:
        patch.setattr(network_features, "_load", dies)
        with pytest.raises(KeyboardInterrupt):
            extract(ws)
    assert files(ws) == []
    with pytest.raises(Problem, match="holds no alexnet5 features"):
        identification.main(["--workdir", str(ws.workdir), "--subject", SUBJECT, "--usefeat", "alexnet5"])
    capsys.readouterr()
    extract(ws)
    assert "2 pictures × 2 features computed, 10 already there" in capsys.readouterr().out
    assert contents(ws) == expected
    assert not layout.image_features_parts(ws.identification("cvpr")).exists()


def test_pictures_that_came_later_join_the_file(ws, capsys):
    extract(ws)
    before = image_features.ImageFeatures(ws.identification("cvpr"), "alexnet5")
    draw(ws, [7])
    extract(ws)
    assert f"3 pictures × 2 features computed, {COUNT} already there" in capsys.readouterr().out
    after = image_features.ImageFeatures(ws.identification("cvpr"), "alexnet5")
    assert after.pictures - before.pictures == {(7, "org"), (7, 0), (7, 1)}
    assert all(np.array_equal(after[picture], before[picture]) for picture in before.pictures)


def test_another_network_is_refused_and_with_overwrite_none_of_its_features_stay(ws):
    extract(ws, features=["alexnet5", "alexnet18", "inception"])
    path = layout.manifest(ws.identification("cvpr") / "networks")
    networks = text_files.read_json(path)
    text_files.write_json(path, networks | {"alexnet": {"model": "another", "revision": "x"}})
    with pytest.raises(Problem, match="was made with alexnet"):
        extract(ws, features=["alexnet5"])
    extract(ws, "--overwrite", features=["alexnet5"])
    assert files(ws) == ["alexnet5.h5", "inception.h5"] and text_files.read_json(path) == networks


def test_what_another_network_left_unfinished_is_not_joined(ws, monkeypatch):
    """A run of a range that died, then another network: the other features of its finished batches stay."""
    folder = ws.identification("cvpr")
    extract(ws, "--overwrite", features=["alexnet5", "inception"])
    parts = image_features.Parts(folder)
    parts.write({name: {(9, "org"): np.ones(3, np.float32)} for name in ("alexnet5", "clip")})
    path = layout.manifest(folder / "networks")
    networks = text_files.read_json(path)
    text_files.write_json(path, networks | {"alexnet": {"model": "another", "revision": "x"}})
    monkeypatch.setattr(network_features, "_compute", lambda *_: 0)
    monkeypatch.setattr(locks, "is_held", lambda *_: True)
    monkeypatch.setattr(network_features.trials, "test_stimuli", lambda _: IMAGES)
    extract(ws, "--overwrite", "--imgidx", "0", "2", features=["alexnet5"])
    assert not parts.pictures("alexnet5") and parts.pictures("clip") == {(9, "org")}
    assert files(ws) == ["inception.h5"]


def test_a_damaged_file_of_features_is_one_line(ws):
    extract(ws, features=["alexnet5"])
    path = layout.image_features(ws.identification("cvpr"), "alexnet5")
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(Problem, match="alexnet5.h5 is not a whole HDF5 file"):
        identification.main(["--workdir", str(ws.workdir), "--subject", SUBJECT, "--usefeat", "alexnet5"])
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        file["samples/repeats"][1] = 0
    with pytest.raises(Problem, match="not different pictures"):
        identification.main(["--workdir", str(ws.workdir), "--subject", SUBJECT, "--usefeat", "alexnet5"])


def test_scores_lie_in_their_folder_and_older_ones_are_read_where_they_lay(tmp_path):
    ws = layout.Workspace(tmp_path, SUBJECT)
    new, old = ws.per_image_scores("cvpr", "clip"), tmp_path / "per_image_scores_subj01_cvpr_clip.csv"
    assert new == tmp_path / "scores" / old.name
    old.write_text("imgidx,mean_corr,accuracy\n0,0.1,0.25\n")
    layout.sidecar(old).write_text(json.dumps({"accuracy": 0.25}))
    assert figures.read_scores(ws, "cvpr", "clip") == {0: 0.25}
    assert ws.found_per_image_scores() == [layout.sidecar(old)]
    text_files.write_text(new, "imgidx,mean_corr,accuracy\n0,0.1,0.75\n")
    text_files.write_json(layout.sidecar(new), {"accuracy": 0.75})
    assert figures.read_scores(ws, "cvpr", "clip") == {0: 0.75}
    assert ws.found_per_image_scores() == [layout.sidecar(new)]


def test_the_pipeline_extracts_what_it_identifies_by(tmp_path, command_line):
    def features_of(*flags):
        done = command_line("run_pipeline.py", "--workdir", tmp_path, "--subject", SUBJECT, "--controls", "--datasets",
                            "nsd", "occluded", "--dry_run", *flags)
        asked = [line.split(" --usefeat ")[1].split(" --")[0] for line in done.stdout.splitlines()
                 if " --usefeat " in line]
        assert len(asked) == 8  # img2feat_decoded.py and identification.py of two data sets, the check and the control
        return set(asked)

    assert features_of() == {" ".join(layout.USUAL_FEATURES)}
    assert features_of("--usefeat", "clip", "clip_h6") == {"clip clip_h6"}
