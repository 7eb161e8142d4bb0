"""The campaign: every layer of the proof at its full size.

    python -m tests.campaign [--only simulation,fuzz] [--part 0.1] [--jobs 2] [--logs DIR]

Layers that compute have all cores, one after the other; those that mostly wait for real processes
run side by side; those that measure run alone, before all others. What each prints goes to a file
in DIR, its last line to the terminal. At the end: a table of the layers and one of the anomalies
that they reached (`tests/reached.py`), with the commit; `python -m tests.publish DIR` puts them
into the documentation.
`--part` makes sizes smaller. Exit code 1 where a layer found a violation or could not run, or
where a whole campaign has not reached an anomaly that its layers count.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from tests import reached

ROOT: Final = Path(__file__).parents[1]
REPORT: Final = "campaign.json"  # in the folder of the logs
END_S: Final = 5.0  # a layer has it for putting its things away
ALONE, SIDE_BY_SIDE, ALL_CORES = "alone", "side by side", "all cores"


class Layer(Struct, frozen=True):
    """A layer of the proof, or a part of one.

    Args:
        name: for `--only`, and in the tables.
        command: of Python, without the interpreter; {n} stands for `size`, {jobs} for processes.
        how: it runs: alone (it measures), side by side (it waits), on all cores (it computes).
        size: at `--part 1`; 0 where it has none.
        unit: of the size.
    """

    name: str
    command: str
    how: str
    size: int = 0
    unit: str = ""

    def arguments(self, part: float, jobs: int) -> list[str]:
        """Give its command line for a part of its size."""
        return shlex.split(self.command.format(n=self.sized(part), jobs=jobs))

    def sized(self, part: float) -> int:
        """Give its size at a part of the whole."""
        return max(1, round(self.size * part)) if self.size else 0


LAYERS: Final = (
    Layer("takeover", "-m tests.chaos.takeover --runs 3 --seed campaign", ALONE),
    Layer("overload", "-m tests.chaos.overload --seed campaign", ALONE),
    Layer("herd", "-m tests.chaos.herd --seed campaign", ALONE),
    Layer("neighbours", "-m tests.chaos.neighbours --seed campaign", ALONE),
    Layer("two owners", "-m tests.chaos.two_owners --seed campaign", ALONE),
    Layer("full disk", "-m tests.chaos.disk_full --seconds 30 --seed campaign", ALONE),
    Layer(
        "simulation",
        "-m tests.simulation --seeds {n} --start 1000000 --sagas 8 --jobs {jobs}",
        ALL_CORES,
        200_000,
        "seeds",
    ),
    Layer(
        "journal",
        "-m tests.journal.campaign --seeds {n} --jobs {jobs}",
        ALL_CORES,
        30,
        "schedules, and all of the fixed workloads",
    ),
    Layer("fuzz", "-m tests.fuzz --cases {n} --seed 1 --processes {jobs}", ALL_CORES, 2 * 10**7),
    Layer(
        "kills",
        "-m tests.chaos.kill_rounds --random --rounds {n} --seed campaign",
        SIDE_BY_SIDE,
        400,  # some 1 060 processes
        "rounds",
    ),
    Layer("syscalls of a shard", "-m tests.chaos.syscalls --roles shard", SIDE_BY_SIDE),
    Layer("syscalls of a worker", "-m tests.chaos.syscalls --roles payment", SIDE_BY_SIDE),
    Layer("proxy", "-m tests.chaos.proxy --seed campaign", SIDE_BY_SIDE),
    Layer("clocks", "-m tests.chaos.clocks --seed campaign", SIDE_BY_SIDE),
    Layer("named tests", "-m tests.named", SIDE_BY_SIDE),
    Layer("exhaustive", "-m tests.exhaustive --quiet", SIDE_BY_SIDE),
    Layer("museum", "-m tests.museum --jobs {jobs}", ALL_CORES),
)
BEFORE: Final = (ALONE, ALL_CORES, SIDE_BY_SIDE)  # in this order


class Row(Struct):
    """A layer that runs or has run.

    Args:
        layer: which.
        command: the arguments that it got.
        log: what it prints.
        process: that runs.
        begun: when, in seconds of the monotonic clock.
        seconds: that it took.
        cpu_s: that it and its own processes used.
        code: it exited with.
    """

    layer: Layer
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes]
    begun: float
    seconds: float = 0.0
    cpu_s: float = 0.0
    code: int | None = None

    def lines(self) -> list[str]:
        """Give what it has printed."""
        return self.log.read_text(errors="replace").splitlines()

    @property
    def last_line(self) -> str:
        """What it said last; layers end with their sum."""
        told = [line for line in self.lines() if line.strip() and not line.startswith("reached ")]
        return told[-1].strip() if told else ""


class Campaign:
    """Runs layers, as many at once as their kinds allow.

    Args:
        part: of each size.
        jobs: processes that compute at once.
        logs: a folder for what layers print.
    """

    def __init__(self, part: float, jobs: int, logs: Path) -> None:
        self._part = part
        self._jobs = jobs
        self._logs = logs
        self._running: list[Row] = []
        self.rows: list[Row] = []

    def run(self, layers: Sequence[Layer]) -> None:
        """Run them all to their ends."""
        try:
            for how in BEFORE:
                at_once = self._jobs if how == SIDE_BY_SIDE else 1
                for layer in (each for each in layers if each.how == how):
                    self._wait(at_once - 1)
                    self._begin(layer)
                self._wait(0)
        finally:
            for row in self._running:
                _end(row.process)

    def _begin(self, layer: Layer) -> None:
        command = layer.arguments(self._part, self._jobs)
        log = self._logs / f"{layer.name.replace(' ', '-')}.log"
        with log.open("wb") as told:
            process = subprocess.Popen(
                [sys.executable, "-u", *command], cwd=ROOT, stdout=told, stderr=subprocess.STDOUT
            )
        row = Row(layer, command, log, process, time.monotonic())
        print(f"{layer.name}: python {' '.join(command)}", flush=True)
        self._running.append(row)
        self.rows.append(row)

    def _wait(self, at_most: int) -> None:
        """Wait until no more than so many run."""
        while len(self._running) > at_most:
            pid, status, usage = os.wait3(0)
            row = next(each for each in self._running if each.process.pid == pid)
            self._running.remove(row)
            row.process.returncode = row.code = os.waitstatus_to_exitcode(status)
            row.seconds = time.monotonic() - row.begun
            row.cpu_s = usage.ru_utime + usage.ru_stime
            minutes = f"{row.seconds / 60:.1f} min"
            print(f"{row.layer.name}: {minutes}, exit code {row.code}: {row.last_line}", flush=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a layer so that it puts its own processes and folders away, if it can."""
    for send in (None, signal.SIGINT, signal.SIGKILL):  # a terminal's Ctrl-C has reached it already
        if send is not None:
            process.send_signal(send)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S if send is not signal.SIGKILL else None)
            return


def layers_table(rows: Sequence[Row], part: float) -> str:
    """Give what ran and what came of it, in Markdown."""
    lines = ["| layer | command | size | minutes | of CPU | result |", "|---|---|---|---|---|---|"]
    for row in rows:
        size = f"{row.layer.sized(part):,} {row.layer.unit}".strip() if row.layer.size else "all"
        result = "no violation" if row.code == 0 else f"**exit code {row.code}**"
        lines.append(
            f"| {row.layer.name} | `{' '.join(row.command[1:])}` | {size} "
            f"| {row.seconds / 60:.1f} | {row.cpu_s / 60:.1f} | {result}: {row.last_line} |"
        )
    return "\n".join(lines)


def reached_of(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Give how often each anomaly was reached, by layer."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        for each in reached.read(row.lines()):
            of = found[each.code]
            of[row.layer.name] = of.get(row.layer.name, 0) + each.count
    return {code: found[code] for code in sorted(found, key=lambda code: (code[0], int(code[1:])))}


class Report(Struct, frozen=True):
    """What came of a campaign.

    Args:
        commit: that it is of.
        minutes: that it took.
        whole: every layer has run, at its full size.
        layers: a table, in Markdown.
        reached: how often each anomaly was, by layer, in words.
        missed: anomalies that some layer counts and none has met.
    """

    commit: str
    minutes: float
    whole: bool
    layers: str
    reached: dict[str, str]
    missed: list[str]

    def told(self) -> str:
        """Give it as text."""
        rows = "\n".join(f"| {code} | {text} |" for code, text in self.reached.items())
        missed = f"\n\ncounted and not reached: {', '.join(self.missed)}" if self.missed else ""
        return (
            f"commit {self.commit}, {self.minutes:.0f} minutes\n\n{self.layers}\n\n"
            f"| anomaly | reached |\n|---|---|\n{rows}{missed}"
        )


def read_report(file: Path) -> Report:
    """Read what a campaign has written.

    Raises:
        OSError, ValueError: it is not there, or not one.
    """
    return msgspec.json.decode(file.read_bytes(), type=Report)


def _commit() -> str:
    git = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit code."""
    known = [layer.name for layer in LAYERS]
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", allow_abbrev=False)
    parser.add_argument("--only", default=",".join(known), metavar="A,B")
    parser.add_argument("--part", type=float, default=1.0, metavar="F", help="of the full size")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="a temporary one, if left out")
    args = parser.parse_args(argv)
    wanted = [name for name in args.only.split(",") if name]
    unknown = sorted(set(wanted) - set(known))
    if unknown or not wanted or not 0 < args.part <= 1 or args.jobs < 1:
        parser.error(f"layers are {', '.join(known)}; 0 < part <= 1; jobs are at least 1")
    logs = args.logs or Path(tempfile.mkdtemp(prefix="sagacity-campaign-"))
    logs.mkdir(parents=True, exist_ok=True)
    commit, begun = _commit(), time.monotonic()
    print(f"commit {commit}; what layers print goes to {logs}", flush=True)
    campaign = Campaign(args.part, args.jobs, logs)
    campaign.run([layer for layer in LAYERS if layer.name in wanted])
    counts = reached_of(campaign.rows)
    report = Report(
        commit,
        (time.monotonic() - begun) / 60,
        args.part == 1 and len(campaign.rows) == len(LAYERS),
        layers_table(campaign.rows, args.part),
        {code: "; ".join(f"{name} {n:,}" for name, n in by.items()) for code, by in counts.items()},
        [code for code, by in counts.items() if not any(by.values())],
    )
    (logs / REPORT).write_bytes(msgspec.json.encode(report))
    print(f"\n{report.told()}")
    bad = any(row.code for row in campaign.rows)
    return 1 if bad or (report.whole and report.missed) else 0


if __name__ == "__main__":
    sys.exit(main())
