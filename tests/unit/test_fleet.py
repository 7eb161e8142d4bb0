"""The fleet's decisions: when to start what, what counts as serving, when to give up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import ManualClock
from cluster.fleet import Fleet, Member, Patience
from sagacity.wire import Report

PLACES = [("router", 0), ("shard", 0), ("shard", 1), ("payment", 0), ("payment", 1)]
MS = 1_000_000


class World:
    """A fleet, its clock, and process ids that are given out in order."""

    def __init__(
        self, places: list[tuple[str, int]] | None = None, *, router_last: bool = False
    ) -> None:
        self.clock = ManualClock(5_000_000_000)
        now = self.clock.monotonic_ns()
        self.fleet = Fleet(places or PLACES, Patience(), now, router_last=router_last)
        self.pids = 100

    def start_due(self) -> list[str]:
        now = self.clock.monotonic_ns()
        due = self.fleet.due(now)
        for member in due:
            self.pids += 1
            member.started(self.pids, now)
        return [f"{member.role}-{member.index}" for member in due]

    def member(self, role: str, index: int) -> Member:
        return self.fleet.members[role, index]

    def report(self, role: str, index: int, state: str, pid: int | None = None) -> Member | None:
        pid = pid if pid is not None else self.member(role, index).pid or 0
        report = Report(role, index, pid, state, 9_000 + pid, {"sagas": 3})
        return self.fleet.reported(report, self.clock.monotonic_ns())

    def end(self, role: str, index: int) -> None:
        self.fleet.ended(self.member(role, index), self.clock.monotonic_ns())


@pytest.fixture
def world() -> World:
    return World()


def test_all_are_started_at_once(world: World) -> None:
    """Start-up time counts, and nobody needs another to begin."""
    assert world.start_due() == ["router-0", "shard-0", "shard-1", "payment-0", "payment-1"]
    assert world.start_due() == []
    assert world.fleet.next_due_ns() is None


def test_a_router_that_comes_last_is_started_when_it_is_released() -> None:
    """While a shard may yet refuse a new version of a saga, no other one may take such a saga."""
    world = World(router_last=True)
    assert world.start_due() == ["shard-0", "shard-1", "payment-0", "payment-1"]
    world.report("shard", 0, "up")
    world.report("payment", 0, "up")
    assert not world.fleet.shards_up()
    world.report("shard", 1, "up")
    assert world.fleet.shards_up()
    assert world.start_due() == []
    world.fleet.release_router(world.clock.monotonic_ns())
    assert world.start_due() == ["router-0"]


def test_an_auditor_starts_when_the_cluster_serves_and_nobody_waits_for_it() -> None:
    """It looks on: without it everything goes on, and a start is not a moment slower."""
    world = World([("router", 0), ("shard", 0), ("payment", 0), ("auditor", 0)])
    assert world.start_due() == ["router-0", "shard-0", "payment-0"]
    for role in ("router", "shard", "payment"):
        world.report(role, 0, "up")
    assert world.fleet.ready()
    assert world.start_due() == []
    world.fleet.release_auditor(world.clock.monotonic_ns())
    assert world.start_due() == ["auditor-0"]
    assert world.fleet.ready()
    world.fleet.ended(world.member("auditor", 0), world.clock.monotonic_ns())
    assert world.fleet.ready()
    assert world.start_due() == ["auditor-0"], "it is started again like any other"


def test_the_cluster_is_ready_with_router_shards_and_one_worker_a_service(world: World) -> None:
    """SPEC 6: the line that says ready is printed when it serves."""
    world.start_due()
    for role, index in (("router", 0), ("shard", 0), ("payment", 1)):
        assert world.report(role, index, "up") is not None
        assert not world.fleet.ready()
    world.report("payment", 0, "standby")
    assert world.report("shard", 1, "starting") is None
    assert not world.fleet.ready()
    world.report("shard", 1, "up")
    assert world.fleet.ready()
    world.end("payment", 1)
    assert not world.fleet.ready()
    world.report("payment", 0, "up")
    assert world.fleet.ready()


def test_a_restart_comes_at_once_then_after_a_wait_that_doubles_to_five_seconds(
    world: World,
) -> None:
    """SPEC 6, for exits too late to be quick: this one is never quarantined."""
    world.start_due()
    waits = []
    for _ in range(10):
        world.clock.advance(5_001)
        world.end("router", 0)
        due_ns = world.fleet.next_due_ns()
        assert due_ns is not None
        waits.append((due_ns - world.clock.monotonic_ns()) // MS)
        if waits[-1]:
            world.clock.advance(waits[-1] - 1)
            assert world.start_due() == []
            world.clock.advance(1)
        assert world.start_due() == ["router-0"]
    assert waits == [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]
    assert world.member("router", 0).restarts == 10


@pytest.mark.parametrize("state", ["up", "standby"])
def test_who_has_served_starts_again_at_once(world: World, state: str) -> None:
    """A worker killed by a poison command each time must not keep its pool waiting."""
    for _ in range(20):
        world.start_due()
        world.report("payment", 0, state)
        world.end("payment", 0)
        assert world.fleet.next_due_ns() == world.clock.monotonic_ns()
        assert world.member("payment", 0).state == "starting"


def test_who_is_not_welcome_waits_and_is_quarantined_although_it_was_up(world: World) -> None:
    """E5: a worker says that it is up before a shard has looked at its database, and rejects it."""
    waits = []
    for _ in range(8):
        world.start_due()
        world.report("payment", 0, "up")
        now = world.clock.monotonic_ns()
        world.fleet.ended(world.member("payment", 0), now, refused=True)
        waits.append(((world.member("payment", 0).start_at_ns or now) - now) // MS)
        world.clock.advance(5_000)
    assert waits == [0, 100, 200, 400, 800, 1600, 3200, 0]
    assert world.member("payment", 0).state == "quarantined"


def test_eight_quick_exits_in_a_row_end_in_quarantine_and_the_rest_runs(world: World) -> None:
    """E5: a crash loop must not burn the machine of those that work."""
    world.start_due()
    for exits in range(1, 9):
        assert world.member("shard", 1).state == "starting", exits
        world.end("shard", 1)
        world.clock.advance(5_000)
        world.start_due()
    assert world.member("shard", 1).state == "quarantined"
    assert world.member("shard", 1).pid is None
    world.clock.advance(10**9)
    assert world.start_due() == []
    assert len(world.fleet.running()) == 4
    world.end("shard", 0)
    assert world.start_due() == ["shard-0"]


@pytest.mark.parametrize("break_by", ["serving", "living longer"])
def test_only_quick_exits_in_a_row_count(world: World, break_by: str) -> None:
    """Seven bad starts, a good one, seven bad starts: it works, if badly."""
    for exits in range(1, 15):
        world.clock.advance(10_000)
        assert "router-0" in world.start_due()
        if exits == 8 and break_by == "serving":
            world.report("router", 0, "up")
        if exits == 8 and break_by == "living longer":
            world.clock.advance(5_001)
        world.end("router", 0)
    assert world.member("router", 0).state == "starting"
    for _ in range(2):
        world.clock.advance(10_000)
        world.start_due()
        world.end("router", 0)
    assert world.member("router", 0).state == "quarantined"


def test_a_report_of_a_stranger_or_of_an_ended_process_changes_nothing(world: World) -> None:
    """A report may lie in the socket longer than its process lives."""
    world.start_due()
    old = world.member("shard", 0).pid
    world.end("shard", 0)
    assert world.report("shard", 0, "up", old) is None
    world.start_due()
    assert world.report("shard", 0, "up", old) is None
    for role, index, state in (("shard", 9, "up"), ("gateway", 0, "up"), ("shard", 1, "stopped")):
        report = Report(role, index, world.member("shard", 1).pid or 0, state, 0, {})
        assert world.fleet.reported(report, 0) is None
    assert {member.state for member in world.fleet.members.values()} == {"starting"}


def test_a_stopping_fleet_starts_nobody(world: World) -> None:
    """A process that ends while the cluster drains has done what it was told."""
    world.start_due()
    world.end("payment", 0)
    world.fleet.stop()
    world.end("payment", 1)
    assert world.start_due() == []
    assert world.fleet.next_due_ns() is None
    assert world.member("payment", 1).state == "stopped"
    assert [m.role for m in world.fleet.running("shard")] == ["shard", "shard"]
    assert not world.fleet.running("payment")


def test_silence_is_counted_without_the_time_in_which_the_supervisor_was_away(
    world: World,
) -> None:
    """A pause of the whole machine makes nobody look hung (DESIGN 3)."""
    world.start_due()
    world.clock.advance(400)
    world.report("router", 0, "up")
    world.clock.advance(30_000)
    world.fleet.lost_time(29_500 * MS)
    rows = {
        (row["role"], row["index"]): row
        for row in world.fleet.processes(world.clock.monotonic_ns())
    }
    assert rows["router", 0]["silent_ms"] == 500
    assert rows["shard", 0]["silent_ms"] == 900


def hung(world: World) -> list[str]:
    found = world.fleet.hung(world.clock.monotonic_ns())
    return [f"{member.role}-{member.index}" for member in found]


def test_a_silent_worker_hangs_after_ten_seconds_a_shard_and_the_router_after_fifteen(
    world: World,
) -> None:
    """E3, for the one that works and for those that stand by; each is given once, to be killed."""
    world.start_due()
    world.report("payment", 0, "up")
    world.report("payment", 1, "standby")
    assert world.fleet.next_hung_ns() == world.clock.monotonic_ns() + 10_000 * MS
    world.clock.advance(10_000)
    assert hung(world) == []
    world.clock.advance(1)
    assert hung(world) == ["payment-0", "payment-1"]
    assert hung(world) == []
    world.clock.advance(5_000)
    assert hung(world) == ["router-0", "shard-0", "shard-1"]
    assert world.fleet.next_hung_ns() is None


def test_a_process_that_reports_does_not_hang(world: World) -> None:
    """D8: a sync of 5 s, a wait for a lock or a long replay is shorter, or says that it lives."""
    world.start_due()
    for _ in range(5):
        world.clock.advance(9_000)
        for role, index in PLACES:
            world.report(role, index, "starting" if role == "shard" else "up")
        assert hung(world) == []


def test_a_pause_of_the_whole_machine_is_no_hang(world: World) -> None:
    """The supervisor could not listen either; what it lost is taken out of everybody's silence."""
    world.start_due()
    world.clock.advance(9_000)
    world.clock.advance(3_600_000)
    world.fleet.lost_time(3_600_000 * MS)
    assert hung(world) == []
    world.clock.advance(1_001)
    assert hung(world) == ["payment-0", "payment-1"]


def test_the_next_process_in_a_hung_ones_place_is_judged_anew(world: World) -> None:
    """It was killed and has ended: restarted at once, since its predecessor had served."""
    world.start_due()
    world.report("payment", 0, "up")
    world.clock.advance(10_001)
    assert "payment-0" in hung(world)
    world.end("payment", 0)
    assert world.start_due() == ["payment-0"]
    assert hung(world) == []
    world.clock.advance(10_001)
    assert "payment-0" in hung(world)


def test_nobody_hangs_while_the_cluster_stops(world: World) -> None:
    """Who drains may be busy with it; after the drain it is killed anyway."""
    world.start_due()
    world.fleet.stop()
    world.clock.advance(60_000)
    assert hung(world) == []
    assert world.fleet.next_hung_ns() is None


def test_status_rows_say_who_runs_and_who_does_not(world: World) -> None:
    """SPEC 6: role, index, pid, state; a place without a process has pid 0 and no facts."""
    world.start_due()
    world.report("router", 0, "up")
    world.end("shard", 0)
    rows = world.fleet.processes(world.clock.monotonic_ns())
    assert [(row["role"], row["index"], row["state"]) for row in rows[:2]] == [
        ("router", 0, "up"),
        ("shard", 0, "starting"),
    ]
    assert rows[0]["pid"] == 101
    assert rows[0]["facts"] == {"sagas": 3}
    assert (rows[1]["pid"], rows[1]["facts"], rows[1]["metrics_port"]) == (0, {}, 0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("end"), st.sampled_from(PLACES)),
        st.tuples(st.just("up"), st.sampled_from(PLACES)),
        st.tuples(st.just("advance"), st.integers(0, 6_000)),
    ),
    max_size=60,
)


@given(STEPS)
def test_every_place_runs_waits_or_is_quarantined(steps: list[tuple[str, object]]) -> None:
    """No sequence of exits and reports may leave a place that nobody starts again."""
    world = World()
    world.start_due()
    for step, argument in steps:
        if isinstance(argument, int):
            world.clock.advance(argument)
        elif isinstance(argument, tuple):
            member = world.fleet.members[argument]
            if step == "up":
                world.report(member.role, member.index, "up")
            elif member.pid is not None:
                world.fleet.ended(member, world.clock.monotonic_ns())
        world.start_due()
        now = world.clock.monotonic_ns()
        for member in world.fleet.members.values():
            waits = member.start_at_ns is not None and now < member.start_at_ns <= now + 5_000 * MS
            runs = member.pid is not None
            assert [runs, waits, member.state == "quarantined"].count(True) == 1, member
