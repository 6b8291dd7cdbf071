"""The tasks that a chat client asks of a chat's model beside the chat, such as to find a title:
answered without loop, tools and memory."""

import logging
import re
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Literal, get_args

import msgspec

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import (
    InternalError,
    ProviderProtocolError,
    ProviderTimeoutError,
    RunTimeoutError,
    ServiceError,
)
from ai_agent_service.core.events import (
    RunEvent,
    RunFailed,
    RunFinished,
    StepRecord,
    TextDelta,
)
from ai_agent_service.core.messages import Message
from ai_agent_service.core.turn import Turn
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelFinished, ModelRequest, Provider
from ai_agent_service.providers.complete import complete
from ai_agent_service.providers.debug_log import stream_logged

logger = logging.getLogger(__name__)

Task = Literal[
    "title_generation",
    "tags_generation",
    "follow_up_generation",
    "query_generation",
    "image_prompt_generation",
    "autocomplete_generation",
    "emoji_generation",
    "moa_response_generation",
    "function_calling",
    "memory_review",
    "context_compaction",
    "other",
]
"""What Open WebUI (0.12) calls them; `other` is one that it has in another version."""

TASKS: frozenset[Task] = frozenset(get_args(Task))

TASK_SECONDS = 30.0
"""How long a task may take: nobody waits for it for longer."""

MAX_TITLE_WORDS = 6
MAX_TITLE = 60
MAX_EMOJI = 16
"""Characters of what still counts as an emoji."""

MAX_SEARCHED = 1_000_000
"""Characters of a message that are searched for a title."""

MAX_ANSWER = 64 * 1024
"""Characters of an answer that is put together before it is sent."""

_JSON_KEYS: Mapping[Task, tuple[str, type]] = {
    "title_generation": ("title", str),
    "tags_generation": ("tags", list),
    "follow_up_generation": ("follow_ups", list),
    "query_generation": ("queries", list),
    "image_prompt_generation": ("prompt", str),
    "autocomplete_generation": ("text", str),
    "function_calling": ("tool_calls", list),
    "memory_review": ("operations", list),
}
"""The tasks that are answered with an object of one field, and what that holds."""

_CHAT_ONLY_SETTINGS = frozenset(
    {"response_format", "stop", "max_tokens", "max_completion_tokens", "num_predict"}
)
"""Settings of an agent that are made for its chats."""

_SPEAKERS = ("USER", "ASSISTANT", "SYSTEM", "TOOL")
_RESPONSES = re.compile(r"Responses from models:\s*(.*)\Z", re.DOTALL)
_QUOTED = re.compile(r'"""(.*?)"""', re.DOTALL)
_MARKUP = re.compile(r"[#*_`>\[\]{}()\"\u201c\u201d]+")


class ChatTaskAgent(BaseAgent):
    """Answers `task` for `agent` with one question to `provider`; where that fails, or is the demo,
    by rules that need no model.

    `model` None means the agent's own if `provider` is the agent's, else the provider's default.
    """

    type = ""

    def __init__(self, agent: BaseAgent, task: Task, provider: Provider, model: str | None) -> None:
        super().__init__(agent.definition, agent.parts)
        self._agent = agent
        self._task = task
        self._provider = provider
        self._model = model

    async def model(self) -> str:
        """The model that is asked."""
        if self._model is not None:
            return self._model
        return await (
            self._agent.model() if self._is_agents_own else self._provider.default_model()
        )

    async def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """Answers the task; see BaseAgent."""
        said, finished, asked_model = "", None, ""
        error: ServiceError | None = None
        asked_at = time.monotonic()
        if self._provider.name != "demo" and not self._provider.missing:
            named: dict[str, Any] = {"run_id": context.run_id, "agent_id": self.agent_id}
            try:
                request = await self._build_request(turn, context)
                asked_model = request.model
                if self._is_free_text:
                    streaming = stream_logged(self._provider, request, **named, task=self._task)
                    async with aclosing(streaming) as events:
                        async for event in events:
                            if isinstance(event, ModelFinished):
                                finished = event
                            elif isinstance(event, TextDelta):
                                said += event.text
                                yield event
                else:
                    whole = await complete(
                        self._provider,
                        request,
                        max_characters=MAX_ANSWER,
                        **named,
                        task=self._task,
                    )
                    said, finished = whole.text, whole.finish
            except ServiceError as caught:
                error = self._explain(caught, context)
            except Exception:
                # A provider may be a plug-in and raise anything: a task has an answer by rule all
                # the same.
                logger.exception(
                    "task.failed", extra={"agent_id": self.agent_id, "task": self._task}
                )
                error = InternalError("The provider failed unexpectedly; the log says more.")
        usage: Usage | None = None
        steps: tuple[StepRecord, ...] = ()
        if finished is not None:
            usage = finished.usage
            model = finished.model or asked_model
            provider = finished.provider or self._provider.name
            steps = (StepRecord((), usage, model, provider, time.monotonic() - asked_at),)
        if self._is_free_text and said:
            yield (
                RunFailed(error, usage, steps)
                if error is not None
                else _build_finished(finished, usage, steps)
            )
            return
        answer = None if error is not None else self._parse_answer(said)
        if answer is None:
            answer = self._answer_by_rule(turn, error)
        if answer is None:
            missing = ProviderProtocolError(f"{self._provider.name} has no answer to this task.")
            yield RunFailed(error or missing, usage, steps)
            return
        if answer:
            yield TextDelta(answer)
        yield _build_finished(finished, usage, steps)

    @property
    def _is_agents_own(self) -> bool:
        return self._provider is self._agent.parts.provider

    @property
    def _is_free_text(self) -> bool:
        """Whether the answer may be sent as it comes, for nothing has to be put together first."""
        return self._task in ("moa_response_generation", "context_compaction", "other")

    @property
    def _suggestions(self) -> tuple[str, ...]:
        return tuple(prompt.content for prompt in self.definition.display.suggestion_prompts)

    async def _build_request(self, turn: Turn, context: RunContext) -> ModelRequest:
        own = self.definition.model_settings if self._is_agents_own else {}
        settings: dict[str, Any] = {
            name: value for name, value in own.items() if name not in _CHAT_ONLY_SETTINGS
        }
        if (
            self._task != "emoji_generation"
        ):  # asked for in 4 tokens, which a model that thinks has used up before it says anything
            settings |= turn.settings
        return ModelRequest(
            model=await self.model(),
            messages=turn.messages,
            settings=settings,
            deadline=min(context.deadline, time.monotonic() + TASK_SECONDS),
            request_id=context.request_id,
            caller=context.caller,
        )

    def _explain(self, error: ServiceError, context: RunContext) -> ServiceError:
        """The error to report: a task has less time than the run that asks for it."""
        if not isinstance(error, RunTimeoutError) or context.seconds_left <= 0:
            return error
        return ProviderTimeoutError(
            f"{self._provider.name} took longer than {TASK_SECONDS:g} seconds for a task."
        )

    def _answer_by_rule(self, turn: Turn, error: ServiceError | None) -> str | None:
        logger.log(
            logging.DEBUG if self._provider.name == "demo" else logging.WARNING,
            "task.answered_by_rule",
            extra={
                "agent_id": self.agent_id,
                "task": self._task,
                "cause": error.code if error is not None else "unusable_answer",
            },
        )
        return answer_by_rule(self._task, turn.messages, self._suggestions)

    def _parse_answer(self, said: str) -> str | None:
        """The answer, in the form that the task wants; None if it is not one."""
        if self._task in _JSON_KEYS:
            key, kind = _JSON_KEYS[self._task]
            found = _find_json_value(said, key, kind)
            return None if found is None else msgspec.json.encode({key: found}).decode()
        if self._task == "emoji_generation":
            emoji = said.strip()
            return emoji if 0 < len(emoji) <= MAX_EMOJI else None
        return said or None


def answer_by_rule(
    task: Task, messages: tuple[Message, ...], suggestions: tuple[str, ...] = ()
) -> str | None:
    """A sensible answer to `task` without a model, the same each time; None where there is none.

    `suggestions` are what users may ask the agent, as its operator wrote them.
    """
    asked = messages[-1].text if messages else ""
    user = _find_last_message(asked, "USER")
    answer: dict[str, object]
    match task:
        case "title_generation":
            answer = {"title": _build_title(user)}
        case "tags_generation":
            answer = {"tags": ["General"]}
        case "follow_up_generation":
            answer = {"follow_ups": [text for text in suggestions if text not in asked][:3]}
        case "query_generation":
            answer = {"queries": [user] if user else []}
        case "image_prompt_generation":
            answer = {"prompt": user}
        case "autocomplete_generation":
            answer = {"text": ""}
        case "function_calling":
            answer = {"tool_calls": []}
        case "memory_review":
            answer = {"operations": []}
        case "emoji_generation":
            return "\N{SPEECH BALLOON}"
        case "moa_response_generation":
            return _find_first_response(asked)
        case "context_compaction":
            return ""  # Open WebUI makes a summary of its own of an empty one
        case "other":
            return None
    return msgspec.json.encode(answer).decode()


def _build_finished(
    finished: ModelFinished | None, usage: Usage | None, steps: tuple[StepRecord, ...]
) -> RunFinished:
    reason = finished.reason if finished is not None and finished.reason != "tool_calls" else "stop"
    return RunFinished(reason, usage, steps)


def _find_json_value(text: str, key: str, kind: type) -> object:
    """What the last object in `text` that has `key`, as a value of `kind`, has there; models put
    words and fences around it."""
    end = text.rfind("}") + 1
    start = text.rfind("{", 0, end)
    for _ in range(20):
        if start < 0:
            return None
        try:
            value = msgspec.json.decode(text[start:end])
        except (msgspec.DecodeError, RecursionError):
            value = None
        if isinstance(value, dict) and isinstance(found := value.get(key), kind):
            return found
        start = text.rfind("{", 0, start)
    return None


def _find_last_message(asked: str, role: str) -> str:
    """What `role` said last in the history that the task holds."""
    # Without patterns, which take long for a history of many spaces or lines.
    _, begins, rest = asked.partition("<chat_history>")
    history, ends, _ = rest.partition("</chat_history>")
    if not (begins and ends):
        return ""
    history = f"\n{history.strip()}"
    start = history.rfind(f"\n{role}:")
    if start < 0:
        return ""
    start += len(role) + 2
    places = [history.find(f"\n{speaker}:", start) for speaker in _SPEAKERS]
    return history[start : min((place for place in places if place >= 0), default=None)].strip()


def _build_title(text: str) -> str:
    """The first words of `text`, as a title."""
    line = next((line for line in text[:MAX_SEARCHED].splitlines() if line.strip()), "")
    words = _MARKUP.sub(" ", line).split()
    title = " ".join(words[:MAX_TITLE_WORDS])[:MAX_TITLE].rstrip(" .,;:!?-")
    return title[:1].upper() + title[1:] if title else "New chat"


def _find_first_response(asked: str) -> str | None:
    responses = _RESPONSES.search(asked)
    if responses is None:
        return None
    quoted = _QUOTED.search(responses.group(1))
    return (quoted.group(1) if quoted else responses.group(1)).strip() or None
