"""History: what `show` and `--trace` tell of a saga, from its journal rows. Pure.

Commands are not journalled: the facts before them say what was sent, and the same builders give
the same bytes. So the history is a replay of the one saga, with its commands told. Of a finished
saga whose definition has another version by now the facts are told, and no commands.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sagacity import traces
from sagacity.errors import Malformed
from sagacity.ids import DIRECTIONS
from sagacity.wire import OUTCOMES, Answer, encode, pack, unpack
from shard import phases
from shard.entries import (
    OF_NO_SAGA,
    AttemptEnded,
    Entry,
    Finished,
    Quarantined,
    RetryAsked,
    Started,
    TurnedBack,
)
from shard.finished import FinishedInMemory
from shard.records import Row
from shard.sagas import Definition, Dossier
from shard.state import State

Event = dict[str, Any]

BODY_TOLD_AGAIN_MAX = 512  # bytes of a command's body that is told with each attempt


def tell(dossier: Dossier, rows: Sequence[Row], definitions: Mapping[str, Definition]) -> bytes:
    """Give the packed answer to `show`.

    Args:
        dossier: what the saga is now.
        rows: that speak of it, in order; other sagas' entries are left out.
        definitions: by name.
    """
    teller = _Teller(dossier, definitions)
    for row in rows:
        teller.row(row)
    return pack(
        {
            "type": "saga",
            "saga_id": dossier.saga_id,
            "saga": dossier.saga,
            "status": phases.PHASES[dossier.phase],
            "stuck": dossier.stuck,
            "order_id": dossier.order_id,
            "amount": dossier.amount,
            "cause": teller.cause,
            "reason": teller.reason,
            "traceparent": teller.traceparent,
            "history": teller.events,
        }
    )


class _Teller:
    def __init__(self, dossier: Dossier, definitions: Mapping[str, Definition]) -> None:
        self._number = dossier.number
        self._definition = definitions.get(dossier.saga)  # None: not that version any more
        self._state = State(definitions, FinishedInMemory())
        self._told: tuple[int, int, int] | None = None
        self._retry: Event | None = None  # told when something shows that it left
        self.events: list[Event] = []
        self.cause: str | None = None
        self.reason: str | None = None
        self.traceparent: str | None = None

    def row(self, batch: Row) -> None:
        """Tell one row; what it caused left after all of it was durable."""
        for entry in batch.entries:
            if not isinstance(entry, OF_NO_SAGA) and entry.number == self._number:
                if isinstance(entry, Started) and not self._has_version(entry.version):
                    self._definition = None
                if self._definition is not None:
                    self._catch_up(batch, entry)
                    self._state.apply(entry, 0)
                self.events.append({"at_ms": batch.wall_ms, **self._event(entry)})
        saga = self._state.live.get(self._number)
        if saga is None:
            return
        current = (saga.step, saga.direction, saga.attempt)
        if current != self._told:
            self._told = current
            try:
                body = saga.command_body()
                said = unpack(body)
            except Exception:  # the definition's own code may raise anything: told as an attempt
                return
            told = {
                "at_ms": batch.wall_ms,
                "event": "command",
                "step": saga.step,
                "direction": DIRECTIONS[saga.direction],
                "attempt": saga.attempt,
            }
            if saga.attempt == 1:
                self.events.append({**told, "body": said})
            else:
                # Whether a retry left is seen by what came of it. A long body is told once.
                small = len(body) <= BODY_TOLD_AGAIN_MAX
                self._retry = {**told, "body": said} if small else told

    def _has_version(self, version: int) -> bool:
        return self._definition is not None and self._definition.version == version

    def _catch_up(self, batch: Row, entry: Entry) -> None:
        """Tell the retry that an outcome proves, or how many attempts the rows leave out."""
        retry, self._retry = self._retry, None
        saga = self._state.live.get(self._number)
        if saga is None or not isinstance(entry, Answer | AttemptEnded | Quarantined):
            if isinstance(entry, RetryAsked):
                self._retry = retry  # still to come
            return
        if (entry.step, entry.direction) != (saga.step, saga.direction):
            return
        if entry.attempt > saga.attempt:
            left_out = entry.attempt - saga.attempt
            self.events.append({"at_ms": batch.wall_ms, "event": "left_out", "attempts": left_out})
            saga.attempt = entry.attempt
        elif retry is not None:
            self.events.append(retry)

    def _event(self, entry: Entry) -> Event:
        if isinstance(entry, Started):
            parent = traces.of(entry.headers)
            self.traceparent = None if parent is None else parent.text()
            return {"event": "started", "body": unpack(entry.order)}
        if isinstance(entry, Answer):
            return {
                "event": "answer",
                "step": entry.step,
                "direction": DIRECTIONS[entry.direction],
                "attempt": entry.attempt,
                "outcome": OUTCOMES[entry.outcome],
                "body": self._reply(entry),
            }
        if isinstance(entry, AttemptEnded):
            return {
                "event": "attempt_ended",
                "step": entry.step,
                "direction": DIRECTIONS[entry.direction],
                "attempt": entry.attempt,
                "outcome": entry.cause,
                "text": entry.text,
            }
        if isinstance(entry, Quarantined):
            return {
                "event": "quarantined",
                "step": entry.step,
                "direction": DIRECTIONS[entry.direction],
                "attempt": entry.attempt,
                "deaths": entry.deaths,
            }
        if isinstance(entry, TurnedBack):
            self.cause, self.reason = entry.cause, entry.reason
            return {"event": "turned_back", "cause": entry.cause, "reason": entry.reason}
        if isinstance(entry, RetryAsked):
            return {"event": "asked", "step": entry.step, "reason": entry.reason}
        assert isinstance(entry, Finished)
        return {"event": "finished", "body": unpack(entry.answer)}

    def _reply(self, entry: Answer) -> Event:
        """Give a reply's body by its type: keys that nobody promised are not told."""
        if self._definition is not None:
            return unpack(encode(self._definition.reply(entry)))
        try:
            return unpack(entry.body)
        except Malformed:  # it held more than its type once promised
            return {}
