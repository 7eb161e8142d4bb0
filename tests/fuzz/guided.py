"""Fuzzing guided by coverage: atheris (libFuzzer), one process a target.

Needs the extra `fuzz`; nothing else of the tests does. Cases are those of libFuzzer, not of our
seed: what is found is stored, and so shown again, by its bytes alone.
"""

import re
import resource
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import msgpack

from tests.fuzz.run import Finding, Result, regression
from tests.fuzz.targets import TARGETS

SECONDS_MAX = 1_200  # of one target
_INSTRUMENTED = ["sagacity", "shard", "services", "cluster", "config", "router"]


def guided(names: list[str], cases: int, seed: int) -> list[Result]:
    """Run targets one after the other, each in a process of its own."""
    try:
        import atheris  # noqa: F401 - whether it is there
    except ImportError:
        sys.exit("atheris is not there: pip install -e '.[dev,fuzz]'")
    return [_guided(name, cases // len(names), seed) for name in names]


def _guided(name: str, cases: int, seed: int) -> Result:
    result = Result(name)
    with tempfile.TemporaryDirectory(prefix="sagacity-guided-") as folder:
        here = Path(folder)
        (here / "corpus").mkdir()
        target = TARGETS[name]()
        for at, case in enumerate(target.corpus()):
            (here / "corpus" / str(at)).write_bytes(case)
        target.close()
        command = [sys.executable, "-m", "tests.fuzz.guided", name, str(cases), str(seed), folder]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
        )
        result.cpu_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        _read(result, here, done.stderr, seed, done.returncode)
    return result


def _read(result: Result, here: Path, said: str, seed: int, code: int) -> None:
    """Take what a child has left: outcomes, and the cases that broke something."""
    outcomes = here / "outcomes"
    if outcomes.exists():
        result.outcomes = Counter(msgpack.unpackb(outcomes.read_bytes()))
    result.cases = result.outcomes.total()
    found = re.search(r"DONE.*cov: (\d+)", said)
    if found:
        print(f"{result.target}: {found[1]} edges, {result.cases} cases", file=sys.stderr)
    for kept in here.glob("*.case"):
        name, cases = regression(kept)
        text = kept.with_suffix(".txt").read_text()
        result.findings.append(Finding(name, seed, 0, cases, text))
    if code and not result.findings:
        result.findings.append(Finding(result.target, seed, 0, [], said[-2000:]))


def _child(name: str, cases: int, seed: int, folder: Path) -> None:
    """Fuzz one target in this process; libFuzzer ends it."""
    import atheris

    from sagacity.errors import InvariantBroken

    target = TARGETS[name]()
    outcomes: Counter[str] = Counter()
    block: list[bytes] = []

    def take(case: bytes) -> None:
        if not block:
            target.fresh()
        block.append(case)
        try:
            outcomes[target.take(case)] += 1
            if len(block) == target.block:
                target.probe()
                block.clear()
        except (Exception, InvariantBroken):
            stem = folder / f"{name}.{len(outcomes)}-{outcomes.total()}.case"
            stem.write_bytes(msgpack.packb(block))
            stem.with_suffix(".txt").write_text(traceback.format_exc())
            block.clear()
        if outcomes.total() % 1_000 == 0 or outcomes.total() >= cases - 1:
            (folder / "outcomes").write_bytes(msgpack.packb(dict(outcomes)))

    corpus = str(folder / "corpus")
    words = [sys.argv[0], f"-runs={cases}", f"-seed={seed}", "-max_len=4096", corpus]
    atheris.Setup(words, take)
    atheris.Fuzz()


if __name__ == "__main__":
    import atheris

    for _name in [each for each in sys.modules if each.split(".")[0] in _INSTRUMENTED]:
        del sys.modules[_name]  # imported again, instrumented
    for _name in [each for each in sys.modules if each.startswith("tests.fuzz.")]:
        if _name != "tests.fuzz.guided":
            del sys.modules[_name]
    with atheris.instrument_imports(include=_INSTRUMENTED, enable_loader_override=False):
        from tests.fuzz.targets import TARGETS

    _child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
