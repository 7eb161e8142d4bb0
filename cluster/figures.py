"""Figures: what `top` shows, from samples of a cluster. Pure; knows no socket, clock or terminal.

A sample is what the cluster said at one instant: the answer to `status`, what each process served
under /metrics, and which sagas are stuck. Two of them give rates; a process that has ended and
begun again between them counts from zero. What is not known is None, never 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, field
from msgspec.structs import replace

from cluster.fleet import QUARANTINED, SHARD, STANDBY, UP
from cluster.metrics import BY_NAME, FINISHED_OUTCOMES, SHARD_MODES, TURNING_CAUSES
from cluster.render import moment
from config.schema import RESERVED_NAMES
from sagacity import money

SAMPLES_KEPT_S: Final = 10.0  # what a heartbeat refreshes is compared over at least some beats
SERVING: Final = "serving"
_MS: Final = 1_000_000  # nanoseconds
_S: Final = 1_000_000_000

# All that is read of /metrics.
WANTED: Final = (
    "saga_started_total",
    "saga_finished_total",
    "saga_duration_seconds_bucket",
    "saga_turned_back_total",
    "saga_refused_total",
    "saga_amount_at_risk",
    "saga_event_loop_busy_seconds_total",
    "saga_journal_commit_duration_seconds_bucket",
    "saga_shard_mode",
    "saga_pool_credit",
    "saga_pool_outstanding",
    "saga_pool_waiting",
    "saga_pool_commands_total",
    "saga_pool_wait_seconds_total",
    "saga_books_imbalance",
)
BOOKS: Final = "saga_books_imbalance"

Place = tuple[str, int]  # role and index
Labels = frozenset[tuple[str, str]]


class Scrape(Struct, frozen=True):
    """What one process served.

    Args:
        values: of each sample's name, a number for its labels.
    """

    values: Mapping[str, Mapping[Labels, float]]

    def total(self, name: str, **labels: str) -> float | None:
        """Give the sum over all samples that have these labels; None where there is none."""
        wanted = set(labels.items())
        found = [value for key, value in self.values.get(name, {}).items() if wanted <= key]
        return sum(found) if found else None


class StuckSaga(Struct, frozen=True):
    """A saga that a person has to look at.

    Args:
        saga_id: its id.
        step: the compensation that does not succeed; None while it has not been asked for.
        since_ms: wall time at which that was first sent.
        attempts: of it, as it was last asked.
        amount: its price, minor units.
        reason: why the saga turned back.
    """

    saga_id: str
    step: str | None
    since_ms: int | None
    attempts: int | None
    amount: int
    reason: str


class Sample(Struct, frozen=True):
    """What a cluster said at one instant.

    Args:
        at_ns: monotonic, of the reader.
        wall_ms: wall time, of the reader.
        status: the answer to `status`.
        scrapes: what each process served; who did not answer is not there.
        stuck: sagas, oldest first, as far as they could be listed.
    """

    at_ns: int
    wall_ms: int
    status: Mapping[str, Any]
    scrapes: Mapping[Place, Scrape]
    stuck: Sequence[StuckSaga] = ()

    def processes(self, role: str | None = None) -> list[Mapping[str, Any]]:
        """Give the rows of `status`, of one role or all."""
        rows: Sequence[Mapping[str, Any]] = self.status.get("processes", ())
        return [row for row in rows if role is None or row["role"] == role]

    def row(self, place: Place) -> Mapping[str, Any]:
        """Give a process's row; an empty one where there is none."""
        return next((r for r in self.processes() if (r["role"], r["index"]) == place), {})

    def beaten_ns(self, place: Place) -> int:
        """Give when a process last reported, which is when it last read its gauges."""
        return self.at_ns - int(self.row(place).get("silent_ms", 0)) * _MS


class Latency(Struct, frozen=True):
    """Of the sagas that ended in an interval; milliseconds, None where none has.

    A percentile stands within a bucket of the histogram as if its sagas were spread evenly; one
    beyond the last edge is that edge.
    """

    ended: int
    p50_ms: float | None
    p99_ms: float | None


class ShardFigures(Struct, frozen=True):
    """One shard. Rates are per second; `busy` is the share of time in which its loop works."""

    shard: int
    state: str
    mode: str | None
    epoch: int | None
    in_flight: int | None
    compensating: int | None
    stuck: int | None
    started: float | None
    ended: float | None
    busy: float | None
    commit_p99_ms: float | None


class PoolFigures(Struct, frozen=True):
    """The workers of one service, as all shards see them.

    Args:
        service: its name.
        active: workers that work.
        standbys: workers that would take over.
        gone: workers that do neither.
        busy: commands given and not answered.
        credit: commands that the workers take before one is answered.
        waiting: commands that wait for credit.
        commands: given, per second.
        wait_ms: mean, of those, for credit.
    """

    service: str
    active: int
    standbys: int
    gone: int
    busy: int | None
    credit: int | None
    waiting: int | None
    commands: float | None
    wait_ms: float | None


class Need(Struct, frozen=True):
    """Something that a person has to look at: of which kind, in words."""

    kind: str
    text: str


class Figures(Struct, frozen=True):
    """All that `top` shows, and what `top --once --json` prints.

    Args:
        at_ms: wall time of the reader.
        interval_ms: over which rates and latency are; None for a first sample alone.
        cluster_id: of the cluster.
        router: its address.
        ready: whether the cluster serves.
        processes: how many are in which state.
        started: sagas a second; so completed, aborted.
        completed: likewise.
        aborted: likewise.
        refused: requests a second that got an error, at shards and router.
        turned_back: sagas a second, by cause; causes without any are left out.
        latency: of the interval.
        in_flight: sagas that are not final; so compensating (stuck ones apart) and stuck.
        compensating: likewise.
        stuck: likewise.
        amount_at_risk: minor units charged in sagas that are turning back.
        shards: in order.
        pools: in order.
        stuck_sagas: the oldest ones.
        books: by how much each is out of balance; None where nobody watches them.
        needs: what a person has to look at, the most urgent first.
    """

    at_ms: int
    interval_ms: int | None
    cluster_id: str
    router: str
    ready: bool
    processes: dict[str, int]
    started: float | None
    completed: float | None
    aborted: float | None
    refused: float | None
    turned_back: dict[str, float]
    latency: Latency | None
    in_flight: int
    compensating: int
    stuck: int
    amount_at_risk: int | None
    shards: list[ShardFigures]
    pools: list[PoolFigures]
    stuck_sagas: list[StuckSaga]
    books: dict[str, float] | None = None
    needs: list[Need] = field(default_factory=list)


def figures(samples: Sequence[Sample]) -> Figures:
    """Give the figures of the newest of some samples.

    Args:
        samples: at least one, oldest first. Rates and latency are over the last two; what a
            process refreshes with its heartbeat alone is compared over all of them.
    """
    now = samples[-1]
    alone = len(samples) == 1
    last = _Span(None if alone else samples[-2], now)
    longest = _Span(None if alone else samples[0], now)
    shards = [_shard(now, row, last, longest) for row in now.status.get("shards", ())]
    places = [(SHARD, shard.shard) for shard in shards]
    everywhere = [(row["role"], int(row["index"])) for row in now.processes()]
    states = [str(row["state"]) for row in now.processes()]

    def ended(outcome: str) -> float | None:
        return last.rate("saga_finished_total", places, outcome=outcome)

    found = Figures(
        at_ms=now.wall_ms,
        interval_ms=None if alone else last.taken_ns // _MS,
        cluster_id=str(now.status.get("cluster_id", "")),
        router=str(now.status.get("router", "")),
        ready=bool(now.status.get("ready")),
        processes={state: states.count(state) for state in dict.fromkeys(states)},
        started=last.rate("saga_started_total", places),
        completed=ended(FINISHED_OUTCOMES[0]),
        aborted=ended(FINISHED_OUTCOMES[1]),
        refused=last.rate("saga_refused_total", everywhere),
        turned_back=_causes(last, places),
        latency=None if alone else _latency(last, places),
        in_flight=_sum(shard.in_flight for shard in shards),
        compensating=_sum(shard.compensating for shard in shards),
        stuck=_sum(shard.stuck for shard in shards),
        amount_at_risk=_now(now, places, "saga_amount_at_risk"),
        shards=shards,
        pools=_pools(now, places, longest),
        stuck_sagas=list(now.stuck),
        books=_books(now),
    )
    return _with_needs(found, now)


# -- growth between two samples ------------------------------------------------------------------


class _Span:
    """What was counted between two samples, of which the first may be missing: nothing then."""

    def __init__(self, before: Sample | None, now: Sample) -> None:
        self.before, self.now = before or now, now
        self.is_empty = before is None
        self.taken_ns = max(1, now.at_ns - self.before.at_ns)

    def grown(self, name: str, place: Place, **labels: str) -> float | None:
        """Give by how much a process's counter grew; None where nothing can be said."""
        before, now = self.before.scrapes.get(place), self.now.scrapes.get(place)
        if self.is_empty or before is None or now is None:
            return None
        was, is_now = before.total(name, **labels), now.total(name, **labels)
        if was is None or is_now is None:
            return None
        again = self.before.row(place).get("pid") != self.now.row(place).get("pid")
        return is_now if again or is_now < was else is_now - was

    def rate(self, name: str, places: Iterable[Place], **labels: str) -> float | None:
        """Give how much counters of these processes grew a second, together."""
        grown = [self.grown(name, place, **labels) for place in places]
        told = [each for each in grown if each is not None]
        return round(sum(told) * _S / self.taken_ns, 3) if told else None

    def rate_by_beats(self, name: str, place: Place, **labels: str) -> float | None:
        """Give how much a counter that heartbeats refresh grew a second, between such beats."""
        grown = self.grown(name, place, **labels)
        between_ns = self.now.beaten_ns(place) - self.before.beaten_ns(place)
        return None if grown is None or between_ns <= 0 else grown * _S / between_ns

    def buckets(self, name: str, places: Iterable[Place]) -> dict[float, float]:
        """Give how a histogram grew: what is counted up to each edge, seconds, ascending."""
        found: dict[float, float] = {}
        edges = [edge / BY_NAME[name].scale for edge in BY_NAME[name].edges]
        for place in places:
            for edge in (*edges, float("inf")):
                label = "+Inf" if edge == float("inf") else repr(edge)
                grown = self.grown(f"{name}_bucket", place, le=label)
                if grown is not None:
                    found[edge] = found.get(edge, 0.0) + grown
        return found


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Give the value below which a share of what was counted lies; None where nothing was.

    Args:
        buckets: how many are at or below each upper edge; edges ascend, the last is infinite.
        share: 0 to 1.

    Returns:
        In the unit of the edges, interpolated within a bucket as Prometheus does it; the last
        finite edge for what lies beyond it.
    """
    count = max(buckets.values(), default=0.0)
    if count <= 0:
        return None
    rank, low, below = share * count, 0.0, 0.0
    for edge, up_to in buckets.items():
        if up_to >= rank and up_to > below:
            return (
                low
                if edge == float("inf")
                else low + (edge - low) * (rank - below) / (up_to - below)
            )
        low, below = (low if edge == float("inf") else edge), max(below, up_to)
    return low


def _latency(span: _Span, places: Sequence[Place]) -> Latency:
    buckets = span.buckets("saga_duration_seconds", places)
    return Latency(
        int(max(buckets.values(), default=0.0)),
        _ms(quantile(buckets, 0.5)),
        _ms(quantile(buckets, 0.99)),
    )


def _ms(value_s: float | None) -> float | None:
    return None if value_s is None else round(value_s * 1000, 3)


def _causes(span: _Span, places: Sequence[Place]) -> dict[str, float]:
    told = {c: span.rate("saga_turned_back_total", places, cause=c) for c in TURNING_CAUSES}
    return {cause: rate for cause, rate in told.items() if rate}


def _now(now: Sample, places: Iterable[Place], name: str, **labels: str) -> int | None:
    """Give the sum of a gauge over processes; None where none of them told it."""
    found = [now.scrapes[place].total(name, **labels) for place in places if place in now.scrapes]
    told = [each for each in found if each is not None]
    return round(sum(told)) if told else None


def _sum(values: Iterable[int | None]) -> int:
    return sum(value or 0 for value in values)


# -- shards and pools ----------------------------------------------------------------------------


def _shard(now: Sample, row: Mapping[str, Any], last: _Span, longest: _Span) -> ShardFigures:
    index = int(row["shard"])
    place = (SHARD, index)
    scrape = now.scrapes.get(place)
    modes = [m for m in SHARD_MODES if scrape and scrape.total("saga_shard_mode", mode=m)]
    commits = last.buckets("saga_journal_commit_duration_seconds", [place])
    busy = longest.rate_by_beats("saga_event_loop_busy_seconds_total", place)
    return ShardFigures(
        shard=index,
        state=str(row["state"]),
        mode=modes[0] if modes else None,
        epoch=row.get("epoch"),
        in_flight=row.get("in_flight"),
        compensating=row.get("compensating"),
        stuck=row.get("stuck"),
        started=last.rate("saga_started_total", [place]),
        ended=last.rate("saga_finished_total", [place]),
        busy=None if busy is None else round(min(1.0, busy), 3),
        commit_p99_ms=_ms(quantile(commits, 0.99)),
    )


def _pools(now: Sample, shards: Sequence[Place], span: _Span) -> list[PoolFigures]:
    roles = dict.fromkeys(str(row["role"]) for row in now.processes())
    return [_pool(now, role, shards, span) for role in roles if role not in RESERVED_NAMES]


def _pool(now: Sample, service: str, shards: Sequence[Place], span: _Span) -> PoolFigures:
    states = [str(row["state"]) for row in now.processes(service)]

    def rate(name: str) -> float | None:
        rates = [span.rate_by_beats(name, place, service=service) for place in shards]
        told = [each for each in rates if each is not None]
        return round(sum(told), 3) if told else None

    def gauge(name: str) -> int | None:
        return _now(now, shards, name, service=service)

    commands, waited_s = rate("saga_pool_commands_total"), rate("saga_pool_wait_seconds_total")
    return PoolFigures(
        service=service,
        active=states.count(UP),
        standbys=states.count(STANDBY),
        gone=len(states) - states.count(UP) - states.count(STANDBY),
        busy=gauge("saga_pool_outstanding"),
        credit=gauge("saga_pool_credit"),
        waiting=gauge("saga_pool_waiting"),
        commands=commands,
        wait_ms=round(waited_s * 1000 / commands, 3) if commands and waited_s is not None else None,
    )


# -- what needs a person -------------------------------------------------------------------------


def _books(now: Sample) -> dict[str, float] | None:
    found: dict[str, float] = {}
    told = False
    for scrape in now.scrapes.values():
        for labels, value in scrape.values.get(BOOKS, {}).items():
            told = True
            book = dict(labels).get("book", "books")
            found[book] = found.get(book, 0.0) + abs(value)
    return found if told else None


def _with_needs(found: Figures, now: Sample) -> Figures:
    needs = [*_of_books(found), *_of_shards(found), *_of_processes(now), *_of_pools(found)]
    needs += _of_stuck(found, now)
    return replace(found, needs=needs)


def _of_books(found: Figures) -> list[Need]:
    out = [f"{book} by {by:g}" for book, by in (found.books or {}).items() if by]
    if not out:
        return []
    return [Need("books", f"the books do not balance: {', '.join(out)}; see: sagacity audit")]


def _of_shards(found: Figures) -> list[Need]:
    needs = []
    for shard in found.shards:
        if shard.state != UP:
            needs.append(Need("shard", f"shard {shard.shard} is {shard.state}: its sagas wait"))
        elif shard.mode == "full":
            text = f"shard {shard.shard} has no room on its disk, and takes nothing new"
            needs.append(Need("shard", text))
    return needs


def _of_processes(now: Sample) -> list[Need]:
    needs = []
    for row in now.processes():
        name = f"{row['role']}-{row['index']}"
        if row["state"] == QUARANTINED and row["role"] != SHARD:  # of shards it is said above
            text = f"{name} is quarantined: it is not started again, its log says why"
            needs.append(Need("process", text))
        elif row["state"] == UP and _is_silent(now, row):
            text = f"{name} says nothing under /metrics: its figures are left out"
            needs.append(Need("process", text))
    return needs


def _is_silent(now: Sample, row: Mapping[str, Any]) -> bool:
    asked = bool(row.get("metrics_port"))
    return asked and (row["role"], int(row["index"])) not in now.scrapes


def _of_pools(found: Figures) -> list[Need]:
    return [
        Need("pool", f"nobody works for {pool.service}: its commands wait")
        for pool in found.pools
        if not pool.active
    ]


def _of_stuck(found: Figures, now: Sample) -> list[Need]:
    needs = [Need("stuck", stuck_line(each, now.wall_ms)) for each in found.stuck_sagas]
    more = found.stuck - len(needs)
    if more > 0:
        also = "more " if needs else ""
        one = more == 1
        text = f"{more} {also}saga{'' if one else 's'} {'is' if one else 'are'} stuck"
        needs.append(Need("stuck", f"{text}; see: sagacity list --status stuck"))
    return needs


def stuck_line(saga: StuckSaga, now_ms: int) -> str:
    """Write a stuck saga for people, in one line: which, how much, what, since when."""
    step = saga.step or "compensation"
    since = ""
    if saga.since_ms is not None:
        since = f" for {duration(now_ms - saga.since_ms)}, since {moment(saga.since_ms)[:19]}"
    return f"{saga.saga_id} {money.show(saga.amount)} {step}{since}"


def duration(ms: int) -> str:
    """Write how long something lasts, in its two largest units."""
    if ms < 60_000:
        return f"{max(0, ms) // 1000}s"
    minutes = ms // 60_000
    days, hours, rest = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days}d{hours}h"
    return f"{hours}h{rest}m" if hours else f"{rest}m{ms // 1000 % 60}s"
