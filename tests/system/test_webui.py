"""`make webui`: what it says, what it sets and how it ends, with a real service and a stand-in for
Open WebUI."""

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path

import pytest

from ai_agent_service.config.settings import Settings
from tests.support.processes import ROOT, environment, serving
from tests.support.scripts import load_script

KEY = "k-0123456789-0123456789"
STAND_IN = """#!{python}
import http.server, json, os, pathlib, signal, sys
started = {{"arguments": sys.argv[1:], "environment": dict(os.environ)}}
pathlib.Path("started.json").write_text(json.dumps(started))
print("booting", flush=True)
if "STAND_IN_ENDS" in os.environ:
    sys.exit(3)
if "STAND_IN_STAYS" in os.environ:
    signal.signal(signal.SIGTERM, lambda *_: print("told to stop", flush=True))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        if self.path == "/end":
            os._exit(4)

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Generator[str, None, None]:
    """The address of a service that wants no key."""
    with serving(tmp_path_factory.mktemp("service")) as (url, _):
        yield url


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Generator[str, None, None]:
    """The address of a service that wants KEY."""
    with serving(tmp_path_factory.mktemp("locked"), API_KEYS=KEY) as (url, _):
        yield url


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """An executable in place of open-webui, which writes down how it was started."""
    file = tmp_path / "open-webui"
    file.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
    file.chmod(0o755)
    return file


def webui(folder: Path, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    """The script, with its data in `folder`, and its two outputs as one."""
    command = [
        sys.executable,
        str(ROOT / "scripts" / "webui.py"),
        "--data-dir",
        str(folder / "data"),
        *arguments,
    ]
    ours = {
        name: value
        for name, value in environment(**variables).items()
        if name in variables or not re.search("WEBUI|OPENAI_API", name)
    }
    return subprocess.Popen(
        command, cwd=folder, env=ours, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(folder: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """The code that the script ends with, and all it said."""
    process = webui(folder, *arguments, **variables)
    said, _ = process.communicate(timeout=30)
    assert "Traceback" not in said
    return process.returncode, said


@contextlib.contextmanager
def running(
    folder: Path, *arguments: str, **variables: str
) -> Generator[tuple[str, "subprocess.Popen[str]"], None, None]:
    """The script once the stand-in is healthy; gives the line that it says then."""
    process = webui(folder, *arguments, **variables)
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "is ready: " in line:
                break
        assert "is ready: " in said, said
        yield said, process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def started(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The arguments and the environment that the stand-in was started with."""
    found = json.loads((folder / "data" / "started.json").read_text(encoding="utf-8"))
    return found["arguments"], found["environment"]


@contextlib.contextmanager
def taken_port() -> Generator[int, None, None]:
    """A port of this machine that somebody listens on, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        yield somebody.getsockname()[1]


def test_it_says_where_to_go_and_which_agents_are_there(
    tmp_path: Path, stand_in: Path, service: str
) -> None:
    with running(tmp_path, "--command", str(stand_in), "--port", "0", SERVICE_URL=service) as (
        said,
        _,
    ):
        [line] = [line for line in said.splitlines() if "is ready: " in line]
        address = line.split("is ready: ")[1].split()[0]
        assert "(agents: research_agent, cli_agent; " in line
        with urllib.request.urlopen(f"{address}/health", timeout=5) as response:
            assert response.status == 200
    arguments, _ = started(tmp_path)
    assert arguments == ["serve", "--host", "127.0.0.1", "--port", address.rsplit(":", 1)[1]]


def test_open_webui_is_connected_to_the_service_and_to_nothing_else(
    tmp_path: Path, stand_in: Path, locked: str
) -> None:
    with running(
        tmp_path,
        "--command",
        str(stand_in),
        "--port",
        "0",
        "--service-url",
        f"{locked}/v1/",
        AAS_API_KEY=KEY,
    ):
        _, told = started(tmp_path)
    assert (told["OPENAI_API_BASE_URLS"], told["OPENAI_API_KEYS"]) == (f"{locked}/v1", KEY)
    assert json.loads(told["OPENAI_API_CONFIGS"]) == {
        "0": {
            "enable": True,
            "headers": {
                "X-AAS-Task": "{{TASK}}",
                "X-AAS-Message": "{{MESSAGE_ID}}",
                "X-AAS-Parent": "{{USER_MESSAGE_PARENT_ID}}",
            },
        }
    }
    assert (told["ENABLE_OLLAMA_API"], told["OFFLINE_MODE"], told["ANONYMIZED_TELEMETRY"]) == (
        "false",
        "true",
        "false",
    )
    assert (told["WEBUI_AUTH"], told["ENABLE_PERSISTENT_CONFIG"]) == ("False", "False")
    assert (told["ENABLE_FORWARD_USER_INFO_HEADERS"], told["BYPASS_MODEL_ACCESS_CONTROL"]) == (
        "true",
        "true",
    )
    assert told["DATA_DIR"] == str(tmp_path / "data")
    assert "127.0.0.1" in told["no_proxy"].split(",")
    assert not re.search(r"\*", told["CORS_ALLOW_ORIGIN"])


def test_what_the_user_has_set_wins(tmp_path: Path, stand_in: Path, service: str) -> None:
    theirs = {
        "WEBUI_AUTH": "True",
        "OPENAI_API_CONFIGS": "{}",
        "WEBUI_SECRET_KEY": "their own",
        "RAG_EMBEDDING_MODEL": "theirs",
        "FORWARD_USER_INFO_HEADER_JWT_SECRET": "s" * 32,
    }
    with running(
        tmp_path, "--command", str(stand_in), "--port", "0", SERVICE_URL=service, **theirs
    ):
        _, told = started(tmp_path)
    assert {name: told[name] for name in theirs} == theirs
    assert not (tmp_path / "data" / "secret-key").exists()


def test_what_is_meant_for_the_service_does_not_reach_open_webui(
    tmp_path: Path, stand_in: Path, service: str
) -> None:
    services = {
        "DATABASE_URL": "sqlite:///service.db",
        "DATABASE_POOL_SIZE": "7",
        "OPENAI_API_KEY": "sk-x",
        "OLLAMA_BASE_URL": "http://o",
    }
    assert {name.lower() for name in services} <= set(Settings.model_fields)
    with running(
        tmp_path,
        "--command",
        str(stand_in),
        "--port",
        "0",
        SERVICE_URL=service,
        DATA_DIR="/nowhere",
        **services,
    ):
        _, told = started(tmp_path)
    assert services.keys() & told.keys() == set()
    assert told["DATA_DIR"] == str(tmp_path / "data")


def test_sessions_outlive_a_restart_by_a_secret_that_only_the_owner_reads(
    tmp_path: Path, stand_in: Path, service: str
) -> None:
    seen = []
    for _ in range(2):
        with running(tmp_path, "--command", str(stand_in), "--port", "0", SERVICE_URL=service):
            seen.append(started(tmp_path)[1]["WEBUI_SECRET_KEY"])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 64
    assert (tmp_path / "data" / "secret-key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_told_to_stop_it_stops_open_webui_and_ends_well(
    tmp_path: Path, stand_in: Path, told: signal.Signals, service: str
) -> None:
    with running(tmp_path, "--command", str(stand_in), "--port", "0", SERVICE_URL=service) as (
        said,
        process,
    ):
        address = said.split("is ready: ")[1].split()[0]
        process.send_signal(told)
        assert process.wait(20) == 0
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(address, timeout=5)


def test_told_twice_it_does_not_wait_for_open_webui(
    tmp_path: Path, stand_in: Path, service: str
) -> None:
    with running(
        tmp_path, "--command", str(stand_in), "--port", "0", SERVICE_URL=service, STAND_IN_STAYS="1"
    ) as (_, process):
        assert process.stdout is not None
        process.send_signal(signal.SIGINT)
        assert "Stopping" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(8) == 0


def test_open_webui_that_does_not_start_is_told_with_the_end_of_its_log(
    tmp_path: Path, stand_in: Path, service: str
) -> None:
    code, said = ended(
        tmp_path, "--command", str(stand_in), "--port", "0", SERVICE_URL=service, STAND_IN_ENDS="1"
    )
    assert code == 1
    assert "Open WebUI ended with code 3 while starting.\n  booting\nIts log is " in said


def test_open_webui_that_ends_by_itself_is_told(
    tmp_path: Path, stand_in: Path, service: str
) -> None:
    with running(tmp_path, "--command", str(stand_in), "--port", "0", SERVICE_URL=service) as (
        said,
        process,
    ):
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(
                said.split("is ready: ")[1].split()[0] + "/end", timeout=5
            ) as response,
        ):
            response.read()
        assert process.wait(20) == 1


def test_it_says_what_to_do_when_no_service_answers(tmp_path: Path) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}"
        code, said = ended(tmp_path, "--command", "x", SERVICE_URL=url)
    assert code == 2
    assert said.startswith(f"No service answers at {url} (")
    assert "make run" in said
    assert "make webui SERVICE_URL=" in said


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("", ("wants a key", "keys create --name open-webui", "AAS_API_KEY=aas_... make webui")),
        ("wrong", ("does not accept the key",)),
    ],
)
def test_it_says_what_to_do_when_the_service_wants_a_key(
    tmp_path: Path, key: str, told: tuple[str, ...], locked: str
) -> None:
    code, said = ended(tmp_path, "--command", "x", SERVICE_URL=locked, AAS_API_KEY=key)
    assert code == 2
    assert [part for part in told if part not in said] == []


@pytest.mark.parametrize("key", ["aas_\nx", "schlüssel"])
def test_a_key_that_none_can_be_is_told(tmp_path: Path, key: str) -> None:
    assert ended(tmp_path, "--command", "x", AAS_API_KEY=key) == (
        2,
        "AAS_API_KEY has characters that no key has.\n",
    )


@pytest.mark.parametrize(
    "url", ["nowhere", "http://127.0.0.1:port", "http://", "gopher://127.0.0.1"]
)
def test_an_address_that_is_none_is_told(tmp_path: Path, url: str) -> None:
    code, said = ended(tmp_path, "--command", "x", SERVICE_URL=url)
    assert code == 2
    assert url in said


def test_something_else_at_the_address_is_told(
    tmp_path: Path, stand_in: Path, service: str
) -> None:
    with running(tmp_path, "--command", str(stand_in), "--port", "0", SERVICE_URL=service) as (
        said,
        _,
    ):
        code, said = ended(
            tmp_path, "--command", "x", SERVICE_URL=said.split("is ready: ")[1].split()[0]
        )
    assert code == 2
    assert "is no AI Agent Service: GET /v1/models is not a list of models" in said


def test_a_port_that_was_named_and_is_taken_is_told(
    tmp_path: Path, stand_in: Path, service: str
) -> None:
    with taken_port() as port:
        code, said = ended(
            tmp_path, "--command", str(stand_in), SERVICE_URL=service, WEBUI_PORT=str(port)
        )
    assert code == 2
    assert said.startswith(f"Port {port} cannot be used (")


def test_the_next_free_port_is_taken_when_none_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("webui")
    with taken_port() as taken, taken_port() as free:
        monkeypatch.setattr(script, "PORTS", (taken, free))
        with pytest.raises(script.Problem, match="are all in use"):
            script.free_port(None)
    with taken_port() as taken:
        monkeypatch.setattr(script, "PORTS", (taken, free))
        assert script.free_port(None) == free


@pytest.mark.parametrize("port", ["x", "-1", "70000"])
def test_a_port_that_is_none_is_told(
    tmp_path: Path, stand_in: Path, port: str, service: str
) -> None:
    code, said = ended(tmp_path, "--command", str(stand_in), "--port", port, SERVICE_URL=service)
    assert code == 2
    assert port in said


def test_a_command_that_cannot_be_run_and_a_folder_that_cannot_be_written_are_told(
    tmp_path: Path, service: str
) -> None:
    (tmp_path / "file").touch()
    absent = ended(tmp_path, "--command", "/absent/open-webui", "--port", "0", SERVICE_URL=service)
    folder = ended(
        tmp_path,
        "--command",
        "x",
        "--port",
        "0",
        "--data-dir",
        str(tmp_path / "file"),
        SERVICE_URL=service,
    )
    assert absent == (2, "/absent/open-webui cannot be run: No such file or directory\n")
    assert folder[0] == 2
    assert "file cannot be used for Open WebUI's data" in folder[1]


def test_a_python_that_open_webui_does_not_run_on_is_told(tmp_path: Path) -> None:
    script = load_script("webui")
    for name, code in (("python3.12", 1), ("python3.11", 0)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    assert script.interpreter((3, 13), str(tmp_path)) == str(tmp_path / "python3.11")
    (tmp_path / "python3.11").unlink()
    with pytest.raises(
        script.Problem, match=r"needs Python 3\.11 or 3\.12, and this is 3\.13\.\n.*PYTHON="
    ):
        script.interpreter((3, 13), str(tmp_path))
    assert script.interpreter((3, 12), str(tmp_path)) == sys.executable


@pytest.mark.slow
def test_it_installs_what_the_lock_says_once_and_anew_when_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("webui")
    lock = tmp_path / "lock"
    lock.touch()
    monkeypatch.setattr(script, "LOCK", lock)
    monkeypatch.setattr(script, "ENVIRONMENT", tmp_path / "env")
    monkeypatch.setattr(script, "interpreter", lambda _: sys.executable)
    script.install()
    assert "Installing Open WebUI" in capsys.readouterr().out
    script.install()
    assert capsys.readouterr().out == ""
    lock.write_text(
        f"absent @ file://{tmp_path}/absent-1-py3-none-any.whl --hash=sha256:{'0' * 64}\n",
        encoding="utf-8",
    )
    with pytest.raises(script.Failed, match="could not be installed"):
        script.install()
    assert not (tmp_path / "env" / "stamp").exists()


def test_the_lock_has_open_webui_and_leaves_out_what_it_does_without() -> None:
    pinned = set(
        re.findall(
            r"^([a-z0-9-]+)(?:\[[^\]]*\])?==",
            (ROOT / "requirements-webui.lock").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
    left_out = set(
        re.findall(
            r"^[a-z0-9-]+",
            (ROOT / "webui" / "left-out.in").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
    assert "open-webui" in pinned
    assert pinned & (left_out | {"torch", "triton"}) == set()
    assert not any(name.startswith("nvidia-") for name in pinned)
    assert os.access(ROOT / "scripts" / "webui.py", os.X_OK)


def test_the_page_on_open_webui_has_its_headers_and_variables_as_the_script_sets_them(
    tmp_path: Path,
) -> None:
    script = load_script("webui")
    page = (ROOT / "docs" / "open-webui.md").read_text(encoding="utf-8")
    configs = [json.loads(text) for text in re.findall(r"'(\{\"0\".*)'", page)]
    assert configs == [{"0": {"enable": True, "headers": script.HEADERS}}] * 2
    [of_a_connection] = re.findall(r"\| Headers \| `(.*)` \|", page)
    assert json.loads(of_a_connection) == script.HEADERS
    told = script.variables({}, "http://s", "", 3000, tmp_path)
    assert [name for name in [*told, *script.THE_SERVICES] if f"`{name}`" not in page] == []


def test_a_redirect_does_not_get_the_key(tmp_path: Path, stand_in: Path) -> None:
    seen: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self.send_response(302)
                self.send_header("location", f"http://127.0.0.1:{port}/elsewhere")
            else:
                seen.append(self.headers["authorization"])
                self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = ("--service-url", f"http://127.0.0.1:{port}", "--command", str(stand_in))
        code, said = ended(tmp_path, *where, AAS_API_KEY=KEY)
        server.shutdown()
    assert (code, seen) == (2, [])
    assert "GET /v1/models came to 302" in said
