"""A user's saga in memory, with chosen failures: the engine unchanged, services that do as told.

    from sagacity.testing import Decline, Fail, play
    from services.checkout import checkout

    request = {
        "type": "checkout",
        "saga_id": "s1",
        "user_id": "u1",
        "items": [{"sku": "tea", "quantity": 2}],
        "shipping_address": "123 Main St",
    }
    declined = {"error": "insufficient_funds", "decline_code": "DECLINED"}
    played = play(
        checkout,
        request,
        {"ReserveInventory": Fail(times=2), "ChargePayment": Decline(declined)},
        prices={"tea": 450},
    )
    assert played.answer["reason"] == "Payment declined: DECLINED"
    assert played.types[-3:] == ["ReleaseReservation", "ReleaseReservation_ok", "checkout_failed"]

No process, socket, file or waiting: time jumps to where something is due. Knows no saga. For a
user's service there is `conformance.check`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from sagacity import conformance, wire
from sagacity.errors import Malformed
from sagacity.ids import ACTION
from sagacity.saga import Prices, Retry, Saga, Step, tag_of
from sagacity.slots import SLOTS
from sagacity.wire import Command, Reply
from shard.admission import Admission
from shard.effects import Effects
from shard.engine import Engine
from shard.entries import FORMAT, Batch, Entry
from shard.events import Answered, Event, Instant, Requests, WorkerCame, WorkerLives
from shard.finished import FinishedInMemory
from shard.history import tell
from shard.records import Row
from shard.retries import RetryBudget
from shard.sagas import MS, Definition, Tombstone
from shard.state import State
from shard.tally import PlainTally

__all__ = [
    "FOREVER",
    "Decline",
    "Fail",
    "Ok",
    "Outcome",
    "Played",
    "SagaInMemory",
    "Silent",
    "conformance",
    "fill",
    "play",
]

FOREVER = 1 << 30  # times: more than any saga asks

_CLIENT = b"client"
_CREDIT = 1 << 20  # a silent worker keeps what it has
_TURNS_MAX = 10_000  # a play that takes longer would never end


class Ok(Struct, frozen=True):
    """The command succeeds.

    Args:
        body: of the reply; what is left out is filled in: `type`, fields that the command has
            under the same name, then texts, numbers and lists as small as the type allows.
    """

    body: dict[str, Any] = {}


class Decline(Struct, frozen=True):
    """A business no; of actions only. `body` as in Ok."""

    body: dict[str, Any] = {}


class Fail(Struct, frozen=True):
    """A technical failure: nothing happened, the command is sent again."""

    times: int = 1
    text: str = "failed as told"


class Silent(Struct, frozen=True):
    """No answer: the attempt times out, and nobody knows whether it took effect."""

    times: int = 1


Outcome = Ok | Decline | Fail | Silent


class Played(Struct, frozen=True):
    """What became of a saga.

    Args:
        answer: the client's final body, or the error it got: code 12 for a malformed request,
            code 0 for a saga whose compensation does not succeed.
        messages: every body that travelled, from the first command to the final answer; a reply
            that is a failure has no body here.
        entries: what the journal holds.
        history: as `sagacity show` tells it; empty if the saga never started.
    """

    answer: dict[str, Any]
    messages: list[dict[str, Any]]
    entries: list[Entry]
    history: list[dict[str, Any]]

    @property
    def types(self) -> list[str]:
        """The types of the messages, in order."""
        return [message["type"] for message in self.messages]


class SagaInMemory:
    """Plays one definition; each play is a new cluster of one shard.

    Args:
        saga: the definition.
        prices: SKU -> minor units.
        retry: of steps that have none of their own.
        deadline_ms: of the saga.
    """

    def __init__(
        self,
        saga: Saga,
        prices: Prices | None = None,
        retry: Retry | None = None,
        deadline_ms: int = 30_000,
    ) -> None:
        self._saga = saga
        self._prices = prices or {}
        self._retry = retry or Retry()
        self._deadline_ms = deadline_ms

    def play(
        self,
        request: Mapping[str, Any],
        outcomes: Mapping[str, Outcome | Iterable[Outcome]] | None = None,
    ) -> Played:
        """Play a saga to its end, or until it is stuck.

        Args:
            request: the client's body, as it would come in JSON.
            outcomes: by the name of an action or compensation, what becomes of it, one after
                the other; then, and for names left out, it succeeds.

        Raises:
            ValueError: an outcome that this saga cannot have, or a body that cannot be filled in.
        """
        script = _Script(self._saga, outcomes or {})
        return _Play(self._saga, self._prices, self._retry, self._deadline_ms, script).run(request)


def play(
    saga: Saga,
    request: Mapping[str, Any],
    outcomes: Mapping[str, Outcome | Iterable[Outcome]] | None = None,
    *,
    prices: Prices | None = None,
    retry: Retry | None = None,
    deadline_ms: int = 30_000,
) -> Played:
    """Play a saga in memory; see SagaInMemory."""
    return SagaInMemory(saga, prices, retry, deadline_ms).play(request, outcomes)


def fill(kind: type[Struct], body: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Make a body of a type: from `body`, then from `like`, then as small as the type allows.

    Raises:
        ValueError: a field is in neither and cannot be made up, or has the wrong type.
    """
    filled: dict[str, Any] = {"type": tag_of(kind)}
    for field in msgspec.structs.fields(kind):
        if field.name in body:
            filled[field.name] = body[field.name]
        elif field.name in like:
            filled[field.name] = like[field.name]
        elif field.required:
            filled[field.name] = _smallest(msgspec.inspect.type_info(field.type), field.name)
    filled.update({name: value for name, value in body.items() if name not in filled})
    try:
        msgspec.convert(filled, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{filled['type']}: {error}; give it a body") from None
    return filled


def _smallest(kind: msgspec.inspect.Type, name: str) -> Any:
    """Give the smallest value of a type; a text is its field's name."""
    made: Any
    match kind:
        case msgspec.inspect.StrType():
            made = name
        case msgspec.inspect.BoolType():
            made = False
        case msgspec.inspect.IntType():
            made = max(kind.ge or 0, 0 if kind.gt is None else kind.gt + 1)
        case msgspec.inspect.ListType():
            made = [_smallest(kind.item_type, name) for _ in range(kind.min_length or 0)]
        case msgspec.inspect.DictType():
            made = {}
        case msgspec.inspect.StructType():
            made = fill(kind.cls, {}, {})
            if made["type"] is None:
                del made["type"]
        case _:
            raise ValueError(f"{name} cannot be made up; give it a body")
    return made


class _Script:
    """What becomes of which command, in order."""

    def __init__(self, saga: Saga, outcomes: Mapping[str, Outcome | Iterable[Outcome]]) -> None:
        actions = {step.name for step in saga.steps}
        known = actions | {step.compensation_name for step in saga.steps}
        self._left: dict[str, list[Outcome]] = {}
        for name, told in outcomes.items():
            if name not in known:
                raise ValueError(f"{saga.name} has no {name}; it has {', '.join(sorted(known))}")
            one = isinstance(told, Ok | Decline | Fail | Silent)
            self._left[name] = [told] if one else list(told)  # type: ignore[list-item, arg-type]  # narrowed by `one`
            if name not in actions and any(isinstance(each, Decline) for each in self._left[name]):
                raise ValueError(f"{name} is a compensation: it cannot be declined")

    def next(self, name: str) -> Outcome:
        """Give what becomes of this delivery of a command."""
        left = self._left.get(name)
        if not left:
            return Ok()
        first = left[0]
        if isinstance(first, Fail | Silent) and first.times > 1:
            left[0] = msgspec.structs.replace(first, times=first.times - 1)
        else:
            del left[0]
        return first


class _Play:
    """One shard, one worker for each service, one client, and their clock."""

    def __init__(
        self, saga: Saga, prices: Prices, retry: Retry, deadline_ms: int, script: _Script
    ) -> None:
        self._saga = saga
        self._script = script
        self._definitions = {saga.name: Definition(saga, retry)}
        self._engine = Engine(
            0,
            frozenset(range(SLOTS)),
            State(self._definitions, FinishedInMemory()),
            prices,
            Admission(1),
            RetryBudget(100, 100, 10),
            PlainTally(),
            deadline_ms,
        )
        self._rows: list[Batch] = []
        self._now = Instant(0, 0)
        self._inbox: list[Event] = []
        self._answer: dict[str, Any] | None = None
        self.messages: list[dict[str, Any]] = []
        self._keep(self._engine.resume("0" * 32, self._now, 1))
        services = sorted(self._engine.services())
        self._workers = [service.encode() for service in services]
        self._inbox += [WorkerCame(name.encode(), name, 1, _CREDIT) for name in services]

    def run(self, request: Mapping[str, Any]) -> Played:
        saga_id = str(request.get("saga_id", ""))
        asked = wire.Request(wire.START, saga_id, 1, {}, wire.pack(dict(request)))
        self._inbox.append(Requests(_CLIENT, [asked]))
        for _ in range(_TURNS_MAX):
            self._turn()
            if self._answer is not None:
                return Played(self._answer, self.messages, self._entries(), self._history(saga_id))
        raise ValueError(f"{saga_id} has no outcome after {_TURNS_MAX} turns")

    def _turn(self) -> None:
        if not self._inbox:
            due = self._engine.next_due()
            assert due is not None, "a running saga has a timer"
            ns = max(due, self._now.ns)
            self._now = Instant(ns, ns // MS)
        alive = [WorkerLives(peer, _CREDIT) for peer in self._workers]
        events, self._inbox = [*alive, *self._inbox], []
        self._keep(self._engine.step(events, self._now, len(self._rows) + 1, self._now.ns))

    def _keep(self, effects: Effects) -> None:
        if effects.entries:
            self._rows.append(Batch(FORMAT, 1, self._now.wall_ms, effects.entries))
        for peer, commands in effects.commands.items():
            for command in commands:
                self._deliver(peer, command)
        for replies in effects.replies.values():
            for reply in replies:
                self._replied(reply)

    def _deliver(self, peer: bytes, command: Command) -> None:
        """A worker gets a command, and does as it is told."""
        asked = wire.unpack(command.body)
        self.messages.append(asked)
        step = self._saga.steps[command.step - 1]
        outcome = self._script.next(asked["type"])
        if isinstance(outcome, Silent):
            return
        code, body = _reply(step, command.direction, outcome, asked)
        if code != wire.FAILED:
            self.messages.append(body)
        answer = wire.answer_to(command, code, wire.pack(body))
        self._inbox.append(Answered(peer, [answer]))

    def _replied(self, reply: Reply) -> None:
        self._answer = wire.unpack(reply.body)
        if reply.code is None:
            self.messages.append({k: v for k, v in self._answer.items() if k != "in_reply_to"})

    def _entries(self) -> list[Entry]:
        return [entry for row in self._rows for entry in row.entries]

    def _history(self, saga_id: str) -> list[dict[str, Any]]:
        state = self._engine.state
        found = state.by_id.get(saga_id) or state.finished.find(saga_id)
        if found is None or isinstance(found, Tombstone):
            return []
        dossier = found.dossier()
        rows = [
            Row(seq, self._rows[seq - 1].wall_ms, self._rows[seq - 1].entries)
            for seq in dossier.seqs
        ]
        history: list[dict[str, Any]] = wire.unpack(tell(dossier, rows, self._definitions))[
            "history"
        ]
        return history


def _reply(
    step: Step, direction: int, outcome: Outcome, asked: Mapping[str, Any]
) -> tuple[int, dict[str, Any]]:
    """Give the outcome's code and the reply's body."""
    if isinstance(outcome, Fail):
        return wire.FAILED, {"type": "failed", "text": outcome.text}
    told = outcome.body if isinstance(outcome, Ok | Decline) else {}
    kind = step.ok if direction == ACTION else step.compensated
    if isinstance(outcome, Decline):
        kind = step.declined
    body = fill(kind, told, asked)
    try:
        wire.pack(body)
    except Malformed as error:
        raise ValueError(f"{body['type']}: {error.text}") from None
    return (wire.DECLINED if isinstance(outcome, Decline) else wire.OK), body
