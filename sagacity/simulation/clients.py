"""Clients: they ask as the plan says, through the production client, and write down what they hear.

When the faults are over, one more asks for every saga until it has its final answer.
"""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from sagacity import wire
from sagacity.connection import Connection
from sagacity.errors import Conflict
from sagacity.simulation.cluster import ROUTER, Cluster, TwinMachine
from sagacity.simulation.plan import CLIENTS, Ask
from sagacity.simulation.world import MS, SECOND, Process

STARTS = frozenset({wire.START, wire.SUBMIT})
RETRY_S = 3.0
LAST = CLIENTS  # the client that asks when the faults are over


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


class Clients:
    """All clients of one run.

    Args:
        cluster: that they ask.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.heard: list[Heard] = []
        self.outcomes: dict[str, Heard] = {}  # what the last one heard
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

    def _connect(self, process: Process) -> Connection:
        machine = TwinMachine(self._cluster.network, process)
        return Connection(ROUTER, timeout_s=self._cluster.plan.patience_s, machine=machine)

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
                    open_[connection.ask(ask.kind, saga_id, body_of(self._cluster, ask))] = ask
                    ask = next(todo, None)
                wait_s = 3600.0
                if ask is not None:
                    wait_s = max(0.001, (begin + ask.at_ms * MS - self._world.now) / SECOND)
                for token, reply in connection.poll(wait_s):
                    self._hear(open_.pop(token), reply)

        return main

    def _hear(self, ask: Ask, reply: wire.Reply) -> None:
        saga_id = self._cluster.plan.starts[ask.start]["saga_id"]
        # A history is long, and nobody looks into it.
        body = {} if ask.kind == wire.SHOW and reply.code is None else wire.unpack(reply.body)
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
        retry_at = self._world.now + int(RETRY_S * SECOND)
        while todo or open_:
            if self._world.now >= retry_at:  # what is quarantined waits for somebody to ask
                retry_at += int(RETRY_S * SECOND)
                for saga_id in self.missing():
                    asked = {"type": "retry", "saga_id": saga_id, "reason": "healed"}
                    connection.ask(wire.RETRY, saga_id, wire.pack(asked))
            for start in todo:
                ask, body = Ask(0, LAST, wire.START, start), starts[start]
                open_[connection.ask(wire.START, body["saga_id"], wire.pack(body))] = ask
            todo = []
            for token, reply in connection.poll(RETRY_S):
                if token not in open_:
                    continue  # of a retry: whether it was of use shows in the outcome
                ask = open_.pop(token)
                saga_id = starts[ask.start]["saga_id"]
                self._hear(ask, reply)
                if reply.code in {0, 11}:
                    todo.append(ask.start)
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
