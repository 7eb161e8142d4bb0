"""The checkout saga on Temporal: a workflow, and an activity for each command.

As its guide on error handling has it: a list of compensations, a failed activity turns back, they
run in reverse order. A declined charge is an ApplicationError that is not retried.
"""

from datetime import timedelta
from typing import Any, Final

from temporalio import activity, workflow
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from bench.peers.programs import ledger

QUEUE: Final = "checkout"
_PATIENCE: Final = timedelta(seconds=30)


class Services:
    """The activities, each a command to a service.

    Args:
        books: what they keep.
    """

    def __init__(self, books: ledger.Ledger) -> None:
        self._books = books

    @activity.defn
    async def reserve(self, saga_id: str, items: list[tuple[str, int]]) -> str:
        """Ask inventory."""
        return self._books.reserve(saga_id, items)

    @activity.defn
    async def release(self, saga_id: str) -> bool:
        """Ask inventory to undo."""
        return self._books.release(saga_id)

    @activity.defn
    async def charge(self, saga_id: str, user_id: str, amount: int) -> str:
        """Ask payment; its no is not to be retried."""
        try:
            return self._books.charge(saga_id, user_id, amount)
        except ledger.Declined as declined:
            raise ApplicationError(str(declined), type="Declined", non_retryable=True) from declined

    @activity.defn
    async def refund(self, saga_id: str) -> bool:
        """Ask payment to undo."""
        return self._books.refund(saga_id)

    @activity.defn
    async def ship(self, saga_id: str, address: str) -> str:
        """Ask shipping."""
        return self._books.ship(saga_id, address)

    @activity.defn
    async def cancel(self, saga_id: str) -> bool:
        """Ask shipping to undo."""
        return self._books.cancel(saga_id)

    def all(self) -> list[Any]:
        """Give all activities, for a worker."""
        return [self.reserve, self.release, self.charge, self.refund, self.ship, self.cancel]


@workflow.defn
class Checkout:
    """The saga."""

    @workflow.run
    async def run(
        self, user_id: str, items: list[tuple[str, int]], address: str, local: bool
    ) -> str:
        """Check out, or turn back; give the final answer."""
        saga_id = workflow.info().workflow_id
        execute: Any = workflow.execute_local_activity if local else workflow.execute_activity

        async def ask(command: str, *values: Any) -> None:
            await execute(command, args=[saga_id, *values], start_to_close_timeout=_PATIENCE)

        undo: list[str] = []
        try:
            await ask("reserve", items)
            undo.append("release")
            await ask("charge", user_id, ledger.price(items))
            undo.append("refund")
            await ask("ship", address)
            undo.append("cancel")
        # A local activity that is not retried raises what it raised.
        except (ActivityError, ApplicationError):
            for compensation in reversed(undo):
                await ask(compensation)
            return "ABORTED"
        return "COMPLETED"
