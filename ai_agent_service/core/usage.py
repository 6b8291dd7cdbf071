"""How many tokens a model call took, and what it cost."""

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one or several model calls; `cost` in US dollars where the provider states it.

    `cached_tokens` are part of `prompt_tokens`, `reasoning_tokens` part of `completion_tokens`.
    `other_tokens` are those of the provider's total that are in neither.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | None = None
    other_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """All tokens, as the provider counts them."""
        return self.prompt_tokens + self.completion_tokens + self.other_tokens

    def __add__(self, other: "Usage") -> "Usage":
        cost = self.cost if other.cost is None else other.cost + (self.cost or 0.0)
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            cost,
            self.other_tokens + other.other_tokens,
        )


def sum_usage(usages: "list[Usage | None]") -> Usage | None:
    """The sum of what was reported, or None when no call reported any."""
    known = [usage for usage in usages if usage is not None]
    return sum(known[1:], known[0]) if known else None
