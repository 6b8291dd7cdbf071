"""Traces: the spans of a run, what they say and what they do not, and how they leave the
process."""

import asyncio
import gzip
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from ai_agent_service.auth.principal import LOCAL, Principal
from ai_agent_service.core.errors import ProviderUnavailableError, ToolError
from ai_agent_service.core.events import RunEvent
from ai_agent_service.core.messages import Message
from ai_agent_service.core.turn import Turn
from ai_agent_service.observability.tracing import (
    INSTALL,
    Tracing,
    build_tracing,
    check_tracing,
)
from ai_agent_service.runtime.configuration import Configuration
from ai_agent_service.runtime.service import Service
from ai_agent_service.server.application import create_app
from ai_agent_service.tools.function import tool
from tests.support.clients import CHAT, asking
from tests.support.fake_provider import Script, calls, says
from tests.support.fake_upstream import Upstream, reply
from tests.support.fake_upstream import says as chunks_that_say
from tests.support.mcp_rogue_http import HttpRogue
from tests.support.processes import ROOT, environment, run
from tests.support.processes import serving as process_serving
from tests.support.service import AGENT, configuration, open_client, serving

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1"}
SECRET = "canary-of-traces-0123"
REMEMBERING = {**AGENT, "resources": ["memory"]}


class Spans:
    """The spans that ended, and how they hang together."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()

    def tracing(self, **options: Any) -> Tracing:
        """Traces that end here."""
        return Tracing(lambda: SimpleSpanProcessor(self.exporter), **options)

    @property
    def all(self) -> Sequence[ReadableSpan]:
        """Those that have ended, in the order of their ends."""
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> ReadableSpan:
        """The only span of this name."""
        [span] = [span for span in self.all if span.name == name]
        return span

    @property
    def tree(self) -> dict[str, Any]:
        """The names of all spans, each with those under it, in the order in which they began."""
        begun = sorted(self.all, key=lambda span: span.start_time or 0)
        ids = {format_id(span) for span in begun}

        def under(parent: int | None) -> list[Any]:
            children = [
                span
                for span in begun
                if (span.parent.span_id if span.parent and span.parent.span_id in ids else None)
                == parent
            ]
            return [
                {span.name: below} if (below := under(format_id(span))) else span.name
                for span in children
            ]

        [root] = under(None)
        return root if isinstance(root, dict) else {root: []}

    @property
    def said(self) -> str:
        """All that stands in the spans."""
        return "\n".join(span.to_json() for span in self.all)


def format_id(span: ReadableSpan) -> int:
    assert span.context is not None
    found: int = span.context.span_id
    return found


def about(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def traced(found: Configuration, spans: Spans, **options: Any) -> Configuration:
    """`found` with traces that end in `spans`."""
    return msgspec.structs.replace(found, tracing=spans.tracing(**options))


@asynccontextmanager
async def rogue() -> AsyncGenerator[HttpRogue, None]:
    server = HttpRogue()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def test_a_run_is_a_tree_of_spans_under_the_callers_own(tmp_path: Path) -> None:
    script = Script(
        calls(("calculate", {"expression": "6*7"}), ("get_current_datetime", {})),
        says("It", " is 42."),
    )
    spans = Spans()
    app = create_app(traced(configuration(tmp_path, script, agents=[REMEMBERING]), spans))
    async with open_client(app) as client:
        version = app.state.service.catalog.get("helper").version
        sent = {**HEADERS, "X-Session-Id": "s1"}
        answer = await client.post(
            CHAT, json=asking(temperature=0.5, max_tokens=50, stream=True), headers=sent
        )
        assert answer.status_code == 200
    assert spans.tree == {
        "POST /v1/chat/completions": [
            {
                "invoke_agent helper": [
                    "search_memory",
                    "chat scripted-model",
                    "execute_tool calculate",
                    "execute_tool get_current_datetime",
                    "chat scripted-model",
                    "upsert_memory",
                ]
            }
        ]
    }
    request = spans.named("POST /v1/chat/completions")
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == CALLER
    assert {f"{span.context.trace_id:032x}" for span in spans.all if span.context} == {TRACE}
    assert request.kind is SpanKind.SERVER
    assert (
        about(request).items()
        >= {
            "http.request.method": "POST",
            "http.route": "/v1/chat/completions",
            "http.response.status_code": 200,
            "http.response.header.x-request-id": (answer.headers["x-request-id"],),
        }.items()
    )
    assert (
        about(spans.named("invoke_agent helper")).items()
        >= {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.id": "helper",
            "gen_ai.agent.version": version,
            "gen_ai.conversation.id": "s1",
            "gen_ai.usage.input_tokens": 30,
            "gen_ai.usage.output_tokens": 7,
            "gen_ai.response.finish_reasons": ("stop",),
        }.items()
    )
    first, last = [span for span in spans.all if span.name == "chat scripted-model"]
    assert first.kind is SpanKind.CLIENT
    assert (
        about(first).items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "scripted",
            "gen_ai.request.model": "scripted-model",
            "gen_ai.request.stream": True,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.max_tokens": 50,
            "gen_ai.conversation.id": "s1",
            "gen_ai.response.finish_reasons": ("tool_calls",),
            "gen_ai.usage.input_tokens": 20,
            "gen_ai.usage.output_tokens": 5,
        }.items()
    )
    assert 0 <= about(last)["gen_ai.response.time_to_first_chunk"] < 5
    assert (
        about(spans.named("execute_tool calculate")).items()
        >= {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "calculate",
            "gen_ai.tool.call.id": "call_000000001",
        }.items()
    )
    assert about(spans.named("search_memory"))["gen_ai.memory.record.count"] == 1
    assert all(span.status.status_code is StatusCode.UNSET for span in spans.all)


async def test_a_request_without_a_trace_begins_one_and_probes_are_left_out(tmp_path: Path) -> None:
    spans = Spans()
    async with open_client(create_app(traced(configuration(tmp_path), spans))) as client:
        await client.get("/health")
        await client.get("/agents/helper")
        await client.get("/nothing/here", headers={"traceparent": "no trace"})
        await client.request("BREW", "/agents/helper")
    assert [
        (span.name, span.parent, about(span)["http.response.status_code"]) for span in spans.all
    ] == [
        ("GET /agents/{agent_id}", None, 200),
        ("GET", None, 404),
        ("HTTP /agents/{agent_id}", None, 405),
    ]
    assert all(span.status.status_code is StatusCode.UNSET for span in spans.all), (
        "what the caller did wrong is no error of ours"
    )


async def test_a_background_task_is_a_run_of_its_own_name(tmp_path: Path) -> None:
    spans = Spans()
    async with open_client(
        create_app(traced(configuration(tmp_path, Script(says('{"title": "T"}'))), spans))
    ) as client:
        await client.post(CHAT, json=asking(), headers={"X-AAS-Task": "title_generation"})
    run_span = spans.named("invoke_agent helper")
    assert about(run_span)["ai_agent_service.task"] == "title_generation"
    assert spans.named("chat scripted-model").parent == run_span.context


async def test_each_provider_that_is_asked_is_a_span_of_its_own(tmp_path: Path) -> None:
    spans = Spans()
    agents = [{**AGENT, "fallback": [{"provider": "demo"}]}]
    script = Script([ProviderUnavailableError("It is down.")])
    async with open_client(
        create_app(traced(configuration(tmp_path, script, agents=agents), spans))
    ) as client:
        assert (await client.post(CHAT, json=asking("My name is Ada."))).status_code == 200
    assert spans.tree == {
        "POST /v1/chat/completions": [{"invoke_agent helper": ["chat scripted-model", "chat demo"]}]
    }
    assert [span.name for span in spans.all if span.status.status_code is StatusCode.ERROR] == [
        "chat scripted-model"
    ]


async def test_errors_are_marked_on_each_span_that_ends_in_one(tmp_path: Path) -> None:
    @tool
    async def broken() -> str:
        """Fails."""
        raise ToolError(f"no {SECRET}")

    script = Script(
        calls(("broken", {}), ("unknown\ud800 tool", {})),
        [ProviderUnavailableError(f"it is down, {SECRET}")],
    )
    spans = Spans()
    agents = [{**AGENT, "allowed_regular_tools": ["broken"]}]
    async with open_client(
        create_app(traced(configuration(tmp_path, script, agents=agents, tools=[broken]), spans))
    ) as client:
        assert (await client.post(CHAT, json=asking())).status_code == 502
    failed = {
        span.name: about(span)["error.type"]
        for span in spans.all
        if span.status.status_code is StatusCode.ERROR
    }
    assert failed == {
        "execute_tool broken": "tool_error",
        "execute_tool": "tool_error",
        "chat scripted-model": "provider_unavailable",
        "invoke_agent helper": "provider_unavailable",
        "POST /v1/chat/completions": "502",
    }
    assert about(spans.named("execute_tool"))["gen_ai.tool.name"] == "unknown\ufffd tool"
    assert SECRET not in spans.said, "what an error says is content"


async def test_a_caller_that_leaves_ends_all_spans(tmp_path: Path) -> None:
    never = asyncio.Event()
    script = Script([*says("One")[:1], never])
    spans = Spans()
    async with serving(
        create_app(traced(configuration(tmp_path, script, agents=[REMEMBERING]), spans))
    ) as url:
        async with (
            httpx2.AsyncClient(base_url=url, timeout=10) as client,
            client.stream(
                "POST", CHAT, json=asking(stream=True), headers={"X-Session-Id": "s"}
            ) as answer,
        ):
            async for _ in answer.aiter_lines():
                break
        async with asyncio.timeout(10):
            # the exporter has no event
            while not any(span.name.startswith("POST") for span in spans.all):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert spans.tree == {
        "POST /v1/chat/completions": [
            {"invoke_agent helper": ["search_memory", "chat scripted-model", "upsert_memory"]}
        ]
    }
    for name in ("invoke_agent helper", "chat scripted-model"):
        assert [event.name for event in spans.named(name).events] == ["cancelled"]
        assert spans.named(name).status.status_code is StatusCode.UNSET


async def test_a_run_that_another_task_cancels_ends_its_span_and_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spans = Spans()
    found = traced(configuration(tmp_path, Script([*says("One")[:1], asyncio.Event()])), spans)
    app = create_app(found)
    spoke = asyncio.Event()

    async def emit(event: RunEvent) -> None:
        spoke.set()

    async with open_client(app), asyncio.timeout(20):
        service: Service = app.state.service
        turn = Turn(messages=(Message("user", "Hi."),))
        run = service.create_run(service.catalog.get("helper"), turn, Principal(LOCAL))
        driving = asyncio.create_task(run.drive(emit))
        await spoke.wait()
        driving.cancel()
        await asyncio.wait((driving,))
    assert {span.name for span in spans.all} == {"chat scripted-model", "invoke_agent helper"}
    assert [event.name for event in spans.named("invoke_agent helper").events] == ["cancelled"]
    assert "different Context" not in caplog.text


@pytest.mark.parametrize("is_traced", [True, False])
async def test_providers_and_mcp_servers_are_told_of_the_trace(
    tmp_path: Path, is_traced: bool
) -> None:
    called = {
        "id": "call_123456789",
        "index": 0,
        "function": {"name": "rogue__echo", "arguments": '{"text": "hello"}'},
    }
    asks = [
        {
            "choices": [
                {"index": 0, "delta": {"tool_calls": [called]}, "finish_reason": "tool_calls"}
            ]
        }
    ]
    body = (
        b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in asks)
        + b"data: [DONE]\n\n"
    )
    spans = Spans()
    async with (
        rogue() as server,
        Upstream(
            reply(body=body, content_type="text/event-stream"), chunks_that_say("Done.")
        ) as upstream,
    ):
        (tmp_path / "mcp.json").write_text(
            json.dumps(
                [{"server_label": "rogue", "server_url": f"http://127.0.0.1:{server.port}/mcp"}]
            ),
            encoding="utf-8",
        )
        agents = [
            {**AGENT, "provider": "openai", "model": "m", "allowed_mcp_servers": {"rogue": {}}}
        ]
        found = configuration(tmp_path, agents=agents, openai_base_url=f"{upstream.url}/v1")
        app = create_app(traced(found, spans) if is_traced else found)
        async with open_client(app) as client:
            await app.state.service.servers.wait_for_start(20)
            answer = await client.post(CHAT, json=asking(), headers=HEADERS)
            assert answer.json()["choices"][0]["message"]["content"] == "Done."
        [call] = server.arguments
    told = [request.headers.get("traceparent") for request in upstream.requests]
    meta = json.loads(call)["params"].get("_meta", {})
    if not is_traced:
        assert told == [None, None]
        assert "traceparent" not in meta
        assert not any("traceparent" in head.lower() for head in server.heads)
        return
    expected = [
        f"00-{TRACE}-{format_id(span):016x}-01" for span in spans.all if span.name == "chat m"
    ]
    assert told == expected
    assert {request.headers.get("tracestate") for request in upstream.requests} == {"vendor=1"}
    tool_span = f"00-{TRACE}-{format_id(spans.named('execute_tool rogue__echo')):016x}-01"
    assert meta["traceparent"] == tool_span
    assert sum(f"traceparent: {tool_span}" in head for head in server.heads) == 1


async def test_what_is_said_stands_in_no_span_unless_it_is_asked_for(tmp_path: Path) -> None:
    script = Script(
        calls(("calculate", {"expression": "1234+1"}), text="Wait"), says("Your answer is 1235")
    )
    spans = Spans()
    async with open_client(create_app(traced(configuration(tmp_path, script), spans))) as client:
        await client.post(CHAT, json=asking("My question"))
    for text in ("My question", "You help", "Wait", "1234", "1235", "Evaluate an arithmetic"):
        assert text not in spans.said


async def test_what_is_said_stands_in_the_spans_without_secrets(tmp_path: Path) -> None:
    script = Script(
        calls(("calculate", {"expression": f"1+1 {SECRET}"}), ("calculate", {"expression": "2+2"})),
        says(f"Two, {SECRET}"),
    )
    spans = Spans()
    async with open_client(
        create_app(traced(configuration(tmp_path, script), spans, content=True, secrets=(SECRET,)))
    ) as client:
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
        messages = [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": f"Add up, {SECRET} and sk-abcdefgh12345678"},
                    image,
                ],
            }
        ]
        assert (
            await client.post(CHAT, json={"model": "helper", "messages": messages})
        ).status_code == 200
    last = about([span for span in spans.all if span.name == "chat scripted-model"][-1])
    asked = json.loads(last["gen_ai.input.messages"])
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "tool", "tool"]
    assert asked[0]["parts"] == [{"type": "text", "content": "You help."}]
    assert asked[1]["parts"] == [
        {"type": "text", "content": "Add up, [redacted] and [redacted]"},
        {"type": "image"},
    ]
    call = {
        "type": "tool_call",
        "id": "call_000000002",
        "name": "calculate",
        "arguments": {"expression": "2+2"},
    }
    assert asked[2]["parts"][1] == call
    assert asked[4]["parts"] == [
        {"type": "tool_call_response", "id": "call_000000002", "response": "4"}
    ]
    answer = [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "Two, [redacted]"}],
            "finish_reason": "stop",
        }
    ]
    assert json.loads(last["gen_ai.output.messages"]) == answer
    assert json.loads(about(spans.named("invoke_agent helper"))["gen_ai.output.messages"]) == answer
    assert {definition["name"] for definition in json.loads(last["gen_ai.tool.definitions"])} == {
        "calculate",
        "get_current_datetime",
    }
    tools = [span for span in spans.all if span.name == "execute_tool calculate"]
    assert [about(span)["gen_ai.tool.call.arguments"] for span in tools][
        1
    ] == '{"expression":"2+2"}'
    assert [about(span).get("gen_ai.tool.call.result") for span in tools] == [None, "4"]
    assert (tools[0].status.description or "").startswith("Error: ")
    assert SECRET not in spans.said
    assert "sk-abcdefgh" not in spans.said


def test_fastapi_makes_no_spans_of_its_own_beside_a_global_provider(tmp_path: Path) -> None:
    program = f"""
import asyncio, pathlib
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from tests.observability.test_tracing import *
spans, others = Spans(), Spans()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(others.exporter))
trace.set_tracer_provider(provider)
async def main():
    plain = configuration(pathlib.Path({str(tmp_path)!r}), Script(says("Hi.")))
    async with open_client(create_app(traced(plain, spans))) as client:
        await client.post(CHAT, json=asking())
asyncio.run(main())
print(sorted(span.name for span in spans.all), [span.name for span in others.all])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (
        done.stdout.strip()
        == "['POST /v1/chat/completions', 'chat scripted-model', 'invoke_agent helper'] []"
    ), done.stderr


def test_nothing_of_the_sdk_is_loaded_unless_traces_are_switched_on(tmp_path: Path) -> None:
    program = f"""
import asyncio, pathlib, sys
import app.main
from ai_agent_service.server.application import create_app
from tests.support.clients import CHAT, asking
from tests.support.fake_provider import Script, calls, says
from tests.support.service import AGENT, open_client, configuration
async def main():
    script = Script(calls(("calculate", {{"expression": "1+1"}})), says("Hi."))
    agents = [{{**AGENT, "resources": ["memory"]}}]
    plain = configuration(pathlib.Path({str(tmp_path)!r}), script, agents=agents)
    async with open_client(create_app(plain)) as client:
        headers = {{"X-Session-Id": "s"}}
        assert (await client.post(CHAT, json=asking(), headers=headers)).status_code == 200
asyncio.run(main())
sdk = ("sdk", "exporter", "proto", "semconv")
parts = (*("opentelemetry." + part for part in sdk), "google.protobuf")
print([name for name in sys.modules if name.startswith(parts)])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr


@contextmanager
def without_the_extra(folder: Path) -> Generator[str, None, None]:
    """A PYTHONPATH under which the extra is not there."""
    (folder / "sitecustomize.py").write_text(
        "import sys\nclass Absent:\n    def find_spec(self, name, path=None, target=None):\n       "
        " if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter', 'opentelemetry.proto',"
        " 'opentelemetry.semconv')):\n            raise"
        " ModuleNotFoundError(name)\nsys.meta_path.insert(0, Absent())\n",
        encoding="utf-8",
    )
    yield f"{folder}{os.pathsep}{ROOT}"


def test_without_the_extra_the_service_runs_and_says_how_to_get_it_where_it_is_asked_for(
    tmp_path: Path,
) -> None:
    with without_the_extra(tmp_path) as path:
        assert run(tmp_path, "check", PYTHONPATH=path).returncode == 0
        for command in ((), ("check",)):
            done = run(
                tmp_path,
                *command,
                PYTHONPATH=path,
                OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318",
            )
            assert done.returncode == 2
            assert done.stderr.splitlines() == [
                "The configuration has 1 fault:",
                (
                    "  - environment: OTEL_EXPORTER_OTLP_ENDPOINT: this switches traces on, and"
                    f" OpenTelemetry is not installed. Install it: {INSTALL}; or unset the variable"
                ),
            ]


COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("variables", "is_on"),
    [
        ({}, False),
        (COLLECTOR, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({**COLLECTOR, "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({**COLLECTOR, "OTEL_SDK_DISABLED": "false"}, True),
        ({**COLLECTOR, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
    ],
)
def test_the_standard_variables_switch_traces_on(variables: dict[str, str], is_on: bool) -> None:
    assert check_tracing(variables) == []
    assert (build_tracing(variables, name="s", version="1", flush_seconds=1) is not None) == is_on


@pytest.mark.parametrize(
    ("value", "is_on"),
    [
        ("", False),
        ("true", True),
        ("False", False),
        ("SPAN_ONLY", True),
        ("event_only", False),
        ("span_and_event", True),
    ],
)
def test_the_conventions_variable_switches_content_on(value: str, is_on: bool) -> None:
    variables = {**COLLECTOR, "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": value}
    assert check_tracing(variables) == []
    found = build_tracing(variables, name="s", version="1", flush_seconds=1)
    assert found is not None
    assert found.content == is_on


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "yes"),
        ("OTEL_*", "0"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str) -> None:
    variable = "OTEL_BSP_MAX_QUEUE_SIZE" if name == "OTEL_*" else name
    [fault] = check_tracing({**COLLECTOR, variable: value})
    assert fault.field == name
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ


class Collector:
    """A server that takes spans by OTLP."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], ExportTraceServiceRequest]] = []
        self.came = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                headers = {name.lower(): value for name, value in self.headers.items()}
                collector.requests.append(
                    (self.path, headers, ExportTraceServiceRequest.FromString(body))
                )
                collector.came.set()
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Collector":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def spans(self) -> list[str]:
        """The names of all spans that came."""
        return [
            span.name
            for _, _, sent in self.requests
            for each in sent.resource_spans
            for scope in each.scope_spans
            for span in scope.spans
        ]


def ask(url: str, text: str = "What is 6 * 7?") -> str:
    body = {"model": "research_agent", "messages": [{"role": "user", "content": text}]}
    answer = httpx2.post(f"{url}{CHAT}", json=body, timeout=10).json()
    said: str = answer["choices"][0]["message"]["content"]
    return said


def test_a_service_with_the_standard_variables_sends_its_spans_before_it_ends(
    tmp_path: Path,
) -> None:
    with Collector() as collector:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Basic%20{SECRET}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test,service.version=7",
            "SERVICE_NAME": "agents-of-test",
        }
        with process_serving(tmp_path, **variables) as (url, process):
            assert "42" in ask(url)
            assert collector.requests == [], "they wait for others"
            process.terminate()
            _, log = process.communicate(timeout=20)
            assert process.returncode == 0
    assert SECRET not in log
    assert sorted(collector.spans) == [
        "POST /v1/chat/completions",
        "chat demo",
        "chat demo",
        "execute_tool calculate",
        "invoke_agent research_agent",
    ]
    [(path, headers, sent)] = collector.requests
    assert path == "/v1/traces"
    assert headers["authorization"] == f"Basic {SECRET}"
    about_it = {
        each.key: each.value.string_value for each in sent.resource_spans[0].resource.attributes
    }
    assert (
        about_it.items()
        >= {
            "service.name": "agents-of-test",
            "service.version": "7",
            "deployment.environment.name": "test",
        }.items()
    )


def test_variables_of_the_env_file_count_and_samplers_are_heeded(tmp_path: Path) -> None:
    with Collector() as collector:
        written = (
            f"OTEL_EXPORTER_OTLP_ENDPOINT={collector.url}\nOTEL_SERVICE_NAME=from-the-file\n"
            "OTEL_BSP_SCHEDULE_DELAY=50\n"
        )
        (tmp_path / ".env").write_text(written, encoding="utf-8")
        with process_serving(tmp_path) as (url, _):
            ask(url)
            assert collector.came.wait(10)
        about_it = {
            each.key: each.value.string_value
            for each in collector.requests[0][2].resource_spans[0].resource.attributes
        }
        assert about_it["service.name"] == "from-the-file"
        collector.requests.clear()
        with process_serving(tmp_path, OTEL_TRACES_SAMPLER="always_off") as (url, _):
            ask(url)
        assert collector.spans == []


def test_a_collector_that_is_away_slows_nothing_and_is_told_of_once(tmp_path: Path) -> None:
    with Collector() as gone:
        url = gone.url
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_BSP_SCHEDULE_DELAY": "20",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "3",
    }
    with process_serving(tmp_path, **variables) as (service, process):
        began = time.monotonic()
        for _ in range(20):
            ask(service)
        assert time.monotonic() - began < 10
        assert process.stderr is not None
        for line in process.stderr:
            if "traces.problem" in line:
                break
        for _ in range(5):
            ask(service)
        began = time.monotonic()
        process.terminate()
        _, log = process.communicate(timeout=20)
        assert process.returncode == 0
        assert time.monotonic() - began < 4
    assert "Connection refused" in line
    assert "traces.problem" not in log
    assert "Traceback" not in log
    assert "opentelemetry" not in log


async def test_a_collector_that_hangs_does_not_hold_up_the_end() -> None:
    held = threading.Event()

    class Hanging(SimpleSpanProcessor):
        def shutdown(self) -> None:
            held.wait(20)

    began = time.monotonic()
    async with Tracing(lambda: Hanging(InMemorySpanExporter()), flush_seconds=0.1) as tracing:
        tracing.start("one", {}).end()
    assert time.monotonic() - began < 5
    held.set()


async def test_lines_of_opentelemetry_become_one_of_ours_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spans = Spans()
    async with spans.tracing():
        for number in range(1000):
            logging.getLogger("opentelemetry.sdk.trace").warning("Queue full, dropping %s.", number)
        assert [record.getMessage() for record in caplog.records] == ["traces.problem"]
        assert vars(caplog.records[0])["problem"] == "Queue full, dropping 0."


async def test_runs_are_traced_after_a_reload_and_new_secrets_are_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = Spans()
    found = traced(configuration(tmp_path, Script(says(f"It is {SECRET}."))), spans, content=True)
    app = create_app(found)
    async with open_client(app) as client:
        (tmp_path / "agent_config.json").write_text(
            json.dumps([{**AGENT, "system_prompt": "You help more."}]), encoding="utf-8"
        )
        monkeypatch.setenv("SOME_TOKEN", SECRET)
        assert (await app.state.service.reload()).changed_agents == ["helper"]
        assert (await client.post(CHAT, json=asking())).status_code == 200
    assert spans.tree == {
        "POST /v1/chat/completions": [{"invoke_agent helper": ["chat scripted-model"]}]
    }
    assert "You help more." in spans.said
    assert SECRET not in spans.said
