"""Forgotten at a service: what lists name is refused for good, everything else is as it was."""

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagacity import wire
from sagacity.errors import Malformed
from sagacity.executor import make_tables, open_file
from sagacity.forgotten import ROWS_MAX
from sagacity.ids import SHARDS_MAX, number_of
from sagacity.messages import ChargePayment, RefundPayment
from sagacity.ranges import Range, ranges_of
from services.payment import service as payment
from tests.unit.faulty_disk import faulty_database
from tests.unit.service_world import (
    CLUSTER_ID,
    World,
    a_list,
    put_command,
    take_command,
    toy,
    world_of,
)


@pytest.fixture
def world() -> Iterator[World]:
    with world_of(toy) as made:
        yield made


def remembered(world: World) -> list[int]:
    """Give the counts that have barrier rows, of whatever shard."""
    return [row[0] for row in world.rows("SELECT DISTINCT key >> 15 FROM barrier ORDER BY key")]


def forgotten(world: World) -> list[tuple[int, int, int]]:
    return world.rows("SELECT shard, low, high FROM forgotten")


# -- refused for good -----------------------------------------------------------------------------


def test_a_late_command_of_a_forgotten_saga_is_refused_and_writes_nothing(world: World) -> None:
    """B4 after retention: nobody knows any more what it did, so it must not do it again."""
    world.each(put_command(1), take_command(1), put_command(2), put_command(3))
    world.forget((1, 2))
    before = world.rows("SELECT * FROM put"), world.rows("SELECT * FROM barrier")
    late = [put_command(1), take_command(1), take_command(2), put_command(2, attempt=9)]
    assert world.outcomes(*late) == ["refused_forgotten"] * 4
    assert world.each(*late) == ["refused_forgotten"] * 4
    assert (world.rows("SELECT * FROM put"), world.rows("SELECT * FROM barrier")) == before
    assert remembered(world) == [3]
    assert world.executor.repeated == 0


def test_a_saga_that_never_came_here_is_refused_too_when_it_is_forgotten(world: World) -> None:
    """Its command was lost, its compensation too; a command that turns up now is a stray."""
    world.forget((1, 5))
    assert world.outcomes(put_command(4), put_command(6)) == ["refused_forgotten", "ok"]


def test_the_rows_of_the_business_stay(world: World) -> None:
    """The books are told from them for ever."""
    world.send(put_command(1), put_command(2))
    world.forget((1, 2))
    assert world.rows("SELECT count(*) FROM put") == [(2,)]


def test_the_fence_stands_before_what_is_forgotten(world: World) -> None:
    """An old owner learns nothing but that it is old."""
    world.each(put_command(1, epoch=3))
    world.forget((1, 1))
    assert world.outcomes(put_command(1, epoch=2)) == ["refused_fenced"]


def test_a_batch_that_is_rolled_back_keeps_what_was_forgotten(world: World) -> None:
    """Memory and database agree after every rollback."""
    world.send(put_command(1))
    world.forget((1, 1))
    assert world.outcomes(put_command(2, how="raise"), put_command(1)) == [
        "failed",
        "refused_forgotten",
    ]


# -- never by age ---------------------------------------------------------------------------------


def test_nothing_is_forgotten_that_no_list_names(world: World) -> None:
    """By age, or below what is forgotten: a saga that is stuck has an old number."""
    world.send(*[put_command(count) for count in range(1, 10)])
    world.forget((1, 3), (5, 8))
    assert remembered(world) == [4, 9]
    assert world.outcomes(put_command(4)) == ["ok"]
    assert world.executor.repeated == 1


def test_a_refund_that_is_mended_after_all_others_are_forgotten_still_refunds() -> None:
    """B19: eight days late. It is final only then, so no list has named it."""
    with world_of(payment) as world:
        for count in (1, 2, 3):
            world.ask(count, 2, ChargePayment(f"checkout{count}", 2, "u42", 500))
        world.forget((1, 1), (3, 900))
        refunds = [
            wire.OUTCOMES[world.ask(count, 2, RefundPayment(f"checkout{count}", 2, True)).outcome]
            for count in (1, 2, 3)
        ]
        assert refunds == ["refused_forgotten", "ok", "refused_forgotten"]
        assert world.rows("SELECT refunded FROM payment ORDER BY id") == [(0,), (500,), (0,)]
        # The shard names it when it is aborted and past retention.
        world.forget((2, 2))
        assert forgotten(world) == [(0, 1, 900)]


def test_the_rows_of_other_shards_stand_between_and_stay(world: World) -> None:
    """Their sagas have the same counts; the rows are neighbours."""
    shards = (0, 1, SHARDS_MAX - 1)
    every = [put_command(count, shard=shard) for count in range(1, 6) for shard in shards]
    world.send(*every)
    world.forget((2, 4), shard=1)
    outcomes = dict(zip([each.number for each in every], world.outcomes(*every), strict=True))
    gone = {number_of(count, 1) for count in (2, 3, 4)}
    assert {number for number, said in outcomes.items() if said == "refused_forgotten"} == gone
    assert {said for number, said in outcomes.items() if number not in gone} == {"ok"}
    assert world.executor.repeated == len(every) - len(gone)


# -- lists come in any order, and again -----------------------------------------------------------


@pytest.mark.parametrize("order", list(permutations([(1, 4), (5, 7), (8, 8), (9, 20)])))
def test_lists_in_any_order_are_one_range_in_the_end(world: World, order: list[Range]) -> None:
    """What is kept stays small: a row for all that lies side by side."""
    for each in order:
        world.forget(each)
    assert forgotten(world) == [(0, 1, 20)]


def test_a_list_that_comes_again_changes_nothing(world: World) -> None:
    """Its answer was lost. Whole or in part, it is known."""
    world.send(*[put_command(count) for count in range(1, 10)])
    for ranges in ([(2, 3), (6, 7)], [(2, 3), (6, 7)], [(2, 2)], [(1, 7)]):
        world.forget(*ranges)
    assert forgotten(world) == [(0, 1, 7)]
    assert remembered(world) == [8, 9]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("list"), st.integers(0, 2), st.sets(st.integers(1, 30), max_size=9)),
            st.tuples(st.just("put"), st.integers(0, 2), st.sets(st.integers(1, 30), max_size=4)),
            st.tuples(st.just("open"), st.just(0), st.just(set())),
        ),
        max_size=30,
    )
)
@settings(deadline=None, max_examples=60)
def test_exactly_what_lists_named_is_refused(told: list[tuple[str, int, set[int]]]) -> None:
    """Against a naive twin: a set of numbers, of three shards, with restarts between."""
    named: set[int] = set()
    done: set[int] = set()
    with world_of(toy) as first:
        world = first
        for what, shard, counts in told:
            if what == "open":
                world = World(toy, connection=world.connection)
            elif what == "list":
                world.forget(*ranges_of(counts), shard=shard)
                named |= {number_of(count, shard) for count in counts}
            else:
                commands = [put_command(count, shard=shard) for count in sorted(counts)]
                expected = ["refused_forgotten" if c.number in named else "ok" for c in commands]
                assert world.outcomes(*commands) == expected
                done |= {each.number for each in commands} - named
        kept = {row[0] >> 5 for row in world.rows("SELECT key FROM barrier")}
        assert kept == done - named
        for shard in range(3):
            counts = {number >> 10 for number in named if number % 1024 == shard}
            rows = [row[1:] for row in forgotten(world) if row[0] == shard]
            assert rows == ranges_of(counts)


@pytest.mark.parametrize(
    "asked",
    [
        a_list((1, 1), epoch=1),
        a_list((3, 2), epoch=2),
        a_list((1, 2), (3, 4), epoch=2),
        a_list((0, 2), epoch=2),
        a_list((1, 101), epoch=2, given=100),
        a_list((1, 1), epoch=2, given=2**60),
        a_list((1, 1), epoch=2, shard=SHARDS_MAX, given=0),
        a_list((1, 1), epoch=2, shard=-1),
    ],
    ids="fenced backwards touching zero not-given no-such-number no-such-shard negative".split(),  # noqa: SIM905 - a list of words
)
def test_a_list_that_no_healthy_shard_sends_is_put_aside(world: World, asked: wire.Forget) -> None:
    """Of an owner that was taken over, of numbers that were never given: nothing is deleted."""
    world.send(put_command(1), put_command(2))
    world.forget((2, 2), epoch=2)  # epoch 2 has been seen
    assert world.executor.forget(asked) is None
    assert remembered(world) == [1]
    assert forgotten(world) == [(0, 2, 2)]
    assert {"list_fenced", "list_faulty"} & set(world.log.told)


def test_the_epoch_of_a_list_fences_the_next_one(world: World) -> None:
    """It brings its shard's witness, as commands do."""
    world.forget((1, 1), epoch=4)
    assert world.executor.witnesses()[0].epoch == 4
    assert world.executor.forget(a_list((2, 2), epoch=3)) is None


# -- in turns -------------------------------------------------------------------------------------


def test_a_long_list_is_forgotten_in_turns_and_commands_pass_between(world: World) -> None:
    """Its worker must not stand still: some thousand rows a transaction, whosever they are."""
    last = 2 * ROWS_MAX
    world.send(*[put_command(count) for count in range(1, last + 1)])
    asked = a_list((1, last))
    left = world.executor.forget(asked)
    assert left is not None
    [(low, high)] = left
    assert high == last
    assert 0 < low - 1 <= ROWS_MAX
    # What is gone is refused, what is left still has its answer.
    assert forgotten(world) == [(0, 1, low - 1)]
    assert remembered(world)[0] == low
    assert world.outcomes(put_command(low - 1), put_command(low), put_command(last + 1)) == [
        "refused_forgotten",
        "ok",
        "ok",
    ]
    assert world.forget((1, last)) == 2
    assert remembered(world) == [last + 1]


def test_many_short_ranges_are_forgotten_in_turns(world: World) -> None:
    """A range takes time too, however few rows it has."""
    assert world.forget(*[(2 * count, 2 * count) for count in range(1, 2_000)]) > 1
    assert len(forgotten(world)) == 1_999
    world.forget((1, 5_000))
    assert forgotten(world) == [(0, 1, 5_000)]


def test_many_rows_of_one_count_are_passed_over(world: World) -> None:
    """With many shards a count alone has more rows than a turn looks at: it ends all the same."""
    with world.connection:
        world.connection.executemany(
            "INSERT INTO barrier VALUES (?, 's', 0, x'')",
            (
                (number_of(count, shard) << 5 | step << 1,)
                for count in (1, 2, 3)
                for shard in range(SHARDS_MAX)
                for step in (1, 2, 3)
            ),
        )
    assert world.forget((1, 3), shard=5) == 3
    rows = world.rows("SELECT count(*), sum((key >> 5) & 1023 = 5) FROM barrier")
    assert rows == [(9 * (SHARDS_MAX - 1), 0)]


# -- crashes and disks ----------------------------------------------------------------------------


def test_a_crash_before_the_answer_leaves_a_list_that_is_known(tmp_path: Path) -> None:
    """The transaction was durable; the list comes again, and is answered."""
    world = World(toy, connection=open_file(tmp_path / "toy.db"))
    world.send(*[put_command(count) for count in range(1, 5)])
    world.forget((1, 3))
    again = World(toy, connection=open_file(tmp_path / "toy.db"))  # the first never closed
    assert again.outcomes(put_command(2)) == ["refused_forgotten"]
    assert again.forget((1, 3)) == 1
    assert remembered(again) == [4]
    for each in (world, again):
        each.executor.close()


def test_a_crash_in_the_middle_of_a_list_leaves_it_half_done_and_true(tmp_path: Path) -> None:
    """What is deleted is refused, what is not is remembered; the whole list ends the rest."""
    last = 2 * ROWS_MAX
    world = World(toy, connection=open_file(tmp_path / "toy.db"))
    world.send(*[put_command(count) for count in range(1, last + 1)])
    world.executor.forget(a_list((1, last)))
    again = World(toy, connection=open_file(tmp_path / "toy.db"))
    kept = remembered(again)
    assert forgotten(again) == [(0, 1, kept[0] - 1)]
    assert kept == list(range(kept[0], last + 1))
    again.forget((1, last))
    assert remembered(again) == []
    for each in (world, again):
        each.executor.close()


def test_a_full_disk_forgets_nothing_and_later_all(tmp_path: Path) -> None:
    """D7: no half list, in memory or on disk; the list waits until there is room."""
    with faulty_database(tmp_path / "toy.db") as (disk, connection):
        world = World(toy, connection=connection)
        world.send(put_command(1), put_command(2))
        disk.writes = apsw.FullError
        asked = a_list((1, 2))
        assert world.executor.forget(asked) == asked.ranges
        assert not world.executor.available
        assert world.executor.forget(asked) == asked.ranges
        disk.writes = None
        assert world.executor.try_write()
        assert world.outcomes(put_command(1)) == ["ok"]  # it is not forgotten
        assert world.forget((1, 2)) == 1
        assert remembered(world) == []


def test_a_sync_that_fails_while_forgetting_ends_the_process(tmp_path: Path) -> None:
    """D6: nobody knows what the file holds."""
    with faulty_database(tmp_path / "toy.db") as (disk, connection):
        world = World(toy, connection=connection)
        world.send(put_command(1))
        disk.syncs = apsw.IOError
        with pytest.raises(apsw.IOError):
            world.executor.forget(a_list((1, 1)))


def test_a_list_costs_one_sync_a_turn_and_none_when_it_is_known(tmp_path: Path) -> None:
    """Rows and what is remembered of them are one transaction."""
    with faulty_database(tmp_path / "toy.db") as (disk, connection):
        world = World(toy, connection=connection)
        world.send(put_command(1), put_command(5))
        before = disk.synced
        world.forget((1, 2), (5, 5))
        assert disk.synced == before + 1
        world.forget((1, 2), (5, 5))
        assert disk.synced == before + 1


def test_another_connection_that_forgot_is_obeyed(tmp_path: Path) -> None:
    """Two workers of a user may share a file; what one forgot the other must not do again."""
    first, second = (World(toy, connection=open_file(tmp_path / "toy.db")) for _ in range(2))
    first.send(put_command(1))
    second.forget((1, 1))
    assert first.outcomes(put_command(1)) == ["refused_forgotten"]
    for each in (first, second):
        each.executor.close()


def test_a_database_of_an_older_format_is_refused(tmp_path: Path) -> None:
    """It remembers nothing of lists; what it was given is not guessed at."""
    connection = open_file(tmp_path / "toy.db")
    make_tables(connection, toy, CLUSTER_ID)
    connection.execute("DROP TABLE forgotten; UPDATE origin SET format = 1")
    with pytest.raises(Malformed, match=r"format.* \(1, "):
        make_tables(connection, toy, CLUSTER_ID)
    connection.close()
