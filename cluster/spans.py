"""Spans: a final saga's history as spans of a trace. Pure; knows no OpenTelemetry and no socket.

    checkout           [==============================]       the saga, under its client's span
      ReserveInventory [=====]                                each attempt of a step
      ChargePayment           [======]x  declined
      ReleaseReservation               [==============]       each attempt of a compensation

Made from the answer to SHOW, so from facts in the journal. Times are wall times of its rows, in
milliseconds: an attempt begins with the row that made it due, a retry with the end of the attempt
before it, and so each holds what it waited for. Ids are hashes of what a span is about: who exports
a saga again gives the same ones. Never a body, a reason or a text.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

from msgspec import Struct, field

from sagacity import traces
from sagacity.traces import TraceParent

OK: Final = "ok"
ERROR: Final = "error"
UNSET: Final = "unset"  # a decline is an outcome, no error

# What went wrong by itself; what a business or a client has decided did not.
_FAILED: Final = frozenset({"failed", "timed_out", "quarantined"})
_FAULTY_CAUSES: Final = frozenset({"timed_out", "deadline", "quarantined"})

Attributes = dict[str, str | int]


class SpanEvent(Struct, frozen=True):
    """Something that happened to a saga beside its attempts."""

    at_ms: int
    name: str
    attributes: Attributes


class Span(Struct, frozen=True, kw_only=True):
    """One span.

    Args:
        name: of the definition, or of the command.
        span_id: 16 hexadecimal digits; the saga's own is the parent of its attempts.
        start_ms: wall time; so is `end_ms`, which is never before it.
        end_ms: likewise.
        status: OK, ERROR or UNSET.
        attributes: names, numbers and outcomes; nothing that a client or a service has sent.
        events: of the saga's own span.
    """

    name: str
    span_id: str
    start_ms: int
    end_ms: int
    status: str
    attributes: Attributes
    events: list[SpanEvent] = field(default_factory=list)


class SagaSpans(Struct, frozen=True):
    """A saga's spans.

    Args:
        parent: the client's.
        saga: its own.
        attempts: beneath it, in the order in which they ended.
    """

    parent: TraceParent
    saga: Span
    attempts: list[Span]


def spans_of(body: Mapping[str, Any]) -> SagaSpans | None:
    """Give the spans of a saga.

    Args:
        body: the answer to SHOW.

    Returns:
        None for a saga that is not final, or belongs to no trace.
    """
    parent = traces.read(body.get("traceparent"))
    history: Sequence[Mapping[str, Any]] = body["history"]
    if parent is None or not history or history[-1]["event"] != "finished":
        return None
    maker = _Maker(body)
    for event in history:
        maker.take(event)
    return SagaSpans(parent, maker.saga(), maker.attempts)


class _Maker:
    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body
        self._saga_id = str(body["saga_id"])
        history: Sequence[Mapping[str, Any]] = body["history"]
        self._start_ms = int(history[0]["at_ms"])
        self._last_ms = self._start_ms
        self._names: dict[tuple[int, str], str] = {}
        self._open: dict[tuple[int, str], tuple[int, int]] = {}  # since when, which attempt
        self._is_back = False
        self._events: list[SpanEvent] = []
        self.attempts: list[Span] = []

    def take(self, event: Mapping[str, Any]) -> None:
        """Take the next event of the history."""
        kind, at_ms = event["event"], int(event["at_ms"])
        if kind == "command":
            lane = (event["step"], event["direction"])
            name = (event.get("body") or {}).get("type")
            if name:
                self._names.setdefault(lane, str(name))
            self._open[lane] = (at_ms, event["attempt"])
        elif kind == "answer":
            self._answered(event, at_ms)
        elif kind in ("attempt_ended", "quarantined"):
            self._close(event, at_ms, str(event.get("outcome", kind)))
        elif kind == "turned_back":
            self._is_back = True
            for (step, direction), (_, attempt) in list(self._open.items()):
                left = {"step": step, "direction": direction, "attempt": attempt}
                self._close(left, at_ms, "unknown")
            self._note(at_ms, "turned_back", {"cause": event["cause"]})
        elif kind == "left_out":
            self._note(at_ms, "attempts_left_out", {"attempts": event["attempts"]})
        elif kind == "asked":
            self._note(at_ms, "retry_asked", {"step": event["step"]})
        self._last_ms = at_ms

    def saga(self) -> Span:
        """Give the saga's own span."""
        body = self._body
        outcome, cause = str(body["status"]).lower(), body.get("cause")
        attributes: Attributes = {
            "sagacity.saga.id": self._saga_id,
            "sagacity.saga.name": str(body["saga"]),
            "sagacity.saga.outcome": outcome,
        }
        if cause:
            attributes["sagacity.saga.cause"] = str(cause)
        status = OK if outcome == "completed" else ERROR if cause in _FAULTY_CAUSES else UNSET
        return Span(
            name=str(body["saga"]),
            span_id=self._id("saga"),
            start_ms=self._start_ms,
            end_ms=max(self._start_ms, self._last_ms),
            status=status,
            attributes=attributes,
            events=self._events,
        )

    def _answered(self, event: Mapping[str, Any], at_ms: int) -> None:
        lane = (event["step"], event["direction"])
        if self._is_back and event["direction"] == "action" and lane not in self._open:
            late = {"step": event["step"], "outcome": event["outcome"]}
            self._note(at_ms, "late_answer", late)
        else:
            self._close(event, at_ms, str(event["outcome"]))

    def _close(self, event: Mapping[str, Any], at_ms: int, outcome: str) -> None:
        """End the attempt of a lane; one without a command began with what was told before it."""
        lane = (int(event["step"]), str(event["direction"]))
        begun_ms, attempt = self._open.pop(lane, (self._last_ms, int(event["attempt"])))
        attributes: Attributes = {
            "sagacity.saga.id": self._saga_id,
            "sagacity.step": lane[0],
            "sagacity.direction": lane[1],
            "sagacity.attempt": attempt,
            "sagacity.outcome": outcome,
        }
        if event["attempt"] != attempt:  # the answer of one that had been given up counts
            attributes["sagacity.answered_attempt"] = int(event["attempt"])
        status = OK if outcome == "ok" else ERROR if outcome in _FAILED else UNSET
        self.attempts.append(
            Span(
                name=self._names.get(lane, f"step {lane[0]} {lane[1]}"),
                span_id=self._id(f"{lane[0]} {lane[1]} {len(self.attempts)}"),
                start_ms=begun_ms,
                end_ms=max(begun_ms, at_ms),
                status=status,
                attributes=attributes,
            )
        )

    def _note(self, at_ms: int, name: str, said: Attributes) -> None:
        prefixed: Attributes = {f"sagacity.{key}": value for key, value in said.items()}
        self._events.append(SpanEvent(at_ms, name, prefixed))

    def _id(self, what: str) -> str:
        return blake2b(f"{self._saga_id} {what}".encode(), digest_size=8).hexdigest()
