"""The timeline: a saga's steps as lanes, actions above, compensations below. Knows no socket.

                              0                      0.041 s
    actions
      1 ReserveInventory     |========                       |    0.010 s  ok
      2 ChargePayment        |       ======                  |    0.008 s  declined: no funds
    turned back              |            ^                  |   +0.020 s  declined
    compensations
      1 ReleaseReservation   |             ==================|    0.021 s  ok

What it means is said in `story`, and drawn for a browser in `storypage`.
Times are wall times as journalled: of the rows in which things were written down.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec import Struct, field

from cluster.render import plain, reasons, seconds

COLUMNS: Final = 100
BAR: Final = 32  # columns for the whole of the saga's time
NAME_MAX: Final = 28
NOTES_TOLD: Final = (3, 3)  # of a lane: the first and the last ones
UNDER_WAY, ENDED, OPEN, TURN = "=", "x", ">", "^"
NAMELESS: Final = "a command"  # of a definition that is not there any more

Event = Mapping[str, Any]


class Note(Struct):
    """What happened in a lane beside its end."""

    at_ms: int
    text: str


class Lane(Struct):
    """One command from when it was first sent until its outcome was known.

    Args:
        step: from 1.
        name: of the command.
        begun_ms: wall time; so `ended_ms`, None while there is no outcome.
        attempt: the highest.
        outcome: a word; empty while there is none.
        cause: why, where the answer says so.
        ended_attempts: when attempts failed or timed out, or were their workers' end.
        notes: attempts and requests to try again.
        asked: the command's body as it was first sent, where it is told.
        said: the body of the answer that counts.
        deaths: workers that it ended before it was quarantined.
        is_late: its answer came when the saga had turned back.
    """

    step: int
    name: str
    begun_ms: int
    ended_ms: int | None = None
    attempt: int = 1
    outcome: str = ""
    cause: str = ""
    ended_attempts: list[int] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    asked: Event = field(default_factory=dict)
    said: Event = field(default_factory=dict)
    deaths: int = 0
    is_late: bool = False


class Lanes(Struct):
    """A history, sorted into lanes by direction."""

    first_ms: int
    last_ms: int
    actions: dict[int, Lane] = field(default_factory=dict)
    compensations: dict[int, Lane] = field(default_factory=dict)
    turned_back: Event | None = None
    final: Event | None = None  # the body of the final answer

    @property
    def span_ms(self) -> int:
        """From the first to the last that was written down."""
        return self.last_ms - self.first_ms

    @property
    def turned_ms(self) -> int | None:
        """When the saga turned back, if it did."""
        return None if self.turned_back is None else int(self.turned_back["at_ms"])

    def column(self, at_ms: int) -> int:
        """Give an instant's column in a bar; a clock that was set back leaves none."""
        span = max(1, self.last_ms - self.first_ms)
        return min(max((at_ms - self.first_ms) * (BAR - 1) // span, 0), BAR - 1)


def lanes_of(history: Sequence[Event]) -> Lanes:
    """Sort a history into lanes; events of kinds that are not known are left out."""
    times = [event["at_ms"] for event in history] or [0]
    lanes = Lanes(times[0], max(times))
    lane: Lane | None = None
    for event in history:
        at_ms, kind = event["at_ms"], event["event"]
        if kind == "turned_back":
            lanes.turned_back = event
        elif kind == "finished":
            lanes.final = event.get("body") or {}
            lanes.last_ms = at_ms
        elif kind == "left_out" and lane is not None:
            lane.notes.append(Note(at_ms, f"{event['attempts']} attempts are not kept"))
        elif kind == "asked":
            asked = lanes.compensations.get(event["step"], lane)
            if asked is not None:
                asked.notes.append(Note(at_ms, f"asked to try again: {event['reason']}"))
        elif kind in ("command", "answer", "attempt_ended", "quarantined"):
            lane = _lane_of(lanes, event)
            _take(lane, event)
            if kind == "answer" and event["direction"] == "action":
                # By the order of events: two of one row have one time, and clocks are set.
                lane.is_late = lanes.turned_back is not None
    return lanes


def _lane_of(lanes: Lanes, event: Event) -> Lane:
    is_action = event["direction"] == "action"
    alike = lanes.actions if is_action else lanes.compensations
    found = alike.get(event["step"])
    if found is None:
        body = event.get("body") or {}
        asked = body if event["event"] == "command" else {}
        name = plain(str(asked.get("type") or _asked_for(body)))
        found = alike[event["step"]] = Lane(event["step"], name[:NAME_MAX], event["at_ms"])
        found.asked = asked
    return found


def _asked_for(said: Event) -> str:
    """Give the name of the command that was answered so; SPEC 1 names answers after commands."""
    kind = str(said.get("type", ""))
    for ending in ("_ok", "_failed"):
        if kind.endswith(ending):
            return kind.removesuffix(ending)
    return NAMELESS


def _take(lane: Lane, event: Event) -> None:
    at_ms, attempt = event["at_ms"], event["attempt"]
    lane.attempt = max(lane.attempt, attempt)
    if event["event"] == "answer":
        lane.ended_ms, lane.outcome = at_ms, event["outcome"]
        lane.said = event.get("body") or {}
        lane.cause = reasons(lane.said)
    elif event["event"] == "attempt_ended":
        outcome = event["outcome"].replace("_", " ")
        text = f": {event['text']}" if event.get("text") else ""
        lane.ended_attempts.append(at_ms)
        lane.notes.append(Note(at_ms, f"attempt {attempt} {outcome}{text}"))
    elif event["event"] == "quarantined":
        lane.ended_attempts.append(at_ms)
        lane.deaths = event["deaths"]
        lane.notes.append(Note(at_ms, f"quarantined: {lane.deaths} workers died of it"))


def drawn(lanes: Lanes) -> list[str]:
    """Write the lanes for a terminal, a line each and some below; none where nothing was sent."""
    names = [lane.name for lane in (*lanes.actions.values(), *lanes.compensations.values())]
    if not names:
        return []
    width = min(NAME_MAX, max(map(len, names)))
    total = seconds(lanes.span_ms)
    indent = " " * (width + 5)
    lines = [f"{indent} 0{total.rjust(BAR - 1)}", "actions"]
    for lane in lanes.actions.values():
        lines += _lane(lanes, lane, width, action=True)
    if lanes.turned_back is not None:
        at_ms = lanes.turned_back["at_ms"]
        bar = " " * lanes.column(at_ms) + TURN
        after = f"+{seconds(at_ms - lanes.first_ms)}"
        cause = plain(str(lanes.turned_back["cause"]))
        label = "turned back".ljust(width + 5)
        lines.append(f"{label}|{bar.ljust(BAR)}| {after:>11}  {cause}")
    if lanes.compensations:
        lines.append("compensations")
        # As they were done: the last step is undone first.
        for lane in lanes.compensations.values():
            lines += _lane(lanes, lane, width, action=False)
    return [line.rstrip() for line in lines]


class End(NamedTuple):
    """Where a lane ends in a drawing, and what is said of it there."""

    at_ms: int
    outcome: str
    is_open: bool


def end_of(lanes: Lanes, lane: Lane, *, action: bool) -> End:
    """Say how a lane ends: with its answer, as unknown where the saga turned back, or not yet."""
    turned_ms = lanes.turned_ms
    if lane.ended_ms is not None:
        end = End(lane.ended_ms, f"{lane.outcome}{', late' * lane.is_late}", False)
    elif action and turned_ms is not None:
        end = End(turned_ms, "unknown", False)
    else:
        end = End(lanes.last_ms, "no answer yet", True)
    if lane.attempt > 1:
        return end._replace(outcome=f"{end.outcome}, attempt {lane.attempt}")
    return end


def _lane(lanes: Lanes, lane: Lane, width: int, *, action: bool) -> list[str]:
    end_ms, outcome, is_open = end_of(lanes, lane, action=action)
    took = seconds(end_ms - lane.begun_ms)
    line = f"{lane.step:>3} {lane.name:<{width}} |{_bar(lanes, lane, end_ms, is_open)}| {took:>11}"
    line += f"  {plain(outcome)}"
    cause = plain(lane.cause)
    lines = [line]
    if cause and len(line) + 2 + len(cause) <= COLUMNS:
        lines = [f"{line}: {cause}"]
    elif cause:
        lines.append(_cut(f"{' ' * 10}{cause}"))
    return lines + _notes(lanes, lane)


def _bar(lanes: Lanes, lane: Lane, end_ms: int, is_open: bool) -> str:
    begin, end = sorted((lanes.column(lane.begun_ms), lanes.column(end_ms)))
    cells = [" "] * BAR
    cells[begin : end + 1] = UNDER_WAY * (end + 1 - begin)
    for at_ms in lane.ended_attempts:
        cells[lanes.column(at_ms)] = ENDED
    if is_open:
        cells[end] = OPEN
    return "".join(cells)


def _notes(lanes: Lanes, lane: Lane) -> list[str]:
    first, last = NOTES_TOLD
    notes = lane.notes
    left_out = len(notes) - first - last
    told = [
        _cut(f"{' ' * 10}+{seconds(note.at_ms - lanes.first_ms)}  {plain(note.text)}")
        for note in (notes if left_out <= 1 else [*notes[:first], *notes[-last:]])
    ]
    if left_out > 1:
        told.insert(first, f"{' ' * 10}... {left_out} more, see --events")
    return told


def _cut(line: str) -> str:
    return line if len(line) <= COLUMNS else line[: COLUMNS - 3] + "..."
