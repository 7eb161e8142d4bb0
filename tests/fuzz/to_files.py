"""Targets: files of a shard and of a service, damaged; rows whose checksums fit all the same.

A case of the file targets is a list of patches: three bytes of offset, one of length, so many
bytes; a length of 0 ends the file at the offset.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import apsw

from sagacity import wire
from sagacity.errors import SagacityError
from sagacity.executor import BatchExecutor, make_tables, open_file
from sagacity.ids import ACTION, number_of
from sagacity.messages import ReserveInventory
from sagacity.slots import SLOTS
from sagacity.wire import OK, BooksAsked, Command, Commands, Forget
from services.checkout import checkout
from services.inventory import service as inventory
from shard import codec
from shard.admission import Admission
from shard.engine import Engine
from shard.entries import FORMAT
from shard.generations import Generations
from shard.journal import JournalFailed, SqliteJournal
from shard.retries import RetryBudget
from shard.sagas import Card
from shard.state import State
from shard.store import APPLICATION_ID, SCHEMA
from shard.tally import PlainTally
from shard.verify import Found, faults_of, verify
from tests.fuzz.target import ACCEPTED, Target, code_of
from tests.fuzz.to_shard import DEFINITION, PRICES
from tests.fuzz.to_worker import CATALOG, LINES, WITNESS, Folder, Quiet
from tests.unit.disk_world import DiskWorld
from tests.unit.journal_world import CLUSTER

PATCH_HEAD = 4


def patches(case: bytes) -> Iterator[tuple[int, bytes | None]]:
    """Read a case: offsets with what stands there; None where the file ends."""
    at = 0
    while at + PATCH_HEAD <= len(case):
        offset, length = int.from_bytes(case[at : at + 3], "big"), case[at + 3]
        at += PATCH_HEAD
        yield offset, case[at : at + length] if length else None
        at += length


def patched(good: bytes, case: bytes) -> bytes:
    """Damage a file."""
    file = bytearray(good)
    for given, content in patches(case):
        offset = given % (len(good) + 1)
        if content is None:
            del file[offset:]
        else:
            file[offset : offset + len(content)] = content
    return bytes(file)


def some_patches(good: bytes) -> list[bytes]:
    """Give patches of each page's header, its first cells, and of what stands in its middle."""
    found = []
    for page in range(0, len(good), 4096):
        for offset in (
            page,
            page + 1,
            page + 3,
            page + 5,
            page + 8,
            page + 12,
            page + 2048,
            page + 4090,
        ):
            content = bytes([good[offset % len(good)] ^ 0x41])
            found.append(offset.to_bytes(3, "big") + bytes([len(content)]) + content)
    return found


class JournalFile(Target):
    """A shard's file: refused and left as it is, or what its shard wrote."""

    name = "journal-file"
    form = "bytes"
    share = 0.02
    block = 64

    def __init__(self) -> None:
        self._folder = Folder()
        self._file = self._folder.path / "journal.db"
        world = DiskWorld(self._file)
        world.step(*world.came("inventory", "payment", "shipping"), world.start("runs"))
        for at in range(30):
            world.step(world.start(f"s{at}"))
            world.drive(f"s{at}", OK, OK, OK)
            if at < 25:
                world.settle()
        self._last = world.disk.last
        self._chains = {
            seq: world.twin_journal.rows[seq - 1][1] for seq in range(1, self._last.seq + 1)
        }
        world.close()
        self._good = self._file.read_bytes()

    def corpus(self) -> list[bytes]:
        return some_patches(self._good)

    def damaged(self, case: bytes) -> bytes:
        """Give the file as a case damages it."""
        return patched(self._good, case)

    def take(self, case: bytes) -> str:
        damaged = self.damaged(case)
        self._clear()
        self._file.write_bytes(damaged)
        found = verify(self._file, CLUSTER, 0)
        assert all(isinstance(fault, str) for fault in found.faults)
        assert self._file.read_bytes() == damaged, "verify has changed the file"
        try:
            self._open()
        except SagacityError as error:
            assert self._file.read_bytes() == damaged, "what is refused stays as it is"
            return code_of(error)
        except JournalFailed:
            return "ends"  # the process, with its reason
        return "faults" if found.faults else ACCEPTED

    def _open(self) -> None:
        """Open and replay it, as a shard does."""
        journal = SqliteJournal(self._file, CLUSTER, 0)
        try:
            generations = Generations(journal.store)
            engine = Engine(
                0,
                frozenset(range(SLOTS)),
                State({checkout.name: DEFINITION}, generations),
                PRICES,
                Admission(4096),
                RetryBudget(100, 100, 10),
                PlainTally(),
            )
            checkpoint = journal.checkpoint()
            if checkpoint is not None:
                engine.state.restore(journal.kept(), checkpoint.counts)
            for seq, batch in journal.replay():
                engine.replay(batch, seq)
            last = journal.last
            assert last.chain == self._chains.get(last.seq, codec.GENESIS), "another history"
            for at in range(30):
                card = engine.state.finished.find(f"s{at}")
                if isinstance(card, Card):
                    assert (card.saga_id, wire.unpack(card.answer)["status"]) == (
                        f"s{at}",
                        "COMPLETED",
                    )
        finally:
            journal.store.db.close()

    def probe(self) -> None:
        assert self.take(b"") == ACCEPTED

    def _clear(self) -> None:
        for suffix in ("-wal", "-shm"):
            self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        self._folder.remove()


class JournalRows(Target):
    """Rows, records and descriptions whose chain and checksum fit: read, or found at fault."""

    name = "journal-rows"
    share = 1.0

    def __init__(self) -> None:
        self._folder = Folder()
        self._db = apsw.Connection(":memory:")
        list(self._db.execute(SCHEMA))
        self._db.execute("INSERT INTO identity VALUES (?, 0)", (CLUSTER,))
        self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        self._db.execute(f"PRAGMA user_version={FORMAT}")

    def corpus(self) -> list[bytes]:
        world = DiskWorld(self._folder.path / "journal.db")
        world.step(*world.came("inventory", "payment", "shipping"), world.start("runs"))
        for at in range(30):
            world.step(world.start(f"s{at}"))
            world.drive(f"s{at}", OK, OK, OK)
            world.settle()
        rows = world.disk.store.rows
        found: list[tuple[int, bytes]] = [(0, row[2]) for row in world.twin_journal.rows[:12]]
        found += [(1, codec.unseal(record)) for (record,) in rows("SELECT record FROM kept")]
        found += [(2, codec.unseal(each)) for (each,) in rows("SELECT counts FROM checkpoint")]
        found += [(3, codec.unseal(each)) for (each,) in rows("SELECT head FROM segment")]
        found += [
            (4, wire.encode(codec.unpack_block(each)[:3]))
            for (each,) in rows("SELECT records FROM block LIMIT 2")
        ]
        world.close()
        return [wire.encode([kind, content]) for kind, content in found]

    def take(self, case: bytes) -> str:
        try:
            kind, content = wire.decoder(tuple[int, bytes])(case)
        except ValueError:
            kind, content = 0, case
        became = self._decoded(kind % 5, content)
        db = self._db
        db.execute("BEGIN")
        try:
            self._insert(kind % 5, content)
            faults = list(faults_of(db, CLUSTER, 0, Found(0)))
        finally:
            db.execute("ROLLBACK")
        assert became == ACCEPTED or faults, "verify has not seen what cannot be read"
        return became

    def _decoded(self, kind: int, content: bytes) -> str:
        readers: Sequence[Any] = (
            codec.unpack_batch,
            codec.unpack_record,
            lambda each: codec.unpack_checkpoint(codec.seal(each)),
            lambda each: codec.unpack_segment(codec.seal(each)),
            lambda each: [
                codec.unpack_record(record)
                for record in codec.unpack_block(codec.seal(codec._squeeze(each)))
            ],
        )
        try:
            readers[kind](content)
        except codec.Unreadable:
            return "unreadable"
        return ACCEPTED

    def _insert(self, kind: int, content: bytes) -> None:
        db, sealed = self._db, codec.seal(content)
        if kind == 0:
            chain = codec.link(codec.GENESIS, 1, content)
            db.execute("INSERT INTO journal VALUES (1, ?, ?)", (chain, content))
        elif kind == 1:
            db.execute("INSERT INTO kept VALUES (1024, ?)", (sealed,))
        elif kind == 2:
            db.execute("INSERT INTO checkpoint VALUES (1, 1, ?)", (sealed,))
        elif kind == 3:
            db.execute("INSERT INTO segment VALUES (1, ?, ?)", (sealed, sealed))
        else:
            block = codec.seal(codec._squeeze(content))
            db.execute("INSERT INTO block VALUES (0, ?)", (block,))

    def probe(self) -> None:
        assert list(faults_of(self._db, CLUSTER, 0, Found(0))) == []

    def close(self) -> None:
        self._db.close()
        self._folder.remove()


class ServiceFile(Target):
    """A service's database: refused, or its worker works, or ends with an error of SQLite."""

    name = "service-file"
    form = "bytes"
    share = 0.02
    block = 64

    def __init__(self) -> None:
        self._folder = Folder()
        self._file = self._folder.path / "inventory.db"
        connection = open_file(self._file)
        make_tables(connection, inventory, CLUSTER, CATALOG)
        executor = BatchExecutor(connection, inventory, Quiet())
        for count in range(1, 120):
            executor.execute([Commands(WITNESS, [_reserve(count)])])
        executor.forget(Forget(WITNESS, 1, [(1, 3), (5, 6)]))
        executor.close()
        self._good = self._file.read_bytes()

    def corpus(self) -> list[bytes]:
        return some_patches(self._good)

    def take(self, case: bytes) -> str:
        damaged = patched(self._good, case)
        for suffix in ("-wal", "-shm"):
            self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)
        self._file.write_bytes(damaged)
        connection = None
        try:
            connection = open_file(self._file)
            make_tables(connection, inventory, CLUSTER, CATALOG)
            executor = BatchExecutor(connection, inventory, Quiet())
            for witness in executor.witnesses():
                wire.encode(witness)
            page = wire.pack({"book": "inventory", "table": "stock", "after": "", "limit": 10})
            executor.read_books(BooksAsked(1, page))
            answers = executor.execute([Commands(WITNESS, [_reserve(7), _reserve(500)])])[0]
            executor.forget(Forget(WITNESS, 1, [(1, 8)]))
        except SagacityError as error:
            return code_of(error)
        except apsw.Error:
            return "ends"  # the worker, with its reason
        finally:
            if connection is not None:
                connection.close()
        return wire.OUTCOMES[answers[1].outcome]

    def probe(self) -> None:
        assert self.take(b"") == "ok"

    def close(self) -> None:
        self._folder.remove()


def _reserve(count: int) -> Command:
    body = wire.encode(ReserveInventory(f"s{count}", 1, LINES))
    return Command(f"s{count}", 1, ACTION, 1, number_of(count, 0), 1, {}, body)
