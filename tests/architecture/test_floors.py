"""Imports run one way; the walker that says so is shown to see what it must."""

import re

import pytest

from tests.architecture.floors import (
    FLOORS,
    PURE,
    SOCKETS,
    SPEAKERS,
    _speaks,
    faults,
    floor_of,
    sources,
)

# Every module of the table, empty: the walker's own tests do not depend on today's files.
NAMES = [name for floor in FLOORS for name in floor.modules if "*" not in name]
EMPTY = dict.fromkeys([*NAMES, "config.load", "services.pool", "services.inventory"], "")


def test_no_import_runs_up() -> None:
    """DESIGN 2: whoever reads a room must not need the rooms above it."""
    assert faults(sources()) == []


def test_every_exception_is_still_needed() -> None:
    """An exception that nobody uses is an open door."""
    texts = sources()
    assert {name for name in SPEAKERS if name in texts and not list(_speaks(texts[name]))} == set()


def test_sockets_are_made_in_one_room() -> None:
    """One that is made elsewhere lacks the options that DESIGN 7 asks for, and nobody sees it."""
    makes = re.compile(r"setsockopt\(zmq|\.socket\(zmq|zmq\.Context")
    assert {name for name, text in sources().items() if makes.search(text)} == {SOCKETS}


def test_no_module_stands_on_two_floors() -> None:
    """A table that says two things says nothing."""
    names = [name for floor in FLOORS for name in floor.modules]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("module", "text", "says"),
    [
        ("sagacity.ids", "from sagacity.client import Client", "which stands above it"),
        ("sagacity.ids", "import config.load", "the vocabulary imports only itself"),
        ("shard.engine", "from shard import journal", "which stands above it"),
        ("shard.engine", "from . import journal", "which stands above it"),
        ("shard.engine", "from .journal import Journal", "which stands above it"),
        ("shard.engine", "def f():\n    import shard.journal", "line 2"),
        ("shard.engine", "import time", "which it must not know"),
        ("shard.engine", "from os.path import join", "which it must not know"),
        ("shard.engine", "if TYPE_CHECKING:\n    import zmq", "which it must not know"),
        ("shard.loop", "import zmq", "which it must not know"),
        ("sagacity.executor", "import time", "which it must not know"),
        ("shard.journal", "import shard.process", "which stands above it"),
        ("shard.process", "import router", "which is met on the wire alone"),
        ("shard.process", "from services.pool import main", "which is met on the wire alone"),
        ("services.pool", "import shard.engine", "which is met on the wire alone"),
        ("router", "import shard.events", "which is met on the wire alone"),
        ("cluster.cli", "import services.inventory", "which is met on the wire alone"),
        ("cluster.supervisor", "import router", "which is met on the wire alone"),
        ("cluster.supervisor", "import_module('router')", "which is met on the wire alone"),
        ("cluster.supervisor", "import cluster.cli", "which stands above it"),
        ("sagacity.testing", "import shard.journal", "which is met on the wire alone"),
        ("sagacity.simulation.outcome", "import services", "which is met on the wire alone"),
        ("cluster.cli", "from tests.unit import x", "which stands beside the house"),
        ("cluster.cli", "import bench", "which stands beside the house"),
        ("cluster.cli", "import msgpack", "speaks MessagePack"),
        ("cluster.cli", "from msgspec import msgpack", "speaks MessagePack"),
        ("cluster.cli", "import msgspec\nmsgspec.msgpack.encode(1)", "line 2: speaks MessagePack"),
        ("cluster.attic", "", "stands on no floor"),
    ],
)
def test_a_planted_import_is_seen(module: str, text: str, says: str) -> None:
    """A walker that finds nothing proves nothing until it has found something."""
    found = faults({**EMPTY, module: text})
    assert len(found) == 1, found
    assert module in found[0]
    assert says in found[0]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("shard.process", "import time, zmq\nfrom cluster import clock, telemetry"),
        ("shard.engine", "from sagacity.wire import Answer\nfrom shard.phases import NEXT"),
        ("sagacity.testing", "from shard.engine import Engine"),
        ("sagacity.simulation.cluster", "from shard.loop import Loop"),
        ("cluster.cli", "from sagacity.client import Client\nimport config.load, msgspec.json"),
        ("services.pool", "from services.inventory import service\nimport sagacity.worker"),
    ],
)
def test_an_import_that_runs_down_is_let_be(module: str, text: str) -> None:
    """A walker that cries at everything is soon switched off."""
    assert faults({**EMPTY, module: text}) == []


def test_the_engine_stands_among_the_pure() -> None:
    """The table could be emptied without any of the above noticing."""
    assert {"shard.engine", "shard.phases", "shard.events", "shard.effects"} <= set(PURE)
    assert [floor_of(name) for name in ("sagacity.wire", "shard.engine", "shard.journal")] == [
        0,
        1,
        2,
    ]
    assert [floor_of(name) for name in ("router", "cluster.cli")] == [3, 4]
