"""Betas by voxel from the .hdf5: the arrays of the .nii.gz, only what is needed, a line where the layout differs."""
import json

import h5py
import numpy as np
import pytest

import make_subjmri
from tests import tiny_nsd
from tests.slow_link import SlowLink
from utils import layout
from utils.errors import Problem
from utils.nsd import beta_chunks, beta_session, beta_source, ranges, retrying, s3

NIFTI = tiny_nsd.BETAS.split("/")[-1].replace("{:02}", "")
SESSIONS = (1, 2, 3)


@pytest.fixture
def world(tmp_path, monkeypatch):
    folder = tiny_nsd.build(tmp_path / "nsd")
    for session in SESSIONS:
        tiny_nsd.put_hdf5(folder, session)
    monkeypatch.setenv("NSD_ROOT", str(folder))
    return folder


@pytest.fixture
def server(world, monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(retrying, "STALL", 0.5)
    with tiny_nsd.FaultyS3(world) as running:
        monkeypatch.delenv("NSD_ROOT")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.url)
        yield running


def make(workdir, *flags):
    make_subjmri.main(["--workdir", str(workdir), *flags])
    return layout.Workspace(workdir, "subj01")


def arrays(ws):
    return {path.name: path.read_bytes() for path in sorted(ws.mrifeat.glob("*.npy"))}


def sources(ws, tag="early"):
    """The files of betas that an artifact's record names."""
    record = json.loads(layout.sidecar(ws.betas(tag, "tr")).read_text())
    return sorted(key.split("/")[-1] for key in record["sources"] if "betas_session" in key)


@pytest.mark.parametrize("flags", [[], ["--roi", "lateral", "early"], ["--ncsnr_min", "0.5"], ["--zscore", "session"],
                                   ["--atlas", "nsdgeneral"], ["--workers", "2"]], ids=" ".join)
def test_both_sources_give_the_same_bytes(server, world, tmp_path, flags):
    tiny_nsd.put(world, tiny_nsd.ATLAS.replace("streams", "nsdgeneral"),
                 tiny_nsd.nifti((tiny_nsd.labels() > 3).astype(np.int16)))
    by_voxel = make(tmp_path / "hdf5", "--source", "hdf5", *flags)
    asked = [key for method, key, _ in server.log if method == "GET" and "betas_session01.hdf5" in key]
    whole = make(tmp_path / "nifti", "--source", "nifti", *flags)
    assert asked and len(arrays(whole)) > 5 and arrays(by_voxel) == arrays(whole)


def test_a_local_folder_is_read_by_voxel_too(world, tmp_path):
    by_voxel, whole = (make(tmp_path / source, "--source", source) for source in ("hdf5", "nifti"))
    assert arrays(by_voxel) == arrays(whole)
    assert sources(by_voxel) == [f"betas_session0{session}.hdf5" for session in SESSIONS]
    assert sources(whole) == [f"betas_session0{session}.nii.gz" for session in SESSIONS]


def test_what_was_made_of_one_file_is_done_for_the_other(server, tmp_path, capsys):
    made = make(tmp_path, "--source", "hdf5", "--roi", "early")
    server.log = []
    make(tmp_path, "--source", "nifti", "--roi", "early")
    assert not server.gets("betas_session") and sources(made) == [f"betas_session0{n}.hdf5" for n in SESSIONS]


def test_a_run_goes_on_with_another_source_after_its_last_whole_session(server, world, tmp_path, monkeypatch, capsys):
    whole = make(tmp_path / "whole", "--source", "nifti")
    monkeypatch.setattr(retrying, "TRIES", 0)
    server.faults = [("betas_session03.hdf5", "denied", "always")]
    read_header = beta_session.checked
    monkeypatch.setattr(beta_session, "checked", lambda session: session)
    with pytest.raises(Problem, match="session03.hdf5 is denied"):
        make(tmp_path / "broken", "--source", "hdf5")
    monkeypatch.setattr(beta_session, "checked", read_header)
    assert not (tmp_path / "broken/mrifeat/subj01/subj01_early_betas_tr.npy").exists()
    server.log = []
    ws = make(tmp_path / "broken", "--source", "nifti")
    assert not server.gets("session01") and not server.gets("session02") and server.gets("session03.nii.gz")
    assert "2 of 3 sessions were done before" in capsys.readouterr().err
    assert arrays(ws) == arrays(whole)
    assert sources(ws) == ["betas_session01.hdf5", "betas_session02.hdf5", "betas_session03.nii.gz"]


def test_a_changed_hdf5_is_refused_then_redone_when_asked(world, tmp_path):
    make(tmp_path, "--source", "hdf5")
    path = tiny_nsd.put_hdf5(world, 2, libver="latest")
    with pytest.raises(Problem, match="was made with sources.*pass --overwrite"):
        make(tmp_path, "--source", "hdf5")
    make(tmp_path, "--source", "hdf5", "--overwrite")
    assert path.exists()


# the layout


def contents_differ(world, session):
    values = tiny_nsd.betas(session, len(tiny_nsd.SESSIONS[session - 1]))
    tiny_nsd.put_hdf5(world, session, values[::-1])


def rewritten(**how):
    return lambda world, session: tiny_nsd.put_hdf5(world, session, **how)


def as_type(dtype):
    return lambda world, session: tiny_nsd.put_hdf5(
        world, session, tiny_nsd.betas(session, len(tiny_nsd.SESSIONS[session - 1])).astype(dtype))


def turned(world, session):
    tiny_nsd.put_hdf5(world, session, tiny_nsd.betas(session, 8).transpose(1, 0, 2, 3), chunks=(8, 1, 1, 1))


def spoilt(change):
    def spoil(world, session):
        path = tiny_nsd.put_hdf5(world, session)
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)
    return spoil


def _break_index(content):
    at = content.find(b"TREE\x01")
    while at >= 0:  # every node of the index of chunks
        content[at:at + 4] = b"EERT"
        at = content.find(b"TREE\x01", at + 1)


def never_written(world, session):
    path = tiny_nsd.put_hdf5(world, session)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("betas", (8, 4, 6, 5), np.int16, chunks=(8, 1, 1, 1))
        data[:, 0] = 1


def linked(world, session):
    path = tiny_nsd.put_hdf5(world, session)
    path.rename(path.with_name("other.h5"))
    with h5py.File(path, "w") as file:
        file["betas"] = h5py.ExternalLink("other.h5", "betas")


OTHER = {
    "contiguous": (rewritten(chunks=None), "chunks None"),
    "compressed": (rewritten(compression="gzip"), "filters 1"),
    "a chunk of more voxels": (rewritten(chunks=(8, 1, 2, 1)), "chunks \\(8, 1, 2, 1\\)"),
    "a chunk of fewer trials": (rewritten(chunks=(4, 1, 1, 1)), "chunks \\(4, 1, 1, 1\\)"),
    "float32": (as_type(np.float32), "type float32"),
    "uint16": (as_type(np.uint16), "type uint16"),
    "axes swapped": (turned, "shape \\(8, 4, 5, 6\\)"),
    "other values": (contents_differ, "differs from its .nii.gz in .* voxels of the first trial"),
    "a chunk that was never written": (never_written, "cannot be read"),
    "in another file": (linked, "has a link for betas"),
    "without betas": (lambda world, session: h5py.File(tiny_nsd.put_hdf5(world, session), "w").close(),
                      "has no dataset betas"),
    "no HDF5": (spoilt(lambda content: content.__setitem__(slice(0, 8), b"no hdf5!")), "is not a whole HDF5 file"),
    "truncated": (spoilt(lambda content: content.__delitem__(slice(len(content) // 2, None))), "is not a whole HDF5"),
    "a broken index": (spoilt(_break_index), "cannot be read"),
}


@pytest.mark.parametrize("case", OTHER)
def test_another_layout_is_said_in_one_line_and_the_nifti_read(world, tmp_path, case, capsys):
    expected = make(tmp_path / "expected", "--source", "nifti")
    capsys.readouterr()
    spoil, said = OTHER[case]
    spoil(world, 1)
    with pytest.raises(beta_chunks.OtherLayout, match=f"betas_session01.hdf5 .*{said}"):
        make(tmp_path / "strict", "--source", "hdf5")
    assert not list((tmp_path / "strict").rglob("*.npy"))
    capsys.readouterr()
    beta_source_auto(lambda: make(tmp_path / "auto"))
    lines = [line for line in capsys.readouterr().err.splitlines() if "betas_session01.hdf5" in line]
    assert len(lines) == 1 and lines[0].endswith("session 01 is read from its .nii.gz")
    ws = layout.Workspace(tmp_path / "auto", "subj01")
    assert arrays(ws) == arrays(expected)
    assert sources(ws) == ["betas_session01.nii.gz", "betas_session02.hdf5", "betas_session03.hdf5"]


def beta_source_auto(run):
    """Run with an `auto` that takes the .hdf5: in a world so small nothing else tells the two apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beta_source, "whole", lambda *_: beta_source.Cost(1e6, 1, 1))
        run()


@pytest.mark.parametrize("how", [{"libver": "latest"}, {"dtype": ">i2"}], ids=str)
def test_what_the_library_reads_otherwise_but_says_the_same_is_taken(world, tmp_path, how):
    for session in SESSIONS:
        tiny_nsd.put_hdf5(world, session, **how)
    assert arrays(make(tmp_path / "a", "--source", "hdf5")) == arrays(make(tmp_path / "b", "--source", "nifti"))


def test_auto_says_which_and_why_in_one_line(world, tmp_path, capsys):
    make(tmp_path / "a")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("betas are read from")]
    assert len(said) == 1 and "of 120 voxels are about" in said[0] and "the .nii.gz" in said[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beta_source, "whole", lambda *_: beta_source.Cost(0, 1, 1))
        assert sources(make(tmp_path / "cheap"))[0].endswith(".nii.gz")
    assert "betas are read from .nii.gz: 92 of 120 voxels are about" in capsys.readouterr().err
    (world / tiny_nsd.BETAS.format(2).replace(".nii.gz", ".hdf5")).unlink()
    with pytest.raises(Problem, match="no .hdf5 of session 2 — pass --source auto or nifti"):
        make(tmp_path / "b", "--source", "hdf5")
    beta_source_auto(lambda: make(tmp_path / "b"))
    assert "session 2 has no .hdf5 and is read from its .nii.gz" in capsys.readouterr().err
    for path in (world / tiny_nsd.BETAS).parent.glob("*.hdf5"):
        path.unlink()
    make(tmp_path / "c")
    assert "betas are read from .nii.gz: there is no .hdf5 beside it" in capsys.readouterr().err


def test_auto_takes_the_volumes_when_most_of_a_session_is_wanted():
    """At NSD's size over a home connection, a ribbon of cortex is read by voxel, the brain as volumes."""
    link, total, trials, packed = ranges.Link(), 81 * 104 * 83, 750, 290_000_000
    ribbon = np.flatnonzero(np.random.default_rng(0).random(total // 16) < 0.04 * 4).repeat(4)
    ribbon = np.unique(ribbon * 16 + np.tile(np.arange(4), len(ribbon) // 4))
    brain = np.arange(0, total, 3)
    volumes = beta_source.whole(packed, 2 * trials * total, link)
    assert beta_source.by_voxel(ribbon, trials, link).seconds < volumes.seconds / 4
    assert beta_source.by_voxel(brain, trials, link).seconds > volumes.seconds


# over the wire


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file whose index has some two hundred nodes, on a server; its values (trials, z, y, x)."""
    values = np.random.default_rng(5).integers(-9000, 9000, (8, 21, 22, 23)).astype(np.int16)
    tiny_nsd.put_hdf5(tmp_path, 1, values.T)
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.01)
    with tiny_nsd.FaultyS3(tmp_path) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.url)
        yield running, values


KEY = tiny_nsd.BETAS.format(1).replace(".nii.gz", ".hdf5")


def by_voxel(link=None):
    return beta_chunks.VoxelBetas(s3.Bucket(s3.DEFAULT_ROOT), KEY, (23, 22, 21), 8, link or ranges.Link())


def test_only_the_nodes_and_chunks_that_are_needed_are_read(large, monkeypatch):
    server, values = large
    monkeypatch.setattr(ranges, "GAPS", (0,))
    positions = np.array([9000, 3, 4, 5, 10_600, 9001])
    with by_voxel() as betas, SlowLink(server.url, 0, 1e9, 1e9) as relay:
        found = betas.read(positions)
        received, requests = betas.received, betas.requests
        assert relay.received == 0
    assert np.array_equal(found, values.reshape(8, -1)[:, positions])
    whole = (server.folder / KEY).stat().st_size
    # The head of the file, the root, one node a level below for each of three places, and their chunks.
    assert 6 * 16 + 4 * 3656 <= received <= 16_384 + 10 * 3656 + 6 * 16 < whole / 12
    asked = [headers["Range"] for headers in server.gets(KEY)]
    sizes = [int(last) - int(first) + 1 for first, last in (one.removeprefix("bytes=").split("-") for one in asked)]
    assert sum(sizes) == received and len(asked) == requests
    assert all("If-Match" in headers for headers in server.gets(KEY))


def test_neighbouring_chunks_are_read_in_one_request(large, monkeypatch):
    server, values = large
    monkeypatch.setattr(ranges, "GAPS", (4096,))
    with by_voxel() as betas:
        found = betas.read(np.arange(2000, 4000))
    assert np.array_equal(found, values.reshape(8, -1)[:, 2000:4000]) and len(server.gets(KEY)) < 12


@pytest.mark.parametrize("fault", ["500", "SlowDown", ("reset", 20), ("cut", 10), "no range", ("length", -3)], ids=str)
def test_a_transient_fault_of_a_range_is_tried_again_and_said_once(large, fault, monkeypatch, capsys):
    server, values = large
    monkeypatch.setattr(ranges, "GAPS", (0,))
    with by_voxel() as betas:
        betas.read(np.arange(3))
        server.faults = [(KEY, fault)] * 5  # of requests that run side by side, for nodes all over the index
        far = np.arange(0, 10_000, 200)
        assert np.array_equal(betas.read(far), values.reshape(8, -1)[:, far])
        assert not server.faults
    assert capsys.readouterr().err.count("warning:") == 1


@pytest.mark.parametrize("fault, said", [("503", "retries did not help"), ("denied", "denied")])
def test_a_fault_that_stays_is_a_problem_that_names_the_key(large, fault, said):
    server, _ = large
    with by_voxel() as betas:
        server.faults = [(KEY, fault, "always")]
        with pytest.raises(retrying.Unavailable, match=f"{KEY}.*{said}"):
            betas.read(np.arange(300))


@pytest.mark.parametrize("fault", [None, "no match"], ids=["a server with If-Match", "one without"])
def test_a_file_that_changes_between_two_ranges_is_refused(large, fault):
    server, _ = large
    with by_voxel() as betas:
        path = server.folder / KEY
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-1] + b"x")
        server.faults = [(KEY, fault, "always")] if fault else []
        with pytest.raises(retrying.Changed, match=f"{KEY} changed while it was read"):
            betas.read(np.arange(300))


def test_a_gap_is_read_where_a_request_takes_longer():
    parts = [(place * 10_000, 1500) for place in range(400)]
    near, far = ranges.Link(), ranges.Link()
    near.learn(1, 1000, 0.0005)
    far.learn(1, 1000, 0.5)
    for link in (near, far):
        link.learn(1, 1_000_000, link.latency + 0.1)  # 10 MB/s
    near.request = 0
    few, many = ranges.plan(parts, far), ranges.plan(parts, near)
    assert len(few) < 20 and len(many) == len(parts)
    covered = np.zeros(4_000_000 + 1500, bool)
    for start, stop in few:
        covered[start:stop] = True
    assert all(covered[start:start + size].all() for start, size in parts)


def test_a_slow_link_is_noticed():
    link = ranges.Link()
    link.learn(1, 4000, 0.04)
    assert link.latency == 0.04
    link.learn(1, 540_000, 0.04 + 0.5)
    assert link.rate == pytest.approx(1_080_000) and link.total == pytest.approx(4_320_000)
    link.learn(400, 10_000_000, 10.0)
    assert link.total == pytest.approx(1_000_000)
