"""Checkouts through Temporal's client, each with its id as workflow id."""

import asyncio

from temporalio.client import Client

from bench.peers.programs import conductor, ledger
from bench.peers.programs.temporal_saga import QUEUE, Checkout


async def main() -> None:
    """Load until told to end."""
    parser = conductor.arguments("temporal_load")
    parser.add_argument("--address", required=True)
    parser.add_argument("--local", action="store_true", help="local activities")
    args = parser.parse_args()
    client = await Client.connect(args.address)
    items = [list(line) for line in ledger.CART]

    async def checkout(saga_id: str, declined: bool) -> str:
        user_id = ledger.BROKE if declined else ledger.BUYER
        given = [user_id, items, ledger.ADDRESS, args.local]
        told: str = await client.execute_workflow(
            Checkout.run, args=given, id=saga_id, task_queue=QUEUE
        )
        return told

    await conductor.conduct(args, checkout)


if __name__ == "__main__":
    asyncio.run(main())
