"""A TCP proxy between a subscriber and a ZMTP publisher that loses, doubles, swaps, delays and cuts what passes.

    python3 tests/python/zmtp_proxy.py '{"host": "127.0.0.1", "port": 5557}'

It follows the frames that the publisher sends, so what it loses is whole messages, as a publisher loses them.
"""

import asyncio
import json
import os
import socket
import struct
import sys

from steps import answer

GREETING_BYTES = 64


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy, subscriber, publisher):
        self.proxy = proxy
        self.subscriber = subscriber
        self.publisher = publisher
        self.is_frozen = False
        self.swapped = None

    async def frame(self, reader):
        """The next frame as (flags, its bytes)."""
        head = await reader.readexactly(2)
        length = head[1]
        if head[0] & 2:
            head += await reader.readexactly(7)
            length = struct.unpack(">Q", head[1:])[0]
        return head[0], head + await reader.readexactly(length)

    async def upstream(self):
        """From subscriber to publisher: passed on as it is."""
        reader = self.subscriber[0]
        self.publisher[1].write(await reader.readexactly(GREETING_BYTES))
        while True:
            flags, frame = await self.frame(reader)
            if flags & 4 and frame[2:7] == b"\4PONG":
                self.proxy.counts["pongs_to_publisher"] += 1
            if not self.is_frozen:
                self.publisher[1].write(frame)
                await self.publisher[1].drain()

    async def downstream(self):
        """From publisher to subscriber: through the faults."""
        reader = self.publisher[0]
        greeting = bytearray(await reader.readexactly(GREETING_BYTES))
        if self.proxy.minor is not None:
            greeting[11] = self.proxy.minor
        self.subscriber[1].write(greeting)
        message = b""
        while True:
            await self.proxy.is_flowing.wait()
            flags, frame = await self.frame(reader)
            if flags & 4:
                if frame[2:7] == b"\4PONG":
                    self.proxy.counts["pongs_to_subscriber"] += 1
                self.write(frame)
                await self.drain()
                continue
            message += frame
            if not flags & 1:
                self.proxy.counts["messages"] += 1
                self.faulty(message)
                message = b""
                await self.drain()
            self.proxy.changed()

    def faulty(self, message):
        fault = self.proxy.next_fault()
        if fault == "drop":
            return
        if fault == "cut":
            # Half of it, then the end.
            self.write(message[: len(message) // 2])
            self.subscriber[1].close()
            raise ConnectionAbortedError
        if fault == "swap" and self.swapped is None:
            self.swapped = message
            return
        self.write(message)
        if fault == "double":
            self.write(message)
        if self.swapped is not None:
            self.write(self.swapped)
            self.swapped = None

    def write(self, data):
        if not self.is_frozen:
            self.subscriber[1].write(data)

    async def drain(self):
        if not self.is_frozen:
            await self.subscriber[1].drain()


class Proxy:
    def __init__(self, options):
        self.options = options
        self.minor = options.get("minor")
        self.faults = []
        self.links = set()
        self.counts = dict.fromkeys(("connections", "messages", "pongs_to_publisher", "pongs_to_subscriber"), 0)
        self.is_flowing = asyncio.Event()
        self.is_flowing.set()
        self.change = asyncio.Event()

    def changed(self):
        self.change.set()

    def next_fault(self):
        return self.faults.pop(0) if self.faults else None

    async def link(self, reader, writer):
        way = socket.socket()
        way.setblocking(False)
        # What the proxy doesn't read soon piles up at the publisher.
        way.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        try:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(way, (self.options["host"], self.options["port"]))
            publisher = await asyncio.open_connection(sock=way, limit=1 << 14)
        except OSError:
            way.close()
            writer.close()
            return
        link = Link(self, (reader, writer), publisher)
        self.links.add(link)
        self.counts["connections"] += 1
        self.changed()
        ways = [asyncio.create_task(link.upstream()), asyncio.create_task(link.downstream())]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        if link.is_frozen:
            # Nor does an end of it pass, until the subscriber gives up.
            await asyncio.wait(ways[:1])
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        self.links.discard(link)
        for end in (writer, publisher[1]):
            end.close()

    async def step(self, fields):
        do = fields["do"]
        if do == "faults":
            # One per message from now on; null for none.
            self.faults += fields["next"]
        elif do == "pause":
            # What the publisher sends piles up there.
            self.is_flowing.clear()
        elif do == "resume":
            self.is_flowing.set()
        elif do == "freeze":
            # The connections stay, and nothing passes any more.
            for link in self.links:
                link.is_frozen = True
        elif do == "reset":
            for link in self.links:
                raw = link.subscriber[1].get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                link.subscriber[1].transport.abort()
        elif do == "await":
            while any(self.counts[name] < count for name, count in fields["counts"].items()):
                self.change.clear()
                try:
                    await asyncio.wait_for(self.change.wait(), 0.05)
                except asyncio.TimeoutError:
                    pass
        else:
            raise ValueError(do)
        return dict(self.counts)


async def main():
    proxy = Proxy(json.loads(sys.argv[1]))
    server = await asyncio.start_server(proxy.link, "127.0.0.1", 0, limit=1 << 20)
    answer(port=server.sockets[0].getsockname()[1])
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb"))
    while line := await reader.readline():
        answer(**await proxy.step(json.loads(line)))
    os._exit(0)


asyncio.run(main())
