"""Runs cases through the real service with a scripted model."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ai_agent_service.core.ids import generate_id
from ai_agent_service.evaluation.dataset import Case, read_dataset
from ai_agent_service.evaluation.metrics import METRICS, Metric
from ai_agent_service.evaluation.replay import Replays, ReplayToolset
from ai_agent_service.evaluation.results import Options, Result
from ai_agent_service.evaluation.runner import Runner
from ai_agent_service.runtime.opening import open_service
from tests.support.fake_provider import Script
from tests.support.service import AGENT, configuration


def dataset(folder: Path, *cases: dict[str, Any] | str) -> Path:
    """Write a file with `cases`, each an object or a line as it is."""
    path = folder / f"{generate_id('cases_')}.jsonl"
    path.write_text(
        "\n".join(case if isinstance(case, str) else json.dumps(case) for case in cases) + "\n",
        encoding="utf-8",
    )
    return path


async def run_cases(
    folder: Path,
    script: Script,
    *written: dict[str, Any],
    agent: dict[str, Any] = AGENT,
    options: Options | None = None,
    metrics: Sequence[Metric] = METRICS,
    parallel: int = 1,
    **others: Any,
) -> list[Result]:
    """Run each of `written` once on an agent that `script` answers for; return the results.

    `others` are arguments of `configuration`.
    """
    cases: list[Case] = read_dataset(
        dataset(folder, *({"agent": "helper", **case} for case in written))
    )
    replays = Replays()
    found: list[Result] = []
    async with open_service(
        configuration(folder, script, agents=[agent], **others), partial(ReplayToolset, replays)
    ) as service:
        await Runner(service, replays, options or Options(), metrics).run(
            [(case, 1) for case in cases], parallel, found.append
        )
    assert replays == {}
    return found
