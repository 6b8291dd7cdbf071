"""Reads the operator's JSON files and collects every fault in them before any is reported."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dotenv import dotenv_values

from ai_agent_service.core.errors import Fault

_STRING = r'"(?:[^"\\\n]++|\\.)*+"?'
_COMMENT = re.compile(rf"({_STRING}|/\*(?!.*?\*/).*)|//[^\n]*|/\*.*?\*/", re.DOTALL)
_TRAILING_COMMA = re.compile(rf"({_STRING})|,(?=\s*[\]}}])", re.DOTALL)
"""Both find what stays as it is too: strings, whatever stands in them, and a comment that never
ends, so that it is looked at once."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_environment(env_file: Path = Path(".env")) -> Mapping[str, str]:
    """The variables that `${NAME}` may name: those of `env_file`, overridden by the process's own;
    an empty one counts as unset."""
    found = {
        **dotenv_values(env_file),
        **{name: value for name, value in os.environ.items() if value},
    }
    return {name: value for name, value in found.items() if value}


def read_text(path: Path) -> str | Fault:
    """The text of `path` (UTF-8, with or without a byte order mark), or the fault that keeps it
    from being read."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        problem = "the file does not exist"
        remedy = f"Create it, or start where it lies (here: {Path.cwd()})"
    except IsADirectoryError:
        problem, remedy = "this is a folder", "Name a file"
    except OSError as error:
        problem = f"it cannot be read ({error.strerror})"
        remedy = "Give the service the right to read it"
    except UnicodeDecodeError as error:
        problem = f"it is not UTF-8 text (byte {error.start})"
        remedy = "Save it as UTF-8"
    return Fault(file=str(path), problem=problem, remedy=remedy)


def read_json(path: Path) -> tuple[object, list[Fault]]:
    """The JSON value in `path` and what is wrong with the file; the value is None when there is a
    fault. Comments are passed over."""
    text = read_text(path)
    return (
        (None, [text]) if isinstance(text, Fault) else parse_json(strip_comments(text), str(path))
    )


def strip_comments(text: str) -> str:
    """JSON with comments, as Visual Studio Code reads it, as plain JSON: `//` and `/* */` and
    commas after last entries become spaces, so that all else keeps its line and its column.
    """
    return _TRAILING_COMMA.sub(_replace_with_spaces, _COMMENT.sub(_replace_with_spaces, text))


def _replace_with_spaces(match: re.Match[str]) -> str:
    return match[1] or re.sub(r"[^\n]", " ", match[0])


def parse_json(text: str, file: str) -> tuple[object, list[Fault]]:
    """The JSON value that `text` of `file` is and what is wrong with it; the value is None when
    there is a fault."""
    twice: list[str] = []

    def build_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice.extend(sorted({name for name in names if names.count(name) > 1}))
        return found

    where = ""
    try:
        value = json.loads(text, object_pairs_hook=build_object, parse_constant=_reject_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        problem, remedy = f"this is not JSON ({error.msg})", "Correct it there"
    except RecursionError:
        problem, remedy = "it is nested too deeply", "Write it flatter"
    except UnicodeEncodeError:
        problem = "a text in it has half of a surrogate pair"
        remedy = "Write the whole character"
    except ValueError:
        problem = "a number in it is none, or has too many digits"
        remedy = "Correct it; JSON has no NaN"
    else:
        problem, remedy = "this field stands twice in one object", "Keep one of them"
        return (None if twice else value), [
            Fault(file=file, field=name, problem=problem, remedy=remedy) for name in twice
        ]
    return None, [Fault(file=file, where=where, problem=problem, remedy=remedy)]


def _reject_constant(name: str) -> object:
    raise ValueError(name)


def expand_variables(value: object, environment: Mapping[str, str], missing: set[str]) -> object:
    """`value` with each `${NAME}` in its strings replaced once; names that are unset are added to
    `missing`."""
    if isinstance(value, str):

        def replace_variable(match: re.Match[str]) -> str:
            name = match.group(1)
            if environment.get(name):
                return environment[name]
            missing.add(name)
            return match.group(0)

        return _VARIABLE.sub(replace_variable, value)
    if isinstance(value, dict):
        return {key: expand_variables(item, environment, missing) for key, item in value.items()}
    if isinstance(value, list):
        return [expand_variables(item, environment, missing) for item in value]
    return value


def suggest_name(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown `name`: the closest known one, or all of them."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known are: {', '.join(choices)}" if choices else "None is known here"


def hash_json(value: object) -> str:
    """A digest of a JSON value, whatever the order of its fields: the same on every machine.
    Source: SHA-256, in hexadecimal."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
