"""Saga, Step, Retry: what a saga is, checked when it is defined. Pure; knows no service's code.

A definition says, for each step, which service performs it, the message that asks for it, the
messages that answer, and how it is undone. The engine does the rest.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from sagacity.ids import STEPS_MAX
from sagacity.wire import BodyReader, decoder

# What a field of a body may be, beside lists, maps and Structs of these.
_PLAIN = (
    msgspec.inspect.StrType,
    msgspec.inspect.IntType,
    msgspec.inspect.BoolType,
    msgspec.inspect.NoneType,
    msgspec.inspect.LiteralType,
    msgspec.inspect.AnyType,
)

Prices = Mapping[str, int]  # SKU -> minor units


class Retry(Struct, frozen=True):
    """How often and how patiently a command is sent.

    Args:
        attempts: sends of an action that count, before the saga turns back.
        timeout_ms: from the moment a worker gets a command until the attempt counts as unknown.
        backoff_ms: mean wait before the second attempt is half of this (full jitter).
        backoff_max_ms: the doubling ends here.
        stuck_after: attempts of a compensation after which its saga is marked STUCK.
    """

    attempts: int = 5
    timeout_ms: int = 3_000
    backoff_ms: int = 50
    backoff_max_ms: int = 5_000
    stuck_after: int = 10

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not (type(getattr(self, name)) is int and getattr(self, name) >= 1):
                raise ValueError(f"Retry.{name} is an integer >= 1, not {getattr(self, name)!r}")
        if self.backoff_max_ms < self.backoff_ms:
            raise ValueError("Retry.backoff_max_ms is not below backoff_ms")


class Run:
    """What a saga's builders may read of one run.

    Args:
        saga_id: the idempotency key.
        order: the accepted request, packed.
        decode: reads it.
        amount: the price, minor units.
        order_id: taken at the start.
    """

    __slots__ = ("_decode", "_kept", "_packed", "amount", "order_id", "saga_id")

    def __init__(
        self, saga_id: str, order: bytes, decode: Callable[[bytes], Any], amount: int, order_id: str
    ) -> None:
        self.saga_id = saga_id
        self.amount = amount
        self.order_id = order_id
        self._packed = order
        self._decode = decode
        self._kept: Any = None

    @property
    def order(self) -> Any:
        """The accepted request, as `Saga.accept` gave it; decoded at each use unless kept."""
        return self._decode(self._packed) if self._kept is None else self._kept

    def keep(self, order: Any) -> None:
        """Keep the decoded request: 2.7 KB of memory for a decode at each command."""
        self._kept = order


class Step(Struct, frozen=True, kw_only=True):
    """One step of a saga; every step has a compensation.

    Args:
        service: name of the pool whose workers perform it.
        action: the type of the action's body; its tag is the action's name.
        ok: the type of the body that says it succeeded.
        declined: the type of the body that says no for a business reason.
        compensation: the type of the compensation's body.
        compensated: the type of the body that says the compensation succeeded.
        command: builds the action's body; `step` is this step's number, from 1.
        undo: builds the compensation's body; the third argument is the `ok` body, or None where
            the outcome is unknown.
        reason: the reason that the client reads when this step is declined.
        retry: None for the cluster's defaults.
        charges: this is the step that moves the saga's amount; at most one of a saga.
    """

    service: str
    action: type[Struct]
    ok: type[Struct]
    declined: type[Struct]
    compensation: type[Struct]
    compensated: type[Struct]
    command: Callable[[Run, int], Struct]
    undo: Callable[[Run, int, Any], Struct]
    reason: Callable[[Any], str]
    retry: Retry | None = None
    charges: bool = False

    def __post_init__(self) -> None:
        if not self.service.isidentifier():
            raise ValueError(f"Step.service is an identifier, not {self.service!r}")
        for name in ("action", "ok", "declined", "compensation", "compensated"):
            if tag_of(getattr(self, name)) is None:
                raise ValueError(f'Step.{name} is a Struct with tag_field="type" and a text tag')
            _refuse_foreign_fields(getattr(self, name))
        for name in ("ok", "declined", "compensated"):
            if not {"saga_id", "step"} <= set(getattr(self, name).__struct_fields__):
                raise ValueError(f"Step.{name} has saga_id and step")

    @property
    def name(self) -> str:
        """The action's name, such as ReserveInventory."""
        return tag_of(self.action) or ""

    @property
    def compensation_name(self) -> str:
        """The compensation's name, such as ReleaseReservation."""
        return tag_of(self.compensation) or ""


class Priced(Struct, frozen=True):
    """A request that can start; `amount` in minor units of `currency`."""

    amount: int
    currency: str = "USD"


class Unstartable(Struct, frozen=True):
    """A valid request that ends at once, aborted for `reason`; no command is sent."""

    reason: str


class Saga(Struct, frozen=True, kw_only=True):
    """A saga's definition.

    Args:
        name: appears in metrics and journal.
        version: journalled with each start.
        request: the type of the client's body; its tag is the type that starts this saga. It has
            `saga_id`, and may have `msg_id`.
        order: the type of the accepted request, as journalled.
        accept: makes the one from the other; raises Malformed for what the types cannot say. May
            give the request itself where that is packed like its order.
        price: prices an order, once; the result is journalled.
        steps: in the order of their actions.
        completed: builds the client's body at the end.
        aborted: likewise, for a saga that was turned back, with the reason.
    """

    name: str
    version: int
    request: type[Struct]
    order: type[Struct]
    accept: Callable[[Any], Struct]
    price: Callable[[Any, Prices], Priced | Unstartable]
    steps: tuple[Step, ...]
    completed: Callable[[Run], Struct]
    aborted: Callable[[Run, str], Struct]

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"Saga.name is an identifier, not {self.name!r}")
        if self.version < 1:
            raise ValueError("Saga.version counts from 1")
        if not 1 <= len(self.steps) <= STEPS_MAX:
            raise ValueError(f"a saga has 1 to {STEPS_MAX} steps")
        names = [step.name for step in self.steps] + [s.compensation_name for s in self.steps]
        if len(set(names)) != len(names):
            raise ValueError("actions and compensations of a saga have different names")
        if sum(step.charges for step in self.steps) > 1:
            raise ValueError("at most one step of a saga charges its amount")
        if tag_of(self.request) is None or "saga_id" not in self.request.__struct_fields__:
            raise ValueError('Saga.request is a Struct with tag_field="type", a tag and saga_id')

    @property
    def request_type(self) -> str:
        """The type of the message that starts it, such as checkout."""
        return tag_of(self.request) or ""


class Readers:
    """The decoders of one definition, made once; all but `request` raise ValueError."""

    def __init__(self, saga: Saga) -> None:
        self.request: BodyReader[Any] = BodyReader(saga.request)
        self.order = decoder(saga.order)
        self.ok = [decoder(step.ok) for step in saga.steps]
        self.declined = [decoder(step.declined) for step in saga.steps]
        self.compensated = [decoder(step.compensated) for step in saga.steps]


def _refuse_foreign_fields(kind: type[Struct]) -> None:
    """Refuse a body whose type lets in what bodies do not carry: floats, bytes, dates.

    Raises:
        ValueError: naming the body's type and the field's.
    """
    seen: set[Any] = set()

    def look(info: Any) -> None:
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls not in seen:
                seen.add(info.cls)
                for field in info.fields:
                    look(field.type)
        elif isinstance(info, msgspec.inspect.UnionType):
            for each in info.types:
                look(each)
        elif isinstance(info, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
            look(info.item_type)
        elif isinstance(info, msgspec.inspect.TupleType):
            for each in info.item_types:
                look(each)
        elif isinstance(info, msgspec.inspect.DictType):
            look(info.key_type)
            look(info.value_type)
        elif not isinstance(info, _PLAIN):
            name = type(info).__name__.removesuffix("Type").lower()
            raise ValueError(f"a body carries no {name}, {kind.__name__} does")

    look(msgspec.inspect.type_info(kind))


def tag_of(kind: type[Struct]) -> str | None:
    """Give the text that stands under `type` in bodies of this kind."""
    config = getattr(kind, "__struct_config__", None)
    if config is None or config.tag_field != "type" or not isinstance(config.tag, str):
        return None
    tag: str = config.tag
    return tag
