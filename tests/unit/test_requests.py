"""What people type, made into what travels: reasons, ids, instants."""

import time
from collections.abc import Iterator

import pytest

from cluster import requests
from sagacity import wire
from sagacity.errors import Malformed

NOW_MS = 1_700_000_000_000


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A time without a zone is local."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("30s", NOW_MS - 30_000),
        ("15m", NOW_MS - 900_000),
        ("2h", NOW_MS - 7_200_000),
        ("7d", NOW_MS - 604_800_000),
        ("0m", NOW_MS),
        ("999999999d", 0),
        ("2023-11-14T22:13:20", NOW_MS),
        ("2023-11-14 22:13:20.5", NOW_MS + 500),
        ("2023-11-14T23:13:20+01:00", NOW_MS),
        ("2023-11-14T22:13:20Z", NOW_MS),
        ("2023-11-14", NOW_MS - 80_000_000),
        ("1969-12-31T00:00:00Z", 0),
    ],
)
def test_since_is_how_long_ago_or_an_instant(text: str, instant: int) -> None:
    """SPEC 6; in local time where no zone is named."""
    assert requests.since(text, NOW_MS) == instant


@pytest.mark.parametrize(
    "text",
    ["", "15", "m", "-5m", "1.5h", "15 m", "2w", "yesterday", "2023-13-01", "25:00", "\u0661m"],
)
def test_what_is_no_instant_is_refused(text: str) -> None:
    """And the refusal says what would be one."""
    with pytest.raises(Malformed, match="15m, 2h or 7d"):
        requests.since(text, NOW_MS)


@pytest.mark.parametrize("reason", ["", "r" * 257, "\x1b[2J", "a\nb", "\ud800", 7, None])
def test_a_retry_needs_a_reason_that_can_be_shown(reason: object) -> None:
    """It is journalled, and read by people."""
    with pytest.raises(Malformed):
        requests.retry({"type": "retry", "saga_id": "a", "reason": reason})


@pytest.mark.parametrize("saga_id", ["", "a b", "../x", "x" * 129, "\x00", 7])
def test_a_retry_needs_an_id(saga_id: object) -> None:
    with pytest.raises(Malformed):
        requests.retry({"type": "retry", "saga_id": saga_id, "reason": "r"})


def test_a_retry_travels_as_the_shards_read_it() -> None:
    asked = requests.retry({"type": "retry", "saga_id": "a", "reason": "mended"})
    assert (asked.kind, asked.saga_id) == (wire.RETRY, "a")
    assert wire.unpack(asked.body) == {"type": "retry", "saga_id": "a", "reason": "mended"}
