"""Traces: what a request's headers say of the trace that it belongs to (W3C Trace Context). Pure.

    traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
                 version, trace id, the caller's span, flags (1: the caller records this trace)

A shard reads it once, at the start, and leaves out what it cannot read: nobody's order fails for
that. It takes no part in the trace itself, so that what was accepted travels on as it came, in
every command's headers.
"""

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from sagacity.wire import Headers

TRACEPARENT: Final = "traceparent"  # keys of headers are lower case here
TRACESTATE: Final = "tracestate"  # what vendors add; nothing without a traceparent
TEXT_MAX: Final = 64  # characters of a traceparent that a client sends; any that is read has fewer

_LENGTH: Final = 55  # of version 00, and of what other versions begin with
_SHAPE: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_KNOWN_FLAGS: Final = 3  # sampled, and that the trace id is random; others are not passed on
_SAMPLED: Final = 1


class TraceParent(Struct, frozen=True, gc=False):
    """The caller's place in its trace.

    Args:
        trace_id: 32 lower-case hexadecimal digits, not all 0.
        span_id: 16 of them; the span that the saga belongs under.
        flags: those that we know.
    """

    trace_id: str
    span_id: str
    flags: int

    @property
    def sampled(self) -> bool:
        """Whether the caller records this trace."""
        return bool(self.flags & _SAMPLED)

    def text(self) -> str:
        """Write it as version 00, which is the one that we speak."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def read(text: object) -> TraceParent | None:
    """Read a traceparent of version 00, or what a later version begins with; None for all else."""
    if not isinstance(text, str):
        return None
    found = _SHAPE.fullmatch(text[:_LENGTH])
    if found is None:
        return None
    version, trace_id, span_id, flags = found.groups()
    rest = text[_LENGTH:]
    if version == "ff" or (rest and (version == "00" or rest[0] != "-")):
        return None
    if not (trace_id.strip("0") and span_id.strip("0")):
        return None
    return TraceParent(trace_id, span_id, int(flags, 16) & _KNOWN_FLAGS)


def of(headers: Mapping[str, str]) -> TraceParent | None:
    """Give the trace that headers name; None where they name none."""
    return read(headers.get(TRACEPARENT)) if headers else None


def bound(saga_id: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Give the ids that a log's line about a saga carries: its own, its trace's if it has one."""
    found = of(headers)
    if found is None:
        return {"saga_id": saga_id}
    return {"saga_id": saga_id, "trace_id": found.trace_id}


def accepted(headers: Headers) -> Headers:
    """Give headers as they are kept: with a traceparent that can be read, or without any.

    Args:
        headers: within their limits; they are not changed.
    """
    text = headers.get(TRACEPARENT)
    if text is None:
        return headers
    found = read(text)
    if found is not None:
        known = found.text()
        return headers if known == text else {**headers, TRACEPARENT: known}
    kept = {**headers}
    del kept[TRACEPARENT]
    kept.pop(TRACESTATE, None)
    return kept


def sendable(text: str) -> str:
    """Give a traceparent that fits into headers, whatever it is: what was malformed remains so."""
    return text[:TEXT_MAX].encode("ascii", "replace").decode()
