"""mrifeat's artifacts against a direct reading of the NIfTI, TSV and MAT files; faults, restarts and bad input."""
import argparse
import gzip
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading

import nibabel
import numpy as np
import pytest
import scipy.io

import make_subjmri
from tests import tiny_nsd
from utils import layout
from utils.errors import Problem
from utils.nsd import beta_session, mrifeat, nifti_volumes, retrying, s3, trials
from utils.pipeline import status
from utils.storage import text_files

ROIS = dict(enumerate(layout.ROIS, start=1))


@pytest.fixture
def world(tmp_path, monkeypatch):
    folder = tiny_nsd.build(tmp_path / "nsd")
    monkeypatch.setenv("NSD_ROOT", str(folder))
    return folder


@pytest.fixture
def server(world, monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(retrying, "STALL", 0.3)
    with tiny_nsd.FaultyS3(world) as running:
        monkeypatch.delenv("NSD_ROOT")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.url)
        yield running


def make(workdir, *flags):
    make_subjmri.main(["--workdir", str(workdir), *flags])
    return layout.Workspace(workdir, "subj01")


def contents(folder):
    """{name: digest} of all files but the lock, leftovers included."""
    return {path.relative_to(folder).as_posix(): hashlib.md5(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"}


def direct(world, sessions=(1, 2, 3)):
    """73k ids (0-based), is_test and {roi: betas (trials, voxels)} read with nibabel and scipy alone."""
    lines = [line.split("\t") for line in (world / tiny_nsd.RESPONSES).read_text().splitlines()]
    rows = [dict(zip(lines[0], line)) for line in lines[1:]]
    ids = np.array([int(row["73KID"]) - 1 for row in rows if int(row["SESSION"]) in sessions])
    shared = scipy.io.loadmat(world / tiny_nsd.DESIGN)["sharedix"].ravel() - 1
    volumes = [np.asarray(nibabel.load(world / tiny_nsd.BETAS.format(session)).dataobj) for session in sessions]
    volumes = np.concatenate(volumes, axis=3).transpose(3, 2, 1, 0)
    atlas = np.asarray(nibabel.load(world / tiny_nsd.ATLAS).dataobj).transpose(2, 1, 0)
    return ids, np.isin(ids, shared), {roi: volumes[:, atlas == label] for label, roi in ROIS.items()}


def test_artifacts_are_those_of_a_direct_reading(world, tmp_path, capsys):
    ws = make(tmp_path)
    ids, is_test, betas = direct(world)
    stims = np.load(ws.stims)
    assert stims.dtype == np.int64 and np.array_equal(stims, ids)
    order = np.array(list(dict.fromkeys(ids.tolist())))
    assert np.load(ws.stims_ave).dtype == np.int64 and np.array_equal(np.load(ws.stims_ave), order)
    assert np.array_equal(np.load(ws.stims_ave_test), np.isin(order, ids[is_test]))
    train = np.load(ws.mrifeat / "subj01_stims_tridx.npy")  # as the original's make_subjstim.py writes it
    assert train.dtype == np.float64 and np.array_equal(train, np.where(is_test, 0, 1))
    train = np.load(ws.mrifeat / "subj01_stims_ave_tridx.npy")
    assert train.dtype == np.float64 and np.array_equal(train, np.where(np.isin(order, ids[is_test]), 0, 1))
    for roi, expected in betas.items():
        for split, chosen in (("tr", ~is_test), ("te", is_test)):
            found = np.load(ws.betas(roi, split))
            assert found.dtype == np.int16 and np.array_equal(found, expected[chosen])
            stimuli = list(dict.fromkeys(ids[chosen].tolist()))
            loop = np.stack([expected[ids == stimulus].astype(np.float64).mean(axis=0) for stimulus in stimuli])
            average = np.load(ws.betas(roi, split, average=True))
            assert average.dtype == np.float32 and np.array_equal(average, loop.astype(np.float32))
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "subj01: 22 trials of 9 stimuli in 3 sessions, 3 test stimuli"
    assert out[1] == f"early: {betas['early'].shape[1]} voxels" and len(out) == 8
    assert not list(ws.mrifeat.glob(".*parts"))


def test_s3_workers_and_a_local_folder_give_the_same_bytes(server, world, tmp_path, monkeypatch):
    one = make(tmp_path / "one")
    two = make(tmp_path / "two", "--workers", "2")
    monkeypatch.setenv("NSD_ROOT", str(world))
    local = make(tmp_path / "local")
    assert contents(one.mrifeat) == contents(two.mrifeat) == contents(local.mrifeat)


def test_workers_finish_artifacts_beside_each_other(world, tmp_path, monkeypatch):
    both = threading.Barrier(2, timeout=30)  # that breaks where one is finished after the other
    finish = mrifeat._finish
    monkeypatch.setattr(mrifeat, "_finish", lambda *given: (both.wait(), finish(*given)))
    ws = make(tmp_path, "--workers", "2")
    assert len(list(ws.mrifeat.glob("*betas_*.npy"))) == 4 * len(ROIS)


def test_big_endian_volumes_give_the_same_integers(world, tmp_path):
    before = make(tmp_path / "little")
    for session, ids in enumerate(tiny_nsd.SESSIONS, start=1):
        image = nibabel.Nifti1Image(tiny_nsd.betas(session, len(ids)), tiny_nsd.AFFINE,
                                    nibabel.Nifti1Header(endianness=">"), dtype=np.int16)
        assert image.to_bytes()[:4] == b"\0\0\x01\x5c"
        tiny_nsd.put(world, tiny_nsd.BETAS.format(session), gzip.compress(image.to_bytes()))
    after = make(tmp_path / "big")
    assert np.array_equal(np.load(before.betas("early", "tr")), np.load(after.betas("early", "tr")))


def test_sessions_limits_to_the_first(world, tmp_path):
    ws = make(tmp_path, "--sessions", "2")
    ids, is_test, betas = direct(world, (1, 2))
    assert np.array_equal(np.load(ws.stims), ids)
    assert np.array_equal(np.load(ws.betas("ventral", "te")), betas["ventral"][is_test])


def test_an_absent_session_is_said_and_its_trials_are_in_no_array(world, tmp_path, capsys):
    (world / tiny_nsd.BETAS.format(2)).unlink()
    ws = make(tmp_path)
    ids, is_test, betas = direct(world, (1, 3))
    assert np.array_equal(np.load(ws.stims), ids)
    assert np.array_equal(np.load(ws.betas("ventral", "tr")), betas["ventral"][~is_test])
    assert "no betas of session 2" in capsys.readouterr().err


def test_a_roi_without_voxels_is_warned_of_skipped_and_recorded(world, tmp_path, capsys):
    values = tiny_nsd.labels()
    values[values == 2] = 0
    tiny_nsd.put(world, tiny_nsd.ATLAS, tiny_nsd.nifti(values))
    ws = make(tmp_path)
    assert "has no voxels of midventral: skipped" in capsys.readouterr().err
    assert not ws.betas("midventral", "tr").exists()
    assert text_files.read_json(layout.sidecar(ws.betas("early", "te")))["left_out"]["rois"] == ["midventral"]
    step = status._mri(argparse.Namespace(workdir=tmp_path, subject="subj01", roi=None, atlas="streams", zscore=None,
                                          ncsnr_min=None))
    assert status._judge(step, [], tmp_path)[0] == status.DONE
    with pytest.raises(Problem, match="has no voxels of midventral"):
        make(tmp_path, "--roi", "midventral")


def test_voxels_without_a_noise_ceiling_are_left_out_and_said(world, tmp_path, capsys):
    ratio = np.ones(tiny_nsd.SHAPE)
    ratio[tuple(np.argwhere(tiny_nsd.labels() == 1)[0])] = np.nan
    tiny_nsd.put(world, tiny_nsd.NCSNR, tiny_nsd.nifti(ratio))
    count = int((tiny_nsd.labels() == 1).sum())
    ws = make(tmp_path, "--ncsnr_min", "0")
    assert f"1 of {count} voxels of early have no ncsnr (NaN) and are left out" in capsys.readouterr().err
    assert np.load(ws.betas("early-ncsnr0", "tr")).shape[1] == count - 1
    for average in (False, True):
        record = text_files.read_json(layout.sidecar(ws.betas("early-ncsnr0", "tr", average)))
        assert record["left_out"] == {"rois": [], "voxels_without_ncsnr": {"early-ncsnr0": 1}}


def test_zscore_uses_training_trials_of_the_session_only(world, tmp_path):
    ws = make(tmp_path, "--zscore", "session")
    ids, is_test, betas = direct(world)
    session = np.repeat([1, 2, 3], [len(ids) for ids in tiny_nsd.SESSIONS])
    expected = np.empty(betas["early"].shape)
    for number in (1, 2, 3):
        own = betas["early"][(session == number) & ~is_test].astype(np.float64)
        expected[session == number] = (betas["early"][session == number] - own.mean(0)) / own.std(0)
    found = np.load(ws.betas("early-zsession", "te"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[is_test], rtol=1e-5)
    np.testing.assert_allclose(np.load(ws.betas("early-zsession", "tr")), expected[~is_test], rtol=1e-5, atol=1e-6)
    assert not ws.betas("early", "tr").exists()
    assert text_files.read_json(layout.sidecar(ws.betas("early-zsession", "te")))["options"]["zscore"] == "session"


def test_zscore_makes_a_constant_voxel_zero():
    betas = np.array([[7, 1], [7, 2], [9, 3]], np.int16)
    found = beta_session.zscored(betas, np.array([True, True, False]), "session 1")
    assert np.array_equal(found, np.array([[0, -1], [0, 1], [0, 3]], np.float32))
    with pytest.raises(Problem, match="session 1 has 1 training trials"):
        beta_session.zscored(betas, np.array([True, False, False]), "session 1")


def test_ncsnr_min_keeps_the_voxels_at_or_above_it(world, tmp_path):
    ws = make(tmp_path, "--ncsnr_min", "0.5")
    atlas = np.asarray(nibabel.load(world / tiny_nsd.ATLAS).dataobj).transpose(2, 1, 0)
    ratio = np.asarray(nibabel.load(world / tiny_nsd.NCSNR).dataobj).transpose(2, 1, 0)
    _, is_test, betas = direct(world)
    kept = (ratio >= 0.5)[atlas == 1]
    assert 0 < kept.sum() < kept.size
    assert np.array_equal(np.load(ws.betas("early-ncsnr0.5", "tr")), betas["early"][~is_test][:, kept])


def test_another_atlas_is_kept_apart_and_needs_no_table_for_zeros_and_ones(world, tmp_path):
    mask = np.where(tiny_nsd.labels() > 0, 1, tiny_nsd.labels())
    tiny_nsd.put(world, tiny_nsd.ATLAS.replace("streams", "nsdgeneral"), tiny_nsd.nifti(mask.astype(np.float32)))
    make(tmp_path)
    ws = make(tmp_path, "--atlas", "nsdgeneral")
    assert np.load(ws.betas("nsdgeneral.nsdgeneral", "tr")).shape[1] == (mask == 1).sum()
    assert ws.betas("early", "tr").exists()


def test_roi_limits_what_is_written_and_the_rest_can_follow(world, tmp_path):
    ws = make(tmp_path / "some", "--roi", "early", "lateral")
    assert not ws.betas("ventral", "tr").exists()
    make(tmp_path / "some")
    assert contents(ws.mrifeat) == contents(make(tmp_path / "all").mrifeat)
    with pytest.raises(Problem, match="no ROI hippocampus"):
        make(tmp_path / "other", "--roi", "hippocampus")


def test_finished_work_is_not_read_again(server, tmp_path, capsys):
    make(tmp_path)
    server.log.clear()
    make(tmp_path)
    assert not server.gets("betas_session")
    assert "22 trials" in capsys.readouterr().out


def test_a_changed_input_is_refused_then_redone_when_asked(world, tmp_path):
    ws = make(tmp_path)
    tiny_nsd.put(world, tiny_nsd.BETAS.format(2), tiny_nsd.nifti(tiny_nsd.betas(9, 8)))
    with pytest.raises(Problem, match="betas_session02.*--overwrite"):
        make(tmp_path)
    make(tmp_path, "--overwrite")
    assert contents(ws.mrifeat) == contents(make(tmp_path / "new").mrifeat)


FAULTS = ["500", "503", "SlowDown", ("reset", 900), ("cut", 1500), ("stall", 700), ("length", -20), ("length", 20)]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_transient_fault_changes_no_byte(server, world, tmp_path, fault, monkeypatch, capsys):
    server.faults = [(key, fault) for key in ("betas_session01", "betas_session02", "streams.nii", "responses")]
    faulty = make(tmp_path / "faulty")
    assert "retrying" in capsys.readouterr().err and not server.faults
    monkeypatch.setenv("NSD_ROOT", str(world))
    assert contents(faulty.mrifeat) == contents(make(tmp_path / "clean").mrifeat)


@pytest.mark.parametrize("fault",
                         ["denied", "missing", "503", ("cut", 10), ("length", -20), ("corrupt", 1200), ("corrupt", -3)],
                         ids=str)
def test_what_cannot_pass_names_the_key_and_a_rerun_completes(server, world, tmp_path, fault, monkeypatch):
    server.faults = [("betas_session03", "503"), ("betas_session03", fault, "always")]
    with pytest.raises(Problem, match="betas_session03"):
        make(tmp_path / "faulty")
    ws = layout.Workspace(tmp_path / "faulty", "subj01")
    assert not list(ws.mrifeat.glob("subj01_*"))
    server.faults = []
    make(tmp_path / "faulty")
    monkeypatch.setenv("NSD_ROOT", str(world))
    assert contents(ws.mrifeat) == contents(make(tmp_path / "clean").mrifeat)


def test_betas_that_change_between_two_ranges_are_refused_and_a_rerun_completes(server, world, tmp_path, monkeypatch):
    ours = (world / tiny_nsd.BETAS.format(3)).read_bytes()
    server.faults = [("betas_session03", ("change", 900))]
    with pytest.raises(Problem, match="betas_session03.nii.gz changed while it was read"):
        make(tmp_path / "faulty")
    ws = layout.Workspace(tmp_path / "faulty", "subj01")
    assert not list(ws.mrifeat.glob("subj01_*"))
    tiny_nsd.put(world, tiny_nsd.BETAS.format(3), ours)
    make(tmp_path / "faulty")
    monkeypatch.setenv("NSD_ROOT", str(world))
    assert contents(ws.mrifeat) == contents(make(tmp_path / "clean").mrifeat)


def test_a_run_goes_on_after_its_last_whole_session(server, world, tmp_path, monkeypatch, capsys):
    read = beta_session.read_session
    monkeypatch.setattr(beta_session, "read_session", lambda session, progress=None: (
        read(session, progress) if session.number < 3 else (_ for _ in ()).throw(KeyboardInterrupt)))
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "killed")
    monkeypatch.setattr(beta_session, "read_session", read)
    server.log.clear()
    ws = make(tmp_path / "killed")
    assert not server.gets("session01") and not server.gets("session02") and server.gets("session03")
    assert "2 of 3 sessions were done before" in capsys.readouterr().err
    monkeypatch.setenv("NSD_ROOT", str(world))
    assert contents(ws.mrifeat) == contents(make(tmp_path / "whole").mrifeat)


def test_killed_anywhere_a_rerun_is_byte_identical(world, tmp_path):
    """SIGKILL at random moments; each rerun goes on from what the last one left."""
    whole = contents(make(tmp_path / "whole").mrifeat)
    script = os.path.abspath("make_subjmri.py")
    draw = random.Random(4)
    workdir = tmp_path / "killed"
    # Each write and rename is slowed, so that kills fall between any two of them.
    code = ("import os, time, sys; sys.path.insert(0, '.'); import make_subjmri\n"
            "replace = os.replace\n"
            "def slow(*a):\n    time.sleep(0.02); replace(*a); time.sleep(0.02)\n"
            "os.replace = slow; print('ready', flush=True)\n"
            f"make_subjmri.main(['--workdir', {str(workdir)!r}])")
    kills = 0
    for _ in range(6):
        run = subprocess.Popen([sys.executable, "-c", code], cwd=os.path.dirname(script), stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
        run.stdout.readline()
        try:
            run.wait(draw.uniform(0.1, 0.9))
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            kills += 1
        run.wait()
        run.stdout.close()
    assert kills
    assert contents(make(workdir).mrifeat) == whole


def test_two_processes_do_the_work_once(world, tmp_path):
    whole = contents(make(tmp_path / "whole").mrifeat)
    command = [sys.executable, "make_subjmri.py", "--workdir", str(tmp_path / "both")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    out = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert out[0][0] == out[1][0]
    assert sum("session 03" in err for _, err in out) == 1
    assert contents(tmp_path / "both" / "mrifeat" / "subj01") == whole


def bad(key, make_content):
    return lambda world: tiny_nsd.put(world, key, make_content(world))


def replace(key, old, new):
    return lambda world: tiny_nsd.put(world, key, (world / key).read_bytes().replace(old, new, 1))


def cut(key, part=0.6):
    return lambda world: tiny_nsd.put(world, key, (world / key).read_bytes()[:int((world / key).stat().st_size * part)])


def gone(key):
    return lambda world: (world / key).unlink()


def beta(values=None, **how):
    values = tiny_nsd.betas(2, 8) if values is None else values
    return bad(tiny_nsd.BETAS.format(2), lambda _: tiny_nsd.nifti(values, **how))


def flat(world):
    for session, ids in enumerate(tiny_nsd.SESSIONS, start=1):
        zeros = np.zeros((*tiny_nsd.SHAPE, len(ids)), np.int16)
        tiny_nsd.put(world, tiny_nsd.BETAS.format(session), tiny_nsd.nifti(zeros))


def atlas(values, affine=tiny_nsd.AFFINE):
    return bad(tiny_nsd.ATLAS, lambda _: tiny_nsd.nifti(values, affine))


SHIFTED = tiny_nsd.AFFINE + np.array([[0, 0, 0, 1.8], [0] * 4, [0] * 4, [0] * 4])
MIRRORED = tiny_nsd.AFFINE @ np.diag([-1.0, 1, 1, 1])
ZERO_BASED = tuple(tuple(stimulus - 1 for stimulus in ids) for ids in tiny_nsd.SESSIONS)
BAD = {
    "no design": (gone(tiny_nsd.DESIGN), "nsd_expdesign.mat does not exist"),
    "truncated design": (cut(tiny_nsd.DESIGN), "nsd_expdesign.mat"),
    "design that is no MAT file": (bad(tiny_nsd.DESIGN, lambda _: b"hello"), "nsd_expdesign.mat is not a readable MAT"),
    "sharedix with 0": (bad(tiny_nsd.DESIGN, lambda _: tiny_nsd.expdesign(shared=(0, 101, 102))), "sharedix.*1-based"),
    "sharedix too large": (bad(tiny_nsd.DESIGN, lambda _: tiny_nsd.expdesign(shared=(101, 73001))), "sharedix.*73000"),
    "sharedix with NaN": (bad(tiny_nsd.DESIGN, lambda _: tiny_nsd.expdesign(sharedix=np.array([[101.0, np.nan]]))),
                          "sharedix.*whole numbers"),
    "0-based sharedix": (bad(tiny_nsd.DESIGN, lambda _: tiny_nsd.expdesign(sharedix=np.array([[100, 101, 102, 103]]))),
                         "sharedix"),
    "no shared image seen": (bad(tiny_nsd.DESIGN, lambda _: tiny_nsd.expdesign(shared=(200, 201))), "shared"),
    "no responses": (gone(tiny_nsd.RESPONSES), "responses.tsv does not exist"),
    "responses without 73KID": (replace(tiny_nsd.RESPONSES, b"73KID", b"IMAGE"), "73KID"),
    "empty responses": (bad(tiny_nsd.RESPONSES, lambda _: b""), "responses.tsv has no trials"),
    "0-based 73KID": (bad(tiny_nsd.RESPONSES, lambda _: tiny_nsd.responses(ZERO_BASED)), "1-based"),
    "73KID of 0": (replace(tiny_nsd.RESPONSES, b"\t5\tNaN", b"\t0\tNaN"), "73KID"),
    "73KID of 73001": (replace(tiny_nsd.RESPONSES, b"\t5\tNaN", b"\t73001\tNaN"), "73001"),
    "73KID of NaN": (replace(tiny_nsd.RESPONSES, b"\t5\tNaN", b"\tNaN\tNaN"), "line 2.*'NaN'"),
    "73KID of another image": (replace(tiny_nsd.RESPONSES, b"\t5\tNaN", b"\t9\tNaN"), "line 2.*design does not"),
    "a row too many": (bad(tiny_nsd.RESPONSES, lambda _: tiny_nsd.responses() + b"1\t3\t2\t2\t15\tNaN\n"),
                       "repeats a trial"),
    "a row too few": (replace(tiny_nsd.RESPONSES, b"1\t3\t2\t2\t15\tNaN\n", b""), "6 volumes.*5 trials in session 3"),
    "rows out of order": (replace(tiny_nsd.RESPONSES, b"1\t1\t1\t1", b"1\t2\t1\t1"), "out of scan order"),
    "session 0": (bad(tiny_nsd.RESPONSES, lambda _: tiny_nsd.responses().replace(b"\n1\t1\t", b"\n1\t0\t")),
                  "count from 1"),
    "betas without responses": (bad(tiny_nsd.BETAS.format(4), lambda _: b""), "session 4 without rows"),
    "no betas at all": (lambda world: shutil.rmtree((world / tiny_nsd.BETAS).parent), "holds no betas_session"),
    "table that lacks a ROI": (replace(tiny_nsd.CTAB, b"7 parietal", b"7 elsewhere"), "does not name parietal"),
    "a volume too many": (beta(np.zeros((*tiny_nsd.SHAPE, 9), np.int16)), "9 volumes.*8 trials in session 2"),
    "a trial too many": (bad(tiny_nsd.RESPONSES, lambda _: tiny_nsd.responses() + b"1\t3\t2\t3\t15\tNaN\n"),
                         "6 volumes.*7 trials in session 3"),
    "betas with two axes swapped": (beta(affine=tiny_nsd.AFFINE[:, [2, 1, 0, 3]]), "another space.*orientation"),
    "atlas of colours": (bad(tiny_nsd.ATLAS, lambda _: tiny_nsd.nifti(
        np.zeros(tiny_nsd.SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]))), "not numbers"),
    "a volume too few": (beta(tiny_nsd.betas(2, 7)), "7 volumes.*8 trials in session 2"),
    "float betas": (beta(dtype=np.float32), "session02.*float32, not int16"),
    "3-D betas": (beta(tiny_nsd.betas(2, 8)[..., 0]), "session02.*shape"),
    "betas of another shape": (beta(np.zeros((5, 6, 5, 8), np.int16)), "another space.*shape"),
    "rescaled betas": (beta(scl_slope=0.5, scl_inter=0), "rescales"),
    "mirrored betas": (beta(affine=MIRRORED), "another space.*orientation"),
    "truncated betas": (cut(tiny_nsd.BETAS.format(2)), "session02.*truncated or corrupt"),
    "betas cut in the checksum": (cut(tiny_nsd.BETAS.format(2), 0.999), "session02.*truncated or corrupt"),
    "betas that are not gzip": (bad(tiny_nsd.BETAS.format(2), lambda _: b"x" * 2000), "session02.*truncated or"),
    "betas that are no NIfTI": (bad(tiny_nsd.BETAS.format(2), lambda _: gzip.compress(b"x" * 2000)),
                                "session02.*not a NIfTI"),
    "betas that never change": (flat, "no voxel of"),
    "no atlas": (gone(tiny_nsd.ATLAS), "streams.nii.gz does not exist"),
    "truncated atlas": (cut(tiny_nsd.ATLAS), "streams.nii.gz"),
    "atlas of another shape": (atlas((np.arange(144) % 8).reshape(6, 6, 4).astype(np.int16)), "another space.*shape"),
    "atlas of another voxel size": (atlas(tiny_nsd.labels(), np.eye(4)), "another space.*voxel size"),
    "atlas moved by a voxel": (atlas(tiny_nsd.labels(), SHIFTED), "another space.*orientation"),
    "atlas of fractions": (atlas(tiny_nsd.labels() + np.float32(0.5)), "whole labels"),
    "atlas of NaN": (atlas(np.full(tiny_nsd.SHAPE, np.nan, np.float32)), "whole labels"),
    "no table": (gone(tiny_nsd.CTAB), "no table names the labels of streams"),
    "table without known ROI": (bad(tiny_nsd.CTAB, lambda _: b"\n".join(b"%d area%d" % (i, i) for i in range(8))),
                                "does not name early midventral"),
    "table that lacks a label": (replace(tiny_nsd.CTAB, b"\n7 parietal", b""), "label 7, which its table"),
    "table that is none": (bad(tiny_nsd.CTAB, lambda _: b"hello world\n"), "not a label and a name"),
    "table that names a path": (replace(tiny_nsd.CTAB, b"1 early", b"1 ../early"), "cannot be part of a file name"),
    "no ROI has voxels": (atlas(np.minimum(tiny_nsd.labels(), 0)), "has no voxels of early midventral"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_problem_and_nothing_is_written(world, tmp_path, case):
    spoil, said = BAD[case]
    spoil(world)
    with pytest.raises(Problem, match=said):
        make(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_bad_usage_is_status_2_and_a_problem_is_status_1_with_one_line(world, tmp_path):
    command = [sys.executable, "make_subjmri.py", "--workdir", str(tmp_path / "out")]
    unknown = subprocess.run([*command, "--subject", "subj09"], capture_output=True, text=True)
    assert unknown.returncode == 2 and "subj08" in unknown.stderr
    assert subprocess.run([*command, "--sessions", "0"], capture_output=True).returncode == 2
    gone(tiny_nsd.DESIGN)(world)
    missing = subprocess.run(command, capture_output=True, text=True)
    assert missing.returncode == 1 and missing.stdout == ""
    assert missing.stderr.startswith("error: ") and " — " in missing.stderr and missing.stderr.count("\n") == 1


def test_a_full_disk_is_one_problem_before_any_session_is_streamed(world, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(beta_session, "read_session", lambda *_: pytest.fail("a session was streamed"))
    with pytest.raises(Problem, match="No space left"):
        make(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.npy")) and not list((tmp_path / "out").rglob("session*"))


def test_constant_voxels_are_said(world, tmp_path, capsys):
    values = tiny_nsd.betas(2, 8)
    values[np.unravel_index(np.flatnonzero(tiny_nsd.labels().ravel() == 1)[0], tiny_nsd.SHAPE)] = 0
    beta(values)(world)
    make(tmp_path)
    assert "early: up to 1 of" in capsys.readouterr().err


def test_volumes_stream_one_at_a_time(world):
    with nifti_volumes.beta_volumes(s3.Folder(world), "subj01", 1) as volumes:
        assert volumes.count == 8
        expected = tiny_nsd.betas(1, 8)
        for trial, volume in enumerate(volumes):
            assert volume.dtype == np.int16 and volume.flags.c_contiguous
            assert np.array_equal(volume, expected[..., trial].T)


def test_multi_member_gzip_is_read_through(world):
    content = gzip.decompress((world / tiny_nsd.BETAS.format(1)).read_bytes())
    members = [gzip.compress(content[start:start + 700]) for start in range(0, len(content), 700)]
    tiny_nsd.put(world, tiny_nsd.BETAS.format(1), b"".join(members))
    with nifti_volumes.beta_volumes(s3.Folder(world), "subj01", 1) as volumes:
        assert np.array_equal(list(volumes)[7], tiny_nsd.betas(1, 8)[..., 7].T)


def test_averages_do_not_depend_on_the_size_of_blocks(monkeypatch):
    draw = np.random.default_rng(0)
    betas = draw.integers(-32768, 32767, (300, 7)).astype(np.int16)
    rows = draw.permutation(np.concatenate([np.arange(50), draw.integers(0, 50, 250)]))
    loop = np.stack([betas[rows == row].astype(np.float64).mean(0) for row in range(50)]).astype(np.float32)
    for block in (1, 7 * 8 * 9, 1 << 20):
        monkeypatch.setattr(trials, "BLOCK", block)
        assert np.array_equal(np.concatenate(list(trials.averages(lambda: betas, rows, 50))), loop)
