"""Requests that must not hurt, at every route and over a real socket: each is refused in OpenAI's
shape, at once, and echoes nothing."""

import asyncio
import json
import re
import tracemalloc
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute

from ai_agent_service.server.application import create_app
from tests.support.clients import CHAT, asking, connected_raw, read_error
from tests.support.fake_provider import Script, says
from tests.support.raw_http import parsed, read_refusal, sent
from tests.support.service import AGENT, configuration, open_client, serving

CANARY = "CANARY-91c4"
CHAT_ROUTES = {CHAT: asking(), "/agents/helper/chat": {"message": "Hello"}}
"""The routes that read a body, each with one that it takes."""

PAGES = ("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json")
NAMES = {"agent_id": "helper", "model": "helper", "session_id": "s"}


@asynccontextmanager
async def served(folder: Path, **settings: Any) -> AsyncGenerator[tuple[str, Script], None]:
    """The address of the service, and its provider, which must not have been asked in the end."""
    script = Script(says("Hi"))
    agents = [{**AGENT, "resources": ["memory"]}]
    async with (
        serving(create_app(configuration(folder, script, agents=agents, **settings))) as address,
        asyncio.timeout(50),
    ):
        yield address, script
    assert script.requests == []


def list_routes(app: FastAPI) -> set[tuple[str, str]]:
    """Method and path of every route."""

    def walk(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
        for route in routes:
            included = getattr(route, "original_router", None)
            if included is not None:
                yield from walk(included.routes)
            else:
                found = vars(route)
                yield from ((method, found["path"]) for method in found["methods"])

    return set(walk(app.routes))


def filled(path: str, **names: str) -> str:
    """`path` with its parameters filled in."""
    return re.sub(
        r"\{(\w+)(?::path)?\}",
        lambda match: quote({**NAMES, **names}.get(match[1], match[1]), safe=""),
        path,
    )


def request(
    method: str, path: str, body: bytes = b"", *headers: bytes, length: int | None = None
) -> bytes:
    """A request as it goes over the wire; the connection ends with its answer."""
    lines = [
        f"{method} {path} HTTP/1.1".encode(),
        b"host: localhost",
        b"connection: close",
        b"content-type: application/json",
        *headers,
    ]
    if not any(header.lower().startswith(b"transfer-encoding") for header in headers):
        lines.append(b"content-length: %d" % (len(body) if length is None else length))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def test_every_route_is_walked(tmp_path: Path) -> None:
    app = create_app(configuration(tmp_path))
    routes = list_routes(app)
    described = {
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    assert described <= {(method, path.replace(":path", "")) for method, path in routes}
    assert ("POST", CHAT) in routes


# Bodies


def bodies(valid: dict[str, Any]) -> dict[str, tuple[bytes, set[str | None]]]:
    """Bodies that no route may take, each with the codes or the params that it may be refused
    with."""
    text = json.dumps(valid)
    begun = text[:-1].encode()
    said = text.replace("Hello", f"{CANARY} %s")
    field = b'"model_settings"' if "message" in valid else b'"response_format"'
    unreadable: set[str | None] = {"invalid_json"}
    stored: set[str | None] = {"response_format[...]", "model_settings.response_format[...]"}

    def held(value: bytes) -> bytes:
        inner = b'{"a": ' + value + b"}"
        if "message" in valid:
            inner = b'{"response_format": ' + inner + b"}"
        return begun + b', "' + CANARY.encode() + b'": 1, ' + field + b": " + inner + b"}"

    return {
        "nothing": (b"", unreadable),
        "spaces": (b" " * 100, unreadable),
        "an array": (b"[]", {"invalid_request"}),
        "null": (b"null", {"invalid_request"}),
        "true": (b"true", {"invalid_request"}),
        "a text": (json.dumps(CANARY).encode(), {"invalid_request"}),
        "no JSON": (CANARY.encode(), unreadable),
        "half": (text[: len(text) // 2].encode(), unreadable),
        "two": (text.encode() * 2, unreadable),
        "a form": (f"model={CANARY}&message=a".encode(), unreadable),
        "bad UTF-8": ((said % "\xff").encode("latin-1"), unreadable),
        "overlong UTF-8": ((said % "\xc0\xaf").encode("latin-1"), unreadable),
        "UTF-16": (text.encode("utf-16"), unreadable),
        "a raw NUL": ((said % "\x00").encode(), unreadable),
        "NUL": (held(b'"\\u0000"'), stored),
        "a lone surrogate": (held(b'"\\ud800"'), stored),
        "a low surrogate": (held(b'"\\udc00"'), stored),
        "an encoded surrogate": ((said % "\xed\xa0\x80").encode("latin-1"), unreadable),
        "a long integer": (
            held(b"9" * 5_000),
            {"response_format[...]", "model_settings.response_format[...]"},
        ),
        "1e999": (held(b"1e999"), {"response_format[...]", "model_settings.response_format[...]"}),
        "NaN": (held(b"NaN"), unreadable),
        "Infinity": (held(b"-Infinity"), unreadable),
        "deep arrays": (held(b"[" * 5_000 + b"]" * 5_000), unreadable),
        "deep objects": (held(b'{"a":' * 5_000 + b"1" + b"}" * 5_000), unreadable),
        "rather deep": (
            held(b"[" * 400 + b"]" * 400),
            {"response_format", "model_settings.response_format"},
        ),
        "unended arrays": (b"[" * 1_000_000, {"invalid_request", "invalid_json"}),
        "a duplicate that is wrong": (
            begun + b', "stream": "' + CANARY.encode() + b'", "stream": true}',
            {"stream"},
        ),
    }


@pytest.mark.parametrize("path", CHAT_ROUTES)
async def test_bodies_that_no_route_takes(tmp_path: Path, path: str) -> None:
    async with served(tmp_path) as (address, _):
        for kind, (body, expected) in bodies(CHAT_ROUTES[path]).items():
            answer = await sent(address, request("POST", path, body))
            error = read_refusal(answer, 400)
            assert {error["code"], error["param"]} & expected, (kind, error)
            assert CANARY.encode() not in answer, kind
            assert len(answer) < 2_000, kind


@pytest.mark.parametrize("path", CHAT_ROUTES)
@pytest.mark.parametrize("way", ["announced", "sent all the same", "chunked", "endless"])
async def test_large_bodies_are_refused_early_and_not_held(
    tmp_path: Path, path: str, way: str
) -> None:
    piece = CANARY.encode() * 6_000
    chunk = b"%x\r\n%b\r\n" % (len(piece), piece)
    if way == "endless":
        pieces = [request("POST", path, b"", b"transfer-encoding: chunked"), *[chunk] * 5_000]
    elif way == "chunked":
        pieces = [
            request("POST", path, b"", b"transfer-encoding: chunked"),
            *[chunk] * 910,
            b"0\r\n\r\n",
        ]
    else:
        pieces = [
            request("POST", path, length=60_000_000),
            *([piece] * 910 if way == "sent all the same" else []),
        ]
    async with served(tmp_path, max_request_bytes=1_000_000) as (address, _):
        tracemalloc.start()
        answer = await sent(address, *pieces)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert read_refusal(answer, 413)["code"] == "request_too_large"
    assert CANARY.encode() not in answer
    assert peak < 10_000_000


async def test_a_length_that_is_none_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as (address, _):
        for length in (b"-1", b"1e3", b"9" * 400, b"0x10", b"1, 1", b"\xd9\xa3"):
            head = (
                b"POST "
                + CHAT.encode()
                + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: "
                + length
                + b"\r\n\r\n{}"
            )
            assert read_refusal(await sent(address, head), 400)["code"] == "invalid_http"


async def test_routes_without_a_body_do_not_mind_one(tmp_path: Path) -> None:
    async with served(tmp_path) as (address, _):
        for method, path in sorted(list_routes(create_app(configuration(tmp_path)))):
            if method == "POST":
                continue
            for pieces in (
                [request(method, filled(path), CANARY.encode())],
                [request(method, filled(path), length=60_000_000), b"x" * 200_000],
            ):
                status, _, body = parsed(await sent(address, *pieces))
                assert status in (200, 404), (method, path, status)
                assert CANARY.encode() not in body


# Paths and queries

HOSTILE_NAMES = [
    f"{CANARY}\x00",
    f"{CANARY}\ud800",
    f"../../{CANARY}",
    f"..%2f{CANARY}",
    f"{CANARY}'; DROP TABLE runs; --",
    f"<script>{CANARY}</script>",
    f"{CANARY}\r\nx-injected: 1",
    f"${{{CANARY}}}",
    CANARY * 1_000,
    "\xff\xfe" + CANARY,
]


def encoded(name: str) -> str:
    return quote(name.encode("utf-8", "surrogatepass"), safe="")


async def test_names_in_paths_are_not_found_and_not_repeated(tmp_path: Path) -> None:
    routes = sorted(
        (method, path)
        for method, path in list_routes(create_app(configuration(tmp_path)))
        if "{" in path
    )
    assert routes
    async with served(tmp_path) as (address, _):
        for method, path in routes:
            for parameter in re.findall(r"\{(\w+)", path):
                for name in HOSTILE_NAMES:
                    known = filled(re.sub(rf"\{{{parameter}(:path)?\}}", "HOSTILE", path)).replace(
                        "HOSTILE", encoded(name)
                    )
                    answer = await sent(address, request(method, known, b'{"message": "Hello"}'))
                    status, headers, _ = parsed(answer)
                    assert 400 <= status < 500, (method, path, name, answer)
                    assert "x-injected" not in headers
                    assert CANARY.encode() not in answer, (method, path, name)
                    if method != "HEAD":
                        read_refusal(answer, status)


async def test_queries_are_refused_or_passed_over_and_not_repeated(tmp_path: Path) -> None:
    routes = [
        (method, path)
        for method, path in list_routes(create_app(configuration(tmp_path)))
        if method in ("GET", "DELETE")
    ]
    async with served(tmp_path) as (address, _):
        for method, path in sorted(routes):
            for parameter in (
                "user_id",
                "limit",
                "after",
                "branches",
                "detailed",
                "api_key",
                CANARY,
            ):
                for value in (
                    *(encoded(name) for name in HOSTILE_NAMES[:2]),
                    CANARY,
                    "-1",
                    "9" * 400,
                    "%",
                    "%ff",
                    "",
                ):
                    answer = await sent(
                        address,
                        request(method, f"{filled(path)}?{parameter}={value}&{parameter}=2"),
                    )
                    status, _, body = parsed(answer)
                    assert status in (200, 400, 404), (method, path, parameter, value, answer)
                    assert CANARY.encode() not in body
                    if status != 200:
                        read_refusal(answer, status)


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]
)
async def test_methods_that_a_route_does_not_take(tmp_path: Path, method: str) -> None:
    routes = list_routes(create_app(configuration(tmp_path)))
    async with served(tmp_path) as (address, _):
        for path in sorted({path for _, path in routes}):
            if (method, path) in routes:
                continue
            answer = await sent(address, request(method, filled(path), CANARY.encode()))
            assert read_refusal(answer, 405)["code"] == "method_not_allowed", (method, path)
            assert CANARY.encode() not in answer


async def test_addresses_that_are_none(tmp_path: Path) -> None:
    async with served(tmp_path) as (address, _):
        for path in (
            f"/{CANARY}",
            f"//{CANARY}",
            f"/v1/{CANARY}",
            f"/v1/chat/completions/{CANARY}",
            f"/%00{CANARY}",
            f"/..%2f{CANARY}",
            "/v1//models",
        ):
            answer = await sent(address, request("GET", path))
            assert read_refusal(answer, 404)["code"] == "not_found"
            assert CANARY.encode() not in answer


# Several of a kind


async def test_a_crowd_of_hostile_requests_leaves_a_service_that_answers(tmp_path: Path) -> None:
    cases = [
        request("POST", path, body)
        for path, valid in CHAT_ROUTES.items()
        for body, _ in bodies(valid).values()
    ]
    async with served(tmp_path) as (address, _):
        leaving = [await connected_raw(address, case[: len(case) // 2]) for case in cases]
        answers = await asyncio.gather(*(sent(address, case) for case in cases))
        assert {parsed(answer)[0] for answer in answers} == {400}
        for _, writer in leaving:
            writer.close()
        assert parsed(await sent(address, request("GET", "/health")))[0] == 200


async def test_a_key_of_requests_that_is_hostile(tmp_path: Path) -> None:
    """Headers that are read: each is refused, or taken as it is."""
    async with open_client(create_app(configuration(tmp_path, Script(says("Hi"))))) as client:
        for header in (
            "Idempotency-Key",
            "X-Session-Id",
            "X-OpenWebUI-Chat-Id",
            "X-Session-History",
        ):
            for value in (b"\x01" + CANARY.encode(), b"\xff" * 300, CANARY.encode() * 100):
                response = await client.post(CHAT, json=asking(), headers={header.encode(): value})
                assert CANARY not in read_error(response, 400)["message"]
