"""The settings, and that .env.example tells of each."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ai_agent_service.config.definition import read_descriptions
from ai_agent_service.config.env_template import OTHER_VARIABLES
from ai_agent_service.config.json_files import load_environment
from ai_agent_service.config.settings import Settings, load_settings
from ai_agent_service.core.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / ".env.example"


def test_the_defaults_are_safe() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.log_level, settings.default_provider) == (
        "127.0.0.1",
        8000,
        "INFO",
        None,
    )


def test_the_environment_sets_them_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9000")
    monkeypatch.setenv("LOG_LEVEL", "debug")
    monkeypatch.setenv("OPENROUTER_MODEL_LIST", "openrouter/auto, a/b ,openai/gpt-4")
    monkeypatch.setenv("AZURE_OPENAI_MODEL_LIST", "gpt-4o-mini|gpt-4.1-nano")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    settings = load_settings(port=9001)
    assert (settings.port, settings.log_level, settings.openai_api_key) == (9001, "DEBUG", None)
    assert settings.openrouter_model_list == ("openrouter/auto", "a/b", "openai/gpt-4")
    assert settings.azure_openai_model_list == ("gpt-4o-mini", "gpt-4.1-nano")


def test_all_wrong_variables_are_named_without_their_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PORT", "canary-one")
    monkeypatch.setenv("OPENAI_BASE_URL", "canary-two")
    monkeypatch.setenv("REQUEST_TIMEOUT", "-3")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert [fault.field for fault in caught.value.faults] == [
        "OPENAI_BASE_URL",
        "PORT",
        "REQUEST_TIMEOUT",
    ]
    assert "canary" not in str(caught.value)


def test_keys_do_not_show() -> None:
    assert "canary" not in repr(load_settings(openai_api_key="canary"))


def test_the_example_tells_of_every_setting_with_its_default_and_of_no_other() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    ours = text[: text.index(next(f"#### {title} ####" for title in OTHER_VARIABLES))]
    entries = re.findall(r"^# (.+)\n# ([A-Z_]+)=(.*)$", ours, re.MULTILINE)
    descriptions = read_descriptions(Settings)
    expected = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, ()) else str(field.default)
        expected.append(
            (descriptions[name], name.upper(), default if name != "service_version" else "")
        )
    assert entries == expected


def test_the_example_itself_is_a_valid_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uncommented = re.sub(
        r"^# ([A-Z_]+=)", r"\1", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    (tmp_path / ".env").write_text(uncommented, encoding="utf-8")
    monkeypatch.setitem(Settings.model_config, "env_file", str(tmp_path / ".env"))
    assert load_settings() == Settings.model_construct(
        **{name: field.default for name, field in Settings.model_fields.items()}
    )


def test_the_process_wins_over_the_env_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("ONE=file\nTWO=file\nTHREE=${ONE}\n", encoding="utf-8")
    monkeypatch.setenv("TWO", "process")
    monkeypatch.setenv("ONE", "")
    environment = load_environment(tmp_path / ".env")
    assert (environment["ONE"], environment["TWO"], environment["THREE"]) == (
        "file",
        "process",
        "file",
    )
    assert environment["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("make", "problem"),
    [(Path.mkdir, "this is a folder"), (lambda path: path.write_bytes(b"A=\xff"), "not UTF-8")],
)
def test_an_env_file_that_cannot_be_read_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Callable[[Path], object], problem: str
) -> None:
    make(tmp_path / ".env")
    monkeypatch.setitem(Settings.model_config, "env_file", str(tmp_path / ".env"))
    with pytest.raises(ConfigError, match=problem):
        load_settings()
