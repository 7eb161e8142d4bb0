"""The real shard process between twins of its router, its workers and its supervisor."""

import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sagacity import sockets, wire
from sagacity.ids import count_of
from sagacity.slots import slot_of
from sagacity.wire import BOOKS, CANCEL, DECLINED, OK, SHOW, SUBMIT, Command, Report, answer_to
from tests.integration.shard_world import ShardWorld, TwinWorker, opened

QUICK = {"SAGACITY_SUPERVISOR__HEARTBEAT_MS": "50", "SAGACITY_SUPERVISOR__DRAIN_MS": "300"}


@pytest.fixture
def world() -> Iterator[ShardWorld]:
    with opened() as made:
        yield made


def effects_of(world: ShardWorld) -> dict[str, int]:
    """Give how many effects each service has, compensations included."""
    return {name: len(worker.effects) for name, worker in world.workers.items()}


def commands_seen(world: ShardWorld) -> int:
    """Give how many commands all workers have been given."""
    return sum(len(worker.seen) for worker in world.workers.values())


def has_seen(world: ShardWorld, commands: int) -> bool:
    """Say whether workers have been given so many commands."""
    return commands_seen(world) >= commands


def declines_every_third(command: Command) -> int:
    """Decline the charge of every third saga; compensations succeed."""
    return DECLINED if not command.direction and count_of(command.number) % 3 == 0 else OK


def events_of(world: ShardWorld, process: subprocess.Popen[bytes]) -> list[str]:
    """Give the names of what a process has logged."""
    return [line["event"] for line in world.log(process)]


# -- serving ---------------------------------------------------------------------------------------


def test_a_checkout_runs_end_to_end(world: ShardWorld) -> None:
    """One line through the process: three commands, one answer, and what it tells of itself."""
    process = world.started()
    code, body = world.answer(world.start_saga("checkout42"))
    assert (code, body["type"], body["saga_id"]) == (None, "checkout_complete", "checkout42")
    assert body["order_id"] == f"o{1024 + slot_of('checkout42')}"
    assert effects_of(world) == {"inventory": 1, "payment": 1, "shipping": 1}
    _, told = world.answer(world.ask(SHOW, "checkout42"))
    assert told["history"][-1]["body"] == body
    _, books = world.answer(world.ask(BOOKS, "0", {"book": "sagas"}))
    assert (books["running"], books["finished"]) == (0, 1)
    assert world.answer(world.start_saga("checkout42")) == (None, body)
    assert events_of(world, process) == ["shard_serves"]


def test_a_declined_charge_is_compensated(world: ShardWorld) -> None:
    """The reservation is released, nothing was charged."""
    world.workers["payment"].outcome = lambda _: DECLINED
    world.started()
    _, body = world.answer(world.start_saga("checkout43"))
    assert body["reason"] == "Payment declined: DECLINED"
    assert effects_of(world) == {"inventory": 2, "payment": 1, "shipping": 0}


def test_its_reports_tell_how_it_is(world: ShardWorld) -> None:
    """First `starting`, then `up` with the numbers that `status` shows, each heartbeat."""
    process = world.started()
    for index in range(5):
        world.start_saga(f"s{index}")
    world.answers()
    found: list[Report] = []

    def told() -> bool:
        newest = world.report(process.pid, "up")
        found[:] = [newest] if newest and newest.facts["completed"] == 5 else []
        return bool(found)

    world.until(told, "report of five completed sagas")
    assert [report.state for report in world.reports][:2] == ["starting", "up"]
    (report,) = found
    assert (report.role, report.index) == ("shard", 0)
    facts = {name: report.facts[name] for name in ("epoch", "in_flight", "started", "aborted")}
    assert facts == {"epoch": 1, "in_flight": 0, "started": 5, "aborted": 0}
    dropped = [report.facts[name] for name in ("strangers", "commands_unsent", "replies_unsent")]
    assert dropped == [0, 0, 0]


def test_its_metrics_can_be_scraped(world: ShardWorld) -> None:
    """In Prometheus' own words, read by its own parser."""
    world.workers["payment"].outcome = declines_every_third
    process = world.started()
    for index in range(6):
        world.start_saga(f"s{index}")
    world.answers()
    report = world.report(process.pid, "up")
    assert report is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{report.metrics_port}/metrics") as answered:
        families = {
            each.name: each for each in text_string_to_metric_families(answered.read().decode())
        }

    def value(family: str, **labels: str) -> float:
        return sum(
            sample.value
            for sample in families[family].samples
            if labels.items() <= sample.labels.items() and not sample.name.endswith("_created")
        )

    assert value("saga_started") == 6
    assert value("saga_finished", outcome="completed") == 4
    assert value("saga_finished", outcome="aborted") == 2
    assert value("saga_compensations", step="ReserveInventory") == 2
    assert value("saga_step_attempts", step="ChargePayment", outcome="declined") == 2


def test_garbage_from_anyone_does_not_end_it(world: ShardWorld) -> None:
    """G5: on both its sockets, in between what makes sense."""
    process = world.started()
    frames = [b"", b"\xc1", b"garbage" * 1000, b"\x91" * 5000, wire.encode([[1, 2]]), b"\x00" * 99]
    strangers = [
        sockets.dealer(world.ctx, address) for address in (world.run.shard(0), world.run.workers(0))
    ]
    for _ in range(20):
        for frame in frames:
            world.send_frame(frame)
            for stranger in strangers:
                sockets.send(stranger, frame)
            for worker in world.workers.values():
                sockets.send(worker.socket, frame)
    strangers[0].send_multipart([b"part"] * 1000)
    for index, kind in enumerate((0, 99, wire.STATUS, 2**60)):
        assert world.answer(world.ask(kind, f"s{index}"))[0] == 10
    assert world.answer(world.start_saga("after"))[1]["status"] == "COMPLETED"
    assert process.poll() is None
    for stranger in strangers:
        stranger.close()


def test_a_start_of_another_shard_s_slot_is_not_taken() -> None:
    """Two shards that both took it would be two sagas under one id."""
    with opened(shards=2) as world:
        world.started()
        ours = next(f"s{n}" for n in range(99) if slot_of(f"s{n}") % 2 == 0)
        theirs = next(f"s{n}" for n in range(99) if slot_of(f"s{n}") % 2 == 1)
        assert world.answer(world.start_saga(theirs))[0] == 11
        assert world.answer(world.start_saga(ours))[0] is None


# -- kill -9 ---------------------------------------------------------------------------------------


def test_killed_at_any_moment_it_resumes_and_nothing_acknowledged_is_lost(
    world: ShardWorld,
) -> None:
    """E4, E6: acknowledged sagas end, with one effect a command, and answers never change."""
    world.workers["payment"].outcome = declines_every_third
    process = world.started()
    accepted: list[int] = []
    for moment in (1, 4, 17, 26, 33):
        enough = commands_seen(world) + moment  # twelve sagas have thirty-six at least
        for index in range(12):
            accepted.append(world.start_saga(f"s{moment}-{index}", SUBMIT))
            world.start_saga(f"s{moment}-{index}")
        world.until(partial(has_seen, world, enough), "commands")
        world.kill(process)
        process = world.started()
    first = world.answers()
    assert [code for code, _ in first] == [None] * 120
    final = {body["saga_id"]: body for _, body in first if body["type"] != "checkout_accepted"}
    assert len(final) == 60
    aborted = [body for body in final.values() if body["status"] == "ABORTED"]
    assert len(aborted) == 20
    assert effects_of(world) == {"inventory": 60 + 20, "payment": 60, "shipping": 40}
    report = world.report(process.pid, "up")
    assert report is not None
    assert report.facts["epoch"] == 6
    again = [world.start_saga(saga_id) for saga_id in final]
    assert [world.answer(number)[1] for number in again] == list(final.values())
    assert effects_of(world) == {"inventory": 80, "payment": 60, "shipping": 40}


def test_a_saga_whose_answer_was_on_its_way_goes_on_in_the_next_epoch(world: ShardWorld) -> None:
    """The command is sent again, as it was; the answer that was lost counts when it is repeated."""
    payment = world.workers["payment"]
    payment.holds = True
    process = world.started()
    request = world.start_saga("s1")
    world.until(lambda: payment.held, "a command to pay")
    process.kill()
    payment.release()  # into a connection that nobody reads any more
    world.kill(process)
    payment.holds = False
    world.started()
    assert world.answer(request)[1]["status"] == "COMPLETED"
    old, new = payment.seen
    assert (old.epoch, new.epoch) == (1, 2)
    assert (old.number, old.step, old.attempt, old.body) == (
        new.number,
        new.step,
        new.attempt,
        new.body,
    )
    assert len(payment.effects) == 1


def test_a_worker_that_ends_is_replaced_at_once(world: ShardWorld) -> None:
    """Its command goes to the next of its service, long before the attempt's time is up."""
    payment = world.workers["payment"]
    payment.holds = True
    world.started()
    request = world.start_saga("s1")
    world.until(lambda: payment.held, "a command to pay")
    began = time.monotonic()
    world.lose_worker("payment")
    second = TwinWorker(world.ctx, world.run.workers(0), world.cluster.cluster_id, "payment")
    world.add_worker("payment2", second)
    assert world.answer(request)[1]["status"] == "COMPLETED"
    assert time.monotonic() - began < 2
    assert [command.attempt for command in second.seen] == [1]


# -- its end ---------------------------------------------------------------------------------------


def test_sigterm_finishes_what_is_in_flight_and_takes_nothing_new(world: ShardWorld) -> None:
    """Repeats, reads and cancels of what is known are answered until the end."""
    payment = world.workers["payment"]
    payment.holds = True
    process = world.started()
    running = [world.start_saga(f"s{index}") for index in range(3)]
    world.until(lambda: len(payment.held) == 3, "three commands to pay")
    process.send_signal(signal.SIGTERM)
    refused: dict[str, Any] = {}

    def is_refused() -> bool:
        code, body = world.answer(world.start_saga(f"new{len(world.replies)}", SUBMIT))
        refused.update(body)
        return code == 11

    world.until(is_refused, "refusal")
    assert refused["text"] == "the shard is draining"
    assert world.answer(world.start_saga("s0", SUBMIT))[1]["type"] == "checkout_accepted"
    assert world.answer(world.ask(SHOW, "s1"))[1]["status"] == "RUNNING"
    cancel = {"type": "cancel", "saga_id": "s2", "reason": "changed my mind"}
    assert world.answer(world.ask(CANCEL, "s2", cancel))[1]["type"] == "cancel_ok"
    process.send_signal(signal.SIGTERM)
    payment.holds = False
    payment.release()
    assert world.ended(process) == 0
    statuses = [wire.unpack(world.replies[number].body)["status"] for number in running]
    assert statuses == ["COMPLETED", "COMPLETED", "ABORTED"]
    assert events_of(world, process) == ["shard_serves", "shard_drained"]
    files = sorted(file.name for file in world.data.shard(0).iterdir())
    assert files == ["journal.db", "lock"], "a clean end leaves one file"


def test_what_does_not_finish_in_time_goes_on_at_the_next_start(world: ShardWorld) -> None:
    """A drain is bounded; the saga is not lost, and not turned back."""
    payment = world.workers["payment"]
    payment.holds = True
    process = world.started(env=QUICK)
    request = world.start_saga("s1")
    world.until(lambda: payment.held, "a command to pay")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert world.ended(process) == 0
    assert 0.25 < time.monotonic() - began < 5
    assert world.log(process)[-1]["in_flight"] == 1
    payment.holds = False
    world.until(lambda: not world.connected, "the end of the connection")
    world.started()
    assert world.answer(request)[1]["status"] == "COMPLETED"


def test_an_idle_shard_ends_at_once_when_it_is_told_to(world: ShardWorld) -> None:
    """It does not wait for the end of a poll, nor of a drain."""
    process = world.started()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert world.ended(process) == 0
    assert time.monotonic() - began < 2


def test_a_second_shard_on_one_directory_is_refused(world: ShardWorld) -> None:
    """D12: exit 4, the first one's pid in the text, and the first one does not notice."""
    process = world.started()
    second = world.start()
    assert world.ended(second) == 4
    (line,) = world.log(second)
    assert line["event"] == "shard_refused"
    assert str(process.pid) in line["text"]
    assert world.answer(world.start_saga("s1"))[1]["status"] == "COMPLETED"


def test_a_shard_that_a_service_has_fenced_ends(world: ShardWorld) -> None:
    """E1: exit 1, at once, and what it would have said is not said."""
    inventory = world.workers["inventory"]
    inventory.holds = True
    process = world.started()
    world.start_saga("s1")
    world.until(lambda: inventory.held, "a command to reserve")
    refusal = answer_to(inventory.held[0], wire.REFUSED_FENCED, wire.encode(9))
    sockets.send(inventory.socket, wire.encode(wire.Answers([refusal])))
    assert world.ended(process) == 1
    assert world.log(process)[-1]["cause"] == "Fenced"
    assert world.replies == {}


# -- refused at the start --------------------------------------------------------------------------


def bad_config(base: Path) -> list[str]:
    (base / "bad.toml").write_text("[saga]\natempts = 3\n[shard]\ninflight_max = 0\n")
    return ["--config", str(base / "bad.toml")]


def refused_start(world: ShardWorld, *arguments: str, index: int = 0, **env: str) -> str:
    """Check that a shard refuses to start, by exit code 2 and one line; give its text."""
    process = world.start(*arguments, env=env, index=index)
    assert world.ended(process) == 2
    (line,) = world.log(process)
    assert (line["event"], line["level"], line["code"]) == ("shard_refused", "error", 12)
    return str(line["text"])


def test_a_configuration_with_faults_is_refused_with_all_of_them(world: ShardWorld) -> None:
    """Exit 2, before the journal is made."""
    text = refused_start(world, *bad_config(world.base))
    assert "attempts" in text
    assert "inflight_max" in text
    assert not world.data.journal(0).exists()


@pytest.mark.parametrize(
    ("sagas", "why"),
    [
        ("no.such.module:saga", "No module named"),
        ("services.checkout:price_cart", "is no Saga"),
        ("services.checkout:nothing", "is no Saga"),
    ],
)
def test_sagas_that_are_none_are_refused(world: ShardWorld, sagas: str, why: str) -> None:
    """The text names the place that the configuration names."""
    text = refused_start(world, SAGACITY_CLUSTER__SAGAS=f'["{sagas}"]')
    assert why in text


def test_a_shard_that_the_cluster_does_not_have_is_refused(world: ShardWorld) -> None:
    """Its slots belong to others."""
    assert "1" in refused_start(world, index=1)
    refused_start(world, index=-1)


def test_a_directory_without_a_cluster_is_refused(world: ShardWorld) -> None:
    """Nothing is made there."""
    (world.base / "empty").mkdir()
    text = refused_start(world, "--data", str(world.base / "empty"))
    assert "no cluster" in text
    assert list((world.base / "empty").iterdir()) == []


def test_a_damaged_journal_is_refused_and_left_as_it_is(world: ShardWorld) -> None:
    """D4: for a person to look at; not a byte changes, at no number of starts."""
    process = world.started()
    for index in range(3):
        world.start_saga(f"s{index}")
    world.answers()
    process.send_signal(signal.SIGTERM)
    assert world.ended(process) == 0
    path = world.data.journal(0)
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE journal SET batch = zeroblob(9) WHERE seq = 2").fetchall()
    connection.close()
    before = path.read_bytes()
    for _ in range(2):
        assert "row 2 is not what was written" in refused_start(world)
    assert path.read_bytes() == before


def test_another_program_s_file_is_refused(world: ShardWorld) -> None:
    """D11: whatever it is, it is not ours to write in."""
    world.data.journal(0).write_bytes(b"somebody's notes\n" * 300)
    assert "cannot be opened as a journal" in refused_start(world)
