"""`sagacity bench floor`: the load of `bench run` put on the floor, measured and told alike.

By the same generators; CPU by role from the kernel's clocks, commits and entries as the floor's
processes count them; its services' books are compared at the end. The record is that of `bench run`
with `what` "floor".
"""

import argparse
import tempfile
from pathlib import Path
from typing import Final

from msgspec import structs

from bench import carts, options, place, probe, report, result
from bench.floor import Floor
from bench.floor_files import faults
from bench.generators import Generators, HowFar
from bench.load import closed_loop
from bench.options import Options
from bench.result import Result
from bench.run import EXIT_NO_RESULT, Interrupts, cpu_of, plans, result_of, say, shares
from bench.schedule import SECOND
from bench.tally import together
from config.load import load_catalog
from sagacity.connection import Connection
from sagacity.errors import SagacityError

WHAT: Final = "floor"
_FOUND_S: Final = 120.0  # for the floor's processes to start on a busy machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options: those of `bench run` that are of a load."""
    parser.description = (
        "Put a load on the floor, the least program that moves the same bytes through the same "
        "hops with the same syncs, and measure it as `bench run` measures a cluster. "
        "docs/bench.md says what it does and what it leaves out."
    )
    options.add_load_arguments(parser)
    options.add_result_arguments(parser)


def run(given: argparse.Namespace) -> int:
    """Run a load; print what was measured, and write it where a file is named.

    Raises:
        SagacityError: it cannot be done as asked.
    """
    asked = options.checked(given)
    if asked.json is not None:
        result.require_new(asked.json, force=asked.force)
    with Interrupts() as interrupts:
        found = measure(asked, interrupts)
    if isinstance(found, str) or found.balanced is False:
        why = found if isinstance(found, str) else "; ".join(found.faults)
        say(f"no result: {why}")
        return interrupts.exit_code or EXIT_NO_RESULT
    print(report.text(found), flush=True)
    if asked.json is not None:
        result.write(found, asked.json)
    return interrupts.exit_code or (EXIT_NO_RESULT if found.partial or not found.finished else 0)


def measure(asked: Options, interrupts: Interrupts) -> Result | str:
    """Put a load on a new floor; give what was measured, or why nothing was."""
    parent = Path(tempfile.gettempdir())
    place.require_disk(parent)
    goods = None
    if asked.mix.hot_sku:
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(carts.catalog(asked.hot_units))
            file.flush()
            goods = load_catalog(file.name)
    floor = Floor(goods)
    with floor as url:
        return _Floored(asked, floor, interrupts).measure(url)


class _Floored:
    """One run on the floor.

    Args:
        asked: what is run.
        floor: whose processes have just been started.
        interrupts: break it off.
    """

    def __init__(self, asked: Options, floor: Floor, interrupts: Interrupts) -> None:
        self._asked, self._floor, self._interrupts = asked, floor, interrupts
        self._why = ""

    def measure(self, url: str) -> Result | str:
        """Warm up, load, compare the books."""
        asked, floor = self._asked, self._floor
        machine = place.machine(place.yardstick_ns())
        many = options.generators_of(asked)
        with Generators(plans(asked, url, many)) as generators:
            try:
                with Connection(url, timeout_s=_FOUND_S) as connection:
                    closed_loop(connection, 500, 16)  # until everybody has found everybody
            except SagacityError as error:
                return f"the floor does not answer: {error.text}"
            self._interrupts.playing = True
            try:
                if asked.warm_up_s:
                    generators.play([(None, round(asked.warm_up_s * SECOND))] * many, self._turn)
                if self._why:
                    return self._why
                counted, used = floor.counts.read(), _cpu_ns(floor)
                told = generators.play(shares(asked, many), self._turn)
            finally:
                self._interrupts.playing = False
        if len(told) < many:
            return self._why or "a generator has ended or did not answer"
        whole = together(told)
        yardstick = (machine.yardstick_ns + place.yardstick_ns()) / 2
        found = result_of(asked, whole, structs.replace(machine, yardstick_ns=yardstick))
        found.what, found.partial, found.partial_why = WHAT, bool(self._why), self._why
        found.settings |= {"generators": many, "shards": len(_of(floor, "shard"))}
        roles = {role: ns - used[role] for role, ns in _cpu_ns(floor).items()}
        found.cpu_us_per_saga, found.cpu_s = cpu_of(whole, roles)
        found.peak_rss_mb = {
            name: round(probe.peak_rss_mb(pid), 1) for name, pid in floor.pids.items()
        }
        found.peak_rss_mb |= {f"client-{at}": each.peak_rss_mb for at, each in enumerate(told)}
        found.data_fs = place.file_system(Path(floor.directory))
        _count(found, counted, floor.counts.read())
        if not found.partial:
            found.faults = faults(Path(floor.directory))
            found.balanced = not found.faults
        return found

    def _turn(self, _far: HowFar) -> bool:
        """Look after the run; say whether it goes on."""
        if self._interrupts.exit_code:
            self._why = "interrupted"
        elif self._floor.ended:
            self._why = f"processes of the floor have ended: {', '.join(self._floor.ended)}"
        return not self._why


def _of(floor: Floor, role: str) -> list[int]:
    return [pid for name, pid in floor.pids.items() if name.partition("-")[0] == role]


def _cpu_ns(floor: Floor) -> dict[str, int]:
    """Give the CPU that each role has used."""
    roles = {name.partition("-")[0] for name in floor.pids}
    return {role: sum(probe.cpu_ns(pid) or 0 for pid in _of(floor, role)) for role in roles}


def _count(
    found: Result, before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]
) -> None:
    shards = [role for role in after if role.startswith("shard")]
    commits = sum(after[role]["commits"] - before[role]["commits"] for role in shards)
    entries = sum(after[role]["entries"] - before[role]["entries"] for role in shards)
    synced = sum(after[role]["commits"] - before[role]["commits"] for role in after)
    found.commits = commits
    found.entries_per_commit = entries / commits if commits else None
    found.fsyncs_per_saga = synced / found.finished if found.finished else None
