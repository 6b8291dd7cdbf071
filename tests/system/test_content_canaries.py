"""What users, models and tools say stays out of the log unless it is asked for by the level DEBUG,
whatever goes wrong."""

import asyncio
import gc
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.events import RunEvent, TextDelta
from ai_agent_service.core.turn import Turn
from ai_agent_service.observability.logging import LogFormat, configure_logging
from ai_agent_service.server.application import create_app
from ai_agent_service.tools import tool
from tests.support.clients import CHAT, asking
from tests.support.commands import logging_restored
from tests.support.fake_provider import Script, calls, says
from tests.support.fake_upstream import Action, Upstream, delta, events, reply
from tests.support.service import AGENT, configuration, open_client

SAID, ARGUMENT, RESULT, PROMPT, ANSWER = (
    f"canary-of-{name}" for name in ("a-user", "an-argument", "a-result", "a-prompt", "an-answer")
)


@tool
async def look(what: str) -> str:
    """Looks."""
    return f"{RESULT} {what}"


@tool
async def refuse(what: str) -> str:
    """Refuses."""
    raise ToolError(f"{RESULT} {what}")


@tool
async def crash(what: str) -> str:
    """Crashes in the words of another error."""
    try:
        return str(int(what))
    except ValueError as error:
        raise RuntimeError(f"{RESULT} {what}") from error


@tool
def crash_in_a_thread(what: str) -> str:
    """Crashes in a thread."""
    raise RuntimeError(f"{RESULT} {what}")


@tool
async def forget(what: str) -> str:
    """Leaves a task that fails behind."""

    async def fail() -> None:
        raise RuntimeError(f"{RESULT} {what}")

    left = asyncio.create_task(fail())
    await asyncio.wait((left,))
    return "x"


class Crashing(BaseAgent):
    """Breaks, with what it was asked in its words."""

    type: ClassVar[str] = "crashing"

    async def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """Breaks; see BaseAgent."""
        if turn.messages[-1].text.endswith("late"):
            yield TextDelta(ANSWER)
        raise RuntimeError(turn.messages[-1].text)


TOOLS = (look, refuse, crash, crash_in_a_thread, forget)
NAMES = [each.spec.name for each in TOOLS]


async def everything(folder: Path, upstream: Upstream) -> list[int]:
    """Has the service meet all that can go wrong; the statuses of its answers."""
    wanted = [(name, {"what": ARGUMENT}) for name in NAMES]
    script = Script(
        calls(
            *wanted,
            ("look", f'{{"what": "{ARGUMENT}'),
            ("look", {"where": ARGUMENT}),
            (ARGUMENT, {}),
            text=ANSWER,
            thinking=ANSWER,
        ),
        says(ANSWER),
    )
    common = {**AGENT, "system_prompt": PROMPT, "allowed_regular_tools": NAMES}
    agents = [
        {**common, "resources": ["memory"]},
        {**common, "agent_id": "crashing", "type": "crashing", "resources": ["memory"]},
        {**common, "agent_id": "broken"},
        {
            **common,
            "agent_id": "refused",
            "provider": "openai",
            "model": "m",
            "resources": ["memory"],
        },
    ]
    plugins: dict[str, Any] = {
        "tools": TOOLS,
        "agent_types": [Crashing],
        "openai_base_url": f"{upstream.url}/v1",
    }
    app = create_app(
        configuration(folder, script, agents=agents, provider_max_retries=1, **plugins)
    )
    statuses = []
    async with open_client(app) as client:
        for agent in ("helper", "refused", "refused", "refused", "crashing"):
            for streamed in (False, True):
                body = asking(f"{SAID} late" if streamed else SAID, model=agent, stream=streamed)
                response = await client.post(CHAT, json=body, headers={"x-session-id": agent})
                statuses.append(response.status_code)
        wrong = asking(SAID, temperature=SAID, messages=[{"role": SAID, "content": SAID}])
        statuses.append((await client.post(CHAT, json=wrong)).status_code)
        statuses.append(
            (await client.post(CHAT, content=f'{{"messages": "{SAID}'.encode())).status_code
        )
        script.answers = [[RuntimeError(f"{ANSWER} {SAID}")]]
        statuses.append((await client.post(CHAT, json=asking(SAID, model="broken"))).status_code)
        gc.collect()
    return statuses


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
async def test_what_is_said_stays_out_of_the_log_unless_it_is_asked_for(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    level: str,
    log_format: LogFormat,
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    echoed = {"error": {"message": f"Invalid content: {SAID}, {PROMPT}"}}
    answers: list[list[Action]] = [
        reply(400, echoed),
        reply(500, echoed),
        reply(500, echoed),
        [f"HTTP/9 {SAID}\r\n\r\n".encode(), "close"],
        [f"HTTP/9 {SAID}\r\n\r\n".encode(), "close"],
        events(delta(content=ANSWER), {"error": {"message": f"{SAID} is too much", "code": 500}}),
    ]
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(None)  # that of the tests has them fail
    with logging_restored():
        configure_logging(level, log_format=log_format)
        async with Upstream(*answers) as upstream:
            statuses = await everything(tmp_path, upstream)
    loop.set_exception_handler(before)
    assert {200, 400, 500} <= set(statuses)
    log = capsys.readouterr().err
    for event in (
        "run.crashed",
        "tool.failed",
        "provider.failed",
        "provider.retry",
        "run.failed",
        "Task exception was never retrieved",
    ):
        assert event in log
    for canary in (SAID, ARGUMENT, RESULT, PROMPT, ANSWER):
        # Of a tool that the agent does not have the audit log tells the name.
        told = [line for line in log.splitlines() if canary in line and "tool.refused" not in line]
        assert bool(told) is (level == "DEBUG"), told
    if log_format == "json":
        assert all(json.loads(line) for line in log.splitlines())
