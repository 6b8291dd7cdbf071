"""Plug-ins: what is found where, and what is wrong with them."""

from pathlib import Path

import pytest

from ai_agent_service.core.errors import Fault
from ai_agent_service.runtime.plugin_loader import load_plugins

GOOD = '''
from ai_agent_service.agents.agent import Agent
from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.core.turn import Turn
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.events import RunFinished, TextDelta
from ai_agent_service.providers.openai_compatible import OpenAICompatible
from ai_agent_service.tools import tool
from ai_agent_service.tools.builtin import calculate

@tool
async def shout(text: str) -> str:
    """Shout."""
    return text.upper()

also_shout = shout

class _Common(OpenAICompatible):
    name = "common"

class Groq(_Common):
    name = "groq"

    @classmethod
    def from_setup(cls, setup):
        key = setup.environment.get("GROQ_API_KEY")
        missing = () if key else ("GROQ_API_KEY",)
        return cls(setup.http, base_url="http://127.0.0.1:1/v1", api_key=key, missing=missing)

class Echo(BaseAgent):
    type = "echo"

    async def run(self, turn, context):
        yield TextDelta(turn.messages[-1].text)
        yield RunFinished("stop", None)
'''


def find_faults(folder: Path) -> list[Fault]:
    return sorted(load_plugins(folder)[1])


def test_the_built_in_ones_are_always_there() -> None:
    plugins, _ = load_plugins()
    assert sorted(plugins.tools) == ["add_two_numbers", "calculate", "get_current_datetime"]
    assert sorted(plugins.providers) == ["azure_openai", "demo", "ollama", "openai", "openrouter"]
    assert sorted(plugins.agents) == ["agent"]


def test_what_a_file_defines_is_taken_and_what_it_imports_is_not(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GOOD, encoding="utf-8")
    (tmp_path / "_helper.py").write_text("raise RuntimeError", encoding="utf-8")
    plugins, faults = load_plugins(tmp_path)
    assert faults == []
    assert set(plugins.tools) - set(load_plugins()[0].tools) == {"shout"}
    assert set(plugins.providers) - set(load_plugins()[0].providers) == {"groq"}
    assert set(plugins.agents) - set(load_plugins()[0].agents) == {"echo"}


@pytest.mark.parametrize("module", ["app.tools", "app.core.events"])
def test_a_plugin_that_imports_from_the_former_package_is_shown_the_new_import(
    tmp_path: Path, module: str
) -> None:
    (tmp_path / "old.py").write_text(f"from {module} import anything\n", encoding="utf-8")
    assert find_faults(tmp_path) == [
        Fault(
            file=str(tmp_path / "old.py"),
            problem="it imports from 'app', the package's former name",
            remedy="Import from ai_agent_service.plugins instead",
        )
    ]


def test_all_faults_of_all_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "a_broken.py").write_text("x = 1\n1 / 0\n", encoding="utf-8")
    (tmp_path / "b_syntax.py").write_text("def", encoding="utf-8")
    (tmp_path / "c_taken.py").write_text(
        GOOD.replace("shout", "calculate").replace('"echo"', '""'), encoding="utf-8"
    )
    found = [(Path(fault.file).name, fault.problem) for fault in find_faults(tmp_path)]
    assert found == [
        ("a_broken.py", "it cannot be loaded (ZeroDivisionError: division by zero, line 2)"),
        ("b_syntax.py", found[1][1]),
        ("c_taken.py", "the agent type Echo has no name"),
        ("c_taken.py", "there is another tool of the name 'calculate'"),
    ]
    assert "SyntaxError" in found[1][1]


def test_a_folder_that_is_absent_is_a_fault(tmp_path: Path) -> None:
    assert find_faults(tmp_path / "absent")[0].field == "PLUGINS_DIR"


def test_entry_points_of_installed_packages_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "someones_plugin.py").write_text(GOOD, encoding="utf-8")
    metadata = tmp_path / "someones_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: someones-plugin\nVersion: 1.0\n", encoding="utf-8"
    )
    (metadata / "entry_points.txt").write_text(
        "[ai_agent_service.tools]\nshout = someones_plugin:shout\nabsent ="
        " someones_plugin:absent\nwrong ="
        " someones_plugin:RunContext\n[ai_agent_service.providers]\ngroq ="
        " someones_plugin:Groq\n[ai_agent_service.agents]\necho = someones_plugin:Echo\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    faults = sorted(load_plugins()[1])
    assert [(fault.file, fault.problem) for fault in faults] == [
        ("entry point 'absent' of someones-plugin", faults[0].problem),
        (
            "entry point 'wrong' of someones-plugin",
            "this is neither a tool, nor a provider class, nor an agent class, nor a memory class",
        ),
    ]
    (metadata / "entry_points.txt").write_text(
        "[ai_agent_service.tools]\nshout = someones_plugin:shout\n", encoding="utf-8"
    )
    assert "shout" in load_plugins()[0].tools


def test_an_agent_type_that_lacks_its_method_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        GOOD.replace("async def run(", "async def rnu("), encoding="utf-8"
    )
    [fault] = find_faults(tmp_path)
    assert fault.problem == "the agent type Echo does not define run"


def test_a_file_that_ends_the_process_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    [fault] = find_faults(tmp_path)
    assert fault.problem == "it cannot be loaded (SystemExit: 0, line 2)"
