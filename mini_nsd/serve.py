"""Serve a simulated dataset over S3 on this machine's loopback, under the name of the real bucket.

The server is moto's: it speaks S3 well enough for listing, Range and If-Match, asks for no credentials, and keeps the
objects in memory or, from 16 MB on, in temporary files. Nothing leaves this machine, and what is served is SIMULATED.

Reads   DIR, as written by python -m mini_nsd.build
Writes  nothing but, on request, the --ready-file; on stdout one line to paste into a shell, then serves until stopped
"""
import argparse
import contextlib
import logging
import mmap
import signal
import socket
import threading
import urllib.request
from pathlib import Path

import boto3
import flask
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from moto.s3.models import FakeKey
from moto.server import ThreadedMotoServer

from mini_nsd.world_sizes import MARKER
from utils import cli
from utils.errors import Problem
from utils.storage import text_files

BUCKET = "natural-scenes-dataset"
PUBLIC = {"ACL": "public-read"}         # as NSD is; moto refuses anonymous readers otherwise
PART = 16 << 20         # bytes; larger files are uploaded in parts


@contextlib.contextmanager
def serving(folder, port=0):
    """Serve the files below `folder` as the bucket natural-scenes-dataset; yields the endpoint's URL.

    port: 0 picks a free one. One at a time in a process: moto's objects belong to the process, and are dropped at the
    end. Raises Problem if the folder holds no simulated world or the port is taken.
    """
    folder = Path(folder)
    if not (folder / MARKER).exists():
        raise Problem(f"{folder} holds no simulated world", f"run python -m mini_nsd.build {folder}")
    server = _start(port)
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    try:
        _upload(folder, endpoint)
        yield endpoint
    finally:
        reset = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset, timeout=30).close()
        server.stop()


def _read_ranges_alone():
    """Let moto read of a large object what a Range asks for: it reads the whole for each, 0.2 s for the stimuli."""
    whole = FakeKey.value

    def value(key):
        buffer = key._value_buffer
        if flask.has_request_context() and "Range" in flask.request.headers and getattr(buffer, "_rolled", False):
            buffer.flush()
            return mmap.mmap(buffer.fileno(), 0, access=mmap.ACCESS_READ)
        return whole.fget(key)
    FakeKey.value = property(value, whole.fset)


_read_ranges_alone()


def _start(port):
    # On a port that is taken the server's thread would die, and start() wait for it for ever.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Problem(f"port {port} cannot be used ({error.strerror})",
                          "name another, or 0 for a free one") from error
    logging.getLogger("werkzeug").setLevel(logging.ERROR)       # or it writes a line for every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    return server


def _upload(folder, endpoint):
    # The keys are no one's: boto3 wants some to sign with, and moto does not look at them.
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="simulated",
                          aws_secret_access_key="simulated", config=Config(s3={"addressing_style": "path"}))
    client.create_bucket(Bucket=BUCKET)
    in_parts = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, use_threads=False)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in paths)
    with cli.progress(total=size, desc="simulated NSD to loopback S3", unit="B", unit_scale=True) as bar:
        for path in paths:
            client.upload_file(str(path), BUCKET, path.relative_to(folder).as_posix(), Config=in_parts,
                               Callback=bar.update, ExtraArgs=PUBLIC)
    client.close()


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m mini_nsd.serve", description=__doc__,
                                     epilog="example:\n  python -m mini_nsd.serve demo/nsd --port 9000",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder written by python -m mini_nsd.build")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--ready-file", type=Path, metavar="F",
                        help="write the endpoint's URL there once it can be read")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    args = cli.parse(parser, argv)
    if not 0 <= args.port <= 65535:
        parser.error("--port must be from 0 to 65535")

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with serving(args.folder, args.port) as endpoint:
        if args.ready_file:
            text_files.write_text(args.ready_file, endpoint + "\n")
        print(f"export NSD_ROOT=s3://{BUCKET} AWS_ENDPOINT_URL_S3={endpoint}", flush=True)
        stopped.wait()


if __name__ == "__main__":
    cli.run(main)
