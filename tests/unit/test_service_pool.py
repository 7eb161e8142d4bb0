"""What a service may be, how a pool finds its own, and the worker that a user runs."""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Struct

from config.schema import Config, ServicesConfig
from sagacity import wire
from sagacity.errors import Malformed
from sagacity.ids import ACTION, COMPENSATION
from sagacity.service import Service
from sagacity.wire import Command, Rejected
from sagacity.worker import EXIT_REJECTED, EXIT_STOPPED, Served, Watch, Worker
from services.payment import service as payment
from services.pool import commands_of, load_service, namer
from tests.integration.twin_shard import Place, place
from tests.unit.service_world import Events, Put, Take, put, put_command, take, toy


class Other(Struct, frozen=True, tag_field="type", tag="Other"):
    """Another action."""


class Untagged(Struct):
    """Nothing that says what it is."""


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "two words"},
        {"actions": {}},
        {"compensations": {}},
        {"actions": {Untagged: put}},
        {"compensations": {Put: take}},
    ],
)
def test_a_service_is_checked_when_it_is_defined(wrong: dict[str, object]) -> None:
    """Not when the first command comes."""
    good: dict[str, object] = {
        "name": "toy",
        "schema": "",
        "actions": {Put: put},
        "compensations": {Take: take},
    }
    Service(**good)  # type: ignore[arg-type]  # by name
    with pytest.raises(ValueError, match=r"Service\.name|actions|tags"):
        Service(**{**good, **wrong})  # type: ignore[arg-type]  # what a careless author gives


def config(**pools: str) -> Config:
    return Config(services=ServicesConfig(pools=pools))


def test_a_pool_loads_the_service_that_the_configuration_names() -> None:
    """`module:name`, and the Service has the pool's name."""
    assert load_service(config(payment="services.payment:service"), "payment") is payment


@pytest.mark.parametrize(
    "place_",
    ["services.nowhere:service", "services.payment:nothing", "services.payment:refund"],
)
def test_a_service_that_cannot_be_loaded_is_told_by_its_place(place_: str) -> None:
    """Code 12, with the key of the configuration."""
    with pytest.raises(Malformed, match=r"services\.pools\.payment"):
        load_service(config(payment=place_), "payment")
    with pytest.raises(Malformed, match="no pool 'shipping'"):
        load_service(config(payment=place_), "shipping")
    with pytest.raises(Malformed, match="no Service of that name"):
        load_service(config(other="services.payment:service"), "other")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("service =", "SyntaxError: "),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ],
)
def test_whatever_a_users_module_raises_is_said_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, says: str
) -> None:
    """Exit code 2 ends the cluster in one sentence; another would start the worker again."""
    (tmp_path / "of_a_user.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "of_a_user", raising=False)
    with pytest.raises(Malformed) as refused:
        load_service(config(payment="of_a_user:service"), "payment")
    assert refused.value.exit_code == 2
    assert "services.pools.payment = 'of_a_user:service': " + says in refused.value.text
    assert "PYTHONPATH" in refused.value.text


def test_defining_a_service_loads_no_sockets() -> None:
    """A user's module is imported by tests and tools that never connect."""
    script = "import sys; from sagacity import Service; sys.exit('zmq' in sys.modules)"
    ended = subprocess.run([sys.executable, "-P", "-c", script], timeout=30, check=False)
    assert ended.returncode == 0


def test_commands_are_named_by_direction_or_by_their_body() -> None:
    """The label of a metric: one of a closed list, whatever the body says."""
    several = Service("several", "", actions={Put: put, Other: put}, compensations={Take: take})
    assert commands_of(several) == [
        ("Put", "action"),
        ("Other", "action"),
        ("Take", "compensation"),
    ]
    name = namer(several)

    def command(body: bytes, direction: int = ACTION) -> Command:
        return Command("s", 1, direction, 1, 1, 1, {}, body)

    assert name(command(wire.encode(Put(1)))) == "Put"
    assert name(command(wire.encode(Other()))) == "Other"
    assert name(command(wire.pack({"type": "Surprise"}))) == ""
    assert name(command(b"\xc1")) == ""
    assert name(command(b"\xc1", COMPENSATION)) == "Take"


# -- the worker that a user runs ----------------------------------------------------------------


@pytest.fixture
def here() -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as directory, place(Path(directory) / "cluster") as made:
        yield made


class Seen(Watch):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.served_turns: list[Served] = []

    def served(self, served: Served) -> None:
        self.served_turns.append(served)


def running(worker: Worker, codes: list[int]) -> threading.Thread:
    thread = threading.Thread(target=lambda: codes.append(worker.run()))
    thread.start()
    return thread


def test_a_users_worker_serves_its_service_until_it_is_stopped(here: Place) -> None:
    """A file, addresses and a cluster's id are all it needs."""
    shard, seen, codes = here.shards[0], Seen(), list[int]()
    file = here.directory.path / "toy.db"
    addresses, cluster_id = [here.run.workers(0)], here.cluster.cluster_id
    worker = Worker(toy, file, addresses, cluster_id, capacity=9, watch=seen)
    thread = running(worker, codes)
    try:
        peer = shard.worker()
        assert shard.hellos[0][1].capacity == 9
        first, again = shard.ask(peer, put_command(), put_command(attempt=2))
        assert (first.outcome, first.body) == (again.outcome, again.body)
    finally:
        worker.stop()
        thread.join()
    worker.stop()  # too late, and no harm
    assert codes == [EXIT_STOPPED]
    assert sum(turn.repeated for turn in seen.served_turns) == 1
    assert shard.gone(peer)


def test_a_users_worker_that_is_rejected_returns(here: Place) -> None:
    """Its caller decides what then."""
    shard, codes = here.shards[0], list[int]()
    file = here.directory.path / "toy.db"
    worker = Worker(toy, file, [here.run.workers(0)], here.cluster.cluster_id, log=Events())
    thread = running(worker, codes)
    shard.send_frame(shard.worker(), wire.encode(Rejected("no saga needs you")))
    thread.join(10)
    assert codes == [EXIT_REJECTED]
