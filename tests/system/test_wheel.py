"""What is released: the wheel, installed outside of the repository into an environment that has
nothing else, serves."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

from ai_agent_service import __version__
from tests.support.service import parse_chunks

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("wheel")]
NAMED = re.compile(r"^([a-z0-9-]+)==", re.MULTILINE)


def uv(*arguments: str | Path) -> str:
    """What uv answers, with the settings of this machine and none of this environment."""
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")
    }
    done = subprocess.run(
        [sys.executable, "-m", "uv", *map(str, arguments)],
        env={**own, "SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(source: Path, into: Path, kind: str) -> Path:
    """The wheel or the sdist of `source`, built by what is installed here."""
    uv(
        "build",
        "--quiet",
        "--offline",
        "--no-build-isolation",
        "--python",
        sys.executable,
        f"--{kind}",
        "--out-dir",
        into,
        source,
    )
    [built] = into.glob(f"ai_agent_service-{__version__}*.{'whl' if kind == 'wheel' else 'tar.gz'}")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.mark.slow
def test_the_wheel_has_the_whole_program_and_nothing_else(wheel: Path) -> None:
    files = (
        path.relative_to(ROOT) for path in (ROOT / "ai_agent_service").rglob("*") if path.is_file()
    )
    program = {path.as_posix() for path in files if "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = f"ai_agent_service-{__version__}.dist-info"
    assert names - program == {
        f"{about}/{name}"
        for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }
    assert program - names == set()


@pytest.mark.slow
def test_the_wheel_of_the_sdist_is_the_wheel_of_the_tree(wheel: Path, tmp_path: Path) -> None:
    sdist = build(ROOT, tmp_path, "sdist")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    subprocess.run(
        ["tar", "--extract", "--file", sdist, "--directory", tmp_path], check=True
    )  # Debian 12's Python 3.11.2 has no filter
    assert {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "requirements.lock",
        "agent_config.json",
        "docs/install.md",
    } <= names
    assert not [
        name
        for name in names
        if re.search(r"(^|/)(\.env|\.venv|data|tests|__pycache__)(/|$)|\.pyc$", name)
    ]
    again = build(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path / "again", "wheel")
    assert again.read_bytes() == wheel.read_bytes()


@pytest.mark.slow
def test_installed_into_an_empty_environment_it_serves_from_an_empty_folder(
    wheel: Path, tmp_path: Path
) -> None:
    lock = ROOT / "requirements.lock"
    uv("venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    uv(
        "pip",
        "install",
        "--quiet",
        "--python",
        python,
        "--no-deps",
        "--require-hashes",
        "--requirement",
        lock,
    )
    uv("pip", "install", "--quiet", "--python", python, "--no-deps", "--offline", wheel)
    uv("pip", "check", "--quiet", "--python", python)
    installed = {
        package["name"]
        for package in json.loads(uv("pip", "list", "--format", "json", "--python", python))
    }
    assert installed - {*NAMED.findall(lock.read_text(encoding="utf-8"))} == {"ai-agent-service"}
    assert installed.isdisjoint({"deepeval", "opentelemetry-sdk", "pytest"})

    folder = tmp_path / "empty"
    folder.mkdir()
    program = [python.with_name("ai-agent-service")]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "DEFAULT_PROVIDER": "demo"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*program, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert run("--version") == f"ai-agent-service, version {__version__}\n"
    checked = run("check")
    assert re.search(
        rf"2 agents in {tmp_path}/venv/\S+/ai_agent_service/starter/agent_config\.json: no"
        r" faults\.\n",
        checked,
    )
    assert (
        "note: this folder has no agent_config.json, so the agents that come with the program are"
        " served." in checked
    )

    log = folder / "log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [*program, "serve", "--port", "0"], cwd=folder, env=environment, stderr=file
        )
    try:
        url = url_in(log, process)
        with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as response:
            assert [model["id"] for model in json.load(response)["data"]] == [
                "research_agent",
                "cli_agent",
            ]
        asked = {
            "model": "research_agent",
            "stream": True,
            "messages": [{"role": "user", "content": "What is (17 + 4) * 2?"}],
        }
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            chunks = parse_chunks(response.read().decode())
        said = "".join(
            choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]
        )
        assert said.endswith("**42**")
        assert (folder / "data" / "ai-agent-service.db").stat().st_size > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)
    assert "Traceback" not in log.read_text(encoding="utf-8")

    run("init")
    assert run("check").endswith("2 agents in agent_config.json: no faults.\n")


def url_in(log: Path, process: "subprocess.Popen[bytes]") -> str:
    """Where the service is, once its log says so."""
    deadline = time.monotonic() + 60
    while True:
        text = log.read_text(encoding="utf-8")
        for line in text.splitlines(keepends=True):
            if line.endswith("\n") and (found := json.loads(line))["event"] == "service.ready":
                return str(found["url"])
        assert process.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def test_the_version_is_told_of_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    released = [
        re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}", heading)
        for heading in headings[1:]
    ]
    assert all(released), headings
    versions = [match[1] for match in released if match]
    assert versions == sorted(
        versions, key=lambda version: [*map(int, version.split("."))], reverse=True
    )
    # Before the first release the version is the one that is coming; afterwards it is that of the
    # newest heading.
    assert not versions or versions[0] == __version__
