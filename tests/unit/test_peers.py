"""Peers are measured fairly: one shape of result, books that can fail, settings read back, clear
errors. Without the peers installed.
"""

import asyncio
import json
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from bench.peers import books, measure, ours, result, sweep, table
from bench.peers.__main__ import PEERS, main
from bench.peers.environment import PINS, Environment
from bench.peers.errors import PeerError, Refused
from bench.peers.ours import Ours
from bench.peers.peer import Plan
from bench.peers.processes import Processes, ports
from bench.peers.programs import conductor
from bench.peers.programs.ledger import BROKE, BUYER, CART, Declined, Ledger, price
from bench.peers.result import Result, Settings
from bench.peers.sweep import Best

DECLINED, BOUGHT = ("a", True, "ABORTED"), ("b", False, "COMPLETED")
GOOD = [
    ("reserve", "a", 0),
    ("release", "a", 0),
    ("reserve", "b", 0),
    ("charge", "b", books.AMOUNT),
    ("ship", "b", 0),
]


def a_result(rate: float, in_flight: int = 64, errors: int = 0, **settings: int | str) -> Result:
    """Give a result of this rate."""
    return Result(
        peer="restate",
        services=measure.SERVICES,
        in_flight=in_flight,
        sagas=100,
        decline=10,
        sagas_per_second=rate,
        wall_seconds=100 / rate,
        latency_ms=result.percentiles([1.0, 2.0, 30.0]),
        completed=90 - errors,
        aborted=10,
        errors=errors,
        error_examples=["error: gone"] if errors else [],
        cpu_us_per_saga={"server": 900.0, "client": 100.0, "total": 1000.0},
        settings=settings or {"workers": 2},
        durability={"fsync": "on"},
        versions={"restate-server": "1"},
        data_fs="ext4",
        cores=2,
    )


def test_books_that_balance_have_no_faults() -> None:
    """A completed checkout is charged once, a declined one gives its goods back."""
    assert books.faults([DECLINED, BOUGHT], GOOD) == []


@pytest.mark.parametrize(
    ("outcomes", "effects", "said"),
    [
        ([DECLINED, BOUGHT], [*GOOD, ("charge", "b", books.AMOUNT)], "'charge': 2"),
        ([DECLINED, BOUGHT], GOOD[:-1], "b is COMPLETED, its effects are"),
        ([DECLINED, BOUGHT], [GOOD[0], *GOOD[2:]], "a is ABORTED, its effects are"),
        ([DECLINED, BOUGHT], [*GOOD, ("refund", "b", 0)], "'refund': 1"),
        ([DECLINED, BOUGHT], [*GOOD[:3], ("charge", "b", 1), GOOD[4]], "was charged 1"),
        ([("a", True, "COMPLETED"), BOUGHT], GOOD, "a is COMPLETED, declined: True"),
        ([BOUGHT], GOOD, "a has effects, and nobody asked"),
        ([DECLINED, BOUGHT, BOUGHT], GOOD, "b was asked for twice"),
    ],
)
def test_each_kind_of_wrong_books_is_a_fault(
    outcomes: list[tuple[str, bool, str]], effects: list[tuple[str, str, int]], said: str
) -> None:
    """A peer that loses, repeats or forgets is no measurement."""
    assert any(said in fault for fault in books.faults(outcomes, effects))


def test_an_error_is_no_fault_of_the_books() -> None:
    """Whoever got no answer was promised nothing; errors are counted in the result."""
    assert books.faults([DECLINED, ("b", False, "error: gone")], GOOD[:3]) == []


def test_the_ledger_writes_what_the_books_read(tmp_path: Path) -> None:
    """The same words on both sides, repeats without effect, a declined charge without a line."""
    ledger = Ledger(tmp_path)
    for _ in range(2):
        ledger.reserve("b", list(CART))
        ledger.charge("b", BUYER, price(list(CART)))
        ledger.ship("b", "123 Main St")
    ledger.reserve("a", list(CART))
    with pytest.raises(Declined):
        ledger.charge("a", BROKE, price(list(CART)))
    ledger.release("a")
    assert books.faults([DECLINED, BOUGHT], books.read(tmp_path)) == []


def test_each_compensation_leaves_a_line(tmp_path: Path) -> None:
    """One that an engine runs for nothing must not stay unseen."""
    ledger = Ledger(tmp_path)
    ledger.refund("a")
    ledger.cancel("a")
    assert [effect for effect, _, _ in books.read(tmp_path)] == ["refund", "cancel"]


@pytest.mark.parametrize("percent", [0, 1, 10, 33, 100])
def test_the_mix_declines_exactly_the_share_that_was_asked(percent: int) -> None:
    """Spread evenly, so that a short run has its share as well."""
    drawn = [conductor.is_declined(index, percent) for index in range(100)]
    assert sum(drawn) == percent


def test_a_loop_never_has_more_in_flight_than_asked() -> None:
    """And does exactly as many as asked, each under an id of its own."""
    flying = most = 0

    async def checkout(saga_id: str, declined: bool) -> str:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0)
        flying -= 1
        return "ABORTED" if declined else "COMPLETED"

    rows = asyncio.run(conductor.closed_loop(checkout, 50, 7, 10))
    assert (most, len(rows), len({row[0] for row in rows})) == (7, 50, 50)
    assert sum(row[2] == "ABORTED" for row in rows) == 5


def test_a_checkout_that_fails_is_counted_not_hidden() -> None:
    """The loop goes on; what the peer said stands in the row."""

    async def checkout(saga_id: str, declined: bool) -> str:
        raise OSError("HTTP 500")

    rows = asyncio.run(conductor.closed_loop(checkout, 3, 1, 0))
    assert [row[2][:22] for row in rows] == ["error: OSError: HTTP 5"] * 3


def test_the_shares_of_several_loaders_add_up() -> None:
    """None of what was asked for is lost between processes."""
    plan = Plan(sagas=101, warm=10, in_flight=64, decline=10)
    shares = [plan.share(3, index) for index in range(3)]
    for at, whole in ((1, 101), (3, 10), (5, 64)):
        assert sum(int(share[at]) for share in shares) == whole


def test_percentiles_are_values_that_were_measured() -> None:
    """No interpolation: a p99 that nobody waited is no p99."""
    found = result.percentiles([float(number) for number in range(1, 1001)])
    assert found == {"p50": 501.0, "p90": 901.0, "p99": 991.0, "p999": 1000.0, "max": 1000.0}


def test_cpu_counts_what_was_used_in_between() -> None:
    """Start-up and warm-up are not the saga's."""
    found = result.per_saga_us({"server": 1.0}, {"server": 1.5, "client": 0.5}, 1000)
    assert found == {"server": 500.0, "client": 500.0, "total": 1000.0}


def test_a_result_has_the_one_shape_of_all_peers() -> None:
    """Who reads the JSON of one peer reads that of all."""
    shown = json.loads(json.dumps(a_result(100.0).json()))
    assert set(shown) >= {
        *("sagas_per_second", "latency_ms", "completed", "aborted", "errors", "cpu_us_per_saga"),
        *("settings", "versions", "durability", "services", "in_flight", "data_fs"),
    }
    assert set(shown["latency_ms"]) == {"p50", "p90", "p99", "p999", "max"}


OURS = Ours(
    sagas_per_second=10_000.0, p50_ms=4.0, p99_ms=8.0, cpu_us=130.0, floor_per_second=12_500.0
)


def test_ours_is_judged_by_the_best_peer_and_by_the_floor() -> None:
    """Ten times the best of them, and 0.9 of the floor, in the same minutes."""
    rounds = [
        table.Round(
            OURS,
            {
                "restate": (a_result(rate), a_result(80.0, 1)),
                "temporal": (a_result(50.0), a_result(20.0, 1)),
            },
        )
        for rate in (500.0, 1_250.0, 800.0)
    ]
    titles = {"restate": "Restate", "temporal": "Temporal"}
    rows = {row.what: row for row in table.judged(rounds, titles).rows}
    assert (rows["ours / floor"].middle, rows["ours / floor"].met) == (0.8, False)
    best = rows["ours / Restate, the best"]
    assert (best.values, best.met) == ((20.0, 8.0, 12.5), True)
    assert "ours / Temporal, the best" not in rows


def test_the_table_alternates_and_says_what_the_services_are() -> None:
    """What the machine does meanwhile meets all; a reader sees that peers write no databases."""
    asked = []

    def mine() -> Ours:
        asked.append("ours")
        return OURS

    def theirs() -> tuple[Result, Result]:
        asked.append("restate")
        return a_result(500.0 * (1 + asked.count("restate"))), a_result(80.0, 1)

    told: list[str] = []
    found: list[table.Round] = []
    table.rounds(3, mine, {"restate": theirs}, told.append, found)
    shown = table.markdown(found, {"restate": "Restate"})
    assert asked == ["ours", "restate"] * 3
    assert table.ratios(found, "restate") == [10.0, 10_000 / 1500, 5.0]
    row = next(line for line in shown.splitlines() if line.startswith("| Restate"))
    assert "| 1500 (1000 - 2000) | 64 | 6.67 (5 - 10) | 2 (2 - 2) | 30 (30 - 30) |" in row
    assert "dictionaries" in row
    assert f"| {ours.TITLE} |" in shown
    assert "read back: fsync=on" in shown
    assert len(json.loads(json.dumps(table.json(found)))) == 3


def test_a_sweep_keeps_what_does_more_and_passes_over_what_fails() -> None:
    """A setting under which checkouts fail is not the peer's best, however fast."""

    def run(settings: Settings, in_flight: int) -> Result:
        if settings["workers"] == 1:
            raise PeerError("it did not start")
        errors = 1 if settings["partitions"] == 24 else 0
        rate = 100.0 + in_flight / 10 + errors * 500 + int(settings["workers"])
        return a_result(rate, in_flight, errors)

    peer, told = PEERS[0], list[str]()
    best = sweep.sweep(peer, Best(dict(peer.best), peer.in_flight), run, told.append)
    assert best == Best({**peer.best, "workers": 3}, max(peer.flights))
    assert any("passed over" in line for line in told)


def test_a_sweep_where_nothing_works_is_an_error() -> None:
    """No best setting is made up."""

    def run(settings: Settings, in_flight: int) -> Result:
        raise PeerError("it did not start")

    peer = PEERS[0]
    with pytest.raises(PeerError, match="nothing that was tried on restate worked"):
        sweep.sweep(peer, Best(dict(peer.best), 1), run, list[str]().append)


def test_what_a_sweep_found_is_used_until_the_settings_are_others(tmp_path: Path) -> None:
    """A file of an older version must not bring settings that nobody reads."""
    peer = PEERS[0]
    found = Best({**peer.best, "workers": 7}, 33)
    assert sweep.load(tmp_path, peer) == Best(dict(peer.best), peer.in_flight)
    file = sweep.save(tmp_path, peer, found)
    assert sweep.load(tmp_path, peer) == found
    file.write_text(json.dumps({"settings": {"threads": 1}, "in_flight": 33}))
    assert sweep.load(tmp_path, peer) == Best(dict(peer.best), peer.in_flight)


def test_every_grid_knows_its_peer() -> None:
    """A sweep that tries settings which nobody reads would find them all equally good."""
    for peer in PEERS:
        for settings in peer.grid:
            assert measure.merged(peer, settings) == {**peer.best, **settings}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["setup", "cadence"], "there is no peer 'cadence'; there are restate, dbos-postgres"),
        (["table", "restate", "cadence"], "there is no peer 'cadence'"),
        (["run", "restate"], "run: python -m bench.peers setup restate"),
        (["sweep", "temporal"], "run: python -m bench.peers setup temporal"),
        (["table"], "run: python -m bench.peers setup restate"),
        (["run", "restate", "--set", "workers"], "--set takes key=value, not 'workers'"),
        (["run", "restate", "--json", "/"], "/ exists: results are not overwritten"),
        (["run", "restate", "--json", "/nowhere/x"], "/nowhere is no folder"),
    ],
)
def test_bad_input_is_told_and_exits_with_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is started."""
    assert main([*arguments, "--envs", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "restate", "--sagas", "0"],
        ["run", "restate", "--in-flight", "-1"],
        ["run", "restate", "--decline", "101"],
        ["run", "restate", "--port", "80"],
        ["table", "--runs", "none"],
        ["measure"],
    ],
)
def test_an_argument_that_cannot_be_exits_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As every command of ours does."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_a_taken_port_is_refused() -> None:
    """A run beside another must not measure that one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(Refused, match=f"port {number} of 127.0.0.1 cannot be had"):
            ports(1, number)
    assert len(set(ports(4, None))) == 4


def test_an_unknown_setting_is_refused() -> None:
    """A typing error must not pass for a measurement of that setting."""
    with pytest.raises(Refused, match="restate has no setting worker; it has workers"):
        measure.merged(PEERS[0], {"worker": 2})
    with pytest.raises(Refused, match="workers=many cannot be"):
        measure.merged(PEERS[0], {"workers": "many"})
    with pytest.raises(Refused, match="workers=0 cannot be"):
        measure.merged(PEERS[0], {"workers": 0})


def test_a_folder_in_memory_is_refused() -> None:
    """A sync costs nothing there."""
    with pytest.raises(Refused, match="a sync there costs nothing"):
        measure.on_disk(Path("/dev/shm"))


def test_an_environment_whose_pins_changed_is_not_set_up(tmp_path: Path) -> None:
    """A figure says which versions ran; so they must be those."""
    environment = Environment(tmp_path, "restate", ("a@1",))
    environment.folder.mkdir()
    (environment.folder / ".made").write_text("something else")
    assert not environment.made
    with pytest.raises(Refused, match="its pins have changed"):
        environment.check()


def test_everything_is_pinned() -> None:
    """Today's figures can be measured again next year."""
    for file in PINS.glob("*.txt"):
        assert all("==" in line for line in file.read_text().split()), file


def test_every_process_of_a_run_is_ended(tmp_path: Path) -> None:
    """With those that it has started itself, and also when it is deaf to SIGTERM."""
    deaf = "trap '' TERM; sleep 60 & echo up; read line; echo again; wait"
    with Processes(tmp_path, stop_s=0.1) as processes:
        child = processes.start("deaf", ["sh", "-c", deaf], spoken=True)
        child.hear("up")
        child.tell()
        child.hear("again")
        assert set(processes.cpu_seconds()) == {"deaf"}
        assert len(alive(child.popen.pid)) == 2
    give_up = time.monotonic() + 10.0  # a child that was killed is nobody's to wait for
    while left := alive(child.popen.pid):
        assert time.monotonic() < give_up, left


def alive(group: int) -> list[str]:
    """Give the processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(stat.parent.name)
    return found


def test_a_process_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    """Whoever measures must see why a peer did not start."""
    with Processes(tmp_path) as processes:
        child = processes.start("server", ["sh", "-c", "echo no room >&2; exit 3"], spoken=True)
        with pytest.raises(PeerError, match=r"server did not say 'up'(.|\n)*no room"):
            child.hear("up")
