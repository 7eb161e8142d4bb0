"""conformance.check: our services keep the barrier's promises, broken ones are caught."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import pytest
from msgspec import UNSET, Struct

from config.load import Catalog, load_catalog
from sagacity.conformance import histories
from sagacity.messages import (
    CancelShipment,
    ChargePayment,
    CreateShipment,
    Line,
    RefundPayment,
    ReleaseReservation,
    ReserveInventory,
)
from sagacity.service import Call, Database, Declined, Failed, Ok, Result, Service
from sagacity.testing import conformance
from services.inventory import service as inventory
from services.payment import service as payment
from services.shipping import NOWHERE
from services.shipping import service as shipping

ROOT = Path(__file__).parents[2]
MEND = re.compile(r"^    look      .+", re.MULTILINE)
LINES = [Line("abc123", 2), Line("xyz789", 1)]


def test_inventory_keeps_the_promises_of_the_barrier() -> None:
    """What is held is counted by the stock that is left."""
    checked = conformance.check(
        inventory,
        action=lambda saga_id, step: ReserveInventory(saga_id, step, LINES),
        compensation=lambda saga_id, step, reply: ReleaseReservation(
            saga_id, step, True, UNSET if reply is None else reply.reservations
        ),
        declined=lambda saga_id, step: ReserveInventory(
            saga_id, step, [*LINES, Line("sku_out_of_stock", 1)]
        ),
        effects=lambda db: db.execute("SELECT sum(initial - available) FROM stock").get,
        catalog=load_catalog(),
    )
    assert_all_was_tried(checked)


def test_payment_keeps_the_promises_of_the_barrier() -> None:
    """Money that is charged and not refunded, by its payments and by its accounts."""
    checked = conformance.check(
        payment,
        action=lambda saga_id, step: ChargePayment(saga_id, step, "rich", 500),
        compensation=lambda saga_id, step, reply: RefundPayment(
            saga_id, step, True, UNSET if reply is None else reply.payment_id
        ),
        declined=lambda saga_id, step: ChargePayment(saga_id, step, "u999", 500),
        effects=lambda db: (
            db.execute(
                "SELECT (SELECT coalesce(sum(amount - refunded), 0) FROM payment) + 1000000 *"
                " (SELECT 5000 - balance FROM account WHERE user_id = 'rich')"
            ).get
        ),
        catalog=Catalog({}, {}, {"u999": 0, "rich": 5000}),
        step=2,
    )
    assert_all_was_tried(checked)


def test_shipping_keeps_the_promises_of_the_barrier() -> None:
    """Shipments that are not cancelled."""
    checked = conformance.check(
        shipping,
        action=lambda saga_id, step: CreateShipment(saga_id, step, LINES, "123 Main St"),
        compensation=lambda saga_id, step, reply: CancelShipment(
            saga_id, step, True, UNSET if reply is None else reply.shipment_id
        ),
        declined=lambda saga_id, step: CreateShipment(saga_id, step, LINES, NOWHERE),
        effects=lambda db: db.execute("SELECT count(*) FROM shipment WHERE NOT cancelled").get,
        step=3,
    )
    assert_all_was_tried(checked)


def assert_all_was_tried(checked: conformance.Checked) -> None:
    """A check that tries nothing passes anything."""
    assert checked.rounds > 200
    assert checked.crashes > 120
    assert checked.overlaps == 11
    assert checked.restarts == 6


# -- a small service, and the ways to break it ---------------------------------------------------


class Post(Struct, frozen=True, tag_field="type", tag="Post"):
    """Posts a letter; to nobody it is declined."""

    saga_id: str
    step: int
    to: str = "you"


class Posted(Struct, frozen=True, tag_field="type", tag="Post_ok"):
    """It is posted."""

    letter: int


class NotPosted(Struct, frozen=True, tag_field="type", tag="Post_failed"):
    """Nobody lives there."""


class Recall(Struct, frozen=True, tag_field="type", tag="Recall"):
    """Takes the letter back."""

    saga_id: str
    step: int
    letter: int | None = None


class Recalled(Struct, frozen=True, tag_field="type", tag="Recall_ok"):
    """It is back."""


SCHEMA = """
CREATE TABLE letter (
    id INTEGER PRIMARY KEY, number INTEGER NOT NULL, step INTEGER NOT NULL,
    back INTEGER NOT NULL DEFAULT 0, UNIQUE (number, step)
) STRICT;
CREATE TABLE total (letters INTEGER NOT NULL) STRICT;
INSERT INTO total VALUES (0);
"""
_FIND = "SELECT id, back FROM letter WHERE number = ? AND step = ?"


def post(db: Database, call: Call[Post]) -> Result:
    if call.body.to == "nobody":
        return Declined(NotPosted())
    db.execute("INSERT INTO letter (number, step) VALUES (?, ?)", (call.number, call.step))
    letter = db.connection.last_insert_rowid()
    db.execute("UPDATE total SET letters = letters + 1")
    return Ok(Posted(letter))


def recall(db: Database, call: Call[Recall]) -> Result:
    found: Any = db.execute(_FIND, (call.number, call.step)).fetchone()
    if call.body.letter is not None and (found is None or found[0] != call.body.letter):
        return Failed("no letter of this step")
    if found is not None and not found[1]:
        db.execute("UPDATE letter SET back = 1 WHERE id = ?", (found[0],))
        db.execute("UPDATE total SET letters = letters - 1")
    return Ok(Recalled())


def total(db: Database) -> int:
    letters: int = db.execute("SELECT letters FROM total").get
    return letters


@dataclass
class Outside:
    """What is not in the database: a provider, a file, a memory."""

    sent: int = 0
    memory: dict[tuple[int, int], Any] = field(default_factory=dict)

    def count(self, _: Database) -> int:
        return self.sent


def check(
    post: Callable[[Database, Call[Any]], Result] = post,
    recall: Callable[[Database, Call[Any]], Result] = recall,
    effects: Callable[[Database], int] = total,
) -> conformance.Checked:
    return conformance.check(
        Service("letters", SCHEMA, {Post: post}, {Recall: recall}),
        action=Post,
        compensation=lambda saga_id, step, reply: Recall(saga_id, step, reply and reply.letter),
        declined=lambda saga_id, step: Post(saga_id, step, "nobody"),
        effects=effects,
    )


def broken(**handlers: Any) -> str:
    """Give what is told of a service that breaks promises."""
    with pytest.raises(conformance.Broken) as found:
        check(**handlers)
    text = str(found.value)
    assert MEND.search(text), "each promise comes with where to look"
    return text


def test_the_small_service_keeps_the_promises() -> None:
    """So what is found in the others is what they were broken by."""
    assert_all_was_tried(check())


def test_a_handler_that_calls_a_provider_is_caught() -> None:
    """An effect outside of the transaction stays where the transaction does not."""
    outside = Outside()

    def send(db: Database, call: Call[Post]) -> Result:
        if call.body.to != "nobody":
            outside.sent += 1
        return post(db, call)

    def fetch(db: Database, call: Call[Recall]) -> Result:
        if db.execute(_FIND, (call.number, call.step)).get is not None:
            outside.sent -= 1
        return recall(db, call)

    text = broken(post=send, recall=fetch, effects=outside.count)
    assert "a failed command leaves no effect" in text
    assert "action that fails after its writes" in text


def test_a_handler_that_writes_to_a_file_of_its_own_is_caught(tmp_path: Path) -> None:
    """Another database has another transaction."""
    mine = apsw.Connection(str(tmp_path / "mine.db"))
    mine.execute("CREATE TABLE sent (number INTEGER, step INTEGER)")

    def send(db: Database, call: Call[Post]) -> Result:
        if call.body.to != "nobody":
            mine.execute("INSERT INTO sent VALUES (?, ?)", (call.number, call.step))
        return post(db, call)

    def fetch(db: Database, call: Call[Recall]) -> Result:
        mine.execute("DELETE FROM sent WHERE number = ? AND step = ?", (call.number, call.step))
        return recall(db, call)

    text = broken(
        post=send,
        recall=fetch,
        effects=lambda _: mine.execute("SELECT count(*) FROM sent").get,
    )
    assert "a failed command leaves no effect" in text
    mine.close()


def test_a_compensation_that_trusts_ids_is_caught() -> None:
    """It would take back another saga's letter."""

    def trusting(db: Database, call: Call[Recall]) -> Result:
        if call.body.letter is None:
            return recall(db, call)
        db.execute("UPDATE letter SET back = 1 WHERE id = ? AND back = 0", (call.body.letter,))
        db.execute("UPDATE total SET letters = letters - ?", (db.connection.changes(),))
        return Ok(Recalled())

    text = broken(recall=trusting)
    assert "ids in a compensation are compared" in text
    assert "expected  failed" in text


def test_a_compensation_that_ignores_foreign_ids_and_says_ok_is_caught() -> None:
    """Nothing is touched, but a person should have looked."""

    def ignoring(db: Database, call: Call[Recall]) -> Result:
        return recall(db, Call(call.saga_id, call.number, call.step, 1, Recall("", 1)))

    assert "ids in a compensation are compared" in broken(recall=ignoring)


def test_a_compensation_that_undoes_twice_is_caught() -> None:
    """The total is lower than before the saga came."""

    def twice(db: Database, call: Call[Recall]) -> Result:
        before = total(db)
        result = recall(db, call)
        if total(db) != before:
            db.execute("UPDATE total SET letters = letters - 1")
        return result

    text = broken(recall=twice)
    assert "undoes what its action did, all of it and once" in text
    assert "effects -1" in text


def test_a_compensation_that_undoes_nothing_is_caught() -> None:
    """The commonest one: it says ok."""
    text = broken(recall=lambda db, call: Ok(Recalled()))
    assert "history   action, then compensation (AC); alone, at delivery 2" in text
    assert "expected  ok, no effect" in text
    assert "got       ok, effects +1" in text


def test_a_compensation_that_fails_where_there_is_nothing_to_undo_is_caught() -> None:
    """Its saga would be stuck for an action that never came."""

    def insisting(db: Database, call: Call[Recall]) -> Result:
        if db.execute(_FIND, (call.number, call.step)).get is None:
            return Failed("there is no such letter")
        return recall(db, call)

    text = broken(recall=insisting)
    assert "a compensation of what never took effect succeeds" in text
    assert "failed (there is no such letter)" in text


@pytest.mark.parametrize("where", ["", "WHERE number = ?"])
def test_a_compensation_that_undoes_more_than_its_own_rows_is_caught(where: str) -> None:
    """Those of every saga; those of every step of its saga."""

    def greedy(db: Database, call: Call[Recall]) -> Result:
        if call.body.letter is not None:
            ours: Any = db.execute(_FIND, (call.number, call.step)).get
            if ours is None or ours[0] != call.body.letter:
                return Failed("no letter of this step")
        bindings = (call.number,) if where else ()
        db.execute(f"UPDATE letter SET back = 1 {where}", bindings)
        db.execute("UPDATE total SET letters = (SELECT count(*) FROM letter WHERE NOT back)")
        return Ok(Recalled())

    text = broken(recall=greedy)
    assert "touches only the rows of its own saga and step" in text


def test_a_compensation_that_undoes_what_came_later_is_caught() -> None:
    """It asks for its own row, and then undoes the newest one, which may be another saga's."""

    def newest(db: Database, call: Call[Recall]) -> Result:
        found: Any = db.execute(_FIND, (call.number, call.step)).fetchone()
        if call.body.letter is not None and (found is None or found[0] != call.body.letter):
            return Failed("no letter of this step")
        if found is not None:
            db.execute("UPDATE letter SET back = 1 WHERE id = (SELECT max(id) FROM letter)")
            db.execute("UPDATE letter SET back = 1 WHERE id = ?", (found[0],))
            db.execute("UPDATE total SET letters = (SELECT count(*) FROM letter WHERE NOT back)")
        return Ok(Recalled())

    text = broken(recall=newest)
    assert "touches only the rows of its own saga and step" in text
    assert "effects -1" in text


def test_a_table_without_the_step_is_caught() -> None:
    """The service may perform two steps of one saga."""

    def by_saga(db: Database, call: Call[Post]) -> Result:
        if db.execute("SELECT 1 FROM letter WHERE number = ?", (call.number,)).get is not None:
            return Failed("UNIQUE constraint failed: letter.number")
        return post(db, call)

    text = broken(post=by_saga)
    assert "touches only the rows of its own saga and step" in text
    assert "another step of the same saga" in text
    assert "failed (UNIQUE constraint failed: letter.number)" in text


def test_a_handler_that_remembers_what_it_did_is_caught() -> None:
    """Its memory says done, though the transaction was undone."""
    outside = Outside()

    def remembering(db: Database, call: Call[Post]) -> Result:
        key = (call.number, call.step)
        if key not in outside.memory:
            outside.memory[key] = post(db, call)
        result: Result = outside.memory[key]
        return result

    text = broken(post=remembering)
    assert "a failed command leaves no effect, and is done when it comes again" in text


def test_a_compensation_that_needs_what_its_process_remembers_is_caught() -> None:
    """After a restart it would undo nothing, and say ok."""
    outside = Outside()

    def noting(db: Database, call: Call[Post]) -> Result:
        result = post(db, call)
        outside.memory[call.number, call.step] = result
        return result

    def forgetful(db: Database, call: Call[Recall]) -> Result:
        if (call.number, call.step) not in outside.memory and call.body.letter is None:
            return Ok(Recalled())
        return recall(db, call)

    text = broken(post=noting, recall=forgetful)
    assert "what a command needs is in the database, not in its process" in text
    assert "each in a process of its own" in text


def test_a_handler_whose_notes_end_with_the_connection_is_caught_by_a_crash() -> None:
    """A temporary table is rolled back like any other: only who opens the file anew misses it."""
    make = "CREATE TEMP TABLE IF NOT EXISTS notes (number INTEGER, step INTEGER)"

    def noting(db: Database, call: Call[Post]) -> Result:
        db.execute(make)
        db.execute("INSERT INTO notes VALUES (?, ?)", (call.number, call.step))
        return post(db, call)

    def forgetful(db: Database, call: Call[Recall]) -> Result:
        db.execute(make)
        known = db.execute("SELECT 1 FROM notes WHERE number = ? AND step = ?", call_key(call)).get
        if known is None and call.body.letter is None:
            return Ok(Recalled())
        return recall(db, call)

    def call_key(call: Call[Recall]) -> tuple[int, int]:
        return call.number, call.step

    text = broken(post=noting, recall=forgetful)
    assert "what was not committed never happened, and is done when it comes again" in text
    assert "crash after write" in text


def test_a_decline_that_leaves_its_effect_is_caught() -> None:
    """The handler says no when it has sent the letter by other ways."""
    outside = Outside()

    def hasty(db: Database, call: Call[Post]) -> Result:
        outside.sent += 1
        return post(db, call)

    def effects(db: Database) -> int:
        return total(db) + outside.sent

    def fetch(db: Database, call: Call[Recall]) -> Result:
        found: Any = db.execute(_FIND, (call.number, call.step)).fetchone()
        outside.sent -= found is not None and not found[1]
        return recall(db, call)

    text = broken(post=hasty, recall=fetch, effects=effects)
    assert "a declined action leaves no effect, and stays declined" in text
    assert "action that is declined" in text


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
def test_a_handler_that_ends_the_transaction_is_caught(statement: str) -> None:
    """What it committed is there without the row that says so."""

    def committing(db: Database, call: Call[Post]) -> Result:
        result = post(db, call)
        db.execute(statement)
        return result

    assert "a handler leaves transactions alone" in broken(post=committing)


def test_effects_that_see_nothing_are_refused() -> None:
    """Else every service would pass."""
    assert "the same number as before" in broken(effects=lambda _: 0)


def test_an_action_that_does_not_succeed_is_no_sample() -> None:
    """What it answers is told."""
    text = broken(post=lambda db, call: Failed("never"))
    assert "expected  an action that succeeds" in text
    assert "failed (never)" in text


# -- the page ------------------------------------------------------------------------------------


def _page() -> str:
    return (ROOT / "docs" / "testing-your-service.md").read_text()


def _run_page(change: Callable[[str], str] = str) -> None:
    example = re.search(r"```python\n(.*?)```", _page(), re.DOTALL)
    assert example is not None
    names: dict[str, Any] = {"__name__": "page"}
    exec(change(example[1]), names)
    names["test_seats_keeps_the_promises_of_the_barrier"]()


def test_the_example_of_the_page_runs() -> None:
    """What a newcomer copies must work."""
    _run_page()


def test_the_page_shows_what_a_broken_service_gets() -> None:
    """Word by word: the example without its UPDATE."""
    with pytest.raises(conformance.Broken) as found:
        _run_page(lambda code: re.sub(r"    db\.execute\(\"UPDATE seat.*\n", "", code))
    assert f"```\n{found.value}\n```" in _page()


def test_the_page_names_every_promise() -> None:
    """Its table is what a reader looks up."""
    promises = set(histories.WHY) - {histories.SAMPLE}
    assert {promise for promise in promises if f"| {promise} |" in _page()} == promises
