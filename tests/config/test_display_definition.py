"""How an agent is shown: its `display`."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.config.read_agents import KnownNames, read_agents
from ai_agent_service.core.bounds import MAX_AVATAR_BYTES
from ai_agent_service.core.errors import Fault

KNOWN = KnownNames(("agent",), ("demo",), ())
PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)


def read(folder: Path, display: Any) -> tuple[Any, list[Fault]]:
    (folder / "agents").mkdir(exist_ok=True)
    path = folder / "agents" / "agent_config.json"
    path.write_text(
        json.dumps([{"agent_id": "a", "system_prompt": "p", "display": display}]), encoding="utf-8"
    )
    agents, faults = read_agents(path, folder, {}, KNOWN)
    return (agents[0].display if agents else None), faults


def test_nothing_has_to_be_said(tmp_path: Path) -> None:
    for nothing in (None, {}, {"tags": None, "capabilities": None, "suggestion_prompts": None}):
        display, faults = read(tmp_path, nothing)
        assert not faults
        assert (display.name, display.tags, display.suggestion_prompts, display.avatar) == (
            None,
            (),
            (),
            None,
        )


def test_variables_are_not_looked_for_in_what_people_read(tmp_path: Path) -> None:
    display, faults = read(tmp_path, {"name": "The ${PRICE} agent"})
    assert not faults
    assert display.name == "The ${PRICE} agent"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PNG, "png"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"GIF89a", "gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8", "webp"),
    ],
)
def test_an_avatar_may_be_a_file_beside_the_agents(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "agents" / "faces").mkdir(parents=True)
    (tmp_path / "agents" / "faces" / "a.img").write_bytes(data)
    display, faults = read(tmp_path, {"avatar": "faces/a.img"})
    assert not faults
    assert display.avatar == f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    "avatar", ["https://a.example/a.png", "data:image/png;base64,iVBORw0KGgo="]
)
def test_an_avatar_may_be_an_address(tmp_path: Path, avatar: str) -> None:
    display, faults = read(tmp_path, {"avatar": avatar})
    assert not faults
    assert display.avatar == avatar


@pytest.mark.parametrize(
    ("display", "field", "problem"),
    [
        ({"nmae": "x"}, "display.nmae", "not known"),
        ({"capabilities": {"vision": "perhaps"}}, "display.capabilities.vision", "boolean"),
        (
            {"suggestion_prompts": [{"title": "x"}]},
            "display.suggestion_prompts.0.content",
            "missing",
        ),
        (
            {"suggestion_prompts": [{"content": "x", "tittle": "y"}]},
            "display.suggestion_prompts.0.tittle",
            "not known",
        ),
        ({"tags": "work"}, "display.tags", "tuple"),
        ({"avatar": "none.png"}, "display.avatar", "not a file"),
        ({"avatar": "../agents/text.txt"}, "display.avatar", "without '..'"),
        ({"avatar": "/etc/hostname"}, "display.avatar", "without '..'"),
        ({"avatar": "a\x00b"}, "display.avatar", "without '..'"),
        ({"avatar": "x" * 5000}, "display.avatar", "read"),
        ({"avatar": "link.png"}, "display.avatar", "leads out"),
        ({"avatar": "text.txt"}, "display.avatar", "not a PNG"),
        ({"avatar": "large.png"}, "display.avatar", "more than"),
        ({"avatar": "data:image/svg+xml;base64,AAAA"}, "display.avatar", "PNG, JPEG"),
    ],
)
def test_what_is_wrong_is_told_with_its_field(
    tmp_path: Path, display: dict[str, Any], field: str, problem: str
) -> None:
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "text.txt").write_text("no image")
    (folder / "large.png").write_bytes(PNG + bytes(MAX_AVATAR_BYTES))
    (tmp_path / "outside.png").write_bytes(PNG)
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    _, faults = read(tmp_path, display)
    (fault,) = faults
    assert fault.field == field
    assert problem in fault.problem
