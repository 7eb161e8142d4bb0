"""The rounds of a check: histories performed in each way, and compared with what has to come."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from msgspec import Struct

from sagacity import wire
from sagacity.conformance import histories
from sagacity.conformance.histories import Expected, Model, told
from sagacity.conformance.rehearsal import (
    Crashed,
    Effects,
    MakeAction,
    MakeCompensation,
    OneWorker,
    Part,
    Samples,
    Stage,
    at_once,
    in_a_process,
)
from sagacity.errors import InvariantBroken, Malformed
from sagacity.ids import STEPS_MAX, count_of
from sagacity.service import Service
from sagacity.wire import Answer

WRITES_MAX: Final = 10_000  # of one history; a handler that writes more never ends

T = TypeVar("T")


class Checked(Struct, frozen=True):
    """What a check has performed; all promises were kept.

    Args:
        rounds: histories, each on a database of its own.
        crashes: rounds with a crash in it.
        overlaps: rounds in which two workers met.
        restarts: rounds over two processes.
    """

    rounds: int
    crashes: int
    overlaps: int
    restarts: int


class Broken(AssertionError):
    """A service breaks promises of the barrier; the text says which, and in which history."""


class _Break(Exception):
    """A promise is broken in the round at hand."""

    def __init__(self, promise: str, expected: str, got: str, at: int = 0) -> None:
        super().__init__(promise)
        self.promise, self.expected, self.got, self.at = promise, expected, got, at


def check(
    service: Service,
    *,
    action: MakeAction,
    compensation: MakeCompensation,
    effects: Effects,
    declined: MakeAction | None = None,
    catalog: object = None,
    step: int = 1,
) -> Checked:
    """Check that a service keeps the barrier's promises.

    Args:
        service: to be checked; its handlers run unchanged.
        action: (saga_id, step) -> the body of an action that succeeds, more than once.
        compensation: (saga_id, step, reply) -> the body of its compensation. `reply` is the body of
            the action's Ok, for the ids that the compensation carries; None where nobody knows it,
            or nothing happened.
        effects: counts the effects that stand, wherever they are: a number that an action changes
            and its compensation changes back. It gets a cursor of the database.
        declined: likewise the body of an action that the service declines, if it declines any.
        catalog: what the service's `seed` gets.
        step: of the saga, 1 to 14.

    Returns:
        What was performed.

    Raises:
        Broken: promises are broken.
    """
    if not 1 <= step < STEPS_MAX:
        raise ValueError("step is 1 to 14")
    samples = Samples(service, action, compensation, declined, effects, catalog)
    with tempfile.TemporaryDirectory(prefix="sagacity-conformance-") as folder:
        return _Check(Stage(Path(folder), samples), step).run()


class _Check:
    """The rounds of one check."""

    def __init__(self, stage: Stage, step: int) -> None:
        self._stage = stage
        self._step = step
        self._once = 0  # what one action adds to the effects
        self._foreign: object = None
        self._letters: tuple[str, ...] = histories.SERIAL
        if stage.samples.declined is not None:
            self._letters += histories.DECLINED
        self._rounds = self._crashes = self._overlaps = self._restarts = 0
        self._found: dict[str, str] = {}

    def run(self) -> Checked:
        self._perform("the action alone", "A", self._learn)
        self._end_if_broken()
        kinds: tuple[Callable[[], None], ...] = (
            self._alone,
            self._beside,
            self._with_foreign_ids,
            self._in_one_transaction,
            self._with_crashes,
            self._at_once,
            self._over_processes,
        )
        for kind in kinds:
            kind()
            self._end_if_broken()
        return Checked(self._rounds, self._crashes, self._overlaps, self._restarts)

    def _end_if_broken(self) -> None:
        if self._found:
            name = self._stage.samples.service.name
            count = len(self._found)
            promises = "a promise" if count == 1 else f"{count} promises"
            raise Broken("\n\n".join([f"{name} breaks {promises}", *self._found.values()]))

    def _perform(self, mode: str, letters: str, what: Callable[[], T]) -> T | None:
        """Perform a round; keep what it breaks. Give what it gives."""
        self._rounds += 1
        try:
            with self._stage.round():
                return what()
        except _Break as found:
            promise, expected, got = found.promise, found.expected, found.got
            where = found.at
        except InvariantBroken:
            promise, expected = histories.TRANSACTIONS, "one transaction, ended by the kit"
            got, where = "the handler has ended it", 0
        # What breaks without a failure breaks after one too, and that is no news.
        known = {
            promise,
            *((histories.ONCE, histories.UNDONE) if promise == histories.FAILURE else ()),
        }
        if known.isdisjoint(self._found):
            at = f", at delivery {where}" if where and len(letters) > 1 else ""
            self._found[promise] = (
                f"  {promise}\n"
                f"    history   {told(letters)} ({letters}); {mode}{at}\n"
                f"    expected  {expected}\n"
                f"    got       {got}\n"
                f"    look      {histories.WHY[promise]}"
            )
        return None

    # -- one by one -----------------------------------------------------------------------------

    def _learn(self) -> None:
        """See what one action does; all else is compared with it."""
        part = self._stage.part(self._step)
        with self._stage.worker() as worker:
            before = worker.effects()
            answer = worker.deliver(self._stage.command(part, "A"))[0]
            self._once = worker.effects() - before
        if answer.outcome != wire.OK:
            raise _Break(histories.SAMPLE, "an action that succeeds", _said(answer))
        if self._once == 0:
            raise _Break(
                histories.SAMPLE,
                "`effects` counts what the action did",
                "the same number as before",
            )
        self._foreign = part.reply

    def _alone(self) -> None:
        for letters in self._letters:
            self._perform("alone", letters, partial(self._serial, letters))

    def _serial(self, letters: str, *, others: bool = False) -> None:
        part = self._stage.part(self._step)
        part.foreign = self._foreign
        with self._stage.worker() as worker:
            if others:
                other_step = self._stage.other_step(count_of(part.number), self._step + 1)
                self._bystander(worker, other_step, "another step of the same saga")
            before = worker.effects()
            model, replies = Model(), _Replies()
            for at, letter in enumerate(letters, 1):
                answer = worker.deliver(self._stage.command(part, letter))[0]
                expected = model.deliver(letter)
                promise = histories.OTHERS if others else expected.promise
                self._compare(expected, promise, answer, replies, worker.effects() - before, at)
                if others and at == 1:  # rows of others stand behind its own, too
                    later = self._stage.part(self._step)
                    self._bystander(worker, later, "a saga that comes later")
                    before += self._once

    def _bystander(self, worker: OneWorker, part: Part, who: str) -> None:
        before = worker.effects()
        answer = worker.deliver(self._stage.command(part, "A"))[0]
        added = worker.effects() - before
        if answer.outcome != wire.OK or added != self._once:
            raise _Break(
                histories.OTHERS,
                f"the action of {who} takes effect beside it: ok, {_effects(self._once)}",
                f"{_said(answer)}, {_effects(added)}",
            )

    def _beside(self) -> None:
        """The same, where others have done the same before, and a third saga after the first."""
        mode = "where another saga has done the same"
        self._perform(mode, "A", self._one_other)
        if self._found:
            return
        mode += ", and another step of the same saga"
        for letters in self._letters:
            self._perform(mode, letters, partial(self._serial, letters, others=True))

    def _one_other(self) -> None:
        """Have another saga act, in all the rounds that follow."""
        part = self._stage.part(self._step)
        with self._stage.worker() as worker:
            self._bystander(worker, part, "another saga")
        self._foreign = part.reply
        self._stage.keep()

    def _with_foreign_ids(self) -> None:
        """A compensation that names what is another saga's: failed, and nothing is touched."""
        probe = self._stage.part(self._step)
        probe.foreign = self._foreign
        if probe.body("B") == probe.body("U"):
            return  # its compensations carry no ids
        for letters in histories.FOREIGN:
            self._perform("alone", letters, partial(self._serial, letters))

    def _in_one_transaction(self) -> None:
        for letters in self._letters:
            if len(letters) > 1:
                self._perform("in one transaction", letters, partial(self._batch, letters))

    def _batch(self, letters: str) -> None:
        part = self._stage.part(self._step)
        with self._stage.worker() as worker:
            before = worker.effects()
            answers = worker.deliver(*[self._stage.command(part, letter) for letter in letters])
            model, replies = Model(), _Replies()
            for at, (letter, answer) in enumerate(zip(letters, answers, strict=True), 1):
                expected = model.deliver(letter)
                effect = self._once if expected.stands else 0  # seen at the end alone
                self._compare(expected, histories.BATCH, answer, replies, effect, at)
            effect = worker.effects() - before
            self._compare(expected, histories.BATCH, answer, replies, effect, at)

    # -- crashes --------------------------------------------------------------------------------

    def _with_crashes(self) -> None:
        for letters in self._letters:
            for write in range(1, WRITES_MAX):
                mode = f"crash after write {write}"
                crashed = self._perform(mode, letters, partial(self._crash, letters, write))
                if self._found:
                    return
                if not crashed:
                    break
                self._crashes += 1
            self._perform(
                "each answer is lost in a crash after its commit, and asked for again",
                letters,
                partial(self._lose_answers, letters),
            )
            self._crashes += 1

    def _crash(self, letters: str, write: int) -> bool:
        """Perform a history with a crash after its n-th write; say whether it had so many."""
        part, stage = self._stage.part(self._step), self._stage
        model, replies = Model(), _Replies()
        with stage.worker() as worker:
            before = worker.effects()
        left, at, crashed = write, 0, False
        while at < len(letters):
            letter = letters[at]
            stands = model.stands
            with stage.worker() as worker:
                if not crashed:
                    worker.crash_after(left)
                answer: Answer | None = None
                try:
                    answer = worker.deliver(stage.command(part, letter))[0]
                except Crashed:
                    crashed = True
                left -= worker.writes
            with stage.worker() as worker:
                effect = worker.effects() - before
            if answer is None:
                if effect != (self._once if stands else 0):
                    expected = f"{_effects(self._once if stands else 0)} after the crash"
                    raise _Break(histories.CRASH, expected, _effects(effect), at + 1)
                continue  # its shard sends it again
            at += 1
            self._compare(model.deliver(letter), histories.CRASH, answer, replies, effect, at)
        return crashed

    def _lose_answers(self, letters: str) -> None:
        part, stage = self._stage.part(self._step), self._stage
        model, replies = Model(), _Replies()
        with stage.worker() as worker:
            before = worker.effects()
        for at, letter in enumerate(letters, 1):
            for _ in range(2):
                with stage.worker() as worker:
                    answer = worker.deliver(stage.command(part, letter))[0]
                with stage.worker() as worker:
                    effect = worker.effects() - before
                self._compare(model.deliver(letter), histories.CRASH, answer, replies, effect, at)

    # -- more than one --------------------------------------------------------------------------

    def _at_once(self) -> None:
        for before, one, other in histories.AT_ONCE:
            letters = before + one + other
            self._perform(
                "the last two by two workers at once",
                letters,
                partial(self._overlap, letters),
            )
        self._perform("and another saga's action at once", "A", self._two_sagas)

    def _overlap(self, letters: str) -> None:
        part, stage = self._stage.part(self._step), self._stage
        model, replies = Model(), _Replies()
        with stage.worker() as worker:
            before = worker.effects()
            for at, letter in enumerate(letters[:-2], 1):
                answer = worker.deliver(stage.command(part, letter))[0]
                effect = worker.effects() - before
                expected = model.deliver(letter)
                self._compare(expected, histories.AT_ONCE_ALIKE, answer, replies, effect, at)
        one, other = (stage.command(part, letter) for letter in letters[-2:])
        first, second, met = at_once(stage, one, other)
        self._overlaps += met
        with stage.worker() as worker:
            effect = worker.effects() - before
        expected = model.deliver(letters[-2])
        between = self._once if expected.stands else 0  # seen at the end alone
        at = len(letters)
        self._compare(expected, histories.AT_ONCE_ALIKE, first[0], replies, between, at - 1)
        expected = model.deliver(letters[-1])
        self._compare(expected, histories.AT_ONCE_ALIKE, second[0], replies, effect, at)

    def _two_sagas(self) -> None:
        one, other = self._stage.part(self._step), self._stage.part(self._step)
        with self._stage.worker() as worker:
            before = worker.effects()
        commands = self._stage.command(one, "A"), self._stage.command(other, "A")
        first, second, met = at_once(self._stage, *commands)
        self._overlaps += met
        with self._stage.worker() as worker:
            effect = worker.effects() - before
        if (first[0].outcome, second[0].outcome, effect) != (wire.OK, wire.OK, 2 * self._once):
            raise _Break(
                histories.AT_ONCE_ALIKE,
                f"ok and ok, {_effects(2 * self._once)}",
                f"{_said(first[0])} and {_said(second[0])}, {_effects(effect)}",
            )

    def _over_processes(self) -> None:
        for letters in ("AA", "AU", "AUA", "UA", "FA", "dA"):
            self._perform(
                "each in a process of its own",
                letters,
                partial(self._restart, letters),
            )
            self._restarts += 1

    def _restart(self, letters: str) -> None:
        part, stage = self._stage.part(self._step), self._stage
        model, replies = Model(), _Replies()
        with stage.worker() as worker:
            before = worker.effects()
        for at, letter in enumerate(letters, 1):
            command = stage.command(part, letter)

            def deliver(command: wire.Command = command) -> tuple[int, bytes, int]:
                with stage.worker() as worker:
                    answer = worker.deliver(command)[0]
                    return answer.outcome, answer.body, worker.effects()

            outcome, body, after = in_a_process(deliver)
            answer = wire.answer_to(command, outcome, body)
            expected = model.deliver(letter)
            self._compare(expected, histories.RESTART, answer, replies, after - before, at)

    # -- comparison -----------------------------------------------------------------------------

    def _compare(
        self,
        expected: Expected,
        promise: str,
        answer: Answer,
        replies: "_Replies",
        effect: int,
        at: int,
    ) -> None:
        """Compare a delivery with what it must come to.

        Raises:
            _Break: it is not so.
        """
        due = self._once if expected.stands else 0
        outcome = wire.OUTCOMES[answer.outcome]
        known = replies.swap(answer)
        if (outcome, effect) != (expected.outcome, due):
            raise _Break(
                promise,
                f"{expected.outcome}, {_effects(due)}",
                f"{_said(answer)}, {_effects(effect)}",
                at,
            )
        if expected.repeats and known is not None and answer.body != known:
            raise _Break(promise, f"the stored reply {known!r}", repr(answer.body), at)


class _Replies:
    """The last reply in each direction."""

    def __init__(self) -> None:
        self._kept: dict[int, bytes] = {}

    def swap(self, answer: Answer) -> bytes | None:
        """Keep a reply; give the one before."""
        known = self._kept.get(answer.direction)
        if answer.outcome < wire.FAILED:
            self._kept[answer.direction] = answer.body
        return known


def _said(answer: Answer) -> str:
    """Give an outcome, and why where it is a failure."""
    outcome = wire.OUTCOMES[answer.outcome]
    if answer.outcome != wire.FAILED:
        return outcome
    try:
        return f"failed ({wire.unpack(answer.body).get('text')})"
    except Malformed:
        return outcome


def _effects(count: int) -> str:
    return f"effects {count:+d}" if count else "no effect"
