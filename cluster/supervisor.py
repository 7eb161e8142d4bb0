"""The supervisor: starts the processes of a cluster, starts again what ends, stops all in order.

Knows command lines, process ids and reports; nothing of what the processes do. When to start what
is decided by cluster.fleet. One thread, one poller: pidfds, reports, questions, signals.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import zmq

from cluster.child import StopSignals
from cluster.clock import Clock
from cluster.directory import RunDirectory
from cluster.fleet import ROUTER, SHARD, STARTING, SUPERVISOR, UP, Fleet, Member, Patience
from cluster.meters import SupervisorMeters
from cluster.telemetry import Log
from sagacity import wire
from sagacity.errors import Malformed, NotSupported, SagacityError
from sagacity.sockets import Context, PeerGone, pull, receive_all, receive_all_from, send_to
from sagacity.sockets import router as bind_router

EXIT_MALFORMED: Final = Malformed.exit_code  # what it was told cannot be; trying again is no use
_FRAMES_MAX: Final = 256  # taken from one socket in one turn
_TURN_MS: Final = 1_000  # longest wait
_LATE_NS: Final = 500_000_000  # a turn this late could not listen (DESIGN 3)
_SHARDS_MORE_MS: Final = 1_000  # after the drain; then router and workers are told to end, too
_ALL_MORE_MS: Final = 2_000  # after the drain; then whoever is left is killed


class Supervisor:
    """Runs a fleet. Make it and call it in the main thread: children die with that thread.

    Args:
        commands: for each role and index, the command line that starts it.
        run: the run directory, locked by the caller.
        clock: for restarts and for silence.
        ctx: for its two sockets.
        patience: for what ends.
        drain_ms: how long shards may finish what is in flight after SIGTERM.
        about: what `status` says of the cluster as a whole.
        meters: of this process.
        log: for events.
        before_router: called once every shard is up; the router is started only then, so that no
            shard takes a saga while another one may yet refuse to run. None: it is started at once.
    """

    def __init__(
        self,
        commands: Mapping[tuple[str, int], Sequence[str]],
        run: RunDirectory,
        clock: Clock,
        ctx: Context,
        *,
        patience: Patience,
        drain_ms: int,
        about: Mapping[str, Any],
        meters: SupervisorMeters,
        log: Log,
        before_router: Callable[[], None] | None = None,
    ) -> None:
        router_last = before_router is not None
        self.fleet = Fleet(commands, patience, clock.monotonic_ns(), router_last=router_last)
        self._before_router = before_router
        self.about = dict(about)
        self.meters = meters
        meters.processes.source = self.fleet.states
        self._log = log
        self.fault: SagacityError | None = None
        self._has_served = False  # the cluster as a whole, at least once
        self.metrics_port = 0  # where the composition root serves our metrics
        self._commands = commands
        self._clock = clock
        self._drain_ms = drain_ms
        self._processes: dict[int, tuple[Member, subprocess.Popen[bytes]]] = {}  # by pidfd
        self._listened_ns = clock.monotonic_ns()  # when it last looked for what has come
        self._signals = StopSignals()
        self._reports = pull(ctx, run.reports)
        self._questions = bind_router(ctx, run.supervisor)
        self._poller = ctx.poller()
        self._poller.register(self._reports, zmq.POLLIN)
        self._poller.register(self._questions, zmq.POLLIN)
        self._poller.register(self._signals.wakeup_fd, zmq.POLLIN)

    @property
    def stopping(self) -> bool:
        """Whether a signal or a fault ends the cluster."""
        return self._signals.stopping or self.fault is not None

    def run(self, on_ready: Callable[[], None]) -> None:
        """Run until SIGTERM or SIGINT, then drain. No process is left when it returns or raises.

        Args:
            on_ready: called once, when the cluster serves for the first time.

        Raises:
            SagacityError: a process cannot do what it was told: one that says so before the cluster
                has served, or the router at any start.
        """
        told = False
        try:
            while not self.stopping:
                self.turn()
                if not told and self._has_served:
                    told = True
                    on_ready()
            self._drain()
        finally:
            self._kill_all()
        if self.fault is not None:
            raise self.fault

    def start_due(self) -> None:
        """Start whoever is due."""
        for member in self.fleet.due(self._clock.monotonic_ns()):
            self._start(member)

    def turn(self) -> None:
        """Start whoever is due, wait for something to happen, take it in."""
        self.start_due()
        before = self._clock.monotonic_ns()
        dues = [self.fleet.next_due_ns(), self.fleet.next_hung_ns()]
        waits = [max(0, (due - before) // 1_000_000 + 1) for due in dues if due is not None]
        wait_ms = min([*waits, _TURN_MS])
        ready = dict(self._poller.poll(wait_ms))
        now = self._clock.monotonic_ns()
        self._notice_lost_time(now, wait_ms * 1_000_000)
        if self._signals.wakeup_fd in ready:
            self._signals.woken()
        if self._take_reports(now):
            self._kill_hung(now)
        if self._before_router is not None and self.fleet.shards_up():
            self._before_router()
            self._before_router = None
            self.fleet.release_router(now)
        if not self._has_served and self.fleet.ready():
            self._has_served = True
            self.fleet.release_auditor(now)
        for descriptor in [fd for fd in self._processes if fd in ready]:
            self._reap(descriptor)
        self._answer(now)

    def status(self, now_ns: int) -> dict[str, Any]:
        """Give the body that answers `status`."""
        processes = self.fleet.processes(now_ns)
        own = {
            "role": SUPERVISOR,
            "index": 0,
            "pid": os.getpid(),
            "state": UP,
            "restarts": 0,
            "silent_ms": 0,
            "metrics_port": self.metrics_port,
            "facts": {},
        }
        return {
            "type": "status",
            "ready": self.fleet.ready(),
            **self.about,
            "processes": [own, *processes],
            "shards": [
                {"shard": row["index"], "state": row["state"], **row["facts"]}
                for row in processes
                if row["role"] == SHARD
            ],
        }

    def close(self) -> None:
        """Kill what is left, close the sockets, give the signals back."""
        self._kill_all()
        self._reports.close()
        self._questions.close()
        self._signals.close()

    def _start(self, member: Member) -> None:
        command = self._commands[member.role, member.index]
        try:
            # A group of its own: a terminal's SIGINT is for the supervisor alone.
            process = subprocess.Popen(  # noqa: S603 - no shell, and the command is our own
                command, stdin=subprocess.DEVNULL, stdout=2, process_group=0
            )
            descriptor = _watch(process)
        except OSError as error:
            now = self._clock.monotonic_ns()
            member.started(0, now)
            self.fleet.ended(member, now)
            self._log.warning("process_not_started", **_named(member), error=str(error))
            return
        member.started(process.pid, self._clock.monotonic_ns())
        self._processes[descriptor] = (member, process)
        self._poller.register(descriptor, zmq.POLLIN)

    def _reap(self, descriptor: int) -> None:
        member, process = self._processes.pop(descriptor)
        self._poller.unregister(descriptor)
        os.close(descriptor)
        code = process.wait()
        served, named = member.served, _named(member)
        now = self._clock.monotonic_ns()
        self.fleet.ended(member, now, refused=code == EXIT_MALFORMED)
        if not self.fleet.stopping:
            self.meters.process_exits.add((member.role,))
        said = {"code": code, "served": served, "state": member.state, **named}
        if self.fleet.stopping:
            self._log.info("process_ended", **said)
            return
        # Of a cluster that has never served the configuration is wrong: a restart reads the same.
        # Later one place may be damaged, and the rest serves; but without a router nobody does.
        final = not self._has_served or (member.role == ROUTER and not served)
        if code == EXIT_MALFORMED and final and self.fault is None:
            self.fault = Malformed(
                f"{member.role}-{member.index} cannot serve: its own words are above"
            )
        wait_ms = 0 if member.start_at_ns is None else (member.start_at_ns - now) // 1_000_000
        self._log.warning("process_ended", **said, restart_in_ms=wait_ms)

    def _kill_hung(self, now_ns: int) -> None:
        """Kill who is silent for too long; `_reap` sees its end, and what follows is as usual.

        A stopped writer would keep its database's lock for ever: SIGKILL frees it.
        """
        hung = self.fleet.hung(now_ns)
        if not hung:
            return
        for descriptor, (member, _) in self._processes.items():
            if member in hung:
                silent_ms = (now_ns - member.heard_ns) // 1_000_000
                self._log.error("process_hung", **_named(member), silent_ms=silent_ms)
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)

    def _take_reports(self, now_ns: int) -> bool:
        """Take reports in; say whether these were all that have come."""
        frames, drained = receive_all(self._reports, _FRAMES_MAX)
        for frame in frames:
            try:
                changed = self.fleet.reported(wire.read_report(frame), now_ns)
            except Malformed as error:
                self._log.warning("report_dropped", reason=error.text)
                continue
            if changed is not None and changed.state != STARTING:
                took_ms = (now_ns - changed.started_ns) // 1_000_000
                # Debug: an operator hears it from the process itself.
                self._log.debug(
                    "process_state_changed",
                    state=changed.state,
                    since_start_ms=took_ms,
                    **_named(changed),
                )
        return drained

    def _answer(self, now_ns: int) -> None:
        frames, _ = receive_all_from(self._questions, _FRAMES_MAX)
        for identity, frame in frames:
            try:
                replies = [self._reply(asked, now_ns) for asked in wire.read_requests(frame)]
            except Malformed as error:
                self._log.warning("question_dropped", reason=error.text)
                continue
            for payload in wire.frames(replies):
                try:
                    send_to(self._questions, identity, payload)  # full: the client asks again
                except PeerGone:
                    break

    def _reply(self, asked: wire.Request, now_ns: int) -> wire.Reply:
        if asked.kind != wire.STATUS:
            kind = wire.KINDS.get(asked.kind, str(asked.kind))
            refusal = NotSupported(f"the supervisor does not answer {kind}")
            return wire.Reply(asked.request, refusal.code, wire.pack_error(refusal))
        return wire.Reply(asked.request, None, wire.pack(self.status(now_ns)))

    def _notice_lost_time(self, now_ns: int, waited_ns: int) -> None:
        late_ns = now_ns - self._listened_ns - waited_ns
        self._listened_ns = now_ns
        self.meters.event_loop_lag.observe(max(0, late_ns))
        if late_ns > _LATE_NS:
            self.fleet.lost_time(late_ns)
            self._log.warning("turn_was_late", late_ms=late_ns // 1_000_000)

    def _drain(self) -> None:
        """Let the shards finish while router and workers still serve them, then end those too."""
        drained_ns = self._clock.monotonic_ns() + self._drain_ms * 1_000_000
        self._log.info("draining_started", drain_ms=self._drain_ms)
        self.fleet.stop()
        self._send(signal.SIGTERM, SHARD)
        self._until_gone(drained_ns + _SHARDS_MORE_MS * 1_000_000, SHARD)
        self._send(signal.SIGTERM)
        self._until_gone(drained_ns + _ALL_MORE_MS * 1_000_000)

    def _until_gone(self, give_up_ns: int, *roles: str) -> None:
        while self.fleet.running(*roles) and self._clock.monotonic_ns() < give_up_ns:
            self.turn()

    def _send(self, number: signal.Signals, *roles: str) -> None:
        wanted = set(roles)
        for descriptor, (member, _) in self._processes.items():
            if not wanted or member.role in wanted:
                signal.pidfd_send_signal(descriptor, number)

    def _kill_all(self) -> None:
        for descriptor, (member, _) in self._processes.items():
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            self._log.warning("process_killed", **_named(member))
        self.fleet.stop()
        for descriptor in list(self._processes):
            self._reap(descriptor)


def _watch(process: "subprocess.Popen[bytes]") -> int:
    """Give a pidfd of a process that has just been started; without one it does not stay."""
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise


def _named(member: Member) -> dict[str, object]:
    return {"process": member.role, "process_index": member.index, "process_pid": member.pid}
