"""The bugs: what somebody might have written, each as a change of our own source.

Each is named as in the proof, with the layer that has to find it. What they have in common: every
one of them passes a demo, and most of them a day of use.
"""

from typing import Final

from msgspec import Struct

from tests.museum.plant import Change

SIMULATION: Final = "simulation"
TESTS: Final = "tests"  # of the default suite


class Bug(Struct, frozen=True):
    """A bug.

    Args:
        name: as in the proof.
        layer: that finds it.
        changes: that plant it.
        tests: files or tests that have to turn red, where the layer is the tests.
    """

    name: str
    layer: str
    changes: tuple[Change, ...]
    tests: tuple[str, ...] = ()


def _bug(name: str, layer: str, *changes: tuple[str, str, str]) -> Bug:
    return Bug(name, layer, tuple(Change(*change) for change in changes))


def _tested(name: str, tests: str, *changes: tuple[str, str, str]) -> Bug:
    return Bug(name, TESTS, tuple(Change(*change) for change in changes), tuple(tests.split()))


BUGS: Final = (
    _bug(
        "send_before_commit",
        SIMULATION,
        (
            "shard.loop:Loop._perform",
            "receipt = self._commit(effects.entries, self.engine.state.epoch)",
            """
            receipt = Receipt(self.engine.seq, receipt.chain)
            self._links.send(receipt, self._witness(receipt), effects)
            self._commit(effects.entries, self.engine.state.epoch)
            return
            """,
        ),
    ),
    _bug(
        "answer_before_commit",
        SIMULATION,
        (
            "shard.loop:Loop._perform",
            "receipt = self._commit(effects.entries, self.engine.state.epoch)",
            """
            early = Effects()
            early.replies, effects.replies = effects.replies, {}
            promised = Receipt(self.engine.seq, receipt.chain)
            self._links.send(promised, self._witness(promised), early)
            receipt = self._commit(effects.entries, self.engine.state.epoch)
            """,
        ),
    ),
    _bug(
        "fsync_error_ignored",
        SIMULATION,
        (
            "shard.loop:Loop._perform",
            "receipt = self._commit(effects.entries, self.engine.state.epoch)",
            """
            try:
                receipt = self._commit(effects.entries, self.engine.state.epoch)
            except JournalFull:
                raise
            except JournalFailed:
                receipt = Receipt(self.engine.seq, receipt.chain)
            """,
        ),
    ),
    _bug(
        "fsync_retried",
        SIMULATION,
        (
            "shard.loop:Loop._perform",
            "receipt = self._commit(effects.entries, self.engine.state.epoch)",
            """
            try:
                receipt = self._commit(effects.entries, self.engine.state.epoch)
            except JournalFull:
                raise
            except JournalFailed:
                receipt = self._commit(effects.entries, self.engine.state.epoch)
            """,
        ),
    ),
    _bug(
        "no_dedupe",
        SIMULATION,
        (
            "shard.requests:Desk._start",
            "card = self._state.finished.find(saga_id)",
            "card = None",
        ),
    ),
    _bug(
        "fingerprint_ignored",
        SIMULATION,
        ("shard.requests:same_content", "if first != now:", "if False:"),
    ),
    _bug(
        "attempt_in_key",
        SIMULATION,
        (
            "sagacity.barrier:Barrier.answer",
            "key = command.number << (STEP_BITS + 1) | step << 1",
            "key = (command.number << 4 | command.attempt & 15) << (STEP_BITS + 1) | step << 1",
        ),
    ),
    _bug(
        "no_tombstone",
        SIMULATION,
        (
            "sagacity.barrier:Barrier.answer",
            "if outcome != FAILED:",
            "if outcome != FAILED and (rows or direction == ACTION):",
        ),
    ),
    _bug(
        "no_stored_reply",
        SIMULATION,
        (
            "sagacity.barrier:Barrier.answer",
            "self._rows.execute(_INSERT, (key | direction, command.saga_id, outcome, reply))",
            'self._rows.execute(_INSERT, (key | direction, command.saga_id, outcome, b""))',
        ),
    ),
    _tested(
        "decline_not_stored",
        "tests/unit/test_conformance.py",
        ("sagacity.barrier:Barrier.answer", "if outcome != FAILED:", "if outcome == OK:"),
    ),
    _bug(
        "declined_action_refunded",
        SIMULATION,
        # The services say no and write the row all the same; it is refunded with the others.
        (
            "services.payment:charge",
            "if balance < amount:",
            """
            if balance < amount:
                db.execute(_CHARGE, (call.number, call.step, user, amount))
            if balance < amount:
            """,
        ),
        ("sagacity.barrier:Barrier._effect", "if outcome != OK:", "if outcome == FAILED:"),
        (
            "shard.state:State.answered",
            """
            saga.states[at] = STEP_DECLINED
            """,
            """
            saga.states[at] = UNKNOWN
            """,
        ),
    ),
    _bug(
        "refusal_is_outcome",
        SIMULATION,
        (
            "shard.outcomes:Outcomes.take",
            "self._refused(worker, saga, got, current, now, fx)",
            """
            if got.direction == ACTION:
                plain = Answer(*(getattr(got, name) for name in got.__struct_fields__[:-2]), 1, b"")
                self._action_settled(saga, plain, current, now, fx)
            """,
        ),
    ),
    _bug(
        "barrier_in_own_transaction",
        SIMULATION,
        (
            "sagacity.barrier:Barrier.answer",
            "self._rows.execute(_INSERT, (key | direction, command.saga_id, outcome, reply))",
            """
            if not alone:
                self._rows.execute("COMMIT")
                self._rows.execute("BEGIN IMMEDIATE")
            self._rows.execute(_INSERT, (key | direction, command.saga_id, outcome, reply))
            """,
        ),
    ),
    _bug(
        "barrier_cleaned_by_age",
        SIMULATION,
        (
            "sagacity.barrier:Barrier.answer",
            "outcome, reply = self._effect(command, alone)",
            """
            self._rows.execute("DELETE FROM barrier WHERE key < ?", (key - (8 << 15),))
            outcome, reply = self._effect(command, alone)
            """,
        ),
    ),
    _bug(
        "forward_order_compensation",
        SIMULATION,
        (
            "shard.state:_point_at_next_compensation",
            "for at in range(len(saga.states) - 1, -1, -1):",
            "for at in range(len(saga.states)):",
        ),
    ),
    _bug(
        "unknown_not_compensated",
        SIMULATION,
        (
            "shard.state:State.turned_back",
            "saga.cause = entry.cause",
            """
            saga.cause = entry.cause
            if saga.states[saga.step - 1] == UNKNOWN:
                saga.states[saga.step - 1] = UNTOUCHED
            """,
        ),
    ),
    _bug(
        "old_timeout_decides",
        SIMULATION,
        (
            "shard.engine:Engine._look",
            "elif saga.where == OUT and until >= saga.due:",
            "elif saga.where == OUT:",
        ),
    ),
    _bug(
        "timers_before_answers",
        SIMULATION,
        ("shard.loop:Loop._forgive", "self._lost_ns += took_ns", "pass"),
        (
            "shard.engine:Engine.step",
            "requests: list[Requests] = []",
            """
            requests: list[Requests] = []
            self._fire(now.ns, now, fx)
            """,
        ),
    ),
    _bug(
        "epoch_unchecked_in_service",
        SIMULATION,
        ("sagacity.barrier:Barrier.answer", "if epoch < known_epoch:", "if False:"),
    ),
    _bug(
        "wall_clock_timer",
        SIMULATION,
        (
            "shard.loop:Loop.turn",
            "self.now = Instant(after - self._lost_ns, self._clock.wall_ms())",
            "self.now = Instant(self._clock.wall_ms() * MS, self._clock.wall_ms())",
        ),
        (
            "shard.loop:Loop._instant",
            "return Instant(self._clock.monotonic_ns() - self._lost_ns, self._clock.wall_ms())",
            "return Instant(self._clock.wall_ms() * MS, self._clock.wall_ms())",
        ),
    ),
    _bug(
        "lines_in_own_transactions",
        SIMULATION,
        (
            "services.inventory:reserve",
            "db.execute(_RESERVE, (call.number, call.step, index, line.sku, line.quantity))",
            """
            db.execute(_RESERVE, (call.number, call.step, index, line.sku, line.quantity))
            db.execute("COMMIT")
            db.execute("BEGIN IMMEDIATE")
            """,
        ),
    ),
    _bug(
        "refund_uncapped",
        SIMULATION,
        (
            "services.payment:refund",
            "db.execute(_CREDIT, (amount, user))",
            """
            db.execute(_CREDIT, (amount, user))
            db.execute(_CREDIT, (amount, user))
            """,
        ),
    ),
    _bug(
        "timer_lost_in_recovery",
        SIMULATION,
        (
            "shard.course:Course.go_on",
            "self._back_off(saga, now)",
            """
            self._back_off(saga, now)
            saga.placed = 1
            self.wheel = Wheel()
            """,
        ),
    ),
    _bug(
        "eleven_after_forward",
        SIMULATION,
        (
            "router:Router.peer_gone",
            'error = NoOutcome(f"{self._name(peer)} went away; ask again with the same id")',
            'error = NotTaken(f"{self._name(peer)} is down", retry_after_ms=RETRY_AFTER_MS)',
        ),
    ),
    _bug(
        "recovery_not_idempotent",
        SIMULATION,
        # What recovery changes is not written down: the next one comes to something else.
        (
            "shard.course:Course.go_on",
            "saga.deadline = deadline",
            """
            saga.deadline = deadline
            saga.attempt += 1
            """,
        ),
    ),
    _tested(
        "salted_hash_slots",
        "tests/unit/test_slots.py",
        (
            "sagacity.slots:slot_of",
            "return crc32(saga_id.encode()) & (SLOTS - 1)",
            "return hash(saga_id) & (SLOTS - 1)",
        ),
    ),
    _tested(
        "resend_without_jitter",
        "tests/unit/test_retries.py",
        (
            "shard.retries:backoff_ns",
            'fraction = crc32(f"{saga_id}/{step}/{attempt}".encode())',
            "fraction = 1 << 31",
        ),
    ),
    _tested(
        "duplicate_map_key",
        "tests/unit/test_wire.py",
        ("sagacity.wire:_unique", "if len(found) != len(pairs):", "if False:"),
    ),
    _tested(
        "nan_accepted",
        "tests/unit/test_conversation.py",
        (
            "cluster.conversation:_no_constant",
            'raise ValueError(f"{name} is no JSON")',
            "return float(name)",
        ),
    ),
    _tested(
        "unbounded_outbox",
        "tests/unit/test_sockets.py",
        (
            "sagacity.sockets:Outbox._shorten",
            "while self._peer_bytes.get(identity, 0) > self._peer_bytes_max:",
            "while False:",
        ),
    ),
    _tested(
        "router_not_mandatory",
        "tests/integration/test_links.py tests/unit/test_sockets.py",
        (
            "sagacity.sockets:_socket",
            "socket.setsockopt(zmq.ROUTER_MANDATORY, 1)",
            "socket.setsockopt(zmq.ROUTER_MANDATORY, 0)",
        ),
    ),
    _tested(
        "witness_ignored",
        "tests/unit/test_guard.py tests/unit/test_loop_modes.py",
        ("shard.guard:Gate.hear", "if finding is not None:", "if False:"),
    ),
    _tested(
        "filter_says_wrong_no",
        "tests/unit/test_segments.py tests/unit/test_compaction.py",
        (
            "shard.segments:Prints.may_hold",
            "bucket = top >> (_TOP_BITS - self.bits)",
            """
            bucket = top >> (_TOP_BITS - self.bits)
            if top % 64 == 7:
                return False
            """,
        ),
    ),
    _tested(
        "epoch_unchecked_in_journal",
        "tests/unit/test_loop_modes.py",
        (
            "shard.state:State.opened",
            'check(entry.epoch > self.epoch, "an epoch fell", was=self.epoch, got=entry.epoch, seq=seq)',  # noqa: E501 - a line of our source
            "pass",
        ),
    ),
    _tested(
        "truncate_on_corruption",
        "tests/unit/test_journal_file.py tests/unit/test_verify.py",
        (
            "shard.journal:SqliteJournal.replay",
            "yield seq, self._checked(seq, chain, packed)",
            """
            try:
                whole = self._checked(seq, chain, packed)
            except JournalRefused:
                self._db.execute("DELETE FROM journal WHERE seq >= ?", (seq,))
                return
            yield seq, whole
            """,
        ),
    ),
    _bug(
        "acknowledge_before_fsync",
        SIMULATION,
        (
            "shard.store:Store._open",
            'set_pragma(db, "synchronous", "FULL", expect=2)',
            'set_pragma(db, "synchronous", "OFF", expect=0)',
        ),
    ),
    _bug(
        "checkpoint_before_fsync",
        SIMULATION,
        # The rows go in a transaction of their own, before the checkpoint that stands for them.
        (
            "shard.compaction:Compaction._enter",
            "with self._store.transaction() as cursor:",
            """
            with self._store.transaction() as cursor:
                cursor.execute("DELETE FROM journal WHERE seq <= ?", (checkpoint.seq,))
            with self._store.transaction() as cursor:
            """,
        ),
    ),
    _tested(
        "compensation_trusts_ids",
        "tests/unit/test_services.py",
        (
            "services.payment:refund",
            "row: Any = db.execute(_CHARGED, (call.number, call.step)).fetchone()",
            """
            row: Any = db.execute(_CHARGED, (call.number, call.step)).fetchone()
            if call.body.payment_id is not UNSET:
                row = db.execute(
                    "SELECT id, user_id, amount, refunded FROM payment WHERE id = ?",
                    (call.body.payment_id[1:],),
                ).fetchone()
            """,
        ),
    ),
)


def by_name(name: str) -> Bug:
    """Give a bug.

    Raises:
        KeyError: there is none of that name.
    """
    return {bug.name: bug for bug in BUGS}[name]
