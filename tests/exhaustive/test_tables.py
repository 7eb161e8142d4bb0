"""The tables say what the real parts say when nobody stores and brings them back in between."""

from random import Random
from typing import Any

import apsw
import pytest

from sagacity import wire
from sagacity.executor import make_tables
from shard.admission import Admission
from shard.engine import Engine
from shard.finished import FinishedInMemory
from shard.pools import Pool, Worker
from shard.retries import RetryBudget
from shard.sagas import BACKING_OFF, OUT, Live
from shard.state import State
from shard.tally import PlainTally
from tests.exhaustive import service_table, shard_table
from tests.exhaustive.cases import CASES, CATALOG, DEFINITIONS, SAGA_IDS, SERVICES
from tests.exhaustive.letters import ALONE, ANSWER, COMMAND, PROCEED, Letter
from tests.exhaustive.service_table import ServiceTable
from tests.exhaustive.shard_table import (
    ASK,
    BEGAN,
    CAME,
    CANCEL,
    CLUSTER_ID,
    DEADLINE,
    OVER,
    READ,
    REPLACED,
    RESTART,
    RETRY_DUE,
    TIME,
    WENT,
    Key,
    ShardTable,
)

WALKS = 12
TURNS = 30


class Walk:
    """A random schedule of one shard; what its workers say comes from real databases."""

    def __init__(self, sagas: int, seed: int) -> None:
        self.chance = Random(seed)
        self.table = ShardTable(sagas)
        self.at = self.table.root
        self.letters: list[Letter] = []
        self.services = [ServiceTable(name, sagas) for name in SERVICES]
        self.bases = [each.root for each in self.services]
        self.case = CASES["one"]

    def event(self) -> Key | None:
        """Choose what happens next; None where it happens at a service."""
        still = self.table.stills[self.at]
        options: list[Any] = [RESTART, (TIME, None)]
        for name in SERVICES:
            options += [(WENT, name), (REPLACED, name)] if name in still.workers else []
            options += [(CAME, (name,))] * 6 if name not in still.workers else []
        for saga, facts in enumerate(still.sagas):
            if all(each.phase for each in still.sagas[:saga]):  # numbers are given in this order
                options += [(ASK, saga)] * (8 if not facts.phase else 1)
            options += [(CANCEL, saga), (DEADLINE, saga)] if facts.phase == 1 else []
            options += [(RETRY_DUE, saga)] * 4 if facts.where == BACKING_OFF else []
            options += [(OVER, saga)] if facts.where == OUT else []
        for letter in self.letters:
            if letter.kind in (COMMAND, PROCEED):
                options += [letter] * 8
            elif letter.service in still.workers:
                options += [(READ if letter.kind == ANSWER else BEGAN, letter)] * 8
        chosen = self.chance.choice(options)
        if isinstance(chosen, Letter):
            self._perform(chosen)
            return None
        if isinstance(chosen[1], Letter):
            self.letters.remove(chosen[1])
        found: Key = chosen
        return found

    def _perform(self, letter: Letter) -> None:
        at = letter.step - 1
        says = self.chance.choice(self.case.choices(letter.step, letter.direction))
        done = self.services[at].perform(self.bases[at], letter, says)
        self.bases[at] = done.base
        if letter.kind == PROCEED or self.chance.random() < 0.8:  # else it comes again
            self.letters.remove(letter)
        answer = letter._replace(kind=ANSWER, outcome=done.outcome, body=done.body)
        self.letters.append(answer)

    def age(self, sagas: frozenset[int]) -> None:
        """What travels is of an older command now."""
        self.letters = [
            each._replace(latest=each.latest and each.saga not in sagas) for each in self.letters
        ]


@pytest.mark.parametrize("sagas", [1, 2])
def test_the_shard_table_says_what_one_engine_says(sagas: int) -> None:
    """What is left out of a still makes no difference, and nothing is lost between two turns."""
    met = set()
    for seed in range(WALKS):
        walk = Walk(sagas, seed)
        engine, rows, now_ns = _begun(walk.table)
        for _ in range(TURNS):
            key = walk.event()
            if key is None:
                continue
            turn = walk.table.turn(walk.at, key)
            played = walk.table.play(engine, rows, now_ns, key)
            engine, rows, now_ns = played.engine, played.rows, played.now_ns
            stored = shard_table.unpickled(walk.table.stills[turn.still].engine)
            assert shard_table.canonical(engine) == shard_table.canonical(stored), (seed, key)
            assert _said(played) == _said(turn), (seed, key)
            met |= {key[0], *(f"sent {each.kind} {each.direction}" for each in turn.sent)}
            walk.at = turn.still
            walk.age(turn.aged)
            walk.letters += turn.sent
            if turn.wanted:
                walk.letters.append(key[1]._replace(kind=PROCEED))
    kinds = {
        ASK,
        CANCEL,
        READ,
        BEGAN,
        CAME,
        WENT,
        REPLACED,
        OVER,
        RETRY_DUE,
        DEADLINE,
        TIME,
        RESTART[0],
    }
    assert met >= kinds | {f"sent {COMMAND} 1", f"sent {ALONE} 0"}


def _begun(table: ShardTable) -> tuple[Engine, tuple[bytes, ...], int]:
    """Give the engine of a table's root, which no other turn will touch."""
    root = table.stills[table.root]
    return shard_table.unpickled(root.engine), root.rows, root.now_ns


def _said(turn: Any) -> Any:
    """The text of an end is left out: its reason is none of a still."""
    codes = [(saga, code) for saga, code, _ in turn.replies]
    return sorted(turn.sent), turn.aged, codes, turn.wanted


@pytest.mark.parametrize("name", SERVICES)
def test_the_service_table_says_what_one_database_says(name: str) -> None:
    """A database that was stored and brought back answers like one that never was."""
    table = ServiceTable(name, 2)
    letters = _commands_for(name)
    for seed in range(WALKS):
        chance = Random(seed)
        connection = apsw.Connection(":memory:")
        make_tables(connection, table._service, CLUSTER_ID, CATALOG)
        base = table.root
        for _ in range(8):
            letter = chance.choice(letters)
            says = chance.choice(("ok", "ok", "declined" if not letter.direction else "failed"))
            fenced = chance.random() < 0.1
            done = table.perform(base, letter, says, fenced=fenced)
            straight = table.play(connection, letter, says, fenced=fenced)
            assert straight == (done.outcome, done.body, done.first), (seed, letter)
            base = done.base
            stored = apsw.Connection(":memory:")
            stored.deserialize("main", table.bases[base].file)
            assert service_table.canonical(connection) == service_table.canonical(stored)
            stored.close()
        connection.close()


def _commands_for(name: str) -> list[Letter]:
    """Give actions and compensations, without ids, of both sagas for a service."""
    bodies: dict[str, tuple[dict[str, Any], str]] = {
        "inventory": ({"items": [{"sku": "abc123", "quantity": 1}]}, "ReserveInventory"),
        "payment": ({"user_id": "u42", "amount": 10_000}, "ChargePayment"),
        "shipping": (
            {"items": [{"sku": "abc123", "quantity": 1}], "address": "123 Main St"},
            "CreateShipment",
        ),
    }
    undoes = dict(
        zip(SERVICES, ("ReleaseReservation", "RefundPayment", "CancelShipment"), strict=True)
    )
    step = SERVICES.index(name) + 1
    found = []
    for saga, saga_id in enumerate(SAGA_IDS):
        head = {"saga_id": saga_id, "step": step}
        more, action = bodies[name]
        do = wire.pack({"type": action, **head, **more})
        undo = wire.pack({"type": undoes[name], **head, "compensating": True})
        found.append(Letter(COMMAND, saga, step, 0, True, 0, do))
        found.append(Letter(COMMAND, saga, step, 1, True, 0, undo))
    return found


# What a still holds of each part, and what it leaves out; `shard_table` says why.
_KEPT = {
    Live: """number phase direction step attempt states results stuck quarantined cancelled where
        worker queued_in suspect waiters placed""",
    Worker: "peer alone begun out capacity",
    Pool: "service suspects",
    State: "live finished number",
    Engine: "state _course _workers",
}
_LEFT_OUT = {
    Live: """definition saga_id order_id run fingerprint amount headers started_ms due_seq cause
        reason seqs late_seqs deadline_ms deadline due started_at exposed_at sent_at queued_at""",
    Worker: "pool incarnation seen_at",
    Pool: """workers undoing going_on beginning _queues pace_ns _last_pace_ns _guessed_until
        _taken _seen _moved_at _calm_since _window _gap_ns _before waited_ns _looked_at""",
    State: """definitions by_id count epoch wall_ms order_counts compensating stuck stuck_since
        forgotten seen accepted at_risk lists lists_open lists_takers forgotten_counts _services
        marks bygone ran_ms""",
    Engine: """admission tally _worker_live_ns _swept_at _longest _desk _outcomes _forgetting
        _retention""",
}


@pytest.mark.parametrize("part", list(_KEPT))
def test_every_field_is_kept_or_left_out_on_purpose(part: type) -> None:
    """A new field of the engine is no part of a still before somebody has thought about it."""
    state = State(DEFINITIONS, FinishedInMemory())
    budget, admission = RetryBudget(100, 100, 10), Admission(2)
    made: dict[type, object] = {
        State: state,
        Pool: Pool("inventory"),
        Engine: Engine(0, frozenset(), state, {}, admission, budget, PlainTally()),
    }
    fields = set(vars(made[part])) if part in made else set(part.__slots__)  # type: ignore[attr-defined]  # it has slots
    assert fields == {*_KEPT[part].split(), *_LEFT_OUT[part].split()}
