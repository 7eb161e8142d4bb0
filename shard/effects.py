"""Effects: the closed list of what the engine may ask of the world. One object a batch; pure."""

from msgspec import Struct

from sagacity.ranges import Range
from sagacity.wire import Command, Proceed, Reply
from shard.entries import Entry
from shard.events import Peer
from shard.sagas import Card, Live


class HistoryAsked(Struct, frozen=True):
    """Somebody wants to read a saga's history, as it is when this batch is durable."""

    origin: Peer
    request: int
    saga: Live | Card


class BooksForwarded(Struct, frozen=True):
    """Somebody wants a page of a service's books from this worker."""

    origin: Peer
    request: int
    worker: Peer
    body: bytes


class ListSent(Struct, frozen=True):
    """A worker is to have its service forget the sagas of a list."""

    worker: Peer
    list_number: int
    ranges: list[Range]


class Effects:
    """What a batch of events asks for. Nothing of it leaves before `entries` are durable."""

    __slots__ = (
        "alone",
        "books",
        "commands",
        "entries",
        "fenced_by",
        "histories",
        "lists",
        "proceeds",
        "replies",
    )

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.replies: dict[Peer, list[Reply]] = {}
        self.commands: dict[Peer, list[Command]] = {}
        self.alone: dict[Peer, Command] = {}  # that may have killed a worker
        self.proceeds: list[tuple[Peer, Proceed]] = []
        self.histories: list[HistoryAsked] = []
        self.books: list[BooksForwarded] = []
        self.lists: list[ListSent] = []
        self.fenced_by: int = 0  # a higher epoch than ours was seen: the shard must end

    def reply(self, origin: Peer, reply: Reply) -> None:
        """Answer a request."""
        to = self.replies.get(origin)
        if to is None:
            self.replies[origin] = [reply]
        else:
            to.append(reply)
