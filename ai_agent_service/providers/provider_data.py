"""Attach to a call what its provider wants back, and read it for that provider only."""

from collections.abc import Iterable, Mapping
from functools import partial, reduce
from itertools import islice
from typing import Any

import msgspec

from ai_agent_service.core.messages import ProviderData, ToolCall
from ai_agent_service.providers.lenient import clean, parse_json

_CONTINUED = frozenset(
    {"reasoning", "reasoning_content", "reasoning_text", "text", "summary", "data", "thinking"}
)
"""The members whose pieces are parts of one text; of any other one the last value counts."""

MAX_OPEN_BLOCKS = 64
"""How many of the last blocks a piece with an index may continue."""


class _Pieces(list[str]):
    """A text of which pieces are still added."""


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
    return _join(reduce(partial(_merge, name), values))


def _merge(name: str, old: Any, new: Any) -> Any:
    """Return both as one value; `old` is changed, since a copy for each piece would take time that
    grows with the square of their number."""
    match old, new:
        case _, None:
            return old
        case _Pieces(), str():
            old.append(new)
            return old
        case str(), str() if name in _CONTINUED:
            return _Pieces([old, new])
        case dict(), dict():
            for key, value in new.items():
                old[key] = _merge(key, old.get(key), value)
            return old
        case list(), list() if not isinstance(old, _Pieces):
            for block in new:
                _add_block(old, block)
            return old
        case _:
            return new


def _join(value: Any) -> Any:
    """Return `value` with texts in place of their pieces."""
    match value:
        case _Pieces():
            return "".join(value)
        case dict():
            return {name: _join(part) for name, part in value.items()}
        case list():
            return [_join(part) for part in value]
        case _:
            return value


def _add_block(blocks: list[Any], new: Any) -> None:
    """Merge `new` into the one of `blocks` that it continues, else add it.

    OpenRouter's `reasoning_details` have an index; blocks without one, such as LiteLLM's
    `thinking_blocks`, continue the last one, which a signature completes.
    """
    for age, old in enumerate(islice(reversed(blocks), MAX_OPEN_BLOCKS)):
        if _is_continued(old, new, is_last=not age):
            _merge("", old, new)
            return
    blocks.append(new)


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
