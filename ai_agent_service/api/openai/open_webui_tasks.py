"""Tells the tasks that Open WebUI asks of a chat's model beside the chat: by the header that names
them, else by their shape."""

import re
from collections.abc import Sequence

from ai_agent_service.agents.chat_tasks import Task
from ai_agent_service.core.messages import Message

MAX_HEAD = 8000
"""Characters of a task in which its instructions stand."""

_OPENINGS: tuple[tuple[str, Task], ...] = (
    (
        "Your task is to reflect the speaker's likely facial expression through a fitting emoji",
        "emoji_generation",
    ),
    (
        (
            "You have been provided with a set of responses from various models to the latest user"
            " query"
        ),
        "moa_response_generation",
    ),
)
"""How those tasks of Open WebUI (0.12) begin that do not begin with `### Task:`."""

_SYSTEM_OPENINGS: tuple[tuple[str, Task], ...] = (
    ("Available Tools: ", "function_calling"),
    ("You are Open WebUI's private memory reviewer", "memory_review"),
)
_FUNCTION_CALLING_MARKER = '"tool_calls"'
_KEYS: dict[str, Task] = {
    "title": "title_generation",
    "tags": "tags_generation",
    "follow_ups": "follow_up_generation",
    "queries": "query_generation",
    "prompt": "image_prompt_generation",
    "text": "autocomplete_generation",
}
_KEY = re.compile(rf'\{{\s*"({"|".join(_KEYS)})"\s*:')
_CONTENT = re.compile(r"<chat_history>|<context>|<source\b")


def detect_task(messages: Sequence[Message], *, is_open_webui: bool) -> Task | None:
    """The task that `messages` have the shape of; None if they are a chat.

    Of a client that is not known to be Open WebUI only what cannot be anything else is taken for a
    task.
    """
    if not 1 <= len(messages) <= 2 or messages[-1].role != "user":
        return None
    text = messages[-1].text
    if len(messages) == 2:
        if not is_open_webui or messages[0].role != "system":
            return None
        for opening, task in _SYSTEM_OPENINGS:
            if messages[0].text.startswith(opening) and (
                task != "function_calling" or _FUNCTION_CALLING_MARKER in messages[0].text
            ):
                return task
        return None
    if not text.startswith("### Task:"):
        return (
            next((task for opening, task in _OPENINGS if text.startswith(opening)), None)
            if is_open_webui
            else None
        )
    content = _CONTENT.search(text)
    # Documents for a question (`<context>`) come under the same heading: those belong to the chat.
    if content is not None and content.group() != "<chat_history>":
        return None
    if content is None and not is_open_webui:
        return None
    head = text[: content.start() if content is not None else MAX_HEAD]
    key = _KEY.search(head)
    return _KEYS[key.group(1)] if key is not None and "JSON" in head else None
