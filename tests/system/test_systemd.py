"""The systemd unit, and what the service tells systemd."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import defaultdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from ai_agent_service.cli.main import cli
from ai_agent_service.config.settings import Settings, load_settings
from ai_agent_service.server.process import ShutdownTimeouts
from tests.support.processes import get, serving

pytestmark = pytest.mark.timeout(180)
FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = FOLDER / "ai-agent-service.service"
PROGRAM = "/opt/ai-agent-service/current/bin/ai-agent-service"


def directives() -> dict[str, list[str]]:
    """What each directive of the unit is set to, in order. Source: systemd.syntax(7)."""
    found = defaultdict(list)
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line.startswith(("#", "[")) or not line.strip():
            continue
        name, equals, value = line.partition("=")
        assert equals, line
        assert re.fullmatch(r"[A-Z][A-Za-z]+", name), line
        found[name].append(value)
    return found


def test_the_unit_starts_a_command_that_there_is_and_names_its_files() -> None:
    unit = directives()
    [command] = unit["ExecStart"]
    program, *arguments = command.split()
    assert program == PROGRAM
    assert CliRunner().invoke(cli, [*arguments, "--help"]).exit_code == 0
    assert (
        unit["Environment"][0]
        == f"AGENT_CONFIG_FILE={unit['WorkingDirectory'][0]}/agent_config.json"
    )
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert (unit["Type"], unit["NotifyAccess"], unit["KillMode"]) == (
        ["notify"],
        ["all"],
        ["mixed"],
    )


def test_the_unit_waits_for_the_end_as_long_as_it_may_take() -> None:
    defaults = load_settings()
    assert (
        int(directives()["TimeoutStopSec"][0])
        > ShutdownTimeouts(defaults.drain_seconds, defaults.shutdown_timeout).total
    )


def test_the_unit_lets_the_service_do_little() -> None:
    unit = directives()
    for name in (
        "NoNewPrivileges",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectKernelModules",
        "RestrictSUIDSGID",
    ):
        assert unit[name] == ["yes"]
    assert (unit["ProtectSystem"], unit["CapabilityBoundingSet"]) == (["strict"], [""])
    assert unit["SystemCallFilter"] == ["@system-service", "~@privileged"]
    assert unit["User"] != ["root"]


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine"
)
def test_systemd_finds_no_fault_in_the_unit_and_thinks_it_safe(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(
        UNIT.read_text(encoding="utf-8").replace(PROGRAM, sys.executable), encoding="utf-8"
    )
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(copy)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    told = [line for line in verified.stderr.splitlines() if UNIT.name in line]
    assert (verified.returncode, told) == (0, [])
    judge = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--no-pager",
        "--threshold=20",
        str(copy),
    ]
    judged = subprocess.run(judge, capture_output=True, text=True, timeout=30, check=False)
    assert judged.returncode == 0, judged.stdout[-200:]


def test_the_example_of_its_settings_is_valid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = re.sub(
        r"^# ([A-Z_]+=)",
        r"\1",
        (FOLDER / "env.example").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    assert {
        name.lower() for name in re.findall(r"^([A-Z_]+)=", text, re.MULTILINE)
    } <= Settings.model_fields.keys()
    (tmp_path / ".env").write_text(text, encoding="utf-8")
    monkeypatch.setitem(Settings.model_config, "env_file", str(tmp_path / ".env"))
    assert str(load_settings().data_dir) == f"/var/lib/{directives()['StateDirectory'][0]}"


@pytest.mark.parametrize(
    ("is_abstract", "workers"),
    [(False, ()), (True, ("--workers", "2"))],
    ids=["file", "abstract-workers"],
)
def test_systemd_is_told_once_the_service_serves(
    tmp_path: Path, is_abstract: bool, workers: tuple[str, ...]
) -> None:
    address = f"@aas-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(address.replace("@", "\0"))
        manager.settimeout(60)
        with serving(tmp_path, *workers, NOTIFY_SOCKET=address) as (url, process):
            assert manager.recv(100) == b"READY=1"
            with urllib.request.urlopen(
                f"{url}/health/live", timeout=20
            ) as response:  # at once, for it serves
                assert response.status == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


def test_a_manager_that_cannot_be_told_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    with serving(tmp_path, NOTIFY_SOCKET=str(tmp_path / "nobody")) as (url, process):
        assert get(f"{url}/health/live")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
