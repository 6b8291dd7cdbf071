"""Traces by OpenTelemetry: whether they are switched on, and the spans of the service.

Only the API of OpenTelemetry, which FastAPI brings along, is imported here; its SDK is an extra and
loaded once traces are switched on. No global provider is set: FastAPI and the MCP libraries would
make spans of their own beside ours.
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

__all__ = [
    "AttributeValue",
    "Context",
    "Span",
    "SpanKind",
    "Tracing",
    "build_trace_headers",
    "check_tracing",
    "build_tracing",
    "add_trace_headers",
]

logger = logging.getLogger(__name__)

INSTALL = "make otel  (or: pip install --no-deps --require-hashes -r requirements-otel.lock)"

FLUSH_SECONDS = 5.0
"""How long the end of the service waits for the last spans to be sent, and no longer than
SHUTDOWN_TIMEOUT."""

UNREACHABLE_FLUSH_SECONDS = 0.5
"""How long it does so when the collector did not take the last ones."""

LOG_INTERVAL_SECONDS = 60.0
"""Between two lines of the log about spans that cannot be sent."""

_CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_WITH_CONTENT = frozenset({"true", "span_only", "span_and_event"})
_WITHOUT_CONTENT = frozenset({"", "false", "no_content", "event_only"})
"""`event_only` is for events of the log, which we do not send."""

_CONVERSATION = current_context.create_key("conversation")
_propagator = TraceContextTextMapPropagator()


class Tracing:
    """Makes spans while it is open (`async with`); they go to the span processor that
    `make_processor` gives.

    `environment` has the standard variables, `resource` what the spans say of the service where
    none of them does; `content` says whether they hold what is said, without `secrets`. What is not
    sent within `flush_seconds` of its end is lost.
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
            provider = TracerProvider(
                resource=_build_resource(self._resource), shutdown_on_exit=False
            )
            provider.add_span_processor(self._make_processor())
        self._tracer = provider.get_tracer("ai-agent-service")
        self._close = provider.shutdown
        return self

    async def __aexit__(self, *_: object) -> None:
        self._tracer = NoOpTracer()
        closing = threading.Thread(
            target=self._close, name="traces", daemon=True
        )  # which keeps nobody from ending
        closing.start()
        await asyncio.to_thread(
            closing.join,
            UNREACHABLE_FLUSH_SECONDS if self._log_handler.is_unreachable else self._flush_seconds,
        )
        if closing.is_alive():
            logger.warning(
                "traces.not_sent",
                extra={"reason": "the collector did not take the last spans in time"},
            )
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
        """A new span, to be ended; its parent is the current span, or that of `parent`. It does not
        become the current one."""
        return self._tracer.start_span(name, parent, kind, attributes)

    @contextmanager
    def end_on_exit(self, span: Span) -> Generator[None, None, None]:
        """Ends `span` with what is done within, unless it has ended by then, marked with the error
        that is raised there."""
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
        """Marks `span` with `error`, or its code, and with `words`, which may repeat what a user
        said, so that they count as content."""
        if not span.is_recording():
            return
        if isinstance(error, ServiceError):
            code, words = error.code, error.message
        else:
            code = error if isinstance(error, str) else type(error).__name__
        span.set_attribute("error.type", code)
        span.set_status(
            StatusCode.ERROR, self.redact_text(words) if self.content and words else None
        )

    def add_secrets(self, secrets: tuple[str, ...]) -> None:
        """Takes `secrets` out too, from now on, as they are and as JSON writes them."""
        written = (json.dumps(secret, ensure_ascii=False)[1:-1] for secret in secrets)
        self._secrets = tuple(sorted({*self._secrets, *secrets, *written}, key=len, reverse=True))

    def redact_text(self, text: str) -> str:
        """`text` as an attribute, without secrets."""
        return redact_secrets(replace_unstorable(text), self._secrets)

    def encode_json(self, value: object) -> str:
        """`value` as JSON in an attribute, without secrets."""
        return self.redact_text(
            json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
        )


def build_context(span: Span, *, conversation: str | None = None) -> Context:
    """The current context with `span` as its span, and `conversation` as the one that models are
    asked in."""
    context = set_span_in_context(span)
    return (
        context
        if conversation is None
        else current_context.set_value(_CONVERSATION, conversation, context)
    )


def read_conversation() -> str | None:
    """The conversation of the run under way."""
    found = current_context.get_value(_CONVERSATION)
    return found if isinstance(found, str) else None


def attach_context(context: Context) -> Callable[[], None]:
    """Makes `context` the current one, and gives what undoes that, from whichever task it is
    called.

    For generators, which may be closed by another task than the one that went through them: there a
    token would be of no use.
    """
    before = current_context.get_current()
    _ = current_context.attach(context)

    def undo() -> None:
        if current_context.get_current() is context:
            _ = current_context.attach(before)

    return undo


@contextmanager
def use_context(context: Context) -> Generator[None, None, None]:
    """Has `context` be the current one, within one task and without a `yield` of a generator
    inside."""
    token = current_context.attach(context)
    try:
        yield
    finally:
        current_context.detach(token)


def get_context() -> Context:
    """The current context."""
    return current_context.get_current()


def extract_context(traceparent: str, tracestate: str) -> Context:
    """The context that a caller's headers tell of, as the parent of a span; an empty one where they
    tell of none."""
    given = {"traceparent": traceparent, "tracestate": tracestate}
    return _propagator.extract({name: value for name, value in given.items() if value})


def build_trace_headers() -> dict[str, str]:
    """The headers of W3C Trace Context that tell another service of the current span; none where
    there is no span."""
    headers: dict[str, str] = {}
    if get_current_span().get_span_context().is_valid:
        _propagator.inject(headers)
    return headers


def add_trace_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """`headers` with `build_trace_headers`; as they are where there is no span."""
    more = build_trace_headers()
    return {**headers, **more} if more else headers


def is_switched_on(environment: Mapping[str, str]) -> bool:
    """Whether the standard variables say where traces go to, and neither that they go nowhere."""
    return (
        bool(_read_endpoint(environment))
        and environment.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
        and environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() != "none"
    )


def build_tracing(
    environment: Mapping[str, str], *, name: str, version: str, flush_seconds: float
) -> Tracing | None:
    """The traces of the service `name`, as `environment` has them, in which `check_tracing` finds
    none; None where they are off."""
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
    """What keeps traces that are switched on from being made."""
    if not is_switched_on(environment):
        return []
    name = _find_variable(
        environment, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    if not _is_installed():
        problem = "this switches traces on, and OpenTelemetry is not installed"
        return [_build_fault(name, problem, f"Install it: {INSTALL}; or unset the variable")]
    found = []
    try:
        address = urlsplit(_read_endpoint(environment))
        is_address = (
            address.scheme in ("http", "https")
            and bool(address.hostname)
            and (address.port or 1) > 0
        )
    except ValueError:
        is_address = False
    if not is_address:
        found.append(
            _build_fault(
                name,
                "an address beginning with http:// or https:// is needed",
                "Correct it, such as http://127.0.0.1:4318",
            )
        )
    protocol = _find_variable(
        environment, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
    )
    if environment.get(protocol, "http/protobuf").strip() != "http/protobuf":
        remedy = "Unset it, and name the collector's HTTP port, which mostly is 4318"
        found.append(_build_fault(protocol, "traces are sent as http/protobuf only", remedy))
    if environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() != "otlp":
        found.append(
            _build_fault(
                "OTEL_TRACES_EXPORTER",
                "traces are sent by otlp only",
                "Set otlp, or none for no traces",
            )
        )
    if environment.get(_CONTENT, "").strip().lower() not in _WITH_CONTENT | _WITHOUT_CONTENT:
        known = "true, false, NO_CONTENT, SPAN_ONLY, EVENT_ONLY or SPAN_AND_EVENT"
        found.append(
            _build_fault(_CONTENT, "this is none of the values it may have", f"Set {known}")
        )
    return found or _check_sdk(environment)


def _check_sdk(environment: Mapping[str, str]) -> list[Fault]:
    """What the SDK says against the variables that it reads by itself."""
    own = logging.getLogger("opentelemetry")
    level = own.level
    own.setLevel(logging.CRITICAL + 1)  # it would show headers, and the log is not set up yet
    try:
        with _apply_environment(environment):
            _create_processor().shutdown()
    # whatever it is, the operator's variables are the reason
    except Exception as error:  # noqa: BLE001
        problem = f"OpenTelemetry does not take the variables ({error})".replace("\n", " ")
        return [
            _build_fault(
                "OTEL_*",
                redact_secrets(problem, find_secrets(environment)),
                "Correct or unset them",
            )
        ]
    finally:
        own.setLevel(level)
    return []


def _create_processor() -> "SpanProcessor":
    """Sends spans in batches by OTLP, from a thread of its own, as the process's standard variables
    say."""
    # the extra
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - the extra

    return BatchSpanProcessor(OTLPSpanExporter())


@contextmanager
def _apply_environment(environment: Mapping[str, str]) -> Generator[None, None, None]:
    """Has the SDK, which reads the process's variables alone, find those of `environment` too, for
    they may stand in `.env`."""
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
    """What spans say of the service: `own`, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES
    say otherwise."""
    # the extra
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415

    said = OTELResourceDetector().detect().attributes
    return Resource.create({name: value for name, value in own.items() if name not in said})


class _ThrottledLogHandler(logging.Handler):
    """Tells what OpenTelemetry logs, such as that its collector is away, in a line of ours and not
    more than one a minute."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last = -LOG_INTERVAL_SECONDS
        self._suppressed = 0
        self._failed_at = -LOG_INTERVAL_SECONDS

    @property
    def is_unreachable(self) -> bool:
        """Whether spans could not be sent a moment ago."""
        return time.monotonic() - self._failed_at < LOG_INTERVAL_SECONDS / 2

    def emit(self, record: logging.LogRecord) -> None:
        """Tells `record`, or counts it."""
        now = time.monotonic()
        if record.name.startswith("opentelemetry.exporter"):
            self._failed_at = now
        if now - self._last < LOG_INTERVAL_SECONDS:
            self._suppressed += 1
            return
        logger.warning(
            "traces.problem", extra={"problem": record.getMessage(), "untold": self._suppressed}
        )
        self._last, self._suppressed = now, 0


def _read_endpoint(environment: Mapping[str, str]) -> str:
    return environment.get(
        _find_variable(
            environment, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
        ),
        "",
    ).strip()


def _find_variable(environment: Mapping[str, str], *names: str) -> str:
    """The first of `names` that is set, else the last."""
    return next((name for name in names if environment.get(name, "").strip()), names[-1])


def _is_installed() -> bool:
    try:
        needed = (
            "opentelemetry.sdk.trace",
            "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        )
        return all(find_spec(name) is not None for name in needed)
    except ModuleNotFoundError:
        return False


def _build_fault(field: str, problem: str, remedy: str) -> Fault:
    return Fault(file="environment", field=field, problem=problem, remedy=remedy)
