"""The timeline: a saga's steps as lanes, actions above, compensations below. Knows no socket.

    checkout43  ABORTED  order o1603  amount 200.00
    started 2026-01-31 18:00:00.123, took 0.041 s

                              0                      0.041 s
    actions
      1 ReserveInventory     |========                       |    0.010 s  ok
      2 ChargePayment        |       ======                  |    0.008 s  declined: no funds
    turned back              |            ^                  |   +0.020 s  declined
    compensations
      1 ReleaseReservation   |             ==================|    0.021 s  ok

    It was turned back (Payment declined: no funds), and everything it had done is undone.

Times are wall times as journalled: of the rows in which things were written down.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, field

from cluster.render import headline, moment, plain, reasons, seconds, why

COLUMNS: Final = 100
BAR: Final = 32  # columns for the whole of the saga's time
NAME_MAX: Final = 28
NOTES_TOLD: Final = (3, 3)  # of a lane: the first and the last ones
UNDER_WAY, ENDED, OPEN, TURN = "=", "x", ">", "^"

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


class Lanes(Struct):
    """A history, sorted into lanes by direction."""

    first_ms: int
    last_ms: int
    actions: dict[int, Lane] = field(default_factory=dict)
    compensations: dict[int, Lane] = field(default_factory=dict)
    turned_back: Event | None = None
    is_final: bool = False

    def column(self, at_ms: int) -> int:
        """Give an instant's column in a bar; a clock that was set back leaves none."""
        span = max(1, self.last_ms - self.first_ms)
        return min(max((at_ms - self.first_ms) * (BAR - 1) // span, 0), BAR - 1)


def timeline(body: Mapping[str, Any]) -> str:
    """Write a saga's history (the answer to SHOW) for people, as lanes."""
    history: Sequence[Event] = body.get("history", [])
    lanes = lanes_of(history)
    lines = [headline(body)]
    if history:
        word = "took" if lanes.is_final else "last change after"
        lines.append(
            f"started {moment(lanes.first_ms)}, {word} {seconds(lanes.last_ms - lanes.first_ms)}"
        )
    lines.append("")
    names = [lane.name for lane in (*lanes.actions.values(), *lanes.compensations.values())]
    if names:
        width = min(NAME_MAX, max(map(len, names)))
        lines += [*_drawn(lanes, width), ""]
    lines.append(plain(why(body, history)))
    return "\n".join(lines)


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
            lanes.is_final = True
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
    return lanes


def _lane_of(lanes: Lanes, event: Event) -> Lane:
    is_action = event["direction"] == "action"
    alike = lanes.actions if is_action else lanes.compensations
    found = alike.get(event["step"])
    if found is None:
        name = plain(str((event.get("body") or {}).get("type", "a command")))
        found = alike[event["step"]] = Lane(event["step"], name[:NAME_MAX], event["at_ms"])
    return found


def _take(lane: Lane, event: Event) -> None:
    at_ms, attempt = event["at_ms"], event["attempt"]
    lane.attempt = max(lane.attempt, attempt)
    if event["event"] == "answer":
        lane.ended_ms, lane.outcome = at_ms, event["outcome"]
        lane.cause = reasons(event.get("body") or {})
    elif event["event"] == "attempt_ended":
        outcome = event["outcome"].replace("_", " ")
        text = f": {event['text']}" if event.get("text") else ""
        lane.ended_attempts.append(at_ms)
        lane.notes.append(Note(at_ms, f"attempt {attempt} {outcome}{text}"))
    elif event["event"] == "quarantined":
        lane.ended_attempts.append(at_ms)
        lane.notes.append(Note(at_ms, f"quarantined: {event['deaths']} workers died of it"))


def _drawn(lanes: Lanes, width: int) -> list[str]:
    total = seconds(lanes.last_ms - lanes.first_ms)
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


def _lane(lanes: Lanes, lane: Lane, width: int, *, action: bool) -> list[str]:
    turned_ms = lanes.turned_back["at_ms"] if lanes.turned_back is not None else None
    end_ms, outcome, is_open = lane.ended_ms, lane.outcome, False
    if end_ms is None and action and turned_ms is not None:
        end_ms, outcome = turned_ms, "unknown"
    elif end_ms is None:
        end_ms, outcome, is_open = lanes.last_ms, "no answer yet", True
    elif action and turned_ms is not None and end_ms > turned_ms:
        outcome += ", late"
    if lane.attempt > 1:
        outcome += f", attempt {lane.attempt}"
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
