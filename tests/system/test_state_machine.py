"""Random conversations of several users: what is stored, shown and sent to the model is always what
a ledger of the clients says."""

import asyncio
import itertools
import json
import sqlite3
import tempfile
import unicodedata
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as AsgiMessage

from ai_agent_service.core.errors import ProviderUnavailableError
from ai_agent_service.core.events import FinishReason, TextDelta
from ai_agent_service.core.messages import (
    UNKNOWN_RESULT,
    ContentPart,
    ImagePart,
    Message,
    TextPart,
    ToolCall,
)
from ai_agent_service.memory.statements import TAIL_MESSAGES
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest
from ai_agent_service.server.application import create_app
from ai_agent_service.tools.function import tool
from tests.support.clients import CHAT
from tests.support.fake_provider import Script
from tests.support.memory import HELPER
from tests.support.service import configuration

T = TypeVar("T")

SECONDS = 20.0
"""How long anything that is waited for may take."""

WINDOW = 4
"""How many messages of the server's history the agent `other` sees."""

USERS = ("ada", "bob", None)
PROMPTS = {"helper": "You help.", "other": "You are another."}
SESSIONS = ("s", "team/s 2")
UNSTORED = (None, "temporary:s", "local:s")
IMAGE = "data:image/png;base64,AAAA"
SAME = "Yes."

QUESTIONS = ("Question {}?", "hello", " hello\n", "caf\u00e9  au lait", "cafe\u0301 au lait", "")
"""What users ask; `{}` becomes a number that no other question has, the rest collides."""

FOREIGN_ANSWERS = ("", SAME, "Y es .", "caf\u00e9", "cafe\u0301", "Something\n\n  else.")


def plan_kinds(*, deterministic: bool) -> list[str]:
    """The ways in which the model may take a turn; the first are those whose texts nothing else
    says."""
    own = [
        "says",
        "tool",
        "silent tools",
        "cut",
        "decomposed",
        "refuses",
        "breaks",
        "tool breaks",
        "crashes",
        "ends early",
    ]
    return (
        own
        if deterministic
        else [
            *own,
            "same",
            "same, spaced",
            "same after tool",
            "same, broken",
            "tool refuses",
            "empty",
        ]
    )


# What happens


@dataclass(frozen=True)
class Owner:
    """Whose conversation it is; `session` None where the client names none."""

    user: str | None
    agent: str
    session: str | None

    @property
    def name(self) -> str:
        """The user as they are stored."""
        return self.user or "anonymous"

    @property
    def is_stored(self) -> bool:
        """Whether anything of it may be stored."""
        return self.session in SESSIONS

    @property
    def key(self) -> tuple[str, str, str]:
        """What its conversation is found by."""
        return (self.name, self.agent, self.session or "")


@dataclass(frozen=True)
class Used:
    """One step of an answer: what was said before the calls, and each call with its result."""

    text: str
    calls: tuple[tuple[ToolCall, str], ...]

    @property
    def messages(self) -> tuple[Message, ...]:
        """The step as a model is to be told of it."""
        told = (Message("tool", result, tool_call_id=call.id) for call, result in self.calls)
        return (Message("assistant", self.text, tuple(call for call, _ in self.calls)), *told)


@dataclass(frozen=True)
class Said:
    """A message as a client keeps it; an answer with the steps that led to it, and what was said
    after them."""

    role: Literal["user", "assistant"]
    text: str
    steps: tuple[Used, ...] = ()
    last: str = ""
    form: Literal["text", "parts", "image"] = "text"


@dataclass(frozen=True)
class How:
    """The circumstances of a request, which must not matter to what is stored."""

    plan: str
    door: Literal["chat id", "session id", "metadata", "agents"] = "session id"
    stream: bool = False
    form: Literal["text", "parts", "image"] = "text"
    with_tools: bool = False
    system: bool = False
    named: bool = False


@dataclass(frozen=True, repr=False)
class Request:
    """What a client sends, and what of it matters."""

    owner: Owner
    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    messages: tuple[Message, ...]
    server: bool
    stream: bool
    message_id: str | None = None
    is_retry: bool = False

    @property
    def shows_tools(self) -> bool:
        """Whether the stream tells of tools at work, and so begins with them."""
        return self.path != CHAT or any(
            name.lower().startswith(("x-openwebui-", "x-aas-")) for name in self.headers
        )


@dataclass(frozen=True, repr=False)
class Turn:
    """A turn that was taken, and the conversation as its client had it before and has it
    afterwards."""

    request: Request
    asked: tuple[Said, ...]
    chat: tuple[Said, ...]


@dataclass
class Reply:
    """What a client was told."""

    status: int
    text: str = ""
    complete: bool = False
    reason: str | None = None
    tools: list[tuple[str, str]] | None = None


@dataclass
class Plan:
    """How the model takes a turn, step by step, and what comes of it."""

    actions: list[list[Any]]
    text: str = ""
    steps: tuple[Used, ...] = ()
    last: str = ""
    complete: bool = False
    reason: FinishReason = "stop"
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the model is first asked."""

    def __post_init__(self) -> None:
        for actions in self.actions:
            said = "".join(action.text for action in actions if isinstance(action, TextDelta))
            self.text += said
            self.last += said
            end = actions[-1]
            if not isinstance(end, ModelFinished):
                return
            if not end.tool_calls:
                self.complete, self.reason = True, end.reason
                return
            self.steps += (
                Used(self.last, tuple((call, _result(call)) for call in end.tool_calls)),
            )
            self.last = ""


def _result(call: ToolCall) -> str:
    if call.name != "calculate":
        return UNKNOWN_RESULT
    number = json.loads(call.arguments)["expression"].split()[0]
    return str(int(number) + 1)


class Model(Script):
    """Takes each turn as was planned for its request, and keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: dict[str, Plan] = {}
        self.sent: dict[str, list[tuple[Message, ...]]] = {}
        """By request id, in the order in which the requests came."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """The next step of the request's plan."""
        plan = self.plans[request.request_id]
        sent = self.sent.setdefault(request.request_id, [])
        sent.append(request.messages)
        plan.arrived.set()
        for action in plan.actions[len(sent) - 1]:
            if isinstance(action, Exception):
                raise action
            if isinstance(action, asyncio.Event | asyncio.Barrier):
                async with asyncio.timeout(SECONDS):
                    await action.wait()
            elif callable(action):
                action()
            else:
                yield action


class ClientLeft(Exception):
    """The client left before its answer was complete."""


class LeavingClients:
    """The app, for clients of whom some leave when their event is set; they are told by ClientLeft
    once the service is done with them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.leaving: dict[str, asyncio.Event] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        leaves = self.leaving.get(
            next(
                (value.decode() for name, value in scope["headers"] if name == b"x-request-id"), ""
            )
        )
        if leaves is None:
            await self._app(scope, receive, send)
            return
        complete = False

        async def receive_until_it_leaves() -> AsgiMessage:
            nonlocal complete
            if complete:
                await leaves.wait()
                return {"type": "http.disconnect"}
            message = await receive()
            complete = not message.get("more_body", False)
            return message

        await self._app(scope, receive_until_it_leaves, send)
        raise ClientLeft


# What must be so

Address = tuple[tuple[str, Any], ...]
"""A message's place in the tree: what it says and all that was said before it, each as far as it
counts."""


@dataclass
class Stored:
    """A message that must be stored."""

    role: str
    content: Any
    origin: str = "client"
    status: str = "complete"
    steps: tuple[Used, ...] = ()
    last: str = ""
    run: "Run | None" = None
    """The newest run that a question was asked with."""

    @property
    def told(self) -> tuple[Message, ...]:
        """As the model is told of it where the service has the history."""
        if self.steps:
            return (
                *(message for step in self.steps for message in step.messages),
                Message("assistant", self.last),
            )
        return (Message("user" if self.role == "user" else "assistant", self.content),)

    @property
    def text(self) -> str:
        """An answer as it is told to a client."""
        return (
            "".join(step.text for step in self.steps) + self.last
            if self.steps
            else str(self.content)
        )


@dataclass
class Run:
    """A run that must be stored."""

    question: Address
    message_id: str | None
    status: str = "running"
    answer: Address | None = None
    reason: str = ""


@dataclass
class Tree:
    """A session."""

    nodes: dict[Address, Stored] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    head: Address = ()


@dataclass
class Entry:
    """A question or an answer as a request brings it."""

    messages: tuple[Message, ...]
    address: Address
    steps: tuple[Used, ...] = ()
    last: str = ""

    @property
    def stored(self) -> Stored:
        """As it is stored if it is new."""
        if self.messages[0].role == "user":
            return Stored("user", self.messages[0].content)
        return Stored(
            "assistant",
            "".join(message.text for message in self.messages if message.role == "assistant"),
            "client",
        )


@dataclass
class Begun:
    """What must come of a request: what the model is sent, or the run whose answer is told
    again."""

    sent: tuple[Message, ...]
    again: Run | None = None
    run: Run | None = None
    begun: tuple[Message, ...] = ()
    """The beginning of the answer, which the client brought."""


def question_key(content: Any) -> Any:
    """What counts of a question: white space is folded, composed and decomposed letters are the
    same."""
    if isinstance(content, str):
        return " ".join(unicodedata.normalize("NFC", content).split())
    text = question_key("\n".join(part.text for part in content if isinstance(part, TextPart)))
    images = [part.url for part in content if isinstance(part, ImagePart)]
    return (text, *images) if images else text


def answer_key(text: str) -> str:
    """What counts of an answer: everything but white space."""
    return "".join(unicodedata.normalize("NFC", text).split())


def list_entries(messages: Sequence[Message], address: Address) -> list[Entry]:
    """A conversation that follows on `address`: all that is said between two questions is one
    answer."""
    found: list[Entry] = []
    for message in messages:
        if message.role == "system":
            continue
        if message.role == "user":
            address = (*address, ("user", question_key(message.content)))
            found.append(Entry((message,), address))
            continue
        if not found or found[-1].messages[0].role == "user":
            found.append(Entry((), (*address, ("assistant", ""))))
        entry = found[-1]
        entry.messages += (message,)
        said = "".join(each.text for each in entry.messages if each.role == "assistant")
        address = entry.address = (*entry.address[:-1], ("assistant", answer_key(said)))
        if message.role == "tool":
            step = entry.steps[-1]
            calls = tuple(
                (call, message.text if call.id == message.tool_call_id else result)
                for call, result in step.calls
            )
            entry.steps = (*entry.steps[:-1], Used(step.text, calls))
        elif message.tool_calls:
            entry.steps += (
                Used(
                    entry.last + message.text,
                    tuple((call, UNKNOWN_RESULT) for call in message.tool_calls),
                ),
            )
            entry.last = ""
        else:
            entry.last += message.text
    return found


class Ledger:
    """All that must be stored, by whose it is."""

    def __init__(self) -> None:
        self.trees: dict[Owner, Tree] = {}

    def begin(self, request: Request) -> Begun:
        """Takes a turn's beginning down."""
        system = [
            PROMPTS[request.owner.agent],
            *(message.text for message in request.messages if message.role == "system"),
        ]
        prompt = Message("system", "\n\n".join(system))
        asked = tuple(message for message in request.messages if message.role != "system")
        if not request.owner.is_stored:
            return Begun((prompt, *asked))
        tree = self.trees.setdefault(request.owner, Tree())
        if request.server:
            return self._begin_server(request, tree, prompt, asked)
        last = max(place for place, message in enumerate(asked) if message.role == "user")
        entries, begun = list_entries(asked[: last + 1], ()), asked[last + 1 :]
        question = entries[-1].address
        if not begun and (again := self._again(request, tree, question)) is not None:
            tree.head = again.answer or question
            return Begun((), again)
        sent = [prompt]
        for entry in entries[:-TAIL_MESSAGES]:
            sent += entry.messages
        for entry in entries[-TAIL_MESSAGES:]:
            known = tree.nodes.get(entry.address)
            brings_calls = any(message.tool_calls for message in entry.messages)
            sent += (
                known.told
                if known is not None and known.steps and not brings_calls
                else entry.messages
            )
        return Begun((*sent, *begun), run=self._asked(request, tree, entries), begun=begun)

    def end(self, request: Request, begun: Begun, plan: Plan) -> None:
        """Takes what the model made of the turn down."""
        tree, run = self.trees.get(request.owner), begun.run
        if tree is None or run is None or run not in tree.runs:
            return
        run.status = "done" if plan.complete else "incomplete"
        run.reason = plan.reason
        tree.head = run.question
        told = [message for step in plan.steps for message in step.messages]
        answer = list_entries([*begun.begun, *told, Message("assistant", plan.last)], run.question)[
            0
        ]
        text = "".join(message.text for message in answer.messages if message.role == "assistant")
        if not (text.strip() or answer.steps or plan.complete):
            return
        run.answer = tree.head = answer.address
        status = "complete" if plan.complete else "incomplete"
        new = Stored(
            "assistant", text, "ours", status, answer.steps, answer.last if answer.steps else ""
        )
        old = tree.nodes.get(run.answer)
        if old is None or (
            plan.complete and (old.status == "incomplete" or old.origin == "client")
        ):
            tree.nodes[run.answer] = new

    def _begin_server(
        self, request: Request, tree: Tree, prompt: Message, asked: tuple[Message, ...]
    ) -> Begun:
        before = tree.head
        # A question without an answer that is asked again is the same turn.
        is_unanswered = bool(before) and before[-1][0] == "user" and request.message_id is None
        is_retry = request.is_retry or is_unanswered
        repeats = is_retry or request.message_id is not None
        last = next(
            (before[:end] for end in range(len(before), 0, -1) if before[end - 1][0] == "user"),
            None,
        )
        if (
            repeats
            and last is not None
            and [entry.address for entry in list_entries(asked, last[:-1])] == [last]
        ):
            if (again := self._again(request, tree, last)) is not None:
                return Begun((), again)
            if is_retry or self._named_alike(request, tree, last) is not None:
                before = last[:-1]
        window = [before[:end] for end in range(1, len(before) + 1)]
        if request.owner.agent == "other":
            shown = [tree.head[:end] for end in range(1, len(tree.head) + 1)][-WINDOW:]
            window = [address for address in window if address in shown]
        sent = [
            prompt,
            *(message for address in window for message in tree.nodes[address].told),
            *asked,
        ]
        return Begun(tuple(sent), run=self._asked(request, tree, list_entries(asked, before)))

    @staticmethod
    def _asked(request: Request, tree: Tree, entries: list[Entry]) -> Run:
        for entry in entries:
            if entry.address not in tree.nodes:
                stored = tree.nodes[entry.address] = entry.stored
                if entry.steps:
                    stored.steps, stored.last = entry.steps, entry.last
        tree.head = entries[-1].address
        run = Run(tree.head, request.message_id)
        tree.runs.append(run)
        tree.nodes[tree.head].run = run
        return run

    @staticmethod
    def _again(request: Request, tree: Tree, question: Address) -> Run | None:
        """The run that a repeated request repeats, if it was answered."""
        node = tree.nodes.get(question)
        run = node.run if request.is_retry and node is not None else None
        if request.message_id is not None:
            run = Ledger._named_alike(request, tree, question)
        return (
            run if run is not None and run.question == question and run.status == "done" else None
        )

    @staticmethod
    def _named_alike(request: Request, tree: Tree, question: Address) -> Run | None:
        """The newest run of the same message id, if it was of the same question."""
        named = (
            run
            for run in reversed(tree.runs)
            if run.message_id is not None and run.message_id == request.message_id
        )
        run = next(named, None)
        return run if run is not None and run.question == question else None


def comparable(content: Any) -> Any:
    """A message's content as the API shows it."""
    if isinstance(content, str):
        return content
    return _wire(Message("user", content))["content"]


# The machine

owners = st.builds(
    Owner, st.sampled_from(USERS), st.sampled_from(sorted(PROMPTS)), st.sampled_from(SESSIONS)
)
any_owners = owners | st.builds(
    Owner, st.sampled_from(USERS), st.sampled_from(sorted(PROMPTS)), st.sampled_from(UNSTORED)
)
questions = st.sampled_from(QUESTIONS)
doors = st.sampled_from(["session id", "chat id", "metadata", "agents"])
forms = st.sampled_from(["text", "text", "parts", "image"])
flags = st.booleans()
hows = st.builds(
    How, st.sampled_from(plan_kinds(deterministic=False)), doors, flags, forms, flags, flags, flags
)
foreign = st.lists(
    st.builds(lambda text: Said("user", text), questions)
    | st.builds(lambda text: Said("assistant", text), st.sampled_from(FOREIGN_ANSWERS))
    | st.builds(
        lambda text, after: ("tool", text, after),
        st.sampled_from(["", "Well. "]),
        st.sampled_from(FOREIGN_ANSWERS),
    ),
    max_size=5,
)


class Conversations(RuleBasedStateMachine):
    """Plays clients against the service in this process, over SQLite."""

    turns: Bundle[Turn] = Bundle("turns")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.opened = AsyncExitStack()
        self.numbers = itertools.count(1)
        self.ledger = Ledger()
        self.model = Model()
        self.touched: set[Owner] = set()
        self.newest: dict[Owner, Request] = {}
        self.rows: dict[Any, list[Any]] = {}
        self.checks = 0

    @initialize()
    def opens(self) -> None:
        """Starts the service over an empty folder."""
        self.run(self._open())

    async def _open(self) -> None:
        folder = Path(self.opened.enter_context(tempfile.TemporaryDirectory()))
        self.tool_runs = asyncio.Event()

        @tool
        async def wait_for_ever() -> str:
            """Does not come to an end."""
            self.tool_runs.set()
            await asyncio.sleep(SECONDS)
            return "It came to an end."

        base = {
            **HELPER,
            "allowed_regular_tools": ["calculate", "wait_for_ever"],
            "client_tools": "ignore",
        }
        agents = [
            {
                **base,
                "agent_id": agent,
                "system_prompt": prompt,
                "resource_config": {
                    "memory": {
                        "compression": {"enabled": False},
                        **({"history_messages": WINDOW} if agent == "other" else {}),
                    }
                },
            }
            for agent, prompt in PROMPTS.items()
        ]
        app = create_app(configuration(folder, self.model, agents=agents, tools=[wait_for_ever]))
        await self.opened.enter_async_context(app.router.lifespan_context(app))
        self.app = LeavingClients(app)
        transport = httpx2.ASGITransport(app=self.app)
        self.client = await self.opened.enter_async_context(
            httpx2.AsyncClient(transport=transport, base_url="http://service")
        )
        self.database = self.opened.enter_context(
            closing(
                sqlite3.connect(
                    folder / "data" / "ai-agent-service.db", timeout=10, isolation_level=None
                )
            )
        )

    def teardown(self) -> None:
        """Stops the service."""
        try:
            self.run(self.opened.aclose())
        finally:
            self.runner.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, in the one event loop of this example."""

        async def bounded() -> T:
            async with asyncio.timeout(2 * SECONDS):
                return await work

        return self.runner.run(bounded())

    # Turns one after the other

    @rule(target=turns, owner=any_owners, question=questions, how=hows)
    def begins(self, owner: Owner, question: str, how: How) -> Turn:
        """A new chat."""
        return self.ask(owner, (), question, how)

    @rule(
        target=turns,
        owner=any_owners,
        history=foreign,
        times=st.sampled_from([1, 1, 1, 5]),
        question=questions,
        how=hows,
    )
    def brings(self, owner: Owner, history: list[Any], times: int, question: str, how: How) -> Turn:
        """A history that the service never saw, perhaps a long one."""
        told = [
            self._foreign(each) if isinstance(each, tuple) else self._worded(each)
            for each in history * times
        ]
        return self.ask(owner, tuple(told), question, replace(how, with_tools=True))

    @rule(target=turns, turn=turns, question=questions, how=hows)
    def goes_on(self, turn: Turn, question: str, how: How) -> Turn:
        """The next message of a chat, the newest branch or an older one."""
        return self.ask(turn.request.owner, turn.chat, question, how)

    @rule(target=turns, turn=turns, back=st.integers(0, 3), how=hows)
    def regenerates(self, turn: Turn, back: int, how: How) -> Turn:
        """The last question once more, or an earlier one; what came after it is left behind."""
        asked = [position for position, said in enumerate(turn.chat) if said.role == "user"]
        chat = turn.chat[: asked[-1 - back % len(asked)] + 1]
        return self.take(self.client_request(turn.request.owner, chat, how), how.plan, chat)

    @rule(target=turns, turn=turns, how=hows)
    def has_the_answer_continued(self, turn: Turn, how: How) -> Turn:
        """The answer is sent back to be gone on with."""
        return self.take(
            self.client_request(turn.request.owner, turn.chat, how), how.plan, turn.chat
        )

    @rule(target=turns, turn=turns, place=st.integers(0, 5), question=questions, how=hows)
    def edits_a_question(self, turn: Turn, place: int, question: str, how: How) -> Turn:
        """An earlier question becomes another one; what came after it is left behind."""
        asked = [position for position, said in enumerate(turn.chat) if said.role == "user"]
        return self.ask(turn.request.owner, turn.chat[: asked[place % len(asked)]], question, how)

    @rule(
        target=turns,
        turn=turns,
        answer=st.sampled_from(["Edited {}.", *FOREIGN_ANSWERS]),
        question=questions,
        how=hows,
    )
    def edits_an_answer(self, turn: Turn, answer: str, question: str, how: How) -> Turn:
        """The client changes the last answer and goes on."""
        if turn.chat[-1].role == "user":
            return self.ask(turn.request.owner, turn.chat, question, how)
        edited = Said("assistant", self._numbered(answer))
        return self.ask(turn.request.owner, (*turn.chat[:-1], edited), question, how)

    @rule(target=turns, turn=turns, owner=any_owners, question=questions, how=hows)
    def goes_on_elsewhere(self, turn: Turn, owner: Owner, question: str, how: How) -> Turn:
        """A chat goes on under another user, agent or session."""
        return self.ask(owner, turn.chat, question, how)

    @rule(
        target=turns,
        owner=owners,
        question=questions,
        also=st.sampled_from([None, None, SAME]),
        how=hows,
    )
    def asks_with_the_servers_history(
        self, owner: Owner, question: str, also: str | None, how: How
    ) -> Turn:
        """Only what is new is sent."""
        new: tuple[Said, ...] = (Said("user", self._numbered(question), form=how.form),)
        if also is not None:
            new = (Said("user", self._numbered("First {}.")), Said("assistant", also), *new)
        return self.take(self.server_request(owner, new, how), how.plan)

    @rule(
        target=turns,
        turn=turns,
        plan=st.sampled_from(plan_kinds(deterministic=False)),
        is_retry=flags,
    )
    def repeats(self, turn: Turn, plan: str, is_retry: bool) -> Turn | MultipleResults[Turn]:
        """Exactly the same request, as a client's library sends it again, or somebody else.

        What was sent with the server's history can be told from a new message only while it is the
        last.
        """
        request = turn.request
        is_retry = is_retry or request.is_retry
        if (
            request.server
            and self.newest[request.owner] is not request
            and (is_retry or request.message_id)
        ):
            return multiple()
        retry = {"x-stainless-retry-count": "1"} if is_retry else {}
        again = replace(request, headers={**request.headers, **retry}, is_retry=is_retry)
        return self.take(again, plan, None if request.server else turn.asked)

    # Turns at the same time

    @rule(
        target=turns,
        turn=turns,
        first=questions,
        second=questions,
        plans=st.tuples(*[st.sampled_from(plan_kinds(deterministic=True))] * 2)
        | st.just(("same", "same")),
        how=hows,
    )
    def asks_twice_at_once(
        self, turn: Turn, first: str, second: str, plans: tuple[str, str], how: How
    ) -> MultipleResults[Turn]:
        """Two turns that follow on the same conversation become two branches."""
        how = replace(how, named=False)
        both = asyncio.Barrier(2)
        asked = [
            (*turn.chat, Said("user", self._numbered(question), form=how.form))
            for question in (first, second)
        ]
        requests = [self.client_request(turn.request.owner, chat, how) for chat in asked]
        planned = [self._plan(kind, both) for kind in plans]
        found = self.run(self._at_once(requests, planned))
        order = sorted((0, 1), key=lambda each: list(self.model.sent).index(found[each][0]))
        begun: dict[int, Begun] = {}
        for each in order:
            begun[each] = self.ledger.begin(requests[each])
        for each in order:
            self._check_sent(found[each][0], begun[each], planned[each])
            self._check_told(requests[each], found[each][1], planned[each], begun[each])
        heads = []
        for each in order:
            self.ledger.end(requests[each], begun[each], planned[each])
            if (tree := self.ledger.trees.get(requests[each].owner)) is not None:
                heads.append(tree.head)
        if heads:
            newest = self._newest_branch(turn.request.owner)
            assert newest in heads, (
                "the newest branch is neither of two turns that were taken at once"
            )
            self.ledger.trees[turn.request.owner].head = newest
        self.newest[turn.request.owner] = requests[0]
        return multiple(
            *(
                Turn(
                    requests[each],
                    asked[each],
                    self._told(asked[each], found[each][1], planned[each], begun[each]),
                )
                for each in range(2)
            )
        )

    @rule(
        owner=owners,
        first=questions,
        second=questions,
        plans=st.tuples(*[st.sampled_from(plan_kinds(deterministic=False))] * 2),
        how=hows,
    )
    def asks_the_server_twice_at_once(
        self, owner: Owner, first: str, second: str, plans: tuple[str, str], how: How
    ) -> None:
        """Two turns with the server's history are taken one after the other."""
        how = replace(how, named=False)
        requests = [
            self.server_request(owner, (Said("user", self._numbered(question)),), how)
            for question in (first, second)
        ]
        planned = [self._plan(kind) for kind in plans]
        found = self.run(self._at_once(requests, planned))
        for each in sorted((0, 1), key=lambda each: list(self.model.sent).index(found[each][0])):
            begun = self.ledger.begin(requests[each])
            self._check_sent(found[each][0], begun, planned[each])
            self.ledger.end(requests[each], begun, planned[each])
            self._check_told(requests[each], found[each][1], planned[each], begun)
            self.newest[owner] = requests[each]

    @rule(target=turns, turn=turns, question=questions, how=hows)
    def repeats_while_it_is_answered(
        self, turn: Turn, question: str, how: How
    ) -> Turn | MultipleResults[Turn]:
        """A client's library gives up too early and sends the request again: both are told the one
        answer."""
        if not turn.request.owner.is_stored:
            return multiple()
        asked = (*turn.chat, Said("user", self._numbered(question + " {}")))
        request = self.client_request(turn.request.owner, asked, replace(how, named=False))
        again = replace(
            request, headers={**request.headers, "x-stainless-retry-count": "1"}, is_retry=True
        )
        gate = asyncio.Event()
        plan = self._plan("tool", gate)

        async def both() -> tuple[str, Reply, Reply]:
            request_id, first = self._start(request, plan)
            await plan.arrived.wait()
            _, second = self._start(again, None)
            await self._written()
            gate.set()
            return request_id, await first, await second

        request_id, *replies = self.run(both())
        begun = self._settle(request, request_id, plan, replies[0])
        self._check_told(again, replies[1], plan, begun)
        return Turn(request, asked, self._told(asked, replies[0], plan, begun))

    # Turns that do not come to their end

    @rule(owner=any_owners, turn=turns, question=questions, how=hows, server=flags, in_tool=flags)
    def leaves(
        self, owner: Owner, turn: Turn, question: str, how: How, server: bool, in_tool: bool
    ) -> None:
        """The client leaves in the middle of its answer, or while a tool is at work."""
        server = server and owner.is_stored
        said = Said("user", self._numbered(question), form=how.form)
        request = (
            self.server_request(owner, (said,), how)
            if server
            else self.client_request(owner, (*turn.chat, said), how)
        )
        number = next(self.numbers)
        self.tool_runs.clear()
        call = ToolCall(f"call_{number:024}", "wait_for_ever", "{}")
        reached = self.tool_runs if in_tool else asyncio.Event()
        end: list[Any] = (
            [ModelFinished("tool_calls", (call,))] if in_tool else [reached.set, asyncio.Event()]
        )
        plan = Plan([[TextDelta(f"Answer {number}, be"), *end]])
        left = asyncio.Event()

        async def leaving() -> str:
            request_id, answering = self._start(request, plan, left)
            await reached.wait()
            left.set()
            with pytest.raises(ClientLeft):
                await answering
            return request_id

        request_id = self.run(leaving())
        begun = self.ledger.begin(request)
        self._check_sent(request_id, begun, plan)
        self.ledger.end(request, begun, plan)
        self.newest[owner] = request

    # Erasure

    @rule(owner=owners, everything=flags)
    def deletes(self, owner: Owner, everything: bool) -> None:
        """One conversation, or all of its user's."""
        if everything:
            self._erases(owner.user)
            return
        response = self.run(self.client.delete(self._place(owner), params=self._user(owner)))
        self._check_erased(response, [owner] if owner in self.ledger.trees else None)

    def _erases(self, user: str | None) -> None:
        """All of a user's, after it was exported."""
        params = self._user(Owner(user, "", None))
        mine = [owner for owner in self.ledger.trees if owner.name == (user or "anonymous")]
        exported = self.run(self.client.get("/memory", params=params)).text.splitlines()
        found = {
            (line["agent_id"], line["session_id"]): len(line["messages"])
            for line in map(json.loads, exported)
        }
        assert found == {
            (owner.agent, owner.session): len(self.ledger.trees[owner].nodes) for owner in mine
        }
        self._check_erased(self.run(self.client.delete("/memory", params=params)), mine)

    @rule(owner=owners, question=questions, how=hows, server=flags, begins_anew=flags)
    def deletes_while_it_is_answered(
        self, owner: Owner, question: str, how: How, server: bool, begins_anew: bool
    ) -> None:
        """What was deleted stays deleted, though an answer to it comes later, and though the
        session is used again meanwhile."""
        gate = asyncio.Event()
        plan = self._plan("tool", gate)
        asked = (Said("user", self._numbered(question + " {}")),)
        request = (self.server_request if server else self.client_request)(owner, asked, how)
        anew = self.client_request(owner, (Said("user", self._numbered("Anew {}")),), How("says"))
        anew_plan = self._plan("says")

        async def deleting() -> tuple[str, Reply, httpx2.Response, tuple[str, Reply] | None]:
            request_id, answering = self._start(request, plan)
            await plan.arrived.wait()
            deleted = await self.client.delete(self._place(owner), params=self._user(owner))
            second = None
            if begins_anew:
                anew_id, anew_answering = self._start(anew, anew_plan)
                second = anew_id, await anew_answering
            gate.set()
            return request_id, await answering, deleted, second

        request_id, reply, deleted, second = self.run(deleting())
        begun = self.ledger.begin(request)
        self._check_sent(request_id, begun, plan)
        self._check_told(request, reply, plan, begun)
        self._check_erased(deleted, [owner])
        if second is not None:
            self._settle(anew, second[0], anew_plan, second[1])

    # How a turn is taken and checked

    def ask(self, owner: Owner, chat: tuple[Said, ...], question: str, how: How) -> Turn:
        """Goes on with `chat`."""
        asked = (*chat, Said("user", self._numbered(question), form=how.form))
        return self.take(self.client_request(owner, asked, how), how.plan, asked)

    def take(self, request: Request, kind: str, chat: tuple[Said, ...] | None = None) -> Turn:
        """Sends the request and compares all that came of it with the ledger; `chat` None is what
        the ledger says that the client has."""
        plan = self._plan(kind)

        async def taking() -> tuple[str, Reply]:
            request_id, answering = self._start(request, plan)
            return request_id, await answering

        request_id, reply = self.run(taking())
        begun = self._settle(request, request_id, plan, reply)
        if chat is None:
            tree = self.ledger.trees[request.owner]
            path = [tree.nodes[tree.head[:end]] for end in range(1, len(tree.head) + 1)]
            return Turn(request, (), tuple(self._kept(node) for node in path))
        return Turn(request, chat, self._told(chat, reply, plan, begun))

    def _settle(self, request: Request, request_id: str, plan: Plan, reply: Reply) -> Begun:
        begun = self.ledger.begin(request)
        self._check_sent(request_id, begun, plan)
        self._check_told(request, reply, plan, begun)
        self.ledger.end(request, begun, plan)
        self.newest[request.owner] = request
        return begun

    def _check_sent(self, request_id: str, begun: Begun, plan: Plan) -> None:
        """The model was sent the conversation, and then its own steps."""
        sent = self.model.sent.get(request_id, [])
        if begun.again is not None:
            assert sent == [], "the model was asked again for an answer that there was"
            return
        told = begun.sent
        for number, messages in enumerate(sent):
            assert list(messages) == list(told), (
                f"the model was sent something else in step {number + 1}"
            )
            if number < len(plan.steps):
                told = (*told, *plan.steps[number].messages)
        assert len(sent) == len(plan.actions)

    def _check_told(self, request: Request, reply: Reply, plan: Plan, begun: Begun) -> None:
        """The client was told what the model said, or what it had said before."""
        if begun.again is not None:
            assert begun.again.answer is not None
            node = self.ledger.trees[request.owner].nodes[begun.again.answer]
            text, reason, steps, complete = node.text, begun.again.reason, node.steps, True
        else:
            text, reason, steps, complete = plan.text, plan.reason, plan.steps, plan.complete
        assert reply.complete is complete, reply
        if complete:
            assert (reply.status, reply.text, reply.reason) == (200, text, reason)
            if reply.tools is not None:
                assert reply.tools == [
                    (call.id, result) for step in steps for call, result in step.calls
                ]
        else:
            assert reply.text == (text if request.stream else "")
            assert (reply.status == 200) is bool(
                request.stream and (text or (steps and request.shows_tools))
            )

    def _check_erased(self, response: httpx2.Response, gone: list[Owner] | None) -> None:
        if gone is None:
            assert response.status_code == 404
            return
        trees = [self.ledger.trees.pop(owner) for owner in gone]
        self.touched.update(gone)
        assert response.status_code == 200
        counts = {
            "sessions": len(trees),
            "messages": sum(len(tree.nodes) for tree in trees),
            "runs": sum(len(tree.runs) for tree in trees),
        }
        assert response.json() == {**counts, "summaries": 0}

    def _told(
        self, chat: tuple[Said, ...], reply: Reply, plan: Plan, begun: Begun
    ) -> tuple[Said, ...]:
        """The client's conversation with what it was told; where that was nothing, the question is
        its last."""
        if not reply.complete and not reply.text:
            return chat
        if chat[-1].role == "assistant":
            return (*chat[:-1], Said("assistant", chat[-1].text + reply.text))
        if begun.again is not None:
            return (*chat, Said("assistant", reply.text))
        return (*chat, Said("assistant", reply.text, plan.steps, plan.last if plan.steps else ""))

    @staticmethod
    def _kept(node: Stored) -> Said:
        if node.role == "assistant":
            return Said("assistant", node.text, node.steps, node.last)
        if isinstance(node.content, str):
            return Said("user", node.content)
        is_image = any(isinstance(part, ImagePart) for part in node.content)
        return Said("user", node.content[0].text, form="image" if is_image else "parts")

    # Requests

    def client_request(self, owner: Owner, chat: Sequence[Said], how: How) -> Request:
        """The whole conversation."""
        messages = [
            message for said in chat for message in _rendered(said, with_tools=how.with_tools)
        ]
        if how.system:
            messages.insert(
                len(messages) // 2 if not how.with_tools else 0, Message("system", "Be brief.")
            )
        return self._request(owner, messages, how, server=False)

    def server_request(self, owner: Owner, new: Sequence[Said], how: How) -> Request:
        """Only what is new."""
        return self._request(
            owner,
            [message for said in new for message in _rendered(said, with_tools=False)],
            how,
            server=True,
        )

    def _request(self, owner: Owner, messages: list[Message], how: How, *, server: bool) -> Request:
        headers: dict[str, str] = {}
        body: dict[str, Any] = {
            "messages": [_wire(message) for message in messages],
            "stream": how.stream,
        }
        message_id = f"m{next(self.numbers)}" if how.named else None
        if message_id is not None:
            headers["X-AAS-Message"] = message_id
        path = CHAT
        if how.door == "agents":
            path = f"/agents/{owner.agent}/chat"
            body |= {
                name: value
                for name, value in (("user_id", owner.user), ("session_id", owner.session))
                if value is not None
            }
            if server and len(messages) == 1 and isinstance(messages[0].content, str):
                body["message"] = body.pop("messages")[0]["content"]
            elif server:
                headers["X-Session-History"] = "server"
        else:
            body["model"] = owner.agent
            if owner.user is not None:
                body["user"] = owner.user
            metadata = {
                "session_id": owner.session,
                "session_history": "server" if server else "client",
            }
            if how.door == "metadata" and owner.session is not None:
                body["metadata"] = metadata
            elif owner.session is not None:
                headers["X-OpenWebUI-Chat-Id" if how.door == "chat id" else "X-Session-Id"] = (
                    owner.session
                )
                if server:
                    headers["X-Session-History"] = "server"
        return Request(
            owner,
            path,
            body,
            headers,
            tuple(messages),
            server,
            how.stream,
            message_id if owner.is_stored else None,
        )

    def _start(
        self, request: Request, plan: Plan | None, left: asyncio.Event | None = None
    ) -> tuple[str, asyncio.Task[Reply]]:
        """The request's id, and the task that gets its answer."""
        request_id = f"request-{next(self.numbers)}"
        self.touched.add(request.owner)
        if plan is not None:
            self.model.plans[request_id] = plan
        if left is not None:
            self.app.leaving[request_id] = left
        headers = {**request.headers, "x-request-id": request_id}

        async def answering() -> Reply:
            return _reply(
                request, await self.client.post(request.path, json=request.body, headers=headers)
            )

        return request_id, asyncio.create_task(answering())

    async def _at_once(
        self, requests: Sequence[Request], plans: Sequence[Plan]
    ) -> list[tuple[str, Reply]]:
        started = [
            self._start(request, plan) for request, plan in zip(requests, plans, strict=True)
        ]
        replies = await asyncio.gather(*(task for _, task in started))
        return [
            (request_id, reply) for (request_id, _), reply in zip(started, replies, strict=True)
        ]

    async def _written(self) -> None:
        """Waits until what other requests have to write by now is written: a deletion of nothing
        has to wait for its turn."""
        response = await self.client.delete("/agents/helper/conversations/none")
        assert response.status_code == 404

    def _plan(self, kind: str, gate: "asyncio.Event | asyncio.Barrier | None" = None) -> Plan:
        """A turn of the model of this kind; it waits at `gate` before it says anything."""
        number = next(self.numbers)
        first: list[Any] = [] if gate is None else [gate]
        steps = self._steps(kind, number)
        return Plan([[*first, *steps[0]], *steps[1:]])

    def _steps(self, kind: str, number: int) -> list[list[Any]]:
        stop = ModelFinished("stop")
        broken = ProviderUnavailableError("The provider reports a failure of its own.")

        def says(*pieces: str) -> list[Any]:
            return [TextDelta(piece) for piece in pieces]

        def calls(*places: int) -> ModelFinished:
            wanted = [
                ToolCall(
                    f"call_{number:012}{place:012}",
                    "calculate",
                    json.dumps({"expression": f"{place + number} + 1"}),
                )
                for place in places
            ]
            return ModelFinished("tool_calls", tuple(wanted))

        plans: dict[str, list[list[Any]]] = {
            "says": [[*says(f"Answer {number}, ", "and so on."), stop]],
            "cut": [[*says(f"Answer {number}, and so"), ModelFinished("length")]],
            "decomposed": [[*says("Cafe", f"\u0301 {number}."), stop]],
            "empty": [[stop]],
            "same": [[*says("Ye", "s."), stop]],
            "same, spaced": [[*says("Yes", "\n."), stop]],
            "same after tool": [[calls(1)], [*says(SAME), stop]],
            "same, broken": [[*says(SAME), broken]],
            "tool": [
                [*says(f"Let me see {number}. "), calls(1)],
                [*says("It is ", f"{number}."), stop],
            ],
            "silent tools": [[calls(1, 2)], [calls(3)], [*says(f"All of {number}."), stop]],
            "refuses": [[broken]],
            "breaks": [[*says(f"Answer {number}, be"), broken]],
            "tool refuses": [[calls(1)], [broken]],
            "tool breaks": [[*says(f"Let me see {number}. "), calls(1)], [*says("It is"), broken]],
            "crashes": [[*says(f"Answer {number}, cr"), RuntimeError("a fault of the provider's")]],
            "ends early": [says(f"Answer {number}, en")],
        }
        return plans[kind]

    def _numbered(self, text: str) -> str:
        return text.replace("{}", str(next(self.numbers))) if "{}" in text else text

    def _worded(self, said: Said) -> Said:
        return replace(said, text=self._numbered(said.text))

    def _foreign(self, spoken: tuple[str, str, str]) -> Said:
        """An answer of another service, with a tool of its own."""
        _, before, after = spoken
        call = ToolCall(f"foreign_{next(self.numbers)}", "look_up", "{}")
        return Said("assistant", before + after, (Used(before, ((call, "found"),)),), after)

    @staticmethod
    def _place(owner: Owner) -> str:
        return f"/agents/{owner.agent}/conversations/{quote(owner.session or '', safe='')}"

    @staticmethod
    def _user(owner: Owner) -> dict[str, str]:
        return {} if owner.user is None else {"user_id": owner.user}

    # What must be so after each rule

    @invariant()
    def all_is_as_the_ledger_says(self) -> None:
        """What is shown, and what is stored."""
        self._check_api()
        self._check_database()

    def _check_api(self) -> None:
        """Of each session that was used: all branches, the newest one, the list; and nothing of it
        to others."""
        self.checks += 1
        touched = sorted(
            (owner for owner in self.touched if owner.session is not None),
            key=lambda owner: owner.key,
        )
        self.touched.clear()
        for owner in touched:
            self.run(self._check_shown(owner))

    async def _check_shown(self, owner: Owner) -> None:
        tree = self.ledger.trees.get(owner)
        response = await self.client.get(
            self._place(owner), params={**self._user(owner), "branches": "true"}
        )
        if tree is None:
            assert response.status_code == 404
            return
        assert response.status_code == 200, response.text
        addresses = _addresses(response.json()["messages"])
        shown = [(address, _view(message)) for message, address in addresses]
        twice = [
            address
            for address, count in Counter(address for address, _ in shown).items()
            if count > 1
        ]
        assert not twice, "stored twice"
        wanted = {address: _wanted(node) for address, node in tree.nodes.items()}
        assert dict(shown) == wanted
        by_path = {bytes.fromhex(message["id"]): address for message, address in addresses}
        heads = self.database.execute(
            "SELECT head FROM sessions WHERE user_id = ? AND agent_id = ? AND session_id = ?",
            owner.key,
        ).fetchall()
        assert [by_path[head] for (head,) in heads] == [tree.head], (
            "the newest message is another one"
        )
        if self.checks % 4 == 0:
            await self._check_lists(owner, tree)

    async def _check_lists(self, owner: Owner, tree: Tree) -> None:
        """The newest branch, the list of the owner's sessions, and that others find nothing."""
        newest = await self.client.get(self._place(owner), params=self._user(owner))
        branch = _addresses(newest.json()["messages"])
        assert [address for _, address in branch] == [
            tree.head[:end] for end in range(1, len(tree.head) + 1)
        ]
        listed = (
            await self.client.get(f"/agents/{owner.agent}/conversations", params=self._user(owner))
        ).json()["data"]
        mine = {
            each.session: kept
            for each, kept in self.ledger.trees.items()
            if (each.user, each.agent) == (owner.user, owner.agent)
        }
        assert {info["session_id"]: info["messages"] for info in listed} == {
            session: len(kept.nodes) for session, kept in mine.items()
        }
        for stranger in (replace(owner, user=user) for user in USERS):
            if stranger not in self.ledger.trees:
                response = await self.client.get(self._place(stranger), params=self._user(stranger))
                assert response.status_code == 404

    def _newest_branch(self, owner: Owner) -> Address:
        response = self.run(self.client.get(self._place(owner), params=self._user(owner)))
        return _addresses(response.json()["messages"])[-1][1]

    def _check_database(self) -> None:
        """No session, message or run that is not in the ledger; none that is still under way; what
        was not touched is as it was."""
        sessions = self.database.execute(
            "SELECT key, tenant, user_id, agent_id, session_id, lease_process FROM sessions"
        ).fetchall()
        keys = {row[0]: row[1:5] for row in sessions}
        assert Counter(keys.values()) == Counter(
            ("local", *owner.key) for owner in self.ledger.trees
        )
        assert [row for row in sessions if row[5] is not None] == [], (
            "a session is held though no turn is under way"
        )
        nodes = self.database.execute(
            "SELECT n.session_key, n.path, n.parent, n.depth, n.role, n.status, n.body, n.steps,"
            " n.run_id, n.tenant, n.user_id, p.depth, p.session_key FROM nodes n LEFT JOIN nodes p"
            " ON p.path = n.parent"
        ).fetchall()
        for row in nodes:
            key, _, parent, depth, *_ = row
            assert row[9:11] == keys[key][:2], "a message belongs to somebody else than its session"
            assert (
                (depth, key) == (1, parent)
                if row[11] is None
                else (depth, key) == (row[11] + 1, row[12])
            ), "a message hangs nowhere"
        by_address = {row[1]: row for row in nodes}
        runs = self.database.execute(
            "SELECT session_key, status, question, answer, tenant, user_id FROM runs"
        ).fetchall()
        for key, status, question, answer, *owner in runs:
            assert tuple(owner) == keys[key][:2]
            assert by_address[question][4] == "user"
            assert status == "incomplete" or (
                status == "done" and by_address[answer][5] == "complete"
            ), status
        found = Counter((keys[row[0]], row[1]) for row in runs)
        assert found == Counter(
            (("local", *owner.key), run.status)
            for owner, tree in self.ledger.trees.items()
            for run in tree.runs
        )
        counted = Counter(keys[row[0]] for row in nodes)
        assert counted == Counter(
            {("local", *owner.key): len(tree.nodes) for owner, tree in self.ledger.trees.items()}
        )


def _rendered(said: Said, *, with_tools: bool) -> list[Message]:
    """A client's message as it is sent, the tools of an answer with it or left out."""
    if said.role == "assistant":
        if said.steps and with_tools:
            return [
                *(message for step in said.steps for message in step.messages),
                Message("assistant", said.last),
            ]
        return [Message("assistant", said.text)]
    parts: tuple[ContentPart, ...] = (
        TextPart(said.text),
        *((ImagePart(IMAGE),) if said.form == "image" else ()),
    )
    return [Message("user", said.text if said.form == "text" else parts)]


def _wire(message: Message) -> dict[str, Any]:
    """A message in OpenAI's form."""
    content: Any = message.content
    if not isinstance(content, str):
        content = [
            (
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {"type": "image_url", "image_url": {"url": IMAGE}}
            )
            for part in content
        ]
    found: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        functions = [
            (call.id, {"name": call.name, "arguments": call.arguments})
            for call in message.tool_calls
        ]
        found["tool_calls"] = [
            {"id": call_id, "type": "function", "function": function}
            for call_id, function in functions
        ]
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    return found


def _reply(request: Request, response: httpx2.Response) -> Reply:
    """What the response says."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        body = response.json()
        if response.status_code != 200:
            assert set(body) == {"error"}
            return Reply(response.status_code)
        if request.path == CHAT:
            choice = body["choices"][0]
            return Reply(200, choice["message"]["content"], True, choice["finish_reason"])
        tools = [(call["id"], call["result"]) for call in body["tool_calls"]]
        return Reply(200, body["response"], True, body["finish_reason"], tools)
    lines = [
        line.removeprefix("data: ")
        for line in response.text.split("\n")
        if line.startswith("data: ")
    ]
    assert lines.pop() == "[DONE]"
    reply = Reply(response.status_code)
    failed = False
    for event in map(json.loads, lines):
        if request.path == CHAT:
            for choice in event.get("choices", ()):
                reply.text += choice["delta"].get("content") or ""
                reply.reason = choice["finish_reason"] or reply.reason
        else:
            reply.text += event["text"] if event["type"] == "text_delta" else ""
            reply.reason = event.get("finish_reason", reply.reason)
        failed = failed or "error" in event
    reply.complete = reply.reason is not None and not failed
    return reply


def _addresses(messages: list[dict[str, Any]]) -> list[tuple[dict[str, Any], Address]]:
    """Each message of the API with its address; those before others come first."""
    found: dict[str | None, Address] = {None: ()}
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant":
            key: Any = answer_key(content)
        elif isinstance(content, str):
            key = question_key(content)
        else:
            key = question_key(
                [
                    (
                        TextPart(part["text"])
                        if part["type"] == "text"
                        else ImagePart(part["image_url"]["url"])
                    )
                    for part in content
                ]
            )
        found[message["id"]] = (*found[message["parent"]], (message["role"], key))
    return [(message, found[message["id"]]) for message in messages]


def _view(message: dict[str, Any]) -> tuple[Any, ...]:
    """What of a message of the API is compared."""
    tools = [
        (call["id"], call["name"], call["arguments"], call["result"])
        for call in message.get("tool_calls", ())
    ]
    content = message["content"]
    if not isinstance(content, str):
        content = [
            (
                part
                if part["type"] == "text"
                else {**part, "image_url": {"url": part["image_url"]["url"]}}
            )
            for part in content
        ]
    return (message["role"], content, message["status"], message["origin"], tools)


def _wanted(node: Stored) -> tuple[Any, ...]:
    """As `_build_view`, of what the ledger says."""
    tools = [
        (call.id, call.name, call.arguments, result)
        for step in node.steps
        for call, result in step.calls
    ]
    return (node.role, comparable(node.content), node.status, node.origin, tools)


@pytest.mark.timeout(
    400
)  # only a failure takes so long, for it is made as short as can be before it is told
def test_random_conversations_are_stored_once_and_shown_to_nobody_else() -> None:
    run_state_machine_as_test(
        Conversations,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
