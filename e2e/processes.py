"""The service and Open WebUI, as processes of their own at free ports of 127.0.0.1."""

import base64
import json
import os
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

WEBUI = Path(__file__).parents[1] / "scripts" / "webui.py"
"""What `make webui` runs."""

API_KEY = "sk-the-key-of-open-webui-alone"
JWT_SECRET = "what-open-webui-signs-its-users-with"

AGENTS: list[dict[str, Any]] = [
    {
        "agent_id": name,
        "description": description,
        "display": {
            "name": shown,
            "suggestion_prompts": [
                {
                    "title": "What time is it",
                    "subtitle": "in Tokyo?",
                    "content": "What time is it in Tokyo?",
                }
            ],
        },
        "system_prompt_file": f"{name}.txt",
        "provider": "openai",
        "model": "scripted",
        "allowed_regular_tools": ["calculate", "get_current_datetime", "take_a_minute", "look_up"],
        "resources": ["memory"],
    }
    for name, shown, description in (
        ("research_agent", "Research", "Answers questions carefully."),
        ("second_agent", "Second opinion", "Answers them as well."),
    )
]


def _png(size: int, red: int, green: int, blue: int) -> bytes:
    """A PNG image of a square of one colour (https://www.w3.org/TR/png-3/)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    lines = (b"\0" + bytes((red, green, blue)) * size) * size
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


SQUARE = _png(96, 40, 90, 160)
"""An image."""

TOOLS = '''"""Tools that other agents hardly need."""

import asyncio

from ai_agent_service.core.messages import ImagePart
from ai_agent_service.tools import tool
from ai_agent_service.tools.base import ToolOutput

IMAGE = "data:image/png;base64,%s"


@tool(timeout=60)
async def take_a_minute() -> str:
    """Take a minute."""
    await asyncio.sleep(59)
    return "a minute is over"


@tool
async def look_up(subject: str) -> ToolOutput:
    """Look something up in the notes.

    Args:
        subject: What it is about.
    """
    text = f"[Notes on {subject}](https://notes.example.com/moon): made of rock."
    return ToolOutput(text, (ImagePart(IMAGE),))
'''

START = 90.0
"""Seconds that a process may take until it can be asked."""

END = 20.0
"""Seconds that a process may take to end."""


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def service(folder: Path, model_url: str) -> Generator[str, None, None]:
    """The service with its files in `folder`, asking the model at `model_url`; gives its
    address."""
    (folder / "prompts").mkdir(parents=True)
    for agent in AGENTS:
        (folder / "prompts" / agent["system_prompt_file"]).write_text(
            f"You are {agent['agent_id']}.", encoding="utf-8"
        )
    (folder / "plugins").mkdir()
    (folder / "plugins" / "rare_tools.py").write_text(
        TOOLS % base64.b64encode(SQUARE).decode(), encoding="utf-8"
    )
    (folder / "agent_config.json").write_text(json.dumps(AGENTS), encoding="utf-8")
    port = free_port()
    environment = {
        "PORT": str(port),
        "PLUGINS_DIR": "plugins",
        "API_KEYS": API_KEY,
        "IDENTITY_MODE": "open_webui_jwt",
        "OPEN_WEBUI_JWT_SECRET": JWT_SECRET,
        "OPENAI_BASE_URL": model_url,
        "OPENAI_API_KEY": "sk-of-the-model",
        "PROVIDER_MAX_RETRIES": "0",
    }
    address = f"http://127.0.0.1:{port}"
    with _process(
        [sys.executable, "-m", "app.main"], folder, environment, f"{address}/health/ready"
    ):
        yield address


@contextmanager
def open_webui(folder: Path, service_url: str) -> Generator[str, None, None]:
    """Open WebUI with its data in `folder`, started and connected as `make webui` does, but with
    accounts; gives its address.

    `WEBUI_COMMAND` in the environment names an open-webui that is there already.
    """
    folder.mkdir(parents=True)
    port = free_port()
    environment = {
        "SERVICE_URL": service_url,
        "AAS_API_KEY": API_KEY,
        "WEBUI_PORT": str(port),
        "WEBUI_DATA_DIR": str(folder),
        "WEBUI_COMMAND": os.environ.get("WEBUI_COMMAND", ""),
        "WEBUI_AUTH": "True",
        "FORWARD_USER_INFO_HEADER_JWT_SECRET": JWT_SECRET,
    }
    address = f"http://127.0.0.1:{port}"
    with _process([sys.executable, str(WEBUI)], folder, environment, f"{address}/health"):
        yield address


@contextmanager
def _process(
    command: list[str], folder: Path, environment: Mapping[str, str], asked: str
) -> Generator[None, None, None]:
    """`command` run in `folder` with its output in `log` there, until `asked` has answered; ended
    after that."""
    log = folder / "log"
    inherited = {
        name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**inherited, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _until_ready(process, asked, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(END)


def _until_ready(process: "subprocess.Popen[bytes]", asked: str, log: Path) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        try:
            if httpx2.get(asked, timeout=5).is_success:
                return
        except httpx2.TransportError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.1)
    said = log.read_text(encoding="utf-8", errors="replace")[-4000:]
    raise AssertionError(f"{asked} does not answer; its process said:\n{said}")
