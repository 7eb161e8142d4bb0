"""A service rehearsed: its database as a file, workers on it, and their ends.

Holds what a conformance check needs of the world: commands for one step of one saga, a worker that
crashes after its n-th write, two workers at once, a worker in a process of its own. Decides
nothing about what is right.
"""

import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from apsw import Connection
from msgspec import Struct, structs

from sagacity import wire
from sagacity.conformance.histories import COMPENSATIONS
from sagacity.executor import BatchExecutor, make_tables
from sagacity.ids import ACTION, COMPENSATION, number_of
from sagacity.service import Call, Database, Declined, Failed, Handler, Ok, Result, Service
from sagacity.wire import Answer, Command, Commands, Witness

CLUSTER_ID: Final = "0" * 32
PATIENCE_S: Final = 10.0  # for the other of two workers at once
RETRY_S: Final = 0.0005

Effects = Callable[[Database], int]
MakeAction = Callable[[str, int], Struct]
MakeCompensation = Callable[[str, int, Any], Struct]


class Crashed(BaseException):
    """A worker has ended in the middle; not an Exception, so that no handler goes on."""


class NoDeclineOfTheService(Struct, frozen=True, tag_field="type", tag="declined_by_the_kit"):
    """The reply of an action that the kit declines."""


class _Broke(Exception):
    """What the kit raises in place of a handler."""


class Samples(Struct, frozen=True):
    """How commands of a service are made, and how their effects are counted.

    Args:
        service: as its author wrote it.
        action: (saga_id, step) -> the body of an action that succeeds.
        compensation: (saga_id, step, reply) -> the body of its compensation; `reply` is the body
            of the action's Ok, None where nobody knows it.
        declined: likewise the body of an action that is declined; None if none is.
        effects: counts the effects that stand.
        catalog: what the service's `seed` gets.
    """

    service: Service
    action: MakeAction
    compensation: MakeCompensation
    declined: MakeAction | None
    effects: Effects
    catalog: object


class Part:
    """One step of one saga: makes its commands, and ends its handlers as a letter says."""

    def __init__(self, samples: Samples, count: int, step: int) -> None:
        self.saga_id = f"conformance-{count}"
        self.number = number_of(count, 0)
        self.step = step
        self.reply: Any = None  # of the action, once it succeeded
        self.foreign: Any = None  # reply of another saga's action, for B
        self._samples = samples
        self._attempts = 0

    def command(self, letter: str) -> Command:
        """Make the next delivery of a history."""
        self._attempts += 1
        direction = COMPENSATION if letter in COMPENSATIONS else ACTION
        return Command(
            self.saga_id,
            self.step,
            direction,
            1,
            self.number,
            self._attempts,
            {"letter": letter},
            wire.encode(self.body(letter)),
        )

    def body(self, letter: str) -> Struct:
        """Make a body as its saga would."""
        made = self._samples
        if letter in COMPENSATIONS:
            reply = {"U": None, "B": self.foreign}.get(letter, self.reply)
            return made.compensation(self.saga_id, self.step, reply)
        if letter == "D" and made.declined is not None:
            return made.declined(self.saga_id, self.step)
        return made.action(self.saga_id, self.step)


class Stage:
    """A service's database, made afresh for each round, and the workers on it.

    Args:
        folder: for files; whose it is removes it.
        samples: of the service.
    """

    def __init__(self, folder: Path, samples: Samples) -> None:
        self.samples = samples
        self.file = folder / "service.db"
        self._template = folder / "template.db"
        self._count = 0
        self._endings: dict[tuple[int, int, int], str] = {}  # (number, step, attempt) -> letter
        self._parts: dict[tuple[int, int], Part] = {}
        self.service = self._wrapped(samples.service)
        connection = _open(self._template)
        make_tables(connection, self.service, CLUSTER_ID, samples.catalog)
        connection.close()

    def part(self, step: int) -> Part:
        """Give a step of a saga that has never been here."""
        self._count += 1
        return self.other_step(self._count, step)

    def other_step(self, count: int, step: int) -> Part:
        """Give another step of the count-th saga."""
        part = Part(self.samples, count, step)
        self._parts[part.number, step] = part
        return part

    def command(self, part: Part, letter: str) -> Command:
        """Make a delivery; its handler will end as the letter says."""
        made = part.command(letter)
        if letter in "dFXfx":
            self._endings[made.number, made.step, made.attempt] = letter
        return made

    def keep(self) -> None:
        """From now on every round begins with what the file holds."""
        shutil.copyfile(self.file, self._template)

    @contextmanager
    def round(self) -> Iterator[None]:
        """Begin with the template's database; nothing is left of it afterwards."""
        shutil.copyfile(self._template, self.file)
        try:
            yield
        finally:
            for suffix in ("", "-wal", "-shm"):
                self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)

    @contextmanager
    def worker(
        self,
        *,
        alive: Callable[[], None] | None = None,
        wait: Callable[[int], bool] | None = None,
    ) -> Iterator["OneWorker"]:
        """Open the file as a worker does; at the end, whatever is not committed is dropped."""
        connection = _open(self.file)
        try:
            yield OneWorker(connection, self, alive, wait)
        finally:
            connection.close(True)

    def _wrapped(self, service: Service) -> Service:
        """Give the service with handlers that end as told, and whose replies are kept."""
        return structs.replace(
            service,
            actions={kind: self._ending(each) for kind, each in service.actions.items()},
            compensations={
                kind: self._ending(each) for kind, each in service.compensations.items()
            },
        )

    def _ending(self, handler: Handler) -> Handler:
        def ended(db: Database, call: Call[Any]) -> Result:
            result = handler(db, call)
            letter = self._endings.get((call.number, call.step, call.attempt))
            if letter is None:
                if isinstance(result, Ok) and handler in self.samples.service.actions.values():
                    self._parts[call.number, call.step].reply = result.body
                return result
            if letter in "Xx":
                raise _Broke
            return Declined(NoDeclineOfTheService()) if letter == "d" else Failed("as the kit says")

        return ended


class OneWorker:
    """A worker on the stage's file, without sockets."""

    def __init__(
        self,
        connection: Connection,
        stage: Stage,
        alive: Callable[[], None] | None,
        wait: Callable[[int], bool] | None,
    ) -> None:
        self._connection = connection
        self._stage = stage
        self._executor = BatchExecutor(connection, stage.service, _Quiet(), alive=alive, wait=wait)
        self.writes = 0  # since `crash_after`
        self._seq = 0
        self._crash_at = 0
        self._changes = 0

    def deliver(self, *commands: Command) -> list[Answer]:
        """Perform commands in one transaction."""
        self._seq += 1
        witness = Witness(CLUSTER_ID, 0, 1, self._seq, bytes(16), 0)
        return self._executor.execute([Commands(witness, list(commands))])[0]

    def effects(self) -> int:
        """Count the effects that stand."""
        return self._stage.samples.effects(self._connection.cursor())

    def crash_after(self, write: int) -> None:
        """Crash when the write-th write from now on is done, before what follows it."""
        self._crash_at, self.writes = write, 0
        self._changes = self._connection.total_changes()
        self._connection.set_exec_trace(self._before_statement)

    def _before_statement(self, _: object, __: str, ___: object) -> bool:
        changes = self._connection.total_changes()
        if changes != self._changes:
            self._changes = changes
            self.writes += 1
            if self.writes == self._crash_at:
                raise Crashed
        return True


class _Quiet:
    """A log that nobody reads."""

    def info(self, event: str, **fields: Any) -> None:
        pass

    warning = error = info


def _open(file: Path) -> Connection:
    """Open a database as a worker does, but without syncs: only processes crash here."""
    connection = Connection(str(file))
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "OFF")
    return connection


def at_once(stage: Stage, one: Command, other: Command) -> tuple[list[Answer], list[Answer], bool]:
    """Have two workers perform a command each: `other` begins while `one` is not yet committed.

    Returns:
        Their answers, and whether the second really met the first one's lock.
    """
    inside, met = threading.Event(), threading.Event()
    answers: dict[int, list[Answer]] = {}
    errors: list[BaseException] = []

    def hold() -> None:
        inside.set()
        met.wait(PATIENCE_S)

    def wait(calls: int) -> bool:
        met.set()
        time.sleep(RETRY_S)
        return calls * RETRY_S < PATIENCE_S

    def run(index: int, worker: OneWorker, command: Command) -> None:
        try:
            answers[index] = worker.deliver(command)
        except BaseException as error:
            errors.append(error)
        finally:
            inside.set()
            if index == 1:
                met_before_end.append(met.is_set())
                met.set()

    met_before_end: list[bool] = []
    with stage.worker(alive=hold) as first, stage.worker(wait=wait) as second:
        threads = [
            threading.Thread(target=run, args=(0, first, one), daemon=True),
            threading.Thread(target=run, args=(1, second, other), daemon=True),
        ]
        threads[0].start()
        inside.wait(PATIENCE_S)
        threads[1].start()
        for thread in threads:
            thread.join(PATIENCE_S * 2)
    if errors:
        raise errors[0]
    return answers[0], answers[1], met_before_end == [True]


def in_a_process(what: Callable[[], Any]) -> Any:
    """Run something in a process of its own, made from this one; give what it gives."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            try:
                said: tuple[bool, Any] = True, what()
            except BaseException as error:
                said = False, f"{type(error).__name__}: {error}"
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(said, pipe)
        finally:
            os._exit(0)  # nothing of this process is flushed or closed twice
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        packed = pipe.read()
    os.waitpid(child, 0)
    went, value = pickle.loads(packed)  # noqa: S301 - our own child wrote it
    if not went:
        raise RuntimeError(value)
    return value
