"""Pools: credit, queues, and what a worker that goes leaves behind."""

from sagacity.ids import ACTION, COMPENSATION, barrier_key
from sagacity.saga import Retry
from services.checkout import checkout
from shard.pools import WINDOW_COMMANDS, WINDOW_NS, Pool, Worker, sent
from shard.sagas import OUT, QUEUED, Definition, Live, settle

DEFINITION = Definition(checkout, Retry())


def saga(number: int) -> Live:
    return Live(DEFINITION, number, f"s{number}", b"", b"", 0, 1, 0, 0, {})


def worker(pool: Pool, name: bytes, capacity: int) -> Worker:
    made = Worker(name, pool, 1, capacity, 0)
    pool.workers[name] = made
    return made


def test_commands_come_out_in_the_order_in_which_they_went_in() -> None:
    """First come, first served."""
    pool = Pool("inventory")
    sagas = [saga(number) for number in range(3)]
    for each in sagas:
        pool.offer(each, 0)
    assert [pool.take(), pool.take(), pool.take(), pool.take()] == [*sagas, None]


def at(number: int, step: int, direction: int = ACTION) -> Live:
    """Make a saga whose current command is another than its first."""
    made = saga(number)
    made.step, made.direction = step, direction
    return made


def test_what_is_half_done_goes_before_what_begins() -> None:
    """Overload must not keep stock and money in sagas that turn back, or are nearly over."""
    pool = Pool("inventory")
    first, second = saga(1), saga(2)
    later, undone, undone_too = at(3, 2), at(4, 1, COMPENSATION), at(5, 2, COMPENSATION)
    for each in (first, second, later, undone, undone_too):
        pool.offer(each, 0)
    assert [pool.take() for _ in range(6)] == [undone, undone_too, later, first, second, None]


def test_a_lost_command_goes_before_its_like_alone() -> None:
    """A worker that died must not push what begins before compensations."""
    pool = Pool("inventory")
    waiting, undone = saga(1), at(2, 1, COMPENSATION)
    pool.offer(waiting, 10)
    pool.offer(undone, 20)
    lost = [saga(3), at(4, 1, COMPENSATION), saga(5)]
    pool.offer_again(lost, 30)
    assert [each.queued_at for each in lost] == [10, 20, 10]
    assert [pool.take() for _ in range(5)] == [lost[1], undone, lost[0], lost[2], waiting]


def test_who_turns_back_while_it_waits_takes_its_place_among_those_who_do() -> None:
    """Its place among those that begin is given up."""
    pool = Pool("inventory")
    others = [saga(1), saga(3)]
    turning = saga(2)
    for each in (others[0], turning, others[1]):
        pool.offer(each, 0)
    settle(turning)
    turning.direction = COMPENSATION
    pool.offer(turning, 500)
    assert (pool.measure(700), pool.queued) == (700, 4)
    assert [pool.take() for _ in range(4)] == [turning, *others, None]


def test_a_command_that_is_no_longer_wanted_is_passed_over() -> None:
    """A cancel settles its saga; the queue is not searched for it."""
    pool = Pool("inventory")
    first, second = saga(1), saga(2)
    pool.offer(first, 0)
    pool.offer(second, 0)
    settle(first)
    assert pool.take() is second


def test_a_saga_that_moved_on_waits_in_one_pool_only() -> None:
    """A late success moves a saga while its retry waits in the old pool."""
    before, after = Pool("inventory"), Pool("payment")
    moving = saga(1)
    before.offer(moving, 0)
    after.offer(moving, 0)
    assert before.take() is None
    assert after.take() is moving
    assert after.take() is None


def test_offered_twice_it_is_given_out_once() -> None:
    """Two commands of one saga would be two attempts."""
    pool = Pool("inventory")
    each = saga(1)
    pool.offer(each, 0)
    pool.offer(each, 0)
    assert pool.take() is each
    assert pool.take() is None


def test_what_a_lost_worker_had_goes_first() -> None:
    """It has waited longest."""
    pool = Pool("inventory")
    waiting, lost, lost_too = saga(1), saga(2), saga(3)
    pool.offer(waiting, 0)
    pool.offer_again([lost, lost_too], 0)
    assert lost.where == QUEUED
    assert [pool.take(), pool.take(), pool.take()] == [lost, lost_too, waiting]


def test_the_worker_with_most_credit_is_the_freest() -> None:
    """None has any: the command waits."""
    pool = Pool("inventory")
    assert pool.freest() is None
    small, big = worker(pool, b"small", 1), worker(pool, b"big", 2)
    assert pool.freest() is big
    sent(big, saga(1), 0, 10)
    assert pool.freest() is small  # equal: the one that came first
    sent(small, saga(2), 0, 10)
    assert pool.freest() is big
    sent(big, saga(3), 0, 10)
    assert pool.freest() is None


def test_a_worker_without_capacity_gets_nothing() -> None:
    """Its database is full, busy or fails."""
    pool = Pool("inventory")
    worker(pool, b"sick", 0)
    assert pool.freest() is None


def test_a_delivery_starts_the_attempts_clock() -> None:
    """Waiting in the shard counts against the saga's deadline alone."""
    pool = Pool("inventory")
    serving, each = worker(pool, b"w", 1), saga(1)
    sent(serving, each, 100, 30)
    assert (each.where, each.worker, each.sent_at, each.due) == (OUT, b"w", 100, 130)
    assert serving.out == {barrier_key(1, 1, 0): 100}


def test_credit_of_what_nobody_waits_for_comes_back() -> None:
    """Only of what is old enough; the young may still be answered."""
    pool = Pool("inventory")
    serving = worker(pool, b"w", 3)
    for number, at in ((1, 10), (2, 20), (3, 30)):
        sent(serving, saga(number), at, 5)
    kept = barrier_key(2, 1, 0)
    pool.forget_before(20, lambda key, _: key == kept)
    assert list(serving.out) == [kept, barrier_key(3, 1, 0)]


def test_sent_again_it_counts_as_young() -> None:
    """`forget_before` stops at the first that is young enough: order is by time."""
    pool = Pool("inventory")
    serving = worker(pool, b"w", 3)
    first, second = saga(1), saga(2)
    sent(serving, first, 10, 5)
    sent(serving, second, 20, 5)
    sent(serving, first, 30, 5)
    pool.forget_before(25, lambda *_: False)
    assert serving.out == {barrier_key(1, 1, 0): 30}


def test_a_queue_is_as_old_as_its_oldest_place() -> None:
    """Admission asks it: what is no longer wanted, or has moved on, makes no queue old."""
    pool, other = Pool("inventory"), Pool("payment")
    ended, moved, waits = saga(1), saga(2), saga(3)
    assert pool.measure(50) == 0
    for at, each in enumerate((ended, moved, waits)):
        pool.offer(each, 10 * at)
    assert pool.measure(50) == 50
    settle(ended)
    other.offer(moved, 40)
    assert (pool.measure(50), other.measure(50)) == (30, 10)
    assert pool.take() is waits
    assert pool.measure(60) == 0


def test_a_saga_that_turns_back_keeps_its_place() -> None:
    """Else a queue in which everything turns back at its deadline would look like a new one."""
    pool = Pool("inventory")
    first, second = saga(1), saga(2)
    pool.offer(first, 0)
    pool.offer(second, 10)
    settle(first)
    pool.offer(first, 90)  # its compensation
    assert pool.measure(100) == 100
    assert [pool.take(), pool.take(), pool.take()] == [first, second, None]


def test_what_a_lost_worker_had_is_as_old_as_what_it_passes() -> None:
    """It hides no age behind it, and brings none of its own: it had been with a worker."""
    pool = Pool("inventory")
    lost, waiting, lost_later = saga(1), saga(2), saga(3)
    pool.offer_again([lost], 100)
    assert pool.measure(130) == 30
    pool.take()
    pool.offer(waiting, 200)
    pool.offer_again([lost_later], 300)
    assert pool.measure(330) == 130


def taken(pool: Pool, count: int, now: int) -> None:
    """Have so many commands queued and given out."""
    for number in range(count):
        pool.offer(saga(1_000 + number), now)
        assert pool.take() is not None


def test_a_queue_that_moves_has_a_pace_and_one_that_stands_has_an_age() -> None:
    """A burst makes a long and young queue: only the pace tells at once how long it will take."""
    pool = Pool("inventory")
    pool.offer(saga(1), 0)
    assert (pool.measure(0), pool.pace_ns) == (0, 0)
    waiting = pool.beginning[0]
    for at in (WINDOW_NS // 2, WINDOW_NS):
        taken(pool, 5, at)
        pool.beginning.clear()
        pool.beginning.append(waiting)
        waiting.queued_in = pool.beginning
        pool.measure(at)
    assert pool.pace_ns == WINDOW_NS // 10
    assert pool.measure(WINDOW_NS * 3 // 2) == 0
    assert pool.measure(WINDOW_NS * 3) == WINDOW_NS * 3


def test_a_pool_that_moves_in_lumps_moves_between_them() -> None:
    """Else its queue would have an age before each lump, and starts be refused by turns."""
    pool = Pool("inventory")
    lump = 2 * WINDOW_NS
    for now in (0, lump, 2 * lump):
        pool.take()
        taken(pool, 9, now)
        pool.offer(saga(1), now)
        pool.measure(now)
    assert pool.measure(4 * lump) == 0
    assert pool.measure(4 * lump + 1) == 2 * lump + 1


def test_a_hiccup_is_no_pace_and_two_are() -> None:
    """One slow sync of a disk would refuse starts; a pool that stays slow must be believed."""
    pool = Pool("inventory")
    paces = []
    now = 0
    for windows in (0, 1, 1, 2, 2):
        now += windows * WINDOW_NS
        taken(pool, 9, now)
        pool.offer(saga(1), now)
        pool.measure(now)
        paces.append(pool.pace_ns * 20 // WINDOW_NS)
        pool.take()
    assert paces == [0, 2, 2, 2, 3]  # over two windows each: 2, 2, 3, 4


def test_few_commands_tell_no_pace() -> None:
    """Else one that happens to come late would refuse starts; the age of the queue says enough."""
    pool = Pool("inventory")
    pool.offer(saga(1), 0)
    pool.measure(0)
    [waiting] = pool.beginning
    for at in range(1, WINDOW_COMMANDS + 1):
        assert pool.pace_ns == 0
        taken(pool, 1, at * WINDOW_NS)
        pool.beginning.clear()
        pool.beginning.append(waiting)
        waiting.queued_in = pool.beginning
        pool.measure(at * WINDOW_NS)
    assert pool.pace_ns == WINDOW_NS


def test_a_guessed_pace_ends_with_what_waits() -> None:
    """It is for the moments after a recovery; else a queue without load would be judged by it."""
    pool = Pool("inventory")
    pool.offer(saga(1), 0)
    pool.guess_pace(7, 100)
    pool.measure(100)
    assert pool.pace_ns == 7
    pool.measure(101)
    assert pool.pace_ns == 0
    pool.guess_pace(7, 1_000)
    pool.take()
    pool.measure(200)
    assert pool.pace_ns == 0


def test_a_pace_is_believed_less_and_less_while_nothing_waits() -> None:
    """Nothing measures it then; what is out at workers that are busy may be a queue as well."""
    pool = Pool("inventory")
    serving = worker(pool, b"w", 2)
    pool.pace_ns = 8
    pool.measure(0)
    pool.measure(WINDOW_NS - 1)
    assert pool.pace_ns == 8
    pool.measure(WINDOW_NS)
    assert pool.pace_ns == 4
    sent(serving, saga(1), WINDOW_NS, 10)
    sent(serving, saga(2), WINDOW_NS, 10)
    pool.measure(3 * WINDOW_NS)
    pool.measure(9 * WINDOW_NS)
    assert pool.pace_ns == 4
    serving.out.clear()
    pool.measure(10 * WINDOW_NS)
    pool.measure(20 * WINDOW_NS)
    assert pool.pace_ns == 0
