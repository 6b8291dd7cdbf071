"""Remember how much of a conversation each model takes, from what its provider refuses."""

from collections.abc import Iterable

import msgspec

from ai_agent_service.core.messages import Message, TextPart, ToolSpec
from ai_agent_service.memory.tokens import estimate

MESSAGE_TOKENS = 4
"""What a message costs beside its text."""

MEDIA_TOKENS = 1000
"""About what an image, a sound or a file costs."""

MIN_LIMIT = 250
"""A smaller limit is not remembered: what was refused is not too long by its text."""


class ContextWindows:
    """How many tokens each model takes, by `estimate_request`, since the start of the process.

    A model is known by its provider's name and its own. Only a window that its provider stated is
    remembered: a refusal without one may have been about something else, and would shorten every
    later conversation. The next refusal lowers what is remembered, and an answer to more raises it.
    """

    def __init__(self) -> None:
        self._limits: dict[tuple[str, str], int] = {}

    def find_limit(self, provider: str, model: str) -> int | None:
        """Return about how many tokens fit; None if nothing was refused yet."""
        return self._limits.get((provider, model))

    def learn_refusal(
        self,
        model: tuple[str, str],
        *,
        fixed: int,
        variable: int,
        window: int | None,
        is_repeated: bool = False,
    ) -> int:
        """Take note that `fixed` and `variable` tokens together do not fit, and return how many to
        try next, fewer of the variable ones.

        `model` is the provider's name and the model's, `window` the number that the provider
        states, and `is_repeated` says that what this returned was refused.
        """
        known = self._limits.get(model)
        refused = fixed + variable
        # The rest of a window is for the answer, and for what the estimate misses.
        stated = None if window is None else window * 3 // 4
        limit = fixed + (variable // 2 if is_repeated or known else variable * 3 // 4)
        if known is None and stated is not None and stated < refused:
            known = limit = stated
        if known is not None and limit >= MIN_LIMIT:
            self._limits[model] = limit
        return limit

    def learn_answer(self, provider: str, model: str, answered: int) -> None:
        """Take note that `answered` tokens do fit."""
        if answered > self._limits.get((provider, model), answered):
            self._limits[provider, model] = answered


def estimate_request(messages: Iterable[Message], tools: Iterable[ToolSpec] = ()) -> int:
    """Return about how many tokens a model is sent."""
    schemas = msgspec.json.encode(tuple(tools)).decode()
    return estimate(schemas) + sum(map(_estimate_message, messages))


def cut_to_tokens(text: str, tokens: int) -> str:
    """Return the beginning of `text`, about `tokens` of it."""
    size = estimate(text)
    return text if size <= tokens else f"{text[: len(text) * tokens // size]} [...]"


def _estimate_message(message: Message) -> int:
    calls = "".join(f"{call.name}{call.arguments}" for call in message.tool_calls)
    media = len(message.images)
    if not isinstance(message.content, str):
        media += sum(not isinstance(part, TextPart) for part in message.content)
    return MESSAGE_TOKENS + estimate(message.text + calls) + MEDIA_TOKENS * media
