"""Shipping: shipments, live or cancelled.

Holds its table and handlers. Knows nothing of stock, payments, shards or sockets. No carrier goes
to the address no_carrier (SPEC 1).
"""

from typing import Any, Final

from msgspec import UNSET

from sagacity.books import rows_within
from sagacity.messages import (
    CancelShipment,
    CancelShipmentOk,
    CreateShipment,
    CreateShipmentFailed,
    CreateShipmentOk,
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
CREATE TABLE shipment (
    id INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    step INTEGER NOT NULL,
    address TEXT NOT NULL,
    cancelled INTEGER NOT NULL DEFAULT 0 CHECK (cancelled IN (0, 1)),
    UNIQUE (number, step)
) STRICT;
"""

NOWHERE: Final = "no_carrier"

_SHIP: Final = "INSERT INTO shipment (number, step, address) VALUES (?, ?, ?)"
_SHIPPED: Final = "SELECT id FROM shipment WHERE number = ? AND step = ?"
_CANCEL: Final = "UPDATE shipment SET cancelled = 1 WHERE id = ? AND cancelled = 0"
_SHIPMENT_PAGE: Final = (
    "SELECT id, number, step, cancelled FROM shipment WHERE id > ? ORDER BY id LIMIT ?"
)
_OF_SAGAS: Final = (
    "SELECT number, count(*), sum(cancelled = 0), sum(cancelled) FROM shipment"
    " WHERE number BETWEEN ? AND ? AND number & ? = ? GROUP BY number ORDER BY number LIMIT ?"
)


def create(db: Database, call: Call[CreateShipment]) -> Result:
    """Send the goods."""
    if call.body.address == NOWHERE:
        return Declined(CreateShipmentFailed(call.saga_id, call.step, "no_carrier", "NO_CARRIER"))
    db.execute(_SHIP, (call.number, call.step, call.body.address))
    shipment = db.connection.last_insert_rowid()
    return Ok(CreateShipmentOk(call.saga_id, call.step, f"s{shipment}", f"1Z999AA{shipment}"))


def cancel(db: Database, call: Call[CancelShipment]) -> Result:
    """Call back what this step has sent, if anything."""
    shipment: Any = db.execute(_SHIPPED, (call.number, call.step)).get
    named = call.body.shipment_id
    if named is not UNSET and (shipment is None or named != f"s{shipment}"):
        return Failed(f"{named} is no shipment of this step")
    if shipment is not None:
        db.execute(_CANCEL, (shipment,))
    return Ok(CancelShipmentOk(call.saga_id, call.step))


def shipments_page(db: Database, after: Any, limit: int) -> Rows:
    """Give rows [id, number, step, cancelled]."""
    rows = db.execute(_SHIPMENT_PAGE, (after, limit)).fetchall()
    return [[*row[:-1], bool(row[-1])] for row in rows]


def of_sagas(db: Database, within: Within, after: Any, limit: int) -> Rows:
    """Give rows [number, shipments, of them live, of them cancelled]."""
    return rows_within(db, _OF_SAGAS, within, after, limit)


service = Service(
    name="shipping",
    schema=SCHEMA,
    actions={CreateShipment: create},
    compensations={CancelShipment: cancel},
    books={"shipments": shipments_page},
    audited={"sagas": of_sagas},
)
