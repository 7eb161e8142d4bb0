"""Phases: the life of a saga as one table. Pure; the diagram in docs/protocol.md is its picture.

A *fact* is what a journal entry says of its saga. What is not in the table cannot happen: such an
entry leaves the saga untouched and stops the process.
"""

from typing import Final

# Phases.
NEW: Final = 0
RUNNING: Final = 1
COMPENSATING: Final = 2
COMPLETED: Final = 3
ABORTED: Final = 4
PHASES: Final = ("NEW", "RUNNING", "COMPENSATING", "COMPLETED", "ABORTED")

# Facts.
STARTED: Final = 0
STEP_SUCCEEDED: Final = 1  # an action's ok; late ones count, too
STEP_DECLINED: Final = 2
ATTEMPT_ENDED: Final = 3  # failed or timed out, and counted
TURNED_BACK: Final = 4  # the decision, with its cause
STEP_COMPENSATED: Final = 5
RETRY_ASKED: Final = 6
ALL_SUCCEEDED: Final = 7  # final: completed
ALL_COMPENSATED: Final = 8  # final: aborted
COMMAND_QUARANTINED: Final = 9  # it killed its workers, and is not sent any more
FACTS: Final = (
    "started",
    "step succeeded",
    "step declined",
    "attempt ended",
    "turned back",
    "step compensated",
    "retry asked",
    "all succeeded",
    "all compensated",
    "quarantined",
)

TRANSITIONS: Final = {
    (NEW, STARTED): RUNNING,
    (RUNNING, STEP_SUCCEEDED): RUNNING,
    (RUNNING, STEP_DECLINED): RUNNING,
    (RUNNING, ATTEMPT_ENDED): RUNNING,
    (RUNNING, COMMAND_QUARANTINED): RUNNING,
    (RUNNING, TURNED_BACK): COMPENSATING,
    (RUNNING, ALL_SUCCEEDED): COMPLETED,
    (COMPENSATING, STEP_SUCCEEDED): COMPENSATING,
    (COMPENSATING, ATTEMPT_ENDED): COMPENSATING,
    (COMPENSATING, STEP_COMPENSATED): COMPENSATING,
    (COMPENSATING, COMMAND_QUARANTINED): COMPENSATING,
    (COMPENSATING, RETRY_ASKED): COMPENSATING,
    (COMPENSATING, ALL_COMPENSATED): ABORTED,
}

# The table as the engine reads it: NEXT[phase][fact], -1 where there is no such transition.
# 0.04 us a look-up, where a dict by a tuple of Enums costs 0.23 (DESIGN 8).
NEXT: Final = tuple(
    tuple(TRANSITIONS.get((phase, fact), -1) for fact in range(len(FACTS)))
    for phase in range(len(PHASES))
)
