"""Judge: what must hold when a run is over, read from the rows of journals and databases and from
what clients heard. The numbers are those of the proof's invariants.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import apsw
from msgspec import Struct, field

from sagacity import wire
from sagacity.errors import NotTaken
from sagacity.ids import ACTION, STEP_BITS, STEPS_MAX
from sagacity.simulation import restored
from sagacity.simulation.clients import LAST, STARTS, Clients, Heard, body_of
from sagacity.simulation.cluster import CLUSTER, Cluster
from sagacity.simulation.network import Weather
from sagacity.simulation.plan import Ask
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
from shard.journal import JournalRefused, MemoryJournal
from shard.phases import COMPLETED

_FAIR = Weather()
LEFT_AT_LEAST_MS = 10_000  # of a deadline, at a recovery


class _Saga(Struct):
    """A saga as its journal tells it."""

    started: Started
    shard: int
    started_at: int
    moved_at: int  # when its last entry was decided
    succeeded: list[int] = field(default_factory=list)  # steps whose action's success is written
    declined: list[int] = field(default_factory=list)
    compensated: list[int] = field(default_factory=list)
    turned_back: int = 0
    attempts: dict[int, int] = field(default_factory=dict)  # of actions, the current one
    finished: Finished | None = None
    finished_at: int = 0
    forgotten_at: int | None = None  # when it was decided that it is past retention

    @property
    def completed(self) -> bool:
        return self.finished is not None and self.finished.phase == COMPLETED


def judge(cluster: Cluster, clients: Clients) -> list[str]:
    """Give what does not hold; counts in the cluster what was reached."""
    faults: list[str] = []
    sagas: dict[int, _Saga] = {}
    for shard, rows in cluster.journals.items():
        faults += _journal(cluster, shard, rows, sagas)
    faults += _sagas(sagas, len(cluster.scenario.saga.steps))
    if cluster.violations or faults:
        return faults  # it was stopped half-way: the rest says nothing
    faults += _heard(cluster, clients, sagas)
    faults += _barriers(cluster, sagas)
    faults += cluster.scenario.judge(cluster.databases, _fates(sagas))
    for shard, drive in cluster.drives.items():
        faults += restored.faults(drive, cluster.definitions, CLUSTER, shard)
    return faults


def _journal(
    cluster: Cluster, shard: int, rows: list[tuple[int, bytes, bytes]], sagas: dict[int, _Saga]
) -> Iterator[str]:
    """3 and 4: dense and chained, epochs never fall, every entry where and when it may be."""
    decided_at = cluster.decided_at[shard]
    journal = MemoryJournal()
    journal.rows = rows
    epoch = recovered_at = 0
    ended: list[_Saga] = []
    try:
        for seq, batch in journal.replay():
            if batch.epoch < epoch:
                yield f"3: shard {shard} row {seq}: epoch {batch.epoch} after {epoch}"
            if isinstance(batch.entries[0], Opened) and batch.epoch <= epoch:
                yield f"3: shard {shard} row {seq}: epoch {batch.epoch} was opened again"
            if batch.epoch > epoch:
                recovered_at = decided_at[seq - 1]
            epoch = batch.epoch
            for entry in batch.entries:
                if isinstance(entry, Started):
                    if entry.number in sagas:
                        yield f"1: number {entry.number} was given twice"
                    sagas[entry.number] = _Saga(
                        entry, shard, decided_at[seq - 1], decided_at[seq - 1]
                    )
                elif isinstance(entry, Forgotten):
                    yield from _forgotten(cluster, ended[: entry.ordinal], decided_at[seq - 1])
                elif not isinstance(entry, Opened) and hasattr(entry, "number"):
                    saga = sagas.get(entry.number)
                    yield from _entry(entry, saga)
                    _count(cluster.reached, entry, saga, cluster.plan.stuck_after)
                    if saga is not None and isinstance(entry, Finished):
                        saga.finished_at = decided_at[seq - 1]
                        ended.append(saga)
                    if saga is not None:
                        yield from _time(cluster, entry, saga, decided_at[seq - 1], recovered_at)
                        late = saga.turned_back and getattr(entry, "direction", None) == ACTION
                        if not late and not isinstance(entry, RetryAsked):
                            saga.moved_at = decided_at[seq - 1]
    except JournalRefused as error:
        yield f"3: shard {shard}: {error.text}"


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


def _entry(entry: Any, saga: _Saga | None) -> Iterator[str]:
    if saga is None:
        yield f"4: {entry} is of no saga"
    elif saga.finished is not None:
        yield f"4: {entry} comes after the end"
    elif isinstance(entry, TurnedBack):
        saga.turned_back += 1
    elif isinstance(entry, Finished):
        saga.finished = entry
    elif isinstance(entry, Answer):
        ok = entry.outcome == wire.OK
        if entry.direction == ACTION and ok:
            saga.succeeded.append(entry.step)
        elif entry.direction == ACTION and entry.outcome == wire.DECLINED:
            saga.declined.append(entry.step)
        elif ok:
            saga.compensated.append(entry.step)


def _count(reached: Counter[str], entry: Any, saga: _Saga | None, stuck_after: int) -> None:
    """Count the ways of a saga that have to be seen now and then."""
    if saga is None:
        return
    if isinstance(entry, Answer):
        if entry.direction == ACTION and saga.turned_back:
            reached["successes after turning back"] += 1
        if entry.direction != ACTION and entry.step not in saga.succeeded:
            reached["compensations of what may have happened"] += 1
        if entry.direction == ACTION and entry.attempt < saga.attempts.get(entry.step, 0):
            reached["successes of an older attempt"] += 1
    elif isinstance(entry, AttemptEnded):
        if entry.direction == ACTION:
            saga.attempts[entry.step] = entry.attempt + 1
        elif entry.attempt == stuck_after:
            reached["sagas stuck"] += 1
    elif isinstance(entry, Quarantined):
        reached["commands quarantined"] += 1
    elif isinstance(entry, TurnedBack):
        reached[f"turned back: {entry.cause}"] += 1


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


def _sagas(sagas: dict[int, _Saga], steps: int) -> Iterator[str]:
    """1, 5 and 6: each id once, all finished, in the order that a saga has."""
    for saga_id, count in Counter(saga.started.saga_id for saga in sagas.values()).items():
        if count > 1:
            yield f"1: {saga_id} was started {count} times"
    orders = Counter((s.started.slot, s.started.order_count) for s in sagas.values())
    for order, count in orders.items():
        if count > 1:
            yield f"1: the order number {order} was given {count} times"
    for saga in sagas.values():
        name = saga.started.saga_id
        if saga.finished is None:
            yield f"5: {name} has not finished"
        elif saga.completed:
            if saga.succeeded != list(range(1, steps + 1)) or saga.compensated or saga.turned_back:
                yield f"6: {name} completed with {saga}"
        else:
            if saga.turned_back != 1:
                yield f"6: {name} aborted and turned back {saga.turned_back} times"
            if saga.compensated != sorted(set(saga.compensated), reverse=True):
                yield f"6: {name} was compensated in the order {saga.compensated}"
            left = set(saga.succeeded) - set(saga.compensated)
            if left:
                yield f"6: {name} aborted, its steps {left} succeeded and were not compensated"


def _heard(cluster: Cluster, clients: Clients, sagas: dict[int, _Saga]) -> Iterator[str]:
    """1 and 2: what was acknowledged is there; a final answer never changes."""
    by_id = {saga.started.saga_id: saga for saga in sagas.values()}
    told: dict[str, Any] = {}
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
        if heard.code == NotTaken.code and _is_definite(cluster, heard.ask):
            yield from _not_taken(cluster, heard, by_id.get(heard.saga_id))
        if heard.code is not None or heard.ask.kind == wire.SHOW:
            continue
        saga = by_id.get(heard.saga_id)
        if saga is None:
            yield f"1: {heard.saga_id} was acknowledged and is in no journal"
            continue
        if heard.ask.kind in STARTS and not _same_content(cluster, heard.ask, saga.started):
            yield f"1: {heard.saga_id} was answered and is of other content: {heard}"
        if heard.final and saga.finished is not None:
            said = {key: heard.body[key] for key in heard.body if key != "in_reply_to"}
            if told.setdefault(heard.saga_id, said) != said:
                yield f"2: {heard.saga_id} was told {told[heard.saga_id]} and {said}"
            if said != wire.unpack(saga.finished.answer):
                yield f"2: {heard.saga_id} was told {said}, its journal says another"


def _past_retention(cluster: Cluster, heard: Heard, saga: _Saga | None) -> Iterator[str]:
    """What is past retention, and nothing else, is said to be."""
    cluster.reached["answers that an outcome is no longer kept"] += 1
    if saga is None or saga.forgotten_at is None or heard.at_ns < saga.forgotten_at:
        yield f"A5: {heard.saga_id} is not past retention: {heard}"


def _is_definite(cluster: Cluster, ask: Ask) -> bool:
    """Say whether a refusal of it speaks for all its tries: what came twice is answered twice."""
    doubles = any(cluster.plan.weather.get(kind, _FAIR).duplication for kind in ("client", "shard"))
    return ask.client != LAST and ask.kind in STARTS and not doubles


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


def _same_content(cluster: Cluster, ask: Ask, started: Started) -> bool:
    definition = cluster.definitions[started.saga]
    asked, _ = definition.readers.request.read(body_of(cluster, ask))
    return definition.fingerprint(wire.encode(definition.saga.accept(asked))) == started.fingerprint


def _barriers(cluster: Cluster, sagas: dict[int, _Saga]) -> Iterator[str]:
    """6 and 7: effects are of sagas, and those of each saga are what its outcome says."""
    steps = cluster.scenario.saga.steps
    standing: Counter[int] = Counter()  # by number, effects that were not compensated
    for name, database in cluster.databases.items():
        rows = dict(_read(database, "SELECT key, outcome FROM barrier"))
        for key, outcome in rows.items():
            number, step, direction = key >> STEP_BITS + 1, key >> 1 & STEPS_MAX, key & 1
            if number not in sagas:
                yield f"7: {name} has an effect of {number}, which is no saga"
            elif not 1 <= step <= len(steps) or steps[step - 1].service != name:
                yield f"7: {name} has an effect of step {step}, which is not its own"
            elif direction == ACTION and outcome == wire.OK and key | 1 not in rows:
                standing[number] += 1
    for number, saga in sagas.items():
        expected = len(steps) if saga.completed else 0
        if saga.forgotten_at is not None:
            continue  # services forget what they did as well, each when a list reaches it
        if saga.finished is not None and standing[number] != expected:
            yield f"6: of {saga.started.saga_id} {standing[number]} effects stand, not {expected}"


def _read(database: apsw.Connection, query: str) -> list[Any]:
    return apsw.Cursor(database).execute(query).fetchall()  # past the disk's faults


def _fates(sagas: dict[int, _Saga]) -> list[Fate]:
    return [
        Fate(
            number,
            saga.started.saga_id,
            saga.completed,
            saga.started.amount,
            saga.started.order,
            saga.forgotten_at is not None,
        )
        for number, saga in sagas.items()
        if saga.finished is not None
    ]
