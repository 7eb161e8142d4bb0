"""The checker judges a run: of a run in which all went well one thing is changed, and it is seen.

A run is played to its end, spoiled, and judged; nothing else of it is special.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import apsw
import pytest
from msgspec.structs import replace

from sagacity.simulation import Scenario, outcome, plan_of, run
from sagacity.simulation.clients import Clients
from sagacity.simulation.cluster import Cluster
from sagacity.simulation.judge import OF_ANY_SAGA, OF_CHECKOUT, judge
from shard.codec import unpack_batch
from shard.entries import Finished
from tests.simulation.checkout import SCENARIO

SEED = 3
SAGAS = 8
Spoil = Callable[[Cluster, Clients], object]


def _stay() -> Scenario:
    """Give the scenario of the page for users, without a judge of its own."""
    page = Path(__file__).parents[2] / "docs" / "simulating-your-saga.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, str(page), "exec"), names)
    services = names["rooms"], names["kitchen"]
    return Scenario(names["stay"], lambda _kill: services, names["request"])


SCENARIOS = {"checkout": SCENARIO, "stay": _stay()}


def _sql(service: str, statement: str) -> Spoil:
    def spoil(cluster: Cluster, _clients: Clients) -> None:
        database = cluster.databases.get(service) or next(iter(cluster.databases.values()))
        apsw.Cursor(database).execute(statement)
        assert database.changes(), statement

    return spoil


def _unsent(_cluster: Cluster, clients: Clients) -> None:
    """Nobody sent one of them."""
    saga_id = clients.record.asks[0].saga_id
    clients.record.asks = [ask for ask in clients.record.asks if ask.saga_id != saga_id]


def _other_content(_cluster: Cluster, clients: Clients) -> None:
    """Whoever sent one sent other content."""
    saga_id = clients.record.asks[0].saga_id
    for ask in clients.record.asks:
        if ask.saga_id == saga_id:
            ask.fingerprint = bytes(16)


def _answer(cluster: Cluster, clients: Clients) -> None:
    """A client was told another's outcome."""
    finals = [ask.answers[-1] for ask in clients.record.asks if ask.client == "client-last"]
    other = next(each for each in finals if each.body != finals[0].body)
    finals[0].body = other.body


def _row(cluster: Cluster, _clients: Clients) -> None:
    """A row of a journal is another one."""
    rows = max(cluster.journals.values(), key=len)
    seq, chain, packed = rows[3]
    rows[3] = (seq, chain[::-1], packed)


def _live(cluster: Cluster, _clients: Clients) -> None:
    """A shard believes something else than its journal says."""
    cluster.loops[0].engine.state.stuck += 1


def _end(cluster: Cluster, _clients: Clients) -> None:
    """The last rows of a journal are gone, up to an end."""
    rows = max(cluster.journals.values(), key=len)
    while not any(isinstance(entry, Finished) for entry in unpack_batch(rows.pop()[2]).entries):
        pass


def _counted(cluster: Cluster, _clients: Clients) -> None:
    """A start is counted that nobody took."""
    cluster.tallies[0].counts["started", "anything"] += 1


def _early(cluster: Cluster, _clients: Clients) -> None:
    """A command left before the row that makes it due."""
    at = len(cluster.left) // 2
    left = cluster.left[at]
    cluster.left[at] = left._replace(witness=replace(left.witness, seq=0))


GENERAL: dict[str, tuple[int, Spoil]] = {
    "a start that nobody sent": (1, _unsent),
    "a start of other content": (1, _other_content),
    "another answer than the journal's": (2, _answer),
    "a row with another chain": (3, _row),
    "a service that has seen more": (3, _sql("payment", "UPDATE witness SET seq = seq + 99")),
    "a state beside its journal": (4, _live),
    "a saga that has not ended": (5, _end),
    "an effect that is gone": (
        6,
        _sql("payment", "DELETE FROM barrier WHERE key & 1 = 0 AND outcome = 0"),
    ),
    "an effect of no saga": (
        7,
        _sql(
            "payment",
            "INSERT INTO barrier SELECT key + (1 << 40), saga_id, outcome, reply"
            " FROM barrier LIMIT 1",
        ),
    ),
    "a command before its entry": (7, _early),
    "a start counted twice": (11, _counted),
}
OF_THE_CHECKOUT: dict[str, tuple[int, Spoil]] = {
    "stock that is nowhere": (
        8,
        _sql("inventory", "UPDATE stock SET available = available - 1 WHERE available"),
    ),
    "half a refund": (9, _sql("payment", "UPDATE payment SET refunded = 1")),
    "money that is nowhere": (9, _sql("payment", "UPDATE account SET balance = balance + 1")),
    "a shipment that is gone": (10, _sql("shipping", "DELETE FROM shipment")),
}
CASES = [
    *(pytest.param("checkout", *each, id=name) for name, each in GENERAL.items()),
    *(pytest.param("checkout", *each, id=name) for name, each in OF_THE_CHECKOUT.items()),
    *(
        pytest.param("stay", *each, id=f"{name}, of a user's saga")
        for name, each in GENERAL.items()
    ),
]


def _judged(name: str, spoil: Spoil) -> tuple[str, ...]:
    def spoiled(cluster: Cluster, clients: Clients) -> list[str]:
        spoil(cluster, clients)
        return judge(cluster, clients)

    scenario = SCENARIOS[name]
    with patch.object(outcome, "judge", spoiled):
        return run(scenario, plan_of(scenario, SEED, SAGAS)).violations


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_unspoiled_run_is_in_order(name: str) -> None:
    """The other side: what is seen below was changed there."""
    assert _judged(name, lambda _cluster, _clients: None) == ()


@pytest.mark.parametrize(("name", "number", "spoil"), CASES)
def test_one_change_of_what_a_run_left_is_seen(name: str, number: int, spoil: Spoil) -> None:
    """Each invariant that is asked of a run turns red, also for a saga that a user wrote."""
    found = _judged(name, spoil)
    assert [each for each in found if each.startswith(f"{number}: ")], found


def test_every_invariant_that_is_asked_is_shown_to_turn_red() -> None:
    """None of them is there for show."""
    assert {number for number, _ in GENERAL.values()} == set(OF_ANY_SAGA)
    all_of_them = {number for number, _ in (*GENERAL.values(), *OF_THE_CHECKOUT.values())}
    assert all_of_them == set(OF_CHECKOUT)


def test_what_the_checker_cannot_tell_is_a_fault() -> None:
    """A judge that is not given what it needs must not turn green."""

    def unrecorded(_cluster: Cluster, clients: Clients) -> None:
        clients.record.asks[0].fingerprint = None

    found = _judged("checkout", unrecorded)
    assert [each.partition(":")[0] for each in found] == ["cannot tell 1"]
