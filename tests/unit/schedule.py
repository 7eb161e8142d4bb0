"""Schedules: bytes decide what happens to a World and its services, then the faults stop.

    python -m tests.unit.schedule SEED       prints a hash of all that the engine did

Deliveries, duplicates, losses, reorders, declines, failures, workers that die or only seem to,
restarts of the shard, cancels, repeats, and time. The services are a naive twin: the barrier of
DESIGN 5 as one dictionary.
"""

import sys
from collections.abc import Callable, Mapping
from hashlib import sha256
from random import Random
from typing import Any

from msgspec import Struct

from sagacity import wire
from sagacity.ids import ACTION, barrier_key
from sagacity.wire import Answer, Begun, Command, answer_to
from shard.effects import Effects
from shard.events import Answered, CommandBegun, Event, Peer, Requests, WorkerCame, WorkerWent
from shard.loop import WAIT_MAX_NS
from shard.sagas import MS
from tests.unit.world import Rules, World, given, order

TOMBSTONE = -1
SETTLE_TURNS_MAX = 3_000
STARTS = {f"s{at}": order(f"s{at}") for at in range(4)}


class Dice:
    """Choices from bytes; when they are used up, the first choice always."""

    def __init__(self, thrown: bytes) -> None:
        self._thrown = iter(thrown)
        self.left = len(thrown)

    def pick(self, sides: int) -> int:
        """Give 0 .. sides - 1."""
        self.left -= 1
        return next(self._thrown, 0) % sides


class Twin:
    """All services at once: what they hold, and the barrier, in dictionaries."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.rows: dict[int, tuple[int, bytes]] = {}
        self.done: list[int] = []  # barrier keys, as they took effect
        self.fence = 0

    def handle(self, command: Command, mood: int) -> Answer:
        """Give the answer to a command; `mood` is the outcome that a first delivery has."""
        if command.epoch < self.fence:
            return answer_to(command, wire.REFUSED_FENCED, wire.encode(self.fence))
        self.fence = command.epoch
        key = barrier_key(command.number, command.step, command.direction)
        if command.direction == ACTION and key | 1 in self.rows:
            return answer_to(command, wire.REFUSED_COMPENSATED, b"")
        if key not in self.rows:
            if mood == wire.FAILED or (mood and command.direction):
                failed = self._world.body_of(command, wire.FAILED)
                return answer_to(command, wire.FAILED, failed)
            self._run(key, command, mood)
        return answer_to(command, *self.rows[key])

    def _run(self, key: int, command: Command, mood: int) -> None:
        if command.direction == ACTION:
            self.rows[key] = (mood, self._world.body_of(command, mood))
            if mood == wire.OK:
                self.done.append(key)
            return
        outcome, reply = self.rows.setdefault(key & ~1, (TOMBSTONE, b""))
        named = set(wire.unpack(command.body)) - {"type", "saga_id", "step", "compensating"}
        if named:  # ids are compared with what is held, never acted on
            held, told = wire.unpack(reply), wire.unpack(command.body)
            assert all(held[name] == told[name] for name in named)
        if outcome == wire.OK:
            self.done.append(key)
        self.rows[key] = (wire.OK, self._world.body_of(command, wire.OK))


class Told(Struct):
    """What clients were told."""

    final: dict[str, dict[str, Any]] = {}
    cancelled: set[str] = set()


class Schedule:
    """One run: `play` with faults, `settle` without."""

    def __init__(
        self,
        thrown: bytes,
        rules: Rules | None = None,
        starts: Mapping[str, Mapping[str, Any]] = STARTS,
        world: World | None = None,
    ) -> None:
        self.world = world or World(rules)
        self._starts = starts
        self.twin = Twin(self.world)
        self.told = Told()
        self.digest = sha256()
        self.answers: list[tuple[Peer, Answer]] = []  # on their way
        self.zombies: list[Command] = []  # with workers whose connection is gone
        self._dice = Dice(thrown)
        self._came = 0
        self._asked: dict[int, str] = {}
        self._ids = list(starts)
        self._moves: list[Callable[[], None]] = [
            self._work,
            self._work,
            self._work,
            self._answer,
            self._answer,
            self._answer,
            self._start,
            self._pass_time,
            self._lose,
            self._die,
            self._cancel,
            self._zombie,
            self._restart,
            self._begin,
            self._begin,
        ]
        self._hello()

    def play(self) -> None:
        """Do what the bytes say."""
        while self._dice.left > 0:
            self._moves[self._dice.pick(len(self._moves))]()

    def settle(self) -> None:
        """No more faults: everything is delivered, until nothing runs."""
        for zombie in self.zombies:
            self.twin.handle(zombie, wire.OK)
        self._hello()
        for _ in range(SETTLE_TURNS_MAX):
            self.answers.clear()
            if not self.world.engine.inflight:
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
            if len(events) == len(self.world.present):  # nothing but beats
                due = self.world.engine.next_due()
                left_ns = WAIT_MAX_NS if due is None else due - self.world.now.ns
                self.world.after(max(1, -(-left_ns // MS)))
            self._step(*events)
        raise AssertionError(f"not final: {list(self.world.engine.state.live.values())}")

    # -- moves ----------------------------------------------------------------------------------

    def _work(self) -> None:
        """A worker does a command; it may keep it, to do it again."""
        held = [(peer, command) for peer, all_ in self.world.held.items() for command in all_]
        if not held:
            return self._start()
        peer, command = held[self._dice.pick(len(held))]
        mood = (wire.OK, wire.OK, wire.OK, wire.OK, wire.DECLINED, wire.FAILED)[self._dice.pick(6)]
        self.answers.append((peer, self.twin.handle(command, mood)))
        if self._dice.pick(4):
            self.world.held[peer].remove(command)
        return None

    def _answer(self) -> None:
        """Some answers arrive, in any order; one may arrive twice."""
        events: list[Event] = []
        for _ in range(1 + self._dice.pick(3)):
            if self.answers:
                at = self._dice.pick(len(self.answers))
                peer, answer = self.answers[at]
                events.append(Answered(peer, [answer]))
                if self._dice.pick(4):
                    del self.answers[at]
        self._step(*events)

    def _start(self) -> None:
        saga_id = self._ids[self._dice.pick(len(self._ids))]
        self._step(self._ask(wire.START, saga_id, self._starts[saga_id]))

    def _cancel(self) -> None:
        saga_id = self._ids[self._dice.pick(len(self._ids))]
        body = {"type": "cancel", "saga_id": saga_id, "reason": "x"}
        self._step(self._ask(wire.CANCEL, saga_id, body))

    def _pass_time(self) -> None:
        self.world.after((1, 30, 400, 3_100, 9_000)[self._dice.pick(5)])
        beats = self.world.beats() if self._dice.pick(3) else []
        self._step(*beats, timers=self._dice.pick(4) != 3)

    def _lose(self) -> None:
        """A command or an answer is lost."""
        if self.answers and self._dice.pick(2):
            del self.answers[self._dice.pick(len(self.answers))]
        else:
            held = [peer for peer, all_ in self.world.held.items() if all_]
            if held:
                self.world.held[held[self._dice.pick(len(held))]].pop()

    def _die(self, peer: Peer | None = None) -> None:
        """A worker's connection closes; it may go on for a while with what it has."""
        workers = self.world.present
        peer = peer or workers[self._dice.pick(len(workers))]
        self.zombies += self.world.held.pop(peer, [])
        self._step(WorkerWent(peer))
        if not self._dice.pick(2):
            self.answers = [each for each in self.answers if each[0] != peer]
        if len(self.world.present) < len(self.world.engine.services()) or self._dice.pick(2):
            self._hello()

    def _begin(self) -> None:
        """A worker runs a command alone, suspected or not, and often dies of it."""
        held = [(peer, command) for peer, all_ in self.world.held.items() for command in all_]
        if held:
            peer, command = held[self._dice.pick(len(held))]
            said = Begun(command.number, command.step, command.direction, command.attempt)
            self._step(CommandBegun(peer, said))
            if self._dice.pick(3) and peer in self.world.present:
                self._die(peer)

    def _zombie(self) -> None:
        if self.zombies:
            command = self.zombies.pop(self._dice.pick(len(self.zombies)))
            mood = (wire.OK, wire.DECLINED, wire.FAILED)[self._dice.pick(3)]
            self.twin.handle(command, mood)

    def _restart(self) -> None:
        """The shard dies with all connections; a zombie may hold what was out."""
        for held in self.world.held.values():
            self.zombies += held
        self.answers.clear()
        self._take(self.world.restart())
        self._hello()

    # -- the client's and the workers' side -----------------------------------------------------

    def _hello(self) -> None:
        self._came += 1
        services = sorted(self.world.engine.services())
        names = [(name, f"{name}-{self._came}".encode()) for name in services]
        self._step(*(WorkerCame(peer, name, self._came, 2) for name, peer in names))

    def _ask(self, kind: int, saga_id: str, body: Mapping[str, Any]) -> Requests:
        self._asked[self.world.requests + 1] = f"{kind} {saga_id}"
        return self.world.ask(kind, saga_id, body)

    def _step(self, *events: Event, timers: bool = True) -> None:
        self._take(self.world.step(*events, timers=timers))

    def _take(self, effects: Effects) -> None:
        assert not effects.fenced_by
        state = self.world.replica
        for peer, commands in given(effects):
            for command in commands:
                saga = state.live[command.number]  # its start is durable, and what asks for it
                facts = (saga.saga_id, saga.step, saga.direction, saga.attempt, state.epoch)
                assert facts == (
                    command.saga_id,
                    command.step,
                    command.direction,
                    command.attempt,
                    command.epoch,
                )
                self.digest.update(peer + wire.encode(command))
        for entry in effects.entries:
            self.digest.update(wire.encode(entry))
        for replies in effects.replies.values():
            for reply in replies:
                self.digest.update(wire.encode(reply))
                self._hear(reply)

    def _hear(self, reply: wire.Reply) -> None:
        """A final answer never changes; a cancelled one is ABORTED; no repeat is refused."""
        kind, saga_id = self._asked[reply.request].split()
        if reply.code == 11:
            state = self.world.replica
            assert int(kind) in (wire.START, wire.SUBMIT)
            assert saga_id not in state.by_id
            assert state.finished.find(saga_id) is None
        elif reply.code is not None:
            assert reply.code in (0, 20, 22)
        elif int(kind) == wire.RETRY:
            assert wire.unpack(reply.body)["type"] == "retry_ok"
        elif int(kind) == wire.CANCEL:
            self.told.cancelled.add(saga_id)
        else:
            body = wire.unpack(reply.body)
            assert self.told.final.setdefault(saga_id, body) == body


def main(seed: int) -> None:
    """Print what a hash of everything says; the same in every process."""
    schedule = Schedule(Random(seed).randbytes(600))
    schedule.play()
    schedule.settle()
    print(schedule.digest.hexdigest(), schedule.world.journal.last.chain.hex())


if __name__ == "__main__":
    main(int(sys.argv[1]))
