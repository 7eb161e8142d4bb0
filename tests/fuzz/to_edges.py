"""Targets: lines to a Maelstrom node, configuration, cluster.json, command lines."""

import contextlib
import io
import json
import os
from typing import Any

from cluster import cli, requests
from cluster.conversation import Ask, Lines, Session
from cluster.directory import DataDirectory
from config.load import PACKAGED_CATALOG, PACKAGED_DEFAULTS, load, load_catalog
from config.schema import SECTIONS, Config
from sagacity import listing
from sagacity.errors import BY_CODE, SagacityError
from sagacity.ids import check_saga_id
from tests.fuzz.target import ACCEPTED, SKIPPED, Target, code_of
from tests.fuzz.to_worker import Folder

NOW_MS = 1_700_000_000_000


class Maelstrom(Target):
    """Lines: each is answered by one line, asked of the cluster, or logged and skipped."""

    name = "maelstrom"
    form = "json"
    share = 4.0
    words = (
        b"\n",
        b'"',
        b"{",
        b"}",
        b"[",
        b"NaN",
        b"1e999",
        b"\\ud800",
        b'"body"',
        b'"src":1,',
        b"\r",
    )

    def corpus(self) -> list[bytes]:
        checkout = {
            "type": "checkout",
            "msg_id": 1,
            "saga_id": "checkout42",
            "user_id": "u42",
            "items": [{"sku": "abc123", "quantity": 2}, {"sku": "xyz789", "quantity": 1}],
            "shipping_address": "123 Main St",
        }
        bodies: list[dict[str, Any]] = [
            {"type": "init", "msg_id": 1, "node_id": "n1", "node_ids": ["n1"]},
            checkout,
            {**checkout, "user_id": "u999"},
            {"type": "cancel", "msg_id": 2, "saga_id": "checkout42", "reason": "changed my mind"},
            {"type": "echo", "msg_id": 3, "echo": {"a": [1, 2]}},
            {"type": "topology", "msg_id": 4, "topology": {"n1": []}},
            {"type": "error", "in_reply_to": 1, "code": 11, "text": "no"},
            {"type": "nothing"},
        ]
        return [json.dumps({"src": "c1", "dest": "n1", "body": body}).encode() for body in bodies]

    def fresh(self) -> None:
        self._skipped = 0
        self._session = Session(self._log)
        self._lines = Lines()

    def _log(self, event: str, **fields: Any) -> None:
        json.dumps(fields)
        self._skipped += 1

    def take(self, case: bytes) -> str:
        session, became = self._session, SKIPPED
        for line in self._lines.feed(case + b"\n"):
            skipped = self._skipped
            found = session.take(line)
            if isinstance(found, Ask):
                body = {"type": "checkout_complete", "saga_id": found.asked.saga_id}
                said = session.answered(found.token, body)
                assert session.answered(found.token, body) is None, "answered twice"
                assert said is not None
                became = self._out(said)
            elif found is not None:
                became = self._out(found)
            else:
                assert not line.strip() or self._skipped == skipped + 1, "skipped in silence"
        assert session.asking == 0
        return became

    def _out(self, line: bytes) -> str:
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        body = json.loads(line)["body"]
        assert isinstance(body["msg_id"], int)
        if body["type"] != "error":
            return ACCEPTED
        assert body["code"] in BY_CODE
        return f"code {body['code']}"

    def probe(self) -> None:
        assert self.take(self.corpus()[4]) == ACCEPTED


def _keys() -> list[str]:
    return [
        f"{section}.{name}" for section, kind in SECTIONS.items() for name in kind.__struct_fields__
    ]


class ConfigFile(Target):
    """A configuration file, and the same text as a catalog: a value, or all faults at once."""

    name = "config-file"
    form = "bytes"
    share = 0.05
    words = (
        *(f"{key.partition('.')[2]} = ".encode() for key in _keys()),
        *(f"[{section}]\n".encode() for section in SECTIONS),
        *(b"= -1\n", b"= 1.5\n", b"= nan\n", b'= "x"\n', b"= []\n", b"= {}\n", b"= 1979-05-27\n"),
        *(
            b"= " + b"9" * 5000 + b"\n",
            b'"\\ud800"',
            b"[[x]]\n",
            b"= " + b"[" * 200 + b"\n",
            b"a.b.c = 1\n",
        ),
        *(
            b"\x00",
            b"\xff\xfe",
            b"[sku.x]\n",
            b'price = "1.005"\n',
            b"stock = 10\n",
            b'price = "-1"\n',
        ),
    )

    def __init__(self) -> None:
        self._folder = Folder()
        self._file = self._folder.path / "fuzz.toml"

    def corpus(self) -> list[bytes]:
        whole = PACKAGED_DEFAULTS.read_bytes()
        sections = [b"[" + part for part in whole.split(b"\n[")[1:]]
        return [*sections, PACKAGED_CATALOG.read_bytes(), b""]

    def take(self, case: bytes) -> str:
        self._file.write_bytes(case)
        try:
            became = ACCEPTED if isinstance(load(self._file, {}), Config) else "nothing"
        except SagacityError as error:
            became = code_of(error)
        try:
            load_catalog(self._file)
        except SagacityError as error:
            code_of(error)
        return became

    def probe(self) -> None:
        assert self.take(b"[saga]\nattempts = 7\n") == ACCEPTED

    def close(self) -> None:
        self._folder.remove()


class Environment(Target):
    """Environment variables, as os.environ gives them: undecodable bytes as surrogates."""

    name = "config-environment"
    form = "bytes"
    share = 0.05
    words = (
        *(f"SAGACITY_{key.replace('.', '__').upper()}=".encode() for key in _keys()),
        *(
            b"\n",
            b"SAGACITY_",
            b"__",
            b"-1",
            b"1.5",
            b"nan",
            b'"x"',
            b"[1]",
            b"true",
            b"\xff",
            b"\x00",
        ),
        *(b"9" * 5000, b"[" * 200, b"1979-05-27", b"{a=1}", b'"\\ud800"', b"'", b'"""'),
    )

    def corpus(self) -> list[bytes]:
        return [
            b"SAGACITY_SAGA__ATTEMPTS=7\nSAGACITY_CLUSTER__SHARDS=4",
            b"SAGACITY_CLUSTER__SAGAS=['services.checkout:checkout']",
            b"SAGACITY_CLUSTER__CATALOG=/tmp/x.toml\nSAGACITY_URL=ipc:///x\nHOME=/root",
            b"SAGACITY_SERVICES__POOLS={inventory='services.inventory:service'}",
        ]

    def take(self, case: bytes) -> str:
        env = {}
        for line in os.fsdecode(case).split("\n"):
            name, _, value = line.partition("=")
            env[name] = value
        try:
            load(None, env)
        except SagacityError as error:
            error.text.encode("utf-8", "backslashreplace")
            return code_of(error)
        return ACCEPTED

    def probe(self) -> None:
        assert self.take(self.corpus()[0]) == ACCEPTED


class ClusterJson(Target):
    """cluster.json of a data directory: read, or refused; never changed."""

    name = "cluster-json"
    form = "json"
    share = 0.25

    def __init__(self) -> None:
        self._folder = Folder()
        self._directory = DataDirectory(self._folder.path / "data")
        self._directory.open_or_create(2, sagas=[("checkout", 1)])
        self._file = self._directory.path / "cluster.json"
        made = json.loads(self._file.read_bytes())
        self._good = json.dumps({**made, "cluster_id": "c0ffee" + "0" * 26}).encode()

    def corpus(self) -> list[bytes]:
        return [self._good]

    def take(self, case: bytes) -> str:
        self._file.write_bytes(case)
        try:
            self._directory.read()
        except SagacityError as error:
            return code_of(error)
        finally:
            assert self._file.read_bytes() == case, "what is refused stays as it is"
        return ACCEPTED

    def probe(self) -> None:
        assert self.take(self._good) == ACCEPTED

    def close(self) -> None:
        self._folder.remove()


class CommandLine(Target):
    """Command lines up to what would be asked of a cluster: exit code 2, or a request."""

    name = "command-line"
    form = "bytes"
    share = 0.05
    words = (
        *(
            b"\n",
            b"--json",
            b"--user",
            b"--item",
            b"--address",
            b"--id",
            b"--reason",
            b"--limit",
            b"-h",
        ),
        *(
            b"--status",
            b"--since",
            b"--data",
            b"--config",
            b"--connect",
            b"--",
            b"=",
            b"abc=1",
            b"\xff",
        ),
        *(
            b"stuck,running",
            b"7d",
            b"9" * 5000,
            b"2026-01-31T18:00",
            b"99999999d",
            b"-1",
            b"\xc3\xa9",
        ),
    )

    def corpus(self) -> list[bytes]:
        return [
            b"checkout\n--user\nu42\n--item\nabc123=2\n--address\n123 Main St\n--id\ns1",
            b"cancel\ns1\n--reason\nwhy not\n--json",
            b"retry\ns1\n--reason\nmended",
            b"show\ns1\n--events",
            b"list\n--status\nstuck,running\n--since\n7d\n--limit\n10",
            b"status\n--json",
        ]

    def take(self, case: bytes) -> str:
        words = os.fsdecode(case.replace(b"\x00", b"")).split("\n")
        if words[0] in ("up", "maelstrom", "journal", "config", "audit"):
            return "left out"  # they start something
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                parser, run = cli._parser(words[0])
                options = parser.parse_args(words)
        except SystemExit as ended:
            if ended.code not in (0, 2):
                raise AssertionError(f"exit code {ended.code}") from None
            return f"exit {ended.code}"
        if run is None:
            return "exit 2"
        try:
            _asked(words[0], options)
        except SagacityError as error:
            return code_of(error)
        return ACCEPTED

    def probe(self) -> None:
        for case in self.corpus():
            assert self.take(case) == ACCEPTED


def _asked(command: str, options: Any) -> None:
    """Make what the command would ask; as `commands` does."""
    from cluster import commands

    if command == "checkout":
        body = {
            "type": "checkout",
            "saga_id": options.id or "s1",
            "user_id": options.user,
            "items": [commands._item(text) for text in options.item],
            "shipping_address": options.address,
        }
        requests.checkout(body)
    elif command == "cancel":
        requests.cancel({"type": "cancel", "saga_id": options.id, "reason": options.reason})
    elif command == "retry":
        requests.retry({"type": "retry", "saga_id": options.id, "reason": options.reason})
    elif command == "show":
        check_saga_id(options.id)
    elif command == "list":
        names = [name for given in options.status for name in given.split(",")]
        since = 0 if options.since is None else requests.since(options.since, NOW_MS)
        listing.checked(names, since, options.limit)
