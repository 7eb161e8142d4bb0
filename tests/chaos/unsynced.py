"""What a process wrote and did not sync, taken back after its end: a machine that lost its power.

`unsynced.c`, preloaded, keeps what was before and after each change. Whether a change that was not
synced survives is drawn for each: all are lost, or some, of one maybe a part, in sectors. Not
modelled: names of files that a directory has not synced; what is written to a mapping.
"""

import os
import random
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

SOURCE: Final = Path(__file__).with_name("unsynced.c")
SECTOR_BYTES: Final = 512
WRITE, CUT, SYNC, GONE = 1, 2, 3, 4
_HEAD: Final = struct.Struct("IIqqqq")


class NoCompiler(Exception):
    """The preloaded library cannot be built."""


class Change(NamedTuple):
    """A change of a file: what stood at an offset, what came there, how long the file was."""

    kind: int
    path: str
    offset: int
    before: bytes
    after: bytes
    size: int


def build(source: Path, folder: Path) -> Path:
    """Compile a library that is preloaded.

    Raises:
        NoCompiler: with what to do, for people.
    """
    library = folder / f"{source.stem}.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(source), "-ldl"]
    try:
        made = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        raise NoCompiler("cc is not there; on Debian and Ubuntu: apt-get install gcc") from None
    if made.returncode != 0:
        raise NoCompiler(made.stderr.decode(errors="replace"))
    return library


def environment(library: Path, under: Path, log: Path, *, lies: bool = False) -> dict[str, str]:
    """Give what a process needs in its environment.

    Args:
        library: as built.
        under: only files below are kept.
        log: of the changes; of one process.
        lies: a sync does nothing and says that it did.
    """
    given = {"LD_PRELOAD": library, "UNSYNCED_UNDER": f"{under}/", "UNSYNCED_LOG": log}
    env = {name: str(value) for name, value in given.items()}
    return {**env, "UNSYNCED_LIES": "1"} if lies else env


def lose(log: Path, rng: random.Random) -> int:
    """Take back what was not synced, or some of it; give the bytes that were lost."""
    open_: dict[str, list[Change]] = {}
    for change in _read(log):
        if change.kind in {SYNC, GONE}:
            open_.pop(change.path, None)
        else:
            open_.setdefault(change.path, []).append(change)
    lost = 0
    for path, changes in open_.items():
        with suppress(FileNotFoundError):
            lost += _lose(path, changes, rng)
    return lost


def _lose(path: str, changes: list[Change], rng: random.Random) -> int:
    lost = 0
    share = rng.choice((0.0, 0.0, 0.3, 0.7))  # of the changes that survive
    file = os.open(path, os.O_RDWR)
    try:
        for change in reversed(changes):
            os.pwrite(file, change.before, change.offset)
            os.ftruncate(file, change.size)
        for change in changes:
            if rng.random() >= share:
                lost += len(change.after) or len(change.before)
            elif change.kind == CUT:
                os.ftruncate(file, change.offset)
            else:
                kept = len(change.after)
                if rng.random() < 0.3:
                    kept = rng.randrange(0, kept + 1, SECTOR_BYTES)
                    lost += len(change.after) - kept
                os.pwrite(file, change.after[:kept], change.offset)
    finally:
        os.close(file)
    return lost


def _read(log: Path) -> Iterator[Change]:
    """Read a log as far as it is whole: its process was killed, maybe in the middle of a record."""
    data = log.read_bytes() if log.exists() else b""
    at = 0
    while at + _HEAD.size <= len(data):
        kind, path_bytes, offset, before, after, size = _HEAD.unpack_from(data, at)
        parts = []
        at += _HEAD.size
        for length in (path_bytes, before, after):
            parts.append(data[at : at + length])
            at += length
        if at > len(data):
            return  # a change that was not made yet
        yield Change(kind, os.fsdecode(parts[0]), offset, parts[1], parts[2], size)
