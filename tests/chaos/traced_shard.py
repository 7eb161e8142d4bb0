"""A real shard between twins whose life is cut short in a system call, again and again.

What it leads to is told by the twins: the router's answers, the effects of the workers' made-up
services; and by its journal. See `syscalls`.
"""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from config.load import load
from sagacity import wire
from sagacity.checker.evidence import Evidence
from sagacity.checker.folds import plans_of
from sagacity.checker.rules import judge
from sagacity.checker.verdict import HOLDS
from sagacity.ids import ACTION, COMPENSATION
from sagacity.wire import DECLINED, OK, Command
from shard.evidence import read
from shard.process import definitions_of
from tests.chaos.injected import LIFE_S, Fault, Injector, odd_end
from tests.integration.shard_world import ShardWorld

BURSTS: Final = 4  # of a life; the next comes when the last is answered
BURST: Final = (
    # How it ends, and how it is asked.
    ("completes", wire.START),
    ("completes", wire.SUBMIT),
    ("declined_1", wire.START),
    ("declined_2", wire.START),
    ("declined_3", wire.SUBMIT),
    ("completes", wire.START),
)
INVARIANTS: Final = (4, 6)  # those that a journal tells
PARTLY: Final = (6,)  # and not alone
TAIL_BYTES: Final = 8 << 10  # so that each life compacts its journal, too
ENV: Final = {"SAGACITY_SHARD__TAIL_BYTES": str(TAIL_BYTES), "SAGACITY_LOG": "warning"}


def _outcome(asked: Command) -> int:
    declines = asked.direction == ACTION and asked.saga_id.startswith(f"declined_{asked.step}")
    return DECLINED if declines else OK


class TracedShard:
    """A shard and its twins; `live` once for each fault, then `end`.

    Args:
        world: on a new directory.
        library: that takes back what was not synced, where the power fails.
        lies: its syncs are not carried out.
    """

    role = "shard"

    def __init__(
        self, world: ShardWorld, library: Path | None = None, *, lies: bool = False
    ) -> None:
        self._world = world
        for worker in world.workers.values():
            worker.outcome = _outcome
        journal = world.data.journal(0)
        names = ("", "-wal", "-journal", "-shm")
        paths = [journal.with_name(journal.name + name) for name in names]
        paths += [journal.parent, journal.parent / "reserve"]
        self.injector = Injector(paths, world.base, world.data.path, library, lies=lies)
        self._lives = 0
        self._asked: dict[int, str] = {}  # by request, those whose answer is not judged yet
        self._acknowledged: set[str] = set()
        self._finals: dict[str, dict[str, Any]] = {}
        self._violations: list[str] = []

    @property
    def checkouts(self) -> int:
        """How many were asked."""
        return len(self._acknowledged | set(self._asked.values()))

    def live(self, fault: Fault) -> bool:
        """Run the shard under a fault until it ends, or the work does; say whether it struck."""
        world = self._world
        process = world.start(env=ENV, under=self.injector.command(fault))
        bursts = self._bursts()
        self._lives += 1
        stopped = False
        give_up = time.monotonic() + LIFE_S
        while process.poll() is None:
            assert time.monotonic() < give_up, f"{len(self._asked)} checkouts without an answer"
            if not stopped and not self._asked and next(bursts, None) is None:
                process.send_signal(signal.SIGTERM)
                stopped = True
            self._turn()
        world.until(lambda: not world.connected, "the end of the connection")
        hit = self.injector.ended(fault, process.wait())
        self._violations += odd_end(process.returncode, struck=hit)
        return hit

    def end(self) -> list[str]:
        """Run it without a fault until all is answered, stop it; give what is not as it should be.

        Returns:
            Violations, as sentences.
        """
        process = self._world.started(env=ENV)
        self._world.until(self._settled, "answers to all checkouts")
        lost = [name for name in sorted(self._acknowledged) if self._show(name) is not None]
        self._violations += [f"{name} was acknowledged and is not known" for name in lost]
        again = {name: self._world.start_saga(name) for name in sorted(self._acknowledged)}
        for name, request in again.items():
            code, told = self._world.answer(request)
            if code is not None or self._finals.setdefault(name, told) != told:
                self._violations.append(f"{name}: answered {self._finals.get(name)}, then {told}")
            self._check_end(name, told)
        process.send_signal(signal.SIGTERM)
        if (code := self._world.ended(process)) != 0:
            self._violations.append(f"the last life ended with {code}")
        self._violations += self.books()
        self._violations += self._journal()
        return self._violations

    def forget_an_effect(self) -> None:
        """Take one from what a twin did, for a test that this is seen."""
        self._world.workers["payment"].effects.popitem()

    # -- conversation ---------------------------------------------------------------------------

    def _bursts(self) -> Iterator[int]:
        for burst in range(BURSTS):
            for at, (ending, kind) in enumerate(BURST):
                name = f"{ending}-{self._lives}-{burst}-{at}"
                self._asked[self._world.start_saga(name, kind)] = name
            yield burst

    def _settled(self) -> bool:
        self._judge_answers()
        return not self._asked

    def _turn(self) -> None:
        self._world.turn()
        self._judge_answers()

    def _judge_answers(self) -> None:
        for request in [each for each in self._asked if each in self._world.replies]:
            name = self._asked.pop(request)
            reply = self._world.replies[request]
            told = wire.unpack(reply.body)
            if reply.code == 11:  # nothing has happened: a client asks again
                self._asked[self._world.start_saga(name)] = name
            elif reply.code is not None:
                self._violations.append(f"{name} was answered {reply.code}: {told}")
            else:
                self._acknowledged.add(name)
                if told.get("status") in {"COMPLETED", "ABORTED"}:
                    self._finals[name] = told

    def _show(self, name: str) -> int | None:
        code, _ = self._world.answer(self._world.ask(wire.SHOW, name))
        return code

    # -- what must hold -------------------------------------------------------------------------

    def _check_end(self, name: str, told: dict[str, Any]) -> None:
        wanted = "COMPLETED" if name.startswith("completes") else "ABORTED"
        if told.get("status") != wanted:
            self._violations.append(f"{name} was answered {told}")

    def books(self) -> Iterator[str]:
        """What the workers did is what the answers say: no effect too many, none left standing."""
        done: dict[str, Counter[tuple[int, int, int]]] = {}
        for worker in self._world.workers.values():
            names = {(each.number, each.step): each.saga_id for each in worker.seen}
            for answer in worker.effects.values():
                name = names[answer.number, answer.step]
                key = (answer.step, answer.direction, answer.outcome)
                done.setdefault(name, Counter())[key] += 1
        for name in sorted(self._acknowledged):
            had, last = done.pop(name, Counter()), 3
            if name.startswith("declined"):
                last = int(name[len("declined_")])
            wanted = Counter({(step, ACTION, OK): 1 for step in range(1, last + 1)})
            if name.startswith("declined"):
                del wanted[last, ACTION, OK]
                wanted[last, ACTION, DECLINED] = 1
                wanted.update({(step, COMPENSATION, OK): 1 for step in range(1, last)})
            if had != wanted:
                yield f"{name} had the effects {dict(had)}, not {dict(wanted)}"
        for name in done:
            yield f"{name} had effects and was never acknowledged"

    def _journal(self) -> Iterator[str]:
        definitions = definitions_of(load(None))
        cluster_id = self._world.cluster.cluster_id
        journal = read(self._world.data.journal(0), cluster_id, 0, definitions)
        yield from journal.faults
        names = [story.started.saga_id for story in journal.stories.values()]
        if sorted(names) != sorted(self._acknowledged):
            yield f"the journal has {len(names)} sagas, {len(self._acknowledged)} were acknowledged"
        owners = self._world.cluster.slots.owners
        evidence = Evidence(cluster_id, owners, [journal], {}, plans_of(definitions))
        for verdict in judge(evidence, INVARIANTS):
            # What a service's database would show of the sixth, the twins' effects do: `books`.
            if verdict.found or (verdict.verdict != HOLDS and verdict.number not in PARTLY):
                told = "; ".join(f"{each.saga_id} {each.what}" for each in verdict.findings[:3])
                yield f"invariant {verdict.number} {verdict.verdict}: {told} {verdict.why[:2]}"
