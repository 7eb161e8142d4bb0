"""The checkout saga on DBOS in coroutines: one event loop for all checkouts in flight.

A workflow with a step for each command; a step that raises turns back, compensations run in
reverse order. Each checkout's id is its workflow's id: a repeat gives the first one's answer.
"""

from typing import Any

from dbos import DBOS, SetWorkflowID

from bench.peers.programs import ledger

LEDGER = ledger.from_environment()


@DBOS.step()
async def reserve(saga_id: str, items: list[tuple[str, int]]) -> str:
    """Ask inventory."""
    return LEDGER.reserve(saga_id, items)


@DBOS.step()
async def release(saga_id: str) -> bool:
    """Ask inventory to undo."""
    return LEDGER.release(saga_id)


@DBOS.step()
async def charge(saga_id: str, user_id: str, amount: int) -> str:
    """Ask payment."""
    return LEDGER.charge(saga_id, user_id, amount)


@DBOS.step()
async def refund(saga_id: str) -> bool:
    """Ask payment to undo."""
    return LEDGER.refund(saga_id)


@DBOS.step()
async def ship(saga_id: str, address: str) -> str:
    """Ask shipping."""
    return LEDGER.ship(saga_id, address)


@DBOS.step()
async def cancel(saga_id: str) -> bool:
    """Ask shipping to undo."""
    return LEDGER.cancel(saga_id)


@DBOS.workflow()
async def checkout(saga_id: str, user_id: str, items: list[tuple[str, int]], address: str) -> str:
    """Check out, or turn back; give the final answer."""
    undo: list[Any] = []
    try:
        await reserve(saga_id, items)
        undo.append(release)
        await charge(saga_id, user_id, ledger.price(items))
        undo.append(refund)
        await ship(saga_id, address)
        undo.append(cancel)
    except ledger.Declined:
        for compensation in reversed(undo):
            await compensation(saga_id)
        return "ABORTED"
    return "COMPLETED"


async def one(saga_id: str, user_id: str, items: list[tuple[str, int]]) -> str:
    """Do one checkout."""
    with SetWorkflowID(saga_id):
        return str(await checkout(saga_id, user_id, items, ledger.ADDRESS))
