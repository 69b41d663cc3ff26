"""The Natural Scenes Dataset's files: on S3, read anonymously, or in a local folder with the same keys.

Requests are unsigned, and no credentials are looked up even where the environment holds some. A fault that may pass
(5xx, SlowDown, a reset, a short body, a stall) is retried with exponential backoff, and reading goes on by Range from
the byte where it stopped, only if the object is still the same (If-Match). Every other fault names the key.
"""
import contextlib
import hashlib
import io
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from utils import cli, layout, lazy, system
from utils.errors import Problem
from utils.nsd import ranges, retrying
from utils.storage import text_files, writing

boto3, botocore, urllib3 = map(lazy.module, ("boto3", "botocore", "urllib3"))

DEFAULT_ROOT = "s3://natural-scenes-dataset"
REGION = "us-east-2"  # of the bucket natural-scenes-dataset, by the NSD data manual
SMALL = 64 << 20  # bytes; the most that `read` takes unless told otherwise
HASHED = 256 << 20  # bytes; larger local files are told apart by size and time, not by content
CHUNK = 1 << 20
LARGE = 64 << 20  # bytes; what is larger is fetched over several connections


class Version(NamedTuple):
    """An object as it is now: its size in bytes and a tag that changes with its content."""

    size: int
    tag: str


class Root:
    """Where NSD is. Keys are S3's: parts joined by "/", never leading out of the root."""

    @classmethod
    def from_env(cls):
        """The root that NSD_ROOT names: `s3://bucket[/prefix]` or a local folder."""
        where = os.environ.get("NSD_ROOT") or DEFAULT_ROOT
        if where.startswith("s3://"):
            return Bucket(where)
        return Folder(where)

    def read(self, key, limit=SMALL):
        """A small object's bytes. Raises Problem if it is larger than `limit` bytes."""
        size = self.size(key)
        if size > limit:
            raise Problem(f"{self.name(key)} has {size:,} bytes, more than the {limit:,} that are sensible here",
                          "check that it is the file it should be")
        with self.open(key) as stream:
            return stream.read()

    def size(self, key):
        """An object's size in bytes."""
        return self.version(key).size


class Bucket(Root):
    """A public bucket, read without credentials."""

    local = False

    def __init__(self, url):
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise Problem(f"NSD_ROOT {url} names no bucket", f"set it to {DEFAULT_ROOT} or to a local folder")
        self.prefix = prefix.strip("/")
        self._made_for, self._made = None, None

    def __reduce__(self):
        return Bucket, (f"s3://{self.bucket}/{self.prefix}",)

    def __str__(self):
        return f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @property
    def client(self):
        """A boto3 client of this process: connections must not be shared across a fork."""
        if self._made_for != os.getpid():
            self._made_for, self._made = os.getpid(), _anonymous_client()
        return self._made

    def name(self, key):
        return f"s3://{self.bucket}/{self._full(key)}"

    def _full(self, key):
        return "/".join(part for part in (self.prefix, _checked(key)) if part)

    def list(self, prefix=""):
        """[(key, size in bytes)] of every object whose key starts with `prefix`, in the order of keys."""
        found, token = [], None
        full = self._full(prefix)
        cut = len(self.prefix) + 1 if self.prefix else 0
        while True:
            more = {"ContinuationToken": token} if token else {}
            page = retrying.persist(self.name(prefix), lambda: self.client.list_objects_v2(
                Bucket=self.bucket, Prefix=full, **more))
            found += [(entry["Key"][cut:], entry["Size"]) for entry in page.get("Contents", ())]
            token = page.get("NextContinuationToken")
            if not token:
                return sorted(found)

    def exists(self, key):
        try:
            self.version(key)
        except retrying.Missing:
            return False
        return True

    def version(self, key):
        """Raises Problem for a missing key or denied access."""
        head = retrying.persist(self.name(key),
                                lambda: self.client.head_object(Bucket=self.bucket, Key=self._full(key)))
        return Version(head["ContentLength"], head.get("ETag", "").strip('"'))

    def open(self, key, start=0, version=None):
        """A readable binary stream from byte `start` on that survives faults. version: what the object must be."""
        version = version or self.version(key)
        raw = _Resuming(self, key, version, start)
        return io.BufferedReader(raw, CHUNK)

    def fetch(self, key, path, overwrite=False):
        """Copy an object to the local file `path`; returns where it is.

        What an earlier attempt left is continued if the object is still the same. A finished copy is kept; Problem if
        it differs from the object.
        """
        path = Path(path)
        part = layout.fetched(path)
        beside = part.with_name(part.name + ".json")
        with writing.locked(path):
            version = self.version(key)
            wanted = {"key": self.name(key), "size": version.size, "etag": version.tag}
            if path.exists() and not overwrite:
                self._must_be(path, wanted)
                return path
            if not (part.exists() and beside.exists() and text_files.read_json(beside) == wanted):
                part.unlink(missing_ok=True)
                text_files.write_json(beside, wanted)
            done = part.stat().st_size if part.exists() else 0
            if done:
                cli.say(f"{path.name}: going on from byte {done:,}")
            self._room(path, version.size - done)
            with (open(part, "ab") as file, contextlib.closing(self._pieces(key, done, version)) as pieces,
                  cli.progress(total=version.size, initial=done, unit="B", unit_scale=True, desc=path.name) as bar):
                for piece in pieces:
                    file.write(piece)
                    bar.update(len(piece))
                file.flush()
                os.fsync(file.fileno())
            self._verify(key, version, part)
            text_files.write_json(layout.sidecar(path), wanted)
            system.replace(part, path)
            beside.unlink()
        return path

    def _pieces(self, key, start, version):
        """Yield an object's bytes from `start` on: of a large one, from several connections."""
        if version.size - start > LARGE:
            yield from ranges.in_order(self, key, version, start)
            return
        with self.open(key, start, version) as stream:
            while piece := stream.read1(CHUNK):
                yield piece

    @staticmethod
    def _must_be(path, wanted):
        """A copy with a record must be of this version; one without, put there by hand, must have its size."""
        side = layout.sidecar(path)
        found = text_files.read_json(side) if side.exists() else {"size": path.stat().st_size}
        for what in ("size", "etag"):
            if what in found and found[what] != wanted[what]:
                raise Problem(f"{path} is of {what} {found[what]}, {wanted['key']} of {wanted[what]}",
                              "pass --overwrite to fetch it again")

    @staticmethod
    def _room(path, wanted):
        free = shutil.disk_usage(path.parent).free
        if free < wanted:
            raise Problem(f"{path} needs {wanted / 1e9:.1f} GB more and {path.parent} has {free / 1e9:.1f} GB free",
                          "make room or give another --workdir")

    def _verify(self, key, version, part):
        """The ETag of an object sent in one piece and not encrypted with a key of KMS is its MD5."""
        if re.fullmatch("[0-9a-f]{32}", version.tag) and _md5(part) != version.tag:
            part.unlink()
            raise Problem(f"{self.name(key)} arrived with another checksum than its ETag {version.tag}",
                          "run the same command again")


class Folder(Root):
    """A local folder with NSD's keys below it."""

    local = True

    def __init__(self, folder):
        self.folder = Path(folder).expanduser().resolve()
        if not self.folder.is_dir():
            raise Problem(f"NSD_ROOT {folder} is not a folder", f"set it to {DEFAULT_ROOT} or to a local copy of it")

    def __reduce__(self):
        return Folder, (str(self.folder),)

    def __str__(self):
        return str(self.folder)

    def name(self, key):
        return str(self.path(key))

    def path(self, key):
        """The file of a key. Raises Problem if a link leads out of the folder."""
        path = self.folder / _checked(key)
        if not path.resolve().is_relative_to(self.folder):
            raise Problem(f"{path} leads out of {self.folder}", "replace the link by the file")
        return path

    def list(self, prefix=""):
        """[(key, size in bytes)] of every file whose key starts with `prefix`, in the order of keys."""
        _checked(prefix)
        above = self.folder / prefix if prefix.endswith("/") or not prefix else (self.folder / prefix).parent
        found = []
        for folder, _, names in os.walk(above):
            for path in (Path(folder, name) for name in names):
                key = path.relative_to(self.folder).as_posix()
                if key.startswith(prefix):
                    found.append((key, self.path(key).stat().st_size))
        return sorted(found)

    def exists(self, key):
        return self.path(key).is_file()

    def version(self, key):
        """Raises Problem for a missing key. The tag is the MD5, as S3's ETag, or for large files size and time."""
        with self._named(key):
            stat = self.path(key).stat()
            tag = _md5(self.path(key)) if stat.st_size <= HASHED else f"{stat.st_size}-{stat.st_mtime_ns}"
        return Version(stat.st_size, tag)

    def size(self, key):
        with self._named(key):
            return self.path(key).stat().st_size

    def open(self, key, start=0, version=None):
        """A readable binary stream from byte `start` on."""
        with self._named(key):
            stream = open(self.path(key), "rb")
            stream.seek(start)
        return stream

    def fetch(self, key, path, overwrite=False):
        """Where the file is: a local root is used in place, nothing is copied."""
        self.size(key)
        return self.path(key)

    @contextlib.contextmanager
    def _named(self, key):
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise retrying.Missing(self.name(key)) from error
        except PermissionError as error:
            raise retrying.Denied(self.name(key), "check its permissions") from error


class _Resuming(io.RawIOBase):
    """The bytes of one version of an object from `start` on; goes on by Range after a fault."""

    def __init__(self, root, key, version, start):
        self.root, self.key, self.version = root, key, version
        self.at = start
        self._body = None
        self._patience = retrying.Patience(root.name(key))

    def readable(self):
        return True

    def readinto(self, buffer):
        while self.at < self.version.size:
            try:
                if self._body is None:
                    self._body = self._connect()
                chunk = self._body.read(min(len(buffer), self.version.size - self.at))
                if not chunk:
                    raise retrying.Fault(f"the body ended {self.version.size - self.at:,} bytes early")
            except (retrying.Fault, *retrying.transient_errors()) as fault:
                self._drop()
                self._patience.wait(f"{retrying.words(fault)} at byte {self.at:,} of {self.version.size:,}")
                continue
            buffer[:len(chunk)] = chunk
            self.at += len(chunk)
            self._patience.moved(len(chunk))
            return len(chunk)
        return 0

    def _connect(self):
        try:
            got = self.root.client.get_object(
                Bucket=self.root.bucket, Key=self.root._full(self.key),
                **({"Range": f"bytes={self.at}-"} if self.at else {}),
                **({"IfMatch": f'"{self.version.tag}"'} if self.version.tag else {}))
        except botocore.exceptions.ClientError as error:
            raise retrying.judged(error, self.root.name(self.key)) from error
        body = got["Body"]
        try:
            tag = got.get("ETag", "").strip('"')
            if tag != self.version.tag:
                raise retrying.Changed(self.root.name(self.key))
            if self.at and not got.get("ContentRange", "").startswith(f"bytes {self.at}-"):
                raise retrying.Fault("the server ignored Range")
            left = self.version.size - self.at
            if got["ContentLength"] != left:
                raise retrying.Fault(f"Content-Length says {got['ContentLength']:,} bytes where {left:,} are left")
        except (Problem, retrying.Fault):
            body.close()
            raise
        return body

    def _drop(self):
        if self._body is not None:
            self._body.close()
            self._body = None

    def close(self):
        self._drop()
        super().close()


def _checked(key):
    """A key that stays below its root. Raises Problem otherwise."""
    path = PurePosixPath(key)
    if path.is_absolute() or ".." in path.parts or "\\" in key or "\0" in key:
        raise Problem(f"the key {key!r} leads out of the dataset", "give a key relative to NSD_ROOT, without ..")
    return key


def local_path(workdir, key):
    """Where a key's copy lies below the working folder. Raises Problem for a key that would leave it."""
    return Path(workdir) / _checked(key)


def _md5(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _anonymous_client():
    # No profile and no file below ~/.aws, which may be of another project, broken, or hold keys.
    session = botocore.session.Session(session_vars={
        "profile": (None, None, None, None), "config_file": (None, None, os.devnull, None),
        "credentials_file": (None, None, os.devnull, None)})
    # An empty resolver: neither the environment nor files nor the network are asked for credentials.
    session.register_component("credential_provider", botocore.credentials.CredentialResolver([]))
    custom = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = botocore.config.Config(
        signature_version=botocore.UNSIGNED, connect_timeout=min(retrying.STALL, 10), read_timeout=retrying.STALL,
        retries={"total_max_attempts": 1}, response_checksum_validation="when_required",
        s3={"addressing_style": "path" if custom else "auto"})
    return boto3.Session(botocore_session=session).client("s3", region_name=REGION, config=config)
