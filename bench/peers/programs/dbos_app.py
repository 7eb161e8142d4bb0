"""The checkout saga on DBOS, and the checkouts that are asked of it: one process, as a web server
with DBOS inside would be. DBOS is a library, so there is no server to ask over a network.

The saga itself is in dbos_async and, the same, in dbos_threads: DBOS registers what is imported, by
name, so only one of them is.
"""

import asyncio
import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy
from dbos import DBOS, DBOSConfig

from bench.peers.programs import conductor, ledger


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
    parser.add_argument("--style", choices=("async", "threads"), required=True)
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
    saga = importlib.import_module(f"bench.peers.programs.dbos_{args.style}")
    DBOS.launch()
    DBOS_LAUNCHED.append(os.getpid())
    threads = ThreadPoolExecutor(args.in_flight + 1)  # and one that listens to who measures
    asyncio.get_running_loop().set_default_executor(threads)
    print("launched", flush=True)
    items = [tuple(line) for line in ledger.CART]

    async def one(saga_id: str, declined: bool) -> str:
        user_id = ledger.BROKE if declined else ledger.BUYER
        told: str = await saga.one(saga_id, user_id, items)
        return told

    try:
        await conductor.conduct(args, one, lambda: durability)
    finally:
        DBOS.destroy()


DBOS_LAUNCHED: list[int] = []  # migrations connect, too; what serves is read after them

if __name__ == "__main__":
    asyncio.run(main())
