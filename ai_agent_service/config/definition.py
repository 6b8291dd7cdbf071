"""What the models of the operator's files and settings have in common."""

import ast
import inspect
from itertools import pairwise

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticUseDefault


class Definition(BaseModel):
    """A part of a file, in which unknown fields are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def use_default_for_null(value: object) -> object:
    """Validate a field before its type is checked: null stands for its default."""
    if value is None:
        raise PydanticUseDefault
    return value


def read_descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Return what each field is for: its description, or the docstring below it.

    Docstrings are read from the source, because pydantic would read them at each start.
    """
    found = {name: field.description or "" for name, field in model.model_fields.items()}
    [tree] = ast.parse(inspect.getsource(model)).body
    assert isinstance(tree, ast.ClassDef)
    for field, text in pairwise(tree.body):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(docstring))),
            ):
                found[name] = " ".join(docstring.split())
            case _:
                pass
    return found
