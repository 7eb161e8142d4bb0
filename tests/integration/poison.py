"""Payment with two users more, for clusters that a test starts: their charges harm the worker.

u_poison ends it each time. u_stopped stops it (SIGSTOP) inside its transaction, after it has
written, once: a file of that name beside the database says that it has happened.
"""

import os
import signal
from pathlib import Path

from sagacity.messages import ChargePayment, RefundPayment
from sagacity.service import Call, Database, Result, Service
from services.payment import charge, kill_this_process, payment_service, refund

payment = payment_service()


def charge_or_harm(db: Database, call: Call[ChargePayment]) -> Result:
    """Charge, and harm the worker where the user's name says so."""
    result = charge(db, call)
    if call.body.user_id == "u_poison":
        kill_this_process()
    mark = Path(db.connection.filename).with_name("u_stopped")
    if call.body.user_id == "u_stopped" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return result


service = Service(
    name="payment",
    schema=payment.schema,
    actions={ChargePayment: charge_or_harm},
    compensations={RefundPayment: refund},
    seed=payment.seed,
    books=payment.books,
)
