"""ai-agent-service eval: runs datasets through the agents, shows what came of it, and tells whether
that got better or worse."""

import asyncio
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
import msgspec

from ai_agent_service import __version__
from ai_agent_service.cli.conventions import CONNECT_SECONDS, EXIT_INTERRUPTED
from ai_agent_service.cli.eval_generate import format_cost, generate
from ai_agent_service.cli.output import ProgressReporter, format_table
from ai_agent_service.cli.streams import echo
from ai_agent_service.config.json_files import load_environment
from ai_agent_service.config.settings import load_settings
from ai_agent_service.core.errors import ConfigError, Fault
from ai_agent_service.core.redaction import find_secrets
from ai_agent_service.evaluation.dataset import Case, assign_agents, read_dataset
from ai_agent_service.evaluation.deepeval_extra import (
    DEEPEVAL_FIELDS,
    JUDGED_FIELDS,
    find_judging_faults,
    has_expectation,
    open_judging,
)
from ai_agent_service.evaluation.isolated_service import open_isolated_service
from ai_agent_service.evaluation.judge_model import Judge
from ai_agent_service.evaluation.junit import write_junit
from ai_agent_service.evaluation.metrics import METRICS
from ai_agent_service.evaluation.model_option import find_model
from ai_agent_service.evaluation.replay import Replays, ReplayToolset
from ai_agent_service.evaluation.report.page import Baseline, render_report
from ai_agent_service.evaluation.results import (
    EPSILON,
    Options,
    Result,
    RunAgent,
    Summary,
    describe_failures,
    group_by_case,
)
from ai_agent_service.evaluation.run_folder import (
    EvaluationRun,
    build_recorded_case,
    find_run,
    write_lines,
)
from ai_agent_service.evaluation.runner import Runner, summarize_results
from ai_agent_service.evaluation.scoring import compare_runs
from ai_agent_service.observability.logging import configure_logging
from ai_agent_service.runtime.configuration import Configuration, load
from ai_agent_service.runtime.service import Service

MAX_NOT_MET = 60
"""Characters of what was not met that the table shows of a case."""

EXIT_WORSE = 1


@click.group("eval")
def evaluate() -> None:
    """Find out whether agents got better or worse. RUN is the name of a run's folder, how it
    begins, or its path."""
    configure_logging("ERROR")


evaluate.add_command(generate)


@evaluate.command("run")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--agent", help="The agent of the cases that name none.")
@click.option("--model", help="Another model than the agents' own.")
@click.option(
    "--judge", metavar="PROVIDER:MODEL", help="The model that judges what no rule can tell."
)
@click.option(
    "--repeat",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Attempts at each case.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 256),
    default=4,
    show_default=True,
    help="Cases that are under way at once.",
)
@click.option(
    "--record",
    is_flag=True,
    help="Run tools really, and write what they answer into NAME.recorded.jsonl beside FILE.",
)
@click.option(
    "--resume", metavar="RUN", help="Go on with a run that was stopped, in place of FILE."
)
@click.option(
    "--baseline",
    metavar="RUN",
    help="End with code 1 if this is worse than that run, beyond noise.",
)
@click.option(
    "--fail-under",
    type=click.FloatRange(0, 1),
    help="End with code 1 if the score is lower, such as 0.8.",
)
@click.option(
    "--junit", type=click.Path(dir_okay=False, path_type=Path), help="Write JUnit XML too."
)
def run_command(
    file: Path | None,
    agent: str | None,
    model: str | None,
    judge: str | None,
    repeat: int,
    parallel: int,
    record: bool,
    resume: str | None,
    baseline: str | None,
    fail_under: float | None,
    junit: Path | None,
) -> None:
    """Run the cases of FILE, JSON Lines with a case in each. Ctrl-C stops; --resume goes on."""
    if (file is None) == (resume is None):
        raise click.UsageError("Give either FILE or --resume RUN.")
    if resume is not None and (agent or model or judge or repeat > 1 or record):
        raise click.UsageError(
            "A run that is resumed keeps its --agent, --model, --judge, --repeat and --record."
        )
    if junit is not None and not junit.resolve().parent.is_dir():
        raise click.UsageError(f"There is no folder {junit.parent}.")
    before, resumed = (
        _require_run(name) if name is not None else None for name in (baseline, resume)
    )
    if resumed is not None:
        known = resumed.read_summary()
        options, dataset = known.options, Path(known.dataset)
    else:
        assert file is not None
        options, dataset = Options(agent, model, repeat, record, judge), file
    cases = read_dataset(resumed.dataset if resumed is not None else dataset)
    configuration = load()
    cases = assign_agents(
        cases, options.agent, [each.agent_id for each in configuration.agents], str(dataset)
    )
    if faults := find_judging_faults(cases, str(dataset), options.judge):
        raise ConfigError(faults)
    configure_logging("ERROR", find_secrets(configuration.environment))
    try:
        run = asyncio.run(
            _evaluate_cases(configuration, cases, dataset, options, resumed, parallel)
        )
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    summary, results = run.read_summary(), run.read_results()
    compared = _compare_with(before, run)
    _write_report(run, run.report, compared)
    _echo_run(run, summary, results)
    if options.record:
        _write_recorded(dataset, cases, results)
    if junit is not None:
        _write(junit, partial(write_junit, name=run.name, results=results))
    if not _check_pass(run, summary, fail_under, compared):
        sys.exit(EXIT_WORSE)


@evaluate.command()
@click.argument("run", required=False, metavar="RUN")
def show(run: str | None) -> None:
    """Show what came of RUN, by default the latest."""
    found = _require_run(run)
    _echo_run(found, found.read_summary(), found.read_results())


@evaluate.command("compare")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
def compare_command(before: str, after: str) -> None:
    """Tell whether run B is better than run A, worse, or no different beyond noise.

    Ends with code 1 if it is worse, or if not all of it was done and judged.
    """
    old, new = _require_run(before), _require_run(after)
    compared = Baseline(old, compare_runs(old, new))
    _echo_comparison(compared, new)
    is_stopped = new.read_summary().finished is None
    if is_stopped:
        echo(f"{new.name} was stopped, so that this is no pass.")
    # The summary of a run that was stopped does not count them yet.
    if (
        compared.comparison.verdict == "worse"
        or is_stopped
        or any(result.not_judged for result in new.read_results())
    ):
        sys.exit(EXIT_WORSE)


@evaluate.command("report")
@click.argument("run", required=False, metavar="RUN")
@click.option("--baseline", metavar="RUN", help="Show the differences from that run too.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file, by default report.html in the run's folder.",
)
def report_command(run: str | None, baseline: str | None, output: Path | None) -> None:
    """Write the report on RUN, by default the latest, anew: one page of HTML that needs nothing
    else."""
    found = _require_run(run)
    before = _require_run(baseline) if baseline is not None else None
    path = output or found.report
    _write_report(found, path, _compare_with(before, found))
    echo(f"{path}")


def _require_run(name: str | None) -> EvaluationRun:
    output = load_settings().evaluation_output_dir
    if (found := find_run(output, name)) is not None:
        return found
    latest = sorted(path.parent.name for path in output.glob("*/summary.json"))[-5:]
    what = f"There is no one run {name!r}" if name is not None else "There is no run"
    raise click.UsageError(f"{what} in {output}. The latest there: {', '.join(latest) or 'none'}.")


def _compare_with(before: EvaluationRun | None, run: EvaluationRun) -> Baseline | None:
    return Baseline(before, compare_runs(before, run)) if before is not None else None


def _check_pass(
    run: EvaluationRun, summary: Summary, fail_under: float | None, compared: Baseline | None
) -> bool:
    """Print why the run is not good enough, and return whether it is."""
    is_low = fail_under is not None and summary.score < fail_under - EPSILON
    if is_low:
        echo(f"The score {summary.score:.3f} is under {fail_under:g}.")
    if compared is not None:
        _echo_comparison(compared, run)
    is_open = summary.not_judged > 0 and (fail_under is not None or compared is not None)
    if is_open:
        echo("Not all was judged, so that this is no pass.")
    is_worse = compared is not None and compared.comparison.verdict == "worse"
    return not (is_low or is_open or is_worse)


async def _evaluate_cases(
    configuration: Configuration,
    cases: list[Case],
    dataset: Path,
    options: Options,
    resumed: EvaluationRun | None,
    parallel: int,
) -> EvaluationRun:
    """The run of what is not done yet of `cases`, once it has come to its end."""
    agent_ids = sorted({case.agent for case in cases if case.agent is not None})
    replays = Replays()
    isolated = open_isolated_service(configuration, agent_ids, partial(ReplayToolset, replays))
    async with isolated as (service, folder), AsyncExitStack() as opened:
        metrics = METRICS
        if has_expectation(cases, DEEPEVAL_FIELDS):
            judge = None
            if has_expectation(cases, JUDGED_FIELDS):
                judge = await _build_judge(service, options.judge, parallel)
            label = judge.model.label if judge is not None else None
            options = msgspec.structs.replace(options, judge=label)
            judging = open_judging(judge, configuration.settings, configuration.environment, folder)
            metrics = (*metrics, await opened.enter_async_context(judging))
        await _connect_servers(service)
        agents = {name: await _describe_agent(service, name, options.model) for name in agent_ids}
        if resumed is not None:
            _refuse_changed_agents(resumed, agents)
            run, done = resumed, resumed.restore()
        else:
            summary = Summary(
                dataset=str(dataset),
                started=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
                service_version=__version__,
                options=options,
                agents=agents,
            )
            output = configuration.settings.evaluation_output_dir
            run, done = EvaluationRun.begin(output, dataset, cases, summary), []
        seen = {(result.id, result.attempt) for result in done}
        every = [(case, attempt) for attempt in range(1, options.repeat + 1) for case in cases]
        wanted = [(case, attempt) for case, attempt in every if (case.id, attempt) not in seen]
        # A run that is resumed is not finished until it has come to its end again.
        run.write_summary(msgspec.structs.replace(run.read_summary(), finished=None))
        try:
            with ProgressReporter("cases", len(every), len(done)) as steps:
                await Runner(service, replays, options, metrics).run(
                    wanted, parallel, partial(_save_result, run, steps)
                )
        except asyncio.CancelledError:
            echo(f"Stopped. To go on: ai-agent-service eval run --resume {run.name}", err=True)
            raise
    run.write_summary(summarize_results(run.read_summary(), run.read_results()))
    return run


async def _connect_servers(service: Service) -> None:
    await service.servers.wait_for_start(CONNECT_SECONDS)
    for status in service.servers.statuses:
        if status.state != "ready":
            why = status.error or "it is still starting"
            echo(f"without the tools of {status.label}: {why}", err=True)


async def _build_judge(service: Service, written: str | None, parallel: int) -> Judge:
    assert written is not None
    return Judge(
        await find_model(service, written, "--judge"), service.settings.request_timeout, parallel
    )


async def _describe_agent(service: Service, agent_id: str, model: str | None) -> RunAgent:
    agent = service.catalog.get(agent_id)
    known = model or agent.definition.model or ""
    if not known and await agent.find_problem() is None:
        known = await agent.model()
    return RunAgent(agent.version, agent.parts.provider.name, known)


def _refuse_changed_agents(run: EvaluationRun, agents: dict[str, RunAgent]) -> None:
    """Half of a run by one agent and half by another would tell of neither."""
    for agent_id, before in run.read_summary().agents.items():
        if agents[agent_id] != before:
            was, now = before.description, agents[agent_id].description
            raise click.UsageError(
                f"{agent_id} is not what it was when {run.name} began ({was}; now {now}). Start a"
                " new run."
            )


def _save_result(run: EvaluationRun, steps: ProgressReporter, result: Result) -> None:
    run.add(result)
    judged = " and not judged" if result.not_judged else ""
    steps.advance(f"{result.id}: {result.score:.2f}{judged} in {result.seconds:.2f} s")


def _echo_run(run: EvaluationRun, summary: Summary, results: Sequence[Result]) -> None:
    rows: list[tuple[str, ...]] = [("CASE", "SCORE", "STEPS", "SECONDS", "TOKENS", "NOT MET")]
    by_case = group_by_case(results)
    rows += (_format_row(name, attempts) for name, attempts in by_case.items())
    echo(format_table(rows))
    for name, attempts in by_case.items():
        notes = dict.fromkeys(
            note for attempt in attempts for answer in attempt.answers for note in answer.notes
        )
        for note in notes:
            echo(f"note: {name}: {note}")
    if summary.finished is None:
        echo(f"\n{run.name} was stopped. To go on: ai-agent-service eval run --resume {run.name}")
        return
    agents = ", ".join(
        f"{name}@{each.version} ({each.provider} {each.model})"
        for name, each in summary.agents.items()
    )
    echo(f"\n{agents}")
    if summary.metrics:
        echo(", ".join(f"{name} {score:.2f}" for name, score in summary.metrics.items()))
    if len(summary.attempts) > 1:
        spread = (
            f"standard deviation {summary.deviation:.3f}, {summary.minimum:.3f} to"
            f" {summary.maximum:.3f}"
        )
        echo(
            f"{len(summary.attempts)} attempts: mean {statistics.fmean(summary.attempts):.3f},"
            f" {spread}"
        )
    cost = format_cost(summary.cost)
    took = f"{summary.steps} steps, {summary.seconds:.1f} s, {summary.tokens} tokens{cost}"
    echo(
        f"score {summary.score:.3f} of {summary.cases} cases, {summary.errors} broken by an error;"
        f" {took}"
    )
    if summary.options.judge is not None:
        cost = format_cost(summary.judge_cost)
        echo(f"judged by {summary.options.judge}: {summary.judge_tokens} tokens{cost}")
    if summary.not_judged:
        what = (
            f"{summary.not_judged} of {summary.cases} cases not judged, whose expectations count 0"
        )
        echo(f"{what}. To have them judged again: ai-agent-service eval run --resume {run.name}")
    if run.report.exists():
        echo(f"report: {run.report}")
    echo(f"{run.folder}")


def _format_row(name: str, attempts: Sequence[Result]) -> tuple[str, ...]:
    scores = [attempt.score for attempt in attempts]
    spread = (
        f" (±{statistics.stdev(scores):.2f}, {min(scores):.2f} to {max(scores):.2f})"
        if len(scores) > 1
        else ""
    )
    said = describe_failures(attempts)
    return (
        name,
        f"{statistics.fmean(scores):.2f}{spread}",
        str(sum(attempt.steps for attempt in attempts)),
        f"{sum(attempt.seconds for attempt in attempts):.2f}",
        str(sum(attempt.tokens for attempt in attempts)),
        said if len(said) <= MAX_NOT_MET else f"{said[:MAX_NOT_MET]}...",
    )


def _echo_comparison(compared: Baseline, after: EvaluationRun) -> None:
    before, found = compared.run, compared.comparison
    echo(f"\n{before.name} -> {after.name}")
    for change in found.changed:
        echo(f"  {change.id}: {change.before:.2f} -> {change.after:.2f}")
    left_out = {
        f"only in {before.name}": found.only_before,
        f"only in {after.name}": found.only_after,
        "rewritten": found.rewritten,
        "not judged": found.not_judged,
    }
    for why, names in left_out.items():
        if names:
            echo(f"  left out, {why}: {', '.join(names)}")
    judges = [run.read_summary().options.judge for run in (before, after)]
    if None not in judges and judges[0] != judges[1]:
        echo(
            f"  judged by {judges[0]} first and by {judges[1]} then, which makes a difference of"
            " its own"
        )
    over = f"{found.before:.3f} -> {found.after:.3f} over {found.cases} cases"
    echo(f"{found.verdict}: {over}{found.certainty}")


def _write_recorded(dataset: Path, cases: Sequence[Case], results: Sequence[Result]) -> None:
    first = {result.id: result for result in results if result.attempt == 1}
    path = dataset.with_name(
        f"{dataset.name.removesuffix('.jsonl').removesuffix('.recorded')}.recorded.jsonl"
    )
    broken = [case.id for case in cases if first[case.id].error is not None]
    lines = [
        case.written if case.id in broken else build_recorded_case(case, first[case.id])
        for case in cases
    ]
    _write(path, partial(write_lines, values=lines))
    echo(
        f"Recorded: {path}"
        + (f", without {', '.join(broken)}, which an error broke" if broken else "")
    )


def _write_report(run: EvaluationRun, path: Path, baseline: Baseline | None) -> None:
    written = render_report(run, find_secrets(load_environment()), baseline).encode()
    _write(path, lambda file: file.write_bytes(written))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        write(path)
    except OSError as error:
        problem = f"it cannot be written ({error.strerror})"
        remedy = "Name another file, or give the right to write it"
        raise ConfigError([Fault(file=str(path), problem=problem, remedy=remedy)]) from None
