"""Self-test: one row of each kind is changed on a copy of the evidence, and has to be seen. Pure.

A checker that cannot fail proves nothing (PROOF, invariant 12). Every kind of row that journals,
services and records hold is taken by the fields that it has, so that a new one is not forgotten;
chance, chooses the row. A replay by the cluster's own rules is left out meanwhile: the
checker has to see a changed entry by itself. What nobody can see stands in BLIND, with why.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from checker.evidence import Evidence, Journal, ServiceRows, Story
from checker.record import Ask, ClientRecord
from checker.rules import judge
from checker.verdict import HOLDS, VIOLATED, Verdict
from sagacity.errors import Conflict
from sagacity.ids import COMPENSATION
from sagacity.wire import Answer, pack
from shard.entries import OF_NO_SAGA
from shard.records import Row

T = TypeVar("T")

# What no evidence speaks against, so that nobody can tell whether it was changed.
BLIND: Final = {
    "entry AttemptEnded.text": "what a worker said of its failure, for people; told nowhere else",
    "entry AttemptEnded.cause": "failed or timed out: both count alike, and no service keeps it",
    "entry Started.currency": "nothing else speaks of it yet",
    "entry Started.headers": "opaque to the cluster, and no service keeps them",
    "entry RetryAsked.reason": "an operator's words, told nowhere else",
    "entry Quarantined.deaths": "of workers; no service keeps a mark of its end",
    "journal heads.chain": "compared with its row's bytes by whoever reads them",
    "origin.column 1": "its format; another one is refused before it is evidence",
    "record struck.hit": "how many were hit; nobody else has counted them",
    "record struck.stuck": "speaks only of sagas that are stuck",
    "record at_ms": "when a line was written; their order tells what came first",
    "record answer of an error.body": "its words are for people; its code and fingerprint count",
    "record answer to show.body": "a look for people; status, order and reason alone are compared",
}


class Tried(Struct, frozen=True):
    """One change: of which kind of row, and what was done to it."""

    kind: str
    change: str


class Unseen(Tried, frozen=True):
    """A change that did not turn the checker red."""


FAR: Final = 1_000

Change = tuple[str, str, Evidence]
Chance = Callable[[int], int]


def selftest(evidence: Evidence, chance: Chance) -> list[Tried]:
    """Change one row of each kind, on a copy each time, and judge it.

    Args:
        evidence: it is left as it is.
        chance: gives an integer from 0, below its argument; it chooses the rows.

    Returns:
        What was tried; those that were not seen are Unseen. What BLIND names is not tried.
    """
    bare = replace(evidence, journals=[replace(each, folds=[]) for each in evidence.journals])
    before = judge(bare)
    tried: list[Tried] = []
    for kind, change, changed in changes(bare, chance):
        if f"{kind.split('.')[-1]}.{change}" in BLIND:
            continue
        seen = _is_redder(before, judge(changed))
        tried.append((Tried if seen else Unseen)(kind, change))
    return tried


def _is_redder(before: list[Verdict], after: list[Verdict]) -> bool:
    """Say whether something is violated now that was not, or more of it; or holds no longer."""
    return any(
        (now.verdict == VIOLATED and now.found != was.found)
        or (was.verdict == HOLDS and now.verdict != HOLDS)
        for was, now in zip(before, after, strict=True)
    )


def changes(evidence: Evidence, chance: Chance) -> Iterator[Change]:
    """Give one change of each kind of row and field, each on its own copy."""
    for at, journal in enumerate(evidence.journals):
        for kind, change, made in _of_journal(journal, chance):
            yield kind, change, replace(evidence, journals=_with(evidence.journals, at, made))
    for name, service in evidence.services.items():
        for kind, change, rows in _of_service(evidence, service, chance):
            yield kind, change, replace(evidence, services={**evidence.services, name: rows})
    if evidence.record is not None:
        for kind, change, record in _of_record(evidence.record, chance):
            yield kind, change, replace(evidence, record=record)


# -- journals -----------------------------------------------------------------------------------


def _of_journal(journal: Journal, chance: Chance) -> Iterator[tuple[str, str, Journal]]:
    for name in ("heads", "forgotten"):
        for change, rows in _of_list(getattr(journal, name), chance):
            yield f"journal {name}", change, replace(journal, **{name: rows})
    for name in ("opened", "lists"):
        pairs = getattr(journal, name)
        if pairs:
            at = chance(len(pairs))
            seq, entry = pairs[at]
            for change, other in _of_struct(entry, chance):
                made = replace(journal, **{name: _with(pairs, at, (seq, other))})
                yield f"journal {name}", change, made
            yield f"journal {name}", "gone", replace(journal, **{name: _without(pairs, at)})
    if journal.counts is not None:
        names = ["number", "finished", "lists"]
        if journal.heads:  # else nothing follows that would have to go on from there
            yield "checkpoint", "seq", replace(journal, checkpoint=journal.checkpoint + 1)
            names.append("epoch")
        for name in names:
            counts = replace(journal.counts, **{name: getattr(journal.counts, name) + 1})
            yield "checkpoint", name, replace(journal, counts=counts)
    yield from _of_entries(journal, chance)


def _of_entries(journal: Journal, chance: Chance) -> Iterator[tuple[str, str, Journal]]:
    """Change an entry of each type: each of its fields; leave it out; say it twice."""
    kinds: dict[type[Struct], list[tuple[int, int, int]]] = {}
    for number, story in journal.stories.items():
        for at, row in enumerate(story.record):
            for place, entry in enumerate(row.entries):
                if not isinstance(entry, OF_NO_SAGA):
                    kinds.setdefault(type(entry), []).append((number, at, place))
    for kind, places in kinds.items():
        number, at, place = _one_of(places, chance)
        story = journal.stories[number]
        row = story.record[at]
        entry = row.entries[place]

        def told(entries: list[Any], row: Row = row, at: int = at, story: Story = story) -> Story:
            return replace(story, record=_with(story.record, at, replace(row, entries=entries)))

        for change, other in _of_struct(entry, chance):
            made = told(_with(row.entries, place, other))
            yield f"entry {kind.__name__}", change, _with_story(journal, number, made)
        twice = told(row.entries[: place + 1] + row.entries[place:])
        # A second one of these is another attempt's, or somebody has asked twice.
        if kind.__name__ not in ("AttemptEnded", "RetryAsked"):
            yield f"entry {kind.__name__}", "twice", _with_story(journal, number, twice)
        if (at, place) == (0, 0):
            left = {other: each for other, each in journal.stories.items() if other != number}
            yield f"entry {kind.__name__}", "gone", replace(journal, stories=left)
        elif kind.__name__ not in ("AttemptEnded", "RetryAsked", "Quarantined"):
            gone = told(_without(row.entries, place))
            yield f"entry {kind.__name__}", "gone", _with_story(journal, number, gone)


def _with_story(journal: Journal, number: int, story: Story) -> Journal:
    return replace(journal, stories={**journal.stories, number: story})


# -- services -----------------------------------------------------------------------------------


def _of_service(
    evidence: Evidence, service: ServiceRows, chance: Chance
) -> Iterator[tuple[str, str, ServiceRows]]:
    name = service.name
    for rows in ("origin", "forgotten"):
        for change, made in _of_list(getattr(service, rows), chance):
            yield f"{name}.{rows}", change, replace(service, **{rows: made})
    # Of a row that is gone with the checkpoint nobody knows the chain any more.
    known = [
        at
        for at, seen in enumerate(service.witnesses)
        if seen.seq >= evidence.journals[seen.shard].checkpoint
    ]
    for at in [_one_of(known, chance)] if known else []:
        for change, other in _of_struct(service.witnesses[at], chance):
            changed = _with(service.witnesses, at, other)
            yield f"{name}.witnesses", change, replace(service, witnesses=changed)
        gone = _without(service.witnesses, at)
        yield f"{name}.witnesses", "gone", replace(service, witnesses=gone)
        twice = [*service.witnesses, service.witnesses[at]]
        yield f"{name}.witnesses", "twice", replace(service, witnesses=twice)
    for table, own in service.tables.items():
        for change, made in _of_list(own, chance):
            tables = {**service.tables, table: made}
            yield f"{name}.{table}", change, replace(service, tables=tables)
    if service.fence:
        slot = _one_of(list(service.fence), chance)
        fence = {each: epoch for each, epoch in service.fence.items() if each != slot}
        yield f"{name}.fence", "gone", replace(service, fence=fence)
        for change, epoch in (("epoch higher", 1 << 20), ("epoch lower", -1)):
            other = {**service.fence, slot: service.fence[slot] + epoch}
            yield f"{name}.fence", change, replace(service, fence=other)
    outcomes = {(row[1], key & 1) for key, row in service.barrier.items()}
    for outcome, direction in sorted(outcomes):
        keys = [
            key
            for key, row in service.barrier.items()
            if row[1] == outcome and key & 1 == direction
        ]
        yield from _of_barrier(service, _one_of(keys, chance), chance)


def _of_barrier(
    service: ServiceRows, key: int, chance: Chance
) -> Iterator[tuple[str, str, ServiceRows]]:
    row = service.barrier[key]
    kind = f"{service.name}.barrier {row[1]}{' compensation' if key & COMPENSATION else ''}"
    left = {each: kept for each, kept in service.barrier.items() if each != key}
    yield kind, "gone", replace(service, barrier=left)
    yield kind, "key of another step", replace(service, barrier={**left, key ^ 8: row})
    far = key + (1 << 60)
    yield kind, "key of another number", replace(service, barrier={**left, far: row})
    yield kind, "twice", replace(service, barrier={**service.barrier, far: row})
    for at, name in enumerate(("saga_id", "outcome", "reply")):
        other = (*row[:at], _other(row[at], chance), *row[at + 1 :])
        yield kind, name, replace(service, barrier={**service.barrier, key: other})


# -- the client's record ------------------------------------------------------------------------


def _of_record(record: ClientRecord, chance: Chance) -> Iterator[tuple[str, str, ClientRecord]]:
    kinds: dict[str, list[int]] = {}
    for at, ask in enumerate(record.asks):
        if any(heard.code is None for heard in ask.answers):  # of another one nothing came
            kinds.setdefault(ask.kind, []).append(at)
    for kind, places in kinds.items():
        at = _one_of(places, chance)
        yield from _of_ask(record, at, kind, chance)
    answers: dict[str, list[tuple[int, int]]] = {}
    for at, ask in enumerate(record.asks):
        for place, heard in enumerate(ask.answers):
            status = str(heard.said().get("status", heard.code))
            answers.setdefault(f"{status} to {ask.kind}", []).append((at, place))
    for status, found in answers.items():
        at, place = _one_of(found, chance)
        ask = record.asks[at]
        for name in ("code", "body"):
            one = ask.answers[place]
            other: Any = _other(getattr(one, name), chance)
            if name == "body" and one.code == Conflict.code and "fingerprint" in one.said():
                other = pack({**one.said(), "fingerprint": "0" * 32})
            elif name == "body" and (ask.kind == "show" or one.code is not None):
                continue  # words for people
            changed = replace(one, **{name: other})
            made = replace(ask, answers=_with(ask.answers, place, changed))
            asks = _with(record.asks, at, made)
            yield f"record answer {status}", name, replace(record, asks=asks)
    for rows in ("planned", "struck"):
        for change, other in _of_list(getattr(record, rows), chance):
            if change != "at_ms":
                yield f"record {rows}", change, replace(record, **{rows: other})
    yield "record clusters", "another", replace(record, clusters=["0" * 32])
    yield from _of_measures(record)
    if record.catalog is not None:
        for name in ("prices", "stock", "accounts"):
            told = {key: value + 1 for key, value in getattr(record.catalog, name).items()}
            catalog = replace(record.catalog, **{name: told})
            yield "record catalog", name, replace(record, catalog=catalog)


def _of_ask(
    record: ClientRecord, at: int, kind: str, chance: Chance
) -> Iterator[tuple[str, str, ClientRecord]]:
    ask = record.asks[at]
    if kind not in ("start", "submit"):
        return  # what is not a start is judged by its answers alone
    others = [each for each in record.asks if each.saga_id != ask.saga_id]
    yield f"record {kind}", "gone, with its repeats", replace(record, asks=others)
    for name in ("saga_id", "fingerprint"):
        made: Ask = replace(ask, **{name: _other(getattr(ask, name), chance)})
        yield f"record {kind}", name, replace(record, asks=_with(record.asks, at, made))


def _of_measures(record: ClientRecord) -> Iterator[tuple[str, str, ClientRecord]]:
    last = {scraped.process: at for at, scraped in enumerate(record.metrics)}
    for process, at in last.items():
        scraped = record.metrics[at]
        for name in ("saga_started_total", "saga_finished_total", "saga_recovered_total"):
            if process.startswith("shard-") and name in scraped.values:
                values = {**scraped.values, name: scraped.values[name] + 1}
                made = _with(record.metrics, at, replace(scraped, values=values))
                yield "record metrics", name, replace(record, metrics=made)
    for at, used in list(enumerate(record.usage))[-1:]:
        for name, more in (("threads", 100), ("files", 100), ("memory_bytes", 1 << 34)):
            other = replace(used, **{name: getattr(used, name) + more})
            yield "record usage", name, replace(record, usage=_with(record.usage, at, other))


# -- rows ---------------------------------------------------------------------------------------


def _of_list(rows: list[Any], chance: Chance) -> Iterator[tuple[str, list[Any]]]:
    """Change a row of a list, each of its fields; leave it out; put it there twice."""
    if not rows:
        return
    at = chance(len(rows))
    row = rows[at]
    if isinstance(row, Struct):
        for change, other in _of_struct(row, chance):
            yield change, _with(rows, at, other)
    else:
        for place, value in enumerate(row):
            changed = (*row[:place], _other(value, chance), *row[place + 1 :])
            yield f"column {place + 1}", _with(rows, at, changed)
    yield "gone", _without(rows, at)
    yield "twice", [*rows, row]


def _of_struct(row: Struct, chance: Chance) -> Iterator[tuple[str, Any]]:
    """Change each field of a row."""
    for name in row.__struct_fields__:
        value = getattr(row, name)
        # An outcome may be of any epoch that its shard has had since the saga's start.
        far = name == "epoch" and isinstance(row, Answer)
        yield name, replace(row, **{name: value + FAR if far else _other(value, chance)})


def _other(value: Any, chance: Chance) -> Any:
    """Give another value of the same type."""
    made: Any
    if isinstance(value, bool):
        made = not value
    elif isinstance(value, int):
        made = value + 1
    elif isinstance(value, str):
        made = value + "x"
    elif isinstance(value, bytes):
        at = chance(len(value)) if value else 0
        made = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :] if value else b"x"
    elif isinstance(value, list | tuple):
        made = [*value[:-1]] if value else [[1, 1]]
    elif isinstance(value, dict):
        made = {**value, "x": "x"}
    else:  # None
        made = 0
    return made


def _one_of(rows: list[T], chance: Chance) -> T:
    return rows[chance(len(rows))]


def _with(rows: list[T], at: int, row: T) -> list[T]:
    return [*rows[:at], row, *rows[at + 1 :]]


def _without(rows: list[T], at: int) -> list[T]:
    return [*rows[:at], *rows[at + 1 :]]
