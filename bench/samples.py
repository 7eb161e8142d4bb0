"""Samples: what result files hold, whatever bench wrote them, as one kind of record.

Read are results of `bench run`, of scenarios and sweeps, and the table of the peers. What is none
of them is refused; a run that gives no figure is kept and says why. Knows no plots.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from bench.result import FORMAT, Machine, Mark, Result
from sagacity.errors import Malformed

OURS: Final = "Sagacity"
FLOOR: Final = "floor"
SIZE_MAX: Final = 256 << 20  # bytes of a file; the greatest that a bench writes has some megabytes

# Sides of scenarios and sweeps that say no more than who it was and its load.
_PLAIN_SIDE: Final = re.compile(r"ours|floor|[\d.]+ (%|in flight|a second)(, floor)?")
# What the peers' table runs, which its file does not say: docs/peers.md.
_TABLE_IN_FLIGHT: Final = 1024
_TABLE_DECLINE: Final = 10.0
_BESIDE: Final = "beside peers"
# Settings beside the load that make runs different ones, under the names that results give them.
_FACTS: Final = (
    "shards",
    "workers",
    "arrivals",
    "objective_ms",
    "duration_s",
    "sagas",
    "warm_up_s",
    "own_cluster",
)


class Load(Struct, frozen=True, order=True):
    """What was asked of a cluster: so many in flight, or so many a second, and the mix."""

    in_flight: int = 0  # 0 in the open loop
    rate: float = 0.0  # 0 in the closed loop
    decline: float = 0.0
    out_of_stock: float = 0.0
    no_carrier: float = 0.0
    hot_sku: float = 0.0

    @property
    def amount(self) -> str:
        """How much of it, in words."""
        return f"{self.rate:g}/s offered" if self.rate else f"{self.in_flight} in flight"

    @property
    def mixed(self) -> str:
        """The mix in words; empty if all complete."""
        words = (
            (self.decline, "declined"),
            (self.out_of_stock, "out of stock"),
            (self.no_carrier, "without a carrier"),
            (self.hot_sku, "hot"),
        )
        return ", ".join(f"{share:g} % {what}" for share, what in words if share)

    @property
    def words(self) -> str:
        """All of it in words."""
        return ", ".join(filter(None, (self.amount, self.mixed)))


class Sample(Struct, frozen=True, kw_only=True):
    """One run of one product.

    Args:
        who: the product.
        variant: what else tells it from other runs of the product with this load; mostly empty.
        file: which it was read from.
        left_out: why it is in no median and in no plot; empty if it is.
        facts: settings that make runs different ones, and where and of which version it was.
    """

    who: str
    variant: str = ""
    file: str
    load: Load
    left_out: str = ""
    sagas_per_second: float | None = None
    goodput_per_second: float | None = None
    offered_per_second: float | None = None
    rate_reached: bool | None = None
    wall_seconds: float | None = None
    latency_ms: dict[str, float] = {}
    cpu_us_per_saga: dict[str, float] = {}
    peak_rss_mb: dict[str, float] = {}
    fsyncs_per_saga: float | None = None
    completed: int | None = None
    aborted: int | None = None
    refused: int | None = None
    errors: int | None = None
    balanced: bool | None = None
    latency_histogram: str = ""
    per_tenth: list[int] = []
    marks: list[Mark] = []
    facts: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    machine: Machine | None = None
    notes: list[str] = []


class Verdict(Struct, frozen=True):
    """One figure of a scenario, as its file has it."""

    what: str
    unit: str = ""
    values: list[float] = []
    at_least: float | None = None
    at_most: float | None = None
    median: float | None = None
    met: bool | None = None
    why: str = ""


class Verdicts(Struct, frozen=True):
    """The figures of one scenario."""

    title: str
    file: str
    figures: list[Verdict]


class Shelf(Struct, frozen=True):
    """All that was read, in the order of the files."""

    files: list[str]
    samples: list[Sample]
    verdicts: list[Verdicts]

    @property
    def counted(self) -> list[Sample]:
        """Those that give a figure."""
        return [sample for sample in self.samples if not sample.left_out]


class _Several(Struct):
    """A file of a scenario or a sweep."""

    title: str
    figures: list[Verdict]
    runs: dict[str, list[Any]]
    format: int = FORMAT
    partial: bool = False


class _OurRound(Struct):
    """Ours in a round of the peers' table."""

    sagas_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


class _Peer(Struct):
    """A run of a peer."""

    peer: str
    in_flight: int
    decline: float
    sagas_per_second: float
    wall_seconds: float
    latency_ms: dict[str, float]
    completed: int
    aborted: int
    errors: int
    cpu_us_per_saga: dict[str, float]
    sagas: int = 0
    services: str = ""
    settings: dict[str, Any] = {}
    durability: dict[str, str] = {}
    versions: dict[str, str] = {}
    data_fs: str | None = None
    cores: int | None = None


class _Round(Struct):
    """A round of the peers' table."""

    ours: _OurRound
    peers: dict[str, tuple[_Peer, _Peer]]


def read_all(files: Sequence[Path]) -> Shelf:
    """Read result files.

    Raises:
        Malformed: one cannot be read or holds no result, or two hold the same.
    """
    shelf = Shelf([], [], [])
    seen: dict[bytes, Path] = {}
    for file in files:
        content = _content(file)
        digest = hashlib.sha256(content).digest()
        if digest in seen:
            where = f"holds the same as {seen[digest]}" if seen[digest] != file else "is named"
            raise Malformed(f"{file} {where} twice: its runs would count twice")
        seen[digest] = file
        shelf.files.append(str(file))
        _read(content, str(file), shelf)
    if not shelf.samples and not any(each.figures for each in shelf.verdicts):
        raise Malformed(f"no runs in {', '.join(shelf.files)}")
    return shelf


def files_of(path: Path) -> list[Path]:
    """Give a file, or the result files of a folder by name.

    Raises:
        Malformed: the folder has none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.json"))
    if not found:
        raise Malformed(f"{path} is a folder without result files (*.json)")
    return found


def _content(file: Path) -> bytes:
    try:
        if file.stat().st_size > SIZE_MAX:
            raise Malformed(f"{file} is too large for a result file")
        return file.read_bytes()
    except OSError as error:
        raise Malformed(f"{file} cannot be read: {error.strerror}") from None


def _read(content: bytes, file: str, shelf: Shelf) -> None:
    try:
        told = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"{file} is no JSON, or was cut off: {error}") from None
    _require_known(told, file)
    try:
        match told:
            case {"runs": dict(), "figures": list()}:
                _several(msgspec.convert(told, _Several), file, shelf)
            case {"sagas_per_second": _, "machine": _}:
                shelf.samples.append(_ours(msgspec.convert(told, Result), file))
            case {"peer": _}:
                shelf.samples.append(_peer(msgspec.convert(told, _Peer), file))
            case [{"peer": _}, *_]:
                peers = msgspec.convert(told, list[_Peer])
                shelf.samples.extend(_peer(each, file) for each in peers)
            case [{"ours": _, "peers": _}, *_]:
                for each in msgspec.convert(told, list[_Round]):
                    shelf.samples.extend(_round(each, file))
            case _:
                raise Malformed(f"{file} is JSON, but no result of `sagacity bench`")
    except (msgspec.ValidationError, KeyError, TypeError, ValueError) as error:
        raise Malformed(f"{file} holds no result of `sagacity bench`: {error}") from None


def _require_known(told: Any, file: str) -> None:
    """Refuse a file of a later format: what it means by its keys is not known here."""
    found = told.get("format", FORMAT) if isinstance(told, dict) else FORMAT
    if not isinstance(found, int) or found < 1:
        raise Malformed(f"{file} holds no result of `sagacity bench`: format {found!r}")
    if found > FORMAT:
        raise Malformed(
            f"{file} was written by a newer Sagacity: format {found}, this one reads {FORMAT}"
        )


def _several(told: _Several, file: str, shelf: Shelf) -> None:
    title = f"{told.title}, PARTIAL" if told.partial else told.title
    shelf.verdicts.append(Verdicts(title, file, told.figures))
    for side, runs in told.runs.items():
        for each in runs:
            _require_known(each, file)
            shelf.samples.append(_ours(msgspec.convert(each, Result), file, side))


def _ours(run: Result, file: str, side: str = "") -> Sample:
    settings = run.settings
    told = msgspec.convert(settings.get("mix") or {}, dict[str, float])
    mix = {name: share for name, share in told.items() if name in Load.__struct_fields__}
    is_floor = run.what == FLOOR
    marks = [mark.what for mark in run.marks]
    variant = "" if _PLAIN_SIDE.fullmatch(side) else side
    facts = {name: settings[name] for name in _FACTS if settings.get(name) is not None}
    facts |= {name: value for name, value in told.items() if value and name not in mix}
    return Sample(
        who=OURS if run.what == "sagacity" else run.what,
        variant=", ".join(dict.fromkeys(filter(None, [variant, *marks]))),
        file=file,
        load=Load(int(settings.get("in_flight") or 0), float(settings.get("rate") or 0), **mix),
        left_out=_no_figure(run, is_floor=is_floor),
        sagas_per_second=run.sagas_per_second,
        goodput_per_second=run.goodput_per_second,
        offered_per_second=run.offered_per_second,
        rate_reached=run.rate_reached,
        wall_seconds=run.wall_seconds,
        latency_ms=msgspec.to_builtins(run.latency_ms),
        cpu_us_per_saga=run.cpu_us_per_saga,
        peak_rss_mb=run.peak_rss_mb,
        fsyncs_per_saga=run.fsyncs_per_saga,
        completed=run.completed,
        aborted=run.aborted,
        refused=run.refused,
        errors=run.errors,
        balanced=run.balanced,
        latency_histogram=run.latency_histogram,
        per_tenth=run.per_tenth,
        marks=run.marks,
        facts=facts | _where(run),
        settings=settings,
        machine=run.machine,
        notes=run.notes,
    )


def _where(run: Result) -> dict[str, Any]:
    found = {
        "version": run.version,
        "commit": run.commit,
        "data_fs": run.data_fs,
        "cpu": run.machine.cpu,
        "cores": run.machine.cores,
        "kernel": run.machine.kernel,
        "python": run.machine.python,
    }
    return {name: value for name, value in found.items() if value is not None}


def _no_figure(run: Result, *, is_floor: bool) -> str:
    if run.partial:
        return f"partial: {run.partial_why}"
    if run.balanced is False:
        return "its books do not balance"
    if run.balanced is None and not is_floor:  # the floor keeps no books
        return "its books were not audited"
    return "" if run.finished and run.sagas_per_second > 0 else "nothing was finished"


def _peer(run: _Peer, file: str) -> Sample:
    facts: dict[str, Any] = {"version": " ".join(f"{k} {v}" for k, v in run.versions.items())}
    facts |= {"data_fs": run.data_fs} if run.data_fs else {}
    facts |= {"cores": run.cores} if run.cores else {}
    told = {"services": run.services, "sagas": run.sagas, **run.settings, **run.durability}
    return Sample(
        who=run.peer,
        file=file,
        load=Load(run.in_flight, decline=run.decline),
        left_out="" if run.sagas_per_second > 0 else "nothing was finished",
        sagas_per_second=run.sagas_per_second,
        wall_seconds=run.wall_seconds,
        latency_ms=run.latency_ms,
        cpu_us_per_saga=run.cpu_us_per_saga,
        completed=run.completed,
        aborted=run.aborted,
        errors=run.errors,
        balanced=True,  # docs/peers.md: a run whose books do not balance gives no result
        facts=facts,
        settings=told,
    )


def _round(told: _Round, file: str) -> Iterator[Sample]:
    ours = told.ours
    yield Sample(
        who=OURS,
        variant=_BESIDE,
        file=file,
        load=Load(_TABLE_IN_FLIGHT, decline=_TABLE_DECLINE),
        sagas_per_second=ours.sagas_per_second,
        cpu_us_per_saga={"total": ours.cpu_us},
        balanced=True,
    )
    alone = {"p50": ours.p50_ms, "p99": ours.p99_ms}
    yield Sample(
        who=OURS, variant=_BESIDE, file=file, load=Load(1), latency_ms=alone, balanced=True
    )
    for runs in told.peers.values():
        yield from (_peer(run, file) for run in runs)


class Group(Struct, frozen=True):
    """Runs of the same product with the same load and settings: what a median is of."""

    who: str
    variant: str
    load: Load
    facts: dict[str, Any]
    samples: list[Sample]

    def values(self, name: str) -> list[float]:
        """Give what its runs measured under a name (`latency_ms.p50`), where they did."""
        return [value for each in self.samples if (value := value_of(each, name)) is not None]


def value_of(sample: Sample, name: str) -> float | None:
    """Give a figure by its name; None if it was not measured."""
    first, _, inner = name.partition(".")
    found = getattr(sample, first)
    if inner:
        found = found.get(inner)
    return None if found is None else float(found)


def grouped(samples: Iterable[Sample]) -> list[Group]:
    """Put runs together that differ in nothing but chance, ordered by product and load."""
    found: dict[tuple[Any, ...], list[Sample]] = {}
    for each in samples:
        facts = tuple((name, str(value)) for name, value in sorted(each.facts.items()))
        found.setdefault((each.who, each.variant, each.load, facts), []).append(each)
    groups = [
        Group(who, variant, load, runs[0].facts, runs)
        for (who, variant, load, _), runs in found.items()
    ]
    return sorted(groups, key=lambda group: (_rank(group.who), group.load, group.variant))


def _rank(who: str) -> tuple[int, str]:
    return {OURS: 0, FLOOR: 1}.get(who, 2), who


def differing(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Give the facts in which groups of the same product differ, with their values."""
    values: dict[str, dict[str, set[str]]] = {}
    for group in groups:
        for name, value in group.facts.items():
            values.setdefault(name, {}).setdefault(group.who, set()).add(str(value))
    every = {name: set[str]().union(*by_who.values()) for name, by_who in values.items()}
    apart = [name for name, by in values.items() if any(len(each) > 1 for each in by.values())]
    return {name: sorted(every[name]) for name in apart}
