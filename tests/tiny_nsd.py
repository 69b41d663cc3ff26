"""A few voxels of random numbers in NSD's formats, and an S3 server that misbehaves on request."""
import functools
import gzip
import hashlib
import io
import mmap
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import h5py
import nibabel
import numpy as np
import scipy.io

SHAPE = (5, 6, 4)
BUCKET = "natural-scenes-dataset"
AFFINE = np.diag([1.8, 1.8, 1.8, 1.0])
AFFINE[:3, 3] = [-4, -5, -3]
TABLE = ("0 Unknown", "1 early", "2 midventral", "3 midlateral", "4 midparietal", "5 ventral", "6 lateral",
         "7 parietal")
BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session{:02}.nii.gz"
NCSNR = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/ncsnr.nii.gz"
ATLAS = "nsddata/ppdata/subj01/func1pt8mm/roi/streams.nii.gz"
CTAB = "nsddata/freesurfer/subj01/label/streams.mgz.ctab"
RESPONSES = "nsddata/ppdata/subj01/behav/responses.tsv"
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
INFO = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"

# 1-based 73k ids of three sessions; 101 to 104 are shared, 104 is never shown, 7 is shown once.
SESSIONS = ([5, 101, 5, 9, 102, 7, 11, 9], [11, 102, 9, 103, 12, 5, 12, 101], [103, 12, 11, 15, 101, 15])
SHARED = (101, 102, 103, 104)


def put(root, key, content):
    path = Path(root) / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def nifti(values, affine=AFFINE, dtype=None, **header):
    """The bytes of a .nii.gz of values (x, y, z[, t]); header: fields to set as they are."""
    image = nibabel.Nifti1Image(np.asarray(values, dtype), affine)
    content = bytearray(image.to_bytes())
    if header:
        raw = nibabel.Nifti1Header(bytes(content[:348]))
        for field, value in header.items():
            raw[field] = value
        content[:348] = raw.binaryblock
    return gzip.compress(bytes(content), 1, mtime=0)


def betas(session, trials):
    """(x, y, z, trials) int16 that differ everywhere."""
    return np.random.default_rng(session).integers(-9000, 9000, (*SHAPE, trials)).astype(np.int16)


def labels():
    """(x, y, z) int16: -1 outside, 0, and each stream with at least three voxels."""
    values = np.repeat(np.arange(-1, 8), 14)[:np.prod(SHAPE)].astype(np.int16)
    return np.random.default_rng(99).permutation(values).reshape(SHAPE)


def responses(sessions=SESSIONS):
    rows = ["SUBJECT\tSESSION\tRUN\tTRIAL\t73KID\tRT"]
    for session, ids in enumerate(sessions, start=1):
        rows += [f"1\t{session}\t{1 + trial // 4}\t{1 + trial % 4}\t{stimulus}\tNaN"
                 for trial, stimulus in enumerate(ids)]
    return ("\n".join(rows) + "\n").encode()


def expdesign(sessions=SESSIONS, shared=SHARED, **more):
    own = list(dict.fromkeys([*shared, *(stimulus for ids in sessions for stimulus in ids)]))
    order = [own.index(stimulus) + 1 for ids in sessions for stimulus in ids]
    content = io.BytesIO()
    scipy.io.savemat(content, {"sharedix": np.array([shared]), "subjectim": np.array([own]),
                               "masterordering": np.array([order])} | more)
    return content.getvalue()


def build(root, sessions=SESSIONS, shared=SHARED):
    """subj01 in the folder `root`."""
    put(root, DESIGN, expdesign(sessions, shared))
    put(root, RESPONSES, responses(sessions))
    put(root, ATLAS, nifti(labels()))
    put(root, CTAB, "\n".join(TABLE).encode())
    put(root, NCSNR, nifti(np.random.default_rng(7).uniform(0, 1, SHAPE).astype(np.float32)))
    for session, ids in enumerate(sessions, start=1):
        put(root, BETAS.format(session), nifti(betas(session, len(ids))))
    return Path(root)


def put_hdf5(root, session, values=None, libver="earliest", **how):
    """The .hdf5 beside a session's .nii.gz, as NSD's export code writes it; values: (x, y, z, trials)."""
    values = betas(session, len(SESSIONS[session - 1])) if values is None else values
    path = put(root, BETAS.format(session).replace(".nii.gz", ".hdf5"), b"")
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("betas", data=values.T, **{"chunks": (values.shape[3], 1, 1, 1)} | how)
    return path


def build_stimuli(root, count=20, side=6):
    path = put(root, STIMULI, b"")
    images = np.random.default_rng(1).integers(0, 256, (count, side, side, 3)).astype(np.uint8)
    with h5py.File(path, "w") as file:
        file["imgBrick"] = images
    return images


class FaultyS3:
    """Serves a folder as the bucket, over HTTP on loopback. `faults`: (part of a key, fault), each used once.

    A fault is a word, or a word and a number of bytes: "500", "503", "SlowDown", "denied", "missing", "no range",
    "no match", ("reset", n), ("cut", n), ("stall", n), ("length", by), ("corrupt", at), ("change", n); "HEAD 503" is
    for HEAD requests. An entry ending in "always" is kept. `log`: (method, path, headers) of every request.
    """

    def __init__(self, folder, page=1000):
        self.folder, self.page, self.faults, self.log = Path(folder), page, [], []
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"s3": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def fault(self, method, key):
        """The word and the number of the next fault of this request, ("", 0) if none."""
        for entry in self.faults:
            word, number = entry[1] if isinstance(entry[1], tuple) else (entry[1], 0)
            if entry[0] in key and word.startswith("HEAD ") == (method == "HEAD"):
                if entry[-1] != "always":
                    self.faults.remove(entry)
                return word.removeprefix("HEAD "), number
        return "", 0

    def gets(self, key):
        return [headers for method, path, headers in self.log if method == "GET" and key in path]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Clients that hang up are part of the tests."""


def _content(path):
    """A file's bytes, without reading them."""
    if not path.stat().st_size:
        return b""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


@functools.lru_cache
def _tag(path, size, time):
    return hashlib.md5(_content(path)).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait 40 ms for an answer

    def log_message(self, *_):
        pass

    def _answer(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if "Content-Length" not in dict(headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _error(self, status, code):
        self._answer(status, f"<Error><Code>{code}</Code></Error>".encode(), [("Content-Type", "application/xml")])

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        url = urlsplit(self.path)
        key = unquote(url.path).removeprefix(f"/{BUCKET}").strip("/")
        self.s3.log.append((self.command, self.path, dict(self.headers)))
        query = parse_qs(url.query)
        if "list-type" in query:
            self._list(query)
            return
        word, number = self.s3.fault(self.command, key)
        path = self.s3.folder / key
        if word in ("500", "503"):
            return self._error(int(word), "InternalError")
        if word == "SlowDown":
            return self._error(503, "SlowDown")
        if word == "denied":
            return self._error(403, "AccessDenied")
        if word == "missing" or not path.is_file():
            return self._error(404, "NoSuchKey")
        body, tag = _content(path), _tag(path, path.stat().st_size, path.stat().st_mtime_ns)
        if self.headers.get("If-Match", f'"{tag}"') != f'"{tag}"' and word != "no match":
            return self._error(412, "PreconditionFailed")
        total, start, stop, status = len(body), 0, len(body), 200
        headers = [("ETag", f'"{tag}"')]
        if "Range" in self.headers and word != "no range":
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            start, stop, status = int(first), min(total, int(last) + 1) if last else total, 206
            headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{total}"))
        if word == "corrupt":
            body = bytes(body[:number]) + bytes([body[number] ^ 255]) + bytes(body[number + 1:])
        body = body[start:stop]
        headers.append(("Content-Length", str(len(body) + (number if word == "length" else 0))))
        if word in ("cut", "reset", "stall", "change"):
            self._break_off(word, number, body, headers, status, path)
        else:
            self._answer(status, body, headers)
            if word == "length":
                self.close_connection = True

    def _break_off(self, word, number, body, headers, status, path):
        self.close_connection = True
        self._answer(status, body[:number], headers)
        self.wfile.flush()
        if word == "stall":
            time.sleep(1.0)
        if word == "change":
            changed = path.read_bytes()[::-1]
            path.unlink()  # what is mapped stays as it is
            path.write_bytes(changed)
        if word == "reset":
            time.sleep(0.1)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _list(self, query):
        prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
        folder = self.s3.folder
        keys = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        keys = [key for key in keys if key.startswith(prefix) and key > after]
        page, more = keys[:self.s3.page], len(keys) > self.s3.page
        entries = "".join(f"<Contents><Key>{escape(key)}</Key><Size>{(folder / key).stat().st_size}</Size></Contents>"
                          for key in page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        self._answer(200, f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{entries}{token}"
                          "</ListBucketResult>".encode(), [("Content-Type", "application/xml")])
