"""The service over each kind of database, and eyes that see what is really stored there."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ai_agent_service.server.application import create_app
from tests.support.fake_provider import Script
from tests.support.memory import AGENTS, Database, Serve, Talking
from tests.support.postgres import DatabaseUnderTest
from tests.support.service import client_of, configuration


@pytest.fixture
def serve(tmp_path: Path, database: DatabaseUnderTest) -> Serve:
    """Runs the service in this process over the database, with a script as its provider; several at
    once are as several replicas."""

    @asynccontextmanager
    async def serving(script: Script, **settings: Any) -> AsyncGenerator[Talking, None]:
        app = create_app(
            configuration(tmp_path, script, **{"agents": AGENTS, **database.settings, **settings})
        )
        async with client_of(app) as client:
            yield Talking(app, client, script)

    return serving


@pytest.fixture
def stored(database: DatabaseUnderTest) -> Database:
    """What is really stored."""
    return Database(database)
