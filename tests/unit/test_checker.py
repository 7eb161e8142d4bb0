"""The twelve invariants: each holds where all is well, and turns red where it must not hold."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import replace

from sagacity import wire
from sagacity.checker.evidence import Evidence, Fold, Journal, ServiceRows, Story
from sagacity.checker.record import ClientRecord, Struck
from sagacity.checker.rules import INVARIANTS, judge
from sagacity.checker.selftest import BLIND, Unseen, selftest
from sagacity.checker.verdict import CANNOT_TELL, HOLDS, KEPT, VIOLATED, as_report
from sagacity.errors import Conflict
from sagacity.ids import barrier_key
from sagacity.wire import Answer
from shard.codec import GENESIS, link, pack_batch, unpack_batch
from shard.entries import AttemptEnded, Finished, Started, TurnedBack
from shard.journal import MemoryJournal
from shard.records import Row
from shard.segments import hash_of
from tests.unit.checked import Cluster, lived, verdicts, without_record

Change = Callable[[Evidence], Evidence]
SEED = 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster that has met everything; nobody changes it."""
    made = lived()
    yield made
    made.close()


@pytest.fixture
def evidence(cluster: Cluster) -> Evidence:
    """What it left."""
    return cluster.evidence()


# -- green --------------------------------------------------------------------------------------


def test_all_twelve_hold_where_all_is_well(evidence: Evidence) -> None:
    """A checker that cries at what is right is soon switched off."""
    found = verdicts(evidence)
    told = [f"{each.number}: {each.findings[:1]} {each.why}" for each in found.values()]
    assert {each.verdict for each in found.values()} == {HOLDS}, told
    assert sorted(found) == list(range(1, 13))
    assert all(any(each.looked_at.values()) for each in found.values())


def test_nothing_is_violated_at_any_moment_of_a_life() -> None:
    """A cluster may be killed at any moment: what it leaves then is lawful, though not finished."""
    cluster = Cluster()
    moments = 0
    original = cluster._perform

    def looked(effects: Any) -> None:
        nonlocal moments
        original(effects)
        moments += 1
        found = verdicts(cluster.evidence())
        bad = {n: v.findings[:2] for n, v in found.items() if v.verdict == VIOLATED and n != 11}
        assert bad == {}

    cluster._perform = looked  # type: ignore[method-assign]  # looks at every moment
    fields: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {"user_id": "u999"},
        "c": {"shipping_address": "no_carrier"},
    }
    for name, changed in fields.items():
        cluster.step(cluster.start(name, **changed))
    cluster.settle()
    cluster.step(cluster.start("lost"))
    cluster.serve("inventory")
    cluster.lose("payment")
    cluster.restart()
    cluster.step(*cluster.came("inventory", "payment", "shipping"))
    cluster.settle()
    assert moments >= 15
    assert not cluster.engine.state.live
    cluster.close()


def test_sagas_past_retention_are_let_be(cluster: Cluster) -> None:
    """Their barrier rows are gone, their business rows stay, their histories may be gone."""
    own = lived()
    ended = [
        entry.number
        for _, batch in own.journal.replay()
        for entry in batch.entries
        if isinstance(entry, Finished)
    ]
    own.forget(*ended[:4])
    for number in ended[:4]:  # each is told that its outcome is no longer kept
        own.step(own.start(own.evidence().journals[0].stories[number].started.saga_id))
    found = own.evidence()
    assert {each.verdict for each in verdicts(found).values()} == {HOLDS}
    [journal] = found.journals
    gone = replace(
        journal,
        stories={n: each for n, each in journal.stories.items() if n not in ended[:4]},
        folds=journal.folds[:2],
    )
    for number in ended[:4]:
        gone.tombstones.add(hash_of(journal.stories[number].started.saga_id))
    after = verdicts(replace(found, journals=[gone]))
    assert {n: v.findings[:2] for n, v in after.items() if v.verdict != HOLDS} == {}
    own.close()


# -- cannot tell --------------------------------------------------------------------------------


def test_without_a_record_what_it_shows_cannot_be_told(evidence: Evidence) -> None:
    """PROOF: "cannot tell" is a failure, and says so."""
    found = verdicts(without_record(evidence))
    assert {n for n, each in found.items() if each.verdict == CANNOT_TELL} == {1, 2, 11, 12}
    assert all(each.why for each in found.values() if each.verdict == CANNOT_TELL)
    assert as_report(list(found.values()), {})["holds"] is False


def test_a_check_of_nothing_says_so() -> None:
    """An empty directory is no proof of anything."""
    empty = Evidence("0" * 32, (0,) * 1024, [Journal(0)], {}, {})
    found = verdicts(empty)
    assert {each.verdict for each in found.values()} == {CANNOT_TELL}
    assert "nothing to look at" in found[4].why[0]


def test_a_journal_that_cannot_be_read_leaves_what_needs_it_untold(evidence: Evidence) -> None:
    """What a lost row would have said nobody knows."""
    [journal] = evidence.journals
    broken = replace(journal, unread="after row 7: damaged", faults=["row 8 is damaged"])
    found = verdicts(replace(evidence, journals=[broken]))
    assert found[3].verdict == VIOLATED
    assert {n for n, each in found.items() if each.verdict == CANNOT_TELL} == {
        n for n, each in INVARIANTS.items() if each.of_sagas
    }


def test_a_saga_whose_definition_nobody_has_cannot_be_judged(evidence: Evidence) -> None:
    """The rules must not guess how many steps it has."""
    found = verdicts(replace(evidence, plans={}))
    assert found[4].verdict == found[6].verdict == CANNOT_TELL
    assert "checkout" in found[4].why[0]


def test_only_what_is_asked_for_is_judged(evidence: Evidence) -> None:
    """Who has no client's record can still ask for the rest."""
    assert [each.number for each in judge(evidence, [9, 3, 9])] == [3, 9]


def test_findings_are_counted_and_the_first_are_kept(evidence: Evidence) -> None:
    """A report that nobody can read helps nobody."""
    record = replace(record_of(evidence), asks=[])
    [first] = judge(replace(evidence, record=record), [1], kept=2)
    assert first.found == len(evidence.journals[0].stories)
    assert len(first.findings) == 2 < KEPT


# -- red ----------------------------------------------------------------------------------------


def record_of(evidence: Evidence) -> ClientRecord:
    assert evidence.record is not None
    return evidence.record


def story_of(evidence: Evidence, saga_id: str) -> tuple[int, Story]:
    [found] = [
        (number, story)
        for number, story in evidence.journals[0].stories.items()
        if story.started.saga_id == saga_id
    ]
    return found


def with_journal(evidence: Evidence, **changes: Any) -> Evidence:
    return replace(evidence, journals=[replace(evidence.journals[0], **changes)])


def retold(saga_id: str, change: Callable[[Row], Row | None]) -> Change:
    """Give a change of every row of a saga's story; no row is left of one that becomes None."""

    def made(evidence: Evidence) -> Evidence:
        number, story = story_of(evidence, saga_id)
        rows = [each for each in map(change, story.record) if each is not None]
        stories = {**evidence.journals[0].stories, number: replace(story, record=rows)}
        return with_journal(evidence, stories=stories)

    return made


def entry_changed(saga_id: str, kind: type[Struct], **changes: Any) -> Change:
    """Give a change of every entry of a kind."""

    def row(of: Row) -> Row:
        entries = [
            replace(each, **changes) if isinstance(each, kind) else each for each in of.entries
        ]
        return replace(of, entries=entries)

    return retold(saga_id, row)


def rows_changed(name: str, table: str, change: Callable[[list[Any]], list[Any]]) -> Change:
    def made(evidence: Evidence) -> Evidence:
        service = evidence.services[name]
        tables = {**service.tables, table: change([list(row) for row in service.tables[table]])}
        services = {**evidence.services, name: replace(service, tables=tables)}
        return replace(evidence, services=services)

    return made


def service_changed(name: str, **changes: Callable[[ServiceRows], Any]) -> Change:
    def made(evidence: Evidence) -> Evidence:
        service = evidence.services[name]
        found = {key: change(service) for key, change in changes.items()}
        return replace(evidence, services={**evidence.services, name: replace(service, **found)})

    return made


def record_changed(**changes: Callable[[ClientRecord], Any]) -> Change:
    def made(evidence: Evidence) -> Evidence:
        record = record_of(evidence)
        found = {key: change(record) for key, change in changes.items()}
        return replace(evidence, record=replace(record, **found))

    return made


def asks_of(saga_id: str, **changes: Any) -> Change:
    return record_changed(
        asks=lambda record: [
            replace(ask, **changes) if ask.saga_id == saga_id else ask for ask in record.asks
        ]
    )


def answered(saga_id: str, body: dict[str, Any]) -> Change:
    return record_changed(
        asks=lambda record: [
            replace(ask, answers=[replace(each, body=wire.pack(body)) for each in ask.answers])
            if ask.saga_id == saga_id
            else ask
            for ask in record.asks
        ]
    )


def answered_once(**changes: Any) -> Change:
    """Give a change after which the saga `lost` has one answer, a changed one of the first's."""

    def made(evidence: Evidence) -> Evidence:
        first = record_of(evidence).asks[0].answers[0]
        return asks_of("lost", answers=[replace(first, **changes)])(evidence)

    return made


def _first(column: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    def change(rows: list[Any]) -> list[Any]:
        rows[0][column] = value
        return rows

    return change


def _drop_story(saga_id: str) -> Change:
    def made(evidence: Evidence) -> Evidence:
        number, _ = story_of(evidence, saga_id)
        stories = evidence.journals[0].stories
        left = {each: story for each, story in stories.items() if each != number}
        return with_journal(evidence, stories=left)

    return made


def _without_compensation(evidence: Evidence) -> Evidence:
    number, _ = story_of(evidence, "no-carrier-1")
    key = barrier_key(number, 2, 1)
    service = evidence.services["payment"]
    left = {each: row for each, row in service.barrier.items() if each != key}
    services = {**evidence.services, "payment": replace(service, barrier=left)}
    return replace(evidence, services=services)


def _otherwise(fold: Fold) -> Fold:
    return replace(fold, counts={**fold.counts, "at risk": 7})


def _early(evidence: Evidence) -> Evidence:
    sent = [replace(each, witness_seq=each.witness_seq - 1) for each in evidence.wire or ()]
    return replace(evidence, wire=sent)


def _heads(change: Callable[[list[Any]], list[Any]]) -> Change:
    return lambda evidence: with_journal(evidence, heads=change(list(evidence.journals[0].heads)))


NO_LONGER_KEPT = wire.pack(Conflict("its outcome is no longer kept").body())
RED: dict[str, tuple[int, Change, str]] = {
    "an acknowledged start is in no journal": (1, _drop_story("completes-1"), "in no journal"),
    "nobody sent it": (
        1,
        record_changed(asks=lambda record: [ask for ask in record.asks if ask.saga_id != "lost"]),
        "nobody sent it",
    ),
    "other content was sent": (1, asks_of("lost", fingerprint=bytes(16)), "that nobody sent"),
    "it is kept, and was said not to be": (
        1,
        answered_once(code=22, body=NO_LONGER_KEPT),
        "no longer kept",
    ),
    "it was refused and runs": (1, answered_once(code=11), "refused"),
    "a fingerprint": (1, entry_changed("lost", Started, fingerprint=bytes(16)), "fingerprint"),
    "a price": (1, entry_changed("lost", Started, amount=1), "its cart costs"),
    "a slot": (1, entry_changed("lost", Started, slot=1), "slot"),
    "a record of another cluster": (
        1,
        record_changed(clusters=lambda record: ["f" * 32]),
        "of cluster",
    ),
    "a final answer changed": (
        2,
        answered("lost", {"type": "checkout_failed", "saga_id": "lost", "status": "ABORTED"}),
        "another end",
    ),
    "it went back": (2, answered("restarted", {"status": "RUNNING"}), "was answered"),
    "an answer that is none": (2, answered("lost", {"status": "?"}), "was answered"),
    "a final answer of another order": (
        2,
        entry_changed("completes-1", Finished, answer=wire.pack({"status": "COMPLETED"})),
        "with the answer",
    ),
    "a row is gone": (3, _heads(lambda heads: heads[:4] + heads[5:]), "follows row"),
    "an epoch fell": (3, _heads(lambda heads: [*heads[:-1], replace(heads[-1], epoch=1)]), "epoch"),
    "the newest row is gone": (3, _heads(lambda heads: heads[:-6]), "has seen"),
    "another chain": (
        3,
        _heads(lambda heads: [replace(each, chain=bytes(16)) for each in heads]),
        "another row",
    ),
    "a journal is not what was written": (
        3,
        lambda evidence: with_journal(evidence, faults=["row 3 is damaged"]),
        "row 3 is damaged",
    ),
    "an old copy of a service": (
        3,
        service_changed("payment", witnesses=lambda service: []),
        "has answered for",
    ),
    "a fence too high": (
        3,
        service_changed("payment", fence=lambda service: dict.fromkeys(service.fence, 9)),
        "never had",
    ),
    "a database of another cluster": (
        3,
        service_changed("payment", origin=lambda service: [(2, "payment", "f" * 32)]),
        "it is of",
    ),
    "an illegal entry": (4, entry_changed("lost", TurnedBack, cause="declined"), "without such"),
    "an attempt that was not": (4, entry_changed("lost", AttemptEnded, attempt=5), "was sent"),
    "replays differ": (
        4,
        lambda evidence: with_journal(
            evidence,
            folds=[
                *evidence.journals[0].folds[:1],
                *map(_otherwise, evidence.journals[0].folds[1:]),
            ],
        ),
        "at risk",
    ),
    "a replay breaks": (
        4,
        lambda evidence: with_journal(evidence, folds=[Fold("a replay", broken="no such saga")]),
        "no such saga",
    ),
    "nobody ended it": (
        5,
        retold(
            "completes-1",
            lambda row: replace(
                row, entries=[e for e in row.entries if not isinstance(e, Finished)]
            ),
        ),
        "after the faults have stopped",
    ),
    "not every step succeeded": (
        6,
        entry_changed("completes-1", Answer, outcome=wire.DECLINED),
        "COMPLETED",
    ),
    "a compensation is missing in a service": (6, _without_compensation, "not undone here"),
    "a compensation is missing in a journal": (
        6,
        retold(
            "no-carrier-1",
            lambda row: (
                None
                if any(
                    isinstance(e, Answer) and (e.step, e.direction) == (2, 1) for e in row.entries
                )
                else row
            ),
        ),
        "owed the compensations",
    ),
    "a command left before its entry": (7, _early, "left, due by row"),
    "an effect without a command": (
        7,
        rows_changed("payment", "payment", lambda rows: [*rows, [99, 99 << 10, 2, "u42", 1, 1]]),
        "no journal knows number",
    ),
    "an effect that is there twice": (
        7,
        rows_changed("shipping", "shipment", lambda rows: [*rows, [99, *rows[0][1:]]]),
        "there are",
    ),
    "an effect that was not asked": (
        7,
        rows_changed("shipping", "shipment", _first(3, "elsewhere")),
        "not what was asked",
    ),
    "an outcome without a row": (
        7,
        service_changed("shipping", barrier=lambda service: {}),
        "no row here",
    ),
    "a refund that no command asked": (
        7,
        rows_changed("payment", "payment", lambda rows: [[*r[:5], r[4] - r[5]] for r in rows]),
        "not what its command left",
    ),
    "stock that went nowhere": (
        8,
        rows_changed("inventory", "stock", _first(2, 5)),
        "held or shipped",
    ),
    "an aborted saga holds something": (
        8,
        rows_changed("inventory", "reservation", lambda rows: [[*r[:6], 0] for r in rows]),
        "is ABORTED and holds",
    ),
    "what the audit finds": (8, lambda evidence: replace(evidence, audit=["a fault"]), "a fault"),
    "a charge of another amount": (
        9,
        rows_changed("payment", "payment", _first(4, 7)),
        "COMPLETED, costs",
    ),
    "an aborted saga has paid": (
        9,
        rows_changed("payment", "payment", lambda rows: [[*r[:5], 0] for r in rows]),
        "is ABORTED, was charged",
    ),
    "a part of a refund": (9, rows_changed("payment", "payment", _first(5, 1)), "refunded 1"),
    "an amount that is no integer": (
        9,
        rows_changed("payment", "payment", _first(4, 1.5)),
        "was charged 1.5",
    ),
    "a balance": (9, rows_changed("payment", "account", _first(1, 7)), "balances"),
    "no shipment": (
        10,
        rows_changed("shipping", "shipment", lambda rows: []),
        "0 live shipments",
    ),
    "a shipment of an aborted saga": (
        10,
        lambda evidence: rows_changed(
            "shipping",
            "shipment",
            lambda rows: [*rows, [99, story_of(evidence, "lost")[0], 3, "x", 0]],
        )(evidence),
        "1 live shipments",
    ),
    "a start that was not counted": (
        11,
        record_changed(
            metrics=lambda record: [
                replace(each, values={**each.values, "saga_started_total": 0})
                for each in record.metrics
            ]
        ),
        "sagas came",
    ),
    "a fault was counted": (
        11,
        record_changed(
            metrics=lambda record: [
                replace(each, values={**each.values, "saga_faults_total": 1})
                for each in record.metrics
            ]
        ),
        "has counted",
    ),
    "memory grows": (
        11,
        record_changed(
            usage=lambda record: [
                *record.usage[:-1],
                replace(record.usage[-1], memory_bytes=1 << 34),
            ]
        ),
        "MiB",
    ),
    "a planned fault that never was": (
        12,
        record_changed(struck=lambda record: [replace(each, hit=0) for each in record.struck]),
        "void",
    ),
    "a fault that nobody planned": (
        12,
        record_changed(struck=lambda record: [*record.struck, Struck(0, "fire", 1)]),
        "nobody planned",
    ),
}


@pytest.mark.parametrize("name", RED)
def test_an_invariant_turns_red(evidence: Evidence, name: str) -> None:
    """Each rule is shown to fail; one that cannot proves nothing."""
    number, change, says = RED[name]
    [found] = judge(change(evidence), [number], kept=1000)
    assert found.verdict == VIOLATED
    assert any(says in each.what for each in found.findings), found.findings[:5]


def test_every_invariant_is_shown_to_turn_red() -> None:
    """A rule added tomorrow needs its case here."""
    assert {number for number, _, _ in RED.values()} == set(INVARIANTS)


def test_one_changed_row_of_any_kind_is_seen(cluster: Cluster, evidence: Evidence) -> None:
    """PROOF 12: on a copy of the evidence with one row changed the checker must turn red."""
    tried = selftest(evidence, random.Random(SEED).randrange)
    assert evidence == cluster.evidence()
    assert [f"{each.kind}: {each.change}" for each in tried if isinstance(each, Unseen)] == []
    assert len(tried) > 200
    kinds = {each.kind for each in tried}
    entries = {"Started", "Answer", "AttemptEnded", "TurnedBack", "Finished", "Quarantined"}
    assert {f"entry {name}" for name in entries} <= kinds


def test_a_row_forged_with_every_chain_after_it_is_seen() -> None:
    """Who rewrites a row and links the others anew has still to change what the services saw."""
    own = lived()
    assert isinstance(own.journal, MemoryJournal)
    rows, chain = own.journal.rows, GENESIS
    for at, (seq, _, packed) in enumerate(rows):
        batch = unpack_batch(packed)
        anew = pack_batch(batch.entries, batch.epoch, batch.wall_ms + (at == 10))
        chain = link(chain, seq, anew)
        rows[at] = (seq, chain, anew)
    found = verdicts(own.evidence())
    assert found[3].verdict == VIOLATED
    assert "another row" in found[3].findings[0].what
    own.close()


def test_what_nobody_can_see_is_named_with_a_reason() -> None:
    """A change that is left out in silence is a hole."""
    assert all(why for why in BLIND.values())
