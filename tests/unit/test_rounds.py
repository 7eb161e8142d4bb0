"""The continuous audit: right books balance whatever happens, a wrong row is seen and stays so."""

import random
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from msgspec import convert

from cluster import balance as balance_room
from cluster import rounds as rooms
from cluster.balance import Effects, Told
from cluster.metrics import BOOKS
from cluster.rounds import AGED_ROUNDS, Rounds, StartedOver
from sagacity.errors import Malformed, NotTaken
from sagacity.ids import number_of, shard_of
from tests.unit.rounds_world import AMOUNT, SHARDS, Shop, shop_of

T = TypeVar("T")

BALANCED = dict.fromkeys(BOOKS, 0)
FAR = 10**9  # a count that no shard comes to


@pytest.fixture
def shop() -> Iterator[Shop]:
    with shop_of() as made:
        yield made


def rounds_of(shop: Shop, *, others: bool = False) -> Rounds:
    return Rounds(shop, range(SHARDS), others=others)


def settled(shop: Shop) -> Rounds:
    """Give an audit that has read all of the shop's history."""
    made = rounds_of(shop)
    made.round()
    assert made.read_through == 1
    return made


def with_open_numbers(rounds: Rounds, times: int) -> None:
    """Make rounds; until the many open numbers of a loss are nobody's the stock is not judged."""
    for _ in range(times):
        try:
            rounds.round()
        except NotTaken as error:
            if "the stock was not judged" not in error.text:
                raise


def seen(rounds: Rounds) -> dict[str, int]:
    """Give what does not balance, without what does."""
    return {book: amount for book, amount in rounds.balance.totals().items() if amount}


def test_right_books_balance(shop: Shop) -> None:
    """Every way in which a checkout can end, some that run, and what ends between two rounds."""
    shop.some(40)
    shop.act(shop.start(0), 1)
    rounds = settled(shop)
    for _ in range(6):
        shop.some(10)
        rounds.round()
    assert rounds.balance.totals() == BALANCED
    assert rounds.balance.suspects == {}
    assert rounds.balance.goods == {}


def test_a_round_reads_the_tables_that_a_service_has_to_give(shop: Shop) -> None:
    """`up` starts no auditor where one of them is not given; of others it knows nothing."""
    asked: set[str] = set()
    shop.between = asked.add
    shop.some(40)
    rounds = settled(shop)
    shop.some(4)
    rounds.round()
    named = {f"{name} {table}" for name, tables in rooms.TABLES.items() for table in tables}
    assert {each for each in asked if " " in each} == named


@pytest.mark.parametrize("seed", range(12))
def test_no_alarm_while_sagas_live_between_any_two_pages(seed: int) -> None:
    """Sagas start, act, turn back and end while a round reads; services and pages fail at times.

    Not even on first sight: a suspicion would be an order of reading that proves nothing.
    """
    with shop_of(seed) as shop:
        shop.some(12)
        chance = random.Random(seed)
        rounds = rounds_of(shop)
        shop.between = lambda _: live(shop, chance)
        for _ in range(25):
            shop.down = {"payment"} if chance.random() < 0.1 else set()
            try:
                rounds.round()
            except NotTaken:
                assert shop.down
            assert rounds.balance.suspects == {}
            assert rounds.balance.goods == {}
        assert rounds.read_through > 5
        assert rounds.balance.compared > 100


def live(shop: Shop, chance: random.Random) -> None:
    """Let some of what goes on in a cluster happen."""
    for _ in range(chance.randrange(4)):
        shard = chance.randrange(SHARDS)
        running = shop.running[shard]
        if len(running) < 4:
            shop.start(shard)
            continue
        number = chance.choice(list(running))
        steps = running[number].count("+")
        if chance.random() < 0.25:
            for step in range(steps, 0, -1):
                shop.undo(number, step)
            shop.end(number, "ABORTED")
        elif steps == 3:
            shop.end(number, "COMPLETED")
        else:
            shop.act(number, steps + 1)
            running[number] += "+"


# -- one wrong row ----------------------------------------------------------------------------

Spoil = Callable[[Shop, int], None]


def refunded(shop: Shop, number: int) -> None:
    shop.spoil("payment", "UPDATE payment SET refunded = 200 WHERE number = ?", number)


def charged_more(shop: Shop, number: int) -> None:
    shop.spoil("payment", "UPDATE payment SET amount = amount + 7 WHERE number = ?", number)


def charged_twice(shop: Shop, number: int) -> None:
    sql = "INSERT INTO payment (number, step, user_id, amount) VALUES (?, 4, 'u', 11)"
    shop.spoil("payment", sql, number)


def not_charged(shop: Shop, number: int) -> None:
    shop.spoil("payment", "DELETE FROM payment WHERE number = ?", number)


def cancelled(shop: Shop, number: int) -> None:
    shop.spoil("shipping", "UPDATE shipment SET cancelled = 1 WHERE number = ?", number)


def not_shipped(shop: Shop, number: int) -> None:
    shop.spoil("shipping", "DELETE FROM shipment WHERE number = ?", number)


def released(shop: Shop, number: int) -> None:
    sql = "UPDATE reservation SET released = 1 WHERE number = ? AND line = 0"
    shop.spoil("inventory", sql, number)


# What a wrong row of a completed saga is in the books.
WRONG: list[tuple[Spoil, dict[str, int]]] = [
    (refunded, {"payments": 200}),
    (charged_more, {"payments": 7}),
    (charged_twice, {"payments": 11}),
    (not_charged, {"payments": AMOUNT}),
    (cancelled, {"shipments": 1}),
    (not_shipped, {"shipments": 1}),
    (released, {"reservations": 1}),
]


@pytest.mark.parametrize(("spoil", "wrong"), WRONG, ids=[each[0].__name__ for each in WRONG])
def test_a_wrong_row_of_a_saga_that_ended_is_seen_and_stays_seen(
    shop: Shop, spoil: Spoil, wrong: dict[str, int]
) -> None:
    """Suspected in the first round after it, told in the second, and told until it is mended."""
    shop.some(20)
    rounds = settled(shop)
    number = shop.whole(1)
    spoil(shop, number)
    rounds.round()
    assert rounds.balance.totals() == BALANCED
    assert list(rounds.balance.news()) == []
    rounds.round()
    books = {book: seen(rounds).get(book) for book in wrong}
    assert books == wrong
    told = [each for each in rounds.balance.news() if each.book in wrong]
    assert [(t.number, t.saga_id, t.mended) for t in told] == [(number, f"saga-{number}", False)]
    for _ in range(5):
        shop.some(4)
        rounds.round()
    assert {book: seen(rounds).get(book) for book in wrong} == wrong
    assert [each for each in rounds.balance.news() if each.book in wrong] == []


@pytest.mark.parametrize(("spoil", "wrong"), WRONG, ids=[each[0].__name__ for each in WRONG])
def test_a_wrong_row_of_history_is_seen_when_it_is_read_again(
    shop: Shop, spoil: Spoil, wrong: dict[str, int]
) -> None:
    """A row that was right when its saga ended, and was changed since."""
    numbers = shop.some(20)
    rounds = settled(shop)
    rounds.round()
    spoil(shop, numbers[0])  # completed
    rounds.round()
    rounds.round()
    assert {book: seen(rounds).get(book) for book in wrong} == wrong


def test_what_is_mended_balances_again(shop: Shop) -> None:
    """In the next round, and it is said; whoever mends sees at once that it is done."""
    numbers = shop.some(20)
    rounds = settled(shop)
    refunded(shop, numbers[0])
    for _ in range(3):
        rounds.round()
    list(rounds.balance.news())
    shop.spoil("payment", "UPDATE payment SET refunded = 0 WHERE number = ?", numbers[0])
    rounds.round()
    assert seen(rounds) == {}
    assert list(rounds.balance.news()) == [
        Told("payments", 200, True, numbers[0], f"saga-{numbers[0]}")
    ]
    rounds.round()
    assert seen(rounds) == {}


def test_stock_that_an_aborted_saga_holds_is_seen_and_can_be_given_back(shop: Shop) -> None:
    """Its lines until then; and what is given back with them is not missing afterwards."""
    rounds = settled(shop)
    number = shop.start(0)
    shop.act(number, 1)
    shop.end(number, "ABORTED")
    rounds.round()
    rounds.round()
    assert seen(rounds) == {"reservations": 2}
    shop.undo(number, 1)
    for _ in range(3):
        rounds.round()
        assert seen(rounds) == {}


def test_stock_that_is_off_by_a_piece_is_seen_while_sagas_run(shop: Shop) -> None:
    """Exactly, whatever runs: stock and reservations are of one instant."""
    shop.some(20)
    rounds = settled(shop)
    chance = random.Random(3)
    shop.between = lambda _: live(shop, chance)
    shop.spoil("inventory", "UPDATE stock SET available = available - 1 WHERE sku = 'xyz789'")
    rounds.round()
    assert seen(rounds) == {}
    for _ in range(5):
        rounds.round()
        assert seen(rounds) == {"stock": 1}
    assert [(t.book, t.amount, t.sku) for t in rounds.balance.news()] == [("stock", 1, "xyz789")]
    shop.spoil("inventory", "UPDATE stock SET available = available + 1 WHERE sku = 'xyz789'")
    rounds.round()
    assert seen(rounds) == {}
    assert [(t.book, t.mended) for t in rounds.balance.news()] == [("stock", True)]


def test_a_row_above_every_number_is_nobodys(shop: Shop) -> None:
    rounds = settled(shop)
    sql = "INSERT INTO shipment (number, step, address) VALUES (?, 3, 'x')"
    shop.spoil("shipping", sql, number_of(FAR, 1))
    rounds.round()
    rounds.round()
    assert seen(rounds) == {"strays": 1}
    shop.spoil("shipping", "DELETE FROM shipment WHERE number = ?", number_of(FAR, 1))
    rounds.round()
    assert seen(rounds) == {}


def test_what_a_lost_journal_had_caused_is_nobodys(shop: Shop) -> None:
    """After `--accept-data-loss` numbers go on 2^20 above; what stands in between has no saga."""
    shop.some(10)
    lost = number_of(shop.highest[0] + 1, 0)
    shop.act(lost, 1)
    shop.act(lost, 2)
    stuck = shop.start(0)
    shop.highest[0] += 1 << 20
    lost = stuck
    del shop.running[0][stuck]
    shop.some(10)
    running = shop.start(0)
    shop.act(running, 1)
    rounds = rounds_of(shop)
    with_open_numbers(rounds, AGED_ROUNDS + 5)
    assert seen(rounds) == {"strays": 3}
    assert {t.number for t in rounds.balance.news()} == {lost}
    assert shop.snapshots == set()
    shop.spoil("inventory", "UPDATE stock SET available = available + 1 WHERE sku = 'other'")
    for _ in range(3):
        rounds.round()
    assert seen(rounds) == {"strays": 3, "stock": 1}


def test_a_saga_that_runs_for_long_is_no_stray(shop: Shop) -> None:
    """A stuck one may stand for days; its rows are its own, and its stock is held."""
    stuck = shop.start(0)
    shop.act(stuck, 1)
    shop.act(stuck, 2)
    shop.some(20)
    rounds = settled(shop)
    for _ in range(3 * AGED_ROUNDS):
        shop.some(2)
        rounds.round()
    assert seen(rounds) == {}
    shop.undo(stuck, 2)
    shop.undo(stuck, 1)
    shop.end(stuck, "ABORTED")
    for _ in range(3 * AGED_ROUNDS):
        rounds.round()
    assert rounds.balance.suspects == {}
    assert seen(rounds) == {}


# -- what a round costs, and what it survives -------------------------------------------------


def test_a_round_costs_what_ended_since_the_last_one(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a slice of history that does not grow with it: millions of sagas have ended."""
    monkeypatch.setattr(rooms, "LOOK_SAGAS", 5)

    def cost(history: int) -> int:
        shop.some(history)
        rounds = rounds_of(shop)
        while not rounds.read_through:
            rounds.round()
        rounds.round()
        shop.some(10)
        shop.rows_read = 0
        rounds.round()
        return shop.rows_read

    few = cost(100)
    assert few < 10 * 4 + SHARDS * 5 * 4 + 60
    assert cost(400) <= few + 20


def test_what_cannot_be_read_is_asked_again_and_nothing_is_called_wrong(shop: Shop) -> None:
    """A worker that is killed takes a round with it, and no more."""
    shop.some(20)
    rounds = settled(shop)
    numbers = shop.some(10)
    refunded(shop, numbers[0])
    for service in ("shipping", "inventory", "payment"):
        shop.down = {service}
        with pytest.raises(NotTaken):
            rounds.round()
        assert seen(rounds) == {}
    shop.down = set()
    rounds.round()
    rounds.round()
    assert seen(rounds) == {"payments": 200}


def test_a_suspect_that_cannot_be_read_stays_one(shop: Shop) -> None:
    numbers = shop.some(20)
    rounds = settled(shop)
    refunded(shop, numbers[0])
    rounds.round()
    rounds.round()
    shop.down = {"shipping"}
    for _ in range(3):
        with pytest.raises(NotTaken):
            rounds.round()
        assert seen(rounds) == {"payments": 200}


def test_sagas_past_retention_are_judged_by_what_is_left(shop: Shop) -> None:
    """Their rows stay: whole, or undone. A saga that is forgotten later changes nothing."""
    numbers = shop.some(20)
    shop.forgotten = [4, 10]
    rounds = settled(shop)
    assert seen(rounds) == {}
    shop.forgotten = [10, 10]
    shop.some(4)
    rounds.round()
    rounds.round()
    assert seen(rounds) == {}
    assert shard_of(numbers[0]) == 0
    cancelled(shop, numbers[0])
    for _ in range(4):
        rounds.round()
    assert seen(rounds) == {"shipments": 1}
    assert rounds.read_through >= 3, "a suspect that is forgotten does not hold history up"


def test_a_journal_that_goes_back_begins_the_audit_anew(shop: Shop) -> None:
    """What was summed up of it is worth nothing; it must not be called an imbalance."""
    shop.some(10)
    rounds = settled(shop)
    shop.finished[1].pop()
    with pytest.raises(StartedOver):
        rounds.round()


def test_sagas_of_other_kinds_are_counted_in_the_stock_and_not_judged(shop: Shop) -> None:
    """What they should leave behind nobody here knows."""
    rounds = settled(shop)
    number = shop.start(0)
    shop.act(number, 1)
    shop.end(number, "COMPLETED", "another")
    for _ in range(3):
        rounds.round()
    assert rounds.balance.suspects == {}
    assert seen(rounds) == {}


def test_sagas_past_retention_are_not_judged_where_they_may_be_of_another_kind(shop: Shop) -> None:
    """Their cards are gone, which said so: each of them would be an alarm for ever."""
    numbers = []
    for _ in range(4):
        number = shop.start(0)
        shop.act(number, 1)
        shop.act(number, 2)
        shop.end(number, "COMPLETED", "reserve_and_charge")
        numbers.append(number)
    shop.some(4)
    rounds = rounds_of(shop, others=True)
    for _ in range(3):
        rounds.round()
    shop.forgotten = [4, 1]
    for _ in range(4):
        rounds.round()
    assert rounds.balance.suspects == {}
    refunded(shop, shop.whole(0))
    rounds.round()
    rounds.round()
    assert seen(rounds) == {"payments": 200}, "those that are kept are judged as before"


def test_a_saga_that_is_mended_before_its_page_comes_is_in_the_sums_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, its pieces would be missing in the stock, for as long as history takes to be read."""
    monkeypatch.setattr(rooms, "LOOK_SAGAS", 5)
    monkeypatch.setattr(rooms, "HISTORY_LOOKS_FIRST", 1)
    numbers = [shop.whole(0) for _ in range(40)]
    rounds = rounds_of(shop)
    refunded(shop, numbers[-1])  # suspected when history is read through
    while not rounds.read_through:
        rounds.round()
    assert numbers[-1] in rounds.balance.suspects
    rounds.round()
    shop.spoil("payment", "UPDATE payment SET refunded = 0 WHERE number = ?", numbers[-1])
    while rounds.read_through < 3:
        rounds.round()
        assert rounds.balance.goods == {}
    assert seen(rounds) == {}


class Failing:
    """A reader that cannot have the pieces of one shard's sagas."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.fails: int | None = None  # the shard

    def ask(self, shard: int, body: dict[str, Any], kind: type[T]) -> T:
        """Ask the shop."""
        if shard == self.fails and body.get("table") == "pieces":
            raise NotTaken("not now")
        return self.shop.ask(shard, body, kind)


def test_a_saga_that_is_mended_while_its_first_page_fails_is_in_the_sums_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page that brought it comes again, when the sums of before have been replaced."""
    monkeypatch.setattr(rooms, "LOOK_SAGAS", 5)
    for shard in (0, 0, 0, 0, 1):
        shop.whole(shard)
    reader = Failing(shop)
    rounds = Rounds(reader, range(SHARDS), others=False)
    rounds.round()
    for _ in range(11):
        shop.whole(0)
    rounds.round()
    rounds.round()  # the history of both has grown now
    while rounds._places[1].at < rounds._places[1].end:
        rounds.round()
    assert rounds._places[0].at < rounds._places[0].end
    refunded(shop, shop.whole(1))
    shop.whole(1)
    reader.fails = 1
    with pytest.raises(NotTaken):
        rounds.round()
    [number] = rounds.balance.suspects
    shop.spoil("payment", "UPDATE payment SET refunded = 0 WHERE number = ?", number)
    rounds.balance.again(number, Effects((2, 2, 0), (1, AMOUNT, 0), (1, 1, 0)))
    rounds.balance.take_mended(number, shop_pieces(shop, number))
    read = rounds.read_through
    while rounds.read_through == read:
        with pytest.raises(NotTaken):
            rounds.round()
    reader.fails = None
    for _ in range(3):
        rounds.round()
        assert rounds.balance.goods == {}


def shop_pieces(shop: Shop, number: int) -> dict[str, int]:
    """Give the pieces that a saga holds."""
    sql = "SELECT sku, sum(quantity) FROM reservation WHERE number = ? GROUP BY sku"
    return dict(shop.db("inventory").execute(sql, (number,)))


def test_many_strays_leave_room_for_sagas_and_for_the_stock(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large loss that was accepted: what it left must not hide what goes wrong afterwards."""
    monkeypatch.setattr(balance_room, "SUSPECTS_MAX", 3)
    for _ in range(8):
        lost = shop.start(0)
        shop.act(lost, 2)
        del shop.running[0][lost]
    shop.highest[0] += 1 << 20
    shop.some(10)
    rounds = rounds_of(shop)
    with_open_numbers(rounds, AGED_ROUNDS + 2)
    rounds.round()
    assert seen(rounds) == {"strays": 3}
    refunded(shop, shop.whole(1))
    shop.spoil("inventory", "UPDATE stock SET available = available - 1 WHERE sku = 'xyz789'")
    for _ in range(3):
        rounds.round()
    assert seen(rounds) == {"strays": 3, "payments": 200, "stock": 1}
    for number, suspect in rounds.balance.suspects.items():
        if suspect.ended.phase == "NOBODY":
            shop.spoil("payment", "DELETE FROM payment WHERE number = ?", number)
    for _ in range(5):
        rounds.round()
    assert seen(rounds) == {"strays": 3, "payments": 200, "stock": 1}, "the next of them"


def test_a_round_that_leaves_the_stock_out_is_no_whole_one(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a stock that nobody looks at would count as right."""
    shop.some(10)
    rounds = settled(shop)
    monkeypatch.setattr(rooms, "OPEN_COUNTS_MAX", 5)
    shop.spoil("inventory", "UPDATE stock SET available = available - 1 WHERE sku = 'xyz789'")
    for _ in range(3):
        with pytest.raises(NotTaken, match="the stock was not judged"):
            rounds.round()
    monkeypatch.undo()
    rounds.round()
    rounds.round()
    assert seen(rounds) == {"stock": 1}


@pytest.mark.parametrize("shards", [1, 2, 64, 1024])
def test_the_stock_can_be_judged_with_any_number_of_shards(shards: int) -> None:
    """So many may start in all of them, while it is read, that all can be asked for at once."""
    rounds = Rounds(EmptyReader(), range(shards), others=False)
    rounds.round()
    assert rounds.read_through == 1


class EmptyReader:
    """A cluster in which nothing has happened."""

    def ask(self, shard: int, body: dict[str, Any], kind: type[T]) -> T:
        """Give a page without rows."""
        page = {"highest": 0, "finished": 0, "rows": [], "next": None, "from": 0}
        return convert(page, kind)


def test_what_may_be_asked_at_once_is_bounded(shop: Shop) -> None:
    """A page is read by the worker that serves customers: nobody has it look at a whole table."""
    ask = {"book": "payment", "table": "sagas", "after": 0, "limit": 10}
    for within in ([(0, 0, 1 << 21)], [(0, 0, 1 << 51)], [(1024, 0, 1)], [(-2, 0, 1)]):
        with pytest.raises(Malformed):
            shop.ask(0, {**ask, "within": within}, rooms.OfSagas)
    with pytest.raises(Malformed):
        shop.ask(0, {**ask, "table": "payments", "within": []}, rooms.OfSagas)
