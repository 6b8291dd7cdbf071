"""The service with a memory, and the content of its database."""

import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import msgspec
import pytest
from fastapi import FastAPI

from ai_agent_service.memory.opening import Memories
from ai_agent_service.runtime.service import Service
from ai_agent_service.server.application import create_app
from tests.support.clients import CHAT
from tests.support.events import until
from tests.support.fake_provider import Script
from tests.support.postgres import DatabaseUnderTest
from tests.support.service import AGENT, configuration, open_client

HELPER: dict[str, Any] = {**AGENT, "resources": ["memory"], "client_tools": "accept"}
"""An agent that remembers."""


AGENTS = (HELPER, {**HELPER, "agent_id": "other"}, {**AGENT, "agent_id": "forgetful"})


SESSION = {"X-Session-Id": "s"}


class Database(msgspec.Struct, frozen=True):
    """The database's content, read over a connection that is not the service's."""

    under_test: DatabaseUnderTest

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Execute `statement`, commit and return the rows."""
        if self.under_test.kind == "sqlite":
            path = self.under_test.url.removeprefix("sqlite:///")
            with contextlib.closing(
                sqlite3.connect(path, timeout=10, isolation_level=None)
            ) as connection:
                return connection.execute(statement).fetchall()
        connected = await asyncpg.connect(self.under_test.url)
        try:
            return [tuple(row) for row in await connected.fetch(statement)]
        finally:
            await connected.close()

    @asynccontextmanager
    async def locked(self) -> AsyncGenerator[None, None]:
        """Block all other writers during the block; they wait."""
        if self.under_test.kind == "sqlite":
            path = self.under_test.url.removeprefix("sqlite:///")
            with contextlib.closing(
                sqlite3.connect(path, timeout=10, isolation_level=None)
            ) as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield
                connection.execute("ROLLBACK")
            return
        connected = await asyncpg.connect(self.under_test.url)
        try:
            async with connected.transaction():
                await connected.execute("LOCK TABLE sessions, nodes, runs IN EXCLUSIVE MODE")
                yield
        finally:
            await connected.close()

    async def value(self, statement: str) -> Any:
        """Return the one value that `statement` selects."""
        ((value,),) = await self.rows(statement)
        return value

    async def nodes(self) -> list[tuple[str, str, str, str]]:
        """Return role, body, status and origin of every message, in the order of the tree, then of
        storing."""
        found = await self.rows(
            "SELECT role, body, status, origin FROM nodes ORDER BY depth, created_at, body"
        )
        return [
            (role, msgspec.json.decode(body) if body.startswith('"') else body, status, origin)
            for role, body, status, origin in found
        ]

    async def origins(self) -> list[tuple[str, str]]:
        """Return role and origin of every message, in the order of `nodes`."""
        return [(role, origin) for role, _, _, origin in await self.nodes()]

    async def runs(self) -> list[tuple[str, str | None]]:
        """Return status and error of every run, in the order of their start."""
        return [
            (status, error)
            for status, error in await self.rows(
                "SELECT status, error FROM runs ORDER BY started_at"
            )
        ]


class Talking(msgspec.Struct, frozen=True):
    """The running service, and a client of it."""

    app: FastAPI
    client: httpx2.AsyncClient
    script: Script

    @property
    def service(self) -> Service:
        """The service itself."""
        service: Service = self.app.state.service
        return service

    @property
    def memories(self) -> Memories:
        """Its memory."""
        assert self.service.memories is not None
        return self.service.memories

    async def complete(
        self, *messages: Any, headers: dict[str, str] = SESSION, **fields: Any
    ) -> httpx2.Response:
        """Request a chat completion of `messages`: texts of the user and the assistant in turn, or
        whole messages."""
        return await self.client.post(
            CHAT, json={"model": "helper", "messages": in_turn(messages), **fields}, headers=headers
        )

    async def chat(
        self,
        message: str,
        *,
        agent: str = "helper",
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> httpx2.Response:
        """Send one message in the session `s`, with the server's history."""
        return await self.client.post(
            f"/agents/{agent}/chat",
            json={"message": message, "session_id": "s", **fields},
            headers=headers,
        )

    async def under_way(self, number: int) -> None:
        """Wait until this many requests are being answered."""
        await until(lambda: self.service.slots.in_use == number)

    async def settled(self) -> None:
        """Wait for the work that follows answers in the background."""
        await until(lambda: not len(self.memories.tasks))

    async def conversation(
        self, session: str = "s", *, agent: str = "helper", **params: str
    ) -> dict[str, Any]:
        """Return the conversation from the API."""
        response = await self.client.get(f"/agents/{agent}/conversations/{session}", params=params)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def shown(self, session: str = "s", **params: str) -> list[tuple[str, Any, str]]:
        """Return role, content and status of a session's messages from the API."""
        found = await self.conversation(session, **params)
        return [
            (message["role"], message["content"], message["status"])
            for message in found["messages"]
        ]

    def asked(self, number: int = -1) -> list[tuple[str, str]]:
        """Return role and text of the messages sent to the model, without the system message."""
        return [
            (message.role, message.text)
            for message in self.script.requests[number].messages
            if message.role != "system"
        ]


SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""For what does not depend on the kind of database."""


Serve = Callable[..., AbstractAsyncContextManager[Talking]]


def in_turn(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Convert `messages` to the API's form: texts alternate between the user and the assistant."""
    return [
        message
        if isinstance(message, dict)
        else {"role": "assistant" if place % 2 else "user", "content": message}
        for place, message in enumerate(messages)
    ]


@pytest.fixture
def serve(tmp_path: Path, database: DatabaseUnderTest) -> Serve:
    """Run the service in this process over the database, with a script as its provider.

    Several at once act as several replicas.
    """

    @asynccontextmanager
    async def serving(script: Script, **settings: Any) -> AsyncGenerator[Talking, None]:
        app = create_app(
            configuration(tmp_path, script, **{"agents": AGENTS, **database.settings, **settings})
        )
        async with open_client(app) as client:
            yield Talking(app, client, script)

    return serving


@pytest.fixture
def stored(database: DatabaseUnderTest) -> Database:
    """The database's content."""
    return Database(database)
