"""Judge that follows a script by the requested form: as a provider, and as a chat completions
server."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from ai_agent_service.core.events import TextDelta
from ai_agent_service.core.usage import Usage
from ai_agent_service.evaluation.judge_model import Judge
from ai_agent_service.evaluation.model_option import Model
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest
from tests.support.service import running

Said = dict[str, Any] | str | Exception
"""An object is said as JSON, a text as it is, an error raised."""

REASON = {"reason": "That is why."}
GOOD: dict[str, Said | list[Said]] = {
    "Statements": {"statements": ["It is 9:05."]},
    "AnswerRelevancyScoreReason": REASON,
    "Truths": {"truths": ["It is 9:05."]},
    "Claims": {"claims": ["It is 9:05."]},
    "FaithfulnessScoreReason": REASON,
    "HallucinationScoreReason": REASON,
    "Verdicts": {"verdicts": [{"verdict": "yes", "reason": "It is."}]},
    "TaskAndOutcome": {"task": "Tell the time.", "outcome": "It was told."},
    "TaskCompletionVerdict": {"verdict": 0.9, "reason": "It was."},
    "Steps": {"steps": ["Read it."]},
    "ReasonScore": {"score": 8, "reason": "Good."},
}
"""What a judge says of an answer that is good, by the forms that DeepEval asks for."""


@contextlib.contextmanager
def environment_restored() -> Generator[None, None, None]:
    """Restore the process's environment, which is changed for DeepEval, at the end of the block."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class ScriptedJudge:
    """Provider whose answer to the form `name` is `answers[name]`.

    A list holds successive answers; the last is repeated.
    """

    name = "scripted_judge"
    missing: tuple[str, ...] = ()
    model_list: tuple[str, ...] = ()

    def __init__(self, answers: Mapping[str, Said | list[Said]]) -> None:
        self.answers = answers
        self.at_once = 0
        self.most_at_once = 0
        self.requests: list[ModelRequest] = []
        self.asked: list[str] = []
        """The forms that were asked for."""

    async def default_model(self) -> str:
        """Return `strict`."""
        return "strict"

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yield the answer to the form of `request`, or to the previous form if it has none."""
        self.requests.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)  # for others to come meanwhile, if they may
        self.at_once -= 1
        form = request.settings.get("response_format")
        name = form["json_schema"]["name"] if form is not None else self.asked[-1]
        answers = self.answers[name]
        said = (
            answers
            if not isinstance(answers, list)
            else answers[min(self.asked.count(name), len(answers) - 1)]
        )
        self.asked.append(name)
        if isinstance(said, Exception):
            raise said
        yield TextDelta(said if isinstance(said, str) else json.dumps(said))
        yield ModelFinished("stop", (), Usage(100, 10, cost=0.001))

    @property
    def prompts(self) -> str:
        """All prompts received."""
        return "\n".join(message.text for request in self.requests for message in request.messages)

    def judge(self, timeout: float = 10, parallel: int = 4) -> Judge:
        """Return it as a judge."""
        return Judge(Model(self, "strict"), timeout, parallel)


def judging_server(
    answer: Callable[[str, str], dict[str, Any] | str | int], asked: list[str]
) -> FastAPI:
    """Build a server that answers a form and a prompt by `answer(form, prompt)`; a number is the
    status of a refusal.

    Adds each requested form to `asked`.
    """
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        body = await request.json()
        assert body["stream"] is True
        form = body["response_format"]["json_schema"]["name"]
        asked.append(form)
        said = answer(form, body["messages"][0]["content"])
        if isinstance(said, int):
            return JSONResponse({"error": {"message": "Not now.", "code": "out_of_order"}}, said)
        return StreamingResponse(
            _chunks(said if isinstance(said, str) else json.dumps(said)),
            media_type="text/event-stream",
        )

    return app


def _chunks(text: str) -> Iterator[str]:
    chunks = (
        {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 10}},
    )
    yield from (
        f"data: {json.dumps({'object': 'chat.completion.chunk', **chunk})}\n\n" for chunk in chunks
    )
    yield "data: [DONE]\n\n"


def good(form: str, prompt: str) -> dict[str, Any]:
    """Return a judge's answer that approves of everything."""
    said = GOOD[form]
    assert isinstance(said, dict)
    return said


@contextlib.contextmanager
def judged_by(
    answer: Callable[[str, str], dict[str, Any] | str | int],
) -> Generator[tuple[dict[str, str], list[str]], None, None]:
    """Serve a judge that gives `answer`; yield the settings for it and the forms requested."""
    asked: list[str] = []
    with running(judging_server(answer, asked)) as address:
        yield {"OPENAI_BASE_URL": f"{address}/v1", "PROVIDER_MAX_RETRIES": "0"}, asked
