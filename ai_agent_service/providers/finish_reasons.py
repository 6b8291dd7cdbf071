"""Translate the reasons that vendors give for the end of an answer."""

import logging
import re
from collections.abc import Mapping
from typing import Literal

from ai_agent_service.core.errors import ProviderProtocolError
from ai_agent_service.core.events import FinishReason

logger = logging.getLogger(__name__)

_MEANINGS: Mapping[FinishReason | Literal["error"], str] = {
    # "eos", "eos_token": TGI, Together; "complete": Cohere; "load", "unload": Ollama
    "stop": "stop stop_sequence end_turn eos eos_token complete completed load unload",
    # "max_tokens", "error_limit": Cohere, Anthropic, Gemini; "model_length": Mistral;
    # "model_context_window_exceeded": Anthropic, Zhipu; "token_limit": watsonx
    "length": (
        "length max_tokens max_output_tokens max_length model_length token_limit error_limit"
        " context_length_exceeded model_context_window_exceeded"
    ),
    "tool_calls": "tool_calls tool_call tool_use function_call",
    # Gemini's enum FinishReason; "sensitive": Zhipu; "content_filtered", "guardrail_intervened":
    # Bedrock; "refusal": Anthropic; "error_toxic": Cohere
    "content_filter": (
        "content_filter content_filtered content_blocked guardrail_intervened refusal sensitive"
        " error_toxic safety recitation language blocklist prohibited_content spii image_safety"
        " image_recitation image_prohibited_content model_armor"
    ),
    # "insufficient_system_resource", "aborted": DeepSeek; "network_error": Zhipu; "abort": vLLM,
    # SGLang; "malformed_...", "..._tool_call", "missing_thought_signature": Gemini;
    # "malformed_model_output", "malformed_tool_use": Bedrock; "user_cancel": Cohere;
    # "cancelled", "time_limit": watsonx
    "error": (
        "error abort aborted cancel cancelled canceled user_cancel failed timeout time_limit"
        " insufficient_system_resource network_error internal_error server_error overloaded"
        " malformed_function_call malformed_tool_call malformed_tool_use malformed_model_output"
        " malformed_response unexpected_tool_call too_many_tool_calls missing_thought_signature"
    ),
}

FINISH_REASONS: Mapping[str, FinishReason | Literal["error"]] = {
    name: meaning for meaning, names in _MEANINGS.items() for name in names.split()
}
"""The meaning of each vendor's reason, in lower case; `error` is one that means a failure."""

_PATTERNS: tuple[tuple[FinishReason | Literal["error"], re.Pattern[str]], ...] = (
    ("content_filter", re.compile(r"filter|safety|sensitive|prohibited|moderat|guardrail|toxic")),
    ("length", re.compile(r"length|(?:max|limit).*token|token.*limit|context.*exceed|truncat")),
    ("error", re.compile(r"error|abort|cancel|fail|time_?out|malformed|overload|exception")),
    ("tool_calls", re.compile(r"tool|function_?call")),
)
"""What the words in a reason mean that has no name above."""

_NO_REASON = frozenset({"", "null", "none", "not_finished"})


def read_finish_reason(value: object) -> str | None:
    """Return what a vendor sends as the reason; None if it is none, such as DashScope's "null"."""
    if not isinstance(value, str) or value.strip().lower() in _NO_REASON:
        return None
    return value.strip()


def to_finish_reason(said: str, provider: str) -> FinishReason:
    """Return OpenAI's name of a vendor's finish reason; an unknown one means that the answer is
    complete. Raises ProviderProtocolError for one that means a failure."""
    meaning = find_meaning(said)
    if meaning == "error":
        reason = "" if said.lower() == "error" else f": {said[:80]}"
        raise ProviderProtocolError(f"{provider} ended its answer with an error{reason}.")
    if meaning is None:
        extra = {"provider": provider, "reason": said[:40]}
        logger.warning("provider.unknown_finish_reason", extra=extra)
        return "stop"
    return meaning


def find_meaning(said: str) -> FinishReason | Literal["error"] | None:
    """Return the meaning of a reason, also of one such as `FinishReason.SAFETY` or
    `function_call_filter: MALFORMED_FUNCTION_CALL`; None if it is unknown."""
    name = re.split(r"[.:/\s]+", re.sub(r"(?<=[a-z])(?=[A-Z])|-", "_", said).lower())[-1]
    found = FINISH_REASONS.get(name)
    return found or next((found for found, words in _PATTERNS if words.search(name)), None)
