"""ai-agent-service chat: a conversation with an agent in the terminal, streamed, its tools
shown."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from typing import Any

import click
from markdown_it import MarkdownIt
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.auth.principal import LOCAL, Principal
from ai_agent_service.cli.conventions import CONNECT_SECONDS
from ai_agent_service.config.agent_definition import RESERVED_MODEL_SETTINGS
from ai_agent_service.core.errors import NotFoundError
from ai_agent_service.core.events import (
    MemorySkipped,
    ReasoningDelta,
    RefusalDelta,
    RunEvent,
    RunFailed,
    RunFinished,
    TextDelta,
    ToolFinished,
    ToolProgress,
    ToolsMissing,
    ToolStarted,
)
from ai_agent_service.core.ids import generate_id
from ai_agent_service.core.messages import Message
from ai_agent_service.core.redaction import find_secrets
from ai_agent_service.core.text import replace_unstorable, show_foreign
from ai_agent_service.core.turn import Turn
from ai_agent_service.observability.logging import configure_logging
from ai_agent_service.runtime.configuration import load
from ai_agent_service.runtime.opening import open_service
from ai_agent_service.runtime.service import Service

with contextlib.suppress(ImportError):  # not on Windows
    import readline  # noqa: F401 - gives input() its line editing and history

MAX_SHOWN_RESULT = 300

USER = "terminal"
_MARKDOWN = MarkdownIt().enable("table")


@click.command()
@click.argument("agent_id")
@click.option("--model", help="Another model than the agent's own.")
@click.option(
    "--setting",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A model setting, such as temperature=0.2; may be repeated.",
)
@click.option("--message", "-m", help="Ask this one thing and end.")
@click.option(
    "--session", help="Go on with a conversation that an agent with a memory had under this name."
)
@click.option(
    "--debug",
    is_flag=True,
    help="Log in detail: all that is said to the model, by it, and by tools.",
)
def chat(
    agent_id: str,
    model: str | None,
    settings: tuple[str, ...],
    message: str | None,
    session: str | None,
    debug: bool,
) -> None:
    """Talk with AGENT_ID. An empty line is passed over; Ctrl-C stops an answer; Ctrl-D ends the
    chat."""
    parsed = _parse_settings(settings)
    level = "DEBUG" if debug else "ERROR"
    configure_logging(level)
    configuration = load().restrict_servers([agent_id])
    configure_logging(level, find_secrets(configuration.environment))
    # Input is read in the main thread, where Ctrl-C reaches it, so the loop runs only while there
    # is something to wait for.
    with asyncio.Runner() as runner:
        service = open_service(configuration)
        opened = runner.run(service.__aenter__())
        try:
            agent = _find_agent(opened, agent_id)
            runner.run(opened.servers.wait_for_start(CONNECT_SECONDS))
            for status in opened.servers.statuses:
                if status.label in agent.definition.allowed_mcp_servers and status.state != "ready":
                    why = status.error or "it is still starting"
                    notice = show_foreign(f"without the tools of {status.label}: {why}")
                    Console(stderr=True).print(Text(notice, "yellow"))
            if session is not None and agent.definition.memory is None:
                raise click.UsageError(
                    f"{agent_id} has no memory, so it has no session to go on with."
                )
            succeeded = TerminalChat(opened, agent, model, parsed, runner, session).run(message)
        finally:
            runner.run(service.__aexit__(None, None, None))
    if not succeeded:
        sys.exit(1)


def _find_agent(service: Service, agent_id: str) -> BaseAgent:
    try:
        return service.catalog.get(agent_id)
    except NotFoundError:
        known = ", ".join(agent.agent_id for agent in service.catalog)
        raise click.UsageError(f"There is no agent {agent_id!r}. There are: {known}.") from None


class TerminalChat:
    """The messages so far, and the turns that add to them."""

    def __init__(
        self,
        service: Service,
        agent: BaseAgent,
        model: str | None,
        settings: Mapping[str, Any],
        runner: asyncio.Runner,
        session: str | None = None,
    ) -> None:
        self._service = service
        self._agent = agent
        self._model = model
        self._settings = settings
        self._runner = runner
        self._messages: list[Message] = []
        self._session = (
            (session or generate_id("chat_")) if agent.definition.memory is not None else None
        )
        self._console = Console(highlight=False)

    def run(self, message: str | None) -> bool:
        """Takes turns until the input ends, or the one of `message`; False when the last turn
        failed."""
        if message is not None:
            return self._run_turn(message)
        provider = self._agent.parts.provider.name
        if sys.stdin.isatty():
            keys = f" ({provider}) - Ctrl-C stops an answer, Ctrl-D ends the chat"
            self._console.print(Text.assemble((self._agent.agent_id, "bold"), (keys, "dim")))
            if self._session is not None:
                hint = f"remembered: go on later with --session {show_foreign(self._session)}"
                self._console.print(Text(hint, "dim"))
        succeeded = True
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "")
            except EOFError:
                return succeeded
            except KeyboardInterrupt:
                self._console.print("\n[dim]Ctrl-D ends the chat[/]")
                continue
            if line.strip():
                succeeded = self._run_turn(line)

    def _run_turn(self, text: str) -> bool:
        """Asks `text`. An answer that was stopped stays in the conversation as far as it came; a
        failed turn leaves no trace."""
        question = Message(role="user", content=replace_unstorable(text))
        answer = TerminalAnswer(self._console)
        try:
            succeeded = self._runner.run(self._stream_answer(question, answer))
        except KeyboardInterrupt:
            answer.close()
            self._console.print("[yellow]stopped[/]")
            succeeded = True
        if succeeded:
            self._messages += [question, Message(role="assistant", content=answer.text)]
        return succeeded

    async def _stream_answer(self, question: Message, answer: "TerminalAnswer") -> bool:
        remembers = self._session is not None
        turn = Turn(
            messages=(question,) if remembers else (*self._messages, question),
            settings=self._settings,
            model=self._model,
            session=self._session,
            history="server" if remembers else "client",
        )

        async def show(event: RunEvent) -> None:
            answer.show(event)

        run = self._service.create_run(self._agent, turn, Principal(LOCAL), user=USER)
        end = await run.drive(show)
        if isinstance(end, RunFailed):
            error = show_foreign(f"error: {end.error.message}", keep="\n")
            self._console.print(Text(error, style="red"))
        return isinstance(end, RunFinished)


def _format_progress(event: ToolProgress) -> str:
    """How far a tool is: `40%: message`, where it tells its total, else `4: message`."""
    done = f"{event.progress / event.total:.0%}" if event.total else f"{event.progress:g}"
    return f"{done}: {event.message}" if event.message else done


class TerminalAnswer:
    """One answer on the terminal: whole paragraphs are set and left, the last one is redrawn as it
    grows; plain text into a pipe."""

    def __init__(self, console: Console) -> None:
        self.text = ""
        self._console = console
        self._open = ""
        self._live: Live | None = None
        self._thinking = False

    def show(self, event: RunEvent) -> None:
        """Show the next event of the run."""
        match event:
            case TextDelta(text=text) | RefusalDelta(text=text):
                self.add(text)
            case ReasoningDelta(text=text):
                self.add_reasoning(text)
            case ToolStarted(call=call):
                self.add_note("> ", "cyan", call.name, call.arguments or "{}")
            case ToolProgress(call=call):
                self.add_note(". ", "dim", call.name, _format_progress(event))
            case ToolFinished(result=result):
                sign, style = ("x ", "red") if result.is_error else ("< ", "green")
                name = f"{result.name} ({result.seconds:.2f} s)"
                self.add_note(sign, style, name, result.content)
            case ToolsMissing(reasons=reasons):
                self.add_note("! ", "yellow", "without some tools", "; ".join(reasons))
            case MemorySkipped(reason=reason):
                self.add_note("! ", "yellow", "without memory", reason)
            case RunFinished() | RunFailed():
                self.close()

    def add(self, text: str) -> None:
        """Shows the next piece of the answer."""
        self._end_thinking()
        self.text += text
        text = show_foreign(text, keep="\n\t")
        if not self._console.is_terminal:
            self._console.out(text, end="")
            return
        self._open += text
        if "\n" in text:
            whole, self._open = _split_last_block(self._open)
            if whole:
                self._stop_live()
                self._console.print(_parse_markdown(whole))
                self._console.print()
        if self._open.strip() and self._live is None:
            # What is shown is asked for at each refresh, so that the text is parsed twelve times a
            # second and not for each word.
            self._live = Live(
                console=self._console,
                refresh_per_second=12,
                get_renderable=lambda: _parse_markdown(self._open),
            )
            self._live.start()

    def add_reasoning(self, text: str) -> None:
        """Shows what the model thinks, dimmed."""
        self._thinking = True
        shown = show_foreign(text, keep="\n\t")
        self._console.print(Text(shown, style="dim italic"), end="")

    def add_note(self, sign: str, style: str, name: str, detail: str) -> None:
        """Shows a tool at work."""
        self._finish_block()
        shown = detail if len(detail) <= MAX_SHOWN_RESULT else f"{detail[:MAX_SHOWN_RESULT]}..."
        name, shown = show_foreign(name), show_foreign(shown, keep="\n\t")
        self._console.print(
            Text.assemble((sign, style), (name, "bold"), " ", (shown, "dim")), soft_wrap=True
        )

    def close(self) -> None:
        """Leaves what is shown as it is."""
        self._finish_block()
        if not self._console.is_terminal:
            self._console.out("")

    def _finish_block(self) -> None:
        self._end_thinking()
        self._stop_live(keep=True)
        self._open = ""

    def _stop_live(self, *, keep: bool = False) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.transient = not keep
            live.stop()

    def _end_thinking(self) -> None:
        if self._thinking:
            self._thinking = False
            self._console.print()


def _parse_markdown(text: str) -> Markdown:
    """Return `text` for the terminal: links with their addresses, and no character that an entity
    such as `&#x202e;` brings in."""
    parsed = Markdown(text, hyperlinks=False)
    tokens = list(parsed.parsed)
    while tokens:
        token = tokens.pop()
        token.content = show_foreign(token.content, keep="\n\t")
        token.info = show_foreign(token.info)
        token.attrs = {
            name: show_foreign(value) if isinstance(value, str) else value
            for name, value in token.attrs.items()
        }
        tokens += token.children or ()
    return parsed


def _split_last_block(text: str) -> tuple[str, str]:
    """`text` cut before its last block (paragraph, list, code, table, ...), which may still
    grow."""
    begins = [token.map[0] for token in _MARKDOWN.parse(text) if token.level == 0 and token.map]
    lines = text.splitlines(keepends=True)
    cut = begins[-1] if len(begins) > 1 else 0
    return "".join(lines[:cut]).rstrip(), "".join(lines[cut:])


def _parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{setting!r} is not NAME=VALUE", param_hint="--setting")
        if name in RESERVED_MODEL_SETTINGS:
            raise click.BadParameter(f"{name} cannot be set", param_hint="--setting")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
