"""The checkout saga on Restate: one handler, each step a durable `run`.

As its guide on sagas has it: a list of compensations, a terminal error turns back, they run in
reverse order. A compensation is added when its step has succeeded: a declined step had no effect,
and steps are retried until they answer, so that no outcome stays unknown. Served over ASGI:
    granian --interface asgi --http 2 bench.peers.programs.restate_services:app
"""

from typing import Any

import restate

from bench.peers.programs import ledger

LEDGER = ledger.from_environment()

checkout = restate.Service("Checkout")


async def reserve(saga_id: str, items: list[tuple[str, int]]) -> str:
    """Ask inventory."""
    return LEDGER.reserve(saga_id, items)


async def release(saga_id: str) -> bool:
    """Ask inventory to undo."""
    return LEDGER.release(saga_id)


async def charge(saga_id: str, user_id: str, amount: int) -> str:
    """Ask payment; its no is terminal, not to be retried."""
    try:
        return LEDGER.charge(saga_id, user_id, amount)
    except ledger.Declined as declined:
        raise restate.TerminalError(str(declined)) from declined


async def refund(saga_id: str) -> bool:
    """Ask payment to undo."""
    return LEDGER.refund(saga_id)


async def ship(saga_id: str, address: str) -> str:
    """Ask shipping."""
    return LEDGER.ship(saga_id, address)


async def cancel(saga_id: str) -> bool:
    """Ask shipping to undo."""
    return LEDGER.cancel(saga_id)


@checkout.handler()
async def run(ctx: restate.Context, order: dict[str, Any]) -> dict[str, str]:
    """Check out, or turn back; give the final answer."""
    saga_id, items = order["saga_id"], order["items"]
    undo: list[Any] = []
    try:
        await ctx.run_typed("reserve", reserve, saga_id=saga_id, items=items)
        undo.append(("release", release))
        amount = ledger.price(items)
        await ctx.run_typed(
            "charge", charge, saga_id=saga_id, user_id=order["user_id"], amount=amount
        )
        undo.append(("refund", refund))
        await ctx.run_typed("ship", ship, saga_id=saga_id, address=order["address"])
        undo.append(("cancel", cancel))
    except restate.TerminalError as declined:
        for name, compensation in reversed(undo):
            await ctx.run_typed(name, compensation, saga_id=saga_id)
        return {"saga_id": saga_id, "status": "ABORTED", "reason": declined.message}
    return {"saga_id": saga_id, "status": "COMPLETED"}


app = restate.app(services=[checkout])
