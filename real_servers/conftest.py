"""The model servers and a service for each, once for all tests; servers that a test killed are
restarted for the next one."""

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from real_servers.servers import PROXY_KEY, ModelServer, litellm, llama
from tests.support.processes import logging_json

WINDOW = 1024
"""The context window of llama.cpp, in tokens."""

PROXY_PROVIDERS = ("openai", "azure_openai", "openrouter")
SHORT = {"max_tokens": 16, "temperature": 0}
LONG = {"max_tokens": 600, "temperature": 0}


class Target(msgspec.Struct, frozen=True):
    """A service, the model server behind it, and the start of the ids of its agents."""

    client: httpx2.Client
    log: Path
    server: ModelServer
    prefix: str

    def ask(self, agent: str, text: str = "Say hello.", **fields: Any) -> httpx2.Response:
        """Send a chat completion to the agent `agent` of this target."""
        return self.client.post("/v1/chat/completions", json=self.request(agent, text, **fields))

    def request(self, agent: str, text: str = "Say hello.", **fields: Any) -> dict[str, Any]:
        """Return the body of a chat completion."""
        messages = [{"role": "user", "content": text}]
        return {"model": f"{self.prefix}-{agent}", "messages": messages, **fields}


def read_begin(pieces: Iterator[str]) -> str:
    """Return a stream up to its third piece of text; the first may be empty."""
    said = ""
    while said.count('"content"') < 3:
        said += next(pieces)
    return said


def build_agent(agent_id: str, provider: str, model: str, **fields: Any) -> dict[str, Any]:
    """Return an agent of the configuration file."""
    return {
        "agent_id": agent_id,
        "system_prompt": "You help.",
        "provider": provider,
        "model": model,
        **fields,
    }


def build_proxy_agents() -> list[dict[str, Any]]:
    """Return the agents of each provider that asks the proxy."""
    tools = {"allowed_regular_tools": ["calculate"]}
    return [
        build_agent(f"{provider}-{name}", provider, model, **fields)
        for provider in PROXY_PROVIDERS
        for name, model, fields in (
            ("short", "mock", {}),
            ("long", "long", {"model_settings": LONG}),
            ("tools", "tools", tools),
            ("unknown", "absent", {}),
        )
    ]


def build_proxy_environment(url: str, key: str) -> dict[str, str]:
    """Return the variables that lead all providers to the proxy at `url`."""
    return {
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": key,
        "AZURE_OPENAI_ENDPOINT": url,
        "AZURE_OPENAI_API_KEY": key,
        "AZURE_OPENAI_API_VERSION": "2024-10-21",
        "OPENROUTER_BASE_URL": f"{url}/v1",
        "OPENROUTER_API_KEY": key,
    }


def serve(
    folder: Path, server: ModelServer, agents: list[dict[str, Any]], **variables: str
) -> Generator[Target, None, None]:
    """Run the service in `folder`; yield it as a target whose prefix is still empty."""
    file = folder / "agents.json"
    file.write_text(json.dumps(agents), encoding="utf-8")
    environment = {"AGENT_CONFIG_FILE": str(file), "no_proxy": "*", **variables}
    with (
        logging_json(folder, ready=1, **environment) as (url, log),
        httpx2.Client(base_url=url, timeout=400) as client,
    ):
        yield Target(client, log, server, "")


@pytest.fixture(scope="session")
def llama_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ModelServer, None, None]:
    """llama.cpp with one slot and a small window."""
    with llama(tmp_path_factory.mktemp("llama"), WINDOW) as server:
        yield server


@pytest.fixture(scope="session")
def proxy_server(
    tmp_path_factory: pytest.TempPathFactory, llama_server: ModelServer
) -> Generator[ModelServer, None, None]:
    """LiteLLM's proxy, in front of mock answers and of llama.cpp."""
    with litellm(tmp_path_factory.mktemp("litellm"), llama_server.url) as server:
        yield server


@pytest.fixture(scope="session")
def llama_service(
    tmp_path_factory: pytest.TempPathFactory, llama_server: ModelServer
) -> Generator[Target, None, None]:
    """The service with llama.cpp as its provider `openai`."""
    memory = {"resources": ["memory"], "model_settings": {"max_tokens": 48}}
    tools = {"allowed_regular_tools": ["calculate"], "model_settings": SHORT}
    endless = {"model_settings": {**LONG, "ignore_eos": True}}
    agents = [
        build_agent("llama-short", "openai", "smollm2", model_settings=SHORT),
        build_agent("llama-long", "openai", "smollm2", **endless),
        build_agent("llama-tools", "openai", "smollm2", **tools),
        build_agent("llama-memory", "openai", "smollm2", **memory),
    ]
    folder = tmp_path_factory.mktemp("llama-service")
    base_url = f"{llama_server.url}/v1"
    yield from serve(folder, llama_server, agents, OPENAI_BASE_URL=base_url)


@pytest.fixture(scope="session")
def proxy_service(
    tmp_path_factory: pytest.TempPathFactory, proxy_server: ModelServer
) -> Generator[Target, None, None]:
    """The service with LiteLLM behind three of its providers."""
    environment = build_proxy_environment(proxy_server.url, PROXY_KEY)
    folder = tmp_path_factory.mktemp("proxy-service")
    yield from serve(folder, proxy_server, build_proxy_agents(), **environment)


@pytest.fixture(scope="session")
def refused_service(
    tmp_path_factory: pytest.TempPathFactory, proxy_server: ModelServer
) -> Generator[Target, None, None]:
    """The same with a key that LiteLLM does not know."""
    environment = build_proxy_environment(proxy_server.url, "sk-wrong")
    folder = tmp_path_factory.mktemp("refused-service")
    yield from serve(folder, proxy_server, build_proxy_agents(), **environment)


@pytest.fixture(params=PROXY_PROVIDERS)
def proxy(request: pytest.FixtureRequest, proxy_service: Target) -> Target:
    """LiteLLM as one of the providers."""
    proxy_service.server.start()
    return msgspec.structs.replace(proxy_service, prefix=request.param)


@pytest.fixture(params=PROXY_PROVIDERS)
def refused(request: pytest.FixtureRequest, refused_service: Target) -> Target:
    """LiteLLM as one of the providers, with a wrong key."""
    refused_service.server.start()
    return msgspec.structs.replace(refused_service, prefix=request.param)


@pytest.fixture
def llama_target(llama_service: Target) -> Target:
    """llama.cpp as the provider `openai`."""
    llama_service.server.start()
    return msgspec.structs.replace(llama_service, prefix="llama")


@pytest.fixture(params=["llama", *PROXY_PROVIDERS])
def target(request: pytest.FixtureRequest) -> Target:
    """Each server, by each provider that can ask it."""
    is_llama = request.param == "llama"
    service: Target = request.getfixturevalue("llama_service" if is_llama else "proxy_service")
    request.getfixturevalue("llama_server").start()
    service.server.start()
    return msgspec.structs.replace(service, prefix=request.param)
