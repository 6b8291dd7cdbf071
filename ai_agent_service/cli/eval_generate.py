"""ai-agent-service eval generate: has a model write cases about documents, or about what is
described."""

import asyncio
import json
import os
import re
import sys
from contextlib import aclosing
from pathlib import Path
from typing import IO, Any

import click

from ai_agent_service.cli.conventions import CONNECT_SECONDS, EXIT_INTERRUPTED
from ai_agent_service.cli.output import ProgressReporter
from ai_agent_service.cli.streams import echo
from ai_agent_service.config.json_files import suggest_name
from ai_agent_service.core.errors import ConfigError, Fault, ServiceError
from ai_agent_service.core.redaction import find_secrets
from ai_agent_service.evaluation.case_writer import Generator, TargetAgent
from ai_agent_service.evaluation.documents import Piece, allocate_cases, read_documents
from ai_agent_service.evaluation.isolated_service import open_isolated_service
from ai_agent_service.evaluation.model_option import find_model
from ai_agent_service.observability.logging import configure_logging
from ai_agent_service.providers.demo import Demo
from ai_agent_service.runtime.configuration import Configuration, load
from ai_agent_service.runtime.service import Service

MAX_NAME = 40
MAX_LISTED = 20
"""Files and cases that were left out and are named."""


@click.command()
@click.option(
    "--from",
    "sources",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A document, or a folder of them.",
)
@click.option("--description", help="What is to be tested, in place of documents.")
@click.option(
    "--model",
    required=True,
    metavar="PROVIDER:MODEL",
    help="The model that writes the cases, such as ollama:qwen3.",
)
@click.option(
    "--agent", help="The agent that they are for; its prompt and tools are told to the model."
)
@click.option(
    "--count", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many cases."
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file, by default in datasets/ of EVALUATION_OUTPUT_DIR.",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def generate(
    sources: tuple[Path, ...],
    description: str | None,
    model: str,
    agent: str | None,
    count: int,
    output: Path | None,
    force: bool,
) -> None:
    """Have a model write cases about documents (Markdown or text), or about a description. Read
    them before you trust them."""
    if bool(sources) == (description is not None):
        raise click.UsageError("Give either --from or --description.")
    if description is not None and not description.strip():
        raise click.BadParameter("it says nothing.", param_hint="--description")
    pieces, left_out = (
        read_documents(sources) if description is None else ([Piece("", description)], [])
    )
    configuration = load()
    configure_logging("ERROR", find_secrets(configuration.environment))
    known = [each.agent_id for each in configuration.agents]
    if agent is not None and agent not in known:
        raise click.BadParameter(
            f"{agent!r} is not an agent. {suggest_name(agent, known)}", param_hint="--agent"
        )
    named = sources[0].resolve().stem if sources else agent or description or ""
    path = (
        output
        or configuration.settings.evaluation_output_dir
        / "datasets"
        / f"{_to_file_name(named)}.jsonl"
    )
    with _DatasetFile(path, replaces=force) as dataset, ProgressReporter("cases", count) as steps:
        try:
            generator = asyncio.run(
                _generate_cases(configuration, pieces, model, agent, count, dataset, steps)
            )
        except ConfigError:
            raise
        except ServiceError as error:
            raise click.ClickException(f"{error.message.rstrip('.')}. {dataset.summary}") from error
        except KeyboardInterrupt:
            echo(f"Stopped. {dataset.summary}", err=True)
            sys.exit(EXIT_INTERRUPTED)
    _echo_summary(generator, dataset, left_out, count)
    if not dataset.count:
        raise click.ClickException(f"{model} wrote no case of use. Try another model, or say more.")
    echo(f"To run them: ai-agent-service eval run {path}" + ("" if agent else " --agent ID"))


async def _generate_cases(
    configuration: Configuration,
    pieces: list[Piece],
    model: str,
    agent: str | None,
    count: int,
    dataset: "_DatasetFile",
    steps: ProgressReporter,
) -> Generator:
    agent_ids = [agent] if agent is not None else []
    async with open_isolated_service(configuration, agent_ids) as (service, _):
        writer = await find_model(service, model, "--model")
        if isinstance(writer.provider, Demo):
            problem = "demo is no language model and cannot write cases"
            remedy = "Name a real one, such as ollama:qwen3"
            raise ConfigError([Fault(file="--model", problem=problem, remedy=remedy)])
        tested = await _describe_target(service, agent) if agent is not None else None
        generator = Generator(writer, seconds=configuration.settings.request_timeout, agent=tested)
        async with aclosing(generator.generate_cases(allocate_cases(pieces, count))) as cases:
            async for case in cases:
                dataset.add(case)
                steps.advance(case["id"])
    return generator


async def _describe_target(service: Service, agent_id: str) -> TargetAgent:
    """The agent's prompt, and the tools that it has once its MCP servers are there."""
    await service.servers.wait_for_start(CONNECT_SECONDS)
    agent = service.catalog.get(agent_id)
    toolset = agent.parts.toolset
    for words in toolset.unavailable:
        echo(f"note: {words}", err=True)
    return TargetAgent(agent_id, agent.definition.system_prompt, toolset.specs)


class _DatasetFile:
    """A file that cases are added to as they come; it is there once there is one."""

    def __init__(self, path: Path, *, replaces: bool) -> None:
        self._path = path
        self._replaces = replaces
        self._file: IO[str] | None = None
        self.count = 0
        if path.exists() and not replaces:
            raise self._build_error("it is there already; --force replaces it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._build_error(f"its folder cannot be made ({error.strerror})") from error
        if not os.access(path.parent, os.W_OK):
            raise self._build_error("its folder cannot be written to")

    def __enter__(self) -> "_DatasetFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def summary(self) -> str:
        """What is in it."""
        if not self.count:
            return "No case was written."
        return f"{self.count} case{'' if self.count == 1 else 's'}: {self._path}"

    def add(self, case: dict[str, Any]) -> None:
        """Writes a case at once, so that nothing is lost when the command is stopped."""
        try:
            if self._file is None:
                self._file = self._path.open(
                    "w" if self._replaces else "x", encoding="utf-8", newline="\n"
                )
            self._file.write(json.dumps(case, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._build_error(f"it cannot be written ({error.strerror})") from error
        self.count += 1

    def _build_error(self, why: str) -> click.ClickException:
        return click.BadParameter(f"{self._path}: {why}.", param_hint="--output")


def _echo_summary(
    generator: Generator, dataset: _DatasetFile, left_out: list[Path], wanted: int
) -> None:
    for what, names in (
        ("left out", [str(path) for path in left_out]),
        ("dropped", generator.dropped),
    ):
        for name in names[:MAX_LISTED]:
            echo(f"{what}: {name}")
        if len(names) > MAX_LISTED:
            echo(f"{what}: {len(names) - MAX_LISTED} more")
    if generator.duplicates:
        echo(f"{generator.duplicates} left out that were like others")
    usage = generator.usage
    tokens = f"{usage.total_tokens} tokens" if usage is not None else "the provider told no tokens"
    cost = format_cost(usage.cost if usage is not None else None)
    echo(
        f"{generator.questions} question{'' if generator.questions == 1 else 's'} to the model,"
        f" {tokens}{cost}"
    )
    if 0 < dataset.count < wanted:
        echo(f"{wanted} were asked for; the model had no more of use.")
    if dataset.count:
        echo(dataset.summary)


def format_cost(cost: float | None) -> str:
    """The end of a list, with `cost` in US dollars where it is known."""
    return f", ${cost:.4f}" if cost else ""


def _to_file_name(named: str) -> str:
    return re.sub(r"[^\w.-]+", "-", named)[:MAX_NAME].strip("-.").lower() or "cases"
