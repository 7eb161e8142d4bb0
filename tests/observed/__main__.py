"""Dashboards, rules and alerts, run on live clusters with the real Prometheus, from the very files.

    python -m tests.observed [--only panels,clean,Stuck-page] [--clean 300] [--at-once 3]
                             [--pending] [--pictures docs/images] [--json FILE]

panels: a cluster under load with declines, time-outs, a kill and a stuck compensation; every query
of every panel and every rule is run. An answer that is empty, no number, negative, or a share above
1 is a fault. With --pictures each dashboard is drawn from these answers.

clean: a cluster under load with declines, to which nothing is done; no alert may fire.

Each alert: its fault is planted in a world of its own; it has to fire within its `for` and two
evaluation intervals, and what the table in `faults` says that its window needs. One alert waits for
a quarter of an hour; with --pending its `for` is not waited for: an alert whose condition holds has
passed. Parts run at once share nothing. The exit code is 1 if something is not as it should be, 2
if it cannot be run here.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cluster.dashboards import DASHBOARDS
from cluster.prometheus import NoPrometheus, find
from cluster.render import table
from sagacity.errors import SagacityError, UnknownSaga
from tests.chaos.cluster import RoundFailed
from tests.chaos.commands import add_list
from tests.chaos.injected import NoStrace
from tests.observed import answers, faults
from tests.observed.answers import Answer, shown
from tests.observed.faults import FAULTS, Fault
from tests.observed.world import World

PANELS: Final = "panels"
CLEAN: Final = "clean"
PARTS: Final = (PANELS, CLEAN, *(fault.name for fault in FAULTS))
CLEAN_S: Final = 300.0
LOOK_S: Final = 0.25  # between two looks at the alerts
SLACK_S: Final = (
    30.0  # after its limit an alert is waited for, so that the table says how late it is
)
FIRST_S: Final = 20.0  # of a span: rates have no value before
STEADY_S: Final = 25.0
AFTER_S: Final = 30.0
STUCK: Final = {"SAGACITY_SAGA__STUCK_AFTER": "2", "SAGACITY_SAGA__ATTEMPTS": "5"}

# Two of twenty are declined; others fail at first, are answered late, or find no stock. None is
# refunded: those would all be stuck here.
_MIXED: Final = (
    *[("u42", "abc123", "123 Main St")] * 8,
    ("u999", "abc123", "1 Elm St"),
    *[("u42", "xyz789", "123 Main St")] * 4,
    ("u42", "sku_out_of_stock", "2 Elm St"),
    *[("u42", "abc123", "123 Main St")] * 3,
    ("u999", "xyz789", "1 Elm St"),
    ("u_flaky_3", "abc123", "4 Elm St"),
    ("u_slow_2s", "abc123", "5 Elm St"),
)

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for.

    Returns:
        0 if everything is as it should be, else 1; 2 if it cannot be run here, which is said.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.observed")
    add_list(parser, "--only", PARTS)
    parser.add_argument("--clean", type=float, default=CLEAN_S, metavar="SECONDS")
    parser.add_argument("--at-once", type=int, default=3, metavar="N", help="parts at a time")
    parser.add_argument("--pending", action="store_true", help="do not wait for any alert's `for`")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw the dashboards there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    given = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # worlds put away
    try:
        find()
        rows = _part(given.only[0], given) if len(given.only) == 1 else _parts(given)
    except (SagacityError, RoundFailed, NoStrace) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, NoPrometheus | NoStrace) else 1
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    wrong = [row for row in rows if row["wrong"]]
    if len(given.only) > 1:
        _tell(rows)
    for row in wrong:
        print(f"{row['part']}: {row['wrong']}", flush=True)
    print(f"{len(rows) - len(wrong)} of {len(rows)} are as they should be", flush=True)
    return 1 if wrong else 0


def _tell(rows: Sequence[Row]) -> None:
    """Print the table of the alerts, and a line of each other part."""
    fired = [row for row in rows if "fired_s" in row]
    heads = ("alert", "severity", "fault", "needs", "for", "fired after", "at most", "others")
    cells = [
        (
            row["alert"],
            row["severity"],
            row["fault"],
            f"{row['needs_s']:g} s",
            f"{row['for_s']:g} s",
            "never" if row["fired_s"] is None else f"{row['fired_s']:.1f} s",
            f"{row['limit_s']:g} s",
            ", ".join(row["others"]),
        )
        for row in fired
    ]
    print(table(heads, cells), flush=True)
    for row in rows:
        if row not in fired and "said" in row:
            print(f"{row['part']}: {row['said']}", flush=True)


def _parts(given: argparse.Namespace) -> list[Row]:
    """Run parts as processes of their own, some at once; give their rows in order."""
    waiting = list(given.only)
    running: dict[str, subprocess.Popen[bytes]] = {}
    rows: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="sagacity-observed-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < given.at_once:
                    name = waiting.pop(0)
                    running[name] = _start(name, given, Path(folder))
                time.sleep(LOOK_S)  # between two looks at worlds that take minutes
                for name in [
                    each for each, process in running.items() if process.poll() is not None
                ]:
                    code = running.pop(name).returncode
                    rows[name] = _rows_of(name, code, Path(folder))
                    print((Path(folder) / f"{name}.log").read_text().rstrip(), flush=True)
        finally:
            for process in running.values():
                process.terminate()
                process.wait()
    return [row for name in given.only for row in rows[name]]


def _start(name: str, given: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.observed", "--only", name, "--clean", str(given.clean)]
    command += ["--json", str(folder / f"{name}.json"), *(["--pending"] if given.pending else [])]
    if given.pictures is not None:
        command += ["--pictures", str(given.pictures)]
    with open(folder / f"{name}.log", "wb") as log:
        # A terminal's SIGINT is for us: each is then told to end, once.
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, process_group=0)


def _rows_of(name: str, code: int, folder: Path) -> list[Row]:
    file = folder / f"{name}.json"
    if not file.exists():
        return [{"part": name, "wrong": f"it ended with {code}"}]
    rows: list[Row] = json.loads(file.read_text())
    return rows


def _part(name: str, given: argparse.Namespace) -> list[Row]:
    if name == PANELS:
        return _panels(given.pictures)
    if name == CLEAN:
        return _clean(given.clean)
    (fault,) = [each for each in FAULTS if each.name == name]
    return [_alert(fault, pending=given.pending)]


# -- panels and rules --------------------------------------------------------------------------


def _panels(pictures: Path | None) -> list[Row]:
    with World(STUCK, deck=_MIXED) as world:
        begun = time.time()
        world.settle(STEADY_S)
        world.sicken("no_refunds")
        world.customers.come("u42", "abc123", "no_carrier", 120)
        world.customers.come("u_crash", "abc123", "6 Elm St")
        world.customers.come("u_timeout", "abc123", "7 Elm St")
        _ask_for_nobody(world)
        world.turn_for(STEADY_S)
        world.kill("shard", 0)
        stuck = ("Stuck", "page")
        world.turn_until(lambda: stuck in world.prometheus.firing(), 60.0, "the alert Stuck")
        world.turn_for(AFTER_S)
        ended = time.time()
        found = [
            *answers.panels(world.prometheus, begun + FIRST_S, ended),
            *answers.rules(world.prometheus, begun + FIRST_S, ended),
        ]
        if pictures is not None:
            _draw(world, pictures, begun + FIRST_S, ended)
    print(_table(found), flush=True)
    wrong = [f"{each.where}, {each.what}: {each.wrong}" for each in found if each.wrong]
    said = f"{len(found)} queries and rules"
    return [{"part": PANELS, "said": said, "wrong": "; ".join(wrong)}]


def _ask_for_nobody(world: World) -> None:
    """Have a request refused."""
    with world.client() as client:
        try:
            client.show("nobody")
        except UnknownSaga:
            return


def _table(found: Sequence[Answer]) -> str:
    rows = []
    for each in found:
        values = each.values
        least, greatest = (min(values), max(values)) if values else (float("nan"),) * 2
        words = (shown(value, each.unit) if values else "-" for value in (least, greatest))
        rows.append((each.where, each.what, len(each.series), *words, each.wrong or "well"))
    return table(("panel or file", "query", "series", "least", "greatest", ""), rows)


def _draw(world: World, folder: Path, begin: float, end: float) -> None:
    from tests.observed.drawing import draw

    told = f"(Two shards under {world.rate:g} checkouts a second: python -m tests.observed.)"
    for dashboard in DASHBOARDS:
        drawn = list(answers.panels_of(world.prometheus, dashboard, begin, end))
        file = folder / f"{dashboard.uid.replace('sagacity-', 'dashboard-')}.png"
        draw(dashboard, drawn, (begin, end), told, file)
        print(f"drawn: {file}", flush=True)


# -- no alert ----------------------------------------------------------------------------------


def _clean(seconds: float) -> list[Row]:
    with World() as world:
        begun = time.time()
        world.settle(0)
        left = seconds - (time.time() - begun)
        fired: set[str] = set()
        until = time.monotonic() + max(0.0, left)
        while time.monotonic() < until:
            world.turn_for(LOOK_S)
            fired |= {f"{name} ({severity})" for name, severity in world.prometheus.firing()}
        world.customers.stop()
        world.turn_until(
            lambda: not world.customers.in_flight, 30.0, "the end of what is in flight"
        )
        customers = world.customers
        said = f"{seconds:g} s: {customers.told()}; fired: {', '.join(sorted(fired)) or 'none'}"
    print(f"clean run, {said}", flush=True)
    wrong = f"fired: {', '.join(sorted(fired))}" if fired else ""
    if customers.failed:
        wrong = f"{wrong} {customers.failed} checkouts without an outcome".strip()
    return [{"part": CLEAN, "said": said, "wrong": wrong}]


# -- each alert --------------------------------------------------------------------------------


def _alert(fault: Fault, *, pending: bool) -> Row:
    """Plant a fault; give the row of what its alert did.

    Args:
        fault: to be planted.
        pending: its alert has to be pending, not to fire.
    """
    for_s = 0.0 if pending else fault.for_s
    limit_s = fault.limit_s(for_s)
    row: Row = {
        "part": fault.name,
        "alert": fault.alert,
        "severity": fault.severity,
        "fault": fault.what,
        "needs_s": fault.needs_s + (faults.INTERVAL_S if fault.recorded else 0),
        "for_s": for_s,
        "limit_s": limit_s,
    }
    with World(fault.env, deck=fault.deck) as world:
        world.settle(fault.steady_s)
        early = {
            f"{name} {state}"
            for name, severity, state in world.prometheus.alerts()
            if state == "firing" or (name, severity) == (fault.alert, fault.severity)
        }
        fault.plant(world)
        there = time.monotonic()
        fired_s, others = _wait_for(world, fault, there + limit_s + SLACK_S, pending=pending)
    row |= {"fired_s": fired_s, "others": sorted(others), "wrong": ""}
    word = "pending" if pending else "fired"
    if early:
        row["wrong"] = f"before its fault: {', '.join(sorted(early))}"
    elif fired_s is None:
        row["wrong"] = f"not {word} within {limit_s + SLACK_S:g} s"
    elif fired_s > limit_s:
        row["wrong"] = f"{word} after {fired_s:.1f} s; at most {limit_s:g} s are asked"
    elif fired_s < for_s:
        row["wrong"] = f"fired after {fired_s:.1f} s, before its `for` was over"
    told = "never" if fired_s is None else f"after {fired_s:.1f} s"
    print(f"{fault.name}: {fault.what}: {word} {told}, at most {limit_s:g} s", flush=True)
    return row


def _wait_for(
    world: World, fault: Fault, until: float, *, pending: bool
) -> tuple[float | None, set[str]]:
    """Give after how many seconds an alert fired, None for never; and which others did."""
    there = time.monotonic()
    mine = (fault.alert, fault.severity)
    others: set[str] = set()
    while (now := time.monotonic()) < until:
        alerts = world.prometheus.alerts()
        states = ("pending", "firing") if pending else ("firing",)
        others |= {name for name, _, state in alerts if state == "firing"}
        if any((*mine, state) in alerts for state in states):
            return now - there, others - {fault.alert}
        world.turn_for(LOOK_S)
    return None, others - {fault.alert}


if __name__ == "__main__":
    sys.exit(main())
