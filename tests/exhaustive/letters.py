"""Letters: what travels between a shard and its workers, as far as it matters what it is. Pure.

Attempts are abstracted: a letter is of the command that is current, or of an older one. The engine
asks nothing else of an attempt's number or an answer's epoch (`Outcomes._is_latest`), and what is
not current never becomes so again: attempts and epochs only grow. An old answer is shown to the
engine with the attempt before the current one.

A suspect's way to its worker and the Begun that comes back are one letter: in between nothing has
happened. A command's epoch is left out. The fence refuses what a barrier without one would perform,
once or not at all: what holds here holds with it. That it refuses is asked of each command that is
performed (`Model._check_fence`).
"""

from typing import Final, NamedTuple

from sagacity.ids import ACTION, DIRECTIONS
from sagacity.wire import OUTCOMES
from services.checkout import checkout
from tests.exhaustive.cases import SAGA_IDS, SERVICES

COMMAND: Final = 0
ALONE: Final = 1  # a suspect on its way, and the Begun with which its worker answers it
PROCEED: Final = 2
ANSWER: Final = 3
KINDS: Final = ("command", "lone command", "proceed", "answer")
TO_WORKER: Final = frozenset((COMMAND, PROCEED))


class Letter(NamedTuple):
    """Something that travels.

    Args:
        kind: one of KINDS.
        saga: index of its saga in this search, from 0.
        step: of the saga, from 1.
        direction: ids.ACTION or ids.COMPENSATION.
        latest: whether it is of the current command.
        outcome: of an answer; of anything else 0.
        body: as on the wire.
    """

    kind: int
    saga: int
    step: int
    direction: int
    latest: bool
    outcome: int
    body: bytes

    @property
    def service(self) -> str:
        """The service that it goes to or comes from."""
        return SERVICES[self.step - 1]

    @property
    def command(self) -> tuple[int, int, int]:
        """The command that it is about."""
        return self.saga, self.step, self.direction

    def told(self) -> str:
        """Say what it is."""
        step = checkout.steps[self.step - 1]
        name = step.name if self.direction == ACTION else step.compensation_name
        age = "" if self.latest else ", an old one"
        said = f" {OUTCOMES[self.outcome]}" if self.kind == ANSWER else ""
        return f"{KINDS[self.kind]} {name} of {SAGA_IDS[self.saga]}{said}{age}"


def key_told(key: tuple[int, int, int]) -> str:
    """Say which command is meant."""
    saga, step, direction = key
    return f"{DIRECTIONS[direction]} {step} of {SAGA_IDS[saga]}"
