"""`sagacity spans`: follows the sagas that end, and exports those that a client traces.

    each shard: next page of traced sagas -> their histories -> spans -> exporter -> next page

A program of its own that asks what anybody may ask: nothing of it runs in a shard, and a cluster
without it pays nothing. The journal is its queue: it asks for the next page when the last one has
left, so what it holds is bounded, and a collector that is away costs time and no saga. In one run a
saga is exported once; what cannot be is counted.
"""

import argparse
import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from msgspec import Struct, structs

from cluster import render
from cluster.directory import find_running
from cluster.spans import SagaSpans, spans_of
from cluster.telemetry import Log, configure_logging
from sagacity.client import AsyncClient
from sagacity.errors import Malformed, NoOutcome, NotTaken, SagacityError, places

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

ASKED_AT_ONCE: Final = 4  # histories; a shard tells as many in a turn, and sagas go on in between
SENT_AT_ONCE: Final = 64  # sagas
IDLE_S: Final = 1.0  # between two looks at shards that had nothing left
AGAIN_S: Final = 1.0  # after what was not taken; doubles
AGAIN_MAX_S: Final = 60.0
TRIES: Final = 10  # of an export, seven minutes; then its sagas are dropped
TOLD_EVERY_S: Final = 60.0

_MISSING: Final = "`sagacity spans` needs OpenTelemetry: pip install 'sagacity[otel]'"


class Asked(Protocol):
    """The questions, as AsyncClient answers them."""

    async def traced(self, shard: int, place: int | None = None) -> dict[str, Any]:
        """Give a page of traced sagas."""

    async def show(self, saga_id: str) -> dict[str, Any]:
        """Give a saga's history."""


class Counts(Struct):
    """What a run has done.

    Args:
        sagas: exported.
        spans: theirs.
        dropped: sagas that the exporter did not take in TRIES.
        lost: finished sagas, traced or not, that went past retention before they were asked for,
            or whose history cannot be told.
    """

    sagas: int = 0
    spans: int = 0
    dropped: int = 0
    lost: int = 0


class Stopped(Exception):
    """Somebody wants the run to end."""


class Follower:
    """Reads what has ended, in order, and hands it on.

    Args:
        client: asks the cluster.
        shards: their indices.
        send: exports sagas; says whether they were taken. Called in a thread.
        log: for what goes wrong.
        from_start: begin with the oldest that is kept, not with what ends from now on.
        again_s: the first wait after what was not taken.
    """

    def __init__(
        self,
        client: Asked,
        shards: Sequence[int],
        send: Callable[[Sequence[SagaSpans]], bool],
        log: Log,
        *,
        from_start: bool = False,
        again_s: float = AGAIN_S,
    ) -> None:
        self.counts = Counts()
        self.stopping = asyncio.Event()
        self._client = client
        self._places: dict[int, int | None] = dict.fromkeys(shards, 0 if from_start else None)
        self._send = send
        self._log = log
        self._again_s = again_s

    async def turn(self) -> bool:
        """Export a page of each shard; say whether some of them have more.

        Raises:
            Stopped: somebody wants the run to end.
        """
        has_more = False
        for shard, place in self._places.items():
            try:
                page = await self._client.traced(shard, place)
            except (NotTaken, NoOutcome) as error:  # it is away: what ends there is kept for later
                self._log.warning("shard_not_read", shard=shard, code=error.code)
                has_more = True
                continue
            rows: list[str] = page["rows"]
            for at in range(0, len(rows), SENT_AT_ONCE):
                await self._export(rows[at : at + SENT_AT_ONCE])
            self._places[shard] = page["next"]
            self.counts.lost += page["lost"]
            has_more = has_more or page["left"] > 0
        return has_more

    async def wait(self, seconds: float) -> None:
        """Wait, unless somebody wants the run to end.

        Raises:
            Stopped: somebody does.
        """
        if not self.stopping.is_set():
            try:
                await asyncio.wait_for(self.stopping.wait(), seconds)
            except TimeoutError:
                return
        raise Stopped

    async def _export(self, saga_ids: Sequence[str]) -> None:
        await self.wait(0)
        sagas: list[SagaSpans] = []
        for at in range(0, len(saga_ids), ASKED_AT_ONCE):
            asked = map(self._spans, saga_ids[at : at + ASKED_AT_ONCE])
            sagas += [each for each in await asyncio.gather(*asked) if each is not None]
        if not sagas:
            return
        again_s = self._again_s
        for tries in range(1, TRIES + 1):
            if await self._taken(sagas):
                self.counts.sagas += len(sagas)
                self.counts.spans += sum(1 + len(each.attempts) for each in sagas)
                return
            self._log.warning("export_refused", sagas=len(sagas), tries=tries)
            if tries < TRIES:
                await self.wait(again_s)
                again_s = min(2 * again_s, AGAIN_MAX_S)
        self.counts.dropped += len(sagas)
        self._log.error("spans_dropped", sagas=len(sagas))

    async def _taken(self, sagas: Sequence[SagaSpans]) -> bool:
        """Export sagas; an exporter that raises has not taken them."""
        try:
            return await asyncio.to_thread(self._send, sagas)
        except Exception as error:  # another's code: it may raise anything
            self._log.warning("exporter_raised", error=type(error).__name__, at=places(error))
            return False

    async def _spans(self, saga_id: str) -> SagaSpans | None:
        """Give a saga's spans; None where its history is not to be had: past retention, mostly."""
        while True:
            try:
                return spans_of(await self._client.show(saga_id))
            except (NotTaken, NoOutcome):
                await self.wait(self._again_s)
            except SagacityError:
                self.counts.lost += 1
                return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spans`."""
    parser.description = (
        "Export finished sagas as OpenTelemetry spans, over OTLP: those whose client sent a "
        "traceparent that says it records the trace. Runs until SIGTERM or Ctrl-C, beside any "
        "cluster; what ends meanwhile and before it is there waits in the journal."
    )
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="where to send them; else what OTEL_EXPORTER_OTLP_ENDPOINT and its like say, else "
        "http://localhost:4318/v1/traces",
    )
    parser.add_argument(
        "--all", action="store_true", help="begin with the oldest that is kept, not from now on"
    )
    parser.add_argument(
        "--once", action="store_true", help="stop when what has ended is exported; implies --all"
    )
    parser.add_argument("--json", action="store_true", help="for scripts: one line of JSON")
    parser.add_argument(
        "--connect",
        metavar="URL",
        help="the router's address; else SAGACITY_URL, else the one cluster that runs here",
    )


def run_spans(options: argparse.Namespace) -> int:
    """Export until told to stop, or until nothing is left.

    Returns:
        0; 6 where sagas were dropped: they may be asked for again.

    Raises:
        SagacityError: OpenTelemetry is not installed, or there is no cluster.
    """
    try:
        from cluster import otel  # noqa: PLC0415 - an extra that may not be there
    except ImportError as error:
        raise Malformed(f"{_MISSING} ({error})") from None
    log = configure_logging("spans", 0)
    url = options.connect or os.environ.get("SAGACITY_URL") or find_running()
    try:
        exporter = otel.otlp(options.endpoint)
    except ValueError as error:
        raise Malformed(f"no exporter can be made: {error}") from None
    counts = asyncio.run(
        export(url, exporter, log, from_start=options.all or options.once, once=options.once)
    )
    print(summary(counts, as_json=options.json), flush=True)  # noqa: T201 - what it says
    return NoOutcome.exit_code if counts.dropped else 0


def summary(counts: Counts, *, as_json: bool) -> str:
    """Write what a run has done, for people or for scripts."""
    if as_json:
        return render.json_line({"type": "spans", **structs.asdict(counts)})
    said = f"{counts.sagas} sagas exported, {counts.spans} spans"
    return f"{said}; {counts.dropped} sagas dropped, {counts.lost} lost"


async def export(
    url: str, exporter: "SpanExporter", log: Log, *, from_start: bool, once: bool
) -> Counts:
    """Follow a cluster and export what ends.

    Args:
        url: of its router.
        exporter: takes the spans; closed in the end.
        log: for what goes wrong, and once a minute for what was done.
        from_start: begin with the oldest that is kept.
        once: end when nothing is left.
    """
    from cluster.otel import Sender, heard  # noqa: PLC0415 - an extra that may not be there

    sender = Sender(exporter)
    try:
        with heard(log):
            return await _export(url, sender.send, log, from_start=from_start, once=once)
    finally:
        sender.close()


async def _export(
    url: str,
    send: Callable[[Sequence[SagaSpans]], bool],
    log: Log,
    *,
    from_start: bool,
    once: bool,
) -> Counts:
    async with AsyncClient(url) as client:
        status = await client.status()
        shards = [int(shard["shard"]) for shard in status["shards"]]
        follower = Follower(client, shards, send, log, from_start=from_start)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, follower.stopping.set)
        await _follow(follower, log, once=once)
        return follower.counts


async def _follow(follower: Follower, log: Log, *, once: bool) -> None:
    told_at = asyncio.get_running_loop().time()
    try:
        while True:
            has_more = await follower.turn()
            if once and not has_more:
                return
            await follower.wait(0 if has_more else IDLE_S)
            now = asyncio.get_running_loop().time()
            if now - told_at >= TOLD_EVERY_S:
                told_at = now
                counts = follower.counts
                log.info(
                    "spans_exported",
                    sagas=counts.sagas,
                    spans=counts.spans,
                    dropped=counts.dropped,
                    lost=counts.lost,
                )
    except Stopped:
        return
