"""The access log: one line for each request, whatever comes of it, and nothing in it that is
nobody's business."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from dirty_equals import IsFloat, IsStr

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.auth.principal import Limits
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ProviderUnavailableError
from ai_agent_service.core.events import RunEvent, TextDelta
from ai_agent_service.core.turn import Turn
from ai_agent_service.core.usage import Usage
from ai_agent_service.observability.access_log import AccessLog
from ai_agent_service.observability.logging import read_extra
from ai_agent_service.server.application import create_app
from tests.support.agents import CancelsItself
from tests.support.clients import CHAT, Watched, asking, connected, connected_raw
from tests.support.fake_provider import Script, calls, says
from tests.support.keys import bearer, opened
from tests.support.service import AGENT, configuration, open_client, serving

HASH = IsStr(regex=r"[0-9a-f]{12}")
SECONDS = IsFloat(ge=0, lt=20)
TITLE = (
    '### Task:\nGive a title, as JSON: {"title": "..."}\n<chat_history>\nUSER:'
    " Hello\n</chat_history>"
)


class Lines(logging.Handler):
    """The lines of the access log, and a queue of them."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a line; all of it has to be JSON."""
        self.records.append(record)
        self.queue.put_nowait(json.loads(json.dumps(read_extra(record))))

    @property
    def all(self) -> list[dict[str, Any]]:
        """What each line says."""
        assert {record.getMessage() for record in self.records} <= {"request"}
        return [read_extra(record) for record in self.records]


@pytest.fixture
def lines() -> Any:
    """The access log while the test runs, as with LOG_LEVEL=INFO."""
    logger, found = logging.getLogger("access"), Lines()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(found)
    yield found
    logger.removeHandler(found)
    logger.setLevel(level)


def hashed(*names: str) -> str:
    """What stands for names, by the pepper of these tests."""
    return AccessLog(PEPPER).hash_names(*names)


PEPPER = "a pepper that is thirty-two characters long"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_run_is_told_with_all_that_is_known_of_it(
    tmp_path: Path, lines: Lines, stream: bool
) -> None:
    script = Script(
        calls(("calculate", {"expression": "6*7"}), ("absent", {})),
        says("42", usage=Usage(30, 1, 8, 1, cost=0.5)),
    )
    agent = {**AGENT, "resources": ["memory"]}
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[agent], api_key_pepper=PEPPER))
    ) as client:
        response = await client.post(
            CHAT, json=asking(stream=stream, user="Ada"), headers={"X-Session-Id": "s"}
        )
    assert lines.all == [
        {
            "method": "POST",
            "route": CHAT,
            "status": 200,
            "seconds": SECONDS,
            "first_byte_seconds": SECONDS,
            "client": "127.0.0.1",
            "agent_id": "helper",
            "agent_version": HASH,
            "key_id": "none",
            "user": hashed("local", "Ada"),
            "session": hashed("local", "Ada", "s"),
            "run_id": IsStr(regex="run_.*"),
            "outcome": "answered",
            "streamed": stream,
            "provider": "scripted",
            "model": "scripted-model",
            "steps": 2,
            "prompt_tokens": 50,
            "completion_tokens": 6,
            "cached_tokens": 8,
            "reasoning_tokens": 1,
            "cost": 0.5,
            "provider_seconds": SECONDS,
            "tool_calls": 2,
            "tool_errors": 1,
            "tool_seconds": SECONDS,
        }
    ]
    assert response.status_code == 200


async def test_an_answer_that_is_told_again_is_told_as_repeated(
    tmp_path: Path, lines: Lines
) -> None:
    agent = {**AGENT, "resources": ["memory"]}
    async with open_client(
        create_app(configuration(tmp_path, Script(says("Hi")), agents=[agent]))
    ) as client:
        for _ in range(2):
            await client.post(
                CHAT, json=asking(), headers={"X-Session-Id": "s", "X-AAS-Message": "m"}
            )
    assert [line.get("repeated", False) for line in lines.all] == [False, True]


async def test_a_task_is_told_by_its_name(tmp_path: Path, lines: Lines) -> None:
    async with open_client(
        create_app(configuration(tmp_path, Script(says('{"title": "Hi"}'))))
    ) as client:
        await client.post(CHAT, json=asking(TITLE), headers={"X-AAS-Task": "title_generation"})
    assert [(line["task"], line["outcome"], line["steps"]) for line in lines.all] == [
        ("title_generation", "answered", 1)
    ]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_error_of_the_provider_is_told(tmp_path: Path, lines: Lines, stream: bool) -> None:
    script = Script([TextDelta("Half"), ProviderUnavailableError("down")])
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        await client.post(CHAT, json=asking(stream=stream))
    [line] = lines.all
    assert (line["status"], line["error"], line["outcome"]) == (
        200 if stream else 502,
        "provider_unavailable",
        "provider_unavailable",
    )


async def test_a_caller_who_leaves_is_told_once(tmp_path: Path, lines: Lines) -> None:
    script = Watched([TextDelta("Half"), asyncio.Event()])
    app = create_app(configuration(tmp_path, script))
    async with asyncio.timeout(30), serving(app) as address:
        for stream in (True, False):
            script.waiting.clear()
            _, writer = await connected(address, asking(stream=stream))
            await script.waiting.wait()
            writer.close()
            line = await lines.queue.get()
            assert (line["status"], line["outcome"], line["steps"]) == (
                200 if stream else 499,
                "left",
                1,
            )
            assert ("first_byte_seconds" in line) == stream
            assert "error" not in line
    assert len(lines.records) == 2


async def test_a_caller_who_leaves_before_their_request_is_whole_is_told(
    tmp_path: Path, lines: Lines
) -> None:
    async with asyncio.timeout(30), serving(create_app(configuration(tmp_path))) as address:
        _, writer = await connected_raw(
            address,
            f"POST {CHAT} HTTP/1.1\r\nhost: service\r\ncontent-length: 100\r\n\r\n{{".encode(),
        )
        writer.close()
        line = await lines.queue.get()
    assert (line["route"], line["method"]) == (CHAT, "POST")
    assert len(lines.records) == 1


async def test_what_is_refused_is_told_with_its_code(tmp_path: Path, lines: Lines) -> None:
    async with opened(tmp_path, max_request_bytes=1024) as service:
        key = await service.key("k", limits=Limits(requests=1))
        wrong = bearer("wrong")
        client = service.client
        await client.post(CHAT, json=asking(), headers=key)
        await client.post(CHAT, json=asking(), headers=key)
        await client.post(CHAT, json=asking(), headers=wrong)
        free = await service.key("free")
        await client.post(CHAT, json=asking("x" * 2000), headers=free)
        await client.post(CHAT, content=b"{", headers=free)
        await client.post(CHAT, json={**asking(), "model": "absent"}, headers=free)
        await client.get("/absent/secret", headers=key)
        await client.post("/health", headers=key)
        await client.get("/metrics", headers=key)
        await client.post(CHAT, json=asking(), headers={**key, "sec-fetch-site": "cross-site"})
        await client.get("/agents/helper/conversations/secret", headers=key)
    told = [(line["route"], line["status"], line.get("error")) for line in lines.all]
    assert told == [
        (CHAT, 200, None),
        (CHAT, 429, "rate_limit_exceeded"),
        (CHAT, 401, "invalid_api_key"),
        (CHAT, 413, "request_too_large"),
        (CHAT, 400, "invalid_json"),
        (CHAT, 404, "model_not_found"),
        ("unknown", 404, "not_found"),
        ("unknown", 403, "cross_site_request"),
        ("/agents/{agent_id}/conversations/{session_id}", 404, "conversation_not_found"),
    ]
    assert [line.get("outcome") for line in lines.all[:3]] == [
        "answered",
        None,
        None,
    ]
    assert "secret" not in str(lines.all)


class Crashing(BaseAgent):
    """An agent that breaks in a way of its own."""

    type: ClassVar[str] = "crashing"

    def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """Fails at once."""
        raise ZeroDivisionError("canary")


async def test_a_crash_is_told_once(tmp_path: Path, lines: Lines) -> None:
    found = configuration(tmp_path, agents=[{**AGENT, "type": "crashing"}], agent_types=[Crashing])
    async with open_client(create_app(found)) as client:
        assert (await client.post(CHAT, json=asking())).status_code == 500
    [line] = lines.all
    assert (line["route"], line["status"], line["error"]) == (CHAT, 500, "internal_error")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_agent_that_cancels_its_own_run_is_told_as_a_crash(
    tmp_path: Path, lines: Lines, stream: bool
) -> None:
    found = configuration(
        tmp_path, agents=[{**AGENT, "type": "cancels_itself"}], agent_types=[CancelsItself]
    )
    async with open_client(create_app(found)) as client:
        await client.post(CHAT, json=asking(stream=stream))
    [line] = lines.all
    assert (line["error"], line["outcome"]) == ("internal_error", "internal_error")


async def test_what_watches_the_service_is_told_at_debug_alone(
    tmp_path: Path, lines: Lines
) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        for path in ("/health", "/health/ready", "/metrics", "/v1/models"):
            assert (await client.get(path)).status_code == 200
        assert [line["route"] for line in lines.all] == ["/v1/models"]
        logging.getLogger("access").setLevel(logging.DEBUG)
        await client.head("/health")
    assert [(line["method"], line["route"]) for line in lines.all[1:]] == [("HEAD", "/health")]


async def test_names_are_hashed_the_same_with_one_pepper_and_differently_with_another(
    tmp_path: Path,
) -> None:
    assert hashed("t", "Ada") == hashed("t", "Ada") == HASH
    others = {
        hashed("t", "Bob"),
        hashed("t2", "Ada"),
        hashed("tA", "da"),
        AccessLog("another").hash_names("t", "Ada"),
    }
    assert len(others | {hashed("t", "Ada")}) == 5
    assert hashed("t", "\ud800") == HASH


async def test_nothing_of_what_is_said_and_of_who_says_it_is_told(
    tmp_path: Path, lines: Lines
) -> None:
    script = Script(
        calls(("calculate", {"expression": "1 + canary"}), ("canary", {})), says("canary")
    )
    agent = {**AGENT, "resources": ["memory"]}
    async with open_client(create_app(configuration(tmp_path, script, agents=[agent]))) as client:
        headers = {"X-Session-Id": "canary", "User-Agent": "canary", "Referer": "canary"}
        await client.post(
            CHAT, json=asking("canary", user="canary"), headers=headers, params={"canary": "canary"}
        )
        await client.post(CHAT, json={**asking("canary"), "model": "canary"}, headers=headers)
        await client.get("/canary/canary", params={"key": "canary"})
    assert len(lines.all) == 3
    assert "canary" not in str([vars(record) for record in lines.records])
