"""The checkout saga on DBOS once more, in plain functions: a thread for each checkout in flight.

The same as dbos_async; which of both does more is for a sweep to find.
"""

import asyncio
from typing import Any

from dbos import DBOS, SetWorkflowID

from bench.peers.programs import ledger

LEDGER = ledger.from_environment()


@DBOS.step()
def reserve(saga_id: str, items: list[tuple[str, int]]) -> str:
    """Ask inventory."""
    return LEDGER.reserve(saga_id, items)


@DBOS.step()
def release(saga_id: str) -> bool:
    """Ask inventory to undo."""
    return LEDGER.release(saga_id)


@DBOS.step()
def charge(saga_id: str, user_id: str, amount: int) -> str:
    """Ask payment."""
    return LEDGER.charge(saga_id, user_id, amount)


@DBOS.step()
def refund(saga_id: str) -> bool:
    """Ask payment to undo."""
    return LEDGER.refund(saga_id)


@DBOS.step()
def ship(saga_id: str, address: str) -> str:
    """Ask shipping."""
    return LEDGER.ship(saga_id, address)


@DBOS.step()
def cancel(saga_id: str) -> bool:
    """Ask shipping to undo."""
    return LEDGER.cancel(saga_id)


@DBOS.workflow()
def checkout(saga_id: str, user_id: str, items: list[tuple[str, int]], address: str) -> str:
    """Check out, or turn back; give the final answer."""
    undo: list[Any] = []
    try:
        reserve(saga_id, items)
        undo.append(release)
        charge(saga_id, user_id, ledger.price(items))
        undo.append(refund)
        ship(saga_id, address)
        undo.append(cancel)
    except ledger.Declined:
        for compensation in reversed(undo):
            compensation(saga_id)
        return "ABORTED"
    return "COMPLETED"


def _one(saga_id: str, user_id: str, items: list[tuple[str, int]]) -> str:
    with SetWorkflowID(saga_id):
        return str(checkout(saga_id, user_id, items, ledger.ADDRESS))


async def one(saga_id: str, user_id: str, items: list[tuple[str, int]]) -> str:
    """Do one checkout, in a thread."""
    return await asyncio.to_thread(_one, saga_id, user_id, items)
