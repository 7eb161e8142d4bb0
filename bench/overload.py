"""Scenario `overload`: three times as many come as can be served, for a minute.

On one cluster: as many as it can (peak); three times that in the open loop; as many as it can
again, until it is back. On another, whose payment stands still, what a refusal costs: the same
offers, of which none is taken. What CPU there is, less what refusals take, divided by what a
checkout costs at peak, is what could be served at all; goodput is judged by it.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from typing import Final

from msgspec import structs

from bench import options
from bench.figures import Figures
from bench.in_flight import pool_stopped
from bench.load import ask_each, checkout
from bench.options import Options
from bench.result import Result
from bench.scenarios import NoResult, add_result_arguments, judged, loaded, part_of
from bench.staged import Stage, books_fit, staged
from sagacity import wire
from sagacity.connection import Connection
from sagacity.errors import Malformed
from sagacity.wire import Reply

TIMES: Final = 3.0  # peak
TIMES_MAX: Final = 100.0
DURATION_S: Final = 60.0
BACK_S: Final = 30.0
BACK_OF_PEAK: Final = 0.95
OF_WHAT_CPU_ALLOWS: Final = 0.9
OF_PEAK: Final = 0.6
ACCEPTED_P99_MS: Final = 1000.0
REFUSED_P99_MS: Final = 100.0
_AT_ONCE: Final = 512
_FILLS_MAX: Final = 100
_MEAN_OF: Final = 3  # seconds, in which it has to be back


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "Three times as many as can be served; what is served, refused, and after."
    parser.add_argument("--times", type=float, default=TIMES, metavar="X", help="of peak (3)")
    parser.add_argument("--rate", type=float, metavar="R", help="offered, instead of that")
    parser.add_argument("--part", type=float, default=1.0, metavar="F", help="of all times (1)")
    parser.add_argument("--in-flight", type=int, default=options.IN_FLIGHT, metavar="N")
    add_result_arguments(parser)


def run(given: argparse.Namespace) -> int:
    """Run it; give the exit code.

    Raises:
        SagacityError: it cannot be done as asked.
    """
    part = part_of(given.part)
    if not 1 < given.times <= TIMES_MAX:
        raise Malformed(f"--times is more than 1, {TIMES_MAX:g} at most, not {given.times:g}")
    words = ["--in-flight", str(given.in_flight), "--decline", "10"]
    words += ["--duration", str(options.DURATION_S * part), "--warm-up", str(2 * part)]
    peak = loaded("overload", words)
    if given.rate is not None:
        loaded("overload", ["--rate", str(given.rate)])  # refused before anything runs
    title = f"overload: {given.times:g} times peak for {DURATION_S * part:g} s"
    return judged(given, title, lambda figures: _play(peak, given, part, figures))


def _play(peak: Options, given: argparse.Namespace, part: float, figures: Figures) -> None:
    again = structs.replace(peak, duration_s=BACK_S * part, warm_up_s=0.0)
    with staged(peak, figures) as stage:
        best, _ = stage.load("peak", peak)
        rate = given.rate or given.times * best.sagas_per_second
        offer = structs.replace(
            peak, in_flight=0, rate=rate, duration_s=DURATION_S * part, warm_up_s=0.0
        )
        found, _ = stage.load("overload", offer)
        ended = time.monotonic() - max(0.0, found.wall_seconds - DURATION_S * part)
        begun = time.monotonic()
        after, _ = stage.load("after", again, audits=True)
    figures.add("peak", "1/s", best.sagas_per_second)
    figures.add("offered", "1/s", found.offered_per_second or 0.0)
    figures.add("offered too late by the generator", "", not found.rate_reached, at_most=0)
    refusal_us = _refusal_us(structs.replace(offer, duration_s=max(1.0, 10 * part)), figures)
    _judge(best, found, refusal_us, figures)
    _judge_after(best, after, begun - ended, figures)


def _judge(best: Result, found: Result, refusal_us: float, figures: Figures) -> None:
    refused = found.refused / found.wall_seconds
    figures.add("refused", "1/s", refused)
    figures.add("CPU a refusal", "us", refusal_us)
    each_us = best.cpu_us_per_saga["total"]
    figures.add("CPU a checkout at peak", "us", each_us)
    allowed = max(0.0, options.cores() * 1e6 - refused * refusal_us) / each_us
    figures.add("what CPU allows", "1/s", allowed)
    goodput = found.goodput_per_second
    figures.add("goodput", "1/s", goodput)
    if allowed:
        share = goodput / allowed
        figures.add("goodput / what CPU allows", "", share, at_least=OF_WHAT_CPU_ALLOWS)
    else:
        why = "refusals alone take more CPU than there is"
        figures.missing("goodput / what CPU allows", "", why, at_least=OF_WHAT_CPU_ALLOWS)
    figures.add("goodput / peak", "", goodput / best.sagas_per_second, at_least=OF_PEAK)
    figures.add("accepted, p99", "ms", found.latency_ms.p99, at_most=ACCEPTED_P99_MS)
    if found.refused:
        figures.add("refusals, p99", "ms", found.refusal_ms.p99, at_most=REFUSED_P99_MS)
    else:
        figures.missing("refusals, p99", "ms", "nothing was refused", at_most=REFUSED_P99_MS)


def _judge_after(best: Result, after: Result, since_s: float, figures: Figures) -> None:
    """Judge when it was back, from the last offer on."""
    back = back_after_s(after.per_second.finished, BACK_OF_PEAK * best.sagas_per_second)
    what = f"back at {BACK_OF_PEAK:g} of peak after"
    if back is None:
        why = f"it was not, in {after.wall_seconds:.0f} s: {after.sagas_per_second:.0f} a second"
        figures.missing(what, "s", why, at_most=BACK_S)
    else:
        figures.add(what, "s", since_s + back, at_most=BACK_S)
    books_fit(figures, after)


def back_after_s(finished: Sequence[int], rate: float) -> float | None:
    """Give the second from which on some seconds together reach a rate; None where none do.

    The last one counts only where it is the only one: the load ends in it.
    """
    whole = finished[:-1] or finished
    if not whole:
        return None
    span = min(_MEAN_OF, len(whole))
    sums = itertools.accumulate(whole, initial=0)
    upto = list(sums)
    for at in range(len(whole) - span + 1):
        if upto[at + span] - upto[at] >= rate * span:
            return float(at)
    return None


def _refusal_us(offer: Options, figures: Figures) -> float:
    """Offer the same to a cluster that takes nothing; give the CPU of a refusal."""
    with staged(offer, figures) as stage:
        own = stage.host.own
        if own is None:
            raise NoResult("it is no cluster of its own")
        with pool_stopped(own):
            _fill(stage)
            quick = structs.replace(offer, timeout_s=2.0)
            found = stage.all_refused("all refused", quick)
    if not found.refused:
        raise NoResult("nothing was refused of a cluster that is full")
    each_us = {role: used / found.refused * 1e6 for role, used in found.cpu_s.items()}
    for role in sorted({*each_us} - {"total"}):
        figures.add(f"CPU a refusal, {role}", "us", each_us[role])
    return each_us["total"]


def _fill(stage: Stage) -> None:
    """Start sagas until no more are taken."""
    taken = 0

    def settled(_: str, reply: Reply) -> None:
        nonlocal taken
        taken += reply.code is None

    with Connection(stage.host.url, again_when_refused=False) as connection:
        for _ in range(_FILLS_MAX):
            taken = 0
            some = [checkout(False) for _ in range(_AT_ONCE)]
            ask_each(connection, wire.SUBMIT, some, _AT_ONCE, settled)
            if not taken:
                return
    raise NoResult("a cluster whose payment stands still takes more and more")
