"""What docker/ holds, as far as files alone tell; scripts/docker_check.py builds and runs it."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from ai_agent_service.config.settings import Settings
from tests.support.scripts import load_script

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = (DOCKER / "docker-compose.yml").read_text(encoding="utf-8")
ONLY_IN_CONTAINERS = {
    "CORS_ALLOW_ORIGIN",  # of the published port
    "FORWARD_USER_INFO_HEADER_JWT_SECRET",  # empty unless OPEN_WEBUI_JWT_SECRET is set
    "OPENAI_API_BASE_URLS",
    "OPENAI_API_KEYS",
    "WEBUI_AUTH",  # may be set
    "WEBUI_SECRET_KEY",  # may be set
}


def services() -> dict[str, Any]:
    """The services of docker-compose.yml, nothing interpolated."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
    return found


def test_open_webui_is_set_in_a_container_as_by_make_webui(tmp_path: Path) -> None:
    ours = load_script("webui").variables({}, "http://ai-agent-service:8000", "", 3000, tmp_path)
    theirs: dict[str, str] = services()["open-webui"]["environment"]
    assert theirs["OPENAI_API_BASE_URLS"] == ours["OPENAI_API_BASE_URLS"]
    assert json.loads(theirs["OPENAI_API_CONFIGS"]) == json.loads(ours["OPENAI_API_CONFIGS"])
    compared = set(ours) - ONLY_IN_CONTAINERS - {"DATA_DIR", "OPENAI_API_CONFIGS"}
    assert {name: theirs.get(name) for name in compared} == {name: ours[name] for name in compared}
    assert set(theirs) - set(ours) <= ONLY_IN_CONTAINERS


def test_every_variable_of_compose_stands_in_its_example_of_an_env_file() -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE))
    example = (DOCKER / ".env.example").read_text(encoding="utf-8")
    told = set(re.findall(r"^# (\w+)=", example, re.MULTILINE))
    assert told == used


def test_what_compose_sets_for_the_service_are_its_settings() -> None:
    for name in ("ai-agent-service", "ai-agent-service-prod"):
        unknown = {
            variable
            for variable in services()[name]["environment"]
            if variable.lower() not in Settings.model_fields
        }
        assert not unknown, name


def test_every_container_is_hardened_and_none_is_published_to_others_but_nginx() -> None:
    for name, service in services().items():
        assert service["read_only"] is (name != "open-webui"), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"]["max-size"], name
        assert service["mem_limit"], name
        if name != "nginx":
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
