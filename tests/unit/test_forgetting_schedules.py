"""Lists under schedules that nobody wrote: lost, late, twice, in any order, and crashes."""

import tempfile
from collections import Counter
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from sagacity import wire
from sagacity.ids import count_of
from sagacity.ranges import Range, ranges_of
from sagacity.wire import Answer, Command, answer_to
from shard.effects import Effects, ListSent
from shard.events import ListApplied, Peer
from tests.unit.disk_world import DiskWorld, assert_alike
from tests.unit.schedule import Schedule, Twin
from tests.unit.world import World, order

SERVICES = ("inventory", "payment", "shipping")
TURNS_MAX = 100
STARTS = {f"s{at}": order(f"s{at}") for at in range(10)}


class ForgetfulTwin(Twin):
    """The services' naive twin, which forgets: a set of counts for each service."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.named: dict[str, set[int]] = {name: set() for name in SERVICES}

    def handle(self, command: Command, mood: int) -> Answer:
        named = self.named[SERVICES[command.step - 1]]
        if command.epoch >= self.fence and count_of(command.number) in named:
            return answer_to(command, wire.REFUSED_FORGOTTEN, b"")
        return super().handle(command, mood)

    def forget(self, service: str, ranges: list[Range]) -> None:
        counts = {count for low, high in ranges for count in range(low, high + 1)}
        self.named[service] |= counts
        for key in list(self.rows):
            if count_of(key >> 5) in counts and SERVICES[(key >> 1 & 15) - 1] == service:
                del self.rows[key]


class Forgetful(Schedule):
    """A schedule in which retention ends, too."""

    def __init__(self, thrown: bytes, world: World | None = None) -> None:
        self.lists: list[ListSent] = []  # on their way
        self.said: list[tuple[Peer, int]] = []  # answers to lists, on their way
        self.seen: list[Command] = []  # every command that ever left
        super().__init__(thrown, starts=STARTS, world=world)
        self.twin = self.services = ForgetfulTwin(self.world)
        self._moves += [self._retain, self._retain, self._apply, self._hear_of_it]

    def finish(self) -> None:
        """No more faults: all ends, all is past retention, all lists are taken."""
        self.settle()
        self._retain(every=True)
        for _ in range(TURNS_MAX):
            if not self.world.engine.state.lists_open:
                return
            self.world.after(5_000)
            self._step(*self.world.beats())
            for sent in self.lists:
                self._forget(sent)
            self.lists.clear()
            self._step(*(ListApplied(peer, 0, number) for peer, number in self.said))
            self.said.clear()
        raise AssertionError(f"not taken: {self.world.engine.state.lists_open}")

    def _retain(self, *, every: bool = False) -> None:
        """Some of the oldest finished sagas are past retention."""
        state = self.world.engine.state
        there = len(state.finished) - state.forgotten
        if there:
            end = state.forgotten + (there if every else 1 + self._dice.pick(there))
            cards = state.finished.page(state.forgotten, end, there)
            named = ranges_of(count_of(card.number) for card in cards)
            self._take(self.world.step(forget=(named, end)))

    def _apply(self) -> None:
        """A service takes a list, of whatever age; it may come again, or never."""
        if self.lists:
            at = self._dice.pick(len(self.lists))
            fate = self._dice.pick(6)
            if fate > 3:  # lost often, or a list is taken long before the next one is there
                self._forget(self.lists[at])
            if fate < 5:
                del self.lists[at]

    def _forget(self, sent: ListSent) -> None:
        self.services.forget(sent.worker.decode().partition("-")[0], sent.ranges)
        self.said.append((sent.worker, sent.list_number))

    def _hear_of_it(self) -> None:
        """The shard hears that a list is taken; or never, or again."""
        if self.said:
            at = self._dice.pick(len(self.said))
            peer, number = self.said[at]
            if self._dice.pick(3):
                self._step(ListApplied(peer, 0, number))
            if self._dice.pick(3):
                del self.said[at]

    def _take(self, effects: Effects) -> None:
        super()._take(effects)
        self.lists += effects.lists
        for commands in effects.commands.values():
            self.seen += commands


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32))  # a seed: bytes that hypothesis thinks of end few sagas
def test_a_late_command_of_a_forgotten_saga_never_takes_effect_and_a_current_one_always_can(
    seed: int,
) -> None:
    """World checks the fold at each step; the twin checks what a service may still be asked."""
    schedule = Forgetful(Random(seed).randbytes(1_000))
    schedule.play()
    schedule.finish()
    assert schedule.services.rows == {}, "all that is final is forgotten in the end"
    done = Counter(schedule.services.done)
    assert all(times == 1 for times in done.values())
    for command in schedule.seen:
        answer = schedule.services.handle(command, wire.OK)
        assert answer.outcome in (wire.REFUSED_FENCED, wire.REFUSED_FORGOTTEN)
    assert Counter(schedule.services.done) == done
    counts = schedule.world.tally.counts
    assert counts["faulted", "refused_forgotten"] == 0, "a running saga was forgotten"


class OnDisk(Forgetful):
    """Likewise on a file: retention takes whole blocks, as `expired` gives them."""

    def __init__(self, thrown: bytes, world: DiskWorld) -> None:
        self._disk = world
        super().__init__(thrown, world)

    def _retain(self, *, every: bool = False) -> None:
        generations = self._disk.generations
        while (found := generations.expired(len(generations))) is not None:
            end, numbers = found
            named = ranges_of(count_of(number) for number in numbers)
            self._take(self._disk.step(forget=(named, end)))
            if not every:
                return


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=150, max_size=400))
def test_a_file_whose_sagas_are_forgotten_says_what_a_twin_says(thrown: bytes) -> None:
    """Compactions, merges, lists, restarts and retention, in any order."""
    with tempfile.TemporaryDirectory() as directory:
        world = DiskWorld(Path(directory) / "journal.db")
        schedule = OnDisk(thrown, world)
        schedule.play()
        assert_alike(world)
        world.settle()
        schedule.finish()
        world.settle()
        world.restart()
        assert_alike(world)
        world.settle()
        assert not world.generations.has_expired_blocks()
        for saga_id in schedule.told.final:
            assert world.generations.find(saga_id) is not None
        world.close()
