"""Which of the proof's anomalies a campaign of the simulation has really reached, and how often.

Each is counted by what its seeds left behind; a count of zero means that nothing was shown.
"""

from collections.abc import Mapping
from typing import Final

from tests.reached import Reached

# Anomaly -> what it is, and the figures that are added up.
REACHED: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "A1": ("acknowledged start, then a crash of its shard", ("deaths of shard",)),
    "A2": ("the client asks again", ("absorbed start",)),
    "A3": ("same id, other content", ("other content refused",)),
    "A5": (
        "a start after retention",
        ("answers that an outcome is no longer kept",),
    ),
    "A9": ("the router ends with requests open", ("deaths of router",)),
    "A10": ("a shard is down", ("answers with code 0", "answers with code 11")),
    "A11": (
        "ended sagas on disk, known there by their ids alone",
        ("sagas found by their ids on disk",),
    ),
    "B1": ("a command comes twice", ("commands repeated",)),
    "B2": ("a frame is lost", ("frames lost",)),
    "B3": ("a compensation overtakes its action", ("absorbed refused_compensated",)),
    "B6": ("the success of an older attempt", ("successes of an older attempt",)),
    "B7": ("a success after turning back", ("successes after turning back",)),
    "B9": ("an outcome for an unknown saga", ("absorbed answer_unknown_saga",)),
    "B11": (
        "a step of unknown outcome is compensated",
        ("compensations of what may have happened",),
    ),
    "B13": (
        "a refusal comes back",
        ("absorbed refused_unavailable", "absorbed refused_compensated", "absorbed refused_fenced"),
    ),
    "B14": ("cancelled while it runs", ("cancels taken",)),
    "B15": ("a compensation that does not succeed", ("sagas stuck",)),
    "B16": ("a command that kills its workers", ("commands quarantined",)),
    "B20": ("a shard that was stopped", ("hang",)),
    "D1": ("a death between two effects", ("die_at_point",)),
    "D5": (
        "power is lost with writes that were not synced",
        ("losses of power that took what was not synced",),
    ),
    "D6": ("a sync fails", ("failed syncs",)),
    "D7": ("a write finds no room", ("writes without room",)),
    "D8": ("a sync takes a second", ("slow",)),
    "D9": ("compactions and merges", ("compactions", "merges of segments")),
    "D10": ("a recovery is cut short", ("losses of power during a recovery",)),
    "E2": ("the wall clock jumps", ("clock",)),
    "E3": ("a worker hangs", ("hang",)),
    "E4": (
        "a worker dies with commands out",
        ("deaths of inventory", "deaths of payment", "deaths of shipping"),
    ),
    "E6": ("all processes die at once", ("kill_all",)),
    "F2": ("the last pieces are wanted by many", ("compensated checkout", "turned back: declined")),
    "G6": ("a connection ends, or is cut", ("connections reset", "frames held")),
}


def reached(figures: Mapping[str, int]) -> list[Reached]:
    """Give how often each anomaly was reached."""
    return [
        Reached(code, sum(figures.get(figure, 0) for figure in wanted), what)
        for code, (what, wanted) in REACHED.items()
    ]
