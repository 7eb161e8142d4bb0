"""Several Maelstrom nodes on one cluster, a bad network between them and their clients (SPEC 5).

    python -m tests.maelstrom.rounds [--rounds 10] [--seed S] [--nodes 3] [--clients 6]
                                     [--sagas 60] [--kills 2] [--lost 0.15] [--doubled 0.15]
                                     [--delay 0.08]

A round starts a cluster and nodes on it. Clients ask for sagas, several of them for the same one,
each through any node, again and again until there is an answer; some ask for other content under
an id that is taken, some cancel. The network loses, delays, doubles and reorders in both
directions; nodes are killed in the middle and started again. Then the network is calm, every saga
is asked for once more through every node, and all that was heard has to be one truth; the books
balance and hold as many sagas as there are ids.

One line a round; a failed one says why. The seed repeats the plan and the network's chances, not
the moments at which real processes answer.
"""

import argparse
import hashlib
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, Final

from msgspec import Struct

from cluster.audit import audit
from cluster.private import start_private
from cluster.requests import checkout
from sagacity.client import Client as Reader
from tests.chaos.load import ENDINGS
from tests.maelstrom.checks import Expected, faults_of
from tests.maelstrom.clients import Ask, Client
from tests.maelstrom.network import CALM, Message, Network, Weather
from tests.maelstrom.nodes import Node, wait

ROUND_S: Final = 60.0  # for all clients to have their answers
SPREAD_S: Final = 1.0  # within which all that is planned is asked first
TURN_S: Final = 0.05
TOLD_S: Final = 5.0  # for the heartbeats, of which one a second comes, to tell all starts
JUDGE: Final = "judge"  # the client that asks for everything once more
MAELSTROM: Final = "c0"  # who sends init and topology


class Settings(Struct, frozen=True):
    """How large a round is.

    Args:
        nodes: on the one cluster.
        clients: that ask them.
        sagas: ids that are asked for.
        kills: of nodes, while the network is bad.
        weather: of the network until then.
    """

    nodes: int = 3
    clients: int = 6
    sagas: int = 60
    kills: int = 2
    weather: Weather = Weather()


class Plan(Struct):
    """What a round asks for, by chance.

    Args:
        sagas: by id, what is known of each before it runs.
        bodies: by id, the contents that are asked for.
    """

    sagas: dict[str, Expected]
    bodies: dict[str, list[dict[str, Any]]]


def plan_of(random: Random, count: int) -> Plan:
    """Give ids with their contents: a sixth has a rival content, a sixth is cancelled."""
    names = [name for name in ENDINGS if name != "crash"]
    weights = [ENDINGS[name].percent for name in names]
    plan = Plan({}, {})
    for at in range(count):
        saga_id = f"saga-{at}"
        chosen = random.choices(names, weights)
        if at == 0:
            chosen = ["crash"]  # one worker dies in each round, too
        if random.random() < 1 / 6:
            chosen += ["declined"]
        bodies = [_body(saga_id, name, number) for number, name in enumerate(chosen)]
        plan.bodies[saga_id] = bodies
        plan.sagas[saga_id] = Expected(
            [(ENDINGS[name].status, ENDINGS[name].reason) for name in chosen],
            [_fingerprint(body) for body in bodies],
            "changed mind" if random.random() < 1 / 6 else None,
        )
    return plan


def _body(saga_id: str, name: str, content: int) -> dict[str, Any]:
    ending = ENDINGS[name]
    return {
        "type": "checkout",
        "saga_id": saga_id,
        "user_id": ending.user,
        "items": [{"sku": ending.sku, "quantity": 1 + content}],
        "shipping_address": ending.address,
    }


def _fingerprint(body: dict[str, Any]) -> str:
    return hashlib.blake2b(checkout(body).body, digest_size=16).hexdigest()


class Round:
    """One round.

    Args:
        seed: of all chances.
        settings: how large it is.
    """

    def __init__(self, seed: str, settings: Settings) -> None:
        self.faults: list[str] = []
        self._random = Random(f"{seed}/plan")
        self._plan = plan_of(self._random, settings.sagas)
        self._settings = settings
        self._network = Network(settings.weather, Random(f"{seed}/network"))
        self._names = [f"n{at}" for at in range(1, settings.nodes + 1)]
        self._nodes: dict[str, Node] = {}
        self._clients = {
            name: Client(name, self._names, Random(f"{seed}/{name}"))
            for name in (JUDGE, *(f"c{at}" for at in range(1, settings.clients + 1)))
        }
        # Answers that a node still owes, by who asked and the msg_id: one for each delivery.
        self._owed: Counter[tuple[str, str, int]] = Counter()
        self._said: dict[str, int] = {}  # by node, the next msg_id of its own
        self._kills: list[float] = []

    def run(self) -> str:
        """Run it; `faults` says what was not as it has to be.

        Returns:
            A line of figures.
        """
        begun = time.monotonic()
        with start_private(
            arguments=("--shards", "2", "--workers", "1"), env={"SAGACITY_LOG": "error"}
        ) as cluster:
            try:
                self._start(cluster.url)
                self._until_answered(cluster.url)
                self._network.weather = CALM
                self._ask_once_more()
                self._until_answered(cluster.url)
                self._end_nodes()
            finally:
                for node in self._nodes.values():
                    node.close()
            self._judge(cluster.url)
        heard = sum(len(client.heard) for client in self._clients.values())
        return (
            f"{len(self._plan.sagas)} sagas, {heard} answers heard, "
            f"{self._network.carried} messages carried, {self._network.lost} lost, "
            f"{self._network.doubled} doubled, {self._settings.kills} nodes killed, "
            f"{time.monotonic() - begun:.1f} s"
        )

    def _start(self, url: str) -> None:
        for name in self._names:
            self._begin(name, url)
        now, clients = time.monotonic(), list(self._clients.values())[1:]
        for saga_id, bodies in self._plan.bodies.items():
            for content, body in enumerate(bodies):
                # The first content by several: they are one saga, too.
                for client in self._random.sample(clients, self._random.randint(1, 3)):
                    at = now + self._random.uniform(0, SPREAD_S)
                    client.wants(Ask(saga_id, content, self._shuffled(body), at))
            reason = self._plan.sagas[saga_id].cancelled
            if reason is not None:
                cancel = {"type": "cancel", "saga_id": saga_id, "reason": reason}
                at = now + self._random.uniform(0, SPREAD_S)
                self._random.choice(clients).wants(Ask(saga_id, -1, cancel, at))
        self._kills = sorted(
            now + self._random.uniform(0.2, 1.2) * SPREAD_S for _ in range(self._settings.kills)
        )

    def _shuffled(self, body: dict[str, Any]) -> dict[str, Any]:
        """Give a body with its keys in another order: it is the same content."""
        keys = list(body)
        self._random.shuffle(keys)
        return {key: body[key] for key in keys}

    def _begin(self, name: str, url: str) -> None:
        """Start a node, and tell it who it is as Maelstrom does: not through the bad network."""
        node = self._nodes[name] = Node(name, url)
        self._said[name] = 0
        told: tuple[dict[str, Any], ...] = (
            {"type": "init", "msg_id": 1, "node_id": name, "node_ids": self._names},
            {"type": "topology", "msg_id": 2, "topology": {each: [] for each in self._names}},
        )
        for body in told:
            self._owed[name, MAELSTROM, body["msg_id"]] += 1
            _say(node, Message(MAELSTROM, name, body))

    def _ask_once_more(self) -> None:
        now = time.monotonic()
        for saga_id, bodies in self._plan.bodies.items():
            for content, body in enumerate(bodies):
                for name in self._names:
                    self._clients[JUDGE].wants(Ask(saga_id, content, body, now, name))

    def _until_answered(self, url: str) -> None:
        give_up = time.monotonic() + ROUND_S
        while self._kills or any(client.open for client in self._clients.values()):
            now = time.monotonic()
            if now >= give_up:
                unanswered = [ask.saga_id for each in self._clients.values() for ask in each.open]
                self.faults.append(f"no answer within {ROUND_S:g} s: {unanswered}")
                return
            if self._kills and now >= self._kills[0]:
                self._kills.pop(0)
                self._kill(self._random.choice(self._names), url)
            self._turn(now)

    def _kill(self, name: str, url: str) -> None:
        """Kill a node: what it owes is lost, and another one takes its name."""
        node = self._nodes[name]
        node.kill()
        self._hear(node, time.monotonic())  # what it had said before its death
        node.close()
        self._owed = Counter({key: n for key, n in self._owed.items() if key[0] != name})
        self._begin(name, url)

    def _turn(self, now: float) -> None:
        """Send what is due, carry what has arrived, hear what is said, wait for more."""
        for client in self._clients.values():
            for message in client.due(now):
                self._network.send(message, now)
        for message in self._network.arrived(now):
            if message.dest in self._nodes:
                self._owed[message.dest, message.src, message.body["msg_id"]] += 1
                _say(self._nodes[message.dest], message)
            else:
                self._clients[message.dest].hear(message)
        for node in self._nodes.values():
            self._hear(node, now)
        instants = [client.next_at() for client in self._clients.values()]
        instants += [self._network.next_due(), self._kills[0] if self._kills else None]
        due = min((at for at in instants if at is not None), default=now + TURN_S)
        wait(list(self._nodes.values()), min(TURN_S, max(0.0, due - time.monotonic())))

    def _hear(self, node: Node, now: float) -> None:
        """Take what a node says: numbered without a gap, to who asked, and once for each asking."""
        for line in node.lines():
            message = Message(**json.loads(line))
            body = message.body
            if message.src != node.name or body["msg_id"] != self._said[node.name]:
                self.faults.append(f"{node.name} said {message}")
            self._said[node.name] = body["msg_id"] + 1
            key = (node.name, message.dest, body.get("in_reply_to", 0))
            self._owed[key] -= 1
            if self._owed[key] < 0:
                self.faults.append(f"{node.name} answered more often than it was asked: {message}")
            if message.dest != MAELSTROM:
                self._network.send(message, now)
            elif body["type"] not in {"init_ok", "topology_ok"}:
                self.faults.append(f"{node.name} answered {MAELSTROM}: {message}")

    def _end_nodes(self) -> None:
        """End their input: each answers what it owes, says nothing more, and ends well."""
        for name, node in self._nodes.items():
            code, said = node.end()
            self._hear(node, time.monotonic())
            if code or "Traceback" in said:
                self.faults.append(f"{name} ended with exit code {code}: {said}")
        owed = sorted(key for key, count in self._owed.items() if count > 0)
        if owed:
            self.faults.append(f"never answered: {owed}")

    def _judge(self, url: str) -> None:
        for client in self._clients.values():
            self.faults += client.faults
        heard = [each for client in self._clients.values() for each in client.heard]
        self.faults += faults_of(heard, self._plan.sagas)
        with Reader(url) as reader:
            books = audit(reader)
            wanted = len(self._plan.sagas)
            started = _started(reader, wanted)
        sagas = books["sagas"]
        if not books["balanced"]:
            self.faults.append(f"the books do not balance: {books['faults']}")
        if started != wanted or sagas["completed"] + sagas["aborted"] != wanted:
            self.faults.append(f"{wanted} ids, {started} starts, and the books hold {sagas}")


def _started(reader: Reader, wanted: int) -> int:
    """Give how many sagas the shards have started; they tell it with their heartbeats."""
    until = time.monotonic() + TOLD_S
    while True:
        started: int = sum(shard["started"] for shard in reader.status()["shards"])
        if started == wanted or time.monotonic() >= until:
            return started


def _say(node: Node, message: Message) -> None:
    node.say(json.dumps(message._asdict()).encode() + b"\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run rounds.

    Returns:
        0 if every round was good, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.maelstrom.rounds")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--sagas", type=int, default=60)
    parser.add_argument("--kills", type=int, default=2, help="of nodes, in each round")
    usual = Weather()
    parser.add_argument("--lost", type=float, default=usual.lost, help="share of the messages")
    parser.add_argument("--doubled", type=float, default=usual.doubled, help="likewise")
    parser.add_argument("--delay", type=float, default=usual.delay_s, help="longest, in seconds")
    args = parser.parse_args(argv)
    weather = Weather(args.lost, args.doubled, args.delay)
    settings = Settings(args.nodes, args.clients, args.sagas, args.kills, weather)
    print(f"seed {args.seed}", flush=True)
    failed = 0
    for number in range(1, args.rounds + 1):
        done = Round(f"{args.seed}/{number}", settings)
        line = done.run()
        failed += bool(done.faults)
        print(f"{number:3} {'FAILED' if done.faults else 'good'}: {line}", flush=True)
        for fault in done.faults:
            print(f"      {fault}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
