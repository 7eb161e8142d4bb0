"""Ports: what the production code of a role takes from outside, as a simulated process has it.

Machine, clock, child and log; and those that see what must never happen: a shard's links, that
nothing leaves before it is durable; a worker's watch, that no epoch comes after a higher one; a
shard's tally counts what is durable, as its metrics do.
"""

from collections import Counter
from typing import Any, NamedTuple, cast

from sagacity.simulation.disk import TwinJournal
from sagacity.simulation.drive import DriveJournal
from sagacity.simulation.network import Network
from sagacity.simulation.world import Process, World
from sagacity.slots import slot_of
from sagacity.sockets import Context
from sagacity.wire import DECLINED, FAILED, OK, Witness
from sagacity.worker import Served, Watch
from shard.effects import Effects
from shard.entries import TIMED_OUT, AttemptEnded
from shard.events import Answered
from shard.journal import Receipt
from shard.links import Links
from shard.loop import Received
from shard.sagas import MS, Live
from shard.tally import PlainTally, Unwritten

NO_FD = -1
PERFORMED = frozenset({OK, DECLINED, FAILED})


class TwinMachine:
    """What a client or a worker takes from outside itself."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process

    def context(self) -> Context:
        """Give what makes its sockets."""
        return cast(Context, self._network.context(self._process))

    def monotonic_ns(self) -> int:
        """Give the world's time."""
        return self._network.world.now

    def random_bits(self, bits: int) -> int:
        """Draw from the seed."""
        return self._network.world.random.getrandbits(bits)


class TwinClock:
    """The world's time, and its wall clock, which jumps."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic_ns(self) -> int:
        """Give the world's time."""
        return self._world.now

    def wall_ms(self) -> int:
        """Give the wall clock."""
        return self._world.wall_ms()


class TwinChild:
    """A router's life as a process: nobody is told of it."""

    stopping = False
    wakeup_fd = NO_FD
    state = "starting"

    def __init__(self, world: World) -> None:
        self._world = world

    def report(self, state: str, _facts: object = None) -> None:
        """Note it."""
        self.state = state

    def beat(self, now_ns: int, _facts: object = None) -> None:
        """Nobody listens."""

    def beat_due_ns(self) -> int:
        """Give a time that is always ahead: no beat is due."""
        return self._world.now + 1_000 * MS

    def woken(self) -> bool:
        """No signal comes."""
        return False


class Log:
    """Takes what processes log, and counts it."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()

    def info(self, event: str, **_fields: Any) -> None:
        """Count it."""
        self.events[event] += 1

    warning = error = debug = info


class Tally(PlainTally):
    """A shard's counts, and what its loop tells."""

    def __init__(self) -> None:
        super().__init__()
        self._unwritten = Unwritten()

    def started(self, saga: str) -> None:
        """A saga was accepted; it counts when that is durable."""
        self._unwritten.starts.append(saga)

    def finished(self, saga: str, outcome: str, duration_ns: int, exposed_ns: int) -> None:
        """A saga is final; likewise."""
        self._unwritten.ends.append((saga, outcome, duration_ns, exposed_ns))

    def committed(self, took_ns: int, entries: int) -> None:
        """Count what is durable now."""
        unwritten = self._unwritten
        for saga in unwritten.starts:
            super().started(saga)
        for end in unwritten.ends:
            super().finished(*end)
        unwritten.clear()

    def forgot(self) -> None:
        """What was decided is not written."""
        self._unwritten.clear()

    def faulted(self, what: str, text: str = "", about: Live | None = None) -> None:
        """Count it; what the log would tell is told with it."""
        self.counts["faulted", f"{what} {text}".strip()] += 1

    def turned(self, took_ns: int) -> None:
        """Not counted."""

    def turned_away(self, service: str, text: str) -> None:
        """Count it."""
        self.counts["turned_away", service] += 1


class Left(NamedTuple):
    """What left together, and what was durable then."""

    witness: Witness
    effects: Effects


class CheckedLinks(Links):
    """A shard's connections, which see that nothing leaves before it is durable."""

    def __init__(
        self,
        violations: list[str],
        left: list[Left],
        journal: TwinJournal | DriveJournal,
        *args: Any,
    ) -> None:
        super().__init__(*args)
        self._violations = violations
        self._journal = journal
        self._answered: set[tuple[int, int, int]] = set()  # what has just come
        self._left = left

    def receive(self, timeout_ns: int) -> Received:
        """Receive, and remember which commands have an outcome now."""
        received = super().receive(timeout_ns)
        self._answered = {
            (answer.number, answer.step, answer.direction)
            for event in received.events
            if isinstance(event, Answered)
            for answer in event.items
            if answer.outcome in {OK, DECLINED}
        }
        return received

    def send(self, receipt: Receipt, witness: Witness, effects: Effects) -> None:
        """Send, unless it is not written down."""
        if receipt.seq > len(self._journal.rows):
            self._violations.append(f"7: row {receipt.seq} is not durable and causes {effects}")
        for entry in effects.entries:
            if isinstance(entry, AttemptEnded) and self._is_overruled(entry):
                self._violations.append(f"B20: {entry} although its outcome had come")
        if effects.commands or effects.alone:
            self._left.append(Left(witness, effects))
        super().send(receipt, witness, effects)

    def _is_overruled(self, entry: AttemptEnded) -> bool:
        # One that failed before an older attempt's success came is another matter: that counts.
        answered = (entry.number, entry.step, entry.direction) in self._answered
        return answered and entry.cause == TIMED_OUT


class CheckedWatch(Watch):
    """Sees what a worker has done: no epoch of a slot comes after a higher one."""

    def __init__(
        self, violations: list[str], epochs: dict[int, int], reached: Counter[str]
    ) -> None:
        self._violations = violations
        self._epochs = epochs
        self._reached = reached

    def served(self, served: Served) -> None:
        """Look at the epochs of what was performed."""
        self._reached["commands repeated"] += served.repeated
        for command, answer in zip(served.commands, served.answers, strict=True):
            if answer.outcome not in PERFORMED:
                continue
            slot = slot_of(command.saga_id)
            highest = self._epochs.setdefault(slot, command.epoch)
            if command.epoch < highest:
                self._violations.append(f"3: {command} was performed after epoch {highest}")
            self._epochs[slot] = max(highest, command.epoch)
