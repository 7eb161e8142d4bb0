"""The fleet: which process to start when, and what is known of each. Pure.

Knows no process, socket or clock: the supervisor tells what happened and asks what is due.

    starting -> standby -> up          as the process reports
    any -> starting                    it ended; started again at once, then after 0.1 s doubling
    starting -> quarantined            too many quick exits in a row without having served
    any -> stopped                     it ended while the cluster stops

A process that is silent for too long hangs. It is killed, once, and then has ended like any other.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from msgspec import Struct

from sagacity.wire import Report

STARTING: Final = "starting"
STANDBY: Final = "standby"
UP: Final = "up"
QUARANTINED: Final = "quarantined"
STOPPED: Final = "stopped"

ROUTER: Final = "router"
SHARD: Final = "shard"
SUPERVISOR: Final = "supervisor"
AUDITOR: Final = "auditor"  # it looks on: the cluster serves without it

_MS: Final = 1_000_000  # nanoseconds


class Patience(Struct, frozen=True):
    """How a process that ends is started again, and when a silent one hangs.

    Args:
        restart_ms: before the second restart in a row; the first comes at once, later ones double.
        restart_max_ms: the doubling ends here.
        quarantine_exits: quick exits in a row after which it is not started any more.
        quarantine_within_ms: an exit is quick when it comes this soon after the start.
        worker_hung_ms: a worker's silence that ends it.
        shard_silent_ms: a shard's or the router's.
    """

    restart_ms: int = 100
    restart_max_ms: int = 5_000
    quarantine_exits: int = 8
    quarantine_within_ms: int = 5_000
    worker_hung_ms: int = 10_000
    shard_silent_ms: int = 15_000


class Member:
    """One place in the fleet, and the process that fills it now.

    Attributes:
        pid: of the process, None between two of them.
        state: one of this module's states.
        metrics_port: 0 until the process has said it.
        facts: of its last report.
        start_at_ns: when to start it, None while it runs and when it shall not.
        heard_ns: when it was started or last reported; time that the supervisor itself lost is
            taken out, so a pause of the whole machine makes nobody look silent.
        restarts: since the supervisor began.
        condemned: the process was found to hang, and is being killed.
    """

    __slots__ = (
        "_exits",
        "_quick_exits",
        "condemned",
        "facts",
        "heard_ns",
        "index",
        "metrics_port",
        "pid",
        "restarts",
        "role",
        "served",
        "start_at_ns",
        "started_ns",
        "state",
    )

    def __init__(self, role: str, index: int, now_ns: int) -> None:
        self.role = role
        self.index = index
        self.pid: int | None = None
        self.state = STARTING
        self.metrics_port = 0
        self.facts: dict[str, int] = {}
        self.start_at_ns: int | None = now_ns
        self.started_ns = now_ns
        self.heard_ns = now_ns
        self.served = False
        self.restarts = 0
        self.condemned = False
        self._exits = 0  # in a row, without having served
        self._quick_exits = 0

    def __repr__(self) -> str:
        return f"<Member {self.role}-{self.index} {self.state} pid={self.pid}>"

    def started(self, pid: int, now_ns: int) -> None:
        """Take note that a process was started for this place."""
        self.pid = pid
        self.start_at_ns = None
        self.started_ns = self.heard_ns = now_ns
        self.served = self.condemned = False

    def ended(self, now_ns: int, patience: Patience, *, refused: bool = False) -> None:
        """Take note that the process has ended, and decide when the next one starts.

        Args:
            now_ns: monotonic.
            patience: for those that end.
            refused: it could not do what it was told, whatever it has reported before.
        """
        quick = now_ns - self.started_ns <= patience.quarantine_within_ms * _MS
        if self.served and not refused:
            self._exits = self._quick_exits = 0
        else:
            self._quick_exits = self._quick_exits + 1 if quick else 0
        self.pid = None
        self.metrics_port = 0
        self.facts = {}
        self.restarts += 1
        if self._quick_exits >= patience.quarantine_exits:
            self.state = QUARANTINED
            return
        self.state = STARTING
        wait_ms = 0
        if self._exits > 0:
            doublings = min(self._exits - 1, 32)
            wait_ms = min(patience.restart_ms << doublings, patience.restart_max_ms)
        self.start_at_ns = now_ns + wait_ms * _MS
        self._exits += 1


class Fleet:
    """All processes of a cluster but the supervisor.

    Args:
        places: role and index of each, in the order in which they are started.
        patience: for those that end.
        now_ns: monotonic.
        router_last: it is not due before `release_router`. An auditor never is before
            `release_auditor`.
    """

    def __init__(
        self,
        places: Iterable[tuple[str, int]],
        patience: Patience,
        now_ns: int,
        *,
        router_last: bool = False,
    ) -> None:
        self.members = {place: Member(*place, now_ns) for place in places}
        for member in self.members.values():
            if member.role == AUDITOR or (router_last and member.role == ROUTER):
                member.start_at_ns = None
        self.stopping = False
        self._patience = patience

    def due(self, now_ns: int) -> list[Member]:
        """Give the members to start now."""
        if self.stopping:
            return []
        return [
            member
            for member in self.members.values()
            if member.start_at_ns is not None and member.start_at_ns <= now_ns
        ]

    def hung(self, now_ns: int) -> list[Member]:
        """Give the members that hang: to be killed now. Each process is given once.

        Call it when all reports that have come are taken in. None hangs while the cluster stops:
        a process that ends does not report, and is killed after the drain anyway.
        """
        found = [
            member
            for member in self.members.values()
            if not self.stopping
            and member.pid
            and not member.condemned
            and now_ns - member.heard_ns > self._silence_ns(member)
        ]
        for member in found:
            member.condemned = True
        return found

    def _silence_ns(self, member: Member) -> int:
        """Give the silence that a member may keep."""
        patience = self._patience
        of_worker = member.role not in {ROUTER, SHARD}
        return (patience.worker_hung_ms if of_worker else patience.shard_silent_ms) * _MS

    def next_hung_ns(self) -> int | None:
        """Give the instant at which the next member hangs if it stays silent, if any may."""
        if self.stopping:
            return None
        running = [m for m in self.members.values() if m.pid and not m.condemned]
        return min((m.heard_ns + self._silence_ns(m) for m in running), default=None)

    def next_due_ns(self) -> int | None:
        """Give the instant at which `due` gives the next member, None if nobody waits."""
        waiting = [m.start_at_ns for m in self.members.values() if m.start_at_ns is not None]
        return None if self.stopping else min(waiting, default=None)

    def reported(self, report: Report, now_ns: int) -> Member | None:
        """Take a report in.

        Returns:
            The member whose state it changed, else None: also for a report of a process that has
            ended meanwhile, of a stranger, or with a state that no process may claim.
        """
        member = self.members.get((report.role, report.index))
        known = report.state in {STARTING, STANDBY, UP}
        if member is None or member.pid != report.pid or not known:
            return None
        member.heard_ns = now_ns
        member.metrics_port = report.metrics_port
        member.facts = report.facts
        if report.state != STARTING:
            member.served = True
        changed = member.state != report.state
        member.state = report.state
        return member if changed else None

    def ended(self, member: Member, now_ns: int, *, refused: bool = False) -> None:
        """Take note that a member's process has ended; as `Member.ended` says."""
        member.ended(now_ns, self._patience, refused=refused)
        if self.stopping:
            member.state = STOPPED

    def stop(self) -> None:
        """Start nobody any more."""
        self.stopping = True

    def lost_time(self, lost_ns: int) -> None:
        """Take out of everybody's silence the time in which the supervisor could not listen."""
        for member in self.members.values():
            member.heard_ns += lost_ns

    def ready(self) -> bool:
        """Say whether the cluster serves: the router, every shard, one worker of each service."""
        up = {role for (role, _), member in self.members.items() if member.state == UP}
        return all(
            member.state == UP if role in {ROUTER, SHARD} else role in up
            for (role, _), member in self.members.items()
            if role != AUDITOR
        )

    def shards_up(self) -> bool:
        """Say whether every shard is up."""
        return all(m.state == UP for m in self.members.values() if m.role == SHARD)

    def release_router(self, now_ns: int) -> None:
        """Let the router be due now."""
        self._release(ROUTER, now_ns)

    def release_auditor(self, now_ns: int) -> None:
        """Let the auditor be due now, if there is one: the cluster serves for the first time."""
        self._release(AUDITOR, now_ns)

    def _release(self, role: str, now_ns: int) -> None:
        for member in self.members.values():
            if member.role == role:
                member.start_at_ns = now_ns

    def running(self, *roles: str) -> list[Member]:
        """Give the members of these roles, or of any, that have a process."""
        return [
            member
            for member in self.members.values()
            if member.pid is not None and (not roles or member.role in roles)
        ]

    def states(self) -> dict[tuple[str, ...], float]:
        """Give how many members of each role are in each state; any thread may ask."""
        return {**Counter((member.role, member.state) for member in self.members.values())}

    def processes(self, now_ns: int) -> list[dict[str, Any]]:
        """Give a row for each member, as `status` shows it; pid is 0 where no process is."""
        return [
            {
                "role": member.role,
                "index": member.index,
                "pid": member.pid or 0,
                "state": member.state,
                "restarts": member.restarts,
                "silent_ms": max(0, now_ns - member.heard_ns) // _MS if member.pid else 0,
                "metrics_port": member.metrics_port,
                "facts": member.facts,
            }
            for member in self.members.values()
        ]
