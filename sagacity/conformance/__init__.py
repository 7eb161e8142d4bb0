"""Whether a service keeps the barrier's promises: one call for a service that a user writes.

    from sagacity.testing import conformance

    def test_payment_keeps_the_promises_of_the_barrier() -> None:
        conformance.check(
            service,
            action=lambda saga_id, step: Charge(saga_id, step, 500),
            compensation=lambda saga_id, step, reply: Refund(saga_id, step),
            effects=lambda db: db.execute("SELECT count(*) FROM payment WHERE NOT refunded").get,
        )

It performs histories (see `histories`) on a real database file: one by one, beside other sagas, in
one transaction, with a crash after each write and each commit, by two workers at once, and by
processes that end in between. The first kind of round in which a promise breaks is reported, each
promise once; then the check ends, since what follows would break for the same reason.

The rooms, in the order in which to read them: `histories` what is performed and what has to come of
it, `rehearsal` databases and workers to perform it on, `checking` the rounds.
"""

from sagacity.conformance.checking import Broken, Checked, check

__all__ = ["Broken", "Checked", "check"]
