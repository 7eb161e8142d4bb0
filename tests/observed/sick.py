"""Payment that is sick as a file beside its database says: for worlds in which alerts have to fire.

The file `sick` holds `fails` (charges and refunds fail, nothing is written), `no_refunds` (refunds
alone fail) or the milliseconds that a charge takes. Without it this is our payment, its test users
too. The file is read anew for each command.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sagacity.ids import ACTION, COMPENSATION
from sagacity.messages import ChargePayment, RefundPayment
from sagacity.service import Call, Database, Failed, Result, Service
from services.payment import payment_service

FILE: Final = "sick"
FAILS: Final = "fails"
NO_REFUNDS: Final = "no_refunds"

Handler = Callable[[Database, Call[Any]], Result]


def sick(handler: Handler, direction: int) -> Handler:
    """Give a handler that does as the file says."""

    def handle(db: Database, call: Call[Any]) -> Result:
        try:
            said = Path(db.connection.filename).with_name(FILE).read_text()
        except FileNotFoundError:
            return handler(db, call)
        if said == FAILS or (said == NO_REFUNDS and direction == COMPENSATION):
            return Failed("out of order")
        if said.isdecimal() and direction == ACTION:
            time.sleep(int(said) / 1000)  # slowness is the sickness
        return handler(db, call)

    return handle


_well: Final = payment_service()
service: Final = Service(
    name="payment",
    schema=_well.schema,
    actions={ChargePayment: sick(_well.actions[ChargePayment], ACTION)},
    compensations={RefundPayment: sick(_well.compensations[RefundPayment], COMPENSATION)},
    seed=_well.seed,
    books=_well.books,
    audited=_well.audited,
    answer_delay=_well.answer_delay,
)
