"""Deaths and errors in system calls: a spread. Every one: python -m tests.chaos.syscalls.

strace comes with the set-up (`.ci/run`); without it these tests fail and say so.
"""

from contextlib import closing

import apsw
import pytest

from tests.chaos.injected import KILL, fault_of, require
from tests.chaos.syscalls import QUICK, faults_of, series, traced
from tests.chaos.traced_shard import TracedShard
from tests.chaos.traced_worker import TracedWorker

NOT_REACHED_MAX = 2  # a batch more or less moves a K past the end of a life


def test_a_shard_that_dies_in_any_system_call_keeps_what_it_acknowledged() -> None:
    """PROOF A1, D1, D10: kills and failed writes one after another, recoveries among them."""
    require()
    faults = faults_of(QUICK["shard"])
    with traced("shard") as shard:
        assert isinstance(shard, TracedShard)
        seen = series(shard, faults)
        assert seen.violations == []
        assert len(seen.struck) >= len(faults) - NOT_REACHED_MAX
        assert sum(fault.kind == KILL for fault in seen.struck) >= len(faults) - 4
        shard.forget_an_effect()
        assert list(shard.books())


def test_a_worker_that_dies_in_any_system_call_charges_once() -> None:
    """PROOF E4: whatever it had done, what it answers later is what is in its database, once."""
    require()
    faults = faults_of(QUICK["payment"])
    with traced("payment") as worker:
        assert isinstance(worker, TracedWorker)
        seen = series(worker, faults)
        assert seen.violations == []
        assert len(seen.struck) >= len(faults) - NOT_REACHED_MAX
        with closing(apsw.Connection(str(worker.database))) as db:
            db.execute("UPDATE payment SET refunded = amount - refunded WHERE id = 7")
        assert list(worker.books())


@pytest.mark.parametrize("text", ["kill:pwrite64:0", "EPERM:pwrite64:1", "kill:write:1", "kill"])
def test_a_fault_that_cannot_be_is_refused(text: str) -> None:
    """A misspelled one would pass as never reached."""
    with pytest.raises(ValueError, match=r".+"):
        faults_of(text)


@pytest.mark.parametrize(
    "text", ["", "kill", "a:b:c:d", "kill:fsync:x", "kill:fsync:0", "kill:x:1"]
)
def test_a_fault_to_be_done_again_that_cannot_be_is_told_so(text: str) -> None:
    """In words, not as Python says that something does not unpack."""
    with pytest.raises(ValueError, match=r"no such fault: .* one is KIND"):
        fault_of(text)
