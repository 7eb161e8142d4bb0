"""World: the time of a simulation, and processes that take turns on one thread.

Each process runs the production code as it is, in a greenlet of its own; wherever that code would
wait, or be somewhere else for a while (a poll, a sync), the twin that it calls switches to the
world, which lets time pass and goes on with whoever is next. Everything that happens is drawn from
one seed, so that a seed is a history.

A process that is killed is never resumed: what it held stays as it was, as after kill -9. Knows no
sockets, files or sagas.
"""

from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from random import Random
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

MS = 1_000_000
SECOND = 1_000_000_000
WALL_MS = 1_700_000_000_000  # at the beginning


EVENTS_BETWEEN_LOOKS = 16  # whether all is done


class Process:
    """A process: its turns, its death.

    Args:
        world: that it lives in.
        name: such as "shard-0", unique among the living.
        life: counts the processes of that name, from 1.
    """

    def __init__(self, world: "World", name: str, life: int) -> None:
        self.world = world
        self.name = name
        self.life = life
        self.alive = True
        self.hung_until = 0
        self.dies_at: int | None = None  # at which of its points from now on
        self.waits_for: object | None = None  # the poller that it waits in
        self.token = 0  # of the wake-up that counts
        self.greenlet: Any = None
        self.at_death: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<{self.name}.{self.life}{'' if self.alive else ' dead'}>"

    def point(self) -> None:
        """Pass a place at which it may die: between any two effects that others can see."""
        if self.dies_at is not None:
            self.dies_at -= 1
            if self.dies_at < 0:
                self.world.kill(self)

    def notify(self, poller: object) -> None:
        """Wake it if it waits there."""
        if self.waits_for is poller:
            self.waits_for = None
            self.world.resume_in(self, self.world.wake_ns())


class World:
    """Time, chance, and who is next.

    Args:
        seed: of everything that is drawn while it runs.
        on_end: told when a process ended by itself, with what it raised, if anything.
        turn_ns: longest time that a turn of a process takes, its syncs left out.
        sync_ns: longest time that a disk takes to sync.
    """

    def __init__(
        self,
        seed: int,
        on_end: Callable[[Process, BaseException | None], None],
        *,
        turn_ns: int,
        sync_ns: int,
    ) -> None:
        self.turn_ns = turn_ns
        self.sync_ns = sync_ns
        self.now = SECOND  # not 0: some instants mean "never" there
        self.wall_jump_ms = 0
        self.random = Random(seed)
        self._chance = self.random.random
        self.processes: dict[str, Process] = {}
        self.switches = 0
        self._on_end = on_end
        self._lives: dict[str, int] = {}
        self._graveyard: list[Process] = []
        self._due: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._hub: Any = getcurrent()
        self._switch = self._hub.switch
        self._current: Process | None = None
        self._trace = blake2b(digest_size=16)

    # -- time -----------------------------------------------------------------------------------

    def at(self, when: int, call: Callable[..., None], *args: Any) -> None:
        """Have something happen at an instant."""
        self._order = order = self._order + 1
        heappush(self._due, (when, order, call, args))

    def after(self, pause: int, call: Callable[..., None], *args: Any) -> None:
        """Have something happen after so many nanoseconds."""
        self._order = order = self._order + 1  # not by `at`: half of what happens comes here
        heappush(self._due, (self.now + pause, order, call, args))

    def run(self, until: int, done: Callable[[], bool]) -> bool:
        """Let time pass until an instant, or until `done`; say whether it was."""
        due = self._due
        while due and due[0][0] <= until:
            for _ in range(EVENTS_BETWEEN_LOOKS):
                if not due or due[0][0] > until:
                    break
                when, _, call, args = heappop(due)
                self.now = max(self.now, when)
                call(*args)
            if done():
                return True
        return done()

    def wall_ms(self) -> int:
        """Give the wall clock: it jumps."""
        return WALL_MS + self.now // MS + self.wall_jump_ms

    def wake_ns(self) -> int:
        """Draw how long a process needs to wake up."""
        return 5_000 + int(self._chance() * 55_000)

    def note(self, what: bytes) -> None:
        """Add to the trace, by which two runs are compared."""
        self._trace.update(what)

    def trace(self) -> str:
        """Give a hash of all that was noted."""
        return self._trace.hexdigest()

    # -- processes ------------------------------------------------------------------------------

    @property
    def current(self) -> Process:
        """The process whose turn it is."""
        assert self._current is not None
        return self._current

    def spawn(self, name: str, main: Callable[[Process], None]) -> Process:
        """Start a process; it begins to run in a moment."""
        known = self.processes.get(name)
        assert known is None or not known.alive, f"{name} lives"
        self._lives[name] = life = self._lives.get(name, 0) + 1
        process = self.processes[name] = Process(self, name, life)
        process.greenlet = greenlet(self._main_of(process, main), self._hub)
        self.resume_in(process, self.wake_ns())
        return process

    def kill(self, process: Process) -> None:
        """End a process as kill -9 does; called from itself, this does not return."""
        if not process.alive:
            return
        self._bury(process)
        if self._current is process:
            self._switch()
            raise AssertionError("the dead do not go on")

    def hang(self, process: Process, pause: int) -> None:
        """Stop a process for a while, as SIGSTOP does."""
        process.hung_until = max(process.hung_until, self.now + pause)

    def resume_in(self, process: Process, pause: int) -> None:
        """Go on with a process after a pause; an earlier wake-up of it does not count any more."""
        process.token = token = process.token + 1
        self.after(pause, self._resume, process, token)

    def pause(self, pause: int) -> None:
        """Let time pass for the process whose turn it is, while others run."""
        self.resume_in(self.current, pause)
        self._switch()

    def wait(self, poller: object, timeout: int | None) -> None:
        """Wait in a poller, until it is notified or its time is out."""
        process = self.current
        process.waits_for = poller
        process.token = token = process.token + 1
        if timeout is not None:
            self.after(timeout, self._resume, process, token)
        self._switch()
        process.waits_for = None

    def close(self) -> None:
        """End every process and unwind the dead, so that what they hold is let go of."""
        for process in self.processes.values():
            if process.alive:
                self._bury(process)
        for process in self._graveyard:
            if not process.greenlet.dead:
                self._current = process
                process.greenlet.throw(GreenletExit)
        self._current = None
        self._graveyard.clear()

    def _main_of(self, process: Process, main: Callable[[Process], None]) -> Callable[[], None]:
        def run() -> None:
            error: BaseException | None = None
            try:
                main(process)
            except GreenletExit:
                return
            except BaseException as raised:  # a broken invariant is no Exception
                error = raised
            if process.alive:
                self._bury(process)
                self._on_end(process, error)

        return run

    def _bury(self, process: Process) -> None:
        process.alive = False
        process.token += 1
        self._graveyard.append(process)
        for call in process.at_death:
            call()

    def _resume(self, process: Process, token: int) -> None:
        if token != process.token or not process.alive:
            return
        if self.now < process.hung_until:
            self.at(process.hung_until, self._resume, process, token)
            return
        self.switches += 1
        self._current = process
        process.greenlet.switch()
        self._current = None
