"""Tally: what the engine counts. Pure; the process gives the numbers to whoever reads metrics."""

from collections import Counter
from typing import Protocol

from shard.sagas import Live


class Tally(Protocol):
    """Told of each fact once, when it is decided."""

    def started(self, saga: str) -> None:
        """A saga was accepted."""

    def finished(self, saga: str, outcome: str, duration_ns: int, exposed_ns: int) -> None:
        """A saga is final: "completed" or "aborted".

        Args:
            saga: name of its definition.
            outcome: which of the two.
            duration_ns: since its start.
            exposed_ns: since a step of it may have taken effect first; -1 where none has.
        """

    def attempted(self, step: str, direction: int, outcome: str, duration_ns: int) -> None:
        """An attempt of a command ended."""

    def retried(self, step: str, direction: int) -> None:
        """A command whose attempt had failed or timed out is given out again."""

    def turned_back(self, saga: str, cause: str) -> None:
        """A saga turns back, for good."""

    def compensated(self, saga: str, step: str, cause: str) -> None:
        """A step was compensated, in a saga that turned back for `cause`."""

    def refused(self, cause: str) -> None:
        """A request got an error."""

    def absorbed(self, where: str) -> None:
        """A repeat, late or foreign message had no effect."""

    def faulted(self, what: str, text: str = "", about: Live | None = None) -> None:
        """Something happened that never should.

        Args:
            what: of a closed list.
            text: tells more for the log, where there is.
            about: the saga to which it happened, where that is known.
        """

    def recovered(self, sagas: int) -> None:
        """Sagas were running when the shard was taken over."""


class Unwritten:
    """What is decided of sagas and not yet durable: what has no room was never decided."""

    def __init__(self) -> None:
        self.starts: list[str] = []  # the saga of each
        self.ends: list[tuple[str, str, int, int]] = []  # as `Tally.finished` was told
        self.backs: list[tuple[str, str]] = []  # saga, cause
        self.undone: list[tuple[str, str, str]] = []  # saga, step, cause

    def clear(self) -> None:
        """They are counted, or forgotten."""
        self.starts.clear()
        self.ends.clear()
        self.backs.clear()
        self.undone.clear()


class PlainTally:
    """Counts in one Counter; the twin of the metrics for tests and `sagacity.testing`."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()

    def started(self, saga: str) -> None:
        """Count it."""
        self.counts["started", saga] += 1

    def finished(
        self,
        saga: str,
        outcome: str,
        duration_ns: int,  # noqa: ARG002 - durations are the metrics' concern
        exposed_ns: int,  # noqa: ARG002 - likewise
    ) -> None:
        """Count it."""
        self.counts["finished", saga, outcome] += 1

    def attempted(
        self,
        step: str,
        direction: int,
        outcome: str,
        duration_ns: int,  # noqa: ARG002 - as above
    ) -> None:
        """Count it."""
        self.counts["attempted", step, str(direction), outcome] += 1

    def retried(self, step: str, direction: int) -> None:
        """Count it."""
        self.counts["retried", step, str(direction)] += 1

    def turned_back(self, saga: str, cause: str) -> None:
        """Count it."""
        self.counts["turned_back", saga, cause] += 1

    def compensated(self, saga: str, step: str, cause: str) -> None:
        """Count it."""
        self.counts["compensated", saga, step, cause] += 1

    def refused(self, cause: str) -> None:
        """Count it."""
        self.counts["refused", cause] += 1

    def absorbed(self, where: str) -> None:
        """Count it."""
        self.counts["absorbed", where] += 1

    def faulted(
        self,
        what: str,
        text: str = "",  # noqa: ARG002 - for a log
        about: Live | None = None,  # noqa: ARG002 - likewise
    ) -> None:
        """Count it."""
        self.counts["faulted", what] += 1

    def recovered(self, sagas: int) -> None:
        """Count them."""
        self.counts["recovered",] += sagas
