"""The service with API keys."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from fastapi import FastAPI

from ai_agent_service.auth.keys.store import DEFAULT_RIGHTS, KeyStore
from ai_agent_service.server.application import create_app
from ai_agent_service.storage.encryption import Cipher
from tests.support.fake_provider import Script, says
from tests.support.memory import HELPER
from tests.support.service import configuration, open_client

AGENTS = (HELPER, {**HELPER, "agent_id": "other"})


class Opened:
    """The service over an SQLite file, with the store of its keys."""

    def __init__(self, app: FastAPI, client: httpx2.AsyncClient) -> None:
        self.app = app
        self.client = client
        self.keys = KeyStore(app.state.service.memories.database, pepper=None, cipher=Cipher(()))

    async def key(self, name: str, tenant: str | None = None, **rights: Any) -> dict[str, str]:
        """Create a key and return its header."""
        wanted = msgspec.structs.replace(DEFAULT_RIGHTS, **rights)
        return bearer((await self.keys.create(name, wanted, tenant=tenant)).text)


def bearer(key: str) -> dict[str, str]:
    """Return the header that sends a key."""
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def opened(
    folder: Path, script: Script | None = None, **settings: Any
) -> AsyncGenerator[Opened, None]:
    """Open the service with agents that have a memory."""
    app = create_app(
        configuration(folder, script or Script(says("Hi")), **{"agents": AGENTS, **settings})
    )
    async with open_client(app) as client:
        yield Opened(app, client)
