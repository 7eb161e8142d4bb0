"""The one table of errors (SPEC 4), for every front-end. Knows nothing of transport.

An error says whether the request took effect: *definite* errors say no, indefinite ones do not
know. A broken invariant is neither: `check` stops the process that found it, even under `-O`.
"""

from typing import Any, ClassVar, Final, NoReturn

PLACES_MAX: Final = 10  # lines of a traceback that are logged


class SagacityError(Exception):
    """An answer other than an outcome. `code` goes on the wire, `exit_code` to the shell."""

    code: ClassVar[int] = 13
    definite: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1
    cause: str = "bug"  # under which refusals are counted; of a closed list, never on the wire

    def __init__(
        self,
        text: str,
        *,
        retry_after_ms: int | None = None,
        fingerprint: str | None = None,
        cause: str | None = None,
    ) -> None:
        super().__init__(text)
        self.text = text
        if cause is not None:
            self.cause = cause
        self.retry_after_ms = retry_after_ms
        self.fingerprint = fingerprint

    def body(self) -> dict[str, Any]:
        """Give the error as a message body, keys in the order of SPEC 4."""
        body: dict[str, Any] = {"type": "error", "code": self.code, "text": self.text}
        if self.retry_after_ms is not None:
            body["retry_after_ms"] = self.retry_after_ms
        if self.fingerprint is not None:
            body["fingerprint"] = self.fingerprint
        return body


class NotSupported(SagacityError):
    """The type of message is not supported here."""

    code, definite, exit_code = 10, True, 2
    cause = "not_supported"


class Malformed(SagacityError):
    """The request is malformed or over a limit; nothing was written."""

    code, definite, exit_code = 12, True, 2
    cause = "malformed"


class UnknownSaga(SagacityError):
    """No saga has this id."""

    code, definite, exit_code = 20, True, 3
    cause = "unknown_saga"


class Conflict(SagacityError):
    """The state of the saga forbids it, or its id was used for other content."""

    code, definite, exit_code = 22, True, 4
    cause = "conflict"


class NotTaken(SagacityError):
    """This request was not taken: overloaded, draining or shard down. Send it again, same id."""

    code, definite, exit_code = 11, True, 5
    cause = "not_taken"


class NoOutcome(SagacityError):
    """Taken or maybe taken, and no outcome in time. Ask again with the same id."""

    code, definite, exit_code = 0, False, 6
    cause = "no_outcome"


class Stuck(NoOutcome):
    """A compensation does not succeed; a person has to look. On the wire its text tells it."""

    exit_code = 11
    cause = "stuck"
    prefix: ClassVar[str] = "stuck: "


class InternalError(SagacityError):
    """A bug of ours. Ask again with the same id."""

    code, definite, exit_code = 13, False, 1


BY_CODE: dict[int, type[SagacityError]] = {
    kind.code: kind
    for kind in (
        NotSupported,
        Malformed,
        UnknownSaga,
        Conflict,
        NotTaken,
        NoOutcome,
        InternalError,
    )
}

EXIT_COMPLETED = 0
EXIT_ABORTED = 10  # a business outcome, not an error
EXIT_UNBALANCED = 12  # the audit found that the books do not balance


def from_body(body: dict[str, Any]) -> SagacityError:
    """Give the error that an error body describes; an unknown code reads as a bug."""
    code = body.get("code")
    kind = BY_CODE.get(code, InternalError) if isinstance(code, int) else InternalError
    text = str(body.get("text", ""))
    if kind is NoOutcome and text.startswith(Stuck.prefix):
        kind = Stuck
    return kind(
        text,
        retry_after_ms=body.get("retry_after_ms"),
        fingerprint=body.get("fingerprint"),
    )


class InvariantBroken(BaseException):
    """What must always hold does not. Not an Exception: nothing may catch it and go on."""


def places(error: BaseException) -> list[str]:
    """Give the lines through which an exception came, where it was raised last.

    For a log, in place of its words: they may quote what a client has sent.
    """
    import traceback  # noqa: PLC0415 - slow to import, and rarely wanted

    frames = traceback.extract_tb(error.__traceback__)[-PLACES_MAX:]
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]


def check(holds: object, text: str, **seen: object) -> None:
    """Stop the process unless `holds`: a bug is not an error that a caller could handle."""
    if not holds:
        broken(text, **seen)


def broken(text: str, **seen: object) -> NoReturn:
    """Stop the process: an invariant is broken."""
    shown = "".join(f" {name}={_shown(value)}" for name, value in seen.items())
    raise InvariantBroken(text + shown)


def _shown(value: object) -> str:
    """Give what of a value may stand in a log: numbers and ids, never what a client has sent."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, list | tuple | dict | set | frozenset):
        return f"<{type(value).__name__} of {len(value)}>"
    fields = getattr(value, "__struct_fields__", None)
    if fields is None:
        return repr(value)
    parts = [(name, getattr(value, name)) for name in fields]
    told = ", ".join(
        f"{name}={part!r}" for name, part in parts if isinstance(part, int) or name == "saga_id"
    )
    return f"{type(value).__name__}({told})"
