"""`sagacity check DIR`: gathers what a stopped cluster left, and has the rules judge it.

Reads alone: journals through `python -m shard evidence`, which knows their format, databases as
`resting` does, clients' records. Evidence that cannot be used is refused, exit code 2; what can be
used and is wrong is a finding, exit code 12. Knows no rule.
"""

import argparse
import gc
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

import apsw

from cluster import render
from cluster.directory import MEND, ClusterFile, DataDirectory
from cluster.judge import Judge
from cluster.resting import opened, service_rows
from sagacity.checker import record as records
from sagacity.checker.evidence import (
    CHECKOUT,
    Evidence,
    Journal,
    OfShard,
    Plan,
    ServiceRows,
    Story,
    read_line,
)
from sagacity.checker.rules import INVARIANTS, judge
from sagacity.checker.selftest import Unseen, selftest
from sagacity.checker.verdict import KEPT, as_report
from sagacity.errors import (
    EXIT_COMPLETED,
    EXIT_UNBALANCED,
    Conflict,
    InternalError,
    Malformed,
    SagacityError,
)

INNER: Final = "data"  # in a folder of evidence: the cluster's directory
RECORDS: Final = "*.jsonl"  # and the clients' records beside it
# How a file of SQLite begins: https://sqlite.org/fileformat.html
_MAGIC: Final = b"SQLite format 3\0"
_HEAD_BYTES: Final = 100
_PAGE_BYTES_MAX: Final = 65_536
_COMMAND: Final = (sys.executable, "-P", "-m", "shard", "evidence")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `check`."""
    parser.description = (
        "Check the invariants of a stopped cluster: its journals and databases, and what clients "
        "recorded. Changes nothing. DIR is a cluster's directory, or a folder that holds one as "
        "`data` and clients' records as *.jsonl. Exit code 0 where all hold, 12 where one is "
        "violated or cannot be told, 2 where the evidence cannot be used."
    )
    parser.add_argument("dir", type=Path, metavar="DIR")
    parser.add_argument(
        "--record",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a client's record; may be repeated",
    )
    parser.add_argument(
        "--only", metavar="N,…", help="the invariants to check, such as 3,4,6-10; all if left out"
    )
    parser.add_argument(
        "--findings", type=int, default=KEPT, metavar="N", help=f"told of each ({KEPT})"
    )
    parser.add_argument(
        "--self-test",
        metavar="SEED",
        help="also change one row of each kind on a copy: the checker has to see it",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML, as for `up`")
    parser.add_argument("--json", action="store_true", help="for scripts: one line of JSON")


def run_check(options: argparse.Namespace) -> int:
    """Check a directory."""
    collects = gc.isenabled()
    gc.disable()  # nothing of it makes cycles: a fifth of the time goes into looking for some
    try:
        numbers = chosen(options.only)
        if options.findings < 1:
            raise Malformed("--findings is at least 1")
        report = check(
            options.dir,
            options.record,
            numbers,
            kept=options.findings,
            config=options.config,
            seed=options.self_test,
        )
    except SagacityError as error:
        if options.json:
            _print(render.json_line(error.body()))
        raise
    finally:
        if collects:
            gc.enable()
    _print(render.json_line(report) if options.json else render.check(report))
    return EXIT_COMPLETED if report["holds"] else EXIT_UNBALANCED


def check(
    path: Path,
    files: Sequence[Path] = (),
    numbers: Iterable[int] = INVARIANTS,
    *,
    kept: int = KEPT,
    config: Path | None = None,
    seed: str | None = None,
) -> dict[str, Any]:
    """Check what a stopped cluster left.

    Args:
        path: of the cluster's directory, or of a folder of evidence.
        files: clients' records, beside those in the folder.
        numbers: of the invariants.
        kept: findings of each that are told.
        config: for the definitions of the sagas.
        seed: of the self-test; None for none.

    Returns:
        The report of `check --json`.

    Raises:
        Malformed: the evidence cannot be used.
    """
    evidence = gather(path, files, config)
    verdicts = judge(evidence, numbers, kept)
    sagas = sum(len(journal.stories) for journal in evidence.journals)
    more: dict[str, Any] = {"data": str(path), "cluster_id": evidence.cluster_id, "sagas": sagas}
    report = as_report(verdicts, more)
    if seed is not None:
        tried = selftest(evidence, random.Random(seed).randrange)  # noqa: S311 - no secret
        unseen = [each for each in tried if isinstance(each, Unseen)]
        report["self_test"] = {
            "seed": seed,
            "changes": len(tried),
            "unseen": [f"{each.kind}: {each.change}" for each in unseen],
        }
        report["holds"] = report["holds"] and not unseen
    return report


def gather(path: Path, files: Sequence[Path] = (), config: Path | None = None) -> Evidence:
    """Read all that a stopped cluster left; changes no byte of it.

    Raises:
        Malformed: it is in use, truncated, of another version, or no evidence at all.
    """
    path = path.absolute()
    inner = path / INNER
    try:
        if not path.is_dir():
            raise Malformed(f"{path} is no directory" if path.exists() else f"there is no {path}")
        if not (path / "cluster.json").exists() and (inner / "cluster.json").exists():
            files = [*files, *sorted(path.glob(RECORDS))]
            path = inner
    except OSError as error:
        raise Malformed(f"cannot read {path}: {error.strerror}") from None
    data = DataDirectory(path)
    names = sorted(file.stem for file in (path / "services").glob("*.db"))
    try:
        with data.kept_still(names) as cluster:
            for file in (*map(data.journal, range(cluster.shards)), *map(data.service, names)):
                _refuse_no_database(file, served=str(file.relative_to(path)) in cluster.made)
            journals, plans = _journals(data, cluster, config)
            services = {name: _service(data.service(name), name) for name in names}
    except Conflict as error:
        raise Malformed(error.text) from None
    evidence = Evidence(cluster.cluster_id, cluster.slots.owners, journals, services, plans)
    if files:
        evidence.record = read_records(files)
    evidence.audit = audited(evidence)
    return evidence


def read_records(files: Sequence[Path]) -> records.ClientRecord:
    """Read clients' records.

    Raises:
        Malformed: one is none, is truncated, or cannot be read.
    """
    found = records.ClientRecord()
    for file in files:
        try:
            if _is_special(file):
                raise Malformed(f"{file} is no file")
            with file.open("rb") as lines:
                records.read(str(file), lines, found)
        except OSError as error:
            raise Malformed(f"cannot read {file}: {error.strerror}") from None
    return found


def chosen(text: str | None) -> list[int]:
    """Read which invariants are asked for: 3,4,6-10.

    Raises:
        Malformed: there are no such ones.
    """
    if text is None:
        return list(INVARIANTS)
    numbers: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        if not low.isdecimal() or not (high or low).isdecimal():
            raise Malformed(f"--only is a list such as 3,4,6-10, not {text!r}")
        numbers += range(int(low), int(high or low) + 1)
    if not numbers or not set(numbers) <= set(INVARIANTS):
        raise Malformed(f"the invariants are 1 to {max(INVARIANTS)}")
    return numbers


# -- journals -----------------------------------------------------------------------------------


def _journals(
    data: DataDirectory, cluster: ClusterFile, config: Path | None
) -> tuple[list[Journal], dict[str, Plan]]:
    command = [*_COMMAND, "--data", str(data.path), "--parent", str(os.getpid())]
    command += ["--config", str(config)] if config is not None else []
    journals: list[Journal] = []
    plans: dict[str, Plan] = {}
    with (
        subprocess.Popen(  # noqa: S603 - no shell, and the command is our own
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as reader,
        ExitStack() as stack,
    ):
        stack.callback(reader.kill)
        assert reader.stdout is not None
        assert reader.stderr is not None
        broken = ""
        try:
            _take(reader.stdout, journals, plans)
        except ValueError as error:
            broken = str(error)
        said = reader.stderr.read().decode(errors="replace").strip()
        code = reader.wait()
    if code == Malformed.exit_code:
        raise Malformed(said)
    if code or broken or len(journals) != cluster.shards:
        text = f"the journals were not read (exit code {code}): {said or broken}"
        raise InternalError(text)
    return journals, plans


def _take(lines: IO[bytes], journals: list[Journal], plans: dict[str, Plan]) -> None:
    left = 0
    for line in lines:
        found = read_line(line)
        if isinstance(found, OfShard):
            if left:
                raise ValueError(f"{left} sagas of shard {found.journal.shard - 1} are missing")
            journals.append(found.journal)
            plans |= found.plans
            left = found.stories
        else:
            journal = journals[-1]
            journal.stories[found.number] = Story(journal.shard, found.record)
            left -= 1
    if left:
        raise ValueError(f"{left} sagas are missing")


def _is_special(file: Path) -> bool:
    """Say whether it is a pipe, a device or the like: who opens a pipe waits for its writer."""
    return file.exists() and not file.is_file() and not file.is_dir()


def _refuse_no_database(file: Path, *, served: bool) -> None:
    """Refuse a file that is no database, or a part of one; what is damaged in it is a finding.

    Args:
        file: of a journal or service; one that is not there is missed by whoever has seen it.
        served: the cluster has served with it.

    Raises:
        Malformed: it is no evidence.
    """
    try:
        if not file.exists():
            return
        if _is_special(file):
            raise Malformed(f"{file} is no file; {MEND}")
        size = file.stat().st_size
        with file.open("rb") as read:
            head = read.read(_HEAD_BYTES)
        wal = file.with_name(file.name + "-wal")
        complete = wal.exists() and wal.stat().st_size > 0  # the WAL has the pages it lacks
    except OSError as error:
        raise Malformed(f"cannot read {file}: {error.strerror}") from None
    if not head and not complete:
        if served:
            raise Malformed(f"{file} is truncated: it is empty, and this cluster has served")
        return
    if head and not head.startswith(_MAGIC[: len(head)]):
        raise Malformed(f"{file} is no database; {MEND}")
    page = int.from_bytes(head[16:18], "big")
    whole = (page if page > 1 else _PAGE_BYTES_MAX) * int.from_bytes(head[28:32], "big")
    if not complete and (len(head) < _HEAD_BYTES or size < whole):
        raise Malformed(f"{file} is truncated: it has {size} bytes of {max(whole, _HEAD_BYTES)}")


# -- services -----------------------------------------------------------------------------------


def _service(file: Path, name: str) -> ServiceRows:
    try:
        with opened(file) as db:
            return service_rows(db, name)
    except apsw.NotADBError:
        raise Malformed(f"{file} is no database; {MEND}") from None
    except apsw.Error as error:
        return ServiceRows(name, faults=[f"cannot be read: {error}"])
    except OSError as error:
        raise Malformed(f"cannot read {file}: {error.strerror}") from None


def audited(evidence: Evidence) -> list[str]:
    """Have the audit's judge look at the same books: at rest it must say what the rules say."""
    plan = evidence.plans.get(CHECKOUT)
    if plan is None or any(name not in evidence.services for name in plan.services):
        return []
    if any(each.unread or each.strays or not each.folds for each in evidence.journals):
        return []  # what a journal does not tell whole cannot be held against books
    inventory, payment, shipping = (evidence.services[name].tables for name in plan.services)
    judge_ = Judge()
    for journal in evidence.journals:
        _audit_journal(judge_, journal)
    judge_.reservations(inventory.get("reservation", ()))
    judge_.stock(inventory.get("stock", ()))
    judge_.reservations_again(
        row for row in inventory.get("reservation", ()) if row[0] > judge_.again_after
    )
    judge_.payments(payment.get("payment", ()))
    judge_.shipments((*row[:3], row[4]) for row in shipping.get("shipment", ()))
    faults: list[str] = judge_.report()["faults"]
    return faults


def _audit_journal(judge_: Judge, journal: Journal) -> None:
    running = []
    finished = []
    for fold in journal.folds[:1]:
        for number, standing in fold.running.items():
            if number not in journal.stories:
                continue
            started = journal.stories[number].started
            phase = ("NEW", "RUNNING", "COMPENSATING")[standing.phase]
            running.append(
                [number, started.saga_id, phase, standing.stuck, started.amount, started.saga]
            )
        for number, story in journal.stories.items():
            if number not in fold.running:
                finished.append(_ended(number, story))
    highest = max(journal.stories, default=0)
    if journal.counts is not None:
        highest = max(highest, journal.counts.number)
    judge_.journal(journal.shard, highest, running)
    judge_.finished(journal.shard, finished)
    judge_.forgotten(journal.shard, journal.forgotten)


def _ended(number: int, story: Story) -> list[Any]:
    started = story.started
    phase = getattr(story.record[-1].entries[-1], "phase", 0)
    names: Mapping[int, str] = {3: "COMPLETED", 4: "ABORTED"}
    return [number, started.saga_id, names.get(phase, str(phase)), started.amount, started.saga]


def _print(text: str) -> None:
    if sys.stdout is not None:  # closed by who started us
        sys.stdout.buffer.write(f"{text}\n".encode())
        sys.stdout.buffer.flush()
