"""The two directories of a cluster: what is kept (data) and where its processes meet (run).

    DIR/cluster.json           cluster id, format, shards, slot owners, sagas, files that were made;
                               written atomically, and changed under a flock of DIR itself
    DIR/lock                   flock of the supervisor
    DIR/shard-0/journal.db     DIR/shard-0/lock       DIR/shard-0/reserve
    DIR/services/inventory.db  DIR/services/inventory.lock

    RUN/router.sock  RUN/shard-0.sock  RUN/shard-0-workers.sock  RUN/reports.sock
    RUN/supervisor.sock  RUN/lock  RUN/up.json

Knows names, owners and modes of files; nothing of what stands in journals and databases, nothing
of sockets but their addresses.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct, structs

from sagacity.errors import Conflict, Malformed, NotTaken
from sagacity.ids import SHARDS_MAX
from sagacity.slots import SLOTS, SlotMap

FORMAT: Final = 1
# What to do with a directory that is refused; docs/errors.md tells more.
MEND: Final = "restore the whole directory from a backup, or name another one by --data"
OTHER_VERSION: Final = "start it with the version of Sagacity that made it"
SOCKET_PATH_MAX: Final = 107  # bytes of a Unix socket's path on Linux, the closing NUL left out
_LONGEST_SOCKET: Final = f"shard-{SHARDS_MAX - 1}-workers.sock"
_PATIENCE_S: Final = 0.2  # a reader of `find_running` may hold a run directory's lock for a moment
_FOUND_BEFORE_A_CLUSTER: Final = frozenset({"lock", "cluster.json.new", "services", "lost+found"})


class ClusterFile(Struct, frozen=True):
    """What a data directory says about its cluster.

    Args:
        cluster_id: 32 hexadecimal digits.
        shards: how many journals there are.
        slots: which shard owns each slot.
        sagas: name and version of each saga that its journals may hold.
        made: journals and databases that were made, by their paths in the directory: where one of
            them is gone now, facts are lost.
    """

    cluster_id: str
    shards: int
    slots: SlotMap
    sagas: tuple[tuple[str, int], ...] = ()
    made: tuple[str, ...] = ()


class _Format(Struct):
    """The one key of cluster.json that every version of it has."""

    format: int


class _Stored(Struct, forbid_unknown_fields=True):
    """cluster.json, format 1."""

    format: int
    cluster_id: Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    shards: Annotated[int, Meta(ge=1, le=SHARDS_MAX)]
    slots: Annotated[
        tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=SLOTS, max_length=SLOTS)
    ]
    sagas: tuple[tuple[str, int], ...] = ()
    made: tuple[str, ...] = ()


class Running(Struct, frozen=True):
    """A cluster that runs on this machine for this user, as its up.json says.

    Args:
        pid: of the supervisor.
        router: the address that clients connect to.
        metrics: URL of the supervisor's /metrics.
        data: path of the data directory.
        cluster_id: 32 hexadecimal digits.
        kind: "up" for one that commands find by themselves, "private" for one of a test or a demo.
    """

    pid: int
    router: str
    metrics: str
    data: str
    cluster_id: str
    kind: str


class Lock:
    """A flock that this process holds until `release` or its end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class DataDirectory:
    """A data directory: paths in it, its lock, its cluster.json."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self._file = self.path / "cluster.json"

    def __repr__(self) -> str:
        return f"DataDirectory({str(self.path)!r})"

    def shard(self, index: int) -> Path:
        """Give the directory of a shard."""
        return self.path / f"shard-{index}"

    def journal(self, index: int) -> Path:
        """Give the journal of a shard."""
        return self.shard(index) / "journal.db"

    def shard_lock(self, index: int) -> Path:
        """Give the file that a shard's owner locks before it binds or opens anything."""
        return self.shard(index) / "lock"

    def service(self, name: str) -> Path:
        """Give the database of a service."""
        return self.path / "services" / f"{name}.db"

    def service_lock(self, name: str) -> Path:
        """Give the file that the working one of an exclusive pool locks."""
        return self.path / "services" / f"{name}.lock"

    def lock(self) -> Lock:
        """Take the directory for this process; makes the directory where there is none.

        Raises:
            Conflict: another supervisor has it; the text names its process id.
            Malformed: this can be no data directory of ours.
        """
        with _faults_of(self.path, "use the data directory"):
            self._make()
            lock = _lock(self.path / "lock", patience_s=0)
        if isinstance(lock, str):
            raise Conflict(f"{self.path} is in use by another sagacity up (process {lock})")
        return lock

    def own_shard(self, index: int) -> Lock:
        """Take a shard's journal for this process, before anything is bound or opened.

        Raises:
            Conflict: another process owns it; the text names its process id.
            Malformed: the directory is damaged or not ours.
        """
        with _faults_of(self.path, "use the data directory"):
            lock = _lock(self.shard_lock(index), patience_s=_PATIENCE_S)
        if isinstance(lock, str):
            raise Conflict(f"shard {index} of {self.path} is owned by process {lock}")
        return lock

    @contextmanager
    def kept_still(self, services: Iterable[str] = ()) -> Iterator[ClusterFile]:
        """Keep a stopped cluster from starting while its files are read; writes nothing.

        Args:
            services: whose databases are read, too.

        Raises:
            Conflict: it runs; the text names the process.
            Malformed: there is no cluster, or it is damaged.
        """
        found = self.read()
        with ExitStack() as held:
            with _faults_of(self.path, "read the data directory"):
                files = (
                    self.path / "lock",
                    *map(self.shard_lock, range(found.shards)),
                    *map(self.service_lock, services),
                )
                for file in files:
                    if not file.exists():
                        continue  # nobody has ever started it
                    lock = _lock(file, patience_s=_PATIENCE_S, make=False)
                    if isinstance(lock, str):
                        raise Conflict(f"{self.path} is in use by process {lock}: stop it first")
                    held.callback(lock.release)
            yield found

    def open_or_create(
        self, shards: int, *, insist: bool = True, sagas: Iterable[tuple[str, int]] | None = None
    ) -> ClusterFile:
        """Read cluster.json, or make a new cluster of `shards` shards. Call it under `lock`.

        Args:
            shards: of a new cluster.
            insist: an existing one must have as many, too.
            sagas: name and version of each that this cluster runs; names that an existing one has
                are among them. What it has is changed by `name` alone. None: it is not asked.

        Raises:
            Conflict: the directory holds another number of shards, or a saga that is not given.
            Malformed: it is damaged, of an unknown format, not ours, or cannot be written.
        """
        if not 1 <= shards <= SHARDS_MAX:
            raise Malformed(f"shards is an integer 1..{SHARDS_MAX}, not {shards}")
        if self._file.exists():
            found = self.read()
            if insist and found.shards != shards:
                raise Conflict(
                    f"{self.path} holds {found.shards} shards, asked for {shards}; "
                    "slots cannot move between shards yet"
                )
            if sagas is not None:
                self._require_all(found, {name for name, _ in sagas})
            return found
        with _faults_of(self.path, "make a cluster in"):
            self._make()
            named = tuple(sorted(sagas or ()))
            made = ClusterFile(os.urandom(16).hex(), shards, SlotMap.even(shards), named)
            for directory in (self.path / "services", *map(self.shard, range(shards))):
                directory.mkdir(mode=0o700, exist_ok=True)
            self._store(made)
        return made

    def _require_all(self, found: ClusterFile, names: set[str]) -> None:
        missing = sorted({name for name, _ in found.sagas} - names)
        if missing:
            text = ", ".join(missing)
            raise Conflict(f"{self.path} holds sagas of {text}, which cluster.sagas does not name")

    def name(self, sagas: Iterable[tuple[str, int]]) -> None:
        """Take note, durably, of the sagas that the journals may hold from now on.

        Args:
            sagas: name and version of each; the versions of before have ended, or none is new.
        """
        self._changed(sagas=tuple(sorted(sagas)))

    def require(self, file: Path) -> None:
        """Refuse to go on where a journal or database is gone, or empty, that was made here.

        It would be made anew: its numbers and epochs would begin again beside files that know
        later ones.

        Raises:
            Malformed: facts are lost; the text says what to do.
        """
        if str(file.relative_to(self.path)) not in self.read().made:
            return
        with _faults_of(self.path, "read the data directory"):
            size = file.stat().st_size if file.exists() else None
        if not size:
            raise Malformed(
                f"{file} is {'gone' if size is None else 'empty'}, and this cluster has served "
                f"with it: {MEND}; if it is lost for good, `sagacity up --accept-data-loss` goes "
                "on without what it held, see docs/errors.md"
            )

    def note(self, file: Path) -> None:
        """Take note, durably, that a journal or database was made; before anybody relies on it."""
        name = str(file.relative_to(self.path))
        if name not in self.read().made:
            self._changed(made=name)

    def _changed(
        self, *, sagas: tuple[tuple[str, int], ...] | None = None, made: str | None = None
    ) -> ClusterFile:
        """Change cluster.json: its sagas, or one more file that was made."""
        with _faults_of(self.path, "write in"), _alone_in(self.path):
            found = self.read()
            changed = structs.replace(
                found,
                sagas=found.sagas if sagas is None else sagas,
                made=tuple(sorted({*found.made, *(() if made is None else (made,))})),
            )
            if changed != found:
                self._store(changed)
        return changed

    def _store(self, cluster: ClusterFile) -> None:
        _write(
            self._file,
            _Stored(
                FORMAT,
                cluster.cluster_id,
                cluster.shards,
                cluster.slots.owners,
                cluster.sagas,
                cluster.made,
            ),
        )

    def read(self) -> ClusterFile:
        """Read cluster.json.

        Raises:
            Malformed: there is none, it is damaged or of an unknown format, or a directory that
                it speaks of is gone.
        """
        with _faults_of(self.path, "read the data directory"):
            try:
                text = self._file.read_bytes()
            except FileNotFoundError:
                raise Malformed(f"{self.path} holds no cluster: no cluster.json; {MEND}") from None
            found = _cluster_file(text, self._file)
            for directory in (self.path / "services", *map(self.shard, range(found.shards))):
                if not directory.is_dir():
                    raise Malformed(f"{self.path} is damaged: {directory.name} is missing; {MEND}")
        return found

    def _make(self) -> None:
        """Make the directory, or refuse one that holds what no cluster left there."""
        missing = [each for each in (self.path, *self.path.parents) if not each.exists()]
        if missing:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for made in missing:
            _sync(made.parent)  # its name stands there; a journal below is as durable as that
        if self._file.exists():
            return
        for entry in self.path.iterdir():
            left_by_us = entry.name in _FOUND_BEFORE_A_CLUSTER or entry.name.startswith("shard-")
            if not left_by_us:
                raise Malformed(
                    f"{self.path} is no data directory: it holds {entry.name!r}; "
                    "name an empty one by --data"
                )
            if entry.is_dir() and entry.name != "lost+found" and any(entry.iterdir()):
                # Numbers and epochs would begin again under databases that know later ones.
                raise Malformed(
                    f"{self.path} is damaged: {entry.name} is there, cluster.json is missing; "
                    + MEND
                )
        self.path.chmod(0o700)


class RunDirectory:
    """Where the processes of a cluster meet: addresses, and who runs here.

    The same data directory gives the same addresses after a restart, so clients find their way
    back by themselves.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @classmethod
    def of(cls, cluster_id: str, env: Mapping[str, str] | None = None) -> "RunDirectory":
        """Give the run directory of a cluster; makes nothing."""
        return cls(_base(os.environ if env is None else env) / cluster_id[:8])

    @property
    def router(self) -> str:
        """The router's address for clients, unless it serves TCP."""
        return self._address("router.sock")

    @property
    def reports(self) -> str:
        """Where the supervisor takes the reports of its children."""
        return self._address("reports.sock")

    @property
    def supervisor(self) -> str:
        """Where the supervisor answers what routers ask about the cluster."""
        return self._address("supervisor.sock")

    def shard(self, index: int) -> str:
        """Give the address of a shard for routers."""
        return self._address(f"shard-{index}.sock")

    def workers(self, index: int) -> str:
        """Give the address of a shard for workers."""
        return self._address(f"shard-{index}-workers.sock")

    def lock(self) -> Lock:
        """Make the directory (0700), take it for this process, clear what a killed one left.

        Raises:
            Conflict: another process runs this cluster, from a copy of the data directory.
            Malformed: the directory belongs to somebody else, is open to others, or cannot be made.
        """
        with _faults_of(self.path, "use the run directory"):
            lock = self._take()
            if isinstance(lock, str):
                raise Conflict(f"process {lock} runs this cluster from another directory")
            for left in (*self.path.glob("*.sock"), self.path / "up.json"):
                left.unlink(missing_ok=True)
        return lock

    def announce(self, running: Running) -> None:
        """Write up.json: from now on `find_running` finds it, where it is of kind "up"."""
        with _faults_of(self.path, "write in"):
            _write(self.path / "up.json", running)

    def remove(self) -> None:
        """Remove all of it; the caller still holds the lock.

        The lock goes last: until then nobody else can have made anything here.
        """
        with suppress(OSError):
            for left in self.path.iterdir():
                if left.name != "lock":
                    left.unlink()
            (self.path / "lock").unlink()
            self.path.rmdir()

    def _take(self) -> Lock | str:
        """Make the directory and lock it, once more where somebody removes it meanwhile."""
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            for directory in (self.path.parent, self.path):
                directory.mkdir(mode=0o700, exist_ok=True)
                _require_private(directory)
            try:
                return _lock(self.path / "lock", patience_s=_PATIENCE_S)
            except FileNotFoundError:
                if time.monotonic() >= give_up:
                    raise

    def _address(self, name: str) -> str:
        return f"ipc://{self.path}/{name}"


def running(env: Mapping[str, str] | None = None) -> list[Running]:
    """Give the clusters that run on this machine for this user, private ones included.

    What killed ones have left is removed.
    """
    found = []
    base = _base(os.environ if env is None else env)
    for file in sorted(base.glob("*/lock")):
        try:
            _require_private(file.parent)
            lock = _lock(file, patience_s=0, make=False)
            if isinstance(lock, Lock):
                RunDirectory(file.parent).remove()  # nobody held it: left by one that was killed
                lock.release()
            else:
                said = (file.parent / "up.json").read_bytes()
                found.append(msgspec.json.decode(said, type=Running))
        except (OSError, msgspec.DecodeError, Malformed):
            continue  # it ended meanwhile, or is not ours
    return found


def find_running(env: Mapping[str, str] | None = None) -> str:
    """Give the router's address of the one cluster that `sagacity up` runs here for this user.

    Raises:
        NotTaken: none runs.
        Malformed: several do; the text names their addresses.
    """
    urls = [found.router for found in running(env) if found.kind == "up"]
    if not urls:
        raise NotTaken("no cluster runs here; start one with: sagacity up")
    if len(urls) > 1:
        raise Malformed(f"{len(urls)} clusters run here, choose by --connect: {' or '.join(urls)}")
    return urls[0]


def _base(env: Mapping[str, str]) -> Path:
    """Give the folder of all run directories of this user; the same for `up` and for readers."""
    name = f"sagacity-{os.getuid()}"
    chosen = Path(env.get("XDG_RUNTIME_DIR") or "/tmp")  # noqa: S108 - owner and mode are checked
    longest = chosen / name / "01234567" / _LONGEST_SOCKET
    fits = len(os.fsencode(longest)) <= SOCKET_PATH_MAX
    if not (fits and chosen.is_absolute() and os.access(chosen, os.W_OK | os.X_OK)):
        chosen = Path("/tmp")  # noqa: S108 - likewise
    return chosen / name


def _require_private(directory: Path) -> None:
    seen = directory.lstat()
    if not stat.S_ISDIR(seen.st_mode):
        raise Malformed(f"{directory} is no directory")
    if seen.st_uid != os.getuid():
        raise Malformed(f"{directory} belongs to another user (uid {seen.st_uid})")
    if seen.st_mode & 0o077:
        raise Malformed(f"{directory} is open to other users; it must have mode 0700")


def _lock(file: Path, *, patience_s: float, make: bool = True) -> Lock | str:
    """Lock a file, or give the process id that its holder wrote."""
    flags = os.O_RDWR | os.O_CREAT if make else os.O_RDONLY
    descriptor = os.open(file, flags | os.O_CLOEXEC, 0o600)
    give_up = time.monotonic() + patience_s
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                    os.close(descriptor)
                    return holder or "unknown"
                time.sleep(0.01)
        if os.fstat(descriptor).st_nlink == 0:
            # The last holder removed it at its end: a lock of it guards nothing.
            raise FileNotFoundError(errno.ENOENT, "removed meanwhile, try again", str(file))
        if make:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        os.close(descriptor)
        raise
    return Lock(descriptor)


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep others out who change what stands in a directory: each process notes its own file."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(file: Path, values: Struct) -> None:
    """Write a JSON file so that after a crash it is there whole or not at all."""
    new = file.with_name(file.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as stream:
        stream.write(msgspec.json.encode(values) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)
    for directory in (file.parent, file.parent.parent):  # the file's name, its directory's name
        _sync(directory)


def _sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cluster_file(text: bytes, file: Path) -> ClusterFile:
    try:
        form = msgspec.json.decode(text, type=_Format).format
        if form != FORMAT:
            raise Malformed(
                f"{file} has format {form}; this version reads {FORMAT}; {OTHER_VERSION}"
            )
        stored = msgspec.json.decode(text, type=_Stored)
    except msgspec.DecodeError as error:
        raise Malformed(f"{file} is damaged: {error}; {MEND}") from None
    if max(stored.slots) >= stored.shards:
        raise Malformed(f"{file} is damaged: a slot belongs to shard {max(stored.slots)}; {MEND}")
    return ClusterFile(
        stored.cluster_id, stored.shards, SlotMap(stored.slots), stored.sagas, stored.made
    )


@contextmanager
def _faults_of(path: Path, purpose: str) -> Iterator[None]:
    """Say what the operating system refused, in the words of SPEC 4."""
    try:
        yield
    except OSError as error:
        about = "" if error.filename in (None, str(path)) else f" ({error.filename})"
        raise Malformed(f"cannot {purpose} {path}: {error.strerror or error}{about}") from None
