"""Whether the operator's files have changed."""

import json
import os
from pathlib import Path

from ai_agent_service.config.fingerprint import hash_files


def content(folder: Path) -> bytes:
    return hash_files(folder / "agent_config.json", folder / "mcp.json", folder / "prompts")


def written(folder: Path) -> bytes:
    (folder / "prompts" / "deep").mkdir(parents=True)
    agents = [
        {
            "system_prompt_file": "a.txt",
            "resource_config": {"memory": {"compression": {"prompt_file": "deep/s.txt"}}},
        }
    ]
    (folder / "agent_config.json").write_text(json.dumps(agents), encoding="utf-8")
    for name in ("mcp.json", "prompts/a.txt", "prompts/deep/s.txt"):
        (folder / name).write_text("x", encoding="utf-8")
    return content(folder)


def test_every_file_that_is_read_counts(tmp_path: Path) -> None:
    seen = {written(tmp_path)}
    for name in ("mcp.json", "prompts/a.txt", "prompts/deep/s.txt"):
        (tmp_path / name).write_text("y", encoding="utf-8")
        seen.add(content(tmp_path))
        (tmp_path / name).unlink()
        seen.add(content(tmp_path))
    (tmp_path / "agent_config.json").write_text("[", encoding="utf-8")
    seen.add(content(tmp_path))
    assert len(seen) == 8


def test_what_is_not_named_and_what_says_the_same_does_not_count(tmp_path: Path) -> None:
    before = written(tmp_path)
    (tmp_path / "prompts" / "other.txt").write_text("x", encoding="utf-8")
    os.utime(tmp_path / "mcp.json", (1, 1))
    (tmp_path / "new").write_text("x", encoding="utf-8")
    (tmp_path / "new").replace(tmp_path / "prompts" / "a.txt")
    assert content(tmp_path) == before


def test_a_link_that_is_switched_counts(tmp_path: Path) -> None:
    """As Kubernetes switches those of a ConfigMap."""
    for name, text in (("..1", "one"), ("..2", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mcp.json").write_text(text, encoding="utf-8")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "mcp.json").symlink_to("..data/mcp.json")
    before = content(tmp_path)
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    assert content(tmp_path) != before


def test_names_that_no_file_can_have_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "agent_config.json").write_text(
        json.dumps({"system_prompt_file": "a\0b", "prompt_file": 7}), encoding="utf-8"
    )
    assert content(tmp_path)


def test_prompts_count_that_a_file_with_comments_names(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "agent_config.json").write_text(
        '\ufeff// agents\n{"system_prompt_file": "a.txt",}', encoding="utf-8"
    )
    before = content(tmp_path)
    (tmp_path / "prompts" / "a.txt").write_text("y", encoding="utf-8")
    assert content(tmp_path) != before
