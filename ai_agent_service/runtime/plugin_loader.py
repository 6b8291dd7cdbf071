"""Finds tools, providers, agent types and memories: the built-in ones, entry points of installed
packages, and the plugins folder."""

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import msgspec

from ai_agent_service.agents.agent import Agent
from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.config.memory_definition import BUILT_IN as SQL
from ai_agent_service.core.errors import Fault
from ai_agent_service.memory.base import MemoryFactory
from ai_agent_service.providers.azure import AzureOpenAI
from ai_agent_service.providers.base import ProviderFactory
from ai_agent_service.providers.demo import Demo
from ai_agent_service.providers.ollama import Ollama
from ai_agent_service.providers.openai_compatible import OpenAICompatible
from ai_agent_service.providers.openrouter import OpenRouter
from ai_agent_service.tools.base import Tool
from ai_agent_service.tools.builtin import add_two_numbers, calculate, get_current_datetime

GROUP = "ai_agent_service"
BUILT_IN: tuple[Any, ...] = (
    get_current_datetime,
    calculate,
    add_two_numbers,
    AzureOpenAI,
    OpenRouter,
    OpenAICompatible,
    Ollama,
    Demo,
    Agent,
)


class Plugins(msgspec.Struct, frozen=True):
    """Everything that agent_config.json can name, by its name."""

    tools: dict[str, Tool]
    providers: dict[str, ProviderFactory]
    agents: dict[str, type[BaseAgent]]
    memories: dict[str, MemoryFactory] = {}


def load_plugins(folder: Path | None = None) -> tuple[Plugins, list[Fault]]:
    """All that is built in, installed and in `folder`, and what of it cannot be loaded or has a
    taken name.

    Entry points stand in the groups `ai_agent_service.tools`, `.providers`, `.agents` and
    `.memories`. In `folder`, each .py file whose name does not begin with an underscore is
    imported, and the tools, and the classes of providers, agents and memories, that it defines
    under a name without an underscore are taken.
    """
    plugins = Plugins({}, {}, {}, {})
    faults: list[Fault] = []
    for item in BUILT_IN:
        _add(plugins, item, "built in", faults)
    for kind in ("tools", "providers", "agents", "memories"):
        for point in entry_points(group=f"{GROUP}.{kind}"):
            source = (
                f"entry point {point.name!r} of"
                f" {point.dist.name if point.dist else 'an installed package'}"
            )
            try:
                item = point.load()
            # a plug-in is foreign code and may raise anything
            except (Exception, SystemExit) as error:  # noqa: BLE001
                faults.append(_build_load_fault(source, error))
                continue
            _add(plugins, item, source, faults)
    if folder is not None:
        for path, module in _import_modules(folder, faults):
            for item in _find_plugins(module):
                _add(plugins, item, str(path), faults)
    return plugins, faults


def _add(plugins: Plugins, item: Any, source: str, faults: list[Fault]) -> None:
    if inspect.isclass(item) and issubclass(item, BaseAgent):
        kind, registry, name = (
            "agent type",
            cast(dict[str, Any], plugins.agents),
            getattr(item, "type", ""),
        )
    elif _is_provider(item):
        kind, registry, name = "provider", cast(dict[str, Any], plugins.providers), item.name
    elif _is_memory(item):
        kind, registry, name = "memory backend", cast(dict[str, Any], plugins.memories), item.name
    elif not inspect.isclass(item) and isinstance(item, Tool):
        kind, registry, name = "tool", cast(dict[str, Any], plugins.tools), item.spec.name
    else:
        faults.append(
            Fault(
                file=source,
                problem=(
                    "this is neither a tool, nor a provider class, nor an agent class, nor a memory"
                    " class"
                ),
                remedy="docs/extending.md shows what each looks like",
            )
        )
        return
    if not name:
        faults.append(
            Fault(
                file=source,
                problem=f"the {kind} {item.__name__} has no name",
                remedy="Set its class attribute: type or name",
            )
        )
    elif registry.get(name) is item:
        return  # another module's, imported by this one
    elif inspect.isabstract(item):
        lacking = ", ".join(sorted(item.__abstractmethods__))
        faults.append(
            Fault(
                file=source,
                problem=f"the {kind} {item.__name__} does not define {lacking}",
                remedy="Define it",
            )
        )
    elif name in registry or (kind == "memory backend" and name == SQL):
        faults.append(
            Fault(
                file=source,
                problem=f"there is another {kind} of the name {name!r}",
                remedy="Rename this one",
            )
        )
    else:
        registry[name] = item


def _is_provider(item: Any) -> bool:
    return (
        inspect.isclass(item)
        and hasattr(item, "from_setup")
        and hasattr(item, "stream")
        and isinstance(getattr(item, "name", None), str)
    )


def _is_memory(item: Any) -> bool:
    return (
        inspect.isclass(item)
        and hasattr(item, "open")
        and hasattr(item, "begin")
        and isinstance(getattr(item, "name", None), str)
    )


def _find_plugins(module: ModuleType) -> Iterator[Any]:
    named = {
        id(item): item for name, item in vars(module).items() if not name.startswith("_")
    }  # each once, whatever its names
    for item in named.values():
        if inspect.isclass(item):
            if item.__module__ == module.__name__ and (
                issubclass(item, BaseAgent) or _is_provider(item) or _is_memory(item)
            ):
                yield item
        elif isinstance(item, Tool):
            yield item


def _import_modules(folder: Path, faults: list[Fault]) -> Iterator[tuple[Path, ModuleType]]:
    if not folder.is_dir():
        faults.append(
            Fault(
                file=str(folder),
                field="PLUGINS_DIR",
                problem="this is not a folder",
                remedy="Create it, or unset PLUGINS_DIR",
            )
        )
        return
    for path in sorted(folder.glob("[!_]*.py")):
        name = f"ai_agent_service_plugins.{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        # a plug-in is foreign code and may raise anything
        except (Exception, SystemExit) as error:  # noqa: BLE001
            del sys.modules[name]
            faults.append(_build_load_fault(str(path), error))
            continue
        yield path, module


def _build_load_fault(source: str, error: BaseException) -> Fault:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "app":
        problem = "it imports from 'app', the package's former name"
        return Fault(
            file=source, problem=problem, remedy="Import from ai_agent_service.plugins instead"
        )
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    number = (
        error.lineno
        if isinstance(error, SyntaxError)
        else trace.tb_lineno
        if trace is not None
        else None
    )
    line = f", line {number}" if number is not None and not isinstance(error, SyntaxError) else ""
    return Fault(
        file=source,
        problem=f"it cannot be loaded ({type(error).__name__}: {error}{line})",
        remedy="Correct it, or take it away",
    )
