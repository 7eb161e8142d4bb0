"""Several loads on one cluster, one after the other: what scenarios of several acts are made of.

Each load is a `bench run` without the cluster; the last one audits the books.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench import result
from bench.figures import Figures
from bench.host import Host, hosted
from bench.options import Options
from bench.result import Result
from bench.run import Interrupts, Run
from bench.scenarios import NoResult, counting


class Stage:
    """A cluster of its own on which loads are put.

    Args:
        host: the cluster.
        interrupts: break a load off.
        figures: take the runs.
    """

    def __init__(self, host: Host, interrupts: Interrupts, figures: Figures) -> None:
        self.host, self._interrupts, self._figures = host, interrupts, figures

    def load(
        self,
        name: str,
        asked: Options,
        *,
        during: Callable[[float], None] | None = None,
        audits: bool = False,
    ) -> tuple[Result, Run]:
        """Put a load on it; give a result that counts, and the run with what it knows beside.

        Raises:
            NoResult: there is none, or it is no figure.
        """
        run = Run(asked, self.host, self._interrupts, during=during, audits=audits)
        found = run.measure()
        if isinstance(found, Result):
            self._figures.runs.setdefault(name, []).append(found)
            print(
                f"  {name}: {found.sagas_per_second:.0f}/s, p99 {found.latency_ms.p99:.2f} ms, "
                f"{found.refused} refused",
                flush=True,
            )
        return counting(found, self._interrupts, audited=audits), run

    def all_refused(self, name: str, asked: Options) -> Result:
        """Put a load on it of which hardly anything is taken; give what it cost.

        Raises:
            NoResult: there is none, or it was broken off.
        """
        run = Run(asked, self.host, self._interrupts, audits=False)
        found = run.measure()
        if isinstance(found, str):
            raise NoResult(found, self._interrupts.exit_code)
        self._figures.runs.setdefault(name, []).append(found)
        if found.partial:
            raise NoResult(found.partial_why, self._interrupts.exit_code)
        return found


@contextmanager
def staged(asked: Options, figures: Figures) -> Iterator[Stage]:
    """Give a new cluster for loads, until the end of the block."""
    with Interrupts() as interrupts, hosted(asked) as host:
        yield Stage(host, interrupts, figures)


def books_fit(figures: Figures, found: result.Result) -> None:
    """Judge the audit after the last load."""
    faults = len(found.faults) + (not found.balanced)
    figures.add("audit, faults", "", faults, at_most=0)
