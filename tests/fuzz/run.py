"""Runs cases on a target, watches time and memory, and makes a finding replayable.

Cases run in blocks, each in a world of its own; what a case finds may need those before it in its
block. A finding is cut down to the one case where that is enough.
"""

import ctypes
import gc
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from types import FrameType
from typing import Final

import msgpack
from msgspec import Struct, field

from sagacity.errors import InvariantBroken
from tests.fuzz.mutation import Mutator
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

REGRESSIONS: Final = Path(__file__).with_name("regressions")
CASE_CPU_S: Final = 1.0  # of one case; the slowest that is right takes some ms
BLOCK_S: Final = 60.0  # after this a block hangs
RSS_GROWTH_MAX: Final = 32 << 20  # of a run, once it is warm
FINDINGS_MAX: Final = 20  # of one run; then something is wrong all over


class Hang(BaseException):
    """A block has taken too long."""


class Finding(Struct):
    """What should not have come out.

    Args:
        target: name.
        seed: of the cases.
        index: of the case at which it was seen.
        cases: that show it, one after the other in a new world.
        text: the last lines of what came out.
    """

    target: str
    seed: int
    index: int
    cases: list[bytes]
    text: str

    @property
    def replay(self) -> str:
        """Give the one command that shows it again."""
        return (
            f"python -m tests.fuzz --target {self.target} --seed {self.seed} --index {self.index}"
        )

    @property
    def cause(self) -> str:
        """Give what tells it from other findings."""
        lines = [line.strip() for line in self.text.splitlines()]
        places = [line for line in lines if line.startswith("File ")]
        kind = lines[-1].split(":")[0] if lines else ""
        return f"{self.target}: {kind} {places[-1] if places else ''}"


class Result(Struct):
    """What a run came to."""

    target: str
    cases: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    slowest_ms: float = 0.0
    rss_growth: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)


Cases = Callable[[int], bytes]


class Run:
    """A run of one target.

    Args:
        target: to be run; closed at the end.
        seed: of its cases.
        cases: gives a case by its index; None for mutations of the corpus.
    """

    def __init__(self, target: Target, seed: int, cases: Cases | None = None) -> None:
        self.target = target
        self._seed = seed
        self._cases = cases or mutations(target, seed)
        self.result = Result(target.name)

    def run(self, first: int, count: int) -> Result:
        """Run cases first .. first + count - 1; `first` begins a block."""
        begun, cpu_begun = time.monotonic(), time.process_time()
        warm_at, warm_rss = first + count // 4, 0
        block = self.target.block
        for start in range(first, first + count, block):
            if not warm_rss and start >= warm_at:
                warm_rss = rss()
            self._block(start, min(start + block, first + count))
            if len(self.result.findings) >= FINDINGS_MAX:
                break
        self.result.seconds = time.monotonic() - begun
        self.result.cpu_s = time.process_time() - cpu_begun
        self.result.rss_growth = max(0, rss() - warm_rss) if warm_rss else 0
        if self.result.rss_growth > RSS_GROWTH_MAX:
            text = f"memory grew by {self.result.rss_growth >> 20} MiB in {count} cases"
            self.result.findings.append(Finding(self.target.name, self._seed, first, [], text))
        return self.result

    def _block(self, start: int, end: int) -> None:
        target, outcomes, result = self.target, self.result.outcomes, self.result
        cpu = time.thread_time_ns
        done: list[bytes] = []
        index = start
        try:
            with _alarm(BLOCK_S):
                target.fresh()
                for index in range(start, end):
                    case = self._cases(index)
                    done.append(case)
                    before = cpu()
                    outcome = target.take(case)
                    took_ms = (cpu() - before) / 1e6
                    outcomes[outcome] += 1
                    result.cases += 1
                    if took_ms > result.slowest_ms:
                        result.slowest_ms = took_ms
                        assert took_ms < CASE_CPU_S * 1000, f"a case takes {took_ms:.0f} ms"
                target.probe()
        except (Exception, Hang, InvariantBroken):
            self._found(index, done, traceback.format_exc())

    def _found(self, index: int, done: list[bytes], text: str) -> None:
        self.result.outcomes["finding"] += 1
        found = Finding(self.target.name, self._seed, index, done, text[-4000:])
        if found.cause in {known.cause for known in self.result.findings}:
            return
        if done and shows([done[-1]], self.target) is not None:
            found.cases = [done[-1]]
        self.result.findings.append(found)


def mutations(target: Target, seed: int) -> Cases:
    """Give the mutated cases of a target by their indices."""
    mutator = Mutator(target.name, target.corpus(), target.form, target.words)
    return lambda index: mutator.case(seed, index)


def shows(cases: list[bytes], target: Target) -> str | None:
    """Run cases in a new world; give what comes out that should not, None where nothing does."""
    try:
        with _alarm(BLOCK_S):
            target.fresh()
            for case in cases:
                target.take(case)
            target.probe()
    except (Exception, Hang, InvariantBroken):
        return traceback.format_exc()
    return None


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def late(_number: int, _frame: FrameType | None) -> None:
        raise Hang(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    outer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *outer)  # pytest's own time-out goes on
        signal.signal(signal.SIGALRM, before)


def rss() -> int:
    """Give the resident memory of this process, in bytes; without what is free in it.

    malloc keeps what was freed for the next one who asks, after one large message 45 MB of it.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


# -- regressions ----------------------------------------------------------------------------------


def keep(found: Finding, folder: Path = REGRESSIONS) -> Path:
    """Store a finding's cases where the default suite runs them from now on."""
    packed: bytes = msgpack.packb(found.cases)
    name = f"{found.target}.{blake2b(packed, digest_size=4).hexdigest()}.case"
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(packed)
    return path


def kept(folder: Path = REGRESSIONS) -> list[Path]:
    """Give the regressions that are stored."""
    return sorted(folder.glob("*.case"))


def regression(path: Path) -> tuple[str, list[bytes]]:
    """Read a stored regression: the target's name, and its cases."""
    name = path.name.split(".")[0]
    assert name in TARGETS, f"{path.name} is of no target"
    return name, msgpack.unpackb(path.read_bytes())
