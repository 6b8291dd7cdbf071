"""Make a function a tool: its signature is the schema, its docstring the description."""

import asyncio
import contextlib
import contextvars
import inspect
import json
import re
import threading
from collections.abc import Callable
from typing import Any, get_type_hints, overload

import docstring_parser
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic_core import PydanticUndefined

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.messages import ToolSpec
from ai_agent_service.tools.base import DEFAULT_MAX_OUTPUT, ToolOutput

Function = Callable[..., Any]
_NAME = re.compile(r"^[A-Za-z0-9_-]{1,64}$")
_ANYTHING: TypeAdapter[object] = TypeAdapter(object)


class FunctionTool:
    """A function as a tool, which can still be called as a function."""

    def __init__(
        self,
        function: Function,
        *,
        name: str | None,
        timeout: float | None,
        parallel: bool,
        max_output: int,
    ) -> None:
        self.function = function
        self.timeout = timeout
        self.parallel = parallel
        self.max_output = max_output
        self._is_async = inspect.iscoroutinefunction(function)
        name = name or function.__name__
        if not _NAME.match(name):
            raise ValueError(
                f"a tool's name has letters, digits, _ and - only, 64 at most: {name!r}"
            )
        documented = docstring_parser.parse(inspect.getdoc(function) or "")
        described = {each.arg_name: each.description or "" for each in documented.params}
        fields: dict[str, Any] = {}
        self._context_parameter: str | None = None
        hints = get_type_hints(function, include_extras=True)
        self._parameters: dict[str, str] = {}
        for number, parameter in enumerate(inspect.signature(function).parameters.values()):
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(
                    f"the tool {name!r} takes {parameter}: only parameters that have a name can be"
                    " filled by a model"
                )
            annotation = hints.get(parameter.name, str)
            if annotation in (RunContext, RunContext | None):
                self._context_parameter = parameter.name
                continue
            is_required = parameter.default is parameter.empty
            default = PydanticUndefined if is_required else parameter.default
            # The field has another name, since a model's may not be called `schema` or `_x`.
            self._parameters[f"parameter_{number}"] = parameter.name
            text = described.get(parameter.name)
            field = Field(default, alias=parameter.name, description=text)
            fields[f"parameter_{number}"] = (annotation, field)
        self._model = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        paragraphs = (documented.short_description, documented.long_description)
        description = "\n\n".join(filter(None, paragraphs))
        parameters = _clean_schema(self._model.model_json_schema())
        self.spec = ToolSpec(name=name, description=description, parameters=parameters)
        self._expected = _to_json(parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself."""
        return self.function(*args, **kwargs)

    async def run(self, arguments: dict[str, object], context: RunContext) -> ToolOutput:
        """Check `arguments` against the signature and call the function, in a thread unless it is
        async."""
        try:
            model = self._model.model_validate(arguments)
        except ValidationError as error:
            raise ToolError(f"{_explain_error(error)}. Expected are: {self._expected}") from None
        values = {name: getattr(model, field) for field, name in self._parameters.items()}
        if self._context_parameter:
            values[self._context_parameter] = context
        if self._is_async:
            value = await self.function(**values)
        else:
            value = await _run_in_thread(self.function, values)
        if isinstance(value, ToolOutput):
            return value
        return ToolOutput(value if isinstance(value, str) else _to_json(value))


@overload
def tool(function: Function, /) -> FunctionTool: ...
@overload
def tool(
    *,
    name: str | None = None,
    timeout: float | None = None,
    parallel: bool = True,
    max_output: int = DEFAULT_MAX_OUTPUT,
) -> Callable[[Function], FunctionTool]: ...
def tool(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    timeout: float | None = None,
    parallel: bool = True,
    max_output: int = DEFAULT_MAX_OUTPUT,
) -> FunctionTool | Callable[[Function], FunctionTool]:
    """Make a function a tool, as `@tool` or `@tool(timeout=5)`.

    A parameter annotated `RunContext` is filled by the service and not shown to the model.
    Descriptions come from the docstring (Google, NumPy or reST style). What the function returns
    reaches the model as text: a str as it is, a ToolOutput with its images, anything else as JSON.
    It raises ToolError to tell the model what to do better. `timeout` is in seconds, `max_output`
    in bytes.
    """

    def decorate(function: Function) -> FunctionTool:
        return FunctionTool(
            function, name=name, timeout=timeout, parallel=parallel, max_output=max_output
        )

    return decorate(function) if function is not None else decorate


async def _run_in_thread(function: Function, values: dict[str, Any]) -> Any:
    """Return or raise what `function` does, in a separate thread, so that one that hangs delays
    neither others nor the shutdown."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: Any, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)

    def work() -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            value = context.run(function, **values)
        # the only exception that a future refuses
        except StopIteration as stop:
            error = RuntimeError(f"the function raised {stop!r}")
        # it is raised again where the tool is awaited
        except BaseException as raised:  # noqa: BLE001
            error = raised
        # The loop may have ended without waiting for this thread.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, value, error)

    name = getattr(function, "__name__", "")  # a callable object has none
    threading.Thread(target=work, name=f"tool {name}", daemon=True).start()
    return await done


def _to_json(value: object) -> str:
    return json.dumps(
        _ANYTHING.dump_python(value, mode="json"), ensure_ascii=False, separators=(",", ":")
    )


def _clean_schema(schema: dict[str, Any]) -> dict[str, object]:
    """Return `schema` without the titles that pydantic adds, which cost tokens and say nothing."""

    def clean(value: Any, *, names: bool = False) -> Any:
        if isinstance(value, dict):
            return {
                key: clean(item, names=key in ("properties", "$defs"))
                for key, item in value.items()
                if names or not (key == "title" and isinstance(item, str))
            }
        return [clean(item) for item in value] if isinstance(value, list) else value

    schema.setdefault("properties", {})
    result: dict[str, object] = clean(schema)
    return result


def _explain_error(error: ValidationError) -> str:
    parts = []
    for part in error.errors(include_url=False):
        field = ".".join(str(step) for step in part["loc"])
        parts.append(f"{field}: {part['msg']}" if field else part["msg"])
    return "The arguments do not fit: " + "; ".join(parts)
