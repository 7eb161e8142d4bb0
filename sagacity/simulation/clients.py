"""Clients: they ask as the plan says, through the production client, and write down what they hear,
for the checker as a record in memory.

When the faults are over, one more asks for every saga until it has its final answer.
"""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from config.load import Catalog
from sagacity import wire
from sagacity.checker import record
from sagacity.checker.bodies import said
from sagacity.checker.record import ClientRecord, Heeded
from sagacity.connection import Connection
from sagacity.errors import Conflict, NotTaken, SagacityError
from sagacity.simulation.cluster import CLUSTER, ROUTER, Cluster
from sagacity.simulation.network import Weather
from sagacity.simulation.plan import CLIENTS, Ask
from sagacity.simulation.ports import TwinMachine
from sagacity.simulation.world import MS, SECOND, Process

STARTS = frozenset({wire.START, wire.SUBMIT})
RETRY_S = 3.0
AGAIN_S = 0.1  # until the last client asks again: that a saga is stuck is told at once, for ever
LAST = CLIENTS  # the client that asks when the faults are over
_FAIR = Weather()


class Heard(Struct, frozen=True):
    """A reply. `client` is LAST for the one that asks when the faults are over."""

    at_ns: int
    ask: Ask
    saga_id: str
    code: int | None
    body: Mapping[str, Any]

    @property
    def final(self) -> bool:
        """Whether it tells the outcome."""
        if self.code is not None or self.ask.kind not in STARTS:
            return False
        return not str(self.body.get("type")).endswith("_accepted")

    @property
    def is_past_retention(self) -> bool:
        """Whether it says that the outcome is no longer kept; other content has a fingerprint."""
        is_start = self.ask.kind in STARTS
        return is_start and self.code == Conflict.code and "fingerprint" not in self.body


class _Noting(Connection):
    """A connection whose client writes down what it asks and hears.

    Args:
        name: of the client.
        clients: takes what it says.
    """

    def __init__(self, name: str, clients: "Clients", **more: Any) -> None:
        super().__init__(ROUTER, **more)
        clients.record.clients.append(name)
        self._name = name
        self._clients = clients
        self._noted: dict[int, record.Ask] = {}
        self._lines = 0

    def request(self, kind: int, saga_id: str, body: bytes = b"") -> int:
        """Ask, and note it."""
        token = self.ask(kind, saga_id, body)
        self._lines += 1
        asked = record.Ask(self._name, wire.KINDS[kind], saga_id, self._lines, None)
        if kind in STARTS:
            asked.fingerprint = self._clients.fingerprint(body)
            asked.request_type = self._clients.request_type
        self._noted[token] = asked
        self._clients.record.asks.append(asked)
        return token

    def settled(self, timeout_s: float) -> list[tuple[int, wire.Reply]]:
        """Wait for answers, and note them."""
        settled = self.poll(timeout_s)
        for token, reply in settled:
            self._lines += 1
            if reply.code != NotTaken.code or not self._clients.doubles:
                body = record.plain(reply.body)
                self._noted[token].answers.append(Heeded(self._lines, reply.code, body))
        return settled


class Clients:
    """All clients of one run.

    Args:
        cluster: that they ask.

    Attributes:
        heard: every answer to what the plan has them ask, and the last one's starts.
        record: all that was asked and answered, as the checker reads it. A refusal as not taken is
            left out where the weather doubles requests: it may be of one copy alone.
        doubles: whether it does.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.heard: list[Heard] = []
        self.outcomes: dict[str, Heard] = {}  # what the last one heard
        self.record = ClientRecord(clusters=[CLUSTER], quiet=True)
        catalog = cluster.scenario.catalog
        if isinstance(catalog, Catalog):
            books = catalog.prices, catalog.stock, catalog.accounts
            self.record.catalog = record.Catalog(*map(dict, books))
        weather = [cluster.plan.weather.get(kind, _FAIR) for kind in ("client", "shard")]
        self.doubles = any(each.duplication for each in weather)
        self.request_type = cluster.scenario.saga.request_type
        self._fingerprints: dict[bytes, bytes | None] = {}
        self._cluster = cluster
        self._world = cluster.world
        self._wanted = sorted({ask.start for ask in cluster.plan.asks})
        for index in range(CLIENTS):
            asks = [ask for ask in cluster.plan.asks if ask.client == index]
            self._world.spawn(f"client-{index}", self._main_of(asks))
        self._world.after(cluster.plan.calm_ms * MS, self._spawn_last)

    @property
    def done(self) -> bool:
        """Whether every outcome is known."""
        return len(self.outcomes) == len(self._wanted)

    def missing(self) -> list[str]:
        """Give the ids of which no outcome is known."""
        ids = [self._cluster.plan.starts[start]["saga_id"] for start in self._wanted]
        return [saga_id for saga_id in ids if saga_id not in self.outcomes]

    def fingerprint(self, body: bytes) -> bytes | None:
        """Give the fingerprint of a start's content; None where it is refused as malformed."""
        if body not in self._fingerprints:
            self._fingerprints[body] = record.fingerprint_of(said(body)) or self._own(body)
        return self._fingerprints[body]

    def _own(self, body: bytes) -> bytes | None:
        """Give the fingerprint of what is no checkout: its definition alone knows its form."""
        definition = self._cluster.definitions[self._cluster.scenario.saga.name]
        try:
            asked, _ = definition.readers.request.read(body)
            return definition.fingerprint(wire.encode(definition.saga.accept(asked)))
        except (ValueError, SagacityError):
            return None

    def _connect(self, process: Process) -> _Noting:
        machine = TwinMachine(self._cluster.network, process)
        return _Noting(process.name, self, timeout_s=self._cluster.plan.patience_s, machine=machine)

    def _main_of(self, asks: list[Ask]) -> Callable[[Process], None]:
        starts = self._cluster.plan.starts
        begin = self._world.now

        def main(process: Process) -> None:
            connection = self._connect(process)
            open_: dict[int, Ask] = {}
            todo = iter(asks)
            ask = next(todo, None)
            while ask is not None or open_:
                while ask is not None and begin + ask.at_ms * MS <= self._world.now:
                    saga_id = starts[ask.start]["saga_id"]
                    open_[connection.request(ask.kind, saga_id, body_of(self._cluster, ask))] = ask
                    ask = next(todo, None)
                wait_s = 3600.0
                if ask is not None:
                    wait_s = max(0.001, (begin + ask.at_ms * MS - self._world.now) / SECOND)
                for token, reply in connection.settled(wait_s):
                    self._hear(open_.pop(token), reply)

        return main

    def _hear(self, ask: Ask, reply: wire.Reply) -> None:
        saga_id = self._cluster.plan.starts[ask.start]["saga_id"]
        # A history is long, and only the checker looks into it.
        body = {} if ask.kind == wire.SHOW and reply.code is None else said(reply.body)
        heard = Heard(self._world.now, ask, saga_id, reply.code, body)
        self.heard.append(heard)
        if ask.client == LAST and (heard.final or heard.is_past_retention):
            self.outcomes[saga_id] = heard

    def _spawn_last(self) -> None:
        self._world.spawn("client-last", self._last)

    def _last(self, process: Process) -> None:
        connection = self._connect(process)
        starts = self._cluster.plan.starts
        open_: dict[int, Ask] = {}
        todo = list(self._wanted)
        later: list[int] = []  # what is asked again
        again_at = self._world.now
        retry_at = self._world.now + int(RETRY_S * SECOND)
        while todo or later or open_:
            if self._world.now >= again_at:
                todo, later = todo + later, []
            if self._world.now >= retry_at:  # what is quarantined waits for somebody to ask
                retry_at += int(RETRY_S * SECOND)
                for saga_id in self.missing():
                    asked = {"type": "retry", "saga_id": saga_id, "reason": "healed"}
                    connection.request(wire.RETRY, saga_id, wire.pack(asked))
            for start in todo:
                ask, body = Ask(0, LAST, wire.START, start), starts[start]
                open_[connection.request(wire.START, body["saga_id"], wire.pack(body))] = ask
            todo = []
            pause_s = max(0.001, (again_at - self._world.now) / SECOND) if later else RETRY_S
            for token, reply in connection.settled(pause_s):
                if token not in open_:
                    continue  # of a retry: whether it was of use shows in the outcome
                ask = open_.pop(token)
                saga_id = starts[ask.start]["saga_id"]
                self._hear(ask, reply)
                if reply.code in {0, 11}:
                    if not later:
                        again_at = self._world.now + int(AGAIN_S * SECOND)
                    later.append(ask.start)
                elif saga_id not in self.outcomes and not self._had_other_content(ask):
                    self._cluster.violations.append(f"no outcome: {self.heard[-1]}")

    def _had_other_content(self, asked: Ask) -> bool:
        """Say whether a start of the same id with other content may have been first."""
        if any(ask.other and ask.start == asked.start for ask in self._cluster.plan.asks):
            self.outcomes[self._cluster.plan.starts[asked.start]["saga_id"]] = self.heard[-1]
            return True
        return False


def body_of(cluster: Cluster, ask: Ask) -> bytes:
    """Give the body of a request."""
    start = cluster.plan.starts[ask.start]
    if ask.kind == wire.CANCEL:
        asked = {"type": "cancel", "saga_id": start["saga_id"], "reason": "mind changed"}
        return wire.pack(asked)
    if ask.kind == wire.SHOW:
        return b""
    other = cluster.scenario.other(start) if ask.other else None
    return wire.pack(start if other is None else other)
