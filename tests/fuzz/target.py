"""What a fuzz target is, and what may come out of one.

A target takes cases one after the other and says what became of each: `accepted`, `code 12` (of
the error table), or that it was dropped, skipped or refused, which is logged and counted. Anything
else that comes out is a finding, and so is whatever an assertion of the target finds.
"""

from collections.abc import Sequence
from typing import ClassVar

from sagacity import wire
from sagacity.errors import BY_CODE, SagacityError
from sagacity.wire import Reply

ACCEPTED = "accepted"
DROPPED = "dropped"  # a frame that nobody can be answered about: counted by its reader
_ERROR_KEYS = {"type", "in_reply_to", "code", "text", "retry_after_ms", "fingerprint"}
SKIPPED = "skipped"  # a line that is no JSON: logged


class Target:
    """One place where input from outside comes in.

    Attributes:
        name: on the command line.
        form: of its cases, for the mutation of values: "msgpack", "json" or "bytes".
        words: that may stand anywhere in a case.
        block: cases of one world; then it is made anew, and a finding is replayed from its
            beginning.
        share: of a campaign's cases, against 1 of the others.
    """

    name: ClassVar[str]
    form: ClassVar[str] = "msgpack"
    words: ClassVar[Sequence[bytes]] = ()
    block: ClassVar[int] = 256
    share: ClassVar[float] = 1.0

    def corpus(self) -> list[bytes]:
        """Give valid cases."""
        raise NotImplementedError

    def fresh(self) -> None:
        """Make a new world."""

    def take(self, case: bytes) -> str:
        """Take a case; say what became of it."""
        raise NotImplementedError

    def probe(self) -> None:
        """Check that a valid request is still answered rightly."""

    def close(self) -> None:
        """Let go of files."""


def told(reply: Reply) -> str:
    """Give what a reply says, and check that it is an answer or an error of the table."""
    body = wire.unpack(reply.body)
    if reply.code is None:
        assert isinstance(body.get("type"), str), "an answer has a type"
        return ACCEPTED
    assert reply.code in BY_CODE, f"code {reply.code} is not in the table"
    assert (body["type"], body["code"]) == ("error", reply.code)
    assert isinstance(body["text"], str), "an error has a text"
    assert set(body) <= _ERROR_KEYS
    return f"code {reply.code}"


def code_of(error: SagacityError) -> str:
    """Give what an error of the table says."""
    assert error.code in BY_CODE
    assert isinstance(error.text, str)
    return f"code {error.code}"
