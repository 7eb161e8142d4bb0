"""Sagas that are no checkout: chains of steps, with messages and services of their own.

    trip = chain("trip", 5)      started by {"type": "trip", "saga_id", "nights"}

Step n asks service trip_n with Trip1.. and is undone by UndoTrip1..; its `ok` body gives a ticket.
"""

from typing import Any

from msgspec import UNSET, Struct, UnsetType, defstruct

from sagacity.saga import Priced, Prices, Retry, Run, Saga, Step, Unstartable


def chain(name: str, steps: int, retry: Retry | None = None) -> Saga:
    """Make a saga of so many steps; the second moves its amount."""
    request = _message(name, [("saga_id", str), ("nights", int)])
    title = name.capitalize()
    completed = _message(f"{name}_booked", [("saga_id", str), ("order_id", str), ("paid", int)])
    aborted = _message(f"{name}_refused", [("saga_id", str), ("why", str)])

    def price(order: Any, prices: Prices) -> Priced | Unstartable:
        if order.nights > 100:
            return Unstartable("too long")
        return Priced(order.nights * prices["abc123"], "EUR")

    return Saga(
        name=name,
        version=3,
        request=request,
        order=request,
        accept=lambda asked: asked,
        price=price,
        steps=tuple(_step(name, title, at, retry) for at in range(1, steps + 1)),
        completed=lambda run: completed(run.saga_id, run.order_id, run.amount),
        aborted=lambda run, reason: aborted(run.saga_id, reason),
    )


def booking(name: str, saga_id: str, nights: int = 3) -> dict[str, Any]:
    """Give the body that starts one."""
    return {"type": name, "saga_id": saga_id, "nights": nights}


def _step(name: str, title: str, at: int, retry: Retry | None) -> Step:
    ids: list[Any] = [("saga_id", str), ("step", int)]
    action = _message(f"{title}{at}", [*ids, ("nights", int)])
    undo = _message(f"Undo{title}{at}", [*ids, ("ticket", str | UnsetType, UNSET)])

    def command(run: Run, step: int) -> Struct:
        return action(run.saga_id, step, run.order.nights)

    def undone(run: Run, step: int, held: Any) -> Struct:
        return undo(run.saga_id, step, held.ticket if held else UNSET)

    return Step(
        service=f"{name}_{at}",
        action=action,
        ok=_message(f"{title}{at}_ok", [*ids, ("ticket", str)]),
        declined=_message(f"{title}{at}_no", [*ids, ("why", str)]),
        compensation=undo,
        compensated=_message(f"Undo{title}{at}_ok", ids),
        command=command,
        undo=undone,
        reason=lambda said: f"{title}{at}: {said.why}",
        retry=retry,
        charges=at == 2,
    )


def _message(tag: str, fields: list[Any]) -> type[Struct]:
    return defstruct(tag, fields, frozen=True, tag_field="type", tag=tag)
