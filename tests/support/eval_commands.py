"""Runs `ai-agent-service eval` in this process, on an agent whose model does what its prompt
says."""

import json
from pathlib import Path
from typing import Any

from ai_agent_service.cli.eval import evaluate
from tests.support.commands import Done, command
from tests.support.processes import SHIPPED

READS_ITS_PROMPT = """
import asyncio
import os

from ai_agent_service.core.events import TextDelta
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.providers.demo import Demo

class ReadsItsPrompt(Demo):
    name = "reads_its_prompt"

    async def stream(self, request):
        asked = request.messages[-1].text
        if asked == "stop here" and os.environ.get("STOP_HERE"):
            await asyncio.Event().wait()
        prompt = request.messages[0].text
        words = f"You asked: {asked}" if "Repeat the question" in prompt else "Yes."
        yield TextDelta(words)
        yield ModelFinished("stop", (), Usage(10, 2))

class KnowsItsPrompt(Demo):
    name = "knows_its_prompt"

    async def stream(self, request):
        yield TextDelta(request.messages[0].text)
        yield ModelFinished("stop", (), Usage(10, 2))
"""


QUESTIONS = (
    "Is it open on Sundays?",
    "Do you ship to Norway?",
    "May I pay by card?",
    "Is there a warranty?",
    "Can I come by?",
    "Is it red?",
)


CASES = [
    {"id": f"question{n}", "input": text, "expect": {"contains": text}}
    for n, text in enumerate(QUESTIONS, 1)
]


def prepared(
    folder: Path, *, prompt: str = "Repeat the question, then answer.", cases: Any = CASES
) -> dict[str, str]:
    """Write an agent `a` with `prompt` and `cases.jsonl`; return the settings that name them."""
    (folder / "plugins").mkdir(exist_ok=True)
    (folder / "plugins" / "model.py").write_text(READS_ITS_PROMPT, encoding="utf-8")
    agent = {
        "agent_id": "a",
        "system_prompt": prompt,
        "provider": "reads_its_prompt",
        "resources": ["memory"],
    }
    (folder / "agents.json").write_text(json.dumps([agent]), encoding="utf-8")
    (folder / "cases.jsonl").write_text(
        "".join(json.dumps(case) + "\n" for case in cases), encoding="utf-8"
    )
    return {
        "AGENT_CONFIG_FILE": str(folder / "agents.json"),
        "PLUGINS_DIR": str(folder / "plugins"),
        "MCP_CONFIG_FILE": str(folder / "mcp.json"),
        "EVALUATION_OUTPUT_DIR": str(folder / "output"),
    }


async def evaluated(folder: Path, settings: dict[str, str], *arguments: str) -> Done:
    return await command(evaluate, folder, *arguments, **settings)


def runs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "output").iterdir())


def shipped(folder: Path) -> dict[str, str]:
    """Settings of the shipped agents with the demo provider; runs are kept in `folder`."""
    return {
        **SHIPPED,
        "MCP_CONFIG_FILE": str(folder / "mcp.json"),
        "EVALUATION_OUTPUT_DIR": str(folder / "output"),
    }
