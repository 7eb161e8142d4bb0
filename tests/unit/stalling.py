"""A cluster that answers after a while and stalls once, in a time of its own."""

from sagacity.errors import NotTaken
from sagacity.wire import Reply, pack

MS = 1_000_000
SECOND = 1000 * MS


class StallingCluster:
    """An asker whose answers take 1 ms, but none comes within one gap.

    Args:
        stall: from when to when nothing is answered, nanoseconds.
        refuses: every so many-th start is not taken; 0: none.
    """

    connected = True

    def __init__(self, stall: tuple[int, int] = (0, 0), refuses: int = 0) -> None:
        self.now = SECOND
        self.asked: list[int] = []
        self._stall = stall
        self._refuses = refuses
        self._open: dict[int, int] = {}  # token -> when it is answered, ascending

    def clock(self) -> int:
        """Give its time."""
        return self.now

    def ask(self, saga_id: str, body: bytes) -> int:
        """Take a start."""
        token = len(self.asked)
        self.asked.append(self.now)
        at = self.now + MS
        self._open[token] = self._stall[1] if self._stall[0] <= at < self._stall[1] else at
        return token

    def poll(self, wait_ns: int) -> list[tuple[int, Reply]]:
        """Let time pass until something is answered, or so long."""
        self.now = min([self.now + wait_ns, *self._open.values()])
        ready = [token for token, at in self._open.items() if at <= self.now]
        for token in ready:
            del self._open[token]
        return [(token, self._answer(token)) for token in ready]

    def _answer(self, token: int) -> Reply:
        if self._refuses and token % self._refuses == 0:
            return Reply(token, NotTaken.code, pack(NotTaken("full", retry_after_ms=50).body()))
        return Reply(token, None, pack({"type": "checkout_complete", "status": "COMPLETED"}))
