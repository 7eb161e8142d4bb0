"""Repeats beyond a limit, through a whole cluster: they are never refused for load (SPEC 2)."""

from pathlib import Path

from cluster.private import start_private
from sagacity import wire
from sagacity.client import Connection
from sagacity.errors import NotTaken
from tests.integration.router_world import settle
from tests.unit.world import order

LIMITS = {"SAGACITY_ROUTER__CLIENT_INFLIGHT_MAX": "2", "SAGACITY_LOG": "error"}


def test_repeats_over_the_routers_limit_get_the_same_answer_and_new_starts_none(
    tmp_path: Path,
) -> None:
    """The router cannot tell them apart, the shard can; what it does not know it does not start."""

    def ask(saga_id: str, kind: int = wire.START, timeout_s: float = 20.0) -> int:
        body = wire.pack(order(saga_id, user_id="u_slow_2s"))
        return connection.ask(kind, saga_id, body, timeout_s=timeout_s)

    with (
        start_private(tmp_path / "cluster", env=LIMITS) as cluster,
        Connection(cluster.url) as connection,
    ):
        firsts = [ask("a"), ask("b")]
        repeats = [ask("a"), ask("b"), ask("a")]
        submitted = ask("b", wire.SUBMIT)
        new = ask("c", timeout_s=0.7)
        found = settle(connection, 7)
        show = connection.ask(wire.SHOW, "c", b"")
        unknown = settle(connection)[show]
    assert found[new].code == NotTaken.code
    assert unknown.code == 20
    assert wire.unpack(found[submitted].body)["type"] == "checkout_accepted"
    a, b = (found[token].body for token in firsts)
    assert [found[token].body for token in repeats] == [a, b, a]
    assert wire.unpack(a)["status"] == wire.unpack(b)["status"] == "COMPLETED"
