"""Everything at once: workers that die, poison, retention, compactions, a full disk, crashes.

    python -m tests.unit.test_whole_schedules FIRST COUNT      plays so many seeds

Numbers in the docstrings are the invariants of docs/proof.md.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from sagacity import wire
from sagacity.ids import ACTION, COMPENSATION, barrier_key
from sagacity.wire import Answer, Begun, Command, Witness
from shard import phases
from shard.effects import Effects, ListSent
from shard.events import Answered, CommandBegun, Event, ListApplied, Peer, WorkerCame
from shard.journal import JournalFailed
from shard.loop import FULL, SERVING
from shard.sagas import Live, Tombstone
from shard.verify import verify
from tests.unit.disk_world import assert_alike
from tests.unit.journal_world import abandon
from tests.unit.test_forgetting_schedules import SERVICES, Forgetful, ForgetfulTwin
from tests.unit.whole_world import RETENTION_MS, TightDisk, WholeWorld
from tests.unit.world import CLUSTER_ID, order

STARTS = {f"s{at}": order(f"s{at}") for at in range(60)}
TURNS_MAX = 400
BYTES = 1_000
SEEDS_PER_LINE = 100


class SeenTwin(ForgetfulTwin):
    """The services' twin; each keeps the highest witness that came with its commands."""

    def __init__(self, world: WholeWorld) -> None:
        super().__init__(world)
        self.whole = world

    def handle(self, command: Command, mood: int) -> Answer:
        key = barrier_key(command.number, command.step, command.direction)
        sent_with = self.whole.witnesses[key, command.attempt, command.epoch]
        self.whole.see(SERVICES[command.step - 1], sent_with)
        return super().handle(command, mood)


class Whole(Forgetful):
    """A schedule of the whole shard."""

    def __init__(self, thrown: bytes, world: WholeWorld) -> None:
        self.whole = world
        self.codes: list[int | None] = []
        self.alone: list[tuple[Peer, Command]] = []  # given out alone of late
        self.deaths = 0  # of the process, by its disk
        self.list_witness: dict[int, Witness] = {}
        world.sent = self._sent
        super().__init__(thrown, world, STARTS)
        self.twin = self.services = SeenTwin(world)
        self._moves += [
            self._flow,
            self._flow,
            self._flow,
            self._flow,
            self._poison,
            self._poison,
            self._poison,
            self._tighten,
            self._tighten,
            self._loosen,
            self._doom,
            self._read,
            self._again,
        ]

    def settle(self) -> None:
        """No more faults: everything is delivered, until nothing runs."""
        self.whole.tight.room = self.whole.tight.dies_in = None
        for zombie in self.zombies:
            self.twin.handle(zombie, wire.OK)
        self.zombies.clear()
        self._hello()
        for _ in range(TURNS_MAX):
            self.answers.clear()
            if self.whole.loop.mode == SERVING and not self.world.engine.inflight:
                return
            events: list[Event] = self.world.beats()
            for saga in self.world.engine.state.live.values():
                if saga.quarantined:
                    body = {"type": "retry", "saga_id": saga.saga_id, "reason": "x"}
                    events.append(self._ask(wire.RETRY, saga.saga_id, body))
            for peer, held in self.world.held.items():
                if peer in self.world.present:
                    events += [Answered(peer, [self.twin.handle(c, wire.OK)]) for c in held]
            self.world.held.clear()
            self._step(*events)
            self.whole.after(200)
        raise AssertionError(f"not final: {list(self.world.engine.state.live.values())}")

    def finish(self) -> None:
        """All ends, what can be forgotten is, all lists are taken, all upkeep is done."""
        self.settle()
        self._wait(RETENTION_MS)
        for _ in range(TURNS_MAX):
            self._wait(1_000)
            for sent in self.lists:
                self._forget(sent)
            self.lists.clear()
            self._step(*(ListApplied(peer, 0, number) for peer, number in self.said))
            self.said.clear()
            before_ms = self.world.now.wall_ms - RETENTION_MS
            lists_open = self.world.engine.state.lists_open
            if not lists_open and self.whole.generations.expired(before_ms) is None:
                break
        assert not self.world.engine.state.lists_open
        while self.whole.compaction.turn():
            pass

    # -- moves ----------------------------------------------------------------------------------

    def _flow(self) -> None:
        """For a moment all goes well."""
        self._start()
        self._start()
        for _ in range(3):
            events: list[Event] = self.world.beats()
            for peer, held in self.world.held.items():
                if peer in self.world.present and held:
                    events += [Answered(peer, [self.twin.handle(c, wire.OK)]) for c in held]
                    held.clear()
            self._step(*events)

    def _poison(self) -> None:
        """A worker begins what it was given alone, and mostly dies of it."""
        here = self.world.present
        alone = [(peer, command) for peer, command in self.alone if peer in here]
        if alone:
            peer, command = alone[self._dice.pick(len(alone))]
            said = Begun(command.number, command.step, command.direction, command.attempt)
            self._step(CommandBegun(peer, said))
            if self._dice.pick(8) and peer in self.world.present:
                self._die(peer)

    def _take(self, effects: Effects) -> None:
        self.alone = [*self.alone[-8:], *effects.alone.items()]
        super()._take(effects)

    def _retain(self, *, every: bool = False) -> None:
        """Retention is the shard's own; it needs time."""
        self._wait(RETENTION_MS if every else 1_100)

    def _pass_time(self) -> None:
        self._wait((1, 30, 400, 1_000, 3_100)[self._dice.pick(5)], beats=bool(self._dice.pick(3)))

    def _wait(self, ms: int, *, beats: bool = True) -> None:
        try:
            self.whole.after(ms, beats=beats)
        except JournalFailed:
            self._restart()

    def _tighten(self) -> None:
        """There is room for few writes."""
        self.whole.tight.room = self._dice.pick(40)

    def _loosen(self) -> None:
        """Somebody makes room."""
        self.whole.tight.room = None

    def _doom(self) -> None:
        """The disk fails soon, and with it the process."""
        self.whole.tight.dies_in = 1 + self._dice.pick(40)

    def _read(self) -> None:
        """Somebody looks at a saga."""
        saga_id = self._ids[self._dice.pick(len(self._ids))]
        self._step(self._ask(wire.SHOW, saga_id, {}))

    def _again(self) -> None:
        """An id that was used comes with other content, beside its own."""
        if self.whole.began:
            ids = list(self.whole.began)
            saga_id = ids[self._dice.pick(len(ids))]
            other = self._ask(wire.START, saga_id, order(saga_id, user_id="another"))
            same = self._ask(wire.START, saga_id, self._starts[saga_id])
            self._asked[other.items[0].request] = f"other {saga_id}"
            self._step(structs.replace(same, items=[*other.items, *same.items]))

    def _forget(self, sent: ListSent) -> None:
        service = sent.worker.decode().partition("-")[0]
        self.whole.see(service, self.list_witness[sent.list_number])
        super()._forget(sent)

    # -- the world's side -----------------------------------------------------------------------

    def _hello(self) -> None:
        self._came += 1
        events = []
        for name in SERVICES:
            seen = self.whole.seen.get(name)
            peer = f"{name}-{self._came}".encode()
            events.append(WorkerCame(peer, name, self._came, 2, (seen,) if seen else ()))
        self._step(*events)

    def _step(self, *events: Event, timers: bool = True) -> None:
        try:
            self.world.step(*events, timers=timers)
        except JournalFailed:
            self.deaths += 1
            self._restart()

    def _sent(self, witness: Witness, effects: Effects) -> None:
        for sent in effects.lists:
            self.list_witness[sent.list_number] = witness
        self._take(effects)

    def _hear(self, reply: wire.Reply) -> None:
        self.codes.append(reply.code)
        kind, saga_id = self._asked[reply.request].split()
        state = self.world.replica
        if reply.code == 11 and self.whole.loop.mode != SERVING:
            return
        if kind == "other":
            assert reply.code == 22
            return
        if int(kind) == wire.SHOW:
            self._hear_of_show(reply, saga_id)
            return
        if int(kind) == wire.START and reply.code == 22:
            assert isinstance(state.finished.find(saga_id), Tombstone)
            return
        if int(kind) == wire.START and reply.code is None:
            assert reply.body == self.whole.ended[saga_id].answer
        super()._hear(reply)

    def _hear_of_show(self, reply: wire.Reply, saga_id: str) -> None:
        state = self.world.replica
        found = state.by_id.get(saga_id) or state.finished.find(saga_id)
        if found is None:
            assert reply.code == 20
        elif isinstance(found, Tombstone):
            assert reply.code == 22
        else:
            assert reply.code is None
            said = wire.unpack(reply.body)
            assert said["status"] == phases.PHASES[found.phase]
            assert said["stuck"] == (isinstance(found, Live) and found.stuck)


def played(thrown: bytes, path: Path, disk: TightDisk) -> Whole:
    """Play a schedule to its end, and see that all is as it must be."""
    world = WholeWorld(path, disk)
    schedule = Whole(thrown, world)
    schedule.play()
    schedule.finish()
    _assert_effects(schedule)
    for _ in range(2):
        _assert_told_again(schedule)
        assert_alike(world)
        world.restart()
        schedule._hello()
    abandon(world.disk)
    assert verify(path, CLUSTER_ID, 0).faults == []
    return schedule


def _assert_effects(schedule: Whole) -> None:
    """6, 7, 11: each effect once; nothing of an aborted saga stays, nothing of a completed goes."""
    done, world = Counter(schedule.twin.done), schedule.whole
    assert all(times == 1 for times in done.values())
    assert world.began.keys() == world.ended.keys()
    assert len(world.engine.state.finished) == len(world.ended)
    for entry in world.ended.values():
        for step in (1, 2, 3):
            acted = done[barrier_key(entry.number, step, ACTION)]
            undone = done[barrier_key(entry.number, step, COMPENSATION)]
            if entry.phase == phases.COMPLETED:
                assert (acted, undone) == (1, 0)
            else:
                assert acted == undone
    for saga_id in schedule.told.cancelled:
        assert world.ended[saga_id].phase == phases.ABORTED
    for key, times in world.tally.counts.items():
        # A zombie may answer for a compensation that came before it; no current command is refused.
        assert key[0] != "faulted" or not times, key


def _assert_told_again(schedule: Whole) -> None:
    """2: a finished id never runs again; its answer is the first one, or that it is gone."""
    world = schedule.whole
    number = world.engine.state.number
    for saga_id in world.began:
        schedule._step(schedule._ask(wire.START, saga_id, STARTS[saga_id]))
        schedule._step(schedule._ask(wire.SHOW, saga_id, {}))
        if saga_id in schedule.told.cancelled:
            body = {"type": "cancel", "saga_id": saga_id, "reason": "again"}
            schedule._step(schedule._ask(wire.CANCEL, saga_id, body))
            gone = isinstance(world.replica.finished.find(saga_id), Tombstone)
            assert schedule.codes[-1] == (22 if gone else None)
    assert world.engine.state.number == number
    assert not world.engine.inflight


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_happens_together_each_id_runs_once_and_ends_once(seed: int) -> None:
    """World checks the fold at every turn; Schedule every command and every answer."""
    disk = TightDisk()
    try:
        with tempfile.TemporaryDirectory() as directory:
            played(Random(seed).randbytes(BYTES), Path(directory) / "journal.db", disk)
    finally:
        disk.unregister()


def main(first: int, count: int) -> None:
    """Play seeds; say what was reached."""
    reached: Counter[str] = Counter()
    for seed in range(first, first + count):
        disk = TightDisk()
        with tempfile.TemporaryDirectory() as directory:
            try:
                schedule = played(
                    Random(seed).randbytes(BYTES), Path(directory) / "journal.db", disk
                )
            except BaseException:
                print("seed", seed)
                raise
            finally:
                disk.unregister()
        modes = schedule.whole.modes
        state = schedule.world.engine.state
        reached["seeds"] += 1
        reached["full"] += any(mode == FULL for mode in modes)
        reached["deaths of the process"] += schedule.deaths
        reached["sagas"] += len(schedule.whole.ended)
        reached["forgotten"] += state.forgotten
        reached["lists"] += state.lists
        reached["compacted"] += schedule.whole.generations.base
        reached["merged"] += any(s.level for s, _ in schedule.whole.generations.segments)
        counts = schedule.world.tally.counts
        for key, times in counts.items():
            if key[0] == "attempted":
                reached[f"attempt {key[3]}"] += times
        if reached["seeds"] % SEEDS_PER_LINE == 0 or seed == first + count - 1:
            print(dict(reached), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
