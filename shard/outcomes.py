"""Outcomes: what a worker's answer means for its saga. Pure.

A success or a decline counts, of whatever attempt or epoch; *failed* only of the current attempt;
a refusal is no outcome. What moves nothing is absorbed, what should never come is a fault; both
are counted.
"""

from sagacity.errors import broken
from sagacity.ids import ACTION, COMPENSATION, barrier_key
from sagacity.wire import (
    DECLINED,
    FAILED,
    OK,
    OUTCOMES,
    REFUSED,
    REFUSED_FENCED,
    REFUSED_UNAVAILABLE,
    Answer,
    decoder,
)
from shard import entries, phases
from shard.course import Course, writable
from shard.effects import Effects
from shard.events import Instant
from shard.phases import COMPENSATING
from shard.pools import Worker
from shard.sagas import COMPENSATED, OUT, STEP_DECLINED, SUCCEEDED, UNKNOWN, Definition, Live

_epoch_of = decoder(int)
_map = decoder(dict)


class Outcomes:
    """Takes answers, and asks the course for what follows."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._state = course.state
        self._tally = course.tally

    def take(self, worker: Worker, got: Answer, now: Instant, fx: Effects) -> None:
        """Take one answer; what moves nothing is absorbed and counted."""
        number, step, direction, outcome = got.number, got.step, got.direction, got.outcome
        key = barrier_key(number, step, direction)
        worker.out.pop(key, None)
        if key == worker.alone:
            worker.alone, worker.begun = None, False  # it lives, whatever it says
        saga = self._state.live.get(number)
        if saga is None or saga.saga_id != got.saga_id:
            self._tally.absorbed("answer_unknown_saga")
            return
        definition = saga.definition
        if not (
            1 <= step <= definition.last
            and ACTION <= direction <= COMPENSATION
            and OK <= outcome <= REFUSED_UNAVAILABLE
        ):
            self._tally.faulted("answer_out_of_range", about=saga)
            return
        if definition.services[step - 1] != worker.pool.service:
            self._tally.faulted("answer_wrong_pool", about=saga)
            return
        current = step == saga.step and direction == saga.direction
        if outcome >= REFUSED:
            self._refused(worker, saga, got, current, now, fx)
        elif outcome == FAILED or (direction == COMPENSATION and outcome == DECLINED):
            if current and saga.where == OUT and self._is_latest(saga, got):
                self._course.attempt_ended(saga, "failed", _text(got.body), now, fx)
            else:
                self._tally.absorbed("answer_late")
        elif not definition.readable(got):
            self._tally.faulted("answer_malformed", about=saga)
        elif direction == ACTION:
            self._action_settled(saga, got, current, now, fx)
        elif current and saga.phase == COMPENSATING:
            self._compensation_succeeded(saga, got, now, fx)
        else:
            self._tally.absorbed("answer_late")

    def _is_latest(self, saga: Live, got: Answer) -> bool:
        return got.attempt == saga.attempt and got.epoch == self._state.epoch

    def _refused(
        self, worker: Worker, saga: Live, got: Answer, current: bool, now: Instant, fx: Effects
    ) -> None:
        """A refusal is no outcome and never moves a saga."""
        if got.outcome == REFUSED_FENCED:
            try:
                known = _epoch_of(got.body)
            except ValueError:
                known = 0
            if known > self._state.epoch:
                fx.fenced_by = known
            self._tally.absorbed("refused_fenced")
        elif got.outcome == REFUSED_UNAVAILABLE:
            worker.capacity = 0  # until its heartbeat says otherwise
            if current and saga.where == OUT and saga.worker == worker.peer:
                worker.pool.offer_again([saga], now.ns)
            self._tally.absorbed("refused_unavailable")
        elif current and saga.where == OUT and self._is_latest(saga, got):
            self._tally.faulted(OUTCOMES[got.outcome], about=saga)
        else:
            self._tally.absorbed(OUTCOMES[got.outcome])

    def _action_settled(
        self, saga: Live, got: Answer, current: bool, now: Instant, fx: Effects
    ) -> None:
        at, outcome = got.step - 1, got.outcome
        known = saga.states[at]
        if known != UNKNOWN:
            settled_as = {SUCCEEDED: OK, STEP_DECLINED: DECLINED}.get(known)
            if known == COMPENSATED or settled_as == outcome:
                self._tally.absorbed("answer_repeated")
            else:
                # The first stands; or no command did.
                self._tally.faulted("answer_contradicts", about=saga)
            return
        is_late = saga.phase == COMPENSATING
        if is_late and outcome == DECLINED:
            self._tally.absorbed("answer_late")  # its compensation is under way and stays so
            return
        if not (current or is_late):
            broken("an unknown step that is not current", saga=saga)
        course, definition = self._course, saga.definition
        fx.entries.append(got)
        self._state.answered(got, course.seq)
        took = now.ns - saga.sent_at
        self._tally.attempted(definition.names[at], ACTION, OUTCOMES[outcome], took)
        if is_late:
            return  # told in the history; the compensation undoes it
        course.budgets[definition.services[at]].succeeded()
        if not saga.exposed_at and outcome == OK:
            saga.exposed_at = now.ns
        if outcome == DECLINED:
            reason = self._reason(definition, at, got.body)
            course.turn_back(saga, entries.DECLINED, reason, now, fx)
        elif got.step == definition.last:
            course.finish(saga, phases.COMPLETED, now, fx)
        else:
            course.queue(saga, now)

    def _reason(self, definition: Definition, at: int, body: bytes) -> str:
        """Say why a step was declined, as its definition words it; plainly where that raises."""
        try:
            return writable(definition.saga.steps[at].reason(definition.readers.declined[at](body)))
        except Exception as error:  # the definition's own code may raise anything
            self._tally.faulted("definition_reason", type(error).__name__)
            return f"Declined: {definition.names[at]}"

    def _compensation_succeeded(self, saga: Live, got: Answer, now: Instant, fx: Effects) -> None:
        definition, at = saga.definition, got.step - 1
        name = definition.names[at]
        self._tally.attempted(name, COMPENSATION, "ok", now.ns - saga.sent_at)
        self._tally.compensated(definition.name, name, saga.cause)
        self._course.budgets[definition.services[at]].succeeded()
        fx.entries.append(got)
        self._state.answered(got, self._course.seq)
        self._course.compensate_next(saga, now, fx)


def _text(body: bytes) -> str:
    """Read a failure's text for the history; it decides nothing."""
    try:
        return str(_map(body).get("text", ""))[:256]
    except (ValueError, RecursionError):
        return ""
