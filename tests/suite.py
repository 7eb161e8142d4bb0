"""The whole suite in two processes: what waits for real processes, and what computes.

    python -m tests.suite

Side by side they take little more time than the longer one. What the first prints is seen as it
comes, what the second prints behind it. Exit code 1 where a test of either failed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
WAITING: Final = "tests/integration"
# Of these what computes: with it the second process has as much to do as the first.
COMPUTING: Final = ("test_bench_acts.py", "test_syscall_kills.py", "test_wheel.py")


def main() -> int:
    """Run both halves; give the exit code."""
    pytest = [sys.executable, "-m", "pytest"]
    files = sorted(each.name for each in (ROOT / WAITING).glob("test_*.py"))
    others = [f"--ignore={WAITING}/{name}" for name in files if name not in COMPUTING]
    theirs = [f"--ignore={WAITING}/{name}" for name in COMPUTING]
    with tempfile.TemporaryFile("w+") as told:
        computing = subprocess.Popen(
            [*pytest, *others], cwd=ROOT, stdout=told, stderr=subprocess.STDOUT
        )
        try:
            waiting = subprocess.run([*pytest, WAITING, *theirs], cwd=ROOT, check=False).returncode
            code = computing.wait()
        except BaseException:
            computing.terminate()
            computing.wait()
            raise
        told.seek(0)
        print("what computes:", told.read(), sep="\n", flush=True)
    return int(bool(waiting or code))


if __name__ == "__main__":
    sys.exit(main())
