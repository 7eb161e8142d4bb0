"""The floors of the house: one table of what may import what, and the walker that checks it.

Imports run one way, from a higher floor to a lower one or along the same floor:
faces -> processes -> adapters -> decisions -> vocabulary. The docs' picture is printed from FLOORS
(`python -m tests.architecture.floors`).
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("sagacity", "config", "shard", "services", "cluster")
BESIDE: Final = ("bench", "tests")  # may import anything; nothing imports them


class Floor(NamedTuple):
    """One floor, and the modules that live there; a name may end in `.*`."""

    name: str
    modules: tuple[str, ...]


def _of(package: str, names: str) -> tuple[str, ...]:
    return tuple(f"{package}.{name}" for name in names.split())


# The lowest floor first.
FLOORS: Final = (
    Floor(
        "vocabulary",
        (
            *("sagacity", *_of("sagacity", "errors ids listing messages money ranges saga slots")),
            *_of("sagacity", "traces versions wire"),
            *("config", "config.*"),
        ),
    ),
    Floor(
        "decisions",
        (
            *(
                "shard",
                *_of(
                    "shard",
                    "admission books course deadlines effects engine entries events finished guard",
                ),
            ),
            *_of(
                "shard",
                "forgetting history listing outcomes phases pools rates records replies requests",
            ),
            *_of("shard", "retention retries sagas segments state tally"),
            "cluster.balance",
            *(
                "sagacity.checker",
                *_of(
                    "sagacity.checker", "bodies effects evidence faults folds journals lives record"
                ),
            ),
            *_of("sagacity.checker", "rules selftest starts verdict"),
        ),
    ),
    Floor(
        "adapters",
        (
            *_of("shard", "codec compaction facts generations journal links loop reserve store"),
            "shard.verify",
            *_of("sagacity", "asks barrier books client connection executor machine service"),
            *_of("sagacity", "forgotten sockets sqlite wal worker"),
            *("cluster", *_of("cluster", "child clock directory fleet meters metrics private")),
            *_of("cluster", "dashboards panels prometheus resting rounds supervisor telemetry"),
        ),
    ),
    Floor(
        "processes",
        (
            *("router", *_of("shard", "__main__ evidence process")),
            *("services", "services.*"),
            "cluster.auditor",
        ),
    ),
    Floor(
        "faces",
        (
            *_of("cluster", "__main__ audit cli commands conversation demo judge maelstrom"),
            *_of("cluster", "exporting otel spans"),
            *_of("cluster", "checking measuring observe render requests timeline up verifying"),
            *_of("cluster", "figures sampling screen story storypage top whole"),
            *("sagacity.testing", "sagacity.simulation", "sagacity.simulation.*"),
            *("sagacity.conformance", "sagacity.conformance.*"),
        ),
    ),
)

PURE: Final = tuple(name for name in FLOORS[1].modules if name != "shard")
IMPURE: Final = frozenset(
    """
    apsw asyncio datetime io logging multiprocessing os pathlib prometheus_client random secrets
    select selectors signal socket sqlite3 structlog subprocess sys tempfile threading time uuid zmq
    """.split()  # noqa: SIM905 - a list of words
)
# What a single module must not know, whatever its floor.
BLIND: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys(PURE, IMPURE),
    "shard.loop": frozenset({"apsw", "os", "pathlib", "socket", "sqlite3", "zmq"}),
    "sagacity.asks": frozenset({"apsw", "os", "random", "socket", "time", "zmq"}),
    **dict.fromkeys(
        _of("sagacity", "barrier books executor forgotten service sqlite"),
        frozenset({"random", "secrets", "select", "socket", "time", "zmq"}),
    ),
    "cluster.child": frozenset({"zmq"}),
    **dict.fromkeys(_of("cluster", "figures story storypage"), IMPURE | {"http", "rich"}),
    **dict.fromkeys(_of("cluster", "sampling top"), frozenset({"zmq"})),
}

# Buildings that meet on the wire alone; who may import whose.
BUILDINGS: Final = ("router", "shard", "services")
# Who may read the pure files of shard: what runs the engine in memory, and what judges journals.
PURE_SHARD_FOR: Final = frozenset(
    {"sagacity.testing", *(name for name in PURE if name.startswith("sagacity.checker"))}
)
IN_ONE_THREAD: Final = "sagacity.simulation."  # runs router and shards; services are given to it

# The only room that makes ZeroMQ's sockets and sets their options; others may wait for them.
SOCKETS: Final = "sagacity.sockets"

# The rooms that speak MessagePack.
SPEAKERS: Final = frozenset({"sagacity.wire", "shard.codec"})


class Arrow(NamedTuple):
    """One import: `here`, line `line`, imports `there`."""

    here: str
    there: str
    line: int


def floor_of(module: str) -> int | None:
    """Give the floor of a module, 0 the lowest; None for one that the table does not have."""
    for exact in (True, False):
        for height, floor in enumerate(FLOORS):
            if any(
                module == name if exact else fnmatchcase(module, name) for name in floor.modules
            ):
                return height
    return None


def sources() -> dict[str, str]:
    """Give the text of every module of ours that is shipped, by its name."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    files.append(ROOT / "router.py")
    return {name_of(file): file.read_text() for file in files if file.exists()}


def name_of(file: Path) -> str:
    """Give the name under which a file is imported."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def arrows(module: str, text: str, known: Iterable[str]) -> Iterator[Arrow]:
    """Give every import of a module: at the top, inside functions, for types alone, by name.

    Args:
        module: its name.
        text: its source.
        known: names of all modules of ours, to tell `from package import module` from a value.
    """
    ours = frozenset(known)
    for found in ast.walk(ast.parse(text)):
        if isinstance(found, ast.Import):
            for alias in found.names:
                yield Arrow(module, alias.name, found.lineno)
        elif isinstance(found, ast.ImportFrom):
            base = _absolute(module, found, ours)
            for alias in found.names:
                inner = f"{base}.{alias.name}"
                yield Arrow(module, inner if inner in ours else base, found.lineno)
        elif isinstance(found, ast.Call) and found.args:
            name = found.func.attr if isinstance(found.func, ast.Attribute) else ""
            name = found.func.id if isinstance(found.func, ast.Name) else name
            first = found.args[0]
            if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield Arrow(module, str(first.value), found.lineno)


def _absolute(module: str, found: ast.ImportFrom, ours: frozenset[str]) -> str:
    if not found.level:
        return found.module or ""
    is_package = any(name.startswith(f"{module}.") for name in ours)
    parts = module.split(".")
    kept = parts[: len(parts) - found.level + (1 if is_package else 0)]
    return ".".join([*kept, *([found.module] if found.module else [])])


def faults(texts: Mapping[str, str]) -> list[str]:
    """Give a sentence for each import that the table forbids."""
    found: list[str] = []
    for module, text in texts.items():
        if floor_of(module) is None:
            found.append(f"{module} stands on no floor: put it into the table in floors.py")
            continue
        for arrow in arrows(module, text, texts):
            why = _forbidden(arrow)
            if why:
                found.append(f"{module}, line {arrow.line}: imports {arrow.there}, {why}")
        found.extend(
            f"{module}, line {line}: speaks MessagePack, which wire and codec do for all"
            for line in _speaks(text)
            if module not in SPEAKERS
        )
    return found


def _forbidden(arrow: Arrow) -> str | None:
    here, there = arrow.here, arrow.there
    top_here, top_there = here.partition(".")[0], there.partition(".")[0]
    if top_there in BESIDE:
        return "which stands beside the house"
    if top_there in BLIND.get(here, ()):
        return "which it must not know"
    if top_there not in (*PACKAGES, "router"):
        return None
    if here in PURE_SHARD_FOR and there in PURE:
        return None
    if here.startswith(IN_ONE_THREAD) and top_there in {"router", "shard"}:
        return None
    if top_there in BUILDINGS and top_here != top_there:
        return "which is met on the wire alone"
    floor_here, floor_there = floor_of(here), floor_of(there)
    if floor_here is None or floor_there is None or floor_there > floor_here:
        return "which stands above it"
    if floor_here == 0 and top_here == "sagacity" and top_there != "sagacity":
        return "but the vocabulary imports only itself"
    return None


def _speaks(text: str) -> Iterator[int]:
    """Give the lines that name msgpack, ours or msgspec's."""
    for found in ast.walk(ast.parse(text)):
        if isinstance(found, ast.Import):
            names = [alias.name for alias in found.names]
        elif isinstance(found, ast.ImportFrom):
            names = [f"{found.module}.{alias.name}" for alias in found.names]
        elif isinstance(found, ast.Attribute) and isinstance(found.value, ast.Name):
            names = [f"{found.value.id}.{found.attr}"]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "msgpack" or name.startswith("msgspec.msgpack"):
                yield found.lineno


def picture() -> str:
    """Draw the floors for the docs, the highest first."""
    return "\n".join(f"{floor.name:<11}{'  '.join(floor.modules)}" for floor in reversed(FLOORS))


if __name__ == "__main__":
    print(picture())
