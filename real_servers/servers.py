"""Start, kill and restart the real model servers, each a process that keeps its port."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import msgspec

from e2e.processes import free_port

HERE = Path(__file__).parent
START_SECONDS = 180.0
PROXY_KEY = "sk-key-of-the-proxy"


class ModelServer(msgspec.Struct):
    """A model server at 127.0.0.1 that keeps its port when it is restarted."""

    command: list[str]
    port: int
    health: str
    """The path that answers 200 once the server is ready."""
    folder: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server unless it runs, and wait until it is ready."""
        if self.process is not None:
            return
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "no_proxy": "*"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            said = (self.folder / "log").read_text(encoding="utf-8", errors="replace")
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)

    def end(self, how: signal.Signals) -> None:
        """Send `how` and wait for the end of the process."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None

    def _is_ready(self) -> bool:
        try:
            return httpx2.get(self.url + self.health, timeout=5).is_success
        except httpx2.TransportError:
            return False


@contextmanager
def llama(folder: Path, window: int) -> Generator[ModelServer, None, None]:
    """Run llama.cpp with a context window of `window` tokens."""
    port = free_port()
    command = [str(_find("llama", "python")), str(HERE / "llama.py"), str(port), str(window)]
    with _running(ModelServer(command, port, "/health", folder)) as server:
        yield server


@contextmanager
def litellm(folder: Path, llama_url: str) -> Generator[ModelServer, None, None]:
    """Run LiteLLM with the models `mock`, `tools` and, from llama.cpp, `long`."""
    port = free_port()
    shutil.copy(HERE / "litellm_answers.py", folder)
    mock = {"api_key": "none", "mock_response": "An answer of the proxy."}
    long = {
        "model": "openai/smollm2",
        "api_base": f"{llama_url}/v1",
        "api_key": "none",
        "extra_body": {"ignore_eos": True},
    }
    models = {
        "mock": {"model": "openai/mock", **mock},
        "tools": {"model": "openai/tools", **mock},
        "long": long,
    }
    config = {
        "model_list": [
            {"model_name": name, "litellm_params": parameters}
            for name, parameters in models.items()
        ],
        "litellm_settings": {"callbacks": ["litellm_answers.answers"], "telemetry": False},
        "general_settings": {"master_key": PROXY_KEY},
    }
    (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    command = [
        *(str(_find("litellm", "litellm")), "--config", "config.yaml"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    with _running(ModelServer(command, port, "/health/liveliness", folder)) as server:
        yield server


def _find(server: str, program: str) -> Path:
    """Return a program of the environment that `make real-servers` makes for `server`."""
    path = Path(sys.prefix) / f"real-{server}" / "bin" / program
    assert path.exists(), f"{path} is missing: run `make real-servers`"
    return path


@contextmanager
def _running(server: ModelServer) -> Generator[ModelServer, None, None]:
    try:
        server.start()
        yield server
    finally:
        server.end(signal.SIGTERM)
