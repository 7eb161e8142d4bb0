"""A process between two others that passes their bytes on, and spoils them when it is told to.

    python -m tests.chaos.relay SEED LISTEN=FORWARD …   addresses: a path, or PORT for 127.0.0.1

Reads words on stdin, one a line, and answers each with a line of JSON, what it has done since its
start. Knows nothing of frames. What it can do, to all of its connections, new ones too:

    clean          pass on; a connection that has lost bytes goes on losing them
    delay          each chunk waits DELAY_S
    reset          every connection is cut, again and again
    up, down       what goes to the listener's owner (up) or comes from it (down) is swallowed
    trickle        one byte at a time
    flip           one bit of each FLIP_BYTES or so, anywhere
    flip_head      one bit among the first bytes of every FLIP_CHUNKS-th chunk, where lengths stand

Ends with its stdin.
"""

import asyncio
import json
import random
import socket
import struct
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

CHUNK_BYTES: Final = 64 << 10
DELAY_S: Final = 0.1
RESET_S: Final = 0.2
FLIP_BYTES: Final = 4_000
FLIP_CHUNKS: Final = 4
HEAD_BYTES: Final = 4
WAYS: Final = ("clean", "delay", "reset", "up", "down", "trickle", "flip", "flip_head")
_RST: Final = struct.pack("ii", 1, 0)  # SO_LINGER: a close that is a reset


class Relay:
    """Connections, and what is done to them.

    Args:
        seed: of the bits that are flipped.

    Attributes:
        way: what is done now.
        done: how often, by what; `swallowed` and `trickled` in bytes.
    """

    def __init__(self, seed: int) -> None:
        self.way = "clean"
        self.done: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._until_flip = FLIP_BYTES
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, at: str, to: str) -> None:
        """Take connections at an address, and connect each to another."""

        async def took(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.done["connections"] += 1
            try:
                far_reader, far_writer = await _connect(to)
            except OSError:
                writer.close()
                return
            await asyncio.gather(
                self._pump(reader, far_writer, "up", writer),
                self._pump(far_reader, writer, "down", far_writer),
            )

        if at.isdecimal():
            await asyncio.start_server(took, "127.0.0.1", int(at))
        else:
            await asyncio.start_unix_server(took, at)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: str,
        other: asyncio.StreamWriter,
    ) -> None:
        lost = False
        self._open.add(writer)
        try:
            while data := await reader.read(CHUNK_BYTES):
                if lost or self.way == direction:
                    lost = True
                    self.done["swallowed"] += len(data)
                else:
                    await self._pass(bytearray(data), writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            for each in (writer, other):  # half a connection is none
                with suppress(OSError, RuntimeError):
                    each.close()

    async def _pass(self, data: bytearray, writer: asyncio.StreamWriter) -> None:
        if self.way == "delay":
            self.done["delayed"] += 1
            await asyncio.sleep(DELAY_S)
        elif self.way == "flip":
            self._until_flip -= len(data)
            if self._until_flip <= 0:
                self._until_flip = self._rng.randrange(1, 2 * FLIP_BYTES)
                self._flip(data, len(data))
        elif self.way == "flip_head":
            self.done["chunks"] += 1
            if self.done["chunks"] % FLIP_CHUNKS == 0:
                self._flip(data, min(HEAD_BYTES, len(data)))
        elif self.way == "trickle":
            for at in range(len(data)):
                writer.write(data[at : at + 1])
                await writer.drain()
                await asyncio.sleep(0)  # the transport sends it by itself
                self.done["trickled"] += 1
            return
        writer.write(data)
        await writer.drain()

    def _flip(self, data: bytearray, among: int) -> None:
        data[self._rng.randrange(among)] ^= 1 << self._rng.randrange(8)
        self.done["flipped"] += 1

    async def reset(self) -> None:
        """Cut what is open, again and again, while that is what is done."""
        while self.way == "reset":
            for writer in list(self._open):
                cut = writer.get_extra_info("socket")
                with suppress(OSError):
                    if cut.family != socket.AF_UNIX:
                        cut.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
                writer.transport.abort()
                self.done["reset"] += 1
            await asyncio.sleep(RESET_S)

    def turn_to(self, way: str) -> None:
        """Do something else from now on."""
        self.way = way
        if way == "reset":
            task = asyncio.get_running_loop().create_task(self.reset())
            self._tasks.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(self._tasks.discard)


async def _connect(to: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if to.isdecimal():
        return await asyncio.open_connection("127.0.0.1", int(to))
    return await asyncio.open_unix_connection(to)


async def _run(pairs: Sequence[str], seed: int) -> None:
    relay = Relay(seed)
    for pair in pairs:
        at, _, to = pair.partition("=")
        await relay.listen(at, to)
    print(json.dumps(relay.done), flush=True)
    words = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    while line := (await words.readline()).decode().strip():
        if line in WAYS:
            relay.turn_to(line)
        print(json.dumps(relay.done), flush=True)


def main(argv: Sequence[str]) -> int:
    """Run it; the first word is the seed."""
    asyncio.run(_run(argv[1:], int(argv[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
