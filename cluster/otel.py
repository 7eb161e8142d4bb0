"""OpenTelemetry: our spans as theirs, given to one of their exporters.

The one room that imports their packages, which the extra `otel` brings; nothing else needs them.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from cluster.spans import ERROR, OK, UNSET, SagaSpans, Span
from cluster.telemetry import Log
from sagacity import __version__

_THEIRS = logging.getLogger("opentelemetry")

_MS = 1_000_000  # nanoseconds
_SAID_MAX = 500  # characters of one message
_STATUSES = {
    OK: Status(StatusCode.OK),
    ERROR: Status(StatusCode.ERROR),
    UNSET: Status(StatusCode.UNSET),
}


def otlp(endpoint: str | None = None) -> SpanExporter:
    """Give an exporter that speaks OTLP over HTTP.

    Args:
        endpoint: whole URL; None for what OTEL_EXPORTER_OTLP_ENDPOINT and its like say, by default
            http://localhost:4318/v1/traces.
    """
    return OTLPSpanExporter(endpoint=endpoint)


class _Heard(logging.Handler):
    """Passes on what OpenTelemetry says: why a collector did not take spans, above all."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Say it as a line of ours."""
        self._log.warning("opentelemetry_said", text=record.getMessage()[:_SAID_MAX])


@contextmanager
def heard(log: Log) -> Iterator[None]:
    """Have what OpenTelemetry says be lines of a log, not words on stderr beside it."""
    handler, propagated = _Heard(log), _THEIRS.propagate
    _THEIRS.addHandler(handler)
    _THEIRS.propagate = False
    try:
        yield
    finally:
        _THEIRS.removeHandler(handler)
        _THEIRS.propagate = propagated


class Sender:
    """Hands sagas to an exporter, as the service `sagacity` unless OTEL_SERVICE_NAME says another.

    Args:
        exporter: anything that takes spans of the SDK.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: "sagacity"}
        self._resource = Resource.create({**named, SERVICE_VERSION: __version__})
        self._scope = InstrumentationScope("sagacity", __version__)

    def send(self, sagas: Sequence[SagaSpans]) -> bool:
        """Export sagas; say whether they were taken. May take as long as the exporter likes."""
        spans = [span for saga in sagas for span in self._of_saga(saga)]
        return self._exporter.export(spans) is SpanExportResult.SUCCESS

    def close(self) -> None:
        """Close the exporter."""
        self._exporter.shutdown()

    def _of_saga(self, saga: SagaSpans) -> list[ReadableSpan]:
        parent, flags = saga.parent, TraceFlags(saga.parent.flags)
        trace_id = int(parent.trace_id, 16)
        client = SpanContext(trace_id, int(parent.span_id, 16), is_remote=True, trace_flags=flags)
        own = SpanContext(trace_id, int(saga.saga.span_id, 16), is_remote=False, trace_flags=flags)
        made = [self._span(saga.saga, own, client, SpanKind.SERVER)]
        for span in saga.attempts:
            context = SpanContext(
                trace_id, int(span.span_id, 16), is_remote=False, trace_flags=flags
            )
            made.append(self._span(span, context, own, SpanKind.CLIENT))
        return made

    def _span(
        self, span: Span, context: SpanContext, parent: SpanContext, kind: SpanKind
    ) -> ReadableSpan:
        return ReadableSpan(
            name=span.name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            events=[Event(each.name, each.attributes, each.at_ms * _MS) for each in span.events],
            kind=kind,
            status=_STATUSES[span.status],
            start_time=span.start_ms * _MS,
            end_time=span.end_ms * _MS,
            instrumentation_scope=self._scope,
        )
