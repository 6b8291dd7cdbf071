#!/usr/bin/env python3
"""Starts Open WebUI with the agents of a running AI Agent Service, from an environment of its own
that is installed first.

Ends with 0 when told to stop, 1 when Open WebUI does not start or ends by itself, 2 when something
has to be put right first, and 130 when it is broken off before Open WebUI is started. It needs
Python alone, and not one that Open WebUI runs on, which is 3.11 or 3.12.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".webui"
LOCK = ROOT / "requirements-webui.lock"
PORTS = range(3000, 3020)
START_SECONDS = 180
STOP_SECONDS = 10
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HEADERS = {
    "X-AAS-Task": "{{TASK}}",
    "X-AAS-Message": "{{MESSAGE_ID}}",
    "X-AAS-Parent": "{{USER_MESSAGE_PARENT_ID}}",
}
THE_SERVICES = (
    "DATABASE_URL",
    "DATABASE_POOL_SIZE",
    "DATA_DIR",
    "OLLAMA_BASE_URL",
    "OPENAI_API_KEY",
)
"""Variables that the service and Open WebUI both read: those in the environment are meant for the
service, down to its database."""


class NoRedirectHandler(urllib.request.HTTPRedirectHandler):
    """Reports a redirect as an error, so that the key goes to no other address."""

    def redirect_request(self, *arguments: object) -> None:
        """Follow nothing."""


class Problem(Exception):
    """What has to be put right first, in words for the terminal."""


class Failed(Exception):
    """That Open WebUI did not start, or ended, and why."""


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with variables of the environment for what it does not say."""

    def variable(name: str, default: str | None = None) -> str | None:
        return os.environ.get(name) or default

    parser = argparse.ArgumentParser(
        prog="webui", description="Start Open WebUI with the agents of a running AI Agent Service."
    )
    add = parser.add_argument
    add("--install-only", action="store_true", help="install Open WebUI into .webui and end")
    add(
        "--service-url",
        default=variable("SERVICE_URL", "http://127.0.0.1:8000"),
        help="where the service is (SERVICE_URL)",
    )
    add(
        "--port",
        type=int,
        default=variable("WEBUI_PORT"),
        help="port to listen on, 0 for any (WEBUI_PORT; the first free one from 3000)",
    )
    add(
        "--data-dir",
        type=Path,
        default=variable("WEBUI_DATA_DIR"),
        help="Open WebUI's own data (WEBUI_DATA_DIR; data/open-webui)",
    )
    add(
        "--command",
        default=variable("WEBUI_COMMAND"),
        help="an open-webui that is there already, instead of .webui's (WEBUI_COMMAND)",
    )
    return parser.parse_args(arguments)


def interpreter(running: tuple[int, int], path: str | None = None) -> str:
    """A Python that Open WebUI runs on: the one that runs this, or else one on the search path.
    Raises Problem."""
    if (3, 11) <= running <= (3, 12):
        return sys.executable
    for name in ("python3.12", "python3.11"):
        found = shutil.which(name, path=path)
        # A version manager has commands for versions that it does not have.
        if (
            found
            and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0
        ):
            return found
    raise Problem(
        f"Open WebUI needs Python 3.11 or 3.12, and this is {running[0]}.{running[1]}.\n"
        "Install one of them beside it and name it: make webui PYTHON=/path/to/python3.12"
    )


def install() -> None:
    """Installs what the lock says, unless that is there. Raises Problem and Failed."""
    stamp = ENVIRONMENT / "stamp"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    python = interpreter(sys.version_info[:2])
    say(
        f"Installing Open WebUI into {ENVIRONMENT.name} (once: about 0.8 GB, a minute or a few) ..."
    )
    if subprocess.run([python, "-m", "venv", "--clear", str(ENVIRONMENT)], check=False).returncode:
        raise Problem(
            "Python has no venv module here; on Debian or Ubuntu: apt-get install python3-venv"
        )
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    how = [
        "install",
        "--no-deps",
        "--require-hashes",
        "--no-compile",
        *([] if sys.stdout.isatty() else ["--quiet"]),
    ]
    if subprocess.run([*pip, *how, "-r", str(LOCK)], check=False).returncode:
        raise Failed(
            "Open WebUI could not be installed: pip says why above. Try again: what was fetched is"
            " kept."
        )
    stamp.write_text(wanted, encoding="utf-8")


def agents_of(url: str, key: str) -> list[str]:
    """The agents that the service at `url` lists for `key`. Raises Problem."""
    if not (key.isascii() and key.isprintable()):
        raise Problem("AAS_API_KEY has characters that no key has.")
    try:
        request = urllib.request.Request(
            f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {}
        )
        opener = urllib.request.build_opener(NoRedirectHandler)
        with opener.open(request, timeout=10) as response:
            return [str(model["id"]) for model in json.load(response)["data"]]
    except urllib.error.HTTPError as error:
        if error.code == 401 and key:
            raise Problem(
                f"The service at {url} does not accept the key in AAS_API_KEY. `ai-agent-service"
                " keys list` shows its keys."
            ) from None
        if error.code == 401:
            raise Problem(
                f"The service at {url} wants a key. Make one, and give it to Open WebUI:\n"
                "  .venv/bin/ai-agent-service keys create --name open-webui\n"
                "  AAS_API_KEY=aas_... make webui"
            ) from None
        raise Problem(
            f"What answers at {url} is no AI Agent Service that is ready: GET /v1/models came to"
            f" {error.code}."
        ) from None
    except (
        json.JSONDecodeError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        http.client.BadStatusLine,
    ):
        raise Problem(
            f"What answers at {url} is no AI Agent Service: GET /v1/models is not a list of models."
        ) from None
    except OSError as error:
        raise Problem(
            f"No service answers at {url} ({getattr(error, 'reason', error)}).\nStart it in another"
            " terminal (make run), or say where it is: make webui"
            " SERVICE_URL=http://127.0.0.1:8000"
        ) from None
    except (ValueError, http.client.InvalidURL) as error:
        raise Problem(
            f"SERVICE_URL {url!r} is not an address such as http://127.0.0.1:8000: {error}"
        ) from None


def listens(port: int) -> int:
    """The port itself, or a free one for 0. Raises OSError if it cannot be had."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return int(probe.getsockname()[1])


def free_port(named: int | None) -> int:
    """The port that was named, or else the first that is free. Raises Problem."""
    if named is not None:
        try:
            return listens(named)
        except (OSError, OverflowError) as error:
            raise Problem(
                f"Port {named} cannot be used ({error}). Name another: make webui WEBUI_PORT=3100"
            ) from None
    for port in PORTS:
        with contextlib.suppress(OSError):
            return listens(port)
    raise Problem(
        f"The ports {PORTS[0]} to {PORTS[-1]} are all in use. Name another: make webui"
        " WEBUI_PORT=3100"
    )


def secret_of(folder: Path) -> str:
    """What Open WebUI signs its sessions with, made once and kept in `folder` for its owner
    alone."""
    file = folder / "secret-key"
    file.touch(mode=0o600)
    if not file.read_text(encoding="utf-8"):
        file.write_text(secrets.token_hex(32), encoding="utf-8")
    return file.read_text(encoding="utf-8")


def variables(
    environment: Mapping[str, str], url: str, key: str, port: int, folder: Path
) -> dict[str, str]:
    """The environment of Open WebUI: what connects it to the service at `url`, unless `environment`
    says otherwise."""
    ours = {
        "OPENAI_API_BASE_URLS": f"{url}/v1",
        "OPENAI_API_KEYS": key or "none",
        "OPENAI_API_CONFIGS": json.dumps({"0": {"enable": True, "headers": HEADERS}}),
        "ENABLE_FORWARD_USER_INFO_HEADERS": "true",
        "ENABLE_OLLAMA_API": "false",
        "BYPASS_MODEL_ACCESS_CONTROL": "true",
        "ENABLE_PERSISTENT_CONFIG": "False",
        "WEBUI_AUTH": "False",
        "CORS_ALLOW_ORIGIN": f"http://127.0.0.1:{port};http://localhost:{port}",
        # Nothing leaves this machine: no telemetry, no look for a new version, no models from a
        # hub.
        "OFFLINE_MODE": "true",
        "ANONYMIZED_TELEMETRY": "false",
        "DO_NOT_TRACK": "true",
        "SCARF_NO_ANALYTICS": "true",
        # No embedding model is installed: files go to the agent whole, and agents have a memory of
        # their own.
        "RAG_EMBEDDING_MODEL": "",
        "BYPASS_EMBEDDING_AND_RETRIEVAL": "true",
        # Documents come beside the question, which then stays the same in the next request.
        "RAG_SYSTEM_CONTEXT": "True",
        "ENABLE_MEMORIES": "False",
    }
    theirs = {name: value for name, value in environment.items() if name not in THE_SERVICES}
    if "WEBUI_SECRET_KEY" not in theirs:
        ours["WEBUI_SECRET_KEY"] = secret_of(folder)
    return {**ours, **theirs, "DATA_DIR": str(folder)}


def healthy(address: str) -> bool:
    """Whether Open WebUI at `address` is up."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def wait_until_healthy(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Raises Failed if the process ends before it answers, or does not answer in time."""
    for _ in range(START_SECONDS * 4):
        if healthy(address):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise Failed(
                f"Open WebUI ended with code {process.wait(0.25)} while"
                f" starting.\n{last_lines(log)}"
            )
    raise Failed(
        f"Open WebUI does not answer at {address} after {START_SECONDS} seconds.\n{last_lines(log)}"
    )


def last_lines(log: Path) -> str:
    """The end of the log, and where the rest is."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    return "\n".join([*(f"  {line}" for line in lines), f"Its log is {log}"])


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends Open WebUI and what it started: in its own time, unless that is long or someone
    insists."""

    def kill(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    for told in STOPS:
        signal.signal(told, kill)
    if process.poll() is None:
        say("Stopping Open WebUI ...")
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    kill()
    process.wait()


def run(
    command: str, port: int, environment: Mapping[str, str], agents: Sequence[str], log: Path
) -> None:
    """Runs Open WebUI until someone stops it. Raises Problem and Failed."""
    address = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        try:
            # In its own folder no library takes the service's .env for its own, and in its own
            # session Ctrl-C reaches it through us alone.
            process = subprocess.Popen(
                [command, "serve", "--host", "127.0.0.1", "--port", str(port)],
                env=dict(environment),
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise Problem(f"{command} cannot be run: {error.strerror}") from None
    try:
        say("Starting Open WebUI (up to half a minute) ...")
        wait_until_healthy(process, address, log)
        say(
            f"Open WebUI is ready: {address}   (agents: {', '.join(agents) or 'none'}; log: {log};"
            " Ctrl-C stops it)"
        )
        raise Failed(f"Open WebUI ended with code {process.wait()}.\n{last_lines(log)}")
    except KeyboardInterrupt:
        pass  # To be told to stop is no failure.
    finally:
        end(process)


def say(text: str) -> None:
    """A line on the terminal, at once."""
    print(text, flush=True)


def reach_directly() -> None:
    """Keeps a proxy of the environment out of what stays on this machine, here as in Open WebUI."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(
        filter(None, [known, "127.0.0.1", "localhost"])
    )


def start(asked: argparse.Namespace) -> None:
    """Installs, checks and runs. Raises Problem and Failed."""
    if not asked.command:
        install()
    if asked.install_only:
        return
    reach_directly()
    key = os.environ.get("AAS_API_KEY", "").strip()
    url = asked.service_url.rstrip("/").removesuffix("/v1")
    agents = agents_of(url, key)
    port = free_port(asked.port)
    if asked.port is None and port != PORTS[0]:
        say(f"Port {PORTS[0]} is in use: Open WebUI takes {port}.")
    folder = (asked.data_dir or ROOT / "data" / "open-webui").absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = variables(os.environ, url, key, port, folder)
        run(
            asked.command or str(ENVIRONMENT / "bin" / "open-webui"),
            port,
            environment,
            agents,
            folder / "open-webui.log",
        )
    except OSError as error:
        raise Problem(f"{folder} cannot be used for Open WebUI's data: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The code to end with."""
    for told in STOPS:
        if (
            told != signal.SIGHUP or signal.getsignal(told) != signal.SIG_IGN
        ):  # nohup has it ignored
            signal.signal(told, signal.default_int_handler)
    try:
        start(options(arguments))
    except Problem as problem:
        print(problem, file=sys.stderr)
        return 2
    except Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
