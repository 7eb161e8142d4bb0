"""Two processes that both take themselves for the owner of one shard (PROOF E1).

    python -m tests.chaos.two_owners [--which supervised,lock_held,lock_removed,replaced,led_back]
                                     [--seed S] [--json FILE]

A real shard under load is stopped by SIGSTOP, as a machine that pauses does it. Then another one
comes, in each way that there is:

* supervised: its supervisor finds it silent, kills it, waits for its end, starts the next.
* lock_held: somebody starts a second one by hand. It is refused: the lock is held by a stopped
  process, too.
* lock_removed: the same, and the lock's file was removed before. The lock can be had then; SQLite's
  own, which is held on the journal, refuses it.
* replaced: the shard's directory was moved away and a copy put in its place: both locks are of
  files that nobody looks at. The second one serves, with workers and router that were started
  anew. The first one goes on, and clients that still have a connection to it ask it for new
  checkouts: it acknowledges none, and ends.
* led_back: the same, but workers find the way to the first one, and nobody asks it for anything:
  it gives out the commands that it had. Services that have seen the second one's epoch refuse
  them; it ends.

Afterwards every checkout that was asked through the router is answered, the books balance.
Nobody stopped, or no second one that served where one should: void. A minute and a half.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import zmq

from bench.figures import Figures
from bench.load import body_of
from cluster.directory import DataDirectory, RunDirectory
from sagacity import sockets, wire
from sagacity.errors import Conflict, Malformed, SagacityError
from tests.chaos import processes
from tests.chaos.cluster import SERVICES, RoundFailed
from tests.chaos.commands import add_json, add_list, add_seed, end
from tests.chaos.shop import Shop

RATE: Final = 100.0
SOON_S: Final = 20.0
ASKED_OF_OLD: Final = 50
ANSWERED_S: Final = 2.0  # whatever it acknowledges it does so by then
SILENT_MS: Final = 2_000
NEVER_MS: Final = 3_600_000  # the supervisor leaves a stopped shard alone
HELD_MS: Final = 20.0  # a charge, so that commands are out when the shard is stopped


class Scene:
    """A shop, its shard 0, and who else wants to be that.

    Args:
        shop: with two shards.
        stack: ends what is started here.
    """

    def __init__(self, shop: Shop, stack: ExitStack) -> None:
        self.shop = shop
        self.customers = shop.customers()
        self._stack = stack
        cluster_id = DataDirectory(shop.data).read().cluster_id
        self.run = RunDirectory.of(cluster_id, shop.cluster.env)
        shop.run(2, (self.customers, RATE))
        self.first = self._shard()

    def _shard(self) -> processes.Process:
        pid = self.shop.everyone()["shard-0"]
        found = processes.look(pid) if pid else None
        if found is None:
            raise RoundFailed("shard 0 is not there")
        return found

    def stop_first(self) -> None:
        """Have the first owner stand still, with sagas in flight."""
        self.customers.come(50)
        self.customers.hear(0.02)
        if not processes.send([self.first], signal.SIGSTOP):
            raise RoundFailed("void: shard 0 had ended by itself")

    def second(self) -> "subprocess.Popen[bytes]":
        """Start another shard 0 by hand, as the supervisor would."""
        command = [sys.executable, "-P", "-m", "shard", "--index", "0"]
        command += ["--data", str(self.shop.data), "--run", str(self.run.path)]
        command += ["--config", str(self.shop.config), "--parent", str(os.getpid())]
        env = {**os.environ, **self.shop.cluster.env}
        process = subprocess.Popen(command, env=env, stderr=self.shop.cluster.stderr)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def replace(self) -> None:
        """Move the shard's directory away, put a copy in its place; likewise leave its sockets."""
        place = DataDirectory(self.shop.data).shard(0)
        moved = place.with_name("moved-0")
        place.rename(moved)
        shutil.copytree(moved, place)
        for address in (self.run.shard(0), self.run.workers(0)):
            path = Path(address.removeprefix("ipc://"))
            path.rename(path.with_suffix(".first"))  # who is connected to the first one stays so

    def restart(self, *roles: str) -> None:
        """Kill the working processes of roles: the next ones connect to who is there now."""
        gone = [process for role in roles for process in self.shop.processes(role)]
        processes.kill(gone)

    def until(self, holds: Callable[[], object], what: str, rate: float = 0.0) -> None:
        """Let customers come until something holds.

        Raises:
            RoundFailed: it does not.
        """
        give_up = time.monotonic() + SOON_S
        while not holds():
            if time.monotonic() > give_up:
                raise RoundFailed(f"{what} did not happen within {SOON_S:g} s")
            self.shop.run(0.2, (self.customers, rate))

    def until_served_by_second(self) -> None:
        """Let customers of shard 0 come until one of them is served, by whoever it is now."""
        fresh = self.shop.customers(0)
        give_up = time.monotonic() + SOON_S
        while not fresh.served:
            if time.monotonic() > give_up:
                raise RoundFailed(f"void: nobody was served by a second owner in {SOON_S:g} s")
            self.shop.run(0.5, (fresh, 10.0), (self.customers, RATE))
        self.shop.until_served(fresh)

    def gone(self) -> bool:
        """Say whether the first owner has ended."""
        return not processes.is_alive(self.first)


def supervised(scene: Scene, figures: Figures) -> None:
    """Killed and waited for, then the next: never two."""
    scene.stop_first()
    overlaps = 0

    def next_one() -> bool:
        nonlocal overlaps
        row = next(row for row in scene.shop.rows("shard") if row["index"] == 0)
        fresh = row["pid"] not in {None, 0, scene.first.pid}
        overlaps += fresh and not scene.gone()
        return fresh and row["state"] == "up"

    scene.until(next_one, "a next shard 0", RATE)
    figures.add("supervised: first owners that were killed", "", int(scene.gone()), at_least=1)
    figures.add("supervised: moments with two of them", "", overlaps, at_most=0)


def lock_held(scene: Scene, figures: Figures) -> None:
    """A stopped process holds its lock."""
    scene.stop_first()
    code = scene.second().wait(SOON_S)
    processes.send([scene.first], signal.SIGCONT)
    figures.add("lock held: second owners refused", "", int(code == Conflict.exit_code), at_least=1)


def lock_removed(scene: Scene, figures: Figures) -> None:
    """Behind our lock there is SQLite's."""
    scene.stop_first()
    DataDirectory(scene.shop.data).shard_lock(0).unlink()
    code = scene.second().wait(SOON_S)
    processes.send([scene.first], signal.SIGCONT)
    refused = int(code == Malformed.exit_code)
    figures.add("lock removed: second owners refused", "", refused, at_least=1)
    figures.add("lock removed: the first one lives", "", int(not scene.gone()), at_least=1)


def _taken_over(scene: Scene) -> None:
    """Have a second owner serve on a copy, while the first one stands still."""
    scene.stop_first()
    scene.replace()
    scene.second()
    scene.restart(*SERVICES, "router")
    scene.shop.pace(0.0)
    scene.until_served_by_second()


def replaced(scene: Scene, figures: Figures) -> None:
    """What the first one is asked for it does not acknowledge."""
    ctx = sockets.context()
    old = sockets.dealer(ctx, scene.run.shard(0))
    try:
        old.poll(1000, zmq.POLLOUT)
        _taken_over(scene)
        ids = [f"late-{at}" for at in range(10 * ASKED_OF_OLD)]
        ids = [each for each in ids if scene.shop.slots.owner(each) == 0][:ASKED_OF_OLD]
        asked = [
            wire.Request(wire.SUBMIT, saga_id, at, {}, body_of(saga_id, declined=False))
            for at, saga_id in enumerate(ids)
        ]
        sent = sum(sockets.send(old, frame) for frame in wire.frames(asked))
        processes.send([scene.first], signal.SIGCONT)
        scene.shop.run(ANSWERED_S, (scene.customers, RATE))
        frames, _ = sockets.receive_all(old, 1000)
        told = [reply for frame in frames for reply in wire.read_replies(frame)]
        taken = [reply for reply in told if reply.code is None]
    finally:
        ctx.destroy(linger=0)
    figures.add("replaced: frames of starts that the first one got", "", sent, at_least=1)
    figures.add("replaced: starts that it acknowledged", "", len(taken), at_most=0)
    scene.until(scene.gone, "the end of the first owner", RATE)
    _why(scene, "replaced", figures)


def led_back(scene: Scene, figures: Figures) -> None:
    """What the first one still sends is refused."""
    scene.shop.pace(HELD_MS)
    _taken_over(scene)
    path = Path(scene.run.workers(0).removeprefix("ipc://"))
    seconds = path.with_suffix(".second")
    path.rename(seconds)
    path.with_suffix(".first").rename(path)
    scene.restart(*SERVICES)
    time.sleep(1.0)  # for workers to be there again: the kernel takes their connections
    processes.send([scene.first], signal.SIGCONT)
    scene.until(scene.gone, "the end of the first owner")
    seconds.replace(path)
    scene.restart(*SERVICES)
    scene.until_served_by_second()
    _why(scene, "led back", figures)


def _why(scene: Scene, how: str, figures: Figures) -> None:
    """Tell by what the first owner ended."""
    lines = scene.shop.logged("shard_ended", "shard_refused", "bug_found")
    mine = [line for line in lines if line["pid"] == scene.first.pid]
    told = [line.get("cause", "what a service has seen") for line in mine]
    figures.add(f"{how}: first owners that ended by themselves", "", len(told), at_least=1)
    for cause in sorted(set(told)):
        figures.add(f"{how}: ended by {cause}", "", told.count(cause))


WHICH: Final[dict[str, Callable[[Scene, Figures], None]]] = {
    "supervised": supervised,
    "lock_held": lock_held,
    "lock_removed": lock_removed,
    "replaced": replaced,
    "led_back": led_back,
}


def one(name: str, seed: str, figures: Figures) -> None:
    """Do one of them on a cluster of its own."""
    silent = SILENT_MS if name == "supervised" else NEVER_MS
    env = {"SAGACITY_SUPERVISOR__SHARD_SILENT_MS": str(silent)}
    env["SAGACITY_SUPERVISOR__HEARTBEAT_MS"] = "200"
    try:
        with Shop(f"{seed}/{name}", env=env) as shop, ExitStack() as stack:
            scene = Scene(shop, stack)
            WHICH[name](scene, figures)
            shop.run(2, (scene.customers, RATE))
            shop.until_served(scene.customers)
            unserved = scene.customers.refused + scene.customers.unsure
            figures.add(f"{name}: customers not served", "", unserved, at_most=0)
            shop.check_books(figures, f"{name}: ")
    except (RoundFailed, SagacityError, subprocess.TimeoutExpired) as error:
        figures.missing(f"{name}: to its end", "", str(error), at_most=0)


def main(argv: Sequence[str] | None = None) -> int:
    """Do each of them.

    Returns:
        0 if everything that is asked is met, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.two_owners")
    add_list(parser, "--which", WHICH)
    add_seed(parser)
    add_json(parser)
    args = parser.parse_args(argv)
    print(f"seed {args.seed}", flush=True)
    figures = Figures("two owners of one shard")
    for name in args.which:
        one(name, args.seed, figures)
    return end(figures, args.json, "E1")


if __name__ == "__main__":
    sys.exit(main())
