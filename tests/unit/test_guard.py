"""Guard: which witness belongs to which journal, and who may open a shard."""

import pytest
from msgspec.structs import replace

from sagacity.ids import count_of, number_of
from sagacity.wire import Witness
from shard.entries import Opened
from shard.events import WorkerCame
from shard.finished import FinishedInMemory
from shard.guard import (
    ALL_WITHIN_NS,
    DATABASE_OLD,
    FOREIGN,
    JOURNAL_OLD,
    LOSS_GAP,
    Gate,
    Guard,
    OldCopy,
    StartOver,
)
from shard.state import State
from tests.unit.loop_rig import DEFINITIONS
from tests.unit.world import CLUSTER_ID

SERVICES = frozenset({"inventory", "payment"})
LAST = 20


def chain(seq: int) -> bytes | None:
    """Rows up to 9 are gone; the checkpoint stands at 9."""
    return seq.to_bytes(16, "big") if seq >= 9 else None


def witness(seq: int, epoch: int = 3) -> Witness:
    return Witness(CLUSTER_ID, 0, epoch, seq, seq.to_bytes(16, "big"), number_of(seq, 0))


def guard(seen: int = 15) -> Guard:
    """Give the guard of a journal of 20 rows, epoch 3; payment has answered for row `seen`."""
    state = State(DEFINITIONS, FinishedInMemory())
    state.epoch, state.seen["payment"] = 3, seen
    return Guard(CLUSTER_ID, 0, state, lambda: LAST, chain)


def gate(*, is_open: bool = False, accepts_loss: bool = False) -> Gate:
    return Gate(guard(), SERVICES, 0, is_open=is_open, accepts_loss=accepts_loss)


def came(service: str, *witnesses: Witness) -> WorkerCame:
    return WorkerCame(service.encode(), service, 1, 256, witnesses)


@pytest.mark.parametrize(
    ("held", "kind"),
    [
        (witness(LAST), None),
        (witness(15), None),
        (witness(LAST + 1), JOURNAL_OLD),
        (witness(LAST, epoch=4), JOURNAL_OLD),
        (replace(witness(16), chain=b"another" + bytes(9)), JOURNAL_OLD),
        (witness(14), DATABASE_OLD),
        (witness(5), DATABASE_OLD),  # its row is gone, what payment has answered for is known
        (replace(witness(LAST), cluster_id="f" * 32), FOREIGN),
        (replace(witness(99), shard=1), DATABASE_OLD),  # of another shard: none of ours
        (None, DATABASE_OLD),
    ],
)
def test_a_witness_that_does_not_belong_to_the_journal_is_found(
    held: Witness | None, kind: int | None
) -> None:
    """D11: a copy that was put back looks healthy by itself; beside the other it does not."""
    found = guard().judge("payment", [held] if held else [])
    assert (found and found.kind) == kind


def test_a_service_that_never_saw_the_shard_needs_no_witness() -> None:
    """A new service, and one whose shard is new, have nothing to show."""
    assert guard().judge("inventory", []) is None


def test_a_finding_names_the_file_and_what_to_do() -> None:
    """Whoever reads it at night needs no manual."""
    journal = guard().judge("payment", [witness(99)])
    database = guard().judge("payment", [witness(1)])
    assert journal is not None
    assert database is not None
    assert "shard-0/journal.db back" in journal.text
    assert "services/payment.db back" in database.text
    for found in (journal, database):
        assert "--accept-data-loss" in found.text


def test_a_shard_opens_when_every_service_was_heard() -> None:
    """No one who could know better is left out."""
    waits = gate()
    assert waits.hear(came("payment", witness(15))) is None
    assert not waits.may_open(ALL_WITHIN_NS - 1)
    assert waits.hear(came("inventory")) is None
    assert waits.may_open(0)
    assert waits.loss() is None


def test_a_shard_waits_five_seconds_for_all_and_for_ever_for_one() -> None:
    """A service that is down must not stop the others; with none nobody can compare."""
    waits = gate()
    assert not waits.may_open(1000 * ALL_WITHIN_NS)
    waits.hear(came("payment", witness(15)))
    assert not waits.may_open(ALL_WITHIN_NS - 1)
    assert waits.may_open(ALL_WITHIN_NS)


@pytest.mark.parametrize("held", [witness(99), witness(1)])
def test_a_shard_with_an_old_copy_does_not_open(held: Witness) -> None:
    """DESIGN 4: either side old, and nothing is written."""
    with pytest.raises(OldCopy) as refused:
        gate().hear(came("payment", held))
    assert refused.value.exit_code == 2


def test_a_database_that_comes_late_and_is_old_costs_its_worker_alone() -> None:
    """The shard serves the others; the journal that is old never goes on."""
    serves = gate(is_open=True)
    assert "database of payment is old" in (serves.hear(came("payment", witness(1))) or "")
    with pytest.raises(OldCopy):
        serves.hear(came("payment", witness(99)))


def test_a_database_of_another_cluster_is_no_witness() -> None:
    """It says nothing of our journal, so the shard neither ends for it nor opens with it."""
    waits = gate()
    foreign = replace(witness(99), cluster_id="f" * 32)
    assert "for cluster ffff" in (waits.hear(came("payment", foreign)) or "")
    assert not waits.may_open(1000 * ALL_WITHIN_NS)


def test_an_accepted_loss_is_far_above_all_that_anybody_knows() -> None:
    """Numbers and epochs that were given in what is lost are never given again."""
    accepts = gate(accepts_loss=True)
    assert accepts.hear(came("payment", witness(700, epoch=8))) is None
    assert accepts.hear(came("inventory", witness(LAST))) is None
    loss = accepts.loss()
    assert loss is not None
    assert loss.epoch == 8 + LOSS_GAP
    assert loss.number == witness(700).number
    assert loss.orders == LOSS_GAP


def test_a_loss_that_is_not_there_is_not_accepted() -> None:
    """The flag on a healthy cluster, and the supervisor's restarts under it, change nothing."""
    accepts = gate(accepts_loss=True)
    for service in SERVICES:
        accepts.hear(came(service, witness(LAST)))
    assert accepts.may_open(0)
    assert accepts.loss() is None


@pytest.mark.parametrize("seq", [99, 1], ids=["journal", "database"])
def test_a_loss_that_shows_late_is_accepted_at_the_next_start(seq: int) -> None:
    """The epoch that is written already may be below what is found now, whichever is old."""
    with pytest.raises(StartOver):
        gate(is_open=True, accepts_loss=True).hear(came("payment", witness(seq)))


def test_a_journal_that_accepted_a_loss_does_not_ask_about_it_again() -> None:
    """Services hold the old witnesses until a command of the new epoch reaches them."""
    state = State(DEFINITIONS, FinishedInMemory())
    state.seen["payment"] = 15
    state.opened(Opened(CLUSTER_ID, 0, 8 + LOSS_GAP, number_of(700, 0), LOSS_GAP), LAST)
    accepted = Guard(CLUSTER_ID, 0, state, lambda: LAST, chain)
    assert accepted.judge("payment", [witness(700, epoch=8)]) is None
    assert accepted.judge("payment", [witness(1)]) is None
    assert count_of(state.number) == state.count == 700 + LOSS_GAP
    assert set(state.order_counts) == {LOSS_GAP}
