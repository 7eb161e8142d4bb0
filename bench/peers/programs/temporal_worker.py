"""A worker of the checkout saga on Temporal: workflows and activities, until SIGTERM."""

import argparse
import asyncio
import signal

from temporalio.client import Client
from temporalio.worker import Worker

from bench.peers.programs import ledger
from bench.peers.programs.temporal_saga import QUEUE, Checkout, Services


async def main() -> None:
    """Work until told to stop."""
    parser = argparse.ArgumentParser(prog="temporal_worker", allow_abbrev=False)
    parser.add_argument("--address", required=True)
    parser.add_argument("--concurrent", type=int, required=True)
    parser.add_argument("--pollers", type=int, required=True)
    args = parser.parse_args()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = await Client.connect(args.address)
    async with Worker(
        client,
        task_queue=QUEUE,
        workflows=[Checkout],
        activities=Services(ledger.from_environment()).all(),
        max_concurrent_workflow_tasks=args.concurrent,
        max_concurrent_activities=args.concurrent,
        max_concurrent_local_activities=args.concurrent,
        max_concurrent_workflow_task_polls=args.pollers,
        max_concurrent_activity_task_polls=args.pollers,
    ):
        print("works", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main())
