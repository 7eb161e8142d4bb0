"""The checkout saga on DBOS, and the checkouts that are asked of it: one process, as a web server
with DBOS inside would be. DBOS is a library, so there is no server to ask over a network.

A workflow with a step for each command; a step that raises turns back, compensations run in
reverse order. Each checkout's id is its workflow's id: a repeat gives the first one's answer.
"""

import asyncio
import os
from typing import Any

import sqlalchemy
from dbos import DBOS, DBOSConfig, SetWorkflowID

from bench.peers.programs import conductor, ledger

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


def read_back(engine: Any, connection: Any) -> dict[str, str]:
    """Ask a connection that DBOS has just made what it will sync.

    Args:
        engine: name of its dialect.
        connection: as the driver gives it.
    """
    cursor = connection.cursor()
    asked = (
        ("PRAGMA journal_mode", "PRAGMA synchronous", "PRAGMA fullfsync")
        if engine == "sqlite"
        else (
            "SHOW fsync",
            "SHOW synchronous_commit",
            "SHOW full_page_writes",
            "SHOW wal_sync_method",
        )
    )
    found = {}
    for question in asked:
        cursor.execute(question)
        found[question.split()[1]] = str(cursor.fetchone()[0])
    cursor.close()
    connection.rollback()
    return found


async def main() -> None:
    """Launch DBOS, load until told to end."""
    parser = conductor.arguments("dbos_app")
    parser.add_argument("--url", required=True)
    parser.add_argument("--pool", type=int, required=True)
    parser.add_argument("--executor", required=True)
    args = parser.parse_args()
    durability: dict[str, str] = {}

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "engine_connect")
    def _connected(connection: Any) -> None:
        if not durability and DBOS_LAUNCHED:
            raw = connection.connection.dbapi_connection
            durability.update(read_back(connection.dialect.name, raw))

    config: DBOSConfig = {
        "name": "checkout",
        "system_database_url": args.url,
        "sys_db_pool_size": args.pool,
        "executor_id": args.executor,
        "log_level": "ERROR",
        "run_admin_server": False,
    }
    DBOS(config=config)
    DBOS.launch()
    DBOS_LAUNCHED.append(os.getpid())
    print("launched", flush=True)
    items = [tuple(line) for line in ledger.CART]

    async def one(saga_id: str, declined: bool) -> str:
        user_id = ledger.BROKE if declined else ledger.BUYER
        with SetWorkflowID(saga_id):
            return str(await checkout(saga_id, user_id, items, ledger.ADDRESS))

    try:
        await conductor.conduct(args, one, lambda: durability)
    finally:
        DBOS.destroy()


DBOS_LAUNCHED: list[int] = []  # migrations connect, too; what serves is read after them

if __name__ == "__main__":
    asyncio.run(main())
