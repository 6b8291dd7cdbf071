"""Turns what is wrong with an entry of a file into faults, all of them at once."""

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
from pydantic import BaseModel, ValidationError

from ai_agent_service.config.json_files import suggest_name
from ai_agent_service.core.errors import Fault

T = TypeVar("T")


class EntryKind(msgspec.Struct, frozen=True):
    """What a file lists. `id_field` identifies an entry, `id_noun` is what people call it, and
    `form` is how an entry is written."""

    noun: str
    id_field: str
    id_noun: str
    id_rule: str
    form: str


def read_entries(
    path: Path,
    entries: Iterable[tuple[str, object]],
    kind: EntryKind,
    read: Callable[[dict[str, Any], str], tuple[T | None, list[Fault]]],
) -> tuple[list[T], list[Fault]]:
    """Read each of `entries`, which are objects with their places in `path`; no two may have the
    same id.

    `read` leaves file and place of its faults open.
    """
    results: list[T] = []
    faults: list[Fault] = []
    seen = set()
    for where, entry in entries:
        if isinstance(entry, dict):
            result, found = read(entry, where)
            if isinstance(entry_id := entry.get(kind.id_field), str):
                if entry_id in seen:
                    problem = f"another {kind.noun} has this {kind.id_noun}"
                    remedy = "Rename one of them"
                    found.append(Fault(field=kind.id_field, problem=problem, remedy=remedy))
                seen.add(entry_id)
        else:
            result = None
            found = [Fault(problem="this is not an object", remedy=f"Write {kind.form}")]
        faults += (msgspec.structs.replace(fault, file=str(path), where=where) for fault in found)
        if result is not None:
            results.append(result)
    return results, faults


def number_entries(entries: list[Any], kind: EntryKind) -> Iterator[tuple[str, Any]]:
    """Return the entries of a list with their places: by their id, or by their number."""
    for number, entry in enumerate(entries, 1):
        entry_id = entry.get(kind.id_field) if isinstance(entry, dict) else None
        is_named = isinstance(entry_id, str)
        yield f"{kind.noun} {entry_id!r}" if is_named else f"{kind.noun} number {number}", entry


def build_validation_faults(
    error: ValidationError,
    model: type[BaseModel],
    *,
    page: str = "docs/reference.md",
    kind: EntryKind | None = None,
    not_written: Collection[str] = (),
) -> list[Fault]:
    """Return a fault for each part of `error`, which `model` raised, without file and place; none
    repeats a value.

    `page` describes the fields, `kind` says which characters an id may have, and fields that are
    `not_written` by the operator are never suggested.
    """
    faults = []
    for part in error.errors(include_input=False, include_url=False):
        place = part["loc"]
        match part["type"]:
            case "extra_forbidden":
                known = _find_fields(model, place[:-1]) - set(not_written)
                problem, remedy = "this field is not known", suggest_name(str(place[-1]), known)
            case "missing":
                problem, remedy = "this field is missing", "Add it"
            case "string_pattern_mismatch" if kind is not None:
                problem, remedy = kind.id_rule, f"Rename the {kind.noun}"
            case _:
                problem = part["msg"].removeprefix("Value error, ")
                remedy = f"Correct it; {page} describes every field"
        field = ".".join(map(str, place))
        faults.append(Fault(field=field, problem=problem, remedy=remedy))
    return faults


def _find_fields(model: type[BaseModel], place: tuple[int | str, ...]) -> set[str]:
    """Return the fields of the model that `place` in `model` leads into; a step that is not a field
    is a key or a number."""
    for step in place:
        if (field := model.model_fields.get(str(step))) is not None:
            model = next(_find_models(field.annotation), model)
    return set(model.model_fields)


def _find_models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _find_models(inner)
