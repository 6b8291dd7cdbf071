"""Read the tokens that a provider counted, by any vendor's names and arithmetic."""

from collections.abc import Sequence
from typing import Any

from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.lenient import read_count, read_number

_NAMES: dict[str, tuple[str, ...]] = {
    # OpenAI's chat completions; its Responses and Anthropic; Ollama
    "prompt": ("prompt_tokens", "input_tokens", "prompt_eval_count"),
    "completion": ("completion_tokens", "output_tokens", "eval_count"),
    # OpenAI; DeepSeek; Moonshot; Anthropic
    "cached": (
        "prompt_tokens_details.cached_tokens",
        "input_tokens_details.cached_tokens",
        "prompt_cache_hit_tokens",
        "cached_tokens",
        "cache_read_input_tokens",
    ),
    # OpenAI; Perplexity
    "reasoning": (
        "completion_tokens_details.reasoning_tokens",
        "output_tokens_details.reasoning_tokens",
        "reasoning_tokens",
    ),
    "total": ("total_tokens",),
}


def parse_usage(value: Any) -> Usage | None:
    """Return the tokens in a provider's usage object; None if it has no count that can be read.

    Reasoning and cached tokens that the vendor counts beside completion and prompt tokens (xAI,
    Gemini, Anthropic) are added to them. The total shows it or, without a total, a part that is
    larger than its whole.
    """
    if not isinstance(value, dict) or not value:
        return None
    counts = {kind: _find_count(value, names) for kind, names in _NAMES.items()}
    if all(count is None for count in counts.values()):
        return None
    prompt, completion = counts["prompt"] or 0, counts["completion"] or 0
    cached, reasoning = counts["cached"] or 0, counts["reasoning"] or 0
    # Some servers leave the total at 0.
    total = counts["total"] or 0
    if counts["completion"] is None and counts["prompt"] is not None:
        completion = max(0, total - prompt)
    elif counts["prompt"] is None and counts["completion"] is not None:
        prompt = max(0, total - completion)
    rest = total - prompt - completion if total >= prompt + completion else None
    if reasoning and _is_beside(reasoning, completion, rest, also=cached):
        completion += reasoning
        rest = rest and rest - reasoning
    if cached and _is_beside(cached, prompt, rest):
        prompt += cached
        rest = rest and rest - cached
    return Usage(
        prompt,
        completion,
        min(cached, prompt),
        min(reasoning, completion),
        read_number(value.get("cost")),
        max(0, rest or 0),
    )


def _is_beside(part: int, whole: int, rest: int | None, *, also: int = 0) -> bool:
    """Return whether `part` is not counted within `whole`; `rest` is what the total has beyond
    prompt and completion, if there is a total."""
    if rest is None:
        return part > whole
    return rest in (part, part + also) or (part > whole and rest >= part)


def _find_count(value: dict[str, Any], names: Sequence[str]) -> int | None:
    for name in names:
        outer, _, inner = name.partition(".")
        found = value.get(outer)
        if inner:
            found = found.get(inner) if isinstance(found, dict) else None
        if (count := read_count(found)) is not None:
            return count
    return None
