"""Payment that takes as long as a file beside its database says: a service with a known limit.

For clusters of `shop`. The file `pace` holds milliseconds for each charge, or `fails`: then charges
and refunds fail for a technical reason, with nothing written. Without it this is our payment. Each
time that a handler runs it adds a record to the file `runs`: when, of which saga, which way. The
file is read anew for each command: 10 us, small beside what it has to say.
"""

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sagacity.ids import ACTION, COMPENSATION
from sagacity.messages import ChargePayment, RefundPayment
from sagacity.service import Call, Database, Failed, Result, Service
from services.payment import charge, payment_service, refund

FAILS: Final = "fails"
RUN: Final = struct.Struct("<dQQ")  # time.monotonic, number, direction


def paced(
    handler: Callable[[Database, Call[Any]], Result], direction: int
) -> Callable[[Database, Call[Any]], Result]:
    """Give a handler that does as the file says, and notes that it did."""
    notes: list[int] = []  # the open file, once there is one

    def handle(db: Database, call: Call[Any]) -> Result:
        place = Path(db.connection.filename)
        if not notes:
            flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
            notes.append(os.open(place.with_name("runs"), flags, 0o600))
        os.write(notes[0], RUN.pack(time.monotonic(), call.number, direction))
        try:
            pace = place.with_name("pace").read_text()
        except FileNotFoundError:
            pace = ""
        if pace == FAILS:
            return Failed("out of order")
        if pace and direction == ACTION:
            time.sleep(float(pace) / 1000)
        return handler(db, call)

    return handle


payment = payment_service()
service = Service(
    name="payment",
    schema=payment.schema,
    actions={ChargePayment: paced(charge, ACTION)},
    compensations={RefundPayment: paced(refund, COMPENSATION)},
    seed=payment.seed,
    books=payment.books,
    audited=payment.audited,
)
