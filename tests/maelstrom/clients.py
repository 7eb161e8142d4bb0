"""Clients of Maelstrom's kind: ask, and ask again, any node, until there is an answer. Pure.

A client knows nothing of sagas but their ids and what it wants: it sends, sends again under another
msg_id when nothing has come back, and writes down all that it ever hears.
"""

import json
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, Final, NamedTuple

from msgspec import Struct

from tests.maelstrom.network import Message

PATIENCE_S: Final = 0.3  # before it asks again; doubles
PATIENCE_MAX_S: Final = 1.2
AGAIN: Final = frozenset({0, 11})  # codes that mean: ask again with the same id


class Heard(NamedTuple):
    """One answer, as it reached who had asked.

    Args:
        client: who heard it.
        node: who said it.
        saga_id: what was asked about.
        kind: checkout or cancel.
        content: which of the saga's contents was asked for, an index.
        text: the body as JSON, keys in their order, without msg_id and in_reply_to.
    """

    client: str
    node: str
    saga_id: str
    kind: str
    content: int
    text: str

    @property
    def body(self) -> dict[str, Any]:
        """The body, read."""
        read: dict[str, Any] = json.loads(self.text)
        return read

    @property
    def is_final(self) -> bool:
        """Whether it ends the asking: an outcome, or an error that stands."""
        return self.body.get("code") not in AGAIN


class Ask(Struct):
    """What a client wants to know.

    Args:
        saga_id: of the saga.
        content: which of its contents this is, an index.
        body: to send, without msg_id.
        at: when to send it (again).
        node: to ask always; None for any.
    """

    saga_id: str
    content: int
    body: dict[str, Any]
    at: float
    node: str | None = None
    tries: int = 0
    answered: bool = False


class Client:
    """One client.

    Args:
        name: its own.
        nodes: whom it may ask.
        random: what chance is drawn from.
    """

    def __init__(self, name: str, nodes: Sequence[str], random: Random) -> None:
        self.name = name
        self.heard: list[Heard] = []
        self.faults: list[str] = []
        self._nodes = nodes
        self._random = random
        self._asks: list[Ask] = []
        self._sent: dict[int, tuple[Ask, str]] = {}  # msg_id: what was asked, of whom

    def wants(self, ask: Ask) -> None:
        """Have it ask something."""
        self._asks.append(ask)

    @property
    def open(self) -> list[Ask]:
        """What has no answer yet."""
        return [ask for ask in self._asks if not ask.answered]

    def next_at(self) -> float | None:
        """Give the instant of its next message; None when it has all its answers."""
        return min((ask.at for ask in self._asks if not ask.answered), default=None)

    def due(self, now: float) -> Iterator[Message]:
        """Give the messages to send by now."""
        for ask in self.open:
            if ask.at > now:
                continue
            node = ask.node or self._random.choice(self._nodes)
            msg_id = len(self._sent) + 1
            self._sent[msg_id] = (ask, node)
            wait = min(PATIENCE_S * 2**ask.tries, PATIENCE_MAX_S)
            ask.tries += 1
            ask.at = now + wait * self._random.uniform(0.5, 1.0)
            yield Message(self.name, node, {**ask.body, "msg_id": msg_id})

    def hear(self, message: Message) -> None:
        """Take a message in, however late or often it comes."""
        body = dict(message.body)
        asked = self._sent.get(body.pop("in_reply_to", 0))
        if asked is None:
            self.faults.append(f"{self.name} heard what it had not asked: {message}")
            return
        ask, node = asked
        if message.src != node or type(body.pop("msg_id", None)) is not int:
            self.faults.append(f"{self.name} asked {node} and heard {message}")
        heard = Heard(self.name, node, ask.saga_id, ask.body["type"], ask.content, json.dumps(body))
        self.heard.append(heard)
        ask.answered = ask.answered or heard.is_final
