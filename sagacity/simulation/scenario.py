"""Scenario: what is simulated: a saga, the services that it needs, what is asked of them.

Everything else, who dies when and what is lost, is drawn by `plan`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any

from apsw import Connection
from msgspec import Struct

from sagacity.saga import Saga
from sagacity.service import Service

Body = Mapping[str, Any]


class Fate(Struct, frozen=True):
    """What became of a saga.

    Args:
        number: by which services know it.
        saga_id: by which clients know it.
        completed: else it was aborted.
        amount: its price, minor units.
        request: the accepted request, packed.
        is_forgotten: it is past retention, and its services may have forgotten it.
    """

    number: int
    saga_id: str
    completed: bool
    amount: int
    request: bytes
    is_forgotten: bool = False


def _nothing(_databases: Mapping[str, Connection], _fates: Sequence[Fate]) -> Iterable[str]:
    return ()


def _no_other(_body: Body) -> Body | None:
    return None


class Scenario(Struct, frozen=True):
    """What is simulated.

    Args:
        saga: the definition.
        services: gives the services of its steps; it is given what kills the worker that calls
            it, for services that play dead.
        request: draws the body of a start: from chance and the saga_id that it is to have.
        prices: SKU -> minor units, as the saga's `price` takes them.
        catalog: for the services' `seed`.
        other: gives a body of the same id with other content, which has to be refused; None where
            there is none.
        judge: says what is wrong in the services' databases, by service, when every saga has met
            its fate; what the barrier can tell is judged anyway.
    """

    saga: Saga
    services: Callable[[Callable[[], None]], Sequence[Service]]
    request: Callable[[Random, str], Body]
    prices: Mapping[str, int] = {}
    catalog: object = None
    other: Callable[[Body], Body | None] = _no_other
    judge: Callable[[Mapping[str, Connection], Sequence[Fate]], Iterable[str]] = _nothing
