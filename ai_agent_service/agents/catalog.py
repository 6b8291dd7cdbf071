"""The agents that there are, by id."""

from collections.abc import Iterable, Iterator

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.core.errors import NotFoundError


class Catalog:
    """Looks agents up; `created` is when they were defined, in Unix seconds."""

    def __init__(self, agents: Iterable[BaseAgent], *, created: int) -> None:
        self._agents = {agent.agent_id: agent for agent in agents}
        self.created = created

    def __iter__(self) -> Iterator[BaseAgent]:
        return iter(self._agents.values())

    def __len__(self) -> int:
        return len(self._agents)

    def get(self, agent_id: str) -> BaseAgent:
        """The agent of this id; raises NotFoundError in OpenAI's words for an unknown model."""
        agent = self._agents.get(agent_id)
        if agent is None:
            raise build_unknown_agent_error()
        return agent


def build_unknown_agent_error() -> NotFoundError:
    """The error for an agent that there is not, or not for whoever asks: nothing tells which."""
    return NotFoundError(
        "The model does not exist or you do not have access to it. GET /v1/models lists yours.",
        code="model_not_found",
        param="model",
    )
