"""Every line that our sources log: event, fields, level; none could hold what was sent to us."""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import pytest

from tests.architecture.floors import sources

METHODS: Final = frozenset({"debug", "info", "warning", "error", "exception"})
LOGS: Final = frozenset({"log", "_log"})  # what a logger is called, everywhere
MAKERS: Final = frozenset({"get_logger", "configure_logging"})

# Every field that a line may have, and what it holds. A new one is written down here, or is none.
FIELDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("saga_id", "trace_id"), "ids"),
    **dict.fromkeys(("saga", "service", "process", "cause", "what", "state", "outcome"), "names"),
    **dict.fromkeys(
        ("step", "direction", "attempt", "deaths", "number", "seq", "epoch"), "numbers"
    ),
    **dict.fromkeys(("shard", "peer", "list_number", "process_index", "process_pid"), "numbers"),
    **dict.fromkeys(("code", "exit_code", "count", "open", "lost", "in_flight"), "numbers"),
    **dict.fromkeys(("recovered", "sagas", "spans", "dropped", "tries"), "numbers"),
    **dict.fromkeys(("took_ms", "late_ms", "drain_ms", "silent_ms"), "durations"),
    **dict.fromkeys(("restart_in_ms", "since_start_ms"), "durations"),
    **dict.fromkeys(("book",), "names"),
    **dict.fromkeys(("amount", "left_out"), "numbers"),
    "sku": "of the catalog, whose stock does not balance; of no order",
    "served": "yes or no",
    "at": "lines of our own code",
    "error": "an exception's type, or SQLite's and the system's own words",
    "text": "words of ours",
    "reason": "words of ours",
    "router": "a socket's address",
    "witness": "a journal's place",
    "exc_info": "a traceback of what serves metrics",
}
# Whose words stand in a line, and why they hold nothing that was sent.
WORDS: Final[Mapping[str, str]] = {
    "checkpoint_failed": "SQLite names tables and files, never values",
    "database_unavailable": "likewise",
    "database_unreadable": "likewise",
    "shard_ended": "the journal's failures, in our words and SQLite's",
    "shard_refused": "what our own files and configuration are",
    "router_refused": "likewise",
    "process_not_started": "the system's",
    "report_dropped": "of a frame: where it broke, not what it held",
    "question_dropped": "likewise",
    "line_skipped": "likewise",
    "worker_rejected": "a shard's, of a database's place",
    "worker_turned_away": "likewise",
    "command_faulty": "ours, and an id",
    "fault_put_aside": "a name of a type",
    "books_not_audited": "ours, and names of tables",
    "books_started_over": "ours, and a shard",
    "books_unread": "a shard's or a worker's errors, of their own files",
    "opentelemetry_said": "of spans, which hold nothing that was sent",
    "bug_found": "a broken invariant's: numbers and ids",
}
TELLING: Final = frozenset({"text", "reason", "error"})  # fields that hold words
# What is about one saga and above debug: faults, each of which somebody has to look at.
FAULTS: Final = frozenset(
    {
        *("handler_raised", "command_faulty", "fault_put_aside"),
        *("books_do_not_balance", "books_mended"),
    }
)
# A name in a value that says: this was sent to us.
SENT: Final = frozenset(
    """
    address body bodies order request items packed user user_id shipping_address headers payload
    frame line reply answer history sku command envelope entry entries
    """.split()  # noqa: SIM905 - a list of words
)
OURS: Final[Mapping[str, str]] = {  # but these are our own
    "router_started": "address",
    "books_do_not_balance": "sku",  # of the catalog
    "books_mended": "sku",
}
# Fields that come from elsewhere as a whole: what gives them, and the fields.
GIVEN: Final[Mapping[str, frozenset[str]]] = {
    "bound": frozenset({"saga_id", "trace_id"}),
    "_named": frozenset({"process", "process_index", "process_pid"}),
}


class Line(NamedTuple):
    """One call of a logger."""

    where: str
    level: str  # empty where it is chosen at run time
    event: str  # empty where it is no literal
    fields: Mapping[str, ast.expr | None]
    unknown: tuple[str, ...]  # what is given as a whole and cannot be seen through


def lines_of(module: str, text: str) -> Iterator[Line]:
    """Give every line that a module logs."""
    for function in _functions(ast.parse(text)):
        if getattr(function, "name", "") in LOGS:
            continue  # hands on what it is given
        dicts = _dicts(function)
        for call in (node for node in _own(function) if isinstance(node, ast.Call)):
            level = _level(call)
            if level is None:
                continue
            first = call.args[0] if call.args else None
            event = str(first.value) if isinstance(first, ast.Constant) else ""
            fields, unknown = _fields(call.keywords, dicts)
            yield Line(f"{module}, line {call.lineno}", level, event, fields, unknown)


def _functions(tree: ast.AST) -> Iterator[ast.AST]:
    yield from (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """Give the nodes of a function, those of functions in it left out."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _own(child)


def _dicts(function: ast.AST) -> dict[str, list[ast.expr | None]]:
    """Give the dicts that a function makes, by name; and its parameters of numbers alone."""
    found: dict[str, list[ast.expr | None]] = {}
    for node in ast.walk(function):
        for name, value in _assigned(node):
            values = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            found.setdefault(name, []).extend(values)
    kwarg = getattr(getattr(function, "args", None), "kwarg", None)
    if kwarg is not None and getattr(kwarg.annotation, "id", "") == "int":
        found[kwarg.arg] = [None]
    return found


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Give names and what is put into them: `a = x`, `a, b = x, y`, `a |= x`, `a["k"] = x`."""
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) or node.value is None:
        return
    target: ast.expr = node.targets[0] if isinstance(node, ast.Assign) else node.target
    value: ast.expr = node.value
    if isinstance(target, ast.Subscript):
        key = target.slice
        target, value = target.value, ast.Dict([key], [value])
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for name, each in zip(target.elts, value.elts, strict=True):
            if isinstance(name, ast.Name):
                yield name.id, each


def _level(call: ast.Call) -> str | None:
    """Give the level of a call of a logger; None for any other call."""
    func = call.func
    name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
    if name in LOGS:  # a logger's method under a name of its own
        return ""
    if not isinstance(func, ast.Attribute) or name not in METHODS:
        return None
    on = func.value
    if isinstance(on, ast.Call):
        made = on.func.attr if isinstance(on.func, ast.Attribute) else getattr(on.func, "id", "")
        return name if made in MAKERS else None
    called = on.attr if isinstance(on, ast.Attribute) else getattr(on, "id", "")
    return name if called in LOGS else None


def _fields(
    keywords: list[ast.keyword], dicts: Mapping[str, list[ast.expr | None]]
) -> tuple[dict[str, ast.expr | None], tuple[str, ...]]:
    fields: dict[str, ast.expr | None] = {}
    unknown: list[str] = []
    for keyword in keywords:
        if keyword.arg is not None:
            fields[keyword.arg] = keyword.value
        else:
            _see_through(keyword.value, dicts, fields, unknown)
    return fields, tuple(unknown)


def _see_through(
    given: ast.expr,
    dicts: Mapping[str, list[ast.expr | None]],
    fields: dict[str, ast.expr | None],
    unknown: list[str],
) -> None:
    """Add the fields of a dict that is given as a whole."""
    if isinstance(given, ast.Dict):
        for key, value in zip(given.keys, given.values, strict=True):
            if key is None:
                _see_through(value, dicts, fields, unknown)
            elif isinstance(key, ast.Constant):
                fields[str(key.value)] = value
            else:
                unknown.append(ast.unparse(key))
    elif isinstance(given, ast.Call):
        func = given.func
        name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
        fields.update(dict.fromkeys(GIVEN.get(name, ())))
        unknown += [] if name in GIVEN else [ast.unparse(given)]
    elif isinstance(given, ast.Name) and given.id in dicts:
        for made in dicts[given.id]:
            if made is not None:
                _see_through(made, dicts, fields, unknown)
    else:
        unknown.append(ast.unparse(given))


def faults_of(line: Line) -> Iterator[str]:
    """Give a sentence for each rule that a line breaks."""
    if not re.fullmatch(r"[a-z]+(_[a-z]+)+", line.event):
        yield f"its event is no name in small letters: {line.event!r}"
    yield from (f"cannot be seen through: {each}" for each in line.unknown)
    for name, value in line.fields.items():
        if name not in FIELDS:
            yield f"the field {name} is in no table: add it, and what it holds"
        if value is None:
            continue
        names = _names_in(value)
        if (names & SENT) - {OURS.get(line.event)}:
            yield f"{name} may hold what was sent: {ast.unparse(value)}"
        words = name in TELLING and not _is_a_types_name(value)
        if words and line.event not in WORDS:
            yield f"{name} holds words, and no table says whose: {ast.unparse(value)}"
    is_about_one = "saga_id" in line.fields
    if is_about_one and line.level != "debug" and line.event not in FAULTS:
        yield "a line about one saga, above debug"


def _names_in(value: ast.AST) -> set[str]:
    """Give the names in an expression; of how many there are of it nothing is told."""
    if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "len":
        return set()
    if isinstance(value, ast.Attribute):  # a member counts, not whose it is
        return {value.attr} | (
            set() if isinstance(value.value, ast.Name) else _names_in(value.value)
        )
    named = {value.id} if isinstance(value, ast.Name) else set()
    return named.union(*map(_names_in, ast.iter_child_nodes(value)))


def _is_a_types_name(value: ast.expr) -> bool:
    return ast.unparse(value) == "kind" or ast.unparse(value).endswith(".__name__")


# The loggers themselves hand on what they are given; `facts` tells entries, and has tests of its
# own for each.
BEHIND: Final = frozenset({"cluster.telemetry", "shard.facts"})


def all_lines() -> list[Line]:
    texts = {name: text for name, text in sources().items() if name not in BEHIND}
    return [line for name, text in texts.items() for line in lines_of(name, text)]


def test_every_line_has_a_name_and_fields_that_hold_nothing_that_was_sent() -> None:
    """A user, an address or a cart would stand in the log of somebody who keeps it for ever."""
    faults = [f"{line.where}: {why}" for line in all_lines() for why in faults_of(line)]
    assert faults == []


def test_the_walk_has_seen_the_lines() -> None:
    """Else it shows nothing: every room that logs, and no table with what is no more."""
    lines = all_lines()
    modules = {line.where.partition(",")[0] for line in lines}
    assert modules >= {
        *("router", "shard.process", "services.pool", "cluster.supervisor", "cluster.exporting"),
        *("sagacity.barrier", "sagacity.executor", "sagacity.worker", "sagacity.books"),
        *("cluster.maelstrom", "cluster.conversation"),
    }
    assert len(lines) >= 45
    told = {line.event for line in lines}
    assert set(WORDS) - told == {"bug_found"}  # said by the logger itself
    assert told >= FAULTS


def test_one_room_alone_knows_how_lines_are_written() -> None:
    """JSON, one a line, limited: nobody goes past it."""
    for name, text in sources().items():
        # A worker of a user's own may have its user's log; OpenTelemetry's words become ours.
        if name in {"cluster.telemetry", "sagacity.worker", "cluster.otel"}:
            continue
        for node in ast.walk(ast.parse(text)):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {"logging", "structlog"} & {each.split(".")[0] for each in names}, name


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ('log.info("saga_seen", body=x)', "the field body"),
        ('log.info("saga_seen", what=order.user_id)', "may hold what was sent"),
        ('log.info("saga_seen", what=request.body)', "may hold what was sent"),
        ('self._log.warning("saga_seen", text=str(error))', "holds words"),
        ('self._log.warning("saga_seen", error=repr(error))', "holds words"),
        ('get_logger().error("saga_seen", reason=f"{x}")', "holds words"),
        ('log.info("saga_seen", saga_id=x)', "above debug"),
        ('log.info("saga_seen", **bound(a, b))', "above debug"),
        ('log.info(f"saga {x}")', "no name"),
        ('log.info("Saga")', "no name"),
        ('log.info("saga_seen", **vars(x))', "seen through"),
        ('said = {"what": 1, **more}\n    log.info("saga_seen", **said)', "seen through"),
        ('said = {"user": 1}\n    log.info("saga_seen", **said)', "the field user"),
        ('said = {}\n    said["user"] = 1\n    log.info("saga_seen", **said)', "the field user"),
        ('said = {}\n    said |= {"user": 1}\n    log.info("saga_seen", **said)', "the field user"),
        ('log("saga_seen", user=1)', "the field user"),
    ],
)
def test_a_line_that_could_tell_too_much_is_found(call: str, why: str) -> None:
    """Planted, one rule each."""
    text = f"def f(self, log, error, x, order, request):\n    {call}\n"
    (line,) = lines_of("m", text)
    assert any(why in each for each in faults_of(line)), list(faults_of(line))
