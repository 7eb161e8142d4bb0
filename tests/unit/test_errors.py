"""Errors: the one table of SPEC 4, line by line."""

import pytest

from sagacity import errors
from sagacity.errors import (
    Conflict,
    InternalError,
    InvariantBroken,
    Malformed,
    NoOutcome,
    NotSupported,
    NotTaken,
    SagacityError,
    Stuck,
    UnknownSaga,
    check,
    from_body,
)

TABLE = [
    (Malformed, 12, True, 2),
    (NotSupported, 10, True, 2),
    (UnknownSaga, 20, True, 3),
    (Conflict, 22, True, 4),
    (NotTaken, 11, True, 5),
    (NoOutcome, 0, False, 6),
    (Stuck, 0, False, 11),
    (InternalError, 13, False, 1),
]


@pytest.mark.parametrize(("kind", "code", "definite", "exit_code"), TABLE)
def test_an_error_is_what_the_table_says(
    kind: type[SagacityError], code: int, definite: bool, exit_code: int
) -> None:
    """Clients decide by the code, scripts by the exit code."""
    assert (kind.code, kind.definite, kind.exit_code) == (code, definite, exit_code)


@pytest.mark.parametrize("kind", [kind for kind, *_ in TABLE])
def test_an_error_comes_back_from_its_body(kind: type[SagacityError]) -> None:
    """The client raises what the shard meant; STUCK travels in the text."""
    text = "stuck: RefundPayment" if kind is Stuck else "because"
    error = from_body(kind(text, retry_after_ms=250, fingerprint="ab").body())
    assert (type(error), error.text) == (kind, text)
    assert (error.retry_after_ms, error.fingerprint) == (250, "ab")


def test_a_body_has_its_keys_in_order_and_no_others() -> None:
    """SPEC 4."""
    assert list(NotTaken("full", retry_after_ms=250).body().items()) == [
        ("type", "error"),
        ("code", 11),
        ("text", "full"),
        ("retry_after_ms", 250),
    ]
    assert list(Malformed("bad").body()) == ["type", "code", "text"]
    assert list(Conflict("used", fingerprint="ab").body())[-1] == "fingerprint"


@pytest.mark.parametrize("body", [{}, {"code": 99}, {"code": "x", "text": 7}, {"text": None}])
def test_an_unknown_code_reads_as_a_bug(body: dict[str, object]) -> None:
    """A newer shard's error must not pass for a definite one."""
    error = from_body(body)
    assert type(error) is InternalError
    assert not error.definite


def test_nothing_catches_a_broken_invariant() -> None:
    """It is no Exception: `except Exception` somewhere must not let the process go on."""
    assert not issubclass(InvariantBroken, Exception)
    check(True, "holds")
    with pytest.raises(InvariantBroken, match="journal hole got=7"):
        check(False, "journal hole", got=7)


def test_exit_codes_are_the_specs() -> None:
    """10 and 12 are outcomes, not errors."""
    assert (errors.EXIT_COMPLETED, errors.EXIT_ABORTED, errors.EXIT_UNBALANCED) == (0, 10, 12)
