"""Inventory: stock by SKU, and reservations of it.

Holds its tables and handlers; that no SKU is oversold is a CHECK of its table, and half a
reservation cannot be: all lines are checked before the first is written. Knows nothing of
payments, shards or sockets.
"""

import json
from typing import Any, Final

from msgspec import UNSET

from config.load import Catalog
from sagacity.books import rows_within
from sagacity.messages import (
    ReleaseReservation,
    ReleaseReservationOk,
    Reservation,
    ReserveInventory,
    ReserveInventoryFailed,
    ReserveInventoryOk,
)
from sagacity.service import (
    Call,
    Database,
    Declined,
    Failed,
    Ok,
    Result,
    Rows,
    Service,
    Within,
)

SCHEMA: Final = """
CREATE TABLE stock (
    sku TEXT PRIMARY KEY,
    initial INTEGER NOT NULL,
    available INTEGER NOT NULL CHECK (available BETWEEN 0 AND initial)
) STRICT, WITHOUT ROWID;
CREATE TABLE reservation (
    id INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    step INTEGER NOT NULL,
    line INTEGER NOT NULL,
    sku TEXT NOT NULL,
    quantity INTEGER NOT NULL CHECK (quantity > 0),
    released INTEGER NOT NULL DEFAULT 0 CHECK (released IN (0, 1)),
    UNIQUE (number, step, line)
) STRICT;
"""

_AVAILABLE: Final = "SELECT available FROM stock WHERE sku = ?"
_TAKE: Final = "UPDATE stock SET available = available - ? WHERE sku = ?"
_RETURN: Final = "UPDATE stock SET available = available + ? WHERE sku = ?"
_RESERVE: Final = (
    "INSERT INTO reservation (number, step, line, sku, quantity) VALUES (?, ?, ?, ?, ?)"
)
_HELD: Final = "SELECT id, sku, quantity, released FROM reservation WHERE number = ? AND step = ?"
_RELEASE: Final = (
    "UPDATE reservation SET released = 1 WHERE number = ? AND step = ? AND released = 0"
)
_STOCK_PAGE: Final = "SELECT sku, initial, available FROM stock WHERE sku > ? ORDER BY sku LIMIT ?"
_OF_SAGAS: Final = (
    "SELECT number, count(*), sum(released = 0), sum(released) FROM reservation"
    " WHERE number BETWEEN ? AND ? AND number & ? = ? GROUP BY number ORDER BY number LIMIT ?"
)
# What is reserved and not given back, within places [shard, lowest count, highest count] as JSON.
_PIECES: Final = (
    "SELECT reservation.sku AS sku, sum(quantity) AS pieces FROM json_each(?) AS place"
    " CROSS JOIN reservation WHERE number BETWEEN"
    " (place.value ->> 1) << 10 | (place.value ->> 0) AND"
    " (place.value ->> 2) << 10 | (place.value ->> 0)"
    " AND number & 1023 = place.value ->> 0 AND released = 0 GROUP BY reservation.sku"
)
_PIECES_PAGE: Final = f"SELECT sku, pieces FROM ({_PIECES}) WHERE sku > ? ORDER BY sku LIMIT ?"  # noqa: S608 - ours
# Stock and reservations in one statement: of one instant, whatever others write meanwhile.
_STOCK_WITHIN: Final = (
    "SELECT stock.sku, initial, available, coalesce(pieces, 0) FROM stock"  # noqa: S608 - ours
    f" LEFT JOIN ({_PIECES}) AS held ON held.sku = stock.sku"
    " WHERE stock.sku > ? ORDER BY stock.sku LIMIT ?"
)
_RESERVATION_PAGE: Final = (
    "SELECT id, number, step, line, sku, quantity, released FROM reservation"
    " WHERE id > ? ORDER BY id LIMIT ?"
)


def reserve(db: Database, call: Call[ReserveInventory]) -> Result:
    """Hold stock for every line, or for none."""
    lines = call.body.items
    wanted: dict[str, int] = {}
    for line in lines:
        wanted[line.sku] = wanted.get(line.sku, 0) + line.quantity
    for sku, quantity in wanted.items():
        available: Any = db.execute(_AVAILABLE, (sku,)).get
        if available is None or available < quantity:
            return Declined(ReserveInventoryFailed(call.saga_id, call.step, "out_of_stock", sku))
    for sku, quantity in wanted.items():
        db.execute(_TAKE, (quantity, sku))
    reservations = []
    inserted = db.connection.last_insert_rowid
    for index, line in enumerate(lines):
        db.execute(_RESERVE, (call.number, call.step, index, line.sku, line.quantity))
        reservations.append(Reservation(line.sku, f"r{inserted()}"))
    return Ok(ReserveInventoryOk(call.saga_id, call.step, reservations))


def release(db: Database, call: Call[ReleaseReservation]) -> Result:
    """Give back what is held for this step, if anything is."""
    rows: Any = db.execute(_HELD, (call.number, call.step)).fetchall()
    if call.body.reservations is not UNSET:
        held = {(sku, f"r{row_id}") for row_id, sku, _, _ in rows}
        for named in call.body.reservations:
            if (named.sku, named.reservation_id) not in held:
                return Failed(f"{named.reservation_id} of {named.sku} is not held for this step")
    db.execute(_RELEASE, (call.number, call.step))
    for _, sku, quantity, released in rows:
        if not released:
            db.execute(_RETURN, (quantity, sku))
    return Ok(ReleaseReservationOk(call.saga_id, call.step))


def seed(db: Database, catalog: Catalog) -> None:
    """Write the stock of a new database."""
    db.executemany(
        "INSERT INTO stock (sku, initial, available) VALUES (?, ?, ?)",
        [(sku, units, units) for sku, units in catalog.stock.items()],
    )


def stock_page(db: Database, after: Any, limit: int) -> Rows:
    """Give rows [sku, initial, available]."""
    return db.execute(_STOCK_PAGE, (after, limit)).fetchall()


def reservations_page(db: Database, after: Any, limit: int) -> Rows:
    """Give rows [id, number, step, line, sku, quantity, released]."""
    rows = db.execute(_RESERVATION_PAGE, (after, limit)).fetchall()
    return [[*row[:-1], bool(row[-1])] for row in rows]


def of_sagas(db: Database, within: Within, after: Any, limit: int) -> Rows:
    """Give rows [number, lines, of them held, of them released]."""
    return rows_within(db, _OF_SAGAS, within, after, limit)


def pieces_of(db: Database, within: Within, after: Any, limit: int) -> Rows:
    """Give rows [sku, pieces that certain sagas hold, all together]."""
    return db.execute(_PIECES_PAGE, (json.dumps(within), after, limit)).fetchall()


def stock_beside(db: Database, within: Within, after: Any, limit: int) -> Rows:
    """Give rows [sku, initial, available, pieces that certain sagas hold], of one instant."""
    return db.execute(_STOCK_WITHIN, (json.dumps(within), after, limit)).fetchall()


service = Service(
    name="inventory",
    schema=SCHEMA,
    actions={ReserveInventory: reserve},
    compensations={ReleaseReservation: release},
    seed=seed,
    books={"stock": stock_page, "reservations": reservations_page},
    audited={"sagas": of_sagas, "pieces": pieces_of, "stock": stock_beside},
)
