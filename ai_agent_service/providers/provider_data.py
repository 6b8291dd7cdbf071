"""Attach to a call what its provider wants back, and read it for that provider only."""

from collections.abc import Mapping
from typing import Any

import msgspec

from ai_agent_service.core.messages import ProviderData, ToolCall


def add_provider_data(
    call: ToolCall, provider: str, model: str, data: Mapping[str, Any]
) -> ToolCall:
    """Return `call` with `data`, which is a JSON object with keys that the wire format chooses."""
    text = msgspec.json.encode(data).decode()
    return msgspec.structs.replace(call, provider_data=ProviderData(provider, model, text))


def read_provider_data(call: ToolCall, provider: str, model: str | None = None) -> dict[str, Any]:
    """Return the data of `call`, empty unless it is from `provider` and, where given, `model`."""
    kept = call.provider_data
    if kept is None or kept.provider != provider or model not in (None, kept.model):
        return {}
    data: dict[str, Any] = msgspec.json.decode(kept.data)
    return data
