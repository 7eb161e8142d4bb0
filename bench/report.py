"""A run for people: one line that moves on a terminal, and what was measured as a table."""

import sys
import time

from bench.generators import HowFar
from bench.options import Options
from bench.result import Percentiles, Result

_SHOW_S = 0.5
_CLEAR = "\r\x1b[K"


class Progress:
    """A line on standard error, where that is a terminal; else nothing.

    Args:
        asked: what is run.
    """

    def __init__(self, asked: Options) -> None:
        self._asked = asked
        self._shows = sys.stderr is not None and sys.stderr.isatty()
        self._what = ""
        self._begun = self._shown_at = 0.0
        self._settled = 0
        self._of_s: float | None = None

    def begin(self, what: str, of_s: float | None) -> None:
        """Begin a phase."""
        self._what, self._of_s = what, of_s
        self._begun = self._shown_at = time.monotonic()
        self._settled = 0

    def show(self, far: HowFar) -> None:
        """Show how far it is, twice a second."""
        now = time.monotonic()
        if not self._shows or now - self._shown_at < _SHOW_S:
            return
        settled = far.completed + far.aborted
        rate = max(0, settled - self._settled) / (now - self._shown_at)
        self._shown_at, self._settled = now, settled
        passed = f"{now - self._begun:.0f} s" + (f" of {self._of_s:g}" if self._of_s else "")
        if self._asked.sagas is not None and self._what == "measuring":
            passed += f", {settled} of {self._asked.sagas}"
        line = (
            f"{self._what} {passed}: {rate:.0f}/s, {far.opened} in flight, "
            f"p99 {far.p99_ms:.1f} ms, "
            f"{far.completed} completed, {far.aborted} aborted, {far.refused} refused, "
            f"{far.errors} errors{'' if far.connected else ', NOT CONNECTED'}"
        )
        sys.stderr.write(_CLEAR + line)
        sys.stderr.flush()

    def end(self) -> None:
        """Take the line away."""
        if self._shows:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()


def text(found: Result) -> str:
    """Give a result as a table."""
    rows: list[tuple[str, str]] = []
    if found.partial:
        rows.append(("PARTIAL", found.partial_why))
    rows += [
        ("load", _load(found)),
        ("sagas a second", f"{found.sagas_per_second:.1f}"),
        ("goodput a second", f"{found.goodput_per_second:.1f}"),
    ]
    if found.offered_per_second is not None:
        kept = "" if found.rate_reached else "  NOT REACHED by the generator"
        rows.append(("offered a second", f"{found.offered_per_second:.1f}{kept}"))
        rows.append(("late starts", f"{found.late_starts}; {_ms(found.late_ms)}"))
    rows += [
        ("latency", _ms(found.latency_ms)),
        ("outcomes", f"{found.completed} completed, {found.aborted} aborted"),
        ("refused", f"{found.refused}" + (f"; {_ms(found.refusal_ms)}" * bool(found.refused))),
        ("errors", f"{found.errors}"),
        *(("", f"{times} {why}") for why, times in found.errors_by.items()),
        ("wall", f"{found.wall_seconds:.2f} s"),
        ("CPU a saga, us", _pairs(found.cpu_us_per_saga)),
        ("peak memory, MB", _pairs(found.peak_rss_mb)),
        ("syncs a saga", _number(found.fsyncs_per_saga)),
        ("commits", _commits(found)),
        ("books", {True: "balanced", False: "NOT BALANCED", None: "not audited"}[found.balanced]),
        ("directory", f"on {found.data_fs}"),
        ("machine", f"{found.machine.cores} cores, load {found.machine.load_1m:g} before"),
        ("version", f"{found.version} {found.commit or ''}".strip()),
        *(("note", note) for note in found.notes),
    ]
    return "\n".join(f"{name:18}{value}" for name, value in rows)


def _load(found: Result) -> str:
    told = found.settings
    if told["loop"] == "open":
        how = f"open loop, {told['rate']:g} a second, {told['arrivals']}"
    else:
        how = f"closed loop, {told['in_flight']} in flight"
    return f"{how}, {told['generators']} generators, {told['shards']} shards"


def _commits(found: Result) -> str:
    if found.commits is None:
        return "no figure"
    return f"{found.commits}, {_number(found.entries_per_commit)} entries each"


def _ms(found: Percentiles) -> str:
    return (
        f"p50 {found.p50:.2f}  p90 {found.p90:.2f}  p99 {found.p99:.2f}  "
        f"p999 {found.p999:.2f}  max {found.max:.2f} ms"
    )


def _pairs(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.1f}" for name, value in values.items())


def _number(value: float | None) -> str:
    return "no figure" if value is None else f"{value:.2f}"
