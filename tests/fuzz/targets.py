"""The table of all fuzz targets."""

from tests.fuzz.target import Target
from tests.fuzz.to_edges import ClusterJson, CommandLine, ConfigFile, Environment, Maelstrom
from tests.fuzz.to_files import JournalFile, JournalRows, ServiceFile
from tests.fuzz.to_readers import Readers
from tests.fuzz.to_router import RepliesToClient, RepliesToRouter, RequestsToRouter
from tests.fuzz.to_shard import AnswersToShard, Bodies, RequestsToShard
from tests.fuzz.to_worker import CommandBodies, FramesToWorker

KINDS: tuple[type[Target], ...] = (
    Readers,
    RequestsToRouter,
    RepliesToRouter,
    RepliesToClient,
    RequestsToShard,
    Bodies,
    AnswersToShard,
    FramesToWorker,
    CommandBodies,
    Maelstrom,
    ConfigFile,
    Environment,
    ClusterJson,
    CommandLine,
    JournalFile,
    JournalRows,
    ServiceFile,
)
TARGETS: dict[str, type[Target]] = {kind.name: kind for kind in KINDS}


def shares(cases: int, names: list[str]) -> dict[str, int]:
    """Divide cases among targets by their shares."""
    whole = sum(TARGETS[name].share for name in names)
    return {name: max(1, int(cases * TARGETS[name].share / whole)) for name in names}
