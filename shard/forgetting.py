"""Forgetting: how each service comes to know which sagas it may forget. Pure.

A list is journalled, then sent to one worker of each service until that service has said that it
is durable there; so is what each has said. A service forgets nothing that no list names.

    add -> Forgotten -> sent -> applied -> ForgetTaken -> ... -> all have taken it: the list is gone
            when a worker comes, and every 5 s until it is taken
"""

from sagacity.ranges import Range
from sagacity.wire import FORGET_RANGES_MAX
from shard.course import Course
from shard.effects import Effects, ListSent
from shard.entries import ForgetTaken, Forgotten
from shard.events import Instant
from shard.pools import Pool, Worker
from shard.sagas import MS

LISTS_OUT_MAX = 4  # sent to a service and not taken
LISTS_MAX = 256  # that some service has not taken; `has_room` says whether there may be more
REPEAT_NS = 5_000 * MS  # after which what was not taken is sent again

_NEVER = 1 << 63


class Forgetting:
    """Sends the lists that the journal says are not taken.

    Args:
        course: whose state and pools they are.

    `due` is the loop time from which `send` may have something to do.
    """

    def __init__(self, course: Course) -> None:
        self.due = 0
        self._course = course
        self._state = course.state
        self._tally = course.tally
        # Of each service: when a list was sent, in that order.
        self._out: dict[str, dict[int, int]] = {name: {} for name in course.pools}

    @property
    def has_room(self) -> bool:
        """Whether another list may be added: a service that is away for long must not fill us."""
        return len(self._state.lists_open) < LISTS_MAX

    def add(self, ranges: list[Range], ordinal: int, fx: Effects) -> None:
        """Have sagas forgotten that are final and past retention.

        Args:
            ranges: normal ranges of their counts.
            ordinal: finished sagas below it are forgotten by the shard itself.
            fx: where the entries go.
        """
        for at in range(0, max(len(ranges), 1), FORGET_RANGES_MAX):
            number = self._state.lists + 1
            entry = Forgotten(number, ranges[at : at + FORGET_RANGES_MAX], ordinal)
            fx.entries.append(entry)
            self._state.forget(entry, self._course.seq)
        self.due = 0

    def came(self, service: str) -> None:
        """A worker came: what another may have lost is sent to it."""
        self._out[service].clear()
        self.due = 0

    def applied(self, worker: Worker, shard: int, list_number: int, fx: Effects) -> None:
        """A list is durable at a service."""
        service = worker.pool.service
        if shard != self._course.shard or not self._state.lacks(service, list_number):
            self._tally.absorbed("list_repeated")
            return
        entry = ForgetTaken(service, list_number)
        fx.entries.append(entry)
        self._state.forget_taken(entry, self._course.seq)
        self._out[service].pop(list_number, None)
        self.due = 0

    def send(self, now: Instant, fx: Effects) -> None:
        """Send what is due to one worker of each service."""
        self.due = _NEVER
        for service, out in self._out.items():
            for number, sent_at in list(out.items()):
                if sent_at > now.ns - REPEAT_NS:
                    break
                del out[number]
            self._send_to(self._course.pools[service], out, now, fx)
            if out:
                self.due = min(self.due, next(iter(out.values())) + REPEAT_NS)

    def _send_to(self, pool: Pool, out: dict[int, int], now: Instant, fx: Effects) -> None:
        worker = next((each for each in pool.workers.values() if each.capacity), None)
        for number, ranges in self._state.lists_open.items():
            if len(out) >= LISTS_OUT_MAX:
                return
            if number in out or not self._state.lacks(pool.service, number):
                continue
            out[number] = now.ns  # though nobody is there: looked at again when that time is over
            if worker is not None:
                fx.lists.append(ListSent(worker.peer, number, ranges))
