"""Real worker processes, a twin shard: HELLO, credit, take-over, crash, stop, bad frames."""

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from sagacity import wire
from sagacity.messages import ChargePayment, Line, RefundPayment, ReserveInventory
from sagacity.wire import BooksAsked, Commands, Rejected, Witness
from tests.integration.twin_shard import PATIENCE_S, Place, command, place


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Place]:
    with place(tmp_path / "data") as made:
        yield made


def charge(count: int, user: str = "u42", attempt: int = 1, shard: int = 0) -> wire.Command:
    body = ChargePayment(f"checkout{count}-{shard}", 2, user, 500)
    return command(count, 2, body, attempt=attempt, shard=shard)


def ended(process: subprocess.Popen[bytes]) -> int:
    return process.wait(PATIENCE_S)


def test_a_worker_says_hello_beats_serves_and_stops(here: Place) -> None:
    """The whole life of a worker, and that SIGTERM ends it with 0."""
    shard = here.shards[0]
    process = here.start("payment")
    peer = shard.worker()
    hello = shard.hellos[0][1]
    assert (hello.protocol, hello.cluster_id) == (wire.PROTOCOL, here.cluster.cluster_id)
    assert (hello.service, hello.capacity, hello.witnesses) == ("payment", 256, [])
    answer = shard.ask(peer, charge(1))[0]
    assert answer.outcome == wire.OK
    assert wire.unpack(answer.body)["transaction_id"] == "txn_12345"
    shard.until(lambda seen: len(seen.beats) >= 2, "beats")
    assert {beat.capacity for _, beat in shard.beats} == {256}
    process.send_signal(signal.SIGTERM)
    assert ended(process) == 0
    states = [report.state for report in here.reports]
    here.until_reported(process.pid, "up")
    assert "standby" not in states


def test_a_restarted_shard_gets_hello_again_with_what_the_service_saw(here: Place) -> None:
    """The witness comes back, so that a journal that was set back is found out."""
    shard = here.shards[0]
    here.start("payment")
    shard.ask(shard.worker(), charge(7))
    shard.close()
    here.shards[0] = shard = here.shard(0)
    peer = shard.worker()
    seen = shard.hellos[0][1].witnesses
    assert seen == [Witness(here.cluster.cluster_id, 0, 1, 1, bytes(16), charge(7).number)]
    assert shard.ask(peer, charge(7, attempt=2))[0].outcome == wire.OK


def test_a_worker_that_is_unknown_says_hello_again(here: Place) -> None:
    """Its first may have come broken; nobody else would make it known."""
    shard = here.shards[0]
    here.start("payment")
    peer = shard.worker()
    incarnation = shard.hellos[0][1].incarnation
    shard.send_frame(peer, wire.encode(wire.Unknown(incarnation)))
    assert shard.worker(seen_before=1) == peer
    assert shard.ask(peer, charge(1))[0].outcome == wire.OK


def test_a_batch_of_two_shards_is_answered_to_each_in_one_frame(tmp_path: Path) -> None:
    """Each shard hears of its own sagas alone."""
    with place(tmp_path / "data", shards=2) as here:
        here.start("payment")
        peers = [shard.worker() for shard in here.shards]
        for index, shard in enumerate(here.shards):
            shard.send(peers[index], *[charge(count, shard=index) for count in range(1, 101)])
        for index, shard in enumerate(here.shards):
            shard.until(lambda seen: len(seen.answers) == 100, "answers")
            assert {answer.number & 1023 for answer in shard.answers} == {index}
            assert shard.answer_frames == 1


def test_a_standby_takes_over_at_once_when_the_working_one_is_killed(here: Place) -> None:
    """DESIGN 5: within 100 ms; and the two never work at the same time."""
    shard = here.shards[0]
    first = here.start("payment", 0)
    peer = shard.worker()
    second = here.start("payment", 1)
    here.until_reported(second.pid, "standby")
    shard.ask(peer, charge(1))
    assert len(shard.hellos) == 1
    first.kill()
    killed = time.monotonic()
    peer = shard.worker(seen_before=1)
    taken = time.monotonic() - killed
    assert taken < 1.0  # the promise is 0.1 s; a busy machine may be late
    assert wire.unpack(shard.ask(peer, charge(1, attempt=2))[0].body)["payment_id"] == "p1"
    assert wire.unpack(shard.ask(peer, charge(2))[0].body)["payment_id"] == "p2"
    here.until_reported(second.pid, "up")


def test_a_standby_ends_when_told_to(here: Place) -> None:
    """Waiting for a lock is no reason to be killed."""
    here.start("payment", 0)
    here.shards[0].worker()
    standby = here.start("payment", 1)
    here.until_reported(standby.pid, "standby")
    standby.send_signal(signal.SIGTERM)
    assert ended(standby) == 0


def test_u_crash_kills_its_worker_once_and_leaves_its_neighbours_whole(here: Place) -> None:
    """The kill is real; the next worker finds the mark and charges."""
    shard = here.shards[0]
    first = here.start("payment")
    here_now = shard.worker()
    batch = [charge(1), charge(2, "u_crash"), charge(3)]
    shard.send(here_now, *batch)
    assert ended(first) == -signal.SIGKILL
    here.start("payment")
    answers = shard.ask(shard.worker(seen_before=1), *batch)
    assert [answer.outcome for answer in answers] == [wire.OK] * 3
    rows = apsw.Connection(str(here.directory.service("payment"))).execute(
        "SELECT user_id, amount FROM payment"
    )
    assert sorted(rows) == [("u42", 500), ("u42", 500), ("u_crash", 500)]


def test_what_was_answered_survives_kill_and_what_was_not_is_done_once(here: Place) -> None:
    """E4: killed at any moment of a stream of batches; each charge is there once."""
    shard = here.shards[0]
    first = here.start("payment")
    peer = shard.worker()
    for turn in range(40):
        shard.send(peer, *[charge(turn * 20 + at) for at in range(1, 21)])
    shard.until(lambda seen: len(seen.answers) >= 100, "answers")
    first.kill()
    ended(first)
    shard.receive()
    before = {answer.number: answer.body for answer in shard.answers}
    here.start("payment")
    peer = shard.worker(seen_before=1)
    shard.answers.clear()
    for turn in range(40):
        shard.send(peer, *[charge(turn * 20 + at, attempt=2) for at in range(1, 21)])
    shard.until(lambda seen: len(seen.answers) == 800, "answers")
    after = {answer.number: answer.body for answer in shard.answers}
    assert {number: after[number] for number in before} == before
    rows = apsw.Connection(str(here.directory.service("payment"))).execute(
        "SELECT count(*), count(DISTINCT number) FROM payment"
    )
    assert list(rows) == [(800, 800)]


def begun_of(command: wire.Command) -> wire.Begun:
    return wire.Begun(command.number, command.step, command.direction, command.attempt)


def proceed(command: wire.Command, *, wanted: bool = True) -> bytes:
    fields = (command.number, command.step, command.direction, command.attempt)
    return wire.encode(wire.Proceed(*fields, wanted))


def test_a_suspect_runs_only_after_its_shard_has_noted_that_it_begins(here: Place) -> None:
    """SPEC 3: so a death between is known for certain, and about nothing that runs beside it."""
    shard = here.shards[0]
    here.start("payment")
    peer = shard.worker()
    shard.send(peer, charge(1), alone=True)
    shard.until(lambda seen: seen.begun, "a beginning")
    shard.send(peer, charge(2))
    shard.send_frame(peer, proceed(charge(7)))  # of another: no word for this one
    payments = apsw.Connection(str(here.directory.service("payment")))
    assert list(payments.execute("SELECT count(*) FROM payment")) == [(0,)]
    shard.send_frame(peer, proceed(charge(1)))
    shard.until(lambda seen: len(seen.answers) == 2, "answers")
    assert [answer.number >> 10 for answer in shard.answers] == [1, 2]
    assert {answer.outcome for answer in shard.answers} == {wire.OK}


def test_suspects_run_one_after_the_other_each_in_a_transaction_of_its_own(here: Place) -> None:
    """B16: what comes meanwhile is done between them; what is not wanted is dropped."""
    shard = here.shards[0]
    here.start("payment")
    peer = shard.worker()
    suspects = [charge(1), charge(2, "u_flaky_3"), charge(3), charge(4)]
    shard.send(peer, *suspects, alone=True)
    for at, suspect in enumerate(suspects):
        shard.until(lambda seen: seen.begun, "a beginning")
        assert shard.begun.pop() == begun_of(suspect)
        if at == 1:
            shard.send(peer, charge(9))
        shard.send_frame(peer, proceed(suspect, wanted=at != 2))
    shard.until(lambda seen: len(seen.answers) == 4, "answers")
    done = [(answer.number >> 10, answer.outcome) for answer in shard.answers]
    assert sorted(done) == [(1, wire.OK), (2, wire.FAILED), (4, wire.OK), (9, wire.OK)]
    rows = apsw.Connection(str(here.directory.service("payment"))).execute(
        "SELECT number FROM payment"
    )
    assert sorted(number >> 10 for (number,) in rows) == [1, 4, 9]


def test_a_shard_that_gives_no_word_gets_its_suspect_back_and_holds_up_nobody(
    tmp_path: Path,
) -> None:
    """It hangs, or syncs for long: other shards' commands go on after half a second."""
    with place(tmp_path / "data", shards=2) as here:
        here.start("payment")
        peers = [shard.worker() for shard in here.shards]
        silent, other = here.shards
        silent.send(peers[0], charge(1), alone=True)
        silent.until(lambda seen: seen.begun, "a beginning")
        other.send(peers[1], charge(2, shard=1))
        other.until(lambda seen: seen.answers, "an answer")
        assert other.answers[0].outcome == wire.OK
        silent.until(lambda seen: seen.answers, "an answer")
        assert silent.answers[0].outcome == wire.REFUSED_UNAVAILABLE
        silent.send_frame(peers[0], proceed(charge(1)))  # too late: it is not run
        assert other.ask(peers[1], charge(3, shard=1))[0].outcome == wire.OK
        assert len(silent.answers) == 1


def test_a_worker_that_is_told_to_stop_gives_its_suspect_back(here: Place) -> None:
    """Or its end in order would be held against the command."""
    shard = here.shards[0]
    process = here.start("payment")
    shard.send(shard.worker(), charge(1), alone=True)
    shard.until(lambda seen: seen.begun, "a beginning")
    process.send_signal(signal.SIGTERM)
    shard.until(lambda seen: seen.answers, "an answer")
    assert shard.answers[0].outcome == wire.REFUSED_UNAVAILABLE
    assert ended(process) == 0


def test_a_suspect_of_a_connection_that_is_gone_is_dropped(here: Place) -> None:
    """Its shard delivers again; it has forgotten what had begun."""
    shard = here.shards[0]
    here.start("payment")
    shard.send(shard.worker(), charge(1), charge(2), alone=True)
    shard.until(lambda seen: seen.begun, "a beginning")
    shard.close()
    here.shards[0] = shard = here.shard(0)
    peer = shard.worker()
    assert shard.ask(peer, charge(3))[0].outcome == wire.OK
    shard.send(peer, charge(1, attempt=2), alone=True)
    shard.until(lambda seen: seen.begun, "a beginning")
    assert shard.begun == [begun_of(charge(1, attempt=2))]


def test_slow_and_silent_users_hold_up_nobody_else(here: Place) -> None:
    """SPEC 1: u_timeout is charged and never told so, u_slow_2s two seconds later."""
    shard = here.shards[0]
    here.start("payment")
    peer = shard.worker()
    began = time.monotonic()
    shard.send(peer, charge(1, "u_slow_2s"), charge(2, "u_timeout"), charge(3))
    shard.until(lambda seen: len(seen.answers) == 1, "the answer for u42")
    assert time.monotonic() - began < 1.5
    assert shard.answers[0].number == charge(3).number
    refund = RefundPayment("checkout2-0", 2, True)
    again = shard.ask(peer, charge(2, "u_timeout", attempt=2), command(2, 2, refund))
    assert [answer.direction for answer in again[:1]] == [1]
    shard.until(lambda seen: len(seen.answers) == 3, "the answer for u_slow_2s")
    assert shard.answers[2].number == charge(1).number
    assert time.monotonic() - began >= 2.0


def test_a_locked_database_is_no_outcome_and_the_worker_says_that_it_lives(here: Place) -> None:
    """Refused as unavailable, credit taken back, and given again when the lock is free."""
    shard = here.shards[0]
    here.start("payment")
    peer = shard.worker()
    shard.ask(peer, charge(1))
    other = apsw.Connection(str(here.directory.service("payment")))
    other.execute("BEGIN IMMEDIATE")
    beats = len(shard.beats)
    answer = shard.ask(peer, charge(2))[0]  # after 2 s of waiting for the lock
    assert answer.outcome == wire.REFUSED_UNAVAILABLE
    assert len(shard.beats) > beats  # one each second, also while it waits
    shard.until(lambda seen: seen.beats[-1][1].capacity == 0, "a beat without capacity")
    assert shard.ask(peer, charge(2))[0].outcome == wire.REFUSED_UNAVAILABLE
    other.execute("ROLLBACK")
    other.close()
    shard.until(lambda seen: seen.beats[-1][1].capacity == 256, "a beat with capacity")
    assert shard.ask(peer, charge(2))[0].outcome == wire.OK
    shard.close()
    here.shards[0] = shard = here.shard(0)
    assert shard.ask(shard.worker(), charge(2))[0].outcome == wire.OK  # its wait is over for good


def test_garbage_is_dropped_and_counted_and_the_worker_lives(here: Place) -> None:
    """Truncated, not msgpack, another cluster's, steps that there are none of."""
    shard = here.shards[0]
    process = here.start("payment")
    peer = shard.worker()
    good = wire.encode(Commands(Witness(here.cluster.cluster_id, 0, 1, 1, b"", 1), [charge(1)]))
    foreign = wire.encode(Commands(Witness("f" * 32, 0, 9, 9, b"", 1), [charge(1)]))
    for frame in (b"", b"\xc1", good[:-1], b"\x91" * 3000, foreign):
        shard.send_frame(peer, frame)
    odd = wire.Command("s", 99, 7, 1, 5, 1, {}, b"")
    assert [answer.outcome for answer in shard.ask(peer, odd, charge(2))] == [wire.FAILED, wire.OK]
    port = here.until_reported(process.pid, "up").metrics_port
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        text = page.read().decode()
    assert 'saga_faults_total{what="frame"} 5.0' in text
    served = 'saga_step_attempts_total{direction="action",outcome="ok",step="ChargePayment"} 1.0'
    assert served in text


def test_books_are_served_beside_commands(here: Place) -> None:
    """A page, and an error for what is not there."""
    shard = here.shards[0]
    here.start("inventory")
    peer = shard.worker()
    shard.ask(peer, command(1, 1, ReserveInventory("c", 1, [Line("abc123", 2)])))
    asked = {"book": "inventory", "table": "reservations", "after": 0, "limit": 10}
    shard.send_frame(peer, wire.encode(BooksAsked(5, wire.pack(asked))))
    shard.send_frame(peer, wire.encode(BooksAsked(6, wire.pack({**asked, "table": "x"}))))
    shard.until(lambda seen: len(seen.pages) == 2, "pages")
    assert [(page.token, page.code) for page in shard.pages] == [(5, None), (6, 12)]
    rows = wire.unpack(shard.pages[0].body)["rows"]
    assert rows == [[1, 1 << 10, 1, 0, "abc123", 2, False]]
    assert wire.unpack(shard.pages[1].body)["code"] == 12


def test_a_rejected_worker_says_why_and_ends(here: Place) -> None:
    """It would never be given anything; its exit code says that a restart is no use."""
    shard = here.shards[0]
    process = here.start("payment")
    shard.send_frame(shard.worker(), wire.encode(Rejected("another protocol")))
    assert ended(process) == 2
    assert process.stderr is not None
    assert b"another protocol" in process.stderr.read()


@pytest.mark.parametrize("more", [("--service", "nobody"), ("--config", "/nonexistent.toml")])
def test_a_worker_that_cannot_start_says_why(here: Place, more: tuple[str, str]) -> None:
    """Exit code 2 and one sentence, no traceback."""
    done = subprocess.run(
        [*here.argv("payment"), *more], check=False, capture_output=True, timeout=PATIENCE_S
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"services: ")
    assert b"Traceback" not in done.stderr


def test_a_worker_dies_with_its_parent(here: Place) -> None:
    """A pid that is not its parent's: it ends at once."""
    argv = [*here.argv("payment"), "--parent", str(os.getpid() + 1)]
    assert subprocess.run(argv, check=False, timeout=PATIENCE_S).returncode == 71
