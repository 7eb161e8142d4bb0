"""Judge: what must hold when a run is over. The twelve invariants are the checker's, by whose rules
`sagacity check` judges a stopped cluster; here is what no evidence can tell it, since only the
simulated world knows when what happened: no attempt and no saga ends before its time, and whether
a start that was said not to be taken had been.

Not asked of the checker: 12, since a seed may draw no fault, and what is drawn may meet nobody (a
campaign counts what was met); 8 to 10 of a saga other than checkout, whose tables it does not know.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import Struct, field

from sagacity import wire
from sagacity.checker import rules
from sagacity.checker.evidence import CHECKOUT, Evidence
from sagacity.checker.journals import NO_USAGE
from sagacity.errors import NotTaken
from sagacity.ids import ACTION
from sagacity.simulation import restored
from sagacity.simulation.clients import LAST, STARTS, Clients, Heard
from sagacity.simulation.cluster import CLUSTER, Cluster
from sagacity.simulation.evidence import Rows, gather, rows_of
from sagacity.simulation.scenario import Fate
from sagacity.simulation.world import MS
from sagacity.wire import Answer
from shard.entries import (
    DEADLINE,
    TIMED_OUT,
    AttemptEnded,
    Finished,
    Forgotten,
    Opened,
    Quarantined,
    RetryAsked,
    Started,
    TurnedBack,
)
from shard.phases import COMPLETED

LEFT_AT_LEAST_MS = 10_000  # of a deadline, at a recovery
OF_ANY_SAGA: Final = (1, 2, 3, 4, 5, 6, 7, 11)
OF_CHECKOUT: Final = (*OF_ANY_SAGA, 8, 9, 10)
_KEPT: Final = 5  # findings of an invariant that are told


class _Saga(Struct):
    """A saga as its journal tells it, with the world's time."""

    started: Started
    started_at: int
    moved_at: int  # when its last entry was decided
    succeeded: set[int] = field(default_factory=set)  # steps whose action's success is written
    turned_back: bool = False
    attempts: dict[int, int] = field(default_factory=dict)  # of actions, the current one
    attempted: AttemptEnded | None = None  # and failed, the last one
    finished: Finished | None = None
    finished_at: int = 0
    forgotten_at: int | None = None  # when it was decided that it is past retention


def judge(cluster: Cluster, clients: Clients) -> list[str]:
    """Give what does not hold; counts in the cluster what was reached."""
    rows = {shard: rows_of(kept) for shard, kept in cluster.journals.items()}
    sagas: dict[int, _Saga] = {}
    early = [fault for shard, read in rows.items() for fault in _times(cluster, shard, read, sagas)]
    early += [f"11: a shard counted a fault, {what}" for what in cluster.counted_faults()]
    if cluster.violations or not cluster.plan.asks:
        # It was stopped half-way, or nothing was asked: the rest says nothing.
        return [*early, *_unfinished(sagas)]
    checkout = cluster.scenario.saga.name == CHECKOUT
    faults = _checked(gather(cluster, clients, rows), OF_CHECKOUT if checkout else OF_ANY_SAGA)
    faults += [*early, *_heard(cluster, clients, sagas)]
    if not faults:  # a judge of the user's own is given what is whole
        said = cluster.scenario.judge(cluster.databases, _fates(sagas))
        faults += [f"judge: {each}" for each in said]
    for shard, drive in cluster.drives.items():
        faults += restored.faults(drive, cluster.definitions, CLUSTER, shard)
    return faults


def _checked(evidence: Evidence, numbers: tuple[int, ...]) -> list[str]:
    """Give what the checker finds; what it cannot tell is a fault as well.

    Memory, files and threads are not measured: all processes of a run share them.
    """
    faults = []
    for verdict in rules.judge(evidence, numbers, _KEPT):
        for each in verdict.findings:
            about = f"{each.saga_id}: " if each.saga_id else ""
            faults.append(f"{verdict.number}: {about}{each.what} ({each.where})")
        faults += [f"cannot tell {verdict.number}: {why}" for why in verdict.why if why != NO_USAGE]
    return faults


def _times(cluster: Cluster, shard: int, read: Rows, sagas: dict[int, _Saga]) -> Iterator[str]:
    """No attempt and no saga ends before its time; counts what sagas went through."""
    epoch = recovered_at = 0
    ended: list[_Saga] = []
    for (_, batch), at in zip(read.rows, cluster.decided_at[shard], strict=False):
        if batch.epoch > epoch:
            recovered_at = at
        epoch = batch.epoch
        for entry in batch.entries:
            if isinstance(entry, Started):
                sagas[entry.number] = _Saga(entry, at, at)
                cluster.reached["sagas in journals"] += 1
            elif isinstance(entry, Forgotten):
                yield from _forgotten(cluster, ended[: entry.ordinal], at)
            elif not isinstance(entry, Opened):
                saga = sagas.get(getattr(entry, "number", 0))
                if saga is None:
                    continue
                _count(cluster.reached, entry, saga, cluster.plan.stuck_after)
                if isinstance(entry, Finished):
                    saga.finished_at = at
                    ended.append(saga)
                yield from _time(cluster, entry, saga, at, recovered_at)
                late = saga.turned_back and getattr(entry, "direction", None) == ACTION
                if not late and not isinstance(entry, RetryAsked):
                    saga.moved_at = at


def _unfinished(sagas: Mapping[int, _Saga]) -> Iterator[str]:
    """Say of sagas that have no end what their last attempt said, where it failed."""
    for saga in sagas.values():
        last = saga.attempted
        if saga.finished is None and last is not None:
            which = "action" if last.direction == ACTION else "compensation"
            what = f"{which} of step {last.step}, attempt {last.attempt}, {last.cause}"
            yield f"5: {saga.started.saga_id}: {what}: {last.text}"


def _forgotten(cluster: Cluster, ended: list[_Saga], at: int) -> Iterator[str]:
    """No saga is forgotten before it was kept for as long as it has to be."""
    for saga in ended:
        if saga.forgotten_at is None:
            saga.forgotten_at = at
            cluster.reached["sagas past retention"] += 1
            kept_ms = (at - saga.finished_at) // MS
            drives = cluster.plan.drives
            if drives is None or not drives.retention_ms or kept_ms < drives.retention_ms:
                yield f"A5: {saga.started.saga_id} was forgotten after {kept_ms} ms"


def _count(reached: Counter[str], entry: Any, saga: _Saga, stuck_after: int) -> None:
    """Note where a saga stands; count the ways that have to be seen now and then."""
    if isinstance(entry, Answer):
        if entry.direction == ACTION and saga.turned_back:
            reached["successes after turning back"] += 1
        if entry.direction != ACTION and entry.step not in saga.succeeded:
            reached["compensations of what may have happened"] += 1
        if entry.direction == ACTION and entry.attempt < saga.attempts.get(entry.step, 0):
            reached["successes of an older attempt"] += 1
        if entry.direction == ACTION and entry.outcome == wire.OK:
            saga.succeeded.add(entry.step)
    elif isinstance(entry, AttemptEnded):
        saga.attempted = entry
        if entry.direction == ACTION:
            saga.attempts[entry.step] = entry.attempt + 1
        elif entry.attempt == stuck_after:
            reached["sagas stuck"] += 1
    elif isinstance(entry, Quarantined):
        reached["commands quarantined"] += 1
    elif isinstance(entry, TurnedBack):
        saga.turned_back = True
        reached[f"turned back: {entry.cause}"] += 1
    elif isinstance(entry, Finished):
        saga.finished = entry


def _time(cluster: Cluster, entry: Any, saga: _Saga, at: int, recovered_at: int) -> Iterator[str]:
    """No attempt and no saga ends before its time, whatever clocks say."""
    plan = cluster.plan
    if isinstance(entry, AttemptEnded) and entry.cause == TIMED_OUT:
        had_ms = (at - max(saga.moved_at, recovered_at)) // MS
        if had_ms < plan.timeout_ms:
            yield f"B10: {saga.started.saga_id}: {entry} after {had_ms} ms"
    if isinstance(entry, TurnedBack) and entry.cause == DEADLINE:
        had_ms = (at - max(saga.started_at, recovered_at)) // MS
        if had_ms < min(plan.deadline_ms, LEFT_AT_LEAST_MS):
            yield f"B20: {saga.started.saga_id} turned back after {had_ms} ms: {entry}"


def _heard(cluster: Cluster, clients: Clients, sagas: dict[int, _Saga]) -> Iterator[str]:
    """No bug is answered, and what was said not to be taken was not; counts what was heard."""
    by_id = {saga.started.saga_id: saga for saga in sagas.values()}
    for heard in clients.heard:
        cluster.reached[f"answers with code {heard.code}"] += 1
        if heard.ask.kind == wire.CANCEL and heard.code is None:
            cluster.reached["cancels taken"] += 1
        if heard.ask.other and "fingerprint" in heard.body:
            cluster.reached["other content refused"] += 1
        if heard.code == 13:
            yield f"a bug was answered: {heard}"
        if heard.is_past_retention:
            yield from _past_retention(cluster, heard, by_id.get(heard.saga_id))
        definite = heard.ask.client != LAST and heard.ask.kind in STARTS and not clients.doubles
        if heard.code == NotTaken.code and definite:
            yield from _not_taken(cluster, heard, by_id.get(heard.saga_id))


def _past_retention(cluster: Cluster, heard: Heard, saga: _Saga | None) -> Iterator[str]:
    """What is past retention, and nothing else, is said to be."""
    cluster.reached["answers that an outcome is no longer kept"] += 1
    if saga is None or saga.forgotten_at is None or heard.at_ns < saga.forgotten_at:
        yield f"A5: {heard.saga_id} is not past retention: {heard}"


def _not_taken(cluster: Cluster, heard: Heard, saga: _Saga | None) -> Iterator[str]:
    """A start of which every try was refused has not begun, unless another client's has."""
    others = [
        ask
        for ask in cluster.plan.asks
        if ask.start == heard.ask.start and ask.kind in STARTS and ask != heard.ask
    ]
    known_by = min(heard.at_ns, cluster.calm_at)  # then the last client asks for it
    if saga is not None and not others and saga.started_at < known_by:
        yield f"A10: {heard.saga_id} was said not to be taken and had been: {heard}"


def _fates(sagas: dict[int, _Saga]) -> list[Fate]:
    return [
        Fate(
            number,
            saga.started.saga_id,
            saga.finished.phase == COMPLETED,
            saga.started.amount,
            saga.started.order,
            saga.forgotten_at is not None,
        )
        for number, saga in sagas.items()
        if saga.finished is not None
    ]
