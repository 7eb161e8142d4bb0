"""The barrier: each command takes effect once, in one transaction with the row that says so.

Holds the tables that every service's database has beside its own, and the rules for one command
(DESIGN 5). Knows nothing of sockets and neither begins nor commits: `executor` does.

    fence first     a command of a lower epoch than its slot has shown here    refused: fenced
    forgotten       a list of its shard has named its saga                     refused: forgotten
    action          its compensation's row is there                            refused: compensated
                    its own row is there                                       the stored reply
                    else run it      ok -> stored   declined -> effect undone, stored
                                     failed -> everything undone, nothing stored
    compensation    its own row is there                                       the stored reply
                    else undo        ok -> stored, with a tombstone for an action that never came
                                     failed -> everything undone, the tombstone too

An action's row and its compensation's are neighbours, key and key | 1, so that one read finds
both. They stand in order of the saga's number: 4 us an insert, 17.7 under a random key.
"""

from typing import Any, Final, Protocol

import apsw
from apsw import Connection

from sagacity.errors import broken, places
from sagacity.forgotten import Forgotten, read_rows
from sagacity.ids import ACTION, COMPENSATION, SHARDS_MAX, STEP_BITS, STEPS_MAX, count_of
from sagacity.ranges import Range, are_normal
from sagacity.service import Call, Database, Declined, Failed, Ok, Service
from sagacity.slots import slot_of
from sagacity.sqlite import INTEGER_MAX
from sagacity.traces import bound
from sagacity.wire import (
    BODY_BYTES_MAX,
    DECLINED,
    FAILED,
    OK,
    REFUSED_COMPENSATED,
    REFUSED_FENCED,
    REFUSED_FORGOTTEN,
    Answer,
    Command,
    Forget,
    Witness,
    answer_to,
    encode,
)

TABLES: Final = """
CREATE TABLE barrier (
    key INTEGER PRIMARY KEY,  -- ids.barrier_key
    saga_id TEXT NOT NULL,
    outcome INTEGER NOT NULL CHECK (outcome BETWEEN -1 AND 1),  -- tombstone, ok, declined
    reply BLOB NOT NULL
) STRICT;
CREATE TABLE fence (
    slot INTEGER PRIMARY KEY CHECK (slot BETWEEN 0 AND 1023),
    epoch INTEGER NOT NULL
) STRICT;
CREATE TABLE witness (
    shard INTEGER PRIMARY KEY,
    cluster_id TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    chain BLOB NOT NULL,
    number INTEGER NOT NULL
) STRICT;
"""

TOMBSTONE: Final = -1  # outcome of an action that was compensated before it came

# The database is full, busy or fails: no outcome of a command, whoever meets it (SPEC 3). A damaged
# one is none of these, since waiting does not mend it: the worker ends, and somebody sees it.
UNAVAILABLE: Final = (
    apsw.FullError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.IOError,
    apsw.CantOpenError,
    apsw.ReadOnlyError,
    apsw.ProtocolError,
    apsw.NoMemError,
)

# The database is not what was written: its worker ends, and people see it start again and again.
DAMAGED: Final = (apsw.CorruptError, apsw.NotADBError, apsw.InternalError)

_NEIGHBOURS: Final = "SELECT key, saga_id, outcome, reply FROM barrier WHERE key BETWEEN ? AND ?"
_INSERT: Final = "INSERT INTO barrier (key, saga_id, outcome, reply) VALUES (?, ?, ?, ?)"
_RAISE: Final = "INSERT OR REPLACE INTO fence (slot, epoch) VALUES (?, ?)"
_SEE: Final = (
    "INSERT OR REPLACE INTO witness (shard, cluster_id, epoch, seq, chain, number)"
    " VALUES (?, ?, ?, ?, ?, ?)"
)

_NUMBER_MAX: Final = INTEGER_MAX >> (STEP_BITS + 1)  # of a saga, so that its keys fit
_ERROR_LENGTH_MAX: Final = 256  # characters of a failure's text that travel


class Log(Protocol):
    """Where events with fields go; structlog's loggers are such."""

    def info(self, event: str, **fields: Any) -> Any:
        """Note what happened."""

    def warning(self, event: str, **fields: Any) -> Any:
        """Note what should not last."""

    def error(self, event: str, **fields: Any) -> Any:
        """Note what somebody has to look at."""


class MustUndo(Exception):
    """This command leaves something to undo: roll back and run the batch's commands alone."""


class Barrier:
    """The barrier of one service's database; its owner holds the transaction.

    Args:
        connection: of the database.
        service: whose handlers run.
        log: for faults.

    Keeps fence, witnesses and what is forgotten in memory too. `load` after a rollback, and after
    another connection has written.
    """

    def __init__(self, connection: Connection, service: Service, log: Log) -> None:
        self.witnesses: dict[int, Witness] = {}
        self.repeated = 0  # answers out of stored replies
        self._connection = connection
        self._log = log
        self._rows = connection.cursor()
        self._lent: Database = connection.cursor()
        self._fence: dict[int, int] = {}
        self._forgotten = Forgotten(connection)
        self._readers = (service.reader(ACTION), service.reader(COMPENSATION))
        self._handlers = (service.handlers(ACTION), service.handlers(COMPENSATION))

    def load(self) -> None:
        """Read fence, witnesses and what is forgotten as they are in the database now.

        Raises:
            Malformed: they are not what was written.
        """
        self._lent.close(True)  # a handler that raised may have left a statement half done
        self._lent = self._connection.cursor()
        fence = read_rows(self._rows, "SELECT slot, epoch FROM fence", tuple[int, int])
        self._fence = dict(fence)
        sql = "SELECT cluster_id, shard, epoch, seq, chain, number FROM witness"
        self.witnesses = {found.shard: found for found in read_rows(self._rows, sql, Witness)}
        self._forgotten.load()

    def see(self, witness: Witness) -> None:
        """Keep a shard's witness if none higher is known, in the transaction."""
        if max(witness.shard, witness.epoch, witness.seq, witness.number) > INTEGER_MAX:
            self._log.error("witness_faulty", witness=repr(witness))
            return
        known = self.witnesses.get(witness.shard)
        if known is None or (witness.epoch, witness.seq) > (known.epoch, known.seq):
            self.witnesses[witness.shard] = witness
            self._rows.execute(
                _SEE,
                (
                    witness.shard,
                    witness.cluster_id,
                    witness.epoch,
                    witness.seq,
                    witness.chain,
                    witness.number,
                ),
            )

    def forget(self, asked: Forget) -> list[Range] | None:
        """Forget what a list names, as much as one transaction should take.

        Returns:
            What is left of its ranges; None for a list that does not count: of an older epoch than
            its shard has shown here, or one that no healthy shard sends.
        """
        witness = asked.witness
        known = self.witnesses.get(witness.shard)
        if known is not None and witness.epoch < known.epoch:
            self._log.warning("list_fenced", shard=witness.shard, list_number=asked.list_number)
            return None
        # No healthy shard forgets a number before it has given it.
        if not (
            0 <= witness.shard < SHARDS_MAX
            and 0 <= witness.number <= _NUMBER_MAX
            and are_normal(asked.ranges, 1, count_of(witness.number))
        ):
            self._log.error("list_faulty", shard=witness.shard, list_number=asked.list_number)
            return None
        self.see(witness)
        return self._forgotten.forget(witness.shard, asked.ranges)

    def answer(self, command: Command, *, alone: bool = False) -> Answer:
        """Perform a command, or say what became of it before.

        Args:
            command: from a shard.
            alone: whether it runs in a savepoint of its own, which costs 3 us.

        Raises:
            MustUndo: it was not alone, and its effect cannot stay.
            UNAVAILABLE: the database cannot take it.
        """
        step, direction, epoch = command.step, command.direction, command.epoch
        if not (
            0 < command.number <= _NUMBER_MAX
            and 1 <= step <= STEPS_MAX
            and ACTION <= direction <= COMPENSATION
            and 0 <= epoch <= INTEGER_MAX
        ):
            return self._fault(command, "no such number, step, direction or epoch")
        slot = slot_of(command.saga_id)
        known_epoch = self._fence.get(slot, 0)
        if epoch != known_epoch:
            if epoch < known_epoch:
                return answer_to(command, REFUSED_FENCED, encode(known_epoch))
            self._fence[slot] = epoch
            self._rows.execute(_RAISE, (slot, epoch))
        # Usually one comparison: running sagas have higher numbers than forgotten ones.
        if command.number <= self._forgotten.upto and self._forgotten.holds(command.number):
            return answer_to(command, REFUSED_FORGOTTEN, b"")
        key = command.number << (STEP_BITS + 1) | step << 1
        rows: Any = self._rows.execute(_NEIGHBOURS, (key, key | 1)).fetchall()
        if rows:
            known = self._known(command, key, rows)
            if known is not None:
                return known
        outcome, reply = self._effect(command, alone)
        if outcome != FAILED:
            if direction == COMPENSATION and not rows:
                self._rows.execute(_INSERT, (key, command.saga_id, TOMBSTONE, b""))
            self._rows.execute(_INSERT, (key | direction, command.saga_id, outcome, reply))
        if alone:
            self._rows.execute("RELEASE effect")
        return answer_to(command, outcome, reply)

    def _known(
        self, command: Command, key: int, rows: list[tuple[int, str, int, bytes]]
    ) -> Answer | None:
        """Give the answer that the rows hold; None for a compensation that has yet to run."""
        for _, saga_id, _, _ in rows:
            if saga_id != command.saga_id:
                return self._fault(command, f"its number belongs to {saga_id}")
        last_key, _, outcome, reply = rows[-1]
        compensated = last_key != key
        if command.direction == COMPENSATION and not compensated:
            return None
        if command.direction == ACTION and compensated:
            return answer_to(command, REFUSED_COMPENSATED, b"")
        self.repeated += 1
        return answer_to(command, outcome, reply)

    def _effect(self, command: Command, alone: bool) -> tuple[int, bytes]:
        """Run the handler; where it did not succeed nothing is left of it.

        In a savepoint named effect if `alone`, which stays open for the barrier's rows.
        """
        connection = self._connection
        if alone:
            self._rows.execute("SAVEPOINT effect")
        before = connection.total_changes()
        try:
            outcome, reply = self._handle(command)
        except (*UNAVAILABLE, *DAMAGED):
            raise  # of the database, not of the handler
        except Exception as error:
            if not alone:
                raise MustUndo from error
            self._log.error(
                "handler_raised",
                **bound(command.saga_id, command.headers),
                step=command.step,
                direction=command.direction,
                attempt=command.attempt,
                # Not its words: they may quote what a client has sent.
                error=type(error).__name__,
                at=places(error),
            )
            outcome, reply = FAILED, _text(f"{type(error).__name__}: {error}")
        if not connection.in_transaction:
            broken("a handler leaves transactions alone", command=command)
        if outcome != OK:
            if alone:
                self._rows.execute("ROLLBACK TO effect")
            elif connection.total_changes() != before:
                raise MustUndo
        return outcome, reply

    def _handle(self, command: Command) -> tuple[int, bytes]:
        direction = command.direction
        body = self._readers[direction](command.body)
        headers = command.headers
        call = Call(command.saga_id, command.number, command.step, command.attempt, body, headers)
        result = self._handlers[direction][type(body)](self._lent, call)
        if type(result) is Ok:
            outcome = OK
        elif type(result) is Declined and direction == ACTION:
            outcome = DECLINED
        elif type(result) is Failed:
            return FAILED, _text(result.text)
        else:
            kind = type(result).__name__
            raise TypeError(f"a handler gives Ok, Declined (of an action) or Failed, not {kind}")
        reply = encode(result.body)
        if len(reply) > BODY_BYTES_MAX:
            raise ValueError(f"a body has at most {BODY_BYTES_MAX} bytes")
        return outcome, reply

    def _fault(self, command: Command, text: str) -> Answer:
        """Answer what no healthy shard sends: nothing is done and nothing undone."""
        self._log.error(
            "command_faulty",
            **bound(command.saga_id, command.headers),
            number=command.number,
            step=command.step,
            direction=command.direction,
            text=text,
        )
        return answer_to(command, FAILED, _text(text))


def _text(text: str) -> bytes:
    """Pack why a command failed."""
    sendable = text[:_ERROR_LENGTH_MAX].encode(errors="replace").decode()
    return encode({"type": "failed", "text": sendable})
