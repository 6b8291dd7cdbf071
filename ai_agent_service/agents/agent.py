"""The agent that agent_config.json defines: its prompt, its model, its tools, and the loop."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, ClassVar

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.agents.loop import LoopOptions, run_loop
from ai_agent_service.agents.shortening import CompactMessages
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import (
    InvalidRequestError,
    ProviderNotConfiguredError,
    ServiceError,
)
from ai_agent_service.core.events import RunEvent, RunFailed, ToolsMissing
from ai_agent_service.core.messages import Message, NamedTool, ToolSpec
from ai_agent_service.core.turn import Turn
from ai_agent_service.memory.windows import estimate_request
from ai_agent_service.providers.base import ModelRequest
from ai_agent_service.tools.toolset import Toolset

_UNAVAILABLE_NOTE = (
    "Some of your tools cannot be used at the moment. Answer without them as well as you can,"
    " and say so where it matters:\n"
)

_LENGTH_LIMIT_SETTINGS = frozenset({"max_tokens", "max_completion_tokens", "num_predict"})


class Agent(BaseAgent):
    """Answers a turn with its model and tools; everything about it stands in its definition."""

    type: ClassVar[str] = "agent"

    async def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """Takes the turn; see BaseAgent."""
        try:
            toolset = self.parts.toolset
            request, client_tools = await self._build_request(turn, toolset, context)
        except ServiceError as error:
            yield RunFailed(error)
            return
        if toolset.unavailable:
            yield ToolsMissing(toolset.unavailable)
        loop = run_loop(
            self.parts.provider,
            request,
            toolset,
            context,
            LoopOptions(
                client_tools=client_tools,
                max_steps=self.definition.max_steps,
                max_characters=self.parts.max_characters,
                pending=self.parts.pending,
                compact=self._build_compact(turn, toolset),
                windows=self.parts.windows,
            ),
        )
        async with aclosing(loop):
            async for event in loop:
                yield event

    async def _build_request(
        self, turn: Turn, toolset: Toolset, context: RunContext
    ) -> tuple[ModelRequest, frozenset[str]]:
        provider = self.parts.provider
        if provider.missing:
            variables = " and ".join(provider.missing)
            raise ProviderNotConfiguredError(
                f"The agent {self.agent_id!r} cannot answer: its provider {provider.name} needs"
                f" {variables} to be set."
            )
        client_tools = self._select_client_tools(turn.tools, toolset)
        tools = (*toolset.specs, *client_tools)
        if isinstance(turn.tool_choice, NamedTool) and not any(
            spec.name == turn.tool_choice.name for spec in tools
        ):
            raise InvalidRequestError(
                "tool_choice names a tool that neither the request nor the agent has.",
                param="tool_choice",
            )
        request = ModelRequest(
            model=turn.model or await self.model(),
            messages=self._build_messages(turn.messages, toolset),
            tools=tools,
            tool_choice=turn.tool_choice if tools else None,
            settings=_merge_settings(self.definition.model_settings, turn.settings),
            deadline=context.deadline,
            request_id=context.request_id,
            caller=context.caller,
        )
        return request, frozenset(spec.name for spec in client_tools)

    def _build_messages(
        self, messages: tuple[Message, ...], toolset: Toolset
    ) -> tuple[Message, ...]:
        """What the model is sent of a caller's `messages`."""
        return (
            self._build_system_message(messages, toolset.unavailable),
            *(message for message in messages if message.role != "system"),
        )

    def _build_compact(self, turn: Turn, toolset: Toolset) -> CompactMessages | None:
        if (compact := turn.compact) is None:
            return None

        async def compact_messages(max_tokens: int) -> tuple[Message, ...] | None:
            prompt = estimate_request(self._build_messages((), toolset))
            fewer = await compact(max(0, max_tokens - prompt))
            return None if fewer is None else self._build_messages(fewer, toolset)

        return compact_messages

    def _build_system_message(
        self, messages: tuple[Message, ...], unavailable: tuple[str, ...]
    ) -> Message:
        """The agent's prompt, with what the caller's system messages add to it, and a note of what
        cannot be used now."""
        added = [message.text for message in messages if message.role == "system"]
        if unavailable:
            added.append(_UNAVAILABLE_NOTE + "\n".join(f"- {words}" for words in unavailable))
        return Message(role="system", content="\n\n".join((self.definition.system_prompt, *added)))

    def _select_client_tools(
        self, tools: tuple[ToolSpec, ...], toolset: Toolset
    ) -> tuple[ToolSpec, ...]:
        """Those of the caller's tools that the agent's policy lets in; a name that the agent has
        itself stays the agent's."""
        policy = self.definition.client_tools
        if policy == "ignore":
            return ()
        return tuple(
            spec
            for spec in tools
            if spec.name not in toolset and (policy == "accept" or spec.name in policy)
        )


def _merge_settings(own: Mapping[str, Any], asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """The agent's settings with the turn's over them; a length limit under any of its names
    replaces the agent's."""
    if not asked:
        return own
    if _LENGTH_LIMIT_SETTINGS & asked.keys():
        own = {name: value for name, value in own.items() if name not in _LENGTH_LIMIT_SETTINGS}
    return {**own, **asked}
