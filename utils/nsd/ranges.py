"""Parts of one version of an object, read by HTTP Range, many at a time, and kept in memory.

A gap between two parts costs bytes, a request costs latency: which parts are read together is decided by what the link
was seen to do. A fault that may pass is tried again as in `retrying`; an object that changed is refused.
"""
import bisect
import collections
import io
import itertools
import os
import re
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np

from utils import lazy
from utils.errors import Problem
from utils.nsd import retrying

botocore = lazy.module("botocore")

CONNECTIONS = 48  # requests at a time, to hide 40 ms each behind the others; S3 takes thousands
LONGEST = 2 << 20  # bytes of a request that joins several parts: beyond, two connections beat one
GAPS = (0, *(1 << power for power in range(10, 21)))  # bytes between two parts that may be read for nothing
PIECE = 4 << 20  # bytes of a range of an object that is read from end to end
AHEAD = 16  # of them that are read at a time, and held
SMALL = 16 << 10  # bytes of an answer whose time is latency
MANY = 8  # requests of each connection from which they tell what is shared: the link, or the processor
SPARED = 1.5  # time that fewer bytes may cost, as a multiple of the shortest: others use the link too


def connections(workers=1):
    """How many requests at a time each of so many processes makes."""
    return max(4, CONNECTIONS // workers)


class Link:
    """What the way to the objects was seen to do.

    latency: seconds that an answer takes to begin. rate: bytes a second of one connection. total: of all together.
    request: seconds that a request takes which no other can use. Until something was read, and on a local disk, they
    are assumptions.
    """

    SHARE = 4  # connections that a link is taken to carry at full rate before several were seen at once

    def __init__(self, local=False):
        self.latency, self.rate, self.request = (1e-4, 1e9, 0) if local else (0.05, 2.5e6, 0.001)
        self.total = self.rate * (1 if local else self.SHARE)
        self.local, self._seen = local, set()

    def seconds(self, requests, size, connections=CONNECTIONS):
        """What so many requests for so many bytes take."""
        if self.local:
            connections = 1
        return max(size / self.total, (requests * self.latency + size / self.rate) / connections,
                   requests * self.request)

    def learn(self, requests, size, seconds, connections=CONNECTIONS):
        """Take in what requests that went together took."""
        if self.local:
            return
        if requests == 1:
            self._learn_one(size, seconds)
        elif requests >= MANY * connections:
            alone = (requests * self.latency + size / self.rate) / min(requests, connections)
            # Slower than connections that do not disturb each other: they share something, which is full.
            full = seconds > 1.2 * alone
            if size / requests > SMALL:
                self.total = size / seconds if full else max(self.total, size / seconds)
            else:
                self.request = seconds / requests if full else min(self.request, seconds / requests)

    def _learn_one(self, size, seconds):
        if size <= SMALL:
            self.latency = min(self.latency, seconds) if "latency" in self._seen else seconds
            self._seen.add("latency")
        elif size >= 8 * SMALL:
            rate = size / max(seconds - self.latency, 1e-3)
            self.rate = max(self.rate, rate) if "rate" in self._seen else rate
            self._seen.add("rate")
            self.total = max(self.total, self.rate) if "total" in self._seen else self.rate * self.SHARE


def plan(parts, link, connections=CONNECTIONS):
    """[(start, stop)] in which the parts, (start, size), are best read over the link: in the shortest time, or with
    fewer bytes in little more."""
    starts, sizes = np.array(sorted(set(parts)), np.int64).reshape(-1, 2).T
    stops = np.maximum.accumulate(starts + sizes)
    between = np.maximum(starts[1:] - stops[:-1], 0)
    tried = []
    for gap in GAPS:
        size = int(stops[-1] - starts[0] - between[between > gap].sum())
        requests = max(1 + int((between > gap).sum()), size // LONGEST)
        tried.append((link.seconds(requests, size, connections), size, gap))
    shortest = min(seconds for seconds, _, _ in tried)
    gap = min((each for each in tried if each[0] <= SPARED * shortest), key=lambda each: each[1])[2]
    return _joined(starts.tolist(), stops.tolist(), gap)


def _joined(starts, stops, gap):
    """[(start, stop)] that cover the parts, joining those that lie at most `gap` bytes apart."""
    found = []
    for start, stop in zip(starts, stops):
        if found and start - found[-1][1] <= gap and stop - found[-1][0] <= LONGEST:
            found[-1][1] = stop
        else:
            found.append([start, stop])
    return found


class Ranged:
    """One version of an object. size: its bytes. tag: see s3.Version. requests, received: what was asked for and came.

    Raises Problem for a missing object, one that changed since `version`, and faults that do not pass.
    """

    def __init__(self, root, key, link, version=None, connections=CONNECTIONS):
        self.name = root.name(key)
        self.size, self.tag = version or root.version(key)
        self.link, self.connections = link, connections
        self.requests = self.received = 0
        self._get = (_Local if root.local else _Remote)(root, key, self.size, self.tag, connections)
        self._starts, self._blocks, self._reach, self._fetched = [], [], [], 0
        self._pool = None

    def fetch(self, parts):
        """Read the parts, [(start, size)], and keep them."""
        ranges = plan(parts, self.link, self.connections)
        began = time.perf_counter()
        if len(ranges) == 1 or self.link.local:
            blocks = [self._get(*each) for each in ranges]
        else:
            self._pool = self._pool or ThreadPoolExecutor(self.connections)
            running = [self._pool.submit(self._get, *each) for each in ranges]
            try:
                blocks = [future.result() for future in running]
            except BaseException:
                for future in running:
                    future.cancel()
                raise
        size = sum(map(len, blocks))
        self.link.learn(len(ranges), size, time.perf_counter() - began, self.connections)
        self.requests += len(ranges)
        self.received += size
        self._fetched += 1
        kept = [(start, block, turn) for start, (block, turn) in zip(self._starts, self._blocks)]
        kept += [(start, block, self._fetched) for (start, _), block in zip(ranges, blocks)]
        self._keep(kept)

    def _keep(self, blocks):
        blocks.sort(key=lambda each: (each[0], len(each[1])))
        self._starts = [start for start, _, _ in blocks]
        self._reach = list(itertools.accumulate((start + len(block) for start, block, _ in blocks), max))
        self._blocks = [(block, turn) for _, block, turn in blocks]

    def find(self, start, size):
        """Those bytes if they were read, else None."""
        at = bisect.bisect_right(self._starts, start) - 1
        while at >= 0 and self._reach[at] >= start + size:  # a long block may lie behind short ones that it covers
            block, offset = self._blocks[at][0], start - self._starts[at]
            if offset + size <= len(block):
                return memoryview(block)[offset:offset + size]
            at -= 1
        return None

    def forget(self):
        """Let go of what the latest `fetch` brought."""
        self._keep([(start, block, turn) for start, (block, turn) in zip(self._starts, self._blocks)
                    if turn != self._fetched])

    def stream(self, step):
        """The object from its beginning as a readable binary stream that asks for `step` bytes at a time."""
        return _Stream(self, step)

    def close(self):
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._get.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def in_order(root, key, version, start):
    """Yield the bytes of an object of S3 from `start` on, in order, read ahead over several connections."""
    get = _Remote(root, key, *version, AHEAD)
    pool, running = ThreadPoolExecutor(AHEAD), collections.deque()
    try:
        for at in range(start, version.size, PIECE):
            running.append(pool.submit(get, at, min(at + PIECE, version.size)))
            if len(running) == AHEAD:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        get.close()
        pool.shutdown(wait=False, cancel_futures=True)


class _Stream(io.RawIOBase):
    def __init__(self, ranged, step):
        self._ranged, self._step = ranged, step
        self._at, self._left = 0, b""

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self._left and self._at < self._ranged.size:
            size = min(self._step, self._ranged.size - self._at)
            self._ranged.fetch([(self._at, size)])
            self._left = bytes(self._ranged.find(self._at, size))
            self._ranged.forget()
            self._at += size
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


class _Local:
    """Reads ranges of a file."""

    def __init__(self, root, key, *_):
        self._name = root.name(key)
        self._file = root.open(key)
        self._one = threading.Lock()

    def __call__(self, start, stop):
        with self._one:
            self._file.seek(start)
            found = self._file.read(stop - start)
        if len(found) < stop - start:
            raise retrying.Changed(self._name)
        return found

    def close(self):
        self._file.close()


class _Remote:
    """Reads ranges of an object of S3, each in one request.

    The requests are made by botocore's HTTP session, with its proxies and certificates, without the layers of its
    client, which take longer than all the rest: a session of NSD is thousands of small ranges.
    """

    def __init__(self, root, key, size, tag, connections):
        self._name, self._size, self._tag = root.name(key), size, tag
        self._url = root.client.generate_presigned_url(  # of an anonymous client: the plain address
            "get_object", Params={"Bucket": root.bucket, "Key": root._full(key)})
        self._session = _session(self._url, connections)
        self._told, self._closed = threading.Event(), threading.Event()

    def __call__(self, start, stop):
        patience = retrying.Patience(self._name, self._told, self._closed.wait)
        while True:
            if self._closed.is_set():
                raise CancelledError
            try:
                return self._once(start, stop)
            except (retrying.Fault, *retrying.transient_errors()) as fault:
                patience.wait(f"{retrying.words(fault)} in bytes {start:,} to {stop:,}")

    def _once(self, start, stop):
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        if self._tag:
            headers["If-Match"] = f'"{self._tag}"'
        answer = self._session.send(botocore.awsrequest.AWSPreparedRequest("GET", self._url, headers, None, True))
        try:
            self._check(answer, start, stop)
            found = answer.content
        except (Problem, retrying.Fault, *retrying.transient_errors()):
            answer.raw.close()
            raise
        if len(found) != stop - start:
            raise retrying.Fault(f"the body ended {stop - start - len(found):,} bytes early")
        return found

    def _check(self, answer, start, stop):
        """What the head of an answer says, before anything of its body is read."""
        if answer.status_code not in (200, 206):
            code = re.search(rb"<Code>(\w+)</Code>", answer.raw.read(SMALL))
            raise retrying.judged(botocore.exceptions.ClientError(
                {"Error": {"Code": code[1].decode() if code else ""},
                 "ResponseMetadata": {"HTTPStatusCode": answer.status_code}}, "GetObject"), self._name)
        if answer.headers.get("ETag", "").strip('"') != self._tag:
            raise retrying.Changed(self._name)
        if answer.status_code != 206 or answer.headers.get("Content-Range") != \
                f"bytes {start}-{stop - 1}/{self._size}":
            raise retrying.Fault("the server ignored Range")
        if answer.headers.get("Content-Length") != str(stop - start):
            raise retrying.Fault(f"Content-Length says {answer.headers.get('Content-Length')}, not {stop - start}")

    def close(self):
        """Requests that still run end soon. The session stays: the next object's go over its connections."""
        self._closed.set()


_sessions = {}


def _session(url, connections):
    """This process's HTTP session: connections must not be shared across a fork."""
    who = os.getpid(), connections
    if who not in _sessions:
        _sessions.clear()
        _sessions[who] = botocore.httpsession.URLLib3Session(
            verify=os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or True,
            proxies=botocore.utils.get_environ_proxies(url), timeout=(min(retrying.STALL, 10), retrying.STALL),
            max_pool_connections=connections)
    return _sessions[who]
