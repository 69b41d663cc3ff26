"""Anonymous access, and what becomes of each fault of an S3 server (issue: nothing lost, nothing silent)."""
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest

from tests import tiny_nsd
from utils.errors import Problem
from utils.nsd import retrying, s3
from utils.storage import writing

KEY = "nsddata/some/object.bin"


@pytest.fixture
def content():
    return np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture
def server(tmp_path, content, monkeypatch):
    folder = tmp_path / "bucket"
    tiny_nsd.put(folder, KEY, content)
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(retrying, "STALL", 0.3)
    monkeypatch.delenv("NSD_ROOT", raising=False)
    with tiny_nsd.FaultyS3(folder, page=2) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.url)
        yield running


def read(root, key=KEY):
    with root.open(key) as stream:
        return stream.read()


@pytest.mark.parametrize("fault", ["500", "503", "SlowDown", ("reset", 1_000_000), ("cut", 1_500_000),
                                   ("stall", 2_000_000), ("length", -1000), ("length", 1000)], ids=str)
def test_a_transient_fault_loses_no_byte_and_is_said_once(server, content, fault, capsys):
    server.faults = [("object", fault)]
    assert read(s3.Root.from_env()) == content
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(said) == 1 and KEY in said[0] and said[0].startswith("warning:")


@pytest.mark.parametrize("fault", ["cut", "reset", "stall"])
def test_reading_goes_on_by_range_of_the_same_version(server, content, fault):
    server.faults = [("object", (fault, 1_000_000)), ("object", (fault, 500_000))]
    assert read(s3.Root.from_env()) == content
    first, second, third = server.gets("object")
    assert "Range" not in first
    # A reset may throw away what the receiver had not read yet; a cut does not.
    starts = [int(headers["Range"].removeprefix("bytes=").removesuffix("-")) for headers in (second, third)]
    assert 0 < starts[0] <= 1_000_000 and starts[0] < starts[1] <= 1_500_000
    if fault == "cut":
        assert starts == [1_000_000, 1_500_000]
    assert first["If-Match"] == second["If-Match"] == third["If-Match"]


def test_a_fault_of_every_request_ends_after_bounded_retries(server, capsys):
    server.faults = [("object", "503", "always")]
    with pytest.raises(Problem, match=KEY):
        read(s3.Root.from_env())
    assert len(server.gets("object")) == retrying.TRIES + 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_bytes_that_trickle_between_faults_do_not_retry_forever(server):
    server.faults = [("object", ("cut", 10), "always")]
    with pytest.raises(Problem, match="retries did not help"):
        read(s3.Root.from_env())
    assert len(server.gets("object")) == retrying.TRIES + 1


def test_a_length_that_stays_wrong_is_noticed(server):
    server.faults = [("object", ("length", -1000), "always")]
    with pytest.raises(Problem, match="Content-Length"):
        read(s3.Root.from_env())


def test_a_server_that_ignores_range_repeats_nothing(server, content):
    server.faults = [("object", ("cut", 1_000_000)), ("object", "no range")]
    assert read(s3.Root.from_env()) == content


def test_an_object_that_changes_between_two_ranges_is_refused(server):
    server.faults = [("object", ("change", 1_000_000))]
    with pytest.raises(Problem, match=f"{KEY} changed"):
        read(s3.Root.from_env())


@pytest.mark.parametrize("fault, said", [("denied", "denied"), ("missing", "does not exist")])
def test_what_retrying_cannot_mend_fails_at_once_with_the_key(server, fault, said, capsys):
    server.faults = [("object", fault, "always")]
    with pytest.raises(Problem, match=f"{KEY}.*{said}"):
        read(s3.Root.from_env())
    assert len(server.gets("object")) == 1
    assert capsys.readouterr().err == ""


def test_a_missing_key_is_named(server):
    root = s3.Root.from_env()
    assert not root.exists("nsddata/none") and root.exists(KEY)
    with pytest.raises(Problem, match="nsddata/none does not exist"):
        root.open("nsddata/none")


def test_the_first_question_survives_faults_too(server, content):
    server.faults = [("object", "HEAD 503"), ("object", "HEAD 500")]
    assert s3.Root.from_env().size(KEY) == len(content)


def test_no_server_is_one_problem(monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(Problem, match="no connection"):
        s3.Bucket("s3://bucket").size("key")


def test_requests_are_unsigned_though_the_environment_holds_keys(server, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDSECRET")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    root = s3.Root.from_env()
    root.list("nsddata/")
    root.read(KEY)
    assert len(server.log) >= 3
    for _, path, headers in server.log:
        assert "Authorization" not in headers and "X-Amz-Security-Token" not in headers
        assert "AKIDSECRET" not in path + str(headers)


def test_credentials_are_not_looked_up(monkeypatch, tmp_path):
    def fail(*_):
        raise AssertionError("credentials were looked up")

    monkeypatch.setattr("botocore.credentials.EnvProvider.load", fail)
    monkeypatch.setattr("botocore.credentials.SharedCredentialProvider.load", fail)
    monkeypatch.setattr("botocore.credentials.InstanceMetadataProvider.load", fail)
    assert s3._anonymous_client().meta.region_name == s3.REGION


def test_a_listing_of_several_pages_is_whole_on_s3_and_locally(server):
    for name in "cab":
        tiny_nsd.put(server.folder, f"nsddata/ppdata/subj01/{name}", b"12345")
    tiny_nsd.put(server.folder, "nsddata/ppdata/subj010", b"1")
    expected = [(f"nsddata/ppdata/subj01/{name}", 5) for name in "abc"]
    remote, local = s3.Root.from_env(), s3.Folder(server.folder)
    assert remote.list("nsddata/ppdata/subj01/") == local.list("nsddata/ppdata/subj01/") == expected
    assert remote.list("nsddata/ppdata/subj01") == local.list("nsddata/ppdata/subj01") == [
        *expected, ("nsddata/ppdata/subj010", 1)]
    assert remote.list("nsddata/pp") == local.list("nsddata/pp")


def test_a_prefix_in_nsd_root_is_part_of_every_key(server, content, monkeypatch):
    monkeypatch.setenv("NSD_ROOT", f"s3://{tiny_nsd.BUCKET}/nsddata")
    root = s3.Root.from_env()
    assert root.list("some/") == [("some/object.bin", len(content))]
    assert root.read("some/object.bin") == content


@pytest.mark.parametrize("key", ["../secret", "nsddata/../../secret", "/etc/passwd", "a\\..\\b"])
def test_a_key_cannot_leave_its_root(server, tmp_path, key):
    for leave in (s3.Root.from_env().open, s3.Folder(server.folder).open, lambda name: s3.local_path(tmp_path, name)):
        with pytest.raises(Problem, match="leads out"):
            leave(key)


def test_a_link_cannot_leave_the_local_root(server, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (server.folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(Problem, match="leads out"):
        s3.Folder(server.folder).read("link")


def test_a_local_folder_raises_the_same_errors(server):
    root = s3.Folder(server.folder)
    with pytest.raises(retrying.Missing, match="nsddata/none does not exist"):
        root.open("nsddata/none")
    with pytest.raises(retrying.Missing):
        root.version("nsddata")
    with pytest.raises(Problem, match="more than"):
        root.read(KEY, limit=10)
    with pytest.raises(Problem, match="NSD_ROOT"):
        s3.Folder(server.folder / "none")


def test_a_version_is_the_same_on_s3_and_locally(server):
    assert s3.Root.from_env().version(KEY) == s3.Folder(server.folder).version(KEY)


def test_a_large_object_is_not_read_where_a_small_one_belongs(server):
    with pytest.raises(Problem, match="more than"):
        s3.Root.from_env().read(KEY, limit=1000)


def interrupted_fetch(server, path, at):
    """A fetch that dies after `at` bytes."""
    server.faults = [("object", ("cut", at)), ("object", "denied", "always")]
    with pytest.raises(Problem):
        s3.Root.from_env().fetch(KEY, path)
    server.faults, server.log = [], []


def test_fetch_continues_the_same_object_from_where_it_stopped(server, content, tmp_path):
    path = tmp_path / "copy.bin"
    interrupted_fetch(server, path, 2_000_000)
    assert not path.exists()
    s3.Root.from_env().fetch(KEY, path)
    assert path.read_bytes() == content
    (headers,) = server.gets("object")
    assert headers["Range"] == "bytes=2000000-"
    assert sorted(file.name for file in tmp_path.glob("copy*")) == ["copy.bin", "copy.json"]


def test_fetch_starts_again_when_the_object_changed_meanwhile(server, content, tmp_path):
    path = tmp_path / "copy.bin"
    interrupted_fetch(server, path, 2_000_000)
    tiny_nsd.put(server.folder, KEY, content[::-1])
    s3.Root.from_env().fetch(KEY, path)
    assert path.read_bytes() == content[::-1]


def test_fetch_refuses_a_copy_that_arrived_corrupt(server, tmp_path):
    server.faults = [("object", ("corrupt", 1_000_000))]
    with pytest.raises(Problem, match="checksum"):
        s3.Root.from_env().fetch(KEY, tmp_path / "copy.bin")
    assert not (tmp_path / "copy.bin").exists() and not (tmp_path / "copy.bin.part").exists()


def test_fetch_keeps_a_finished_copy_and_refuses_a_stale_one(server, content, tmp_path):
    path, root = tmp_path / "copy.bin", s3.Root.from_env()
    root.fetch(KEY, path)
    server.log = []
    root.fetch(KEY, path)
    assert server.gets("object") == []
    tiny_nsd.put(server.folder, KEY, content[::-1])
    with pytest.raises(Problem, match="--overwrite"):
        root.fetch(KEY, path)
    root.fetch(KEY, path, overwrite=True)
    assert path.read_bytes() == content[::-1]


def test_fetch_says_when_there_is_no_room(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=10))
    with pytest.raises(Problem, match="make room"):
        s3.Root.from_env().fetch(KEY, tmp_path / "copy.bin")


def test_a_local_root_is_used_in_place(server, tmp_path):
    assert s3.Folder(server.folder).fetch(KEY, tmp_path / "copy.bin") == server.folder / KEY
    assert not (tmp_path / "copy.bin").exists()


def test_a_root_crosses_to_a_worker_process(server):
    for root in (s3.Root.from_env(), s3.Folder(server.folder)):
        root.size(KEY)
        assert pickle.loads(pickle.dumps(root)).size(KEY) == root.size(KEY)
    error = pickle.loads(pickle.dumps(retrying.Missing("s3://bucket/key")))
    assert isinstance(error, Problem) and error.what == "s3://bucket/key does not exist"


def test_one_process_at_a_time_holds_a_lock(tmp_path):
    with writing.locked(tmp_path / "artifact"):
        code = f"from utils.storage import writing\nwith writing.locked({str(tmp_path / 'artifact')!r}): print('in')"
        waiting = subprocess.Popen([sys.executable, "-c", code], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert "waiting" in waiting.stderr.readline()
        assert waiting.poll() is None
    assert waiting.communicate(timeout=20)[0] == "in\n"
