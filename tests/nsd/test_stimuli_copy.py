"""img2feat_sd.py --subject: only the images that a subject saw, resumable, and taken by the stages that follow."""
import argparse
import types

import h5py
import numpy as np
import pytest

import generate_occluded_images
import img2feat_sd
import make_subjmri
from tests import tiny_nsd
from utils import layout
from utils.errors import Problem
from utils.features import extraction
from utils.nsd import ranges, retrying, s3, stimuli_copy, stimulus_file
from utils.pipeline import status
from utils.storage import text_files

SEEN = sorted({stimulus - 1 for ids in tiny_nsd.SESSIONS for stimulus in ids})
TEST = [stimulus for stimulus in SEEN if stimulus + 1 in tiny_nsd.SHARED]
COUNT = 130


@pytest.fixture
def server(tmp_path, monkeypatch):
    folder = tiny_nsd.build(tmp_path / "nsd")
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("NSD_ROOT", raising=False)
    with tiny_nsd.FaultyS3(folder) as running:
        running.images = tiny_nsd.build_stimuli(folder, COUNT, side=24)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.url)
        yield running


def fetch(workdir, *flags):
    img2feat_sd.main(["--workdir", str(workdir), *flags])
    return layout.stimuli(workdir)


def holds(path, images, ids):
    with stimulus_file.Stimuli(path) as stimuli, h5py.File(path) as file:
        assert stimuli.ids.tolist() == list(ids) == file["stim_ids"][()].tolist() and not stimuli.whole
        assert file["imgBrick"].dtype == np.uint8
        return np.array_equal(stimuli.read(ids), images[ids])


@pytest.mark.parametrize("images, ids", [("seen", SEEN), ("test", TEST)])
def test_only_the_images_that_the_subject_saw_are_fetched(server, tmp_path, monkeypatch, images, ids, capsys):
    monkeypatch.setattr(ranges, "GAPS", (0,))
    path = fetch(tmp_path, "--subject", "subj01", "--images", images)
    assert holds(path, server.images, ids)
    assert f"{len(ids)} images, 24×24 px RGB, uint8" in capsys.readouterr().out
    asked = [headers["Range"].removeprefix("bytes=").split("-") for headers in server.gets("nsd_stimuli")]
    received = sum(int(last) - int(first) + 1 for first, last in asked)
    assert received <= len(ids) * 24 * 24 * 3 + 20_000 < server.images.nbytes
    assert sorted(file.name for file in tmp_path.glob("nsd_stimuli*")) == ["nsd_stimuli.hdf5", "nsd_stimuli.json"]


def test_nothing_is_fetched_twice_and_others_are_added(server, tmp_path):
    path = fetch(tmp_path, "--subject", "subj01", "--images", "test")
    server.log = []
    fetch(tmp_path, "--subject", "subj01", "--images", "test")
    assert not server.gets("nsd_stimuli")
    fetch(tmp_path, "--subject", "subj01")
    assert holds(path, server.images, SEEN)
    stimuli_copy.fetch(s3.Root.from_env(), path, np.array([0, 129]))
    assert holds(path, server.images, sorted({0, 129, *SEEN}))


def test_the_whole_file_takes_the_place_of_a_choice_and_serves_every_subject(server, tmp_path):
    path = fetch(tmp_path, "--subject", "subj01")
    fetch(tmp_path)
    with stimulus_file.Stimuli(path) as stimuli:
        assert stimuli.whole and stimuli.count == COUNT
    server.log = []
    fetch(tmp_path, "--subject", "subj01")
    assert not server.gets("nsd_stimuli")


def test_a_killed_run_goes_on_after_the_last_batch(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stimuli_copy, "BATCH", 2)
    monkeypatch.setattr(ranges, "GAPS", (0,))
    read, left = stimuli_copy._read, [3]

    def dies(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(stimuli_copy, "_read", dies)
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, "--subject", "subj01")
    path = layout.stimuli(tmp_path)
    assert not path.exists() and layout.fetched(path).exists()
    monkeypatch.setattr(stimuli_copy, "_read", read)
    server.log = []
    fetch(tmp_path, "--subject", "subj01")
    assert "going on after 6 of" in capsys.readouterr().err and holds(path, server.images, SEEN)
    assert not layout.fetched(path).exists()
    asked = sum(headers["Range"] not in ("bytes=0-16383",) for headers in server.gets("nsd_stimuli"))
    assert asked <= len(SEEN) - 6


def test_a_part_of_another_version_is_thrown_away_and_a_copy_of_it_refused(server, tmp_path, monkeypatch):
    path = fetch(tmp_path, "--subject", "subj01", "--images", "test")
    server.images = tiny_nsd.build_stimuli(server.folder, COUNT + 1, side=24)
    with pytest.raises(Problem, match="was not fetched from .* as it is now — pass --overwrite"):
        fetch(tmp_path, "--subject", "subj01")
    fetch(tmp_path, "--subject", "subj01", "--overwrite")
    assert holds(path, server.images, SEEN)


def test_images_that_change_while_they_are_fetched_are_refused(server, tmp_path, monkeypatch):
    monkeypatch.setattr(stimuli_copy, "BATCH", 2)
    read = stimuli_copy._read

    def changes(*args):
        found = read(*args)
        content = (server.folder / tiny_nsd.STIMULI).read_bytes()
        (server.folder / tiny_nsd.STIMULI).unlink()
        tiny_nsd.put(server.folder, tiny_nsd.STIMULI, content + b"x")
        return found

    monkeypatch.setattr(stimuli_copy, "_read", changes)
    with pytest.raises(retrying.Changed):
        fetch(tmp_path, "--subject", "subj01")
    assert not layout.stimuli(tmp_path).exists()


@pytest.mark.parametrize("how", [{"chunks": (1, 24, 24, 3)}, {"chunks": (4, 12, 24, 1), "compression": "gzip"}],
                         ids=["a chunk an image", "compressed"])
def test_the_layout_of_nsds_file_makes_no_difference(server, tmp_path, how):
    with h5py.File(server.folder / tiny_nsd.STIMULI, "w") as file:
        file.create_dataset("imgBrick", data=server.images, **how)
    assert holds(fetch(tmp_path, "--subject", "subj01"), server.images, SEEN)


def test_images_that_were_never_written_are_refused(server, tmp_path):
    with h5py.File(server.folder / tiny_nsd.STIMULI, "w") as file:
        file.create_dataset("imgBrick", server.images.shape, np.uint8, chunks=(1, 24, 24, 3))[:10] = 1
    with pytest.raises(Problem, match="nsd_stimuli.hdf5 cannot be read"):
        fetch(tmp_path, "--subject", "subj01")
    assert not layout.stimuli(tmp_path).exists()


def test_too_few_images_are_said(server, tmp_path):
    tiny_nsd.build_stimuli(server.folder, 50, side=24)
    with pytest.raises(Problem, match=f"has 50 images, none of 73k id {SEEN[-1]}"):
        fetch(tmp_path, "--subject", "subj01")


def test_a_large_file_is_read_over_several_connections_in_order(server, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "LARGE", 1000)
    monkeypatch.setattr(ranges, "PIECE", 10_000)
    server.faults = [("nsd_stimuli", ("cut", 100)), ("nsd_stimuli", "SlowDown")]
    path = fetch(tmp_path)
    assert path.read_bytes() == (server.folder / tiny_nsd.STIMULI).read_bytes()
    assert len(server.gets("nsd_stimuli")) > 20


def test_a_large_fetch_that_broke_goes_on_where_it_stopped(server, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "LARGE", 1000)
    monkeypatch.setattr(ranges, "PIECE", 10_000)
    monkeypatch.setattr(ranges, "AHEAD", 2)
    pieces, taken = ranges.in_order, 4

    def breaks(*args):
        for number, piece in enumerate(pieces(*args)):
            if number == taken:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(ranges, "in_order", breaks)
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path)
    assert layout.fetched(layout.stimuli(tmp_path)).stat().st_size == taken * 10_000
    monkeypatch.setattr(ranges, "in_order", pieces)
    server.log = []
    path = fetch(tmp_path)
    assert path.read_bytes() == (server.folder / tiny_nsd.STIMULI).read_bytes()
    assert min(int(headers["Range"].removeprefix("bytes=").split("-")[0])
               for headers in server.gets("nsd_stimuli")) == taken * 10_000


# the stages that follow


def arguments(workdir, **more):
    return argparse.Namespace(**{"workdir": workdir, "subject": None, "imgidx": None, "dataset": "nsd",
                                 "stimuli_path": None, "occluded_path": None, "occluded_dir": None} | more)


def test_stages_take_what_is_there_and_say_what_is_not(server, tmp_path, capsys):
    make_subjmri.main(["--workdir", str(tmp_path), "--source", "nifti"])
    fetch(tmp_path, "--subject", "subj01")
    for args, expected in ((arguments(tmp_path), SEEN), (arguments(tmp_path, subject="subj01"), SEEN),
                           (arguments(tmp_path, imgidx=[0, 9]), [each for each in SEEN if each < 9])):
        capsys.readouterr()
        stimuli, _ = extraction.open_stimuli(args)
        assert extraction.wanted(args, stimuli).tolist() == expected
        said = capsys.readouterr().err
        assert (f"has {len(expected)} of the 9 stimuli asked for" in said) == (args.imgidx is not None)
        stimuli.close()
    with stimulus_file.Stimuli(layout.stimuli(tmp_path)) as stimuli:
        with pytest.raises(Problem, match="no image of 73k id 0 — it holds .* img2feat_sd.py --subject"):
            stimuli.read([0])
    with pytest.raises(Problem, match="none of the stimuli asked for is there"):
        extraction.wanted(arguments(tmp_path, imgidx=[0, 1]), stimuli)


def test_test_images_alone_are_warned_of_where_all_are_wanted(server, tmp_path, capsys):
    make_subjmri.main(["--workdir", str(tmp_path), "--source", "nifti"])
    fetch(tmp_path, "--subject", "subj01", "--images", "test")
    args = arguments(tmp_path, subject="subj01")
    stimuli, _ = extraction.open_stimuli(args)
    stimuli.close()
    assert f"lacks {len(SEEN) - len(TEST)} of the stimuli that subj01 saw" in capsys.readouterr().err


def test_occluded_images_of_a_choice_are_those_of_the_whole_file_and_survive_its_growth(server, tmp_path, monkeypatch):
    for name in ("choice", "whole"):
        make_subjmri.main(["--workdir", str(tmp_path / name), "--source", "nifti"])
    fetch(tmp_path / "choice", "--subject", "subj01")
    fetch(tmp_path / "whole")
    found = []
    for name in ("choice", "whole"):
        generate_occluded_images.main(["--workdir", str(tmp_path / name), "--subject", "subj01"])
        with h5py.File(layout.occluded_stimuli(tmp_path / name)) as file:
            found.append({key: file[key][()] for key in ("imgBrick", "mask", "stim_ids")})
    assert all(np.array_equal(found[0][key], found[1][key]) for key in found[0])
    stimuli_copy.fetch(s3.Root.from_env(), layout.stimuli(tmp_path / "choice"), np.array([0]))
    made = layout.occluded_stimuli(tmp_path / "choice").stat().st_mtime_ns
    generate_occluded_images.main(["--workdir", str(tmp_path / "choice"), "--subject", "subj01"])
    assert layout.occluded_stimuli(tmp_path / "choice").stat().st_mtime_ns == made


def test_the_pipelines_status_knows_what_a_copy_lacks(server, tmp_path):
    make_subjmri.main(["--workdir", str(tmp_path), "--source", "nifti"])

    def judged(**args):
        return status._judge(status._stimuli(types.SimpleNamespace(workdir=tmp_path, images="seen", **args)), [],
                             tmp_path)

    assert judged(subject=["subj01"])[0] == status.MISSING
    fetch(tmp_path, "--subject", "subj01", "--images", "test")
    assert judged(subject=["subj01"]) == (status.PARTIAL, f"nsd_stimuli.hdf5 lacks {len(SEEN) - len(TEST)} images")
    fetch(tmp_path, "--subject", "subj01")
    assert judged(subject=["subj01"])[0] == status.DONE
    assert judged(subject=None)[0] == status.PARTIAL
    assert text_files.read_json(layout.sidecar(layout.stimuli(tmp_path)))["stimuli"] == len(SEEN)


def test_the_test_images_go_with_subjects(server, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        fetch(tmp_path, "--images", "test")
    assert stopped.value.code == 2
