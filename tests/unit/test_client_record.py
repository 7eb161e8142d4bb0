"""The client's record: what is written is read; what is no record, or not all of it, is refused."""

import json
from collections.abc import Callable

import pytest

from checker.record import Catalog, ClientRecord, Recorder, fingerprint_of, read
from sagacity import wire
from sagacity.errors import Malformed

BODY = {
    "type": "checkout",
    "saga_id": "s1",
    "user_id": "u42",
    "items": [{"sku": "abc123", "quantity": 2}],
    "shipping_address": "123 Main St",
}
OTHER = {**BODY, "user_id": "u43"}
DONE = {"type": "checkout_complete", "in_reply_to": 3, "saga_id": "s1", "status": "COMPLETED"}


def written(client: str = "c0") -> list[bytes]:
    """Give the lines of a record that has one of everything."""
    lines: list[bytes] = []
    recorder = Recorder(lines.append, client, lambda: 7, "0" * 32)
    recorder.line(Catalog({"abc123": 10_000}, {"abc123": 5}, {}))
    recorder.sent(1, wire.START, "s1", wire.pack(BODY))
    recorder.planned("a kill")
    recorder.struck("a kill", 2, ["s9"])
    recorder.heard(1, None, wire.pack(DONE))
    recorder.sent(2, wire.SUBMIT, "s1", wire.pack(BODY))
    recorder.sent(3, wire.START, "s1", wire.pack(OTHER))
    recorder.heard(3, 22, wire.pack({"type": "error", "code": 22, "text": "no"}))
    recorder.sent(4, wire.SHOW, "s1")
    recorder.metrics("shard-0", 17, {"saga_started_total": 3})
    recorder.usage("shard-0", 17, 1 << 20, 9, 4)
    recorder.quiet()
    recorder.end()
    return lines


def test_what_was_recorded_is_read() -> None:
    """Requests with their answers, by their content's fingerprint; faults; measures."""
    found = read("here", written(), ClientRecord())
    assert (found.clients, found.clusters, found.quiet) == (["c0"], ["0" * 32], True)
    kinds = [(ask.kind, ask.saga_id, ask.fingerprint) for ask in found.asks]
    mine, other = fingerprint_of(BODY), fingerprint_of(OTHER)
    assert mine is not None
    assert mine != other
    assert kinds == [
        ("start", "s1", mine),
        ("submit", "s1", mine),
        ("start", "s1", other),
        ("show", "s1", None),
    ]
    [heard] = found.asks[0].answers
    assert heard.said() == {key: value for key, value in DONE.items() if key != "in_reply_to"}
    assert found.asks[2].answers[0].code == 22
    assert [(each.fault, each.hit, each.stuck) for each in found.struck] == [("a kill", 2, ["s9"])]
    assert [each.fault for each in found.planned] == ["a kill"]
    assert found.metrics[0].values == {"saga_started_total": 3}
    assert found.usage[0].threads == 4
    assert found.catalog is not None


def test_a_body_is_written_once() -> None:
    """A hundred thousand repeats of the same request need no hundred thousand bodies."""
    sent = [json.loads(line) for line in written() if b'"sent"' in line]
    assert [line["body"] is None for line in sent] == [False, True, False, False]


def test_records_of_several_clients_are_read_as_one() -> None:
    """Each numbers its own requests."""
    found = read("there", written("c1"), read("here", written("c0"), ClientRecord()))
    assert len(found.asks) == 8
    with pytest.raises(Malformed, match="another record"):
        read("again", written("c0"), found)


REFUSED: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "the end is missing": (lambda lines: lines[:-1], "truncated: its last line is missing"),
    "a line is cut": (lambda lines: [*lines[:-1], lines[-1][:-9]], "may be truncated"),
    "lines are missing": (lambda lines: [*lines[:4], *lines[5:]], "truncated: 14 lines"),
    "it is empty": (lambda lines: [], "empty"),
    "lines follow its end": (lambda lines: [*lines, lines[3]], "after its last one"),
    "a foreign file": (lambda lines: [b'{"some": "JSON"}\n'], "no client's record"),
    "no text": (lambda lines: [b"\x00\xff\xfe\n"], "no client's record"),
    "another version": (
        lambda lines: [lines[0].replace(b'"format":1', b'"format":0'), *lines[1:]],
        "format 0; this version reads 1",
    ),
    "an unknown line": (lambda lines: [lines[0], b'{"type": "sang"}\n'], "line 2 is none"),
    "an unknown key": (
        lambda lines: [lines[0], lines[4].replace(b'"hit"', b'"hits"')],
        "line 2 is none",
    ),
    "an answer to nothing": (lambda lines: [lines[0], lines[5]], "was not sent"),
    "a request twice": (lambda lines: [*lines[:3], lines[2]], "is sent twice"),
    "a repeat of nothing": (lambda lines: [lines[0], lines[6]], "no earlier line"),
    "it begins twice": (lambda lines: [lines[0], lines[0]], "begins once"),
    "nested without end": (
        lambda lines: [lines[0], b'{"type": "sent", "body": ' + b"[" * 100_000],
        "line 2 is none",
    ),
    "a float in a body": (
        lambda lines: [*lines[:3], lines[5].replace(b'"COMPLETED"', b"1.5")],
        "line 4",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_record_is_refused(name: str) -> None:
    """Half a record would show half of what happened: that is no evidence."""
    change, says = REFUSED[name]
    with pytest.raises(Malformed, match=says) as refused:
        read("here.jsonl", change(written()), ClientRecord())
    assert refused.value.text.startswith("here.jsonl: ")


def test_a_fingerprint_is_that_of_the_accepted_order() -> None:
    """SPEC 2: without msg_id, lines merged by SKU; of another saga's request nothing is known."""
    twice = [{"sku": "abc123", "quantity": 1}] * 2
    assert fingerprint_of({**BODY, "items": twice, "msg_id": 3}) == fingerprint_of(BODY)
    assert fingerprint_of({"type": "trip"}) is None
