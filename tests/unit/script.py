"""Transcripts: scripts of events, and what the engine asks for, as text that a person can read.

A file is a sequence of blocks. The lines above `----` are one batch of events; those below are
what the engine asked for. `SAGACITY_REWRITE=1 pytest tests/unit/test_engine_transcripts.py`
writes the lower parts anew; read the difference before you believe it.

    rules deadline_ms=5000 attempts=2 inflight_max=1      the first block, where needed
    workers inventory payment [capacity=8]                HELLO, each called like its service
    worker NAME SERVICE [capacity=8] · beat NAME|all [capacity=0] · gone NAME
    start ID [user= items=abc123*2,xyz789 address= msg= by=CLIENT] [submit] · body KIND ID JSON
    recall ID [as start, submit too]: a start for which the router had no room
    cancel|retry ID REASON [msg=] · show ID · books sagas|finished|SERVICE [from= upto=]
    ok|declined|failed|... NAME ID [action] [attempt=] [keep]      `keep`: the worker still has it
       [body=JSON raw=HEX by=OTHER epoch= step= number= direction= outcome=]
    begins NAME ID          the worker is about to run a command that it got alone
    wait 3s · next (to where the engine does something; workers live) · busy (no timers yet)
    wall +1h · restart · drain
    forget 1-3 5 [ordinal=4] (counts, at the end of the step) · taken NAME LIST [shard=0]

Marks below the line: `+` an entry, `>` a command, `<` a reply, `#` counted, `!` the shard ends.
"""

import json
import os
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from sagacity import wire
from sagacity.ids import ACTION, COMPENSATION, DIRECTIONS
from sagacity.saga import Retry
from sagacity.wire import answer_to
from shard import phases
from shard.effects import Effects
from shard.entries import (
    AttemptEnded,
    Entry,
    Finished,
    ForgetTaken,
    Forgotten,
    Opened,
    Quarantined,
    Ran,
    RetryAsked,
    Started,
    TurnedBack,
)
from shard.events import (
    Answered,
    CommandBegun,
    Event,
    ListApplied,
    Requests,
    WorkerCame,
    WorkerLives,
    WorkerWent,
)
from shard.sagas import MS
from tests.unit.world import Rules, World, loosely, order

LINE = "----"
UNITS = {"ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000}
OUTCOMES = {name.removeprefix("refused_"): code for code, name in enumerate(wire.OUTCOMES)}
KINDS = {name: kind for kind, name in wire.KINDS.items()}
HOPS_MAX = 200


def check_transcript(path: Path) -> None:
    """Play a transcript, and compare; or write it anew where the environment says so."""
    written = path.read_text()
    played = play_transcript(written)
    if os.environ.get("SAGACITY_REWRITE"):
        path.write_text(played)
        return
    assert played == written


def play_transcript(text: str) -> str:
    """Give the transcript with its lower parts as they come out now."""
    player = Player()
    out = []
    for block in text.strip("\n").split("\n\n"):
        upper = block.split(f"\n{LINE}")[0]
        said = player.play(_events(upper)) if _events(upper) else None
        out.append("\n".join([upper] if said is None else [upper, LINE, *(said or ["nothing"])]))
    return "\n\n".join(out) + "\n"


def above(text: str) -> list[list[str]]:
    """Give the upper parts of a transcript's blocks, without comments."""
    blocks = text.strip("\n").split("\n\n")
    return [lines for block in blocks if (lines := _events(block.split(f"\n{LINE}")[0]))]


def _events(upper: str) -> list[str]:
    return [line for line in upper.splitlines() if not line.startswith("#")]


class Player:
    """Plays blocks against one World."""

    def __init__(self) -> None:
        self.world: World | None = None
        self._counted: Counter[tuple[str, ...]] = Counter()

    def play(self, lines: list[str]) -> list[str]:
        """Play a block's batch and say what came of it."""
        words = [shlex.split(line) for line in lines]
        if words[0][0] == "rules":
            self.world = World(_rules(dict(word.split("=") for word in words[0][1:])))
            return []
        world = self.world = self.world or World()
        batch = _Batch(world)
        for each in words:
            batch.add(each)
        if batch.restarts:
            return self._shown(world.restart())
        if not batch.hops:
            effects = world.step(*batch.events, timers=not batch.busy, forget=batch.forget)
            return self._shown(effects)
        return self._next(world)

    def _next(self, world: World) -> list[str]:
        begun = world.now.ns
        for _ in range(HOPS_MAX):
            due = world.engine.next_due()
            if due is None:
                return ["nothing is due"]
            world.after(max(0, -(-(due - world.now.ns) // MS)))
            said = self._shown(world.step(*world.beats()))
            if said:
                return [f"after {(world.now.ns - begun) // MS} ms", *said]
        return [f"nothing in {HOPS_MAX} timers"]

    def _shown(self, effects: Effects) -> list[str]:
        assert self.world is not None
        told = [f"+ {_entry(entry, self.world)}" for entry in effects.entries]
        for peer, commands in effects.commands.items():
            told += [f"> {peer.decode()}: {_command(command)}" for command in commands]
        for sent in effects.lists:
            ranges = _ranges(sent.ranges)
            told.append(f"> {sent.worker.decode()}: forget list {sent.list_number}: {ranges}")
        for peer, command in effects.alone.items():
            told.append(f"> {peer.decode()}: alone {_command(command)}")
        for peer, word in effects.proceeds:
            said = "proceed" if word.wanted else "drop"
            told.append(f"> {peer.decode()}: {said} {word.number} step {word.step}")
        for each in effects.books:
            told.append(f"> {each.worker.decode()}: books {json.dumps(wire.unpack(each.body))}")
        for peer, replies in effects.replies.items():
            for reply in replies:
                code = "" if reply.code is None else f" code {reply.code}"
                told.append(f"< {peer.decode()} {reply.request}{code}: {_reply(reply.body)}")
        counts = self.world.tally.counts
        for key in sorted(counts):
            for _ in range(counts[key] - self._counted[key]):
                if key[0] in ("absorbed", "faulted", "recovered"):
                    told.append(f"# {' '.join(key)}")
        self._counted = counts.copy()
        if effects.fenced_by:
            told.append(f"! a service knows epoch {effects.fenced_by}")
        return told


class _Batch:
    """Reads the lines above the mark."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.events: list[Event] = []
        self.busy = self.hops = self.restarts = False
        self.forget: tuple[list[tuple[int, int]], int] | None = None

    def add(self, words: list[str]) -> None:
        verb, *rest = words
        plain = [word for word in rest if "=" not in word]
        given = dict(word.split("=", 1) for word in rest if "=" in word)
        if verb in OUTCOMES:
            self.events.append(self._outcome(OUTCOMES[verb], plain, given))
        elif verb in ("start", "recall", "cancel", "retry", "show", "books", "body"):
            self.events.append(self._request(verb, plain, given))
        elif verb in ("workers", "worker", "beat", "gone"):
            self._worker(verb, plain, int(given.get("capacity", 256)))
        elif verb == "taken":
            self.events.append(
                ListApplied(plain[0].encode(), int(given.get("shard", 0)), int(plain[1]))
            )
        elif verb == "forget":
            self.forget = [_range(text) for text in plain], int(given.get("ordinal", 0))
        elif verb == "begins":
            peer = plain[0].encode()
            command = next(c for c in self.world.held[peer] if c.saga_id == plain[1])
            said = wire.Begun(command.number, command.step, command.direction, command.attempt)
            self.events.append(CommandBegun(peer, said))
        else:
            self._time(verb, plain)

    def _worker(self, verb: str, plain: list[str], capacity: int) -> None:
        named = [name.encode() for name in plain]
        if verb == "workers":
            self.events += self.world.came(*plain, capacity=capacity)
        elif verb == "worker":
            self.events.append(WorkerCame(named[0], plain[1], 1, capacity))
        elif verb == "beat":
            all_ = self.world.present if plain == ["all"] else named
            self.events += [WorkerLives(peer, capacity) for peer in all_]
        else:
            self.events += [WorkerWent(peer) for peer in named]

    def _time(self, verb: str, plain: list[str]) -> None:
        world = self.world
        if verb == "wait":
            world.after(_ms(plain[0]))
        elif verb == "wall":
            world.after(0, _ms(plain[0]))
        elif verb == "busy":
            self.busy = True
        elif verb == "next":
            self.hops = True
        elif verb == "restart":
            self.restarts = True
        elif verb == "drain":
            world.engine.admission.draining = True
        else:
            raise ValueError(f"no event is called {verb}")

    def _outcome(self, outcome: int, plain: list[str], given: dict[str, str]) -> Answered:
        peer, saga_id = plain[0].encode(), plain[1]
        attempt = int(given["attempt"]) if "attempt" in given else None
        command = self.world.take(peer, saga_id, attempt, ACTION if "action" in plain else None)
        if "keep" in plain:
            self.world.held[peer].append(command)
        said = json.loads(given["body"]) if "body" in given else None
        if "raw" in given:
            packed = bytes.fromhex(given["raw"])
        elif outcome == wire.REFUSED_FENCED:
            packed = wire.encode(int(given["epoch"]))
        else:
            packed = self.world.body_of(command, outcome, said)
        changed: dict[str, Any] = {
            name: int(given[name]) for name in ("step", "number", "direction") if name in given
        }
        if "epoch" in given and outcome != wire.REFUSED_FENCED:
            changed["epoch"] = int(given["epoch"])
        if "outcome" in given:
            changed["outcome"] = int(given["outcome"])
        answer = msgspec.structs.replace(answer_to(command, outcome, packed), **changed)
        by = given.get("by", plain[0]).encode()
        return Answered(by, [answer])

    def _request(self, verb: str, plain: list[str], given: dict[str, str]) -> Requests:
        origin = given.pop("by", "client").encode()
        msg = {"msg_id": int(given["msg"])} if "msg" in given else {}
        saga_id = plain[0]
        if verb in ("start", "recall"):
            fields: dict[str, Any] = dict(msg)
            if "items" in given:
                fields["items"] = [_item(text) for text in given["items"].split(",")]
            for name, key in (("user", "user_id"), ("address", "shipping_address")):
                if name in given:
                    fields[key] = given[name]
            kind, headers = wire.SUBMIT if "submit" in plain else wire.START, None
            if verb == "recall":
                headers = wire.RECALLS_SUBMIT if kind == wire.SUBMIT else None
                kind = wire.RECALL
            return self.world.ask(kind, saga_id, order(saga_id, **fields), origin, headers)
        if verb == "show":
            return self.world.ask(wire.SHOW, saga_id, b"", origin)
        if verb == "books":
            numbers = {name: int(value) for name, value in given.items() if name != "table"}
            text = {"table": given["table"]} if "table" in given else {}
            return self.world.ask(wire.BOOKS, "0", {"book": saga_id, **text, **numbers}, origin)
        if verb == "body":
            kind = KINDS.get(plain[0], 99)
            return self.world.ask(kind, plain[1], json.loads(plain[2]), origin)
        body = {"type": verb, "saga_id": saga_id, "reason": plain[1], **msg}
        return self.world.ask(KINDS[verb], saga_id, body, origin)


def _rules(given: dict[str, str]) -> Rules:
    numbers = {name: int(value) for name, value in given.items()}
    retry = {name: numbers.pop(name) for name in list(numbers) if name in Retry.__struct_fields__}
    slots = {"slots": frozenset(range(numbers.pop("slots")))} if "slots" in numbers else {}
    burst = {"budget": (100, numbers.pop("burst"), 10)} if "burst" in numbers else {}
    return Rules(retry=Retry(**retry), **numbers, **slots, **burst)  # type: ignore[arg-type]  # by name


def _ms(text: str) -> int:
    unit = text.lstrip("+-0123456789")
    return int(text.removesuffix(unit)) * UNITS[unit]


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _item(text: str) -> dict[str, Any]:
    sku, _, quantity = text.partition("*")
    return {"sku": sku, "quantity": int(quantity or 1)}


def _command(command: wire.Command) -> str:
    assert command.direction in (ACTION, COMPENSATION)
    body = _brief(command.body)
    return f"{command.saga_id} attempt {command.attempt} epoch {command.epoch} {body}"


def _brief(body: bytes) -> str:
    """Give a body without what stands beside it anyway."""
    told = loosely(body)
    kind = told.pop("type")
    del told["saga_id"], told["step"]
    return f"{kind} {json.dumps(told)}" if told else str(kind)


def _reply(body: bytes) -> str:
    """A history has a line for each event."""
    told = loosely(body)
    if "history" not in told:
        return json.dumps(told)
    events = told.pop("history")
    zero = events[0]["at_ms"]
    lines = [f"  {e.pop('at_ms') - zero:+} ms {e.pop('event')} {json.dumps(e)}" for e in events]
    return "\n".join([json.dumps(told), *lines])


def _entry(entry: Entry, world: World) -> str:
    match entry:
        case Opened():
            return f"opened epoch {entry.epoch}"
        case Started():
            left = entry.deadline_ms - world.now.wall_ms
            return (
                f"started {entry.number} {entry.saga_id} {entry.saga} v{entry.version} amount"
                f" {entry.amount} {entry.currency or '-'} order {entry.order_count} of slot"
                f" {entry.slot} deadline {left:+} ms"
            )
        case wire.Answer():
            return (
                f"answer {entry.number} step {entry.step} {DIRECTIONS[entry.direction]} attempt"
                f" {entry.attempt} epoch {entry.epoch} {wire.OUTCOMES[entry.outcome]}"
                f" {_brief(entry.body)}"
            )
        case AttemptEnded():
            return (
                f"attempt ended {entry.number} step {entry.step} {DIRECTIONS[entry.direction]}"
                f" attempt {entry.attempt} {entry.cause} {entry.text!r}"
            )
        case TurnedBack():
            return f"turned back {entry.number} step {entry.step} {entry.cause} {entry.reason!r}"
        case Quarantined():
            return (
                f"quarantined {entry.number} step {entry.step} {DIRECTIONS[entry.direction]}"
                f" attempt {entry.attempt} after {entry.deaths} deaths"
            )
        case RetryAsked():
            return f"retry asked {entry.number} step {entry.step} {entry.reason!r}"
        case Finished():
            return f"finished {entry.number} {phases.PHASES[entry.phase]}"
        case Forgotten():
            return f"forgotten list {entry.list_number}: {_ranges(entry.ranges)}"
        case ForgetTaken():
            return f"list {entry.list_number} taken by {entry.service}"
        case Ran():
            return f"ran {entry.ran_ms} ms"


def _ranges(ranges: list[tuple[int, int]]) -> str:
    return " ".join(f"{low}-{high}" for low, high in ranges) or "nothing"
