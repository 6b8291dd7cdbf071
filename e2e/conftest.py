"""The model, the service, Open WebUI and a browser, each once for all tests, and a page for each
test."""

import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from e2e.model import Model
from e2e.pages import Chat
from e2e.processes import open_webui, service

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
SCREENSHOTS = Path(__file__).parent / "screenshots"
PASSWORD = "correct horse battery staple"


class User(msgspec.Struct, frozen=True):
    """A user of Open WebUI; `token` is what their browser logs in with."""

    id: str
    name: str
    token: str


class World(msgspec.Struct, frozen=True):
    """All that runs: the addresses, the databases' files, the users."""

    model: Model
    service_url: str
    webui_url: str
    service_database: Path
    webui_database: Path
    ada: User
    ben: User


@pytest.fixture(scope="session")
def model() -> Generator[Model, None, None]:
    """The model behind the agents."""
    with Model.running() as model:
        yield model


@pytest.fixture(scope="session")
def world(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Generator[World, None, None]:
    """The service and Open WebUI, with two users: Ada, the administrator, and Ben."""
    folder = tmp_path_factory.mktemp("e2e")
    with (
        service(folder / "service", model.url) as service_url,
        open_webui(folder / "webui", service_url) as webui_url,
    ):
        with httpx2.Client(base_url=f"{webui_url}/api/v1", timeout=20) as client:
            ada = (
                client.post(
                    "/auths/signup",
                    json={"name": "Ada", "email": "ada@example.com", "password": PASSWORD},
                )
                .raise_for_status()
                .json()
            )
            client.headers["authorization"] = f"Bearer {ada['token']}"
            ben = {"name": "Ben", "email": "ben@example.com", "password": PASSWORD, "role": "user"}
            ben = client.post("/auths/add", json=ben).raise_for_status().json()
            for token in (ada["token"], ben["token"]):
                seen = {
                    "ui": {"showChangelog": False, "showUpdateToast": False, "version": "9.9.9"}
                }
                client.post(
                    "/users/user/settings/update",
                    json=seen,
                    headers={"authorization": f"Bearer {token}"},
                ).raise_for_status()
        yield World(
            model=model,
            service_url=service_url,
            webui_url=webui_url,
            service_database=folder / "service" / "data" / "ai-agent-service.db",
            webui_database=folder / "webui" / "webui.db",
            ada=User(ada["id"], "Ada", ada["token"]),
            ben=User(ben["id"], "Ben", ben["token"]),
        )


@pytest.fixture(scope="session")
def browser() -> Generator[Browser, None, None]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless=new", *FLAGS], headless=True
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def window(
    browser: Browser, world: World
) -> Generator[Callable[[User], BrowserContext], None, None]:
    """The window of a user, who is logged in there; windows share nothing."""
    windows: dict[str, BrowserContext] = {}

    def opened(user: User) -> BrowserContext:
        if user.id not in windows:
            storage: Any = {
                "cookies": [{"name": "token", "value": user.token, "url": world.webui_url}],
                "origins": [
                    {
                        "origin": world.webui_url,
                        "localStorage": [{"name": "token", "value": user.token}],
                    }
                ],
            }
            windows[user.id] = browser.new_context(
                viewport={"width": 1280, "height": 900}, storage_state=storage, locale="en-GB"
            )
            windows[user.id].set_default_timeout(15_000)
        return windows[user.id]

    yield opened
    for context in windows.values():
        context.close()


@pytest.fixture
def open_chat(
    window: Callable[[User], BrowserContext], world: World, request: pytest.FixtureRequest
) -> Generator[Callable[[User], Chat], None, None]:
    """Opens a new page for a user."""
    pages: list[Page] = []
    SCREENSHOTS.mkdir(exist_ok=True)

    def opened(user: User) -> Chat:
        pages.append(window(user).new_page())
        return Chat(pages[-1], world.webui_url, SCREENSHOTS / f"{request.node.name}-{user.name}")

    yield opened
    for page in pages:
        page.close()


@pytest.fixture
def chat(open_chat: Callable[[User], Chat], world: World) -> Chat:
    """A new chat of Ada's."""
    return open_chat(world.ada)


def rows(database: Path, statement: str, *values: object) -> list[dict[str, Any]]:
    """What a query comes to, read from a database that its process has open."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement, values)]
