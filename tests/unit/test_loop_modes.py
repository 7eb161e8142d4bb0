"""Loop: what a shard does before it may write, and when there is no room to."""

import gc
from collections import Counter
from random import Random

import pytest

from sagacity.errors import InvariantBroken
from sagacity.ids import count_of
from sagacity.wire import BOOKS, CANCEL, FAILED, OK, SHOW, pack, unpack
from shard.engine import Engine
from shard.entries import Opened, Ran
from shard.events import Answered, Event, ListApplied, WorkerCame, WorkerLives, WorkerWent
from shard.guard import LOSS_GAP, OldCopy
from shard.journal import JournalFull
from shard.loop import FULL, SERVING, STARTING, TRY_AGAIN_NS, UPKEEP_PAUSE_NS, NoReserve
from shard.pools import Pool, Worker
from shard.retention import NOTE_MS
from shard.sagas import MS, Live
from shard.state import State
from tests.unit.canned import SERVICES, answer
from tests.unit.loop_rig import PEERS, Rig, serving
from tests.unit.world import CLUSTER_ID


def hellos(rig: Rig) -> list[WorkerCame]:
    return [event for event in rig.workers() if isinstance(event, WorkerCame)]


def said(rig: Rig) -> list[str | int]:
    """Give the replies: the type of a body, the code of an error."""
    return [r.code if r.code is not None else unpack(r.body)["type"] for r in rig.links.replies]


def settled(rig: Rig) -> None:
    """Answer every command until no saga is in flight."""
    for _ in range(50):
        if not rig.engine.inflight:
            return
        answers = [Answered(p, [answer(c, OK) for c in rig.links.held[p]]) for p in PEERS]
        for peer in PEERS:
            rig.links.held[peer].clear()
        rig.turn(*rig.beats(), *answers, took_ms=400)
    raise AssertionError("a saga does not end")


def test_a_journal_in_which_two_owners_wrote_is_not_replayed() -> None:
    """E1: an epoch that does not grow was written by who did not know of the other."""
    rig = Rig()
    rig.journal.commit([Opened(CLUSTER_ID, 0, 1)], 1, 1)
    with pytest.raises(InvariantBroken, match="an epoch fell"):
        rig.begin()


# -- starting -------------------------------------------------------------------------------------


def test_a_new_shard_serves_at_once() -> None:
    """Nobody can know more than an empty journal."""
    assert Rig().loop.mode == SERVING


def test_a_shard_that_starts_writes_nothing_answers_reads_and_refuses_the_rest() -> None:
    """DESIGN 4: before it has compared nothing is written, not even its epoch."""
    rig = serving()
    rows = list(rig.journal.rows)
    assert rig.begin() == 1
    cancel = pack({"type": "cancel", "saga_id": "s1", "reason": "no"})
    rig.turn(rig.ask(SHOW, "s1"), rig.start("s2"), rig.ask(CANCEL, "s1", cancel), rig.start("s1"))
    for _ in range(40):
        rig.turn(took_ms=500)
    assert rig.loop.mode == STARTING
    assert sorted(map(str, said(rig))) == ["11", "11", "saga"]  # the repeat waits for the outcome
    assert rig.journal.rows == rows


def test_a_shard_that_starts_answers_repeats() -> None:
    """SPEC 2 and 4: code 11 would say that a start which was taken before was not."""
    rig = serving()
    rig.begin()
    rig.turn(rig.start("s1"))
    assert (rig.loop.mode, said(rig)) == (STARTING, [])
    rig.turn(*hellos(rig))
    settled(rig)
    assert said(rig) == ["checkout_complete"]


def test_what_workers_say_before_a_shard_is_open_is_not_written() -> None:
    """An outcome, and a list of forgotten sagas that was applied: both are said again."""
    rig = serving()
    rows, held = list(rig.journal.rows), list(rig.links.held[b"inventory"])
    rig.begin()
    said_early: list[Event] = [
        Answered(PEERS[0], [answer(held[0], OK)]),
        ListApplied(PEERS[0], 0, 1),
    ]
    rig.turn(hellos(rig)[0], *said_early, *rig.beats())
    rig.turn(WorkerWent(PEERS[0]))
    assert (rig.loop.mode, rig.journal.rows) == (STARTING, rows)
    assert rig.tally.counts["absorbed", "answer_while_waiting"] == 2


def test_a_shard_that_starts_gives_no_command_before_it_is_open() -> None:
    """Two of three services are here: what they know is compared, and they wait."""
    rig = serving()
    rig.begin()
    rig.turn(*hellos(rig)[:2])
    assert rig.loop.mode == STARTING
    for _ in range(9):
        rig.turn(took_ms=500)
    assert (rig.loop.mode, any(rig.links.held.values())) == (STARTING, False)
    rig.turn(took_ms=500)
    assert rig.loop.mode == SERVING
    rig.turn()
    assert [c.saga_id for c in rig.links.held[b"inventory"]] == ["s1"]
    assert rig.journal.entries()[-1] == Opened(CLUSTER_ID, 0, 2)


def test_yesterdays_journal_is_refused_however_often_and_stays_as_it_is() -> None:
    """D11: rows that services have seen are gone; going on would give their numbers again."""
    rig = serving()
    yesterday = list(rig.journal.rows)
    rig.turn(rig.answered(1))
    rig.turn(rig.start("s2"))
    rig.journal.rows = list(yesterday)
    for _ in range(3):
        rig.begin()
        with pytest.raises(OldCopy, match=r"journal of shard 0 is old: (inventory|payment)"):
            rig.turn(*hellos(rig))
        assert rig.journal.rows == yesterday


def test_a_database_without_what_it_has_answered_for_is_refused_and_named() -> None:
    """D11: stock and money of the lost rows would be given out again."""
    rig = serving()
    yesterday = {b"inventory": rig.known[b"inventory"]}
    rig.turn(rig.start("s2"))
    rig.turn(rig.answered(1), rig.answered(1))
    rows = list(rig.journal.rows)
    for old in (yesterday, {}):
        rig.begin()
        rig.known.pop(b"inventory", None)
        rig.known |= old
        with pytest.raises(OldCopy, match="database of inventory is old"):
            rig.turn(*hellos(rig))
        assert rig.journal.rows == rows


def test_an_old_database_that_comes_late_gets_no_command() -> None:
    """It is compared before its first command; the shard goes on with the others."""
    rig = serving()
    rig.turn(rig.answered(1))
    rig.turn(rig.start("s2"))
    late = WorkerCame(b"late", "inventory", 2, 256)
    rig.turn(late, Answered(b"late", [answer(rig.links.held[b"inventory"][0], FAILED)]))
    assert [(peer, "inventory is old" in text) for peer, text in rig.links.rejected] == [
        (b"late", True)
    ]
    assert rig.watch.away == ["inventory"]
    assert b"late" not in rig.engine.workers()
    settled(rig)


def test_a_healthy_restart_is_never_refused() -> None:
    """What a service has seen is not guessed high: late answers, retries and turns included."""
    for seed in range(30):
        random = Random(seed)
        rig = serving()
        for index in range(40):
            peer = random.choice(PEERS)
            held = rig.links.held[peer]
            events: list[Event] = [rig.start(f"t{index}")] if random.random() < 0.3 else []
            if held:
                command = held[random.randrange(len(held))]
                outcome = FAILED if random.random() < 0.3 else OK
                events = [Answered(peer, [answer(command, outcome)])]
            rig.turn(*rig.beats(), *events, took_ms=random.choice((0, 50, 3_100)))
            if random.random() < 0.1:
                rig.start_over()
                rig.turn(*rig.workers())
        rig.start_over()
        assert rig.links.rejected == [], f"seed {seed}"


# -- a loss that is accepted ----------------------------------------------------------------------


def test_an_accepted_loss_goes_on_above_everything_and_is_replayed_alike() -> None:
    """Numbers, orders and epochs of what is lost never come again; once is enough."""
    rig = serving()
    yesterday = list(rig.journal.rows)
    for index in range(5):
        rig.turn(rig.start(f"lost{index}"))
    lost = rig.engine.state.number
    rig.journal.rows = yesterday
    rig.begin(accepts_loss=True)
    rig.turn(*hellos(rig))
    rig.turn(rig.start("s9"))
    state = rig.engine.state
    assert rig.loop.mode == SERVING
    assert count_of(state.by_id["s9"].number) == count_of(lost) + LOSS_GAP + 1
    assert state.epoch == 1 + LOSS_GAP
    assert max(state.order_counts) == LOSS_GAP + 1
    rig.begin(accepts_loss=True)
    rig.turn(*hellos(rig))
    assert rig.engine.state.epoch == 2 + LOSS_GAP
    assert rig.engine.state.number == state.number
    rig.begin()
    rig.turn(*hellos(rig))
    rig.turn(*rig.workers())
    settled(rig)


def test_a_journal_that_is_gone_begins_above_what_services_know_once_that_is_accepted() -> None:
    """A start taken before they were heard would get a number that was given already."""
    rig = serving()
    lost, rig.journal.rows = rig.engine.state.number, []
    rig.begin(accepts_loss=True)
    rig.turn(rig.start("early"))
    assert (rig.loop.mode, said(rig), rig.journal.rows) == (STARTING, [11], [])
    rig.turn(*hellos(rig))
    rig.turn(rig.start("s9"))
    assert count_of(rig.engine.state.by_id["s9"].number) > count_of(lost) + LOSS_GAP
    rig.begin()
    rig.turn(*hellos(rig))
    assert rig.loop.mode == SERVING


def test_an_old_copy_that_is_put_back_twice_gives_no_order_number_twice() -> None:
    """SPEC 1: order ids are never reused. What came after the first time is lost, too."""
    rig = serving()
    yesterday = list(rig.journal.rows)
    rig.turn(rig.start("lost"))
    given = []
    for _ in range(3):
        rig.journal.rows = list(yesterday)
        rig.begin(accepts_loss=True)
        rig.turn(*hellos(rig))
        rig.turn(rig.start("s9"))
        given.append(rig.engine.state.by_id["s9"].order_id)
    assert len(set(given)) == 3


# -- no room --------------------------------------------------------------------------------------


def test_without_room_for_new_sagas_those_in_flight_end() -> None:
    """The reserve is theirs; with room again it is kept again."""
    rig = serving()
    assert rig.reserve.held
    rig.journal.full, rig.reserve.room = 1, False
    rig.turn(rig.answered(1))
    assert (rig.loop.mode, rig.reserve.held) == (SERVING, False)
    rig.turn(rig.start("s2"))
    assert said(rig) == [11]
    settled(rig)
    assert "checkout_complete" in said(rig)
    rig.reserve.room = True
    rig.turn(took_ms=TRY_AGAIN_NS // MS)
    rig.turn(rig.start("s2"))
    assert rig.reserve.held
    assert "s2" in rig.engine.state.by_id


def test_a_shard_without_room_forgets_what_was_not_written_and_goes_on_by_itself() -> None:
    """D7: reads from what is durable, 11 for the rest, a try every 0.5 s, no restart."""
    rig = serving()
    rows = list(rig.journal.rows)
    rig.journal.full, rig.reserve.room = 10, False
    late = rig.links.held[b"inventory"][0]
    rig.turn(rig.answered(1), rig.start("s2"))
    assert rig.loop.mode == FULL
    assert "s2" not in rig.engine.state.by_id
    assert rig.watch.forgotten == 1
    rig.turn(rig.ask(SHOW, "s1"), rig.start("s3"))
    assert sorted(map(str, said(rig))) == ["11", "11", "saga"]
    assert rig.journal.rows == rows
    rig.journal.full = 0
    rig.turn(took_ms=TRY_AGAIN_NS // MS)
    assert rig.loop.mode == SERVING
    rig.turn()
    assert late.number == rig.links.held[b"inventory"][-1].number, "asked again"
    rig.turn(Answered(b"inventory", [answer(late, OK)] * 2))  # of before: it counts, once
    settled(rig)
    assert not [key for key in rig.tally.counts if key[0] == "faulted"]


def test_a_worker_that_came_with_the_commit_without_room_is_known_afterwards() -> None:
    """Its HELLO is said once on a connection."""
    rig = Rig()
    rig.turn(*rig.workers()[:2])
    rig.journal.full, rig.reserve.room = 3, False
    rig.turn(rig.start("s1"), *rig.workers()[2:], WorkerLives(PEERS[0], 100))
    assert rig.loop.mode == FULL
    assert sorted(rig.engine.workers()) == sorted(PEERS)
    rig.journal.full = 0
    rig.turn(took_ms=TRY_AGAIN_NS // MS)
    rig.turn(rig.start("s1"))
    settled(rig)


def test_an_audit_never_reads_the_pages_of_one_that_began_on_a_full_disk() -> None:
    """A fresh engine counts snapshots anew; its epoch is still the old one."""
    rig = serving()
    before = snapshot_of(rig)
    rig.journal.full, rig.reserve.room, rig.reserve.held = 1, False, False
    rig.turn(rig.start("s2"))
    assert rig.loop.mode == FULL
    snapshot_of(rig)
    rig.turn(rig.ask(BOOKS, "", pack({"book": "running", "snapshot": before})))
    assert said(rig)[-1] == 22


def snapshot_of(rig: Rig) -> int:
    rig.turn(rig.ask(BOOKS, "", pack({"book": "sagas"})))
    snapshot: int = unpack(rig.links.replies[-1].body)["snapshot"]
    return snapshot


def test_nothing_stays_of_what_a_shard_without_room_has_forgotten() -> None:
    """11: a disk that is full every minute for a night. The collector comes too rarely to help."""

    def there() -> Counter[str]:
        kinds = (Engine, State, Pool, Worker, Live)
        return Counter(type(each).__name__ for each in gc.get_objects() if type(each) in kinds)

    gc.collect()
    others = there()  # of tests before this one
    rig = serving()
    waits = [WorkerCame(PEERS[0], SERVICES[0], 1, 0)]  # s1 waits for a worker with credit
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            rig.turn(*waits)
            rig.journal.full, rig.reserve.held, rig.reserve.room = 1, False, False
            rig.turn(rig.start("s2"))
            assert rig.loop.mode == FULL
            rig.turn(took_ms=TRY_AGAIN_NS // MS)
            rig.turn()
            assert rig.loop.mode == SERVING
        assert there() - others == {"Engine": 1, "State": 1, "Pool": 3, "Worker": 3, "Live": 1}
    finally:
        gc.enable()


def test_a_start_on_a_full_disk_waits_for_room() -> None:
    """The epoch is a write, too."""
    rig = serving()
    rig.begin()
    rig.journal.full, rig.reserve.held, rig.reserve.room = 2, False, False
    rig.turn(*hellos(rig))
    assert rig.loop.mode == FULL
    rig.turn(took_ms=TRY_AGAIN_NS // MS)
    rig.turn(took_ms=TRY_AGAIN_NS // MS)
    assert rig.loop.mode == SERVING
    assert rig.engine.state.epoch == 2


def test_how_long_a_shard_has_run_is_noted_when_it_serves_and_stands_still_meanwhile() -> None:
    """Without room it writes nothing, and what it keeps is kept so much longer."""
    rig = serving()
    settled(rig)
    rig.journal.full, rig.reserve.room = 1 << 30, False
    while rig.loop.mode == SERVING:
        rig.turn(took_ms=500)
    rows = list(rig.journal.rows)
    for _ in range(1_000):
        rig.turn(took_ms=500)
    assert (rig.loop.mode, rig.journal.rows) == (FULL, rows)
    rig.journal.full = 0
    while not rig.engine.state.ran_ms:
        rig.turn(took_ms=500)
    assert rig.loop.mode == SERVING
    assert [e for e in rig.journal.entries() if isinstance(e, Ran)] == [Ran(NOTE_MS)]


def test_a_pause_of_the_whole_machine_is_no_running_time() -> None:
    """SPEC 2: nothing could be asked meanwhile; a client that comes back still finds its answer."""
    rig = serving()
    settled(rig)
    rig.turn(took_ms=NOTE_MS)
    rig.turn(took_ms=8 * 24 * 3_600_000)
    rig.turn(took_ms=8 * 24 * 3_600_000)
    rig.turn(rig.start("s1"))
    assert said(rig)[-1] == "checkout_complete"


def test_a_shard_that_has_no_reserve_waits_for_room_at_once() -> None:
    """There is nothing to give up for the sagas in flight."""
    rig = Rig()
    rig.reserve = NoReserve()  # type: ignore[assignment]  # its room cannot be set
    rig.start_over()
    rig.turn(*rig.workers(), rig.start("s1"))
    rig.journal.full = 1
    rig.turn(rig.answered(1))
    assert rig.loop.mode == FULL
    rig.turn(took_ms=TRY_AGAIN_NS // MS)
    assert rig.loop.mode == SERVING
    rig.turn()
    settled(rig)


# -- upkeep ---------------------------------------------------------------------------------------


class Slices:
    """Upkeep of so many slices; with `full` there is no room for the next one."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.tried = 0
        self.full = False

    def turn(self) -> bool:
        self.tried += 1
        if self.full:
            raise JournalFull("as told")
        self.left -= self.left > 0
        return self.left > 0

    def let_go(self) -> None:
        self.left = 0


def under_upkeep(left: int) -> tuple[Rig, Slices]:
    """Give a loop that serves, with upkeep that has so much to do."""
    rig = Rig()
    upkeep = Slices(0)
    rig.upkeep = upkeep
    rig.start_over()
    rig.turn()
    upkeep.left, upkeep.tried = left, 0
    rig.links.waits.clear()
    return rig, upkeep


def test_upkeep_has_a_slice_of_each_turn_and_no_turn_waits_while_there_is_more() -> None:
    """D13: else a file grows without bound, at the pace at which nothing comes."""
    rig, upkeep = under_upkeep(3)
    for left in (2, 1, 0):
        rig.turn()
        assert upkeep.left == left
    rig.turn()
    first, *while_there_is_more, after = rig.links.waits
    assert while_there_is_more == [0, 0]
    assert first > 0
    assert after > 0


def test_upkeep_without_room_pauses_and_what_serves_goes_on() -> None:
    """D7: it can wait for room, sagas need not; nor is a full disk tried at each turn."""
    rig, upkeep = under_upkeep(3)
    rig.turn(*rig.workers())
    upkeep.full = True
    rig.turn(rig.start("s1"))
    rig.turn()
    assert rig.loop.mode == SERVING
    assert rig.engine.inflight == 1
    assert rig.links.waits[-1] > 0
    assert upkeep.tried == 2
    upkeep.full = False
    rig.turn(took_ms=UPKEEP_PAUSE_NS // MS)
    assert (upkeep.tried, upkeep.left) == (3, 1)
