"""Lives: what a saga's entries say of it, walked in order, and which of them break the law. Pure.

Shares no rule with the cluster: what a saga may do is written down here a second time, plainly.
"""

from typing import Final

from msgspec import Struct, field

from checker.bodies import is_about, said
from checker.evidence import CHECKOUT, Plan, Story
from sagacity.ids import ACTION, COMPENSATION, DIRECTIONS, order_id
from sagacity.wire import DECLINED, OK, Answer
from shard import entries
from shard.entries import AttemptEnded, Entry, Finished, Quarantined, RetryAsked, TurnedBack

RUNNING: Final = 1
COMPENSATING: Final = 2
COMPLETED: Final = 3
ABORTED: Final = 4
PHASES: Final = ("NEW", "RUNNING", "COMPENSATING", "COMPLETED", "ABORTED")

LATE_ATTEMPTS: Final = 20  # docs/journal-format.md: what is kept of a long compensation
ATTEMPT_CAUSES: Final = ("failed", "timed_out")


def phase_name(phase: int) -> str:
    """Give a phase's name, whatever a changed row says."""
    return PHASES[phase] if 0 <= phase < len(PHASES) else f"phase {phase}"


Place = tuple[int, int]  # step, direction


class Life(Struct):
    """Which way a saga went.

    Args:
        saga_id: its id.
        phase: where it is, or ended.
        step: the highest step whose action may have been sent; 0 for none.
        direction: of the current command.
        attempt: of the current command.
        outcomes: what its journal has of each command.
        due: the row that made a command due first.
        owed: steps whose compensation was due when it turned back, in the order in which it was.
        undone: those that succeeded, in order.
        unknown: whether the outcome of the action at hand is.
        cause: why it turned back; "" if it did not.
        reason: likewise, for its client.
        final: the final answer.
        attempts: that ended without an outcome.
        held: its compensation is quarantined.
        faults: what no saga may do.
    """

    saga_id: str
    phase: int = RUNNING
    step: int = 1
    direction: int = ACTION
    attempt: int = 1
    outcomes: dict[Place, Answer] = field(default_factory=dict)
    due: dict[Place, int] = field(default_factory=dict)
    owed: list[int] = field(default_factory=list)
    undone: list[int] = field(default_factory=list)
    unknown: bool = True
    cause: str = ""
    reason: str = ""
    final: bytes = b""
    attempts: int = 0
    held: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.phase in (COMPLETED, ABORTED)

    @property
    def left(self) -> list[int]:
        """Steps whose compensation is still due, in the order in which it is."""
        return self.owed[len(self.undone) :]

    def may_have_sent(self, step: int, direction: int) -> bool:
        """Say whether a command may have been sent, by what the journal has."""
        return (step, direction) in self.due


class _Walk:
    """One saga's walk; `expected` is what an entry has left no choice about."""

    def __init__(self, story: Story, plan: Plan) -> None:
        self.life = Life(story.started.saga_id)
        self.life.due[1, ACTION] = story.seq
        self._story = story
        self._plan = plan
        self._last = len(plan.services)
        self._expected: tuple[str, int] | None = None  # what has to follow, in which row
        self._seq = story.seq

    def run(self) -> Life:
        for seq, entry in self._story.told():
            if seq < self._seq:
                self._fault(f"row {seq} comes after row {self._seq}")
            if getattr(entry, "number", None) != self._story.started.number:
                self._fault(f"{_name(entry)} is of another saga")
            self._must_follow(seq, entry)
            self._seq = seq
            if self.life.is_final:
                self._fault(f"{_name(entry)} after its end")
            elif isinstance(entry, Answer):
                self._answered(entry)
            elif isinstance(entry, TurnedBack):
                self._turned_back(entry)
            elif isinstance(entry, Finished):
                self._finished(entry)
            elif isinstance(entry, AttemptEnded):
                self._attempt_ended(entry)
            elif isinstance(entry, Quarantined):
                self._quarantined(entry)
            elif isinstance(entry, RetryAsked):
                self._retry_asked(entry)
            else:
                self._fault(f"{_name(entry)} is none of a saga's")
        if self._expected is not None:
            self._fault(f"{self._expected[0]} does not follow in row {self._expected[1]}")
        return self.life

    def _must_follow(self, seq: int, entry: Entry) -> None:
        if self._expected is not None and (_name(entry), seq) != self._expected:
            self._fault(f"{self._expected[0]} does not follow in row {self._expected[1]}")
        self._expected = None

    def _expect(self, name: str) -> None:
        self._expected = (name, self._seq)

    def _answered(self, entry: Answer) -> None:
        life, place = self.life, (entry.step, entry.direction)
        if entry.saga_id != life.saga_id:
            self._fault(f"an outcome of saga {entry.saga_id}")
        if place in life.outcomes:
            self._fault(f"a second outcome of {place_name(*place)}")
            return
        if entry.outcome not in (OK, DECLINED):
            self._fault(f"{place_name(*place)}: {entry.outcome} is no outcome")
        if entry.epoch < self._story.started.slot_epoch:
            self._fault(
                f"{place_name(*place)}: an outcome of epoch {entry.epoch}, before its start"
            )
        life.outcomes[place] = entry
        self._reply_of(entry)
        if entry.direction == ACTION:
            self._action(entry)
        else:
            self._compensation(entry)

    def _reply_of(self, entry: Answer) -> None:
        """The body is about this saga and step."""
        if not is_about(entry.body, self.life.saga_id, entry.step):
            self._fault(
                f"{place_name(entry.step, entry.direction)}: its reply is of another command"
            )

    def _action(self, entry: Answer) -> None:
        life = self.life
        turned = life.phase == COMPENSATING
        if entry.step != life.step or not life.unknown:
            self._fault(f"an outcome of action {entry.step}, which nobody waits for")
            return
        if not 1 <= entry.attempt <= life.attempt and not turned:
            self._fault(f"an outcome of attempt {entry.attempt} of action {entry.step}, not sent")
        life.unknown = False
        if turned:
            # A late success is noted, unless the step has been compensated; a late no is not.
            if entry.outcome != OK or entry.step not in life.left:
                self._fault(f"a late outcome {entry.outcome} of action {entry.step}")
        elif entry.outcome == DECLINED:
            self._expect("TurnedBack")
        elif entry.step == self._last:
            self._expect("Finished")
        else:
            self._next(entry.step + 1, ACTION)
            life.step, life.unknown = entry.step + 1, True

    def _next(self, step: int, direction: int) -> None:
        self.life.direction, self.life.attempt = direction, 1
        self.life.due.setdefault((step, direction), self._seq)

    def _compensation(self, entry: Answer) -> None:
        life = self.life
        if life.phase != COMPENSATING or not life.left or entry.step != life.left[0]:
            self._fault(f"compensation {entry.step} out of its turn")
            return
        if entry.outcome != OK:
            self._fault(f"compensation {entry.step} with outcome {entry.outcome}")
        # Of a long compensation the attempts in the middle may be left out of what is kept.
        if not 1 <= entry.attempt <= life.attempt and life.attempts < LATE_ATTEMPTS:
            self._fault(f"an outcome of attempt {entry.attempt} of compensation {entry.step}")
        life.undone.append(entry.step)
        life.held = False
        if life.left:
            self._next(life.left[0], COMPENSATION)
        else:
            self._expect("Finished")

    def _turned_back(self, entry: TurnedBack) -> None:
        life = self.life
        declined = life.outcomes.get((life.step, ACTION))
        is_declined = declined is not None and declined.outcome == DECLINED
        if life.phase != RUNNING or entry.step != life.step:
            self._fault(f"turned back at step {entry.step}, it was at {life.step}")
            return
        if entry.cause not in entries.CAUSES or is_declined != (entry.cause == entries.DECLINED):
            self._fault(f"turned back as {entry.cause!r} without such a reason")
        if entry.cause == entries.TIMED_OUT and not life.attempt > 1:
            self._fault("turned back for attempts that did not end")
        if entry.cause == entries.QUARANTINED and not life.held:
            self._fault("turned back for a quarantine that was not")
        if entry.cause == entries.UNPRICED:
            if self._seq != self._story.seq or life.outcomes or life.step != 1:
                self._fault("turned back for its price after its start")
            life.due.clear()
            life.step, life.unknown = 0, False
        life.phase, life.held = COMPENSATING, False
        life.cause, life.reason = entry.cause, entry.reason
        self._reason(entry)
        life.owed = list(range(life.step - is_declined, 0, -1))
        if life.owed:
            self._next(life.owed[0], COMPENSATION)
        else:
            self._expect("Finished")

    def _reason(self, entry: TurnedBack) -> None:
        """The reason says what the cause is, as SPEC 1 words it."""
        if entry.cause in (entries.TIMED_OUT, entries.DEADLINE, entries.QUARANTINED):
            fits = entry.reason == f"Timed out: {self._plan.names[entry.step - 1]}"
        elif entry.cause == entries.CANCELLED:
            fits = entry.reason.startswith("Cancelled: ")
        elif self._story.started.saga != CHECKOUT:
            fits = True  # the definition's own words
        elif entry.cause == entries.UNPRICED:
            fits = entry.reason.startswith("Unknown SKU: ")
        else:
            answer = self.life.outcomes.get((entry.step, ACTION))
            fits = answer is None or entry.reason == _declined(entry.step, answer.body)
        if not fits:
            self._fault(f"turned back as {entry.cause!r}, and its reason is {entry.reason!r}")

    def _attempt_ended(self, entry: AttemptEnded) -> None:
        life = self.life
        if not self._is_current(entry):
            self._fault(
                f"an attempt of {place_name(entry.step, entry.direction)} that is not current"
            )
            return
        if entry.cause not in ATTEMPT_CAUSES:
            self._fault(f"an attempt ended as {entry.cause!r}")
        if entry.attempt != life.attempt and not self._is_thinned(entry):
            self._fault(f"attempt {entry.attempt} ended, attempt {life.attempt} was sent")
        life.attempt = entry.attempt + 1
        life.attempts += 1
        life.held = False

    def _quarantined(self, entry: Quarantined) -> None:
        life = self.life
        known = entry.attempt == life.attempt or self._is_thinned(entry)
        if not self._is_current(entry) or not known or life.held:
            self._fault(f"{place_name(entry.step, entry.direction)} quarantined, it is not current")
            return
        if entry.deaths < 1:
            self._fault("quarantined without a death")
        life.attempt = max(life.attempt, entry.attempt)
        life.held = True
        if entry.direction == ACTION:
            self._expect("TurnedBack")

    def _is_thinned(self, entry: AttemptEnded | Quarantined) -> bool:
        """Say whether attempts may be left out: the middle of a long compensation is not kept."""
        late = self.life.attempts >= LATE_ATTEMPTS and entry.attempt > self.life.attempt
        return late and entry.direction == COMPENSATION

    def _is_current(self, entry: AttemptEnded | Quarantined) -> bool:
        life = self.life
        if life.phase == COMPENSATING:
            return entry.direction == COMPENSATION and life.left[:1] == [entry.step]
        return entry.direction == ACTION and entry.step == life.step and life.unknown

    def _retry_asked(self, entry: RetryAsked) -> None:
        if self.life.phase != COMPENSATING or self.life.left[:1] != [entry.step]:
            self._fault(f"step {entry.step} asked again, it is not being compensated")
        if not entry.reason:
            self._fault("asked again without a reason")
        self.life.held = False

    def _finished(self, entry: Finished) -> None:
        life = self.life
        if entry.phase == COMPLETED:
            done = [life.outcomes.get((step, ACTION)) for step in range(1, self._last + 1)]
            if life.phase != RUNNING or any(each is None or each.outcome for each in done):
                self._fault("COMPLETED with a step that has not succeeded")
        elif entry.phase == ABORTED:
            if life.phase != COMPENSATING or life.left:
                self._fault(f"ABORTED, and steps {life.left} are not compensated")
        else:
            self._fault(f"ended in phase {entry.phase}")
        life.phase, life.final = entry.phase, entry.answer

    def _fault(self, text: str) -> None:
        self.life.faults.append(f"row {self._seq}: {text}")


def walk(story: Story, plan: Plan) -> Life:
    """Walk a saga's entries; tell which way it went, and what no saga may do."""
    return _Walk(story, plan).run()


def final_answer(story: Story, life: Life) -> dict[str, object] | None:
    """Give the final answer that SPEC 1 promises; None for a saga that is no checkout."""
    started = story.started
    if started.saga != CHECKOUT:
        return None
    told: dict[str, object] = {"type": "checkout_complete", "saga_id": started.saga_id}
    if life.phase == COMPLETED:
        order = order_id(started.order_count, started.slot)
        return {**told, "status": "COMPLETED", "order_id": order}
    return {**told, "type": "checkout_failed", "status": "ABORTED", "reason": life.reason}


def _declined(step: int, body: bytes) -> str:
    """Give the reason of a declined step of a checkout."""
    told = said(body)
    if step == 1:
        return f"Out of stock: {told.get('sku')}"
    who = "Payment declined" if step == 2 else "Shipment refused"
    return f"{who}: {told.get('decline_code')}"


def _name(entry: object) -> str:
    return type(entry).__name__


def place_name(step: int, direction: int) -> str:
    """Give a command's name, whatever a changed row says."""
    return f"{DIRECTIONS[direction] if direction in (0, 1) else direction} {step}"
