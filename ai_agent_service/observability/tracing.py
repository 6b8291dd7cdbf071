"""Trace the service with OpenTelemetry, if the environment switches traces on.

Only the API of OpenTelemetry, a dependency of FastAPI, is imported here; its SDK is an extra, which
is loaded once traces are on. No global provider is set: FastAPI and the MCP libraries would make
spans of their own beside ours.
"""

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from opentelemetry import context as current_context
from opentelemetry.context import Context
from opentelemetry.trace import (
    NoOpTracer,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from ai_agent_service.core.errors import Fault, ServiceError
from ai_agent_service.core.ids import generate_id
from ai_agent_service.core.redaction import find_secrets, redact_secrets
from ai_agent_service.core.text import replace_unstorable

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor

__all__ = ["AttributeValue", "Context", "Span", "SpanKind"]  # which other modules take from here

logger = logging.getLogger(__name__)

INSTALL = "make otel  (or: pip install --no-deps --require-hashes -r requirements-otel.lock)"

FLUSH_SECONDS = 5.0
"""How long a shutdown waits for the last spans to be sent, at most SHUTDOWN_TIMEOUT."""

UNREACHABLE_FLUSH_SECONDS = 0.5
"""The same if the collector did not accept the previous spans."""

LOG_INTERVAL_SECONDS = 60.0
"""Between two log lines about spans that cannot be sent."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_WITH_CONTENT = frozenset({"true", "span_only", "span_and_event"})
_WITHOUT_CONTENT = frozenset({"", "false", "no_content", "event_only"})
"""`event_only` is for log events, which are not sent."""

_CONVERSATION = current_context.create_key("conversation")
_propagator = TraceContextTextMapPropagator()


class Tracing:
    """Makes spans while it is open (`async with`), for the span processor of `make_processor`.

    `environment` has the standard variables, `resource` the attributes of the service that they do
    not set. With `content`, spans contain what is said, without `secrets`. Spans that are not sent
    within `flush_seconds` of the end are lost.
    """

    def __init__(
        self,
        make_processor: "Callable[[], SpanProcessor]",
        *,
        environment: Mapping[str, str] | None = None,
        resource: Mapping[str, str] | None = None,
        content: bool = False,
        secrets: tuple[str, ...] = (),
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self.content = content
        self._make_processor = make_processor
        self._environment = environment or {}
        self._resource = resource or {}
        self._secrets: tuple[str, ...] = ()
        self.add_secrets(secrets)
        self._flush_seconds = flush_seconds
        self._tracer: Tracer = NoOpTracer()
        self._close: Callable[[], None] = lambda: None
        self._log_handler = _ThrottledLogHandler()

    async def __aenter__(self) -> Self:
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - the extra

        own = logging.getLogger("opentelemetry")
        own.addHandler(self._log_handler)
        own.propagate = False
        with _apply_environment(self._environment):
            resource = _build_resource(self._resource)
            provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            provider.add_span_processor(self._make_processor())
        self._tracer = provider.get_tracer("ai-agent-service")
        self._close = provider.shutdown
        return self

    async def __aexit__(self, *_: object) -> None:
        self._tracer = NoOpTracer()
        # A daemon thread does not keep the process from ending.
        closing = threading.Thread(target=self._close, name="traces", daemon=True)
        closing.start()
        is_unreachable = self._log_handler.is_unreachable
        seconds = UNREACHABLE_FLUSH_SECONDS if is_unreachable else self._flush_seconds
        await asyncio.to_thread(closing.join, seconds)
        if closing.is_alive():
            reason = "the collector did not take the last spans in time"
            logger.warning("traces.not_sent", extra={"reason": reason})
        own = logging.getLogger("opentelemetry")
        own.removeHandler(self._log_handler)
        own.propagate = True

    def start(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: Context | None = None,
    ) -> Span:
        """Return a new span, which the caller ends. Its parent is the current span or that of
        `parent`; it does not become the current one."""
        return self._tracer.start_span(name, parent, kind, attributes)

    @contextmanager
    def open_span(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: Context | None = None,
    ) -> Generator[Span, None, None]:
        """Start a span as `start` does, and make it the current one until it ends at the exit."""
        span = self.start(name, attributes, kind=kind, parent=parent)
        with self.end_on_exit(span), use_context(build_context(span)):
            yield span

    @contextmanager
    def end_on_exit(self, span: Span) -> Generator[None, None, None]:
        """End `span` at the exit unless it has ended by then, marked with the error raised
        within."""
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            if span.is_recording():
                span.add_event("cancelled")
            raise
        except BaseException as error:
            self.record_error(span, error)
            raise
        finally:
            if span.is_recording():
                span.end()

    def record_error(self, span: Span, error: BaseException | str, words: str = "") -> None:
        """Mark `span` with `error`, or its code, and with `words`, which count as content: they
        may repeat what a user said."""
        if not span.is_recording():
            return
        if isinstance(error, ServiceError):
            code, words = error.code, error.message
        else:
            code = error if isinstance(error, str) else type(error).__name__
        span.set_attribute("error.type", code)
        description = self.redact_text(words) if self.content and words else None
        span.set_status(StatusCode.ERROR, description)

    def add_secrets(self, secrets: tuple[str, ...]) -> None:
        """Redact `secrets` too, from now on, as they are and as JSON contains them."""
        written = (json.dumps(secret, ensure_ascii=False)[1:-1] for secret in secrets)
        self._secrets = tuple(sorted({*self._secrets, *secrets, *written}, key=len, reverse=True))

    def redact_text(self, text: str) -> str:
        """Return `text` as an attribute, without secrets."""
        return redact_secrets(replace_unstorable(text), self._secrets)

    def encode_json(self, value: object) -> str:
        """Return `value` as JSON for an attribute, without secrets."""
        return self.redact_text(
            json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
        )


def build_context(span: Span, *, conversation: str | None = None) -> Context:
    """Return the current context with `span` as its span and `conversation` as the run's."""
    context = set_span_in_context(span)
    if conversation is None:
        return context
    return current_context.set_value(_CONVERSATION, conversation, context)


def read_conversation() -> str | None:
    """Return the conversation of the current run."""
    found = current_context.get_value(_CONVERSATION)
    return found if isinstance(found, str) else None


def attach_context(context: Context) -> Callable[[], None]:
    """Make `context` the current one, and return a function that undoes that from any task.

    For generators, which another task may close than the one that iterated over them; a token is
    valid in one task only.
    """
    before = current_context.get_current()
    _ = current_context.attach(context)

    def undo() -> None:
        if current_context.get_current() is context:
            _ = current_context.attach(before)

    return undo


@contextmanager
def use_context(context: Context) -> Generator[None, None, None]:
    """Make `context` the current one within one task; not around the `yield` of a generator."""
    token = current_context.attach(context)
    try:
        yield
    finally:
        current_context.detach(token)


def get_context() -> Context:
    """Return the current context."""
    return current_context.get_current()


def extract_context(traceparent: str, tracestate: str) -> Context:
    """Return the context in a caller's headers, as the parent of a span; an empty one without
    them."""
    given = {"traceparent": traceparent, "tracestate": tracestate}
    return _propagator.extract({name: value for name, value in given.items() if value})


def build_trace_headers() -> dict[str, str]:
    """Return the headers of W3C Trace Context for the current span; none without a span."""
    headers: dict[str, str] = {}
    if get_current_span().get_span_context().is_valid:
        _propagator.inject(headers)
    return headers


def is_switched_on(environment: Mapping[str, str]) -> bool:
    """Return whether the standard variables name an endpoint and do not switch traces off."""
    return (
        bool(_read_endpoint(environment))
        and environment.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
        and environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() != "none"
    )


def build_tracing(
    environment: Mapping[str, str], *, name: str, version: str, flush_seconds: float
) -> Tracing | None:
    """Return the traces of the service `name`; None if they are off. `check_tracing` has found no
    fault in `environment`."""
    if not is_switched_on(environment):
        return None
    return Tracing(
        _create_processor,
        environment=environment,
        resource={
            "service.name": name,
            "service.version": version,
            "service.instance.id": generate_id(""),
        },
        content=environment.get(_CONTENT, "").strip().lower() in _WITH_CONTENT,
        secrets=find_secrets(environment),
        flush_seconds=min(flush_seconds, FLUSH_SECONDS),
    )


def check_tracing(environment: Mapping[str, str]) -> list[Fault]:
    """Return the faults in the variables of traces that are switched on."""
    if not is_switched_on(environment):
        return []
    name = _find_variable(environment, _ENDPOINTS)
    if not _is_installed():
        problem = "this switches traces on, and OpenTelemetry is not installed"
        return [_build_fault(name, problem, f"Install it: {INSTALL}; or unset the variable")]
    found = []
    if not _is_address(_read_endpoint(environment)):
        problem = "an address beginning with http:// or https:// is needed"
        found.append(_build_fault(name, problem, "Correct it, such as http://127.0.0.1:4318"))
    protocol = _find_variable(environment, _PROTOCOLS)
    if environment.get(protocol, "http/protobuf").strip() != "http/protobuf":
        remedy = "Unset it, and name the collector's HTTP port, which mostly is 4318"
        found.append(_build_fault(protocol, "traces are sent as http/protobuf only", remedy))
    if environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() != "otlp":
        remedy = "Set otlp, or none for no traces"
        problem = "traces are sent by otlp only"
        found.append(_build_fault("OTEL_TRACES_EXPORTER", problem, remedy))
    if environment.get(_CONTENT, "").strip().lower() not in _WITH_CONTENT | _WITHOUT_CONTENT:
        remedy = "Set true, false, NO_CONTENT, SPAN_ONLY, EVENT_ONLY or SPAN_AND_EVENT"
        found.append(_build_fault(_CONTENT, "this is none of the values it may have", remedy))
    return found or _check_sdk(environment)


def _check_sdk(environment: Mapping[str, str]) -> list[Fault]:
    """Return the SDK's objections to the variables that it reads itself."""
    own = logging.getLogger("opentelemetry")
    level = own.level
    own.setLevel(logging.CRITICAL + 1)  # it would show headers, and the log is not set up yet
    try:
        with _apply_environment(environment):
            _create_processor().shutdown()
    # whatever it is, the operator's variables are the reason
    except Exception as error:  # noqa: BLE001
        problem = f"OpenTelemetry does not take the variables ({error})".replace("\n", " ")
        problem = redact_secrets(problem, find_secrets(environment))
        return [_build_fault("OTEL_*", problem, "Correct or unset them")]
    finally:
        own.setLevel(level)
    return []


def _create_processor() -> "SpanProcessor":
    """Return a processor that sends batches by OTLP, as the process's variables say."""
    # Both are of the extra.
    from opentelemetry.exporter.otlp.proto.http import trace_exporter  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    return BatchSpanProcessor(trace_exporter.OTLPSpanExporter())


@contextmanager
def _apply_environment(environment: Mapping[str, str]) -> Generator[None, None, None]:
    """Let the SDK, which reads only the process's variables, find those of `.env` too."""
    before = {name: os.environ.get(name) for name in environment if name.startswith("OTEL_")}
    os.environ.update({name: environment[name] for name in before})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _build_resource(own: Mapping[str, str]) -> "Resource":
    """Return the attributes of the service: `own`, unless OTEL_SERVICE_NAME or
    OTEL_RESOURCE_ATTRIBUTES set them."""
    # the extra
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415

    said = OTELResourceDetector().detect().attributes
    return Resource.create({name: value for name, value in own.items() if name not in said})


class _ThrottledLogHandler(logging.Handler):
    """Logs OpenTelemetry's messages, such as that its collector cannot be reached, at most once a
    minute."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last = -LOG_INTERVAL_SECONDS
        self._suppressed = 0
        self._failed_at = -LOG_INTERVAL_SECONDS

    @property
    def is_unreachable(self) -> bool:
        """Whether sending spans failed a moment ago."""
        return time.monotonic() - self._failed_at < LOG_INTERVAL_SECONDS / 2

    def emit(self, record: logging.LogRecord) -> None:
        """Log `record`, or count it."""
        now = time.monotonic()
        if record.name.startswith("opentelemetry.exporter"):
            self._failed_at = now
        if now - self._last < LOG_INTERVAL_SECONDS:
            self._suppressed += 1
            return
        extra = {"problem": record.getMessage(), "untold": self._suppressed}
        logger.warning("traces.problem", extra=extra)
        self._last, self._suppressed = now, 0


def _read_endpoint(environment: Mapping[str, str]) -> str:
    return environment.get(_find_variable(environment, _ENDPOINTS), "").strip()


def _is_address(text: str) -> bool:
    try:
        address = urlsplit(text)
        has_port = (address.port or 1) > 0
    except ValueError:
        return False
    return address.scheme in ("http", "https") and bool(address.hostname) and has_port


def _find_variable(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    """Return the first of `names` that is set, else the last."""
    return next((name for name in names if environment.get(name, "").strip()), names[-1])


def _is_installed() -> bool:
    exporter = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    try:
        return all(find_spec(name) for name in ("opentelemetry.sdk.trace", exporter))
    except ModuleNotFoundError:
        return False


def _build_fault(field: str, problem: str, remedy: str) -> Fault:
    return Fault(file="environment", field=field, problem=problem, remedy=remedy)
