"""Worker processes that cannot start, die, cannot restart, or lose their parent."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import httpx2
import pytest

from tests.support.events import until
from tests.support.processes import list_workers, run, serving
from tests.support.talker import configured, ended, talking

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_workers_that_cannot_start_end_the_service(tmp_path: Path) -> None:
    broken = (
        "from ai_agent_service.providers.demo import Demo\nclass Broken(Demo):\n    name ="
        " 'broken'\n    @classmethod\n    def from_setup(cls, setup):\n"
    )
    (tmp_path / "broken.py").write_text(
        broken + "        raise RuntimeError('no')\n", encoding="utf-8"
    )
    (tmp_path / "agents.json").write_text(
        '[{"agent_id": "a", "system_prompt": "x", "provider": "broken"}]', encoding="utf-8"
    )
    done = run(
        tmp_path,
        *("--port", "0", "--workers", "2"),
        AGENT_CONFIG_FILE="agents.json",
        PLUGINS_DIR=str(tmp_path),
    )
    assert done.returncode == 3
    assert "is ready" not in done.stderr


async def test_a_worker_that_cannot_restart_leaves_the_others_and_the_service_ends_with_the_last(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, "--workers", "2", **configured(tmp_path)) as (url, process):
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:

            async def answers() -> bool:
                with contextlib.suppress(httpx2.TransportError):
                    return "aas_workers 2.0" in (await client.get("/metrics")).text
                return False

            await until(answers, seconds=60)
            first, second = list_workers(process)
            agents = (tmp_path / "agents.json").read_text(encoding="utf-8")
            (tmp_path / "agents.json").write_text("[{", encoding="utf-8")
            os.kill(first, signal.SIGKILL)

            async def is_tried_again() -> bool:
                return len(set(list_workers(process)) - {first, second}) == 1

            async def is_alone() -> bool:
                return list_workers(process) == [second]

            await until(is_tried_again)
            await until(is_alone)
            (tmp_path / "agents.json").write_text(agents, encoding="utf-8")
            await until(answers, seconds=60)
        (tmp_path / "agents.json").write_text("[{", encoding="utf-8")
        for pid in list_workers(process):
            os.kill(pid, signal.SIGKILL)
        assert await ended(process, within=60) == 3


async def test_a_worker_that_dies_is_followed_by_another(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2", **configured(tmp_path)) as (url, process):
        async with talking(url, "stays") as (client, [stream]):
            before = list_workers(process)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            await asyncio.wait((stream,), timeout=20)
            assert isinstance(stream.exception(), httpx2.TransportError)

            async def is_back() -> bool:
                with contextlib.suppress(httpx2.TransportError):
                    return (await client.get("/health/ready")).status_code == 200
                return False

            await until(is_back, seconds=60)
            assert not set(before) & set(list_workers(process))
        process.send_signal(signal.SIGTERM)
        assert await ended(process, within=40) == 0


async def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2", ALLOW_UNAUTHENTICATED="true") as (url, process):
        async with httpx2.AsyncClient(base_url=url) as client:

            async def answers() -> bool:
                with contextlib.suppress(httpx2.TransportError):
                    return (await client.get("/health/live")).status_code == 200
                return False

            await until(answers)
        workers = list_workers(process)
        assert len(workers) == 2
        process.kill()

        async def are_gone() -> bool:
            return not any(Path(f"/proc/{pid}").exists() for pid in workers)

        try:
            await until(are_gone)
        finally:
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
