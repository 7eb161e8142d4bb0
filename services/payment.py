"""Payment: accounts with a limit, payments, refunds.

Holds its tables and handlers; that nobody is charged beyond their funds, and nothing refunded
beyond the charge, are CHECKs of its tables. Knows nothing of stock, shards or sockets.

Four users are there to test with (SPEC 1): u_timeout is charged but never told so, u_flaky_3
fails three times, u_slow_2s is told two seconds later, u_crash ends the process once.
"""

import math
import os
import signal
from collections.abc import Callable
from typing import Any, Final

from msgspec import UNSET, DecodeError

from config.load import Catalog
from sagacity.books import rows_within
from sagacity.ids import ACTION
from sagacity.messages import (
    ChargePayment,
    ChargePaymentFailed,
    ChargePaymentOk,
    RefundPayment,
    RefundPaymentOk,
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
from sagacity.wire import BodyReader, Command

SCHEMA: Final = """
CREATE TABLE account (
    user_id TEXT PRIMARY KEY,
    balance INTEGER NOT NULL CHECK (balance >= 0)
) STRICT, WITHOUT ROWID;
CREATE TABLE payment (
    id INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    step INTEGER NOT NULL,
    user_id TEXT NOT NULL,
    amount INTEGER NOT NULL CHECK (amount >= 0),
    refunded INTEGER NOT NULL DEFAULT 0 CHECK (refunded BETWEEN 0 AND amount),
    UNIQUE (number, step)
) STRICT;
CREATE TABLE crash (
    number INTEGER PRIMARY KEY  -- sagas for which u_crash has ended the process
) STRICT;
"""

FIRST_TRANSACTION: Final = 12345
SLOW_S: Final = 2.0
FLAKY_ATTEMPTS: Final = 3

_BALANCE: Final = "SELECT balance FROM account WHERE user_id = ?"
_DEBIT: Final = "UPDATE account SET balance = balance - ? WHERE user_id = ?"
_CREDIT: Final = "UPDATE account SET balance = balance + ? WHERE user_id = ?"
_CHARGE: Final = "INSERT INTO payment (number, step, user_id, amount) VALUES (?, ?, ?, ?)"
_CHARGED: Final = "SELECT id, user_id, amount, refunded FROM payment WHERE number = ? AND step = ?"
_REFUND: Final = "UPDATE payment SET refunded = amount WHERE id = ? AND refunded = 0"
_PAYMENT_PAGE: Final = (
    "SELECT id, number, step, user_id, amount, refunded FROM payment"
    " WHERE id > ? ORDER BY id LIMIT ?"
)
_OF_SAGAS: Final = (
    "SELECT number, count(*), sum(amount), sum(refunded) FROM payment"
    " WHERE number BETWEEN ? AND ? AND number & ? = ? GROUP BY number ORDER BY number LIMIT ?"
)

_read_charge = BodyReader[ChargePayment](ChargePayment).decode


def charge(db: Database, call: Call[ChargePayment]) -> Result:
    """Charge a user, within the funds of those that have an account here."""
    user, amount = call.body.user_id, call.body.amount
    if user == "u_flaky_3" and call.attempt <= FLAKY_ATTEMPTS:
        return Failed(f"the payment provider fails on attempts 1 to {FLAKY_ATTEMPTS}")
    balance: Any = db.execute(_BALANCE, (user,)).get
    if balance is not None:
        if balance < amount:
            return Declined(
                ChargePaymentFailed(call.saga_id, call.step, "insufficient_funds", "DECLINED")
            )
        db.execute(_DEBIT, (amount, user))
    db.execute(_CHARGE, (call.number, call.step, user, amount))
    payment = db.connection.last_insert_rowid()
    return Ok(
        ChargePaymentOk(
            call.saga_id, call.step, f"p{payment}", f"txn_{FIRST_TRANSACTION - 1 + payment}"
        )
    )


def refund(db: Database, call: Call[RefundPayment]) -> Result:
    """Refund what this step has charged, if anything."""
    row: Any = db.execute(_CHARGED, (call.number, call.step)).fetchone()
    named = call.body.payment_id
    if named is not UNSET and (row is None or named != f"p{row[0]}"):
        return Failed(f"{named} is no payment of this step")
    if row is not None:
        payment, user, amount, refunded = row
        if refunded == 0:
            db.execute(_REFUND, (payment,))
            db.execute(_CREDIT, (amount, user))
    return Ok(RefundPaymentOk(call.saga_id, call.step))


def answer_delay(command: Command) -> float:
    """Hold back the answers to charges of u_timeout (for ever) and u_slow_2s."""
    if b"u_timeout" not in command.body and b"u_slow_2s" not in command.body:
        return 0.0
    if command.direction != ACTION:
        return 0.0
    try:
        user = _read_charge(command.body).user_id
    except DecodeError:
        return 0.0
    return {"u_timeout": math.inf, "u_slow_2s": SLOW_S}.get(user, 0.0)


def seed(db: Database, catalog: Catalog) -> None:
    """Write the accounts of a new database."""
    db.executemany(
        "INSERT INTO account (user_id, balance) VALUES (?, ?)", list(catalog.accounts.items())
    )


def payments_page(db: Database, after: Any, limit: int) -> Rows:
    """Give rows [id, number, step, user_id, amount, refunded]."""
    return db.execute(_PAYMENT_PAGE, (after, limit)).fetchall()


def of_sagas(db: Database, within: Within, after: Any, limit: int) -> Rows:
    """Give rows [number, payments, charged, refunded]."""
    return rows_within(db, _OF_SAGAS, within, after, limit)


def kill_this_process() -> None:
    """End as a crash would: nothing is flushed, closed or said."""
    os.kill(os.getpid(), signal.SIGKILL)


def payment_service(crash: Callable[[], None] = kill_this_process) -> Service:
    """Give the service; `crash` is what u_crash does to its worker."""

    def charge_or_crash(db: Database, call: Call[ChargePayment]) -> Result:
        if call.body.user_id == "u_crash" and _mark_crash(db, call.number):
            crash()
        return charge(db, call)

    return Service(
        name="payment",
        schema=SCHEMA,
        actions={ChargePayment: charge_or_crash},
        compensations={RefundPayment: refund},
        seed=seed,
        books={"payments": payments_page},
        audited={"sagas": of_sagas},
        answer_delay=answer_delay,
    )


def _mark_crash(db: Database, number: int) -> bool:
    """Leave a mark that outlives the process; False if it is there already.

    The one place where a handler ends the kit's transaction: its process is about to die, and all
    that it had not committed with it.
    """
    if db.execute("SELECT 1 FROM crash WHERE number = ?", (number,)).get is not None:
        return False
    db.execute("ROLLBACK")
    db.execute("INSERT INTO crash (number) VALUES (?)", (number,))
    return True


service = payment_service()
