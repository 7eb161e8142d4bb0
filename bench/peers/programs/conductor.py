"""A closed loop of checkouts against a peer, in step with the process that measures.

Warms up, says `warm`, waits for a line; does the measured checkouts, writes them down, says
`measured`, waits for a line; ends. So all loaders of a run begin at once, and CPU is read while
nothing runs. Runs in the peer's own environment: imports the standard library alone.
"""

import argparse
import asyncio
import json
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

Checkout = Callable[[str, bool], Awaitable[str]]
"""Does one checkout to its end: (id, whether the buyer has no funds) -> COMPLETED or ABORTED."""

Row = tuple[str, bool, str, float]
"""Id, whether it should be declined, outcome (or `error: ...`), milliseconds."""

ERROR_CHARACTERS_MAX: Final = 200


def arguments(prog: str) -> argparse.ArgumentParser:
    """Give a parser of what every loader takes."""
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False)
    parser.add_argument("--sagas", type=int, required=True)
    parser.add_argument("--warm", type=int, required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--decline", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def is_declined(index: int, percent: int) -> bool:
    """Say whether checkout `index` is one of the declined ones: evenly spread, always the same."""
    return (index * percent) % 100 + percent >= 100


async def closed_loop(checkout: Checkout, sagas: int, in_flight: int, percent: int) -> list[Row]:
    """Keep `in_flight` checkouts going until `sagas` are final; random ids."""
    rows: list[Row] = []
    indices = iter(range(sagas))

    async def one_after_the_other() -> None:
        for index in indices:
            saga_id, declined = "bench-" + secrets.token_hex(12), is_declined(index, percent)
            begun = time.perf_counter()
            try:
                outcome = await checkout(saga_id, declined)
            except Exception as error:  # counted, and told: a peer that fails is a finding
                outcome = f"error: {type(error).__name__}: {error} ({error.__cause__!r})"[
                    :ERROR_CHARACTERS_MAX
                ]
            rows.append((saga_id, declined, outcome, (time.perf_counter() - begun) * 1000))

    await asyncio.gather(*(one_after_the_other() for _ in range(min(in_flight, sagas))))
    return rows


async def conduct(
    args: argparse.Namespace, checkout: Checkout, told: Callable[[], dict[str, Any]] = dict
) -> None:
    """Play a loader's whole part.

    Args:
        args: as `arguments` reads them.
        checkout: does one.
        told: what else this process knows of the peer, such as settings read back.
    """
    warm = await closed_loop(checkout, args.warm, args.in_flight, args.decline)
    await _say("warm")
    begun = time.monotonic()
    rows = await closed_loop(checkout, args.sagas, args.in_flight, args.decline)
    ended = time.monotonic()
    written = {"begun": begun, "ended": ended, "warm": warm, "rows": rows, "told": told()}
    args.out.write_text(json.dumps(written))
    await _say("measured")


async def _say(word: str) -> None:
    print(word, flush=True)
    if not await asyncio.to_thread(sys.stdin.readline):
        sys.exit("nobody listens any more")
