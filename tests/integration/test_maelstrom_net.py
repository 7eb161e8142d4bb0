"""Several Maelstrom nodes on one cluster behind a bad network; longer: tests.maelstrom.rounds."""

import json
from random import Random
from typing import Any

import pytest

from tests.maelstrom.checks import Expected, faults_of
from tests.maelstrom.clients import Ask, Client, Heard
from tests.maelstrom.network import CALM, Message, Network, Weather
from tests.maelstrom.rounds import Round, Settings

SEED = "several-nodes"
DONE = {"type": "checkout_complete", "saga_id": "s", "status": "COMPLETED", "order_id": "o1"}
LATE = {"type": "error", "code": 22, "text": "too late"}
EXPECTED = {"s": Expected([("COMPLETED", ""), ("ABORTED", "r")], ["f0", "f1"], "why")}


def test_several_nodes_on_one_cluster_are_one_service() -> None:
    """SPEC 5: whoever is asked, however often, through whatever dies: a saga is one saga."""
    done = Round(SEED, Settings())
    line = done.run()
    assert done.faults == [], f"seed {SEED}: {line}"


def heard(body: dict[str, Any], kind: str = "checkout", content: int = 0) -> Heard:
    return Heard("c1", "n1", "s", kind, content, json.dumps(body))


@pytest.mark.parametrize(
    ("evidence", "fault"),
    [
        ([], "nobody heard an outcome"),
        ([heard({"code": 0})], "nobody heard an outcome"),
        ([heard(DONE), heard({**DONE, "order_id": "o2"})], "2 final answers"),
        ([heard(DONE), heard(dict(reversed(DONE.items())))], "2 final answers"),
        ([heard(DONE), heard(DONE, content=1)], "2 contents under one id ran"),
        ([heard({**DONE, "status": "ABORTED", "reason": "x"})], "it came to"),
        ([heard(DONE), heard({"code": 22, "fingerprint": "f0"})], "was refused"),
        ([heard(DONE), heard({"code": 22, "fingerprint": "f1"}, content=1)], "another fingerprint"),
        ([heard(DONE), heard({"code": 13}, content=1)], "was refused"),
        ([heard(DONE), heard({"type": "cancel_ok"}, "cancel", -1)], "a cancel was accepted"),
        ([heard(DONE), heard({"code": 12}, "cancel", -1)], "cancel was refused"),
        (
            [
                heard({**DONE, "status": "ABORTED", "reason": "Cancelled: why"}),
                heard(LATE, "cancel", -1),
            ],
            "too late, and the saga was cancelled",
        ),
    ],
)
def test_the_checks_find_what_must_not_be(evidence: list[Heard], fault: str) -> None:
    """A check that cannot fail shows nothing."""
    found = faults_of(evidence, EXPECTED)
    assert len(found) == 1
    assert fault in found[0]


def test_the_checks_take_what_may_be() -> None:
    """Repeats, other content refused, a cancel that came too early or too late."""
    evidence = [
        *(heard({"code": 11}), heard(DONE), heard(DONE)),
        heard({"code": 22, "fingerprint": "f0"}, content=1),
        *(heard({"code": 20}, "cancel", -1), heard(LATE, "cancel", -1)),
    ]
    assert faults_of(evidence, EXPECTED) == []


def test_the_network_loses_doubles_and_reorders() -> None:
    """Else the nodes would have been asked nothing hard."""
    network = Network(Weather(0.2, 0.2, 0.1), Random(SEED))
    for at in range(500):
        network.send(Message("c1", "n1", {"msg_id": at}), now=at / 1000)
    came = [message.body["msg_id"] for message in network.arrived(1.0)]
    assert 300 < len(set(came)) < 480
    assert len(came) > len(set(came))
    assert came != sorted(came)
    assert network.next_due() is None


def test_a_calm_network_brings_all_in_order() -> None:
    """What is asked once more at the end is asked for certain."""
    network = Network(CALM, Random(SEED))
    for at in range(10):
        network.send(Message("c1", "n1", {"msg_id": at}), now=1.0)
    assert [each.body["msg_id"] for each in network.arrived(1.0)] == list(range(10))


def test_a_client_asks_again_until_it_has_its_answer() -> None:
    """Under another msg_id, any node; code 11 is no answer, and late ones are noted, too."""
    client = Client("c1", ["n1", "n2", "n3"], Random(SEED))
    client.wants(Ask("s", 0, {"type": "checkout"}, at=0.0))
    sent = [message for now in range(0, 40, 2) for message in client.due(float(now))]
    assert [each.body["msg_id"] for each in sent] == list(range(1, 21))
    assert {each.dest for each in sent} == {"n1", "n2", "n3"}
    client.hear(
        Message(sent[0].dest, "c1", {"type": "error", "in_reply_to": 1, "msg_id": 7, "code": 11})
    )
    assert client.open
    for msg_id in (2, 1):
        answer = {"type": "checkout_complete", "in_reply_to": msg_id, "msg_id": 8}
        client.hear(Message(sent[msg_id - 1].dest, "c1", answer))
    assert (client.open, client.next_at(), client.faults) == ([], None, [])
    assert [each.is_final for each in client.heard] == [False, True, True]
    client.hear(Message("n1", "c1", {"type": "checkout_complete", "in_reply_to": 99, "msg_id": 9}))
    assert len(client.faults) == 1
