"""A slow link on loopback: relays connections to a server, delays each request, caps rates, and counts.

It knows HTTP only so far as to tell where a request begins; connections are opened without delay.
"""
import asyncio
import json
import sys
import threading
from urllib.parse import urlsplit

REQUESTS = (b"GET ", b"HEAD ", b"PUT ", b"POST ")
PIECE = 16 << 10  # bytes relayed at a time
HELD = 64 << 10  # bytes of a connection that wait for their time; the server is not heard until they are fewer


class SlowLink:
    """A relay to `target`, a URL. latency: seconds that each request is held back. connection, link: bytes a second
    from the server, of each connection and of all together. requests, received: what passed it so far."""

    def __init__(self, target, latency=0.04, connection=20e6 / 8, link=100e6 / 8):
        where = urlsplit(target)
        self.target, self.latency = (where.hostname, where.port), latency
        self.connection, self.link, self.free = connection, link, 0.0
        self.requests = self.received = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            self._loop.create_server(lambda: _Client(self, self._loop), "127.0.0.1", 0), self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


class _Client(asyncio.Protocol):
    """The client's end of a connection; it opens the other, to the server."""

    def __init__(self, relay, loop):
        self.relay, self.loop, self.server, self.waiting = relay, loop, None, []

    def connection_made(self, transport):
        self.transport = transport
        self.loop.create_task(self._connect())

    async def _connect(self):
        try:
            self.server, _ = await self.loop.create_connection(lambda: _Server(self), *self.relay.target)
        except OSError:
            self.transport.close()
            return
        for data in self.waiting:
            self.server.write(data)

    def data_received(self, data):
        if data.startswith(REQUESTS):
            self.relay.requests += 1
            self.loop.call_later(self.relay.latency, self._send, data)
        else:
            self._send(data)

    def _send(self, data):
        if self.server is None:
            self.waiting.append(data)
        else:
            self.server.write(data)

    def connection_lost(self, _):
        if self.server is not None:
            self.server.close()


class _Server(asyncio.BufferedProtocol):
    """The server's end: what comes is passed on when the connection's and the link's rates allow."""

    def __init__(self, client):
        self.client, self.relay, self.loop = client, client.relay, client.loop
        self.free, self.held, self.buffer = 0.0, 0, bytearray(PIECE)

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, _):
        return self.buffer

    def buffer_updated(self, size):
        now, relay = self.loop.time(), self.relay
        self.free = max(now, self.free) + size / relay.connection
        relay.free = max(now, relay.free) + size / relay.link
        self.held += size
        if self.held > HELD:
            self.transport.pause_reading()
        self.loop.call_at(max(self.free, relay.free), self._pass, bytes(self.buffer[:size]))

    def _pass(self, data):
        if self.client.transport.is_closing():  # the client hung up
            return
        self.relay.received += len(data)
        self.client.transport.write(data)
        self.held -= len(data)
        if self.held <= HELD and not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, _):
        self.loop.call_at(max(self.free, self.relay.free, self.loop.time()), self.client.transport.close)


def main():
    """A relay in a process of its own, for benchmarks: prints its URL, then for each line it reads what passed."""
    with SlowLink(sys.argv[1]) as link:
        print(link.url, flush=True)
        for _ in sys.stdin:
            print(json.dumps({"requests": link.requests, "received": link.received}), flush=True)


if __name__ == "__main__":
    main()
