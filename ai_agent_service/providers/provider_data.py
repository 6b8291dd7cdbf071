"""Attach to a call what its provider wants back, and read it for that provider only."""

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import msgspec

from ai_agent_service.core.messages import ProviderData, ToolCall
from ai_agent_service.providers.lenient import clean, parse_json

_CONTINUED = frozenset(
    {"reasoning", "reasoning_content", "reasoning_text", "text", "summary", "data", "thinking"}
)
"""The members whose pieces are parts of one text; of any other one the last value counts."""


def add_provider_data(
    call: ToolCall, provider: str, model: str, data: Mapping[str, Any]
) -> ToolCall:
    """Return `call` with `data`, which is a JSON object with keys that the wire format chooses;
    those without a value are left out."""
    found = {name: clean(value) for name, value in data.items() if value}
    if not found:
        return call
    text = msgspec.json.encode(found).decode()
    return msgspec.structs.replace(call, provider_data=ProviderData(provider, model, text))


def read_provider_data(call: ToolCall, provider: str, model: str | None = None) -> dict[str, Any]:
    """Return the data of `call`, empty unless it is from `provider` and, where given, `model`."""
    kept = call.provider_data
    if kept is None or kept.provider != provider or model not in (None, kept.model):
        return {}
    data: dict[str, Any] = parse_json(kept.data)
    return data


def merge_members(pieces: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members of a message or a call from the `pieces` of a stream, in order."""
    found: dict[str, list[Any]] = {}
    for name, value in pieces:
        found.setdefault(name, []).append(value if isinstance(value, str) else clean(value))
    return {name: _merge_all(name, values) for name, values in found.items()}


def _merge_all(name: str, values: list[Any]) -> Any:
    if name in _CONTINUED and all(isinstance(value, str) for value in values):
        return "".join(values)
    merged, *others = values
    for value in others:
        merged = _merge(name, merged, value)
    return merged


def _merge(name: str, old: Any, new: Any) -> Any:
    match old, new:
        case _, None:
            return old
        case str(), str() if name in _CONTINUED:
            return old + new
        case dict(), dict():
            return old | {key: _merge(key, old.get(key), value) for key, value in new.items()}
        case list(), list():
            return reduce(_add_block, new, old)
        case _:
            return new


def _add_block(blocks: list[Any], new: Any) -> list[Any]:
    """Return `blocks` with `new` merged into the one that it continues, else added.

    OpenRouter's `reasoning_details` have an index; blocks without one, such as LiteLLM's
    `thinking_blocks`, continue the last one, which a signature completes.
    """
    for place in range(len(blocks) - 1, -1, -1):
        old = blocks[place]
        if _is_continued(old, new, is_last=place == len(blocks) - 1):
            return [*blocks[:place], _merge("", old, new), *blocks[place + 1 :]]
    return [*blocks, new]


def _is_continued(old: Any, new: Any, *, is_last: bool) -> bool:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return False
    if any(
        old.get(name) and new.get(name) and old[name] != new[name] for name in ("type", "id")
    ) or old.get("index") != new.get("index"):
        return False
    if new.get("index") is not None:
        return True
    return is_last and not old.get("signature") and bool(_CONTINUED & old.keys() & new.keys())
