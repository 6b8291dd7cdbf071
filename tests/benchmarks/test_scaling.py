"""python -m benchmarks replicas and plan, and what docs/scaling.md says of them."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks import plan, scaling
from benchmarks.plan import Inputs, needs
from benchmarks.replicas import Measured, table

ROOT = Path(__file__).parent.parent.parent

ROUND = Inputs(
    service_ms=2.0,
    postgres_ms=3.0,
    commits=2.0,
    held_ms=5.0,
    wal_kb=6.24,
    stored_kb=2.0,
    chunk_us=30.0,
    tool_ms=1.0,
    stream_kb=51.2,
    idle_mb=100.0,
    pool=10,
    chunks=100.0,
    tools=1.0,
    seconds=10.0,
    text_kb=4.0,
    use=0.5,
)
"""A turn takes 2 + 100 x 0.03 + 1 = 6 ms of the service."""


def benchmarks(*arguments: str, timeout: float = 150) -> subprocess.CompletedProcess[str]:
    """`python -m benchmarks`."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_the_plan_is_what_a_turn_costs_times_the_rate() -> None:
    found = needs(ROUND, 1000)
    assert (
        found.replicas == 13
    )  # 1,000 x 6 ms are 6 cores, at half their use 12, and one to be away
    assert found.streams == 10_000
    assert found.memory_mb == 139  # 770 streams of 0.05 MB
    assert found.postgres_cores == 6
    assert found.connections == 130
    assert found.busy_connections == pytest.approx(5)
    assert found.commits == pytest.approx(2000)
    assert found.wal_mb == pytest.approx(10)  # 1,000 x (6.24 + 4) / 1,024
    assert found.stored_gb == pytest.approx(1000 * 86_400 * 6 / 1024**2)


def test_one_process_is_enough_where_it_is_and_needs_no_other_beside_it() -> None:
    assert [needs(ROUND, rate).replicas for rate in (1, 83, 84)] == [1, 1, 3]


def test_the_page_shows_what_was_recorded() -> None:
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert scaling.shown(page, scaling.recorded()) == page
    other = msgspec.structs.replace(scaling.recorded(), turns=7)
    assert scaling.shown(page, other) != page


def test_the_plan_takes_the_dearest_of_what_was_measured_without_a_pooler() -> None:
    measured = scaling.recorded()
    one, *_ = measured.figures
    dear = msgspec.structs.replace(one, service_ms=77.0, postgres_ms=0.1, is_pooled=False)
    pooled = msgspec.structs.replace(one, service_ms=99.0, is_pooled=True)
    inputs = plan.inputs_of(Measured("2026-01-01", 2, 1, 1, (one, dear, pooled)), text_kb=1.5)
    assert (inputs.service_ms, inputs.postgres_ms, inputs.text_kb) == (77.0, one.postgres_ms, 1.5)


def test_the_command_plans_with_inputs_of_ones_own() -> None:
    done = benchmarks(
        "plan",
        "--rate",
        "1000",
        "--set",
        *(f"{name}={getattr(ROUND, name)}" for name in ROUND.__struct_fields__),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout.splitlines()[-1]
        == "| 1,000 | 13 | 10,000 | 770 | 139 | 6 | 130 | 5.0 | 2,000 | 10 | 494 |"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "--set", "usee=1"), "'usee' is not an input; there are service_ms,"),
        (("plan", "--set", "use=0"), "use cannot be 0"),
        (("plan", "--set", "seconds=nan"), "seconds cannot be nan"),
        (("plan", "--set", "seconds"), "'' is not a number"),
        (("replicas", "--count", "0"), "'0' is not a number from 1 to"),
    ],
)
def test_what_cannot_be_planned_is_told_in_a_line(arguments: tuple[str, ...], words: str) -> None:
    done = benchmarks(*arguments)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(160)
def test_a_quick_measurement_prints_a_whole_table() -> None:
    done = benchmarks("replicas", "--quick", "--count", "2")
    assert done.returncode == 0, done.stderr
    head, rule, *rows = done.stdout.splitlines()
    assert [head, rule] == table(scaling.recorded()).splitlines()[:2]
    names, figures = zip(
        *(re.split(r" \| ", row.strip("| "), maxsplit=1) for row in rows), strict=True
    )
    assert names in (("2",), ("2", "2 + pgbouncer"))
    for row in figures:
        throughput, *_, wal, _, _ = numbers = [float(cell) for cell in row.split(" | ")]
        assert len(numbers) == head.count("|") - 2
        assert min(throughput, wal, numbers[4], numbers[5], numbers[9], numbers[10]) > 0
