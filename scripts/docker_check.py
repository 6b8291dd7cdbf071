#!/usr/bin/env python3
"""Builds the images and runs the profiles `dev` and `prod` of docker/docker-compose.yml, on an
engine of its own that is gone afterwards.

No registry of images is needed. The base image is made from Debian's packages, PostgreSQL and nginx
from builds that the Python registry has; all else - Dockerfile, Compose file, scripts, settings -
is what users have. Where this cannot run (no root, no Debian, no network namespaces) it says so in
a line and ends with 0. What takes long to make is kept in a cache folder: the engine's images, and
programs.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROFILES = (["dev"], ["prod"], ["monitoring"], ["dev", "monitoring"], ["prod", "monitoring"])
BASE = "python:3.11-slim"
BASE_MB = 132
"""What python:3.11-slim takes unpacked, in 10^6 bytes. The base made here is another, so our layers
are weighed by themselves."""

MOST_MB = 250
STAND_IN = "docker-check-stand-in"
PID_FILE = "dockerd.pid"
DEV = ("127.0.0.1", 8001)
WORDS = "".join(f"word{number} " for number in range(20))
"""What docker/stand-ins/model.py says, in five seconds."""


class CannotRunHere(Exception):
    """That this machine has not what the check needs, and what that is."""


class Failed(Exception):
    """What is not as it should be."""


class Steps:
    """Prints each step with the seconds that it took."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        print(f"docker-check: {name} ({time.monotonic() - began:.0f} s)", flush=True)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began


def run(
    *command: str | Path,
    check: bool = True,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    seconds: float = 600,
) -> str:
    """What `command` prints to standard output; raises Failed with all that it said if it ends with
    another code than 0."""
    words = [str(part) for part in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{' '.join(words)} took more than {seconds:g} s") from late
    if check and done.returncode:
        said = f"{done.stdout}\n{done.stderr}".strip()
        raise Failed(f"{' '.join(words)} ended with {done.returncode}:\n{said[-6000:]}")
    return done.stdout


def until(met: Callable[[], object], what: str, *, seconds: float = 60) -> None:
    """Waits until `met()`; raises Failed."""
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds:g} s")
        time.sleep(0.2)


def ensure(is_so: object, what: str) -> None:
    """Raises Failed unless `is_so`."""
    if not is_so:
        raise Failed(what)


# ---- the machine ----


def install_engine() -> None:
    """Brings Docker's engine and debootstrap, by apt where they are missing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise CannotRunHere("it takes root on Linux")
    needed = {
        "dockerd": "docker.io",
        "runc": "runc",
        "iptables": "iptables",
        "debootstrap": "debootstrap",
        "openssl": "openssl",
    }
    missing = [package for program, package in needed.items() if shutil.which(program) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise CannotRunHere(f"no apt-get to install {', '.join(missing)} with")
    install = [
        "apt-get",
        "install",
        "--quiet=2",
        "--yes",
        "--no-install-recommends",
        "-o",
        "DPkg::Lock::Timeout=300",
        *missing,
        "debian-archive-keyring",
    ]
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        run("apt-get", "update", "--quiet=2", env=quiet, check=False)
        run(*install, env=quiet)
    except Failed as failed:
        raise CannotRunHere(
            f"apt-get does not get {', '.join(missing)}: {str(failed).splitlines()[-1]}"
        ) from failed


def install_tools(cache: Path) -> Path:
    """The folder with docker-compose, hadolint and nginx, in the versions of docker/check.lock."""
    lock = ROOT / "docker" / "check.lock"
    tools, stamp = cache / "tools", cache / "tools" / "check.lock"
    if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
        shutil.rmtree(tools, ignore_errors=True)
        run(sys.executable, "-m", "venv", tools)
        run(
            tools / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "-r",
            lock,
        )
        shutil.copy(lock, stamp)
    return tools / "bin"


@contextlib.contextmanager
def engine(cache: Path) -> Iterator[None]:
    """A Docker engine of its own, which DOCKER_HOST names meanwhile; ends with all that it runs."""
    end_left_over(cache)
    with tempfile.TemporaryDirectory(prefix="docker-check-engine-") as folder:
        there = Path(folder)
        os.environ["DOCKER_HOST"] = f"unix://{there}/docker.sock"
        os.environ.pop("DOCKER_CONTEXT", None)
        command = [
            "dockerd",
            f"--data-root={cache / 'engine'}",
            f"--exec-root={there / 'exec'}",
            f"--pidfile={cache / PID_FILE}",
            f"--host={os.environ['DOCKER_HOST']}",
            "--storage-driver=overlay2",
            "--host-gateway-ip=127.0.0.1",
            *(
                "--bridge=none",
                "--ip-forward=false",
                "--iptables=false",
                "--ip6tables=false",
            ),  # this machine's network stays as it is
        ]
        with (there / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            deadline = time.monotonic() + 60
            while subprocess.run(
                ["docker", "version"], capture_output=True, check=False
            ).returncode:
                if process.poll() is not None or time.monotonic() > deadline:
                    said = (there / "log").read_text(errors="replace").strip().splitlines()
                    raise CannotRunHere(
                        f"Docker's engine does not start: {said[-1] if said else 'it says nothing'}"
                    )
                time.sleep(0.2)
            clear_engine()
            try:
                run("docker", "network", "create", "docker-check-probe")
                run("docker", "network", "rm", "docker-check-probe")
            except Failed as failed:
                raise CannotRunHere(
                    f"no networks for containers: {str(failed).splitlines()[-1]}"
                ) from failed
            try:
                yield
            except Failed as failed:
                raise Failed(f"{failed}\n{last_words()}") from failed
            finally:
                clear_engine()
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            unmount((folder, f"{cache}/engine/"))


def unmount(folders: tuple[str, ...]) -> None:
    """Takes away what an engine left mounted in `folders`."""
    for line in reversed(Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()):
        mounted = line.split()[1]
        if mounted.startswith(folders):
            subprocess.run(["umount", "--lazy", mounted], check=False)


def end_left_over(cache: Path) -> None:
    """Ends the engine of an earlier check that was killed before it could."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((cache / PID_FILE).read_text(encoding="utf-8"))
        (cache / PID_FILE).unlink()
        if str(cache / "engine") in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8"):
            os.kill(pid, signal.SIGTERM)
            until(
                lambda: not Path(f"/proc/{pid}").exists(),
                "the engine of an earlier check ends",
                seconds=60,
            )
            for folder in Path(tempfile.gettempdir()).glob("docker-check-*"):
                unmount((str(folder),))
                shutil.rmtree(folder, ignore_errors=True)


def last_words() -> str:
    """The last lines of each container's log."""
    names = run("docker", "ps", "--all", "--format", "{{.Names}}").split()
    told = []
    for name in names:
        log = subprocess.run(
            ["docker", "logs", "--tail", "12", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        told.append(f"--- {name}\n{log.stdout}")
    return "\n".join(told)


def clear_engine() -> None:
    """Removes what runs on the engine, which is this check's alone, with its volumes and networks;
    images stay."""
    containers = run("docker", "ps", "--all", "--quiet").split()
    if containers:
        run("docker", "rm", "--force", "--volumes", *containers)
    run("docker", "volume", "prune", "--force")
    run("docker", "network", "prune", "--force")


def make_base(cache: Path) -> None:
    """Makes an image in the place of python:3.11-slim: Debian 12 with its Python, and pip in
    /usr/local.

    What this machine needs to reach its registries - certificates, a proxy, an index - is put
    there: the Dockerfile need not know of it.
    """
    if run("docker", "images", "--quiet", BASE):
        return
    for left in cache.glob("base-*"):  # of a check that was killed
        unmount((str(left),))
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix="base-", dir=cache) as folder:
        base, archive = Path(folder) / "base", Path(folder) / "base.tar"
        try:
            run(
                "debootstrap",
                "--variant=minbase",
                "--include=ca-certificates,netbase,tzdata,python3.11",
                "bookworm",
                base,
            )
            fit_base(base)
        finally:
            unmount((folder,))  # debootstrap mounts /proc there
        run("tar", "--create", "--file", archive, "--directory", base, ".")
        run(
            "docker",
            "import",
            "--change",
            "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
            archive,
            BASE,
        )


def fit_base(base: Path) -> None:
    """Makes of Debian's files what the image python:3.11-slim has, and gives them this machine's
    way to its registries."""
    for path in (
        "var/cache/apt",
        "var/lib/apt/lists",
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/info",
    ):
        shutil.rmtree(base / path, ignore_errors=True)
    pip = (sys.executable, "-m", "pip")
    run(*pip, "download", "--quiet", "--no-deps", "--dest", base / "tmp", "pip")
    [wheel] = (base / "tmp").glob("pip-*.whl")
    (base / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink(missing_ok=True)
    within = f"/tmp/{wheel.name}"
    run(
        "chroot",
        base,
        "python3.11",
        f"{within}/pip",
        "install",
        "--no-index",
        "--root-user-action=ignore",
        within,
    )
    wheel.unlink()
    for name in ("python", "python3", "python3.11"):
        (base / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    if authorities.exists():
        shutil.copy(authorities, base / "etc/ssl/certs/ca-certificates.crt")
    index = (
        os.environ.get("PIP_INDEX_URL")
        or run(*pip, "config", "get", "global.index-url", check=False).strip()
    )
    lines = [
        "[global]",
        "cert = /etc/ssl/certs/ca-certificates.crt",
        *([f"index-url = {index}"] if index else []),
    ]
    (base / "etc/pip.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (base / "etc/apt/apt.conf.d/99machine").write_text(
        run("apt-config", "dump", "Acquire"), encoding="utf-8"
    )


# ---- what is asked of it ----


def post_chat(
    connection: http.client.HTTPConnection,
    *,
    key: str = "",
    chat: str = "",
    question: str = "What is (17 + 4) * 2?",
) -> http.client.HTTPResponse:
    """Asks research_agent for a streamed answer."""
    headers = {"content-type": "application/json", "host": "localhost"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    if chat:
        headers["x-openwebui-chat-id"] = chat
    body = {
        "model": "research_agent",
        "stream": True,
        "messages": [{"role": "user", "content": question}],
    }
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    return connection.getresponse()


class Streamed:
    """An answer as it came: its text, whether it came to its end, and the seconds from its first to
    its last piece."""

    def __init__(
        self, answer: http.client.HTTPResponse, *, then: Callable[[], object] | None = None
    ) -> None:
        if answer.status != 200:
            raise Failed(f"a chat was answered {answer.status}: {answer.read(2000)!r}")
        self.text, self.is_whole = "", False
        times = []
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                self.is_whole = True
                break
            choices = json.loads(line[6:]).get("choices") or [{}]
            piece = choices[0].get("delta", {}).get("content") or ""
            if not piece:
                continue
            self.text += piece
            times.append(time.monotonic())
            if len(times) == 1 and then is not None:
                then()
        self.seconds = times[-1] - times[0] if times else 0.0


def get(address: tuple[str, int], path: str) -> tuple[int, str]:
    """Status and body."""
    connection = http.client.HTTPConnection(*address, timeout=10)
    try:
        connection.request("GET", path, headers={"host": "localhost"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()


def inspect(name: str, template: str) -> str:
    """What Docker knows of a container or an image."""
    return run("docker", "inspect", "--format", template, name).strip()


def check_hardening(container: str) -> None:
    """That the service in `container` is nobody, can write nowhere but to its volume, has no tools
    to build with, and leaves no zombies."""
    script = """
        [ "$(id -u)" = 10001 ] || echo "it is user $(id -u)"
        for place in /opt/x /app/x /usr/x /etc/x; do
          if (: > $place) 2> /dev/null; then echo "$place can be written"; fi
        done
        for place in /app/data/x /tmp/x; do : > $place || echo "$place cannot be written"; done
        for program in gcc cc make pip; do if command -v $program; then echo "is there"; fi; done
        grep -q '^CapEff:\\s*0*$' /proc/self/status || echo "it has capabilities"
        grep -q '^NoNewPrivs:\\s*1$' /proc/self/status || echo "it can gain privileges"
        sh -c 'sh -c "exec sleep 0.1" &'
        sleep 0.5
        grep -l '^State:\\s*Z' /proc/[0-9]*/status 2> /dev/null | sed 's/^/a zombie: /'
    """
    found = run("docker", "exec", container, "sh", "-c", script).strip()
    ensure(not found, f"{container}: {found}")
    ensure(
        inspect(container, "{{.HostConfig.ReadonlyRootfs}}") == "true",
        f"{container}: its root can be written",
    )


def check_size(image: str) -> None:
    """That the image would be below MOST_MB upon the real base."""
    layers = (int(inspect(image, "{{.Size}}")) - int(inspect(BASE, "{{.Size}}"))) / 1e6
    print(
        f"docker-check: {image}: {layers:.0f} MB on python:3.11-slim, which is {BASE_MB} MB:"
        f" {layers + BASE_MB:.0f} MB",
        flush=True,
    )
    ensure(layers + BASE_MB < MOST_MB, f"{image} takes more than {MOST_MB} MB")


class Copy:
    """The project's files as they are now, in a folder where they may be changed and configured;
    what is run there by Compose."""

    def __init__(self, folder: Path, tools: Path) -> None:
        self.root, self._tools = folder, tools
        files = run(
            "git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"
        ).split("\0")
        for name in filter(None, files):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        services = {
            name: {"build": {"network": "host", "args": {"PYTHON_IMAGE": BASE}}}
            for name in ("ai-agent-service", "settings", "migrate", "ai-agent-service-prod")
        }
        override: dict[str, Any] = {"services": services}
        override["services"]["model"] = {
            "profiles": ["prod"],
            "image": BASE,
            "command": ["python", "/model.py"],
            "volumes": ["./stand-ins/model.py:/model.py:ro"],
            "networks": ["ai-network"],
            "init": True,
        }
        self._override = folder / "docker" / "override.json"
        self._override.write_text(json.dumps(override))

    def compose(self, *arguments: str, check: bool = True, overridden: bool = True) -> str:
        """What `docker-compose` prints, started in the folder docker as documented; an override
        gives builds this machine's network."""
        files = (
            ["--file", "docker-compose.yml", "--file", self._override.name] if overridden else []
        )
        variables = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("POSTGRES_", "COMPOSE_", "AAS_", "WITH_"))
        }
        env = {
            **variables,
            "POSTGRES_IMAGE": STAND_IN,
            "NGINX_IMAGE": STAND_IN,
            "PATH": f"{self._tools}:{os.environ['PATH']}",
        }
        return run(
            "docker-compose", *files, *arguments, cwd=self.root / "docker", env=env, check=check
        )

    def containers(self, service: str) -> list[str]:
        """The names of a service's containers."""
        label = f"label=com.docker.compose.service={service}"
        return sorted(run("docker", "ps", "--filter", label, "--format", "{{.Names}}").split())


def check_files(copy: Copy, tools: Path) -> None:
    """What can be told without running anything."""
    run(tools / "hadolint", "docker/Dockerfile", "docker/stand-ins/Dockerfile", cwd=ROOT)
    ensure(
        "# syntax=" not in (ROOT / "docker" / "Dockerfile").read_text(),
        "docker/Dockerfile has a syntax line, which takes a registry",
    )
    for profiles in PROFILES:
        copy.compose(
            *(part for name in profiles for part in ("--profile", name)),
            "config",
            "--quiet",
            overridden=False,
        )
    for script in (
        "backup.sh",
        "postgres-init.sh",
        "postgres-replica.sh",
        "preflight.sh",
        "self-signed",
    ):
        run("bash", "-n", ROOT / "docker" / script)


def check_dev(copy: Copy) -> None:
    """The profile `dev`: started without any .env, it answers, remembers in PostgreSQL and reloads
    its code."""
    copy.compose("--profile", "dev", "up", "--build", "--detach", "--wait", "ai-agent-service")
    [container] = copy.containers("ai-agent-service")
    for path in ("/health", "/health/ready", "/docs"):
        status, said = get(DEV, path)
        ensure(status == 200, f"GET {path} of dev is {status}: {said[:500]}")
    connection = http.client.HTTPConnection(*DEV, timeout=60)
    answer = Streamed(post_chat(connection, chat="docker-check", key="not-needed"))
    ensure(answer.is_whole and "42" in answer.text, f"dev answered {answer.text!r}")
    [database] = copy.containers("postgres")
    count = "SELECT count(*) FROM nodes"
    kept = run(
        "docker",
        "exec",
        database,
        "psql",
        "--username=agent_user",
        "--tuples-only",
        f"--command={count}",
        "agent_service",
    ).strip()
    ensure(int(kept) >= 2, f"dev keeps {kept} messages in PostgreSQL")
    check_hardening(container)
    version = copy.root / "ai_agent_service" / "__init__.py"
    before = version.read_text()
    version.write_text(before.replace('__version__ = "', '__version__ = "9.'))
    until(lambda: '"9.' in get(DEV, "/")[1], "the service in dev has its new code")
    version.write_text(before)
    copy.compose("--profile", "dev", "down", "--volumes", "--timeout", "40")


def check_prod(copy: Copy) -> None:
    """The profile `prod`: refuses to start without its passwords; answers through nginx and TLS as
    words are said; loses nothing."""
    key, port, plain = secrets.token_hex(16), free_port(), free_port()
    refused = copy.compose("--profile", "prod", "up", "--build", "settings", check=False)
    for name in (
        "POSTGRES_PASSWORD is not set",
        "REPLICATION_PASSWORD is not set",
        "certificates/fullchain.pem is not there",
    ):
        ensure(
            name in refused,
            f"prod starts without its settings, or does not say {name!r}: {refused[-2000:]}",
        )
    run(copy.root / "docker" / "self-signed", cwd=copy.root)
    passwords = {
        name: secrets.token_hex(16)
        for name in ("POSTGRES_PASSWORD", "POSTGRES_ADMIN_PASSWORD", "REPLICATION_PASSWORD")
    }
    write_env(
        copy.root / "docker" / ".env",
        {**passwords, "HTTP_PORT": f"127.0.0.1:{plain}", "HTTPS_PORT": f"127.0.0.1:{port}"},
    )
    model = {
        "DEFAULT_PROVIDER": "openai",
        "OPENAI_BASE_URL": "http://model:9000/v1",
        "OPENAI_DEFAULT_MODEL": "words",
    }
    write_env(copy.root / ".env", {"API_KEYS": key, **model})
    copy.compose("--profile", "prod", "up", "--build", "--detach", "--wait")
    replicas = copy.containers("ai-agent-service-prod")
    ensure(len(replicas) == 2, f"prod has the replicas {replicas}")
    for container in replicas:
        check_hardening(container)
    trusted = ssl.create_default_context(
        cafile=str(copy.root / "docker" / "certificates" / "fullchain.pem")
    )

    def connect() -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", port, timeout=60, context=trusted)

    check_proxy(connect, plain, key, replicas)
    check_databases(copy)
    copy.compose("--profile", "prod", "stop", "postgres-primary")
    copy.compose(
        "--profile",
        "prod",
        "exec",
        "-T",
        "postgres-replica",
        "pg_ctl",
        "promote",
        "-D",
        "/var/lib/postgresql/data/pgdata",
    )
    until(
        lambda: post_chat(connect(), key=key, chat="fourth").status == 200,
        "after the primary was lost, chats are answered",
        seconds=30,
    )
    copy.compose("--profile", "prod", "down", "--volumes", "--timeout", "40")


def check_proxy(
    connect: Callable[[], http.client.HTTPSConnection],
    plain: int,
    key: str,
    replicas: Sequence[str],
) -> None:
    """What comes through nginx, also while a replica stops."""

    answer = Streamed(post_chat(connect(), key=key, chat="first", question="Say some words."))
    ensure(answer.is_whole and answer.text == WORDS, f"through nginx came {answer.text!r}")
    ensure(
        answer.seconds > 3,
        f"nginx holds back what is streamed: all came within {answer.seconds:.1f} s, and is said"
        " in 5",
    )
    for path, expected in (
        ("/health", 200),
        ("/metrics", 404),
        ("/admin/reload", 404),
        ("/v1/models", 401),
    ):
        connection = connect()
        connection.request("GET", path)
        status = connection.getresponse().status
        ensure(status == expected, f"GET {path} through nginx is {status} and not {expected}")
    ensure(
        get(("127.0.0.1", plain), "/health")[0] == 308,
        "nginx does not lead callers without TLS to TLS",
    )
    connection = connect()
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("content-length", str(40 * 1024 * 1024))
    connection.endheaders()
    large = connection.getresponse()
    ensure(
        (large.status, json.loads(large.read())["error"]["code"]) == (413, "request_too_large"),
        "40 MB are not refused in OpenAI's shape",
    )

    # The replica that is saying an answer is told to stop meanwhile.
    stopped: list[str] = []
    stopper = threading.Thread(target=lambda: run("docker", "stop", "--time", "75", stopped[0]))

    def stop_the_busy_one() -> None:
        stopped.extend(container for container in replicas if runs_in_flight(container, key) == 1)
        stopper.start()

    answer = Streamed(
        post_chat(connect(), key=key, chat="second", question="Say more words."),
        then=stop_the_busy_one,
    )
    stopper.join()
    ensure(len(stopped) == 1, f"one replica should answer, and these do: {stopped}")
    ensure(
        answer.is_whole and answer.text == WORDS,
        f"a replica that stops cut its answer off: {answer.text!r}",
    )
    code = inspect(stopped[0], "{{.State.ExitCode}}")
    ensure(code == "0", f"a replica that was told to stop ended with {code}")
    answer = Streamed(post_chat(connect(), key=key, chat="third", question="And now?"))
    ensure(answer.is_whole, "with one replica left no answer came")


def runs_in_flight(container: str, key: str) -> float:
    """How many answers a replica is saying."""
    script = (
        "import sys, urllib.request as u; print(u.urlopen(u.Request(sys.argv[1],"
        " headers={'x-api-key': sys.argv[2]})).read().decode())"
    )
    metrics = run(
        "docker", "exec", container, "python", "-c", script, "http://127.0.0.1:8000/metrics", key
    )
    return sum(
        float(line.split()[1])
        for line in metrics.splitlines()
        if line.startswith("aas_runs_in_flight ")
    )


def check_databases(copy: Copy) -> None:
    """That the replica has all, that a backup can be restored, and that the service's user is no
    administrator."""
    [primary], [replica], [backups] = (
        copy.containers(name) for name in ("postgres-primary", "postgres-replica", "backups")
    )

    def ask(container: str, query: str, database: str = "agent_service") -> str:
        command = (
            "docker",
            "exec",
            container,
            "psql",
            "--username=postgres",
            "--tuples-only",
            "--no-align",
        )
        return run(*command, f"--command={query}", database).strip()

    messages = ask(primary, "SELECT count(*) FROM nodes")
    ensure(int(messages) >= 6, f"the primary has {messages} messages of 3 turns")
    until(
        lambda: ask(replica, "SELECT count(*) FROM nodes") == messages,
        "the replica has all messages",
    )
    ensure(ask(replica, "SELECT pg_is_in_recovery()") == "t", "the replica is none")
    ensure(
        ask(
            primary,
            "SELECT rolsuper OR rolcreaterole OR rolreplication FROM pg_roles WHERE rolname ="
            " 'agent_user'",
        )
        == "f",
        "agent_user is too powerful",
    )
    run("docker", "exec", backups, "bash", "/opt/backup.sh", "once")
    run("docker", "exec", backups, "bash", "/opt/backup.sh", "is-fresh")
    # As docs/deployment.md has it, over what is there.
    ask(primary, "DELETE FROM nodes")
    newest = "gunzip --stdout $(ls -t /var/lib/postgresql/data/*.sql.gz | head -1)"
    into = (
        "psql",
        "--username=postgres",
        "--dbname=agent_service",
        "--quiet",
        "--single-transaction",
        "--set=ON_ERROR_STOP=1",
    )
    restore = (*into, "--command=SET ROLE agent_user", "--file=-")
    dumped = subprocess.Popen(
        ["docker", "exec", backups, "bash", "-c", newest], stdout=subprocess.PIPE
    )
    restored = subprocess.run(
        ["docker", "exec", "--interactive", primary, *restore],
        stdin=dumped.stdout,
        capture_output=True,
        text=True,
        check=False,
    )
    ensure(
        dumped.wait() == 0 and restored.returncode == 0,
        f"the backup cannot be restored: {restored.stderr[-1000:]}",
    )
    ensure(ask(primary, "SELECT count(*) FROM nodes") == messages, "the backup lacks messages")
    strangers = ask(
        primary,
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tableowner <>"
        " 'agent_user'",
    )
    ensure(not strangers, f"after a restore these tables are not the service's: {strangers}")


def write_env(file: Path, variables: Mapping[str, str]) -> None:
    """Writes a file of variables that its owner alone may read."""
    file.touch(mode=0o600)
    file.write_text(
        "".join(f"{name}={value}\n" for name, value in variables.items()), encoding="utf-8"
    )


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def check(cache: Path) -> None:
    """All of it; raises Failed or CannotRunHere."""
    step = Steps()
    with step("Docker's engine and debootstrap"):
        install_engine()
    with step("Compose, hadolint and nginx"):
        tools = install_tools(cache)
    with tempfile.TemporaryDirectory(prefix="docker-check-") as folder:
        copy = Copy(Path(folder), tools)
        with step("hadolint, every profile's configuration, the scripts' syntax"):
            check_files(copy, tools)
        with engine(cache):
            with step("the base image"):
                make_base(cache)
            with step("PostgreSQL and nginx in place of their images"):
                build = (
                    "docker",
                    "build",
                    "--quiet",
                    "--network",
                    "host",
                    "--file",
                    "docker/stand-ins/Dockerfile",
                    "--tag",
                    STAND_IN,
                    ".",
                )
                run(*build, cwd=copy.root, env={**os.environ, "DOCKER_BUILDKIT": "0"})
            with step("dev: builds, answers, remembers, is nobody, cannot write, reloads"):
                check_dev(copy)
            with step(
                "prod: builds, streams through nginx and TLS, stops in order, is replicated and"
                " backed up"
            ):
                check_prod(copy)
            check_size("ai-agent-service:latest")
    print(f"docker-check: passed in {step.seconds:.0f} s", flush=True)


def main() -> int:
    """Ends with 0 when all is as it should be or cannot be checked here, with 1 otherwise."""
    parser = argparse.ArgumentParser(
        description="Build the images and run them, on an engine that is this check's own."
    )
    parser.add_argument("--fresh", action="store_true", help="keep nothing of earlier runs")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "ai-agent-service-docker-check"
    )
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if given.fresh:
            for name in ("engine", "tools"):
                shutil.rmtree(cache / name, ignore_errors=True)
        try:
            check(cache)
        except CannotRunHere as reason:
            print(f"docker-check: skipped: {reason}")
        except Failed as failed:
            print(f"docker-check: failed: {failed}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
