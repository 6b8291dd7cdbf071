"""Reading the configuration anew while the service runs: what changes, what goes on, and what a
faulty file does."""

import asyncio
import gc
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import httpx2
import msgspec
import pytest
from fastapi import FastAPI

from ai_agent_service.agents.agent import Agent
from ai_agent_service.agents.base import AgentParts
from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ConfigError, ShuttingDownError
from ai_agent_service.core.messages import Message
from ai_agent_service.core.turn import Turn
from ai_agent_service.memory.base import MemorySetup, RememberedTurn, TurnAnswer
from ai_agent_service.observability.audit import audit
from ai_agent_service.observability.logging import LineFormatter
from ai_agent_service.runtime.revision import Changes
from ai_agent_service.runtime.service import Service
from ai_agent_service.server.application import create_app
from tests.support.clients import (
    CHAT,
    asking,
    join_deltas,
    read_chunks,
    read_completion,
    read_error,
)
from tests.support.events import until
from tests.support.fake_provider import Script, calls, says
from tests.support.mcp_rogue import ROGUE, alive, pids
from tests.support.service import AGENT, configuration, open_client, serving

PROMPTED = {
    "agent_id": "helper",
    "system_prompt_file": "helper.txt",
    "provider": "scripted",
    "allowed_regular_tools": ["calculate"],
}
OTHER = {**AGENT, "agent_id": "other"}
REMEMBERING = {**AGENT, "resources": ["memory"]}


class Opened(msgspec.Struct, frozen=True):
    """The running service, a client of it, and its files."""

    app: FastAPI
    client: httpx2.AsyncClient
    folder: Path

    @property
    def service(self) -> Service:
        """The service itself."""
        service: Service = self.app.state.service
        return service

    def write(self, *agents: dict[str, Any], servers: Any = None, **prompts: str) -> None:
        """Rewrites the files; `prompts` are texts by the names of their files without `.txt`."""
        for name, text in prompts.items():
            (self.folder / "prompts" / f"{name}.txt").write_text(text, encoding="utf-8")
        (self.folder / "agent_config.json").write_text(json.dumps(agents), encoding="utf-8")
        if servers is not None:
            (self.folder / "mcp.json").write_text(json.dumps(servers), encoding="utf-8")

    async def reload(self) -> dict[str, Any]:
        """What a reload that succeeds answers."""
        response = await self.client.post("/admin/reload")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def models(self) -> list[str]:
        """The ids of all agents."""
        return [model["id"] for model in (await self.client.get("/v1/models")).json()["data"]]

    async def fingerprint(self, agent: str = "helper") -> str:
        """What an answer of the agent says of its version."""
        fingerprint: str = read_completion(
            await self.client.post(CHAT, json={**asking(), "model": agent})
        )["system_fingerprint"]
        return fingerprint


@asynccontextmanager
async def opened(
    folder: Path, script: Script | None = None, *, servers: Any = None, **given: Any
) -> AsyncGenerator[Opened, None]:
    """The service over files in `folder`."""
    (folder / "prompts").mkdir(exist_ok=True)
    (folder / "prompts" / "helper.txt").write_text("You help.", encoding="utf-8")
    if servers is not None:
        (folder / "mcp.json").write_text(json.dumps(servers), encoding="utf-8")
    app = create_app(configuration(folder, script or Script(says("Hi")), **given))
    async with open_client(app) as client:
        yield Opened(app, client, folder)


def rogue(folder: Path, label: str, *more: str) -> dict[str, Any]:
    """A server that leaves its process's number in a folder of its own."""
    (folder / label).mkdir(exist_ok=True)
    return {
        "server_label": label,
        "command": sys.executable,
        "args": [ROGUE, "well", str(folder / label), *more],
    }


def nothing_but(agents: dict[str, str]) -> dict[str, Any]:
    """What a reload answers that changed nothing."""
    return {**{name: [] for name in Changes.__struct_fields__}, "agents": agents}


def read_lines(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """What is told with the log lines of this event."""
    return [vars(record) for record in caplog.records if record.getMessage() == event]


async def test_agents_are_added_changed_and_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with opened(tmp_path, agents=[PROMPTED, OTHER]) as service:
        first, same = await service.fingerprint(), await service.fingerprint("other")
        service.write(OTHER, {**AGENT, "agent_id": "new"}, PROMPTED, helper="You help better.")
        os.utime(tmp_path / "agent_config.json", (1_700_000_000, 1_700_000_000))
        changes = await service.reload()
        assert await service.models() == ["other", "new", "helper"]
        assert {
            model["created"] for model in (await service.client.get("/v1/models")).json()["data"]
        } == {1_700_000_000}
        versions = {
            view["agent_id"]: view["version"]
            for view in (await service.client.get("/agents")).json()
        }
        assert changes["agents"] == versions
        assert (changes["added_agents"], changes["changed_agents"], changes["removed_agents"]) == (
            ["new"],
            ["helper"],
            [],
        )
        assert await service.fingerprint("other") == same
        assert await service.fingerprint() == f"fp_{versions['helper']}" != first
        service.write(OTHER)
        assert (await service.reload())["removed_agents"] == ["new", "helper"]
        assert (
            read_error(await service.client.post(CHAT, json=asking()), 404)["code"]
            == "model_not_found"
        )
        assert await service.reload() == nothing_but({"other": versions["other"]})
    one, two = read_lines(caplog, "config.reloaded")
    assert (one["added_agents"], one["changed_agents"]) == (
        f"new@{versions['new']}",
        f"helper@{versions['helper']}",
    )
    assert two["removed_agents"] == "new,helper"
    assert len(read_lines(caplog, "config.unchanged")) == 1


async def test_a_running_turn_keeps_the_prompt_and_the_tools_that_it_began_with(
    tmp_path: Path,
) -> None:
    go = asyncio.Event()
    script = Script([go, *calls(("calculate", {"expression": "6*7"}))], says("42"), says("new"))
    async with opened(tmp_path, script, agents=[PROMPTED]) as service:
        before = service.service.catalog.get("helper").version
        async with asyncio.timeout(20):
            running = asyncio.create_task(service.client.post(CHAT, json=asking()))
            await script.waiting.wait()
            service.write({**PROMPTED, "allowed_regular_tools": []}, helper="You refuse.")
            await service.reload()
            go.set()
            old = read_completion(await running)
            new = read_completion(await service.client.post(CHAT, json=asking()))
    assert (old["choices"][0]["message"]["content"], new["choices"][0]["message"]["content"]) == (
        "42",
        "new",
    )
    assert (old["system_fingerprint"], new["system_fingerprint"] != old["system_fingerprint"]) == (
        f"fp_{before}",
        True,
    )
    assert [request.messages[0].text for request in script.requests] == [
        "You help.",
        "You help.",
        "You refuse.",
    ]
    assert [len(request.tools) for request in script.requests] == [1, 1, 0]
    assert script.requests[1].messages[-1].text == "42"


async def test_the_running_turn_of_an_agent_that_is_removed_comes_to_its_end(
    tmp_path: Path,
) -> None:
    go = asyncio.Event()
    script = Script([go, *says("Done.")])
    async with opened(tmp_path, script, agents=[AGENT, OTHER]) as service, asyncio.timeout(20):
        running = asyncio.create_task(service.client.post(CHAT, json=asking(stream=True)))
        await script.waiting.wait()
        service.write(OTHER)
        await service.reload()
        assert (
            read_error(await service.client.post(CHAT, json=asking()), 404)["code"]
            == "model_not_found"
        )
        go.set()
        assert join_deltas(read_chunks(await running)) == "Done."


async def test_an_agent_that_did_not_change_stays_the_object_that_it_is(tmp_path: Path) -> None:
    async with opened(tmp_path, agents=[REMEMBERING, OTHER]) as service:
        before = list(service.service.catalog)
        service.write(REMEMBERING, OTHER, {**AGENT, "agent_id": "new"})
        await service.reload()
        assert [new is old for new, old in zip(service.service.catalog, before, strict=False)] == [
            True,
            True,
        ]


async def test_a_faulty_file_changes_nothing_and_every_fault_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path, agents=[PROMPTED], servers=[rogue(tmp_path, "one")]) as service:
        edition = service.service.revision
        (tmp_path / "prompts" / "helper.txt").unlink()
        wrong = {**AGENT, "agent_id": "b", "sytem_prompt": "x", "provider": "scriptd"}
        service.write(
            PROMPTED, wrong, {**AGENT, "agent_id": "good"}, servers=[{"server_label": "two"}]
        )
        error = read_error(await service.client.post("/admin/reload"), 409)
        assert error["code"] == "configuration_error"
        assert service.service.revision is edition
        assert (await service.models(), await service.fingerprint()) == (
            ["helper"],
            f"fp_{edition.catalog.get('helper').version}",
        )
        faults = error["message"].splitlines()
        with pytest.raises(ConfigError) as caught:
            await service.service.reload()
        assert faults == [str(fault) for fault in caught.value.faults]
        told = [line["fault"] for line in read_lines(caplog, "config.rejected")]
        assert told == [*faults, *faults]
        assert [fault.partition(": ")[0].rpartition("/")[2] for fault in faults] == [
            *["agent_config.json"] * 3,
            "mcp.json",
        ]
        service.write(PROMPTED, servers=[rogue(tmp_path, "one")], helper="You help.")
        changes = await service.reload()
        assert changes == nothing_but(changes["agents"])


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "{}", '"x"', "[1]", "\x00"])
async def test_what_is_no_configuration_is_a_fault_and_no_crash(tmp_path: Path, text: str) -> None:
    async with opened(tmp_path) as service:
        for file in ("agent_config.json", "mcp.json"):
            before = (
                (tmp_path / file).read_text(encoding="utf-8")
                if (tmp_path / file).exists()
                else None
            )
            (tmp_path / file).write_text(text, encoding="utf-8")
            if (file, text) != ("mcp.json", "[]"):
                assert read_error(await service.client.post("/admin/reload"), 409)["message"], (
                    file,
                    text,
                )
            if before is not None:
                (tmp_path / file).write_text(before, encoding="utf-8")
        assert await service.models() == ["helper"]


async def test_a_file_that_is_gone_is_a_fault(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        (tmp_path / "agent_config.json").unlink()
        assert (
            "the file does not exist"
            in read_error(await service.client.post("/admin/reload"), 409)["message"]
        )
        assert await service.models() == ["helper"]


def with_servers(*labels: str) -> dict[str, Any]:
    """`helper`, which may use the servers."""
    return {**AGENT, "allowed_mcp_servers": {label: {} for label in labels}}


async def test_servers_are_added_changed_and_removed_and_one_that_did_not_change_keeps_its_process(
    tmp_path: Path,
) -> None:
    kept, changed, removed, added = (
        rogue(tmp_path, label) for label in ("kept", "changed", "removed", "added")
    )
    async with opened(
        tmp_path,
        agents=[with_servers("kept", "changed", "removed")],
        servers=[kept, changed, removed],
    ) as service:
        await service.service.servers.wait_for_start(30)
        before = {label: alive(tmp_path / label) for label in ("kept", "changed", "removed")}
        assert [len(found) for found in before.values()] == [1, 1, 1]
        changed = rogue(tmp_path, "changed", "again")
        service.write(with_servers("kept", "changed", "added"), servers=[added, kept, changed])
        changes = await service.reload()
        lists = [changes[f"{kind}_servers"] for kind in ("added", "changed", "removed")]
        assert (lists, changes["changed_agents"]) == (
            [["added"], ["changed"], ["removed"]],
            ["helper"],
        )
        await service.service.servers.wait_for_start(30)
        await until(
            lambda: not alive(tmp_path / "removed") and len(alive(tmp_path / "changed")) == 1
        )
        assert alive(tmp_path / "kept") == pids(tmp_path / "kept") == before["kept"]
        assert alive(tmp_path / "changed") != before["changed"]
        health = (await service.client.get("/health?detailed=true")).json()
        assert {
            label: server["state"] for label, server in health["mcp_servers"].items()
        } == dict.fromkeys(("added", "kept", "changed"), "ready")
    await until(
        lambda: (
            not any(alive(tmp_path / label) for label in ("kept", "changed", "removed", "added"))
        )
    )


async def test_a_running_turn_keeps_its_server_which_is_closed_after_it(tmp_path: Path) -> None:
    go = asyncio.Event()
    script = Script([go, *calls(("one__echo", {"text": "still here"}))], says("Done."), says("new"))
    async with opened(
        tmp_path, script, agents=[with_servers("one")], servers=[rogue(tmp_path, "one")]
    ) as service:
        await service.service.servers.wait_for_start(30)
        [process] = alive(tmp_path / "one")
        async with asyncio.timeout(30):
            running = asyncio.create_task(service.client.post(CHAT, json=asking()))
            await script.waiting.wait()
            service.write(with_servers(), servers=[])
            await service.reload()
            service.write(with_servers("one"), servers=[])
            await service.reload()
            assert alive(tmp_path / "one") == [process]
            read_completion(
                await service.client.post(CHAT, json=asking())
            )  # one that began later does not close it
            assert alive(tmp_path / "one") == [process]
            go.set()
            read_completion(await running)
        assert script.requests[-1].messages[-1].text == "still here"
        await until(lambda: not alive(tmp_path / "one"))


async def test_an_old_server_is_closed_at_the_time_limit_of_runs_even_if_a_request_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ai_agent_service.runtime.service.REVISION_GRACE_SECONDS", 0.1)
    async with opened(
        tmp_path,
        agents=[with_servers("one")],
        servers=[rogue(tmp_path, "one")],
        request_timeout=0.5,
    ) as service:
        await service.service.servers.wait_for_start(30)
        service.service.drain_tracker.begin()  # a request that never ends
        service.write(AGENT)
        await service.reload()
        assert alive(tmp_path / "one")
        await until(lambda: not alive(tmp_path / "one"))


async def test_a_new_server_that_hangs_holds_nothing_up(tmp_path: Path) -> None:
    hanging = {
        "server_label": "slow",
        "command": sys.executable,
        "args": [ROGUE, "hangs-in-initialize"],
    }
    async with opened(tmp_path) as service:
        service.write(with_servers("slow"), servers=[hanging])
        async with asyncio.timeout(10):
            await service.reload()
            await service.fingerprint()
        [status] = service.service.servers.statuses
        assert (status.label, status.state) == ("slow", "starting")


async def test_a_variable_of_mcp_json_is_read_anew_and_kept_out_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = {**rogue(tmp_path, "one"), "env": {"ONE_TOKEN": "${ONE_TOKEN}"}}
    caplog.handler.setFormatter(LineFormatter())
    logging.getLogger().addHandler(caplog.handler)
    async with opened(tmp_path, agents=[with_servers("one")], servers=[server]) as service:
        version = service.service.catalog.get("helper").version
        [status] = service.service.servers.statuses
        assert (status.state, status.error) == ("off", "ONE_TOKEN is not set.")
        monkeypatch.setenv("ONE_TOKEN", "canary-of-the-token-7")
        changes = await service.reload()
        assert (changes["changed_servers"], changes["changed_agents"]) == (["one"], [])
        assert service.service.catalog.get("helper").version == version
        await service.service.servers.wait_for_start(30)
        [status] = service.service.servers.statuses
        assert status.state == "ready"
        caplog.clear()
        logging.getLogger("ai_agent_service").warning("it is canary-of-the-token-7")
        assert "it is [redacted]" in caplog.text
        assert "canary" not in caplog.text


async def test_an_agent_that_remembers_may_come_later_and_the_conversations_outlive_reloads(
    tmp_path: Path,
) -> None:
    script = Script(says("Hello, Ada."), says("Ada."))
    async with opened(tmp_path, script) as service:
        assert service.service.memories is None
        service.write(REMEMBERING)
        await service.reload()
        headers = {"X-Session-Id": "s"}
        assert service.service.memories is not None
        read_completion(await service.client.post(CHAT, json=asking("I am Ada."), headers=headers))
        kept = {"memory": {"retention_days": 7, "history_messages": 50}}
        service.write({**REMEMBERING, "system_prompt": "You remember.", "resource_config": kept})
        await service.reload()
        assert service.service.memories.housekeeping.agent_retention_days == {"helper": 7}
        body = {"message": "Who am I?", "session_id": "s"}
        assert (await service.client.post("/agents/helper/chat", json=body)).json()[
            "response"
        ] == "Ada."
        service.write(AGENT)
        await service.reload()
        assert service.service.memories.housekeeping.agent_retention_days == {}
        assert (await service.client.get("/agents/helper/conversations")).status_code == 200
    assert [message.text for message in script.requests[1].messages] == [
        "You remember.",
        "I am Ada.",
        "Hello, Ada.",
        "Who am I?",
    ]


async def test_a_request_that_repeats_a_running_one_joins_it_over_a_reload(tmp_path: Path) -> None:
    go = asyncio.Event()
    script = Script([go, *says("Once.")])
    async with opened(tmp_path, script, agents=[REMEMBERING]) as service, asyncio.timeout(20):
        asked: dict[str, Any] = {"json": asking("Again?"), "headers": {"X-Session-Id": "s"}}
        first = asyncio.create_task(service.client.post(CHAT, **asked))
        await script.waiting.wait()
        service.write({**REMEMBERING, "system_prompt": "Another."})
        await service.reload()
        asked["headers"] = {**asked["headers"], "x-stainless-retry-count": "1"}
        second = asyncio.create_task(service.client.post(CHAT, **asked))
        await until(lambda: service.service.slots.in_use == 2)
        go.set()
        answers = [
            read_completion(await each)["choices"][0]["message"]["content"]
            for each in (first, second)
        ]
    assert answers == ["Once.", "Once."]
    assert len(script.requests) == 1


async def test_reloads_at_once_come_one_after_the_other(tmp_path: Path) -> None:
    async with opened(tmp_path, agents=[PROMPTED]) as service:
        for number in range(20):
            service.write(PROMPTED, helper=f"Prompt {number}.")
            if number % 5 == 0:
                await asyncio.gather(*(service.reload() for _ in range(10)))
        await service.reload()
        assert service.service.catalog.get("helper").definition.system_prompt == "Prompt 19."


async def test_a_caller_that_leaves_does_not_stop_a_reload(tmp_path: Path) -> None:
    async with opened(tmp_path) as service, asyncio.timeout(20):
        service.write(OTHER)
        asked = asyncio.create_task(service.service.reload())
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait((asked,))
        assert asked.cancelled()
        await until(lambda: [agent.agent_id for agent in service.service.catalog] == ["other"])


async def test_a_service_that_stops_does_not_reload(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        service.write(OTHER)
        service.service.shutdown.has_begun = True
        assert (
            read_error(await service.client.post("/admin/reload"), 503)["code"] == "shutting_down"
        )
        with pytest.raises(ShuttingDownError):
            await service.service.reload()
        assert await service.models() == ["helper"]


async def test_the_end_of_the_service_does_not_wait_for_what_an_old_edition_waits_for(
    tmp_path: Path,
) -> None:
    async with asyncio.timeout(30):
        async with opened(
            tmp_path, agents=[with_servers("one")], servers=[rogue(tmp_path, "one")]
        ) as service:
            await service.service.servers.wait_for_start(20)
            service.service.drain_tracker.begin()  # a request that never ends
            service.write(AGENT)
            await service.reload()
            assert alive(tmp_path / "one")
        assert not alive(tmp_path / "one")


async def test_to_reload_is_for_administrators_and_is_audited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = "a-key-of-20-characters"
    async with opened(tmp_path, api_keys=key) as service:
        assert (
            read_error(await service.client.post("/admin/reload"), 401)["code"] == "invalid_api_key"
        )
        caplog.set_level(logging.INFO, audit.name)
        assert (
            await service.client.post("/admin/reload", headers={"x-api-key": key})
        ).status_code == 200
        [line] = read_lines(caplog, "config.reload")
        assert line["key_id"].startswith("env")


class Picky(Agent):
    """An agent type that refuses some prompts."""

    type: ClassVar[str] = "picky"

    def __init__(self, definition: AgentDefinition, parts: AgentParts) -> None:
        if definition.system_prompt == "bad":
            raise RuntimeError("no")
        super().__init__(definition, parts)


class Notebook:
    """A memory that has to be closed by the task that opened it, and counts how many are open."""

    name = "notebook"
    required = False
    problem = None
    open_now: ClassVar[list[str]] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, setup: MemorySetup) -> AsyncGenerator[Self, None]:
        """Open while the block goes on."""
        if setup.agent.system_prompt == "bad":
            raise RuntimeError("no")
        task = asyncio.current_task()
        cls.open_now.append(setup.agent.system_prompt)
        yield cls()
        assert asyncio.current_task() is task
        cls.open_now.remove(setup.agent.system_prompt)

    async def begin(self, context: RunContext, turn: Turn) -> RememberedTurn:
        """Nobody asks."""
        raise NotImplementedError


async def test_an_agent_type_of_a_plug_in_that_refuses_is_a_fault(tmp_path: Path) -> None:
    async with opened(
        tmp_path, agents=[{**AGENT, "type": "picky"}], agent_types=[Picky]
    ) as service:
        service.write({**AGENT, "type": "picky", "system_prompt": "bad"}, OTHER)
        error = read_error(await service.client.post("/admin/reload"), 409)
        assert "agent 'helper': type: it cannot be opened (RuntimeError)" in error["message"]
        assert await service.models() == ["helper"]


async def test_memories_of_plug_ins_are_opened_and_closed_with_their_agents(tmp_path: Path) -> None:
    agent = {
        **AGENT,
        "resources": ["memory"],
        "resource_config": {"memory": {"backend": "notebook"}},
    }
    found = configuration(tmp_path)
    found.plugins.memories["notebook"] = Notebook
    Notebook.open_now.clear()
    async with opened(
        tmp_path, agents=[{**agent, "system_prompt": "1"}], plugins=found.plugins
    ) as service:
        assert Notebook.open_now == ["1"]
        service.write(
            {**agent, "system_prompt": "1"}, {**agent, "agent_id": "b", "system_prompt": "2"}
        )
        await service.reload()
        assert Notebook.open_now == ["1", "2"]
        service.write(
            {**agent, "system_prompt": "3"}, {**agent, "agent_id": "b", "system_prompt": "bad"}
        )
        error = read_error(await service.client.post("/admin/reload"), 409)
        assert (
            "agent 'b': resource_config.memory.backend: it cannot be opened (RuntimeError)"
            in error["message"]
        )
        assert Notebook.open_now == ["1", "2"]
        service.write({**agent, "agent_id": "b", "system_prompt": "2"})
        await service.reload()
        await until(lambda: Notebook.open_now == ["2"])
    assert Notebook.open_now == []


class Slow(Notebook):
    """A memory that takes its time to store an answer."""

    name = "slow"
    storing: ClassVar[asyncio.Event]
    let: ClassVar[asyncio.Event]
    was_open: ClassVar[list[bool]] = []

    async def begin(self, context: RunContext, turn: Turn) -> RememberedTurn:
        """A turn without a past."""
        return SlowTurn(turn.messages)


class SlowTurn(msgspec.Struct):
    """A turn whose answer is stored when the test lets it."""

    messages: tuple[Message, ...]
    answer: TurnAnswer | None = None
    in_progress: str | None = None

    async def compact(self, max_tokens: int) -> tuple[Message, ...] | None:
        """It cannot be."""
        return None

    async def keep(self, answer: TurnAnswer, *, wait: float) -> None:
        """Notes whether the memory is open when the answer is stored."""
        Slow.storing.set()
        await Slow.let.wait()
        Slow.was_open.append("1" in Notebook.open_now)


async def test_a_memory_is_not_closed_while_it_stores_an_answer_whose_caller_has_left(
    tmp_path: Path,
) -> None:
    agent = {**AGENT, "resources": ["memory"], "resource_config": {"memory": {"backend": "slow"}}}
    found = configuration(tmp_path)
    found.plugins.memories["slow"] = Slow
    Notebook.open_now.clear()
    Slow.was_open.clear()
    Slow.storing, Slow.let = asyncio.Event(), asyncio.Event()
    async with (
        asyncio.timeout(30),
        opened(
            tmp_path,
            Script(says("Yes")),
            agents=[{**agent, "system_prompt": "1"}],
            plugins=found.plugins,
        ) as service,
    ):
        running = asyncio.create_task(
            service.client.post(CHAT, json=asking(stream=True), headers={"X-Session-Id": "s"})
        )
        await Slow.storing.wait()
        running.cancel()
        await asyncio.wait((running,))
        service.write({**agent, "system_prompt": "2"})
        await service.reload()
        for _ in range(20):
            await asyncio.sleep(0)
        assert Notebook.open_now == ["1", "2"]
        Slow.let.set()
        await until(lambda: Notebook.open_now == ["2"])
    assert Slow.was_open == [True]


async def test_chunks_and_audit_lines_tell_the_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path, Script(says("a", "b", "c"))) as service:
        version = service.service.catalog.get("helper").version
        caplog.set_level(logging.INFO, audit.name)
        asked = asking(stream=True, stream_options={"include_usage": True})
        chunks = read_chunks(await service.client.post(CHAT, json=asked))
    assert [chunk["system_fingerprint"] for chunk in chunks] == [f"fp_{version}"] * 6
    [line] = read_lines(caplog, "agent.called")
    assert line["agent_version"] == version


async def test_no_request_fails_while_the_service_reloads(tmp_path: Path) -> None:
    script = Script([0.02, *says("Hi ", "there.")])
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "helper.txt").write_text("Prompt.", encoding="utf-8")
    server = rogue(tmp_path, "one")
    (tmp_path / "mcp.json").write_text(json.dumps([server]), encoding="utf-8")
    agent = {**PROMPTED, "allowed_mcp_servers": {"one": {}}, "resources": ["memory"]}
    app = create_app(configuration(tmp_path, script, agents=[agent], max_concurrent_requests=1000))
    seen = set()
    async with serving(app) as address, httpx2.AsyncClient(base_url=address, timeout=30) as client:
        files = Opened(app, client, tmp_path)

        async def ask(number: int) -> None:
            is_stream = number % 2 == 0
            response = await client.post(
                CHAT, json=asking(stream=is_stream), headers={"X-Session-Id": f"s{number}"}
            )
            if is_stream:
                chunks = read_chunks(response)
                assert join_deltas(chunks) == "Hi there."
                seen.add(chunks[0]["system_fingerprint"])
            else:
                seen.add(read_completion(response)["system_fingerprint"])

        async def ask_often(worker: int) -> None:
            for number in range(10):
                await ask(worker * 10 + number)

        asking_all = asyncio.gather(*(ask_often(worker) for worker in range(20)))
        for number in range(10):
            files.write(
                agent,
                servers=[rogue(tmp_path, "one", str(number // 3))],
                helper=f"Prompt {number}.",
            )
            await files.reload()
        await asking_all
        assert len(script.requests) == 200
        assert len(seen) > 1
        await files.service.servers.wait_for_start(30)
        await until(lambda: len(alive(tmp_path / "one")) == 1)
    assert not alive(tmp_path / "one")


@pytest.mark.parametrize("is_on", [True, False])
async def test_files_are_looked_at_where_the_setting_says_so_and_nowhere_else(
    tmp_path: Path, is_on: bool
) -> None:
    async with opened(tmp_path, reload_config=is_on) as service:
        looking = [
            task for task in asyncio.all_tasks() if "_reload_on_change" in repr(task.get_coro())
        ]
        assert len(looking) == is_on
        if is_on:
            service.write(OTHER)
            await until(lambda: [agent.agent_id for agent in service.service.catalog] == ["other"])


async def test_files_that_change_all_the_time_are_read_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ai_agent_service.server.reload_triggers.QUIET_SECONDS", 0.02)
    monkeypatch.setattr("ai_agent_service.server.reload_triggers.POLL_SECONDS", 0.02)
    contents = iter(range(1_000_000))
    monkeypatch.setattr(
        "ai_agent_service.server.reload_triggers.hash_files", lambda *_: b"%d" % next(contents)
    )
    async with opened(tmp_path, reload_config=True) as service:
        service.write(OTHER)
        await until(lambda: [agent.agent_id for agent in service.service.catalog] == ["other"])


async def test_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    async with opened(tmp_path, agents=[{**REMEMBERING, "system_prompt": "0"}]) as service:

        async def often(first: int) -> tuple[int, int]:
            for number in range(first, first + 20):
                service.write({**REMEMBERING, "system_prompt": str(number)})
                await service.reload()
            gc.collect()
            agents = sum(isinstance(each, Agent) for each in gc.get_objects())
            return agents, len(asyncio.all_tasks())

        assert await often(1) == await often(21)


async def test_a_server_definition_tells_its_written_entry_from_its_values() -> None:
    one = ServerDefinition(server_label="a", command="x", written="1")
    assert one == ServerDefinition(server_label="a", command="x", written="1")
    assert one != ServerDefinition(server_label="a", command="x", env={"A": "b"}, written="1")
