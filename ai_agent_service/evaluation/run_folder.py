"""The folder of an evaluation run."""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from ai_agent_service.core.errors import ConfigError, Fault
from ai_agent_service.evaluation.dataset import Case
from ai_agent_service.evaluation.results import Result, Summary

MAX_NAME = 60


class EvaluationRun:
    """The folder of one run: `dataset.jsonl`, `results.jsonl`, to which each result is added as it
    comes, `summary.json`, `report.html`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset = folder / "dataset.jsonl"
        self.report = folder / "report.html"

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @classmethod
    def begin(
        cls, output: Path, dataset: Path, cases: Iterable[Case], summary: Summary
    ) -> "EvaluationRun":
        """A new run below `output`; raises ConfigError if nothing can be written there."""
        name = (
            re.sub(r"[^A-Za-z0-9._-]+", "-", dataset.name.removesuffix(".jsonl"))[:MAX_NAME].strip(
                "-."
            )
            or "run"
        )
        stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}"
        number = 1
        while True:
            folder = output / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                if not output.is_dir():
                    raise _build_unwritable_error(output, "it is no folder") from None
                number += 1
                continue
            except OSError as error:
                raise _build_unwritable_error(output, str(error.strerror)) from None
            break
        run = cls(folder)
        write_lines(run.dataset, (case.written for case in cases))
        run.write_summary(summary)
        return run

    def read_summary(self) -> Summary:
        """What summary.json says; raises ConfigError."""
        path = self.folder / "summary.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Summary)
        except (OSError, msgspec.DecodeError) as error:
            problem = f"it is no summary of a run ({error})"
            raise ConfigError(
                [Fault(file=str(path), problem=problem, remedy="Name a folder that eval run made")]
            ) from None

    def write_summary(self, summary: Summary) -> None:
        """Replaces summary.json."""
        written = msgspec.json.format(msgspec.json.encode(summary), indent=2)
        (self.folder / "summary.json").write_bytes(written + b"\n")

    def read_cases(self) -> dict[str, dict[str, Any]]:
        """The dataset as it was, by the ids of its cases."""
        lines = self.dataset.read_text(encoding="utf-8").splitlines()
        return {case["id"]: case for case in map(json.loads, lines)}

    def read_results(self) -> list[Result]:
        """The results that there are, in the dataset's order; one that was cut off as the process
        was killed is left out.

        Raises ConfigError for what is no result.
        """
        path = self.folder / "results.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        found = []
        for number, line in enumerate(lines[:-1], 1):
            try:
                found.append(msgspec.json.decode(line, type=Result))
            except msgspec.DecodeError as error:
                where, problem = f"line {number}", f"this is no result ({error})"
                fault = Fault(
                    file=str(path), where=where, problem=problem, remedy="Take the line out"
                )
                raise ConfigError([fault]) from None
        places = {name: place for place, name in enumerate(self.read_cases())}
        return sorted(
            found, key=lambda result: (places.get(result.id, len(places)), result.attempt)
        )

    def add(self, result: Result) -> None:
        """Writes `result` at once, so that nothing is lost when the run is stopped."""
        with (self.folder / "results.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(result) + b"\n")

    def restore(self) -> list[Result]:
        """As `results`, and takes out of the file what is to be done again: a result that was cut
        off, and those not judged."""
        found = [result for result in self.read_results() if not result.not_judged]
        kept = (
            self.folder / "results.jsonl.kept"
        )  # so that nothing is lost if the process is killed here
        kept.write_bytes(b"".join(msgspec.json.encode(result) + b"\n" for result in found))
        kept.replace(self.folder / "results.jsonl")
        return found


def find_run(output: Path, name: str | None) -> EvaluationRun | None:
    """The run called `name` - a folder of `output`, how its name begins if no other does so, or a
    path -, or the newest one."""
    if name and (Path(name) / "summary.json").exists():
        return EvaluationRun(Path(name).resolve())
    folders = sorted(path.parent for path in output.glob("*/summary.json"))
    if name is None:
        return EvaluationRun(folders[-1]) if folders else None
    exact = [folder for folder in folders if folder.name == name]
    found = exact or [folder for folder in folders if folder.name.startswith(name)]
    return EvaluationRun(found[0]) if len(found) == 1 else None


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Writes `values` as JSON Lines."""
    path.write_text(
        "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8"
    )


def build_recorded_case(case: Case, result: Result) -> dict[str, Any]:
    """`case` as written, with the results that its tools gave in `result`; calls that were not
    carried out are left out."""
    used = (
        tool
        for answer in result.answers
        for tool in answer.tools
        if tool.outcome != "refused" and tool.arguments is not None
    )
    results = [
        {
            "name": tool.name,
            "arguments": tool.arguments,
            "content": tool.content,
            **({"is_error": True} if tool.is_error else {}),
        }
        for tool in used
    ]
    return {**case.written, "tool_results": results}


def _build_unwritable_error(output: Path, why: str) -> ConfigError:
    fault = Fault(
        file="environment",
        field="EVALUATION_OUTPUT_DIR",
        problem=f"{output} cannot be written ({why})",
        remedy="Name a folder that can be made",
    )
    return ConfigError([fault])
