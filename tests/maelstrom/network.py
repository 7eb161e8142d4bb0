"""Maelstrom's network between clients and nodes: loses, delays, doubles and reorders. Pure.

Every copy of a message takes a time of its own, so that later ones overtake earlier ones. Knows no
process and no clock: who drives it says what time it is.
"""

import heapq
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

from msgspec import Struct


class Weather(Struct, frozen=True):
    """How bad the network is.

    Args:
        lost: share of the messages that never arrive, 0..1.
        doubled: share of those that arrive twice.
        delay_s: longest time on the way; each copy's is chosen evenly from 0.
    """

    lost: float = 0.15
    doubled: float = 0.15
    delay_s: float = 0.08


CALM = Weather(0.0, 0.0, 0.0)


class Message(NamedTuple):
    """What Maelstrom carries: a body from one name to another."""

    src: str
    dest: str
    body: dict[str, Any]


class Network:
    """Messages on their way.

    Args:
        weather: for each of them; may be changed at any time.
        random: what chance is drawn from.
    """

    def __init__(self, weather: Weather, random: Random) -> None:
        self.weather = weather
        self.lost = self.doubled = self.carried = 0
        self._random = random
        self._on_the_way: list[tuple[float, int, Message]] = []
        self._count = 0

    def send(self, message: Message, now: float) -> None:
        """Take a message at its sender's."""
        weather = self.weather
        if self._random.random() < weather.lost:
            self.lost += 1
            return
        copies = 1
        if self._random.random() < weather.doubled:
            self.doubled += 1
            copies = 2
        for _ in range(copies):
            self._count += 1  # of two that are due together, the one that was sent first
            due = now + self._random.uniform(0, weather.delay_s)
            heapq.heappush(self._on_the_way, (due, self._count, message))

    def arrived(self, now: float) -> Iterator[Message]:
        """Give what has arrived by now."""
        while self._on_the_way and self._on_the_way[0][0] <= now:
            self.carried += 1
            yield heapq.heappop(self._on_the_way)[2]

    def next_due(self) -> float | None:
        """Give the instant of the next arrival; None when nothing is on its way."""
        return self._on_the_way[0][0] if self._on_the_way else None
