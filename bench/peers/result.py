"""What one run of a peer gives: one shape for all, as JSON and as a line. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, to_builtins

Settings = dict[str, int | str]

_QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


class Result(Struct, frozen=True, kw_only=True):
    """One run.

    Attributes:
        peer: its name.
        services: what its services keep their books in.
        in_flight: checkouts at any time.
        sagas: measured, those of the warm-up left out.
        decline: per cent of them that had no funds.
        sagas_per_second: finished, errors left out, by the wall clock.
        wall_seconds: from the first one's start to the last one's end.
        latency_ms: p50, p90, p99, p999, max of those that were answered.
        completed: and charged once.
        aborted: and released.
        errors: those that got no answer.
        error_examples: some of what they said.
        cpu_us_per_saga: by role of the process, and `total`.
        settings: as given.
        durability: read back from what ran.
        versions: of what ran.
        data_fs: file system of its data.
        cores: of this machine.
    """

    peer: str
    services: str
    in_flight: int
    sagas: int
    decline: int
    sagas_per_second: float
    wall_seconds: float
    latency_ms: dict[str, float]
    completed: int
    aborted: int
    errors: int
    error_examples: list[str]
    cpu_us_per_saga: dict[str, float]
    settings: Settings
    durability: dict[str, str]
    versions: dict[str, str]
    data_fs: str
    cores: int

    def json(self) -> dict[str, Any]:
        """Give it for scripts."""
        shown: dict[str, Any] = to_builtins(self)
        return shown

    def line(self) -> str:
        """Give it for a reader who waits."""
        return (
            f"{self.peer}: {self.sagas_per_second:.1f} sagas/s at {self.in_flight} in flight,"
            f" p50 {self.latency_ms['p50']:.1f} ms, p99 {self.latency_ms['p99']:.1f} ms,"
            f" {self.cpu_us_per_saga['total']:.0f} us of CPU each; completed {self.completed},"
            f" aborted {self.aborted}, errors {self.errors}; {words(self.settings)}"
        )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Give p50 to max of these; exact, each a value that was measured. 0.0 of nothing."""
    ordered = sorted(values) or [0.0]
    last = len(ordered) - 1
    found = {name: ordered[min(last, int(len(ordered) * at))] for name, at in _QUANTILES.items()}
    return found | {"max": ordered[-1]}


def per_saga_us(
    before: Mapping[str, float], after: Mapping[str, float], sagas: int
) -> dict[str, float]:
    """Give the CPU per saga by role and in total, from seconds before and after."""
    found = {role: (used - before.get(role, 0.0)) / sagas * 1e6 for role, used in after.items()}
    return found | {"total": sum(found.values())}


def words(settings: Mapping[str, int | str]) -> str:
    """Give settings as they are given: `key=value key=value`."""
    return " ".join(f"{key}={value}" for key, value in settings.items())
