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


class SlowLink:
    """A relay to `target`, a URL. latency: seconds that each request is held back. connection, link: bytes a second
    from the server, of each connection and of all together. requests, received: what passed it so far."""

    def __init__(self, target, latency=0.04, connection=20e6 / 8, link=100e6 / 8):
        where = urlsplit(target)
        self._target, self._latency = (where.hostname, where.port), latency
        self._connection, self._link, self._free = connection, link, 0.0
        self.requests = self.received = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._relay, "127.0.0.1", 0), self._loop)
        self._server = started.result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self):
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _relay(self, client_reader, client_writer):
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            await asyncio.gather(self._up(client_reader, server_writer), self._down(server_reader, client_writer))
        except (ConnectionError, asyncio.CancelledError):
            pass  # whoever hangs up ends both
        finally:
            client_writer.close()
            server_writer.close()

    async def _up(self, reader, writer):
        while data := await reader.read(PIECE):
            if data.startswith(REQUESTS):
                self.requests += 1
                await asyncio.sleep(self._latency)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def _down(self, reader, writer):
        free = 0.0
        while data := await reader.read(PIECE):
            now = self._loop.time()
            free = max(now, free) + len(data) / self._connection
            self._free = max(now, self._free) + len(data) / self._link
            await asyncio.sleep(max(free, self._free) - now)
            self.received += len(data)
            writer.write(data)
            await writer.drain()
        writer.close()


def main():
    """A relay in a process of its own, for benchmarks: prints its URL, then for each line it reads what passed."""
    with SlowLink(sys.argv[1]) as link:
        print(link.url, flush=True)
        for _ in sys.stdin:
            print(json.dumps({"requests": link.requests, "received": link.received}), flush=True)


if __name__ == "__main__":
    main()
