"""The memory of an agent in the database: what the model is to see of a conversation, and what of
it is stored."""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress

import msgspec
from sqlalchemy import Connection

from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import (
    IdempotencyMismatchError,
    InvalidRequestError,
    MemoryUnavailableError,
    ServiceError,
    SessionBusyError,
)
from ai_agent_service.core.messages import Message, TextPart, restore_provider_data
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.core.turn import Turn
from ai_agent_service.memory.base import RememberedTurn, Step, TurnAnswer
from ai_agent_service.memory.message_tree import Entry, MessageHasher, split_steps
from ai_agent_service.memory.store import (
    ConversationErasedError,
    KnownMessage,
    Node,
    Session,
    SessionLease,
    Store,
    StoredAnswer,
    Summary,
    TurnKey,
    TurnStart,
)
from ai_agent_service.memory.summaries import SUMMARY_TOKENS, Compressor
from ai_agent_service.memory.tokens import estimate
from ai_agent_service.memory.windows import cut_to_tokens, estimate_request

logger = logging.getLogger(__name__)

SESSION_WAIT_SECONDS = 30.0
"""How long a turn with the server's history waits for an earlier one of its session."""

MAX_HISTORY = 2000
"""How many messages of the server's history a model is shown where there is no summary of those
before."""

WINDOW_FILL_RATIO = 0.75
"""How much of the server's history's window is used when the older messages become a summary,
however short they are."""

POLL_SECONDS = 0.1
ABANDON_SECONDS = 60.0
"""How long a database that is away is waited for to end the run of a turn that could not begin."""

MAX_INLINE_MESSAGES = 500
MAX_INLINE_CHARACTERS = 200_000
"""Conversations longer than this, or with images, are digested in a thread, so that others' turns
go on."""

MAX_PIECES = 3
"""In about how many requests older messages are summarised while the caller waits."""

LEFT_OUT = "Earlier messages of this conversation are left out here, because they do not fit."

SUMMARY_PREFIX = """\
What was said earlier in this conversation, in summary:

"""


class SqlMemory:
    """The memory of one agent; `window` is how many messages of the server's history a model sees
    at most."""

    def __init__(
        self,
        store: Store,
        locks: "SessionLocks",
        tasks: Tasks,
        *,
        required: bool,
        window: int,
        compressor: Compressor | None,
    ) -> None:
        self.store = store
        self._locks = locks
        self.tasks = tasks
        self.required = required
        self.window = window
        self.compressor = compressor
        self.limit: int | None = None
        """How many tokens of a conversation the model took last, once it refused one."""

        self.compressing: set[bytes] = set()
        """The sessions of which a summary is being made."""

    @property
    def problem(self) -> str | None:
        """See Memory."""
        return (
            "The database cannot be used now." if self.store.database.problem is not None else None
        )

    async def begin(self, context: RunContext, turn: Turn) -> RememberedTurn:
        """See Memory."""
        session = self.store.build_run_session(context)
        key = TurnKey(session, context.run_id, turn.is_retry, turn.message_id)
        tried = self.store.database.problem is None
        try:
            if turn.history == "server":
                return await self._begin_server(key, turn, context.seconds_left)
            return await self._begin_client(key, turn)
        except BaseException:
            # The question may be stored all the same, and its run must not seem to be in progress.
            if tried:
                self.tasks.run(self._abandon_run(key, leased=turn.history == "server"))
            raise

    async def _begin_client(self, key: TurnKey, turn: Turn) -> RememberedTurn:
        conversation = tuple([message for message in turn.messages if message.role != "system"])
        last = next(
            (
                place
                for place in range(len(conversation) - 1, -1, -1)
                if conversation[place].role == "user"
            ),
            None,
        )
        if last is None:
            return UnstoredTurn(turn.messages)
        begun, trailing = conversation[: last + 1], conversation[last + 1 :]
        entries = await _build_entries(self.store.hasher, begun, key.session.key)
        continued = next(iter(self.store.hasher.build_entries(trailing, entries[-1].path)), None)

        def begin_turn(connection: Connection) -> tuple[TurnStart, Summary | None]:
            begun = self.store.begin(connection, key, entries, continued=continued)
            return begun, self._find_summary(
                connection,
                key.session,
                (entry.path for entry in entries),
                has_summaries=begun.has_summaries,
            )

        found, summary = await self.store.database.write(begin_turn)
        self._count_stored(found.stored, is_first=len(entries) == 1)
        known = found.known
        pieces = [
            _restore_steps(entry, known[entry.path]) if entry.path in known else entry
            for entry in entries
        ]
        if any(each.tool_calls for each in trailing) and continued and continued.path in known:
            trailing = _restore_steps(continued, known[continued.path]).messages
        place = _TurnPlace(key, turn.messages, pieces, entries[-1], trailing)
        return _StoredTurn(self, place, found, summary)

    async def _begin_server(self, key: TurnKey, turn: Turn, seconds_left: float) -> RememberedTurn:
        """As the only turn of its session; the lock is given back when the answer is kept."""
        began = asyncio.get_running_loop().time()
        wait = min(SESSION_WAIT_SECONDS, seconds_left)
        held = self._locks.lock(key.session.key, wait)
        await held.__aenter__()
        try:
            return await self._begin_leased(key, turn, wait, held, began)
        except BaseException:
            await held.__aexit__(None, None, None)
            raise

    async def _begin_leased(
        self, key: TurnKey, turn: Turn, wait: float, held: "_SessionLock", began: float
    ) -> RememberedTurn:
        new = tuple(message for message in turn.messages if message.role != "system")
        if not new or new[-1].role != "user":
            raise InvalidRequestError(
                "With the server's history a turn ends with the user's message; send results of"
                " tools with the whole conversation.",
                param="messages",
            )
        database, store, session = self.store.database, self.store, key.session
        leased = await self._acquire_lease(session, wait)
        nodes, covering = await self._read_history(session, leased)
        waited = asyncio.get_running_loop().time() - began

        def begin_turn(
            connection: Connection,
        ) -> tuple[TurnStart, Summary | None, list[Node], list[Entry]]:
            before, entries, begun = self._place_messages(connection, key, nodes, new, waited)
            if begun.answer is not None or begun.in_progress is not None:
                store.release(connection, session)
                return begun, None, before, entries
            # makes it again where it was deleted meanwhile
            store.touch(connection, session, head=entries[-1].path)
            store.store_entries(connection, session, entries[:-1])
            store.store_question(connection, key, entries[-1])
            summary = covering
            if begun.repeated:  # the summary may cover it
                paths = [*(node.path for node in before), *(entry.path for entry in entries)]
                summary = self._find_summary(
                    connection, session, paths, has_summaries=leased.has_summaries
                )
            stored = 0 if begun.repeated else len(entries)
            return (
                TurnStart(known={}, has_summaries=leased.has_summaries, stored=stored),
                summary,
                before,
                entries,
            )

        found, summary, before, entries = await database.write(begin_turn)
        self._count_stored(found.stored, is_first=not before)
        pieces = [
            *(
                Entry(_build_node_messages(node), node.path, node.parent, node.depth)
                for node in before
            ),
            *entries,
        ]
        place = _TurnPlace(key, turn.messages, pieces, entries[-1])
        return _StoredTurn(self, place, found, summary, held)

    def _place_messages(
        self,
        connection: Connection,
        key: TurnKey,
        nodes: list[Node],
        new: tuple[Message, ...],
        waited: float,
    ) -> tuple[list[Node], list[Entry], TurnStart]:
        """The history before the `new` messages, these as entries, and what came of an equal turn,
        if this repeats the last one.

        A request that does not say that it is a retry repeats the last turn too if that has no
        answer, or none that its caller can have; `waited` is as for Store.is_unconfirmed.
        """
        addresses = self.store.hasher
        first = None
        if key.is_idempotency_key:
            first = self.store.find_question(connection, key)
        if first is not None:
            if addresses.hash_question(first.parent, new[-1].content) != first.path:
                raise IdempotencyMismatchError(
                    "This Idempotency-Key was used for another question of this session.",
                    param="Idempotency-Key",
                )
            known = KnownMessage((), "", first.run_id)
            again = msgspec.structs.replace(key, is_retry=True)
            found = self.store.find_equal_turn(connection, again, first.path, known)
            if found.answer is not None or found.in_progress is not None:
                return (
                    nodes,
                    addresses.build_entries(new[-1:], first.parent, first.depth - 1),
                    found,
                )
        if nodes:
            place = len(nodes) - (1 if nodes[-1].role == "user" else 2)
            if place >= 0 and nodes[place].role == "user":
                question = nodes[place]
                repeated = addresses.build_entries(new, question.parent, question.depth - 1)
                if (
                    len(repeated) == 1
                    and repeated[0].path == question.path
                    and (first is None or first.path == question.path)
                ):
                    known = KnownMessage((), "", question.run_id)
                    if not (key.is_retry or key.message_id):
                        is_retry = nodes[-1].role == "user" or self.store.is_unconfirmed(
                            connection, key, question, waited
                        )
                        key = msgspec.structs.replace(key, is_retry=is_retry)
                    found = self.store.find_equal_turn(connection, key, question.path, known)
                    if found.repeated:
                        return nodes[:place], repeated, found
        last = nodes[-1] if nodes else None
        entries = addresses.build_entries(
            new, last.path if last else key.session.key, last.depth if last else 0
        )
        return nodes, entries, TurnStart(known={}, has_summaries=False)

    async def _acquire_lease(self, session: Session, wait: float) -> SessionLease:
        """The session, once no other process has it."""
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            leased = await self.store.database.write(
                lambda connection: self.store.lease(connection, session)
            )
            if leased is not None:
                return leased
            if asyncio.get_running_loop().time() + POLL_SECONDS > deadline:
                raise SessionBusyError(
                    "Another turn of this session is under way. Try again in a moment.",
                    retry_after=2,
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _read_history(
        self, session: Session, leased: SessionLease
    ) -> tuple[list[Node], Summary | None]:
        """The newest messages and their summary, from the replica if it has the newest of them:
        then it has all before."""
        if leased.head is None:
            return [], None
        settings = b"" if self.compressor is None else self.hash_settings(self.compressor)
        head, limit = leased.head, self.window
        while True:
            nodes, summary = await self._read_window(session, head, limit, settings)
            if (
                self.compressor is None
                or summary is not None
                or len(nodes) < limit
                or limit >= MAX_HISTORY
            ):
                return nodes, summary
            limit = min(
                limit * 4, MAX_HISTORY
            )  # no summary stands for what is before them, as when none could be made

    async def _read_window(
        self, session: Session, head: bytes, limit: int, settings: bytes
    ) -> tuple[list[Node], Summary | None]:
        database = self.store.database

        def read_rows(connection: Connection) -> tuple[list[Node], Summary | None]:
            return self.store.read_window(connection, session, head, limit, settings)

        if database.replica is not None:
            try:
                nodes, summary = await database.read_replica(read_rows)
            except MemoryUnavailableError:
                logger.debug("memory.replica_passed_over")
            else:
                if nodes:
                    return nodes, summary
        return await database.read(read_rows)

    def _find_summary(
        self,
        connection: Connection,
        session: Session,
        paths: Iterable[bytes],
        *,
        has_summaries: bool,
    ) -> Summary | None:
        """The best summary of what was said before the last of `paths`."""
        if not has_summaries or self.compressor is None:
            return None
        return self.store.find_summary(
            connection, session, list(paths)[:-1], self.hash_settings(self.compressor)
        )

    async def _abandon_run(self, key: TurnKey, *, leased: bool) -> None:
        def end_run(connection: Connection) -> None:
            # Another turn of the session that this process takes now has the same lease.
            own_lease = leased and not self._locks.is_held(key.session.key)
            self.store.abandon(connection, key, leased=own_lease)

        with suppress(MemoryUnavailableError):
            await self.store.database.write(end_run, wait=ABANDON_SECONDS)

    def _count_stored(self, stored: int, *, is_first: bool) -> None:
        self.store.counts.messages += stored
        self.store.counts.conversations += is_first and stored > 0

    def hash_settings(self, compressor: Compressor) -> bytes:
        return self.store.hasher.hash_settings(*compressor.identity)


class UnstoredTurn:
    """A turn that has no question to store."""

    answer: TurnAnswer | None = None
    in_progress: str | None = None

    def __init__(self, messages: tuple[Message, ...], held: "_SessionLock | None" = None) -> None:
        self.messages = messages
        self._held = held

    async def compact(self, max_tokens: int) -> tuple[Message, ...] | None:
        """Nothing is known that could be left out."""
        return None

    async def keep(self, answer: TurnAnswer, *, wait: float) -> None:
        """Stores nothing."""
        if self._held is not None:
            await self._held.__aexit__(None, None, None)


class _TurnPlace(msgspec.Struct, frozen=True):
    """Where a turn stands in its session: the messages up to its question, and after it what the
    client brought of the answer (`trailing`)."""

    key: TurnKey
    sent: tuple[Message, ...]
    pieces: list[Entry]
    question: Entry
    trailing: tuple[Message, ...] = ()


class _StoredTurn:
    """A turn whose question is stored; see RememberedTurn."""

    def __init__(
        self,
        memory: SqlMemory,
        place: _TurnPlace,
        begun: TurnStart,
        summary: Summary | None,
        held: "_SessionLock | None" = None,
    ) -> None:
        self._memory = memory
        self._key = place.key
        self._system = tuple(message for message in place.sent if message.role == "system")
        self._pieces = place.pieces
        self._question = place.question
        self._trailing = place.trailing
        self._summary = summary
        self._held = held
        self._left_out = 0
        """The depth of the last message that is left out, without a summary of it."""

        self._summary_tokens: int | None = None
        """How much of the summary the model is shown, if not all of it."""

        self.answer = begun.answer
        self.in_progress = begun.in_progress

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model is to see."""
        return (*self._system, *self._lead, *_join_messages(self._shown), *self._trailing)

    @property
    def _lead(self) -> tuple[Message, ...]:
        """What stands for the messages that are not shown."""
        texts = []
        if self._summary is not None:
            text = self._summary.text
            if self._summary_tokens is not None:
                text = cut_to_tokens(text, self._summary_tokens)
            texts.append(SUMMARY_PREFIX + text)
        if self._left_out:
            texts.append(LEFT_OUT)
        return tuple(Message(role="system", content=text) for text in texts)

    @property
    def _shown(self) -> list[Entry]:
        return [
            piece
            for piece in _select_uncovered(self._pieces, self._summary)
            if piece.depth > self._left_out
        ]

    async def compact(self, max_tokens: int) -> tuple[Message, ...] | None:
        """As `messages`, more of the older conversation in a summary, which is made now.

        Where none can be made, the older messages are left out for this turn.
        """
        compressor = self._memory.compressor
        if compressor is None:
            return None
        self._memory.limit = max_tokens
        fixed = estimate_request((*self._system, *self._trailing))
        bound = min(SUMMARY_TOKENS, max(0, max_tokens - fixed) // 4)
        room = min(max_tokens - fixed - bound, compressor.threshold)
        keep = _select_keep(self._shown, compressor.recent_messages, room)
        older = _select_older(self._shown, keep)
        try:
            if not self._left_out:
                summary = await self._compress(
                    compressor, self._pieces, keep=keep, max_tokens=bound, limit=max_tokens
                )
                self._summary = summary or self._summary
            elif older:
                self._left_out = older[-1].depth
        except ServiceError as error:
            self._log_failure(error)
            self._left_out = older[-1].depth if older else 0
        kept = estimate_request(_join_messages(self._shown))
        self._summary_tokens = max(0, max_tokens - fixed - kept)
        return self.messages

    async def keep(self, answer: TurnAnswer, *, wait: float) -> None:
        """Stores the answer; a summary that has become due is made after that, in the
        background."""
        store = self._memory.store
        prefix = "".join(message.text for message in self._trailing if message.role == "assistant")
        whole = _prepend_steps(answer, self._trailing) if self._trailing else answer

        def store_answer(connection: Connection) -> StoredAnswer:
            leased = self._held is not None
            return store.finish(
                connection, self._key, self._question, whole, prefix=prefix, leased=leased
            )

        try:
            if self.answer is None and self.in_progress is None:
                with suppress(ConversationErasedError):
                    stored = await store.database.write(store_answer, wait=wait)
                    store.counts.messages += stored.has_said
                    if not stored.is_newest:
                        raise SessionBusyError(
                            "Another turn of this session took the place of this one, which stood"
                            " still for too long. Send it again.",
                            retry_after=1,
                        )
        except MemoryUnavailableError:
            self._memory.tasks.run(self._mark_unconfirmed())
            raise
        finally:
            if self._held is not None:
                await self._held.__aexit__(None, None, None)
        compressor = self._memory.compressor
        if (
            answer.status != "complete"
            or compressor is None
            or self.answer is not None
            or self.in_progress is not None
        ):
            return
        answered = (
            *[message for step in whole.steps for message in step.messages],
            Message(role="assistant", content=whole.last),
        )
        sent = [
            *self._system,
            *_join_messages(_select_uncovered(self._pieces, self._summary)),
            *answered,
        ]
        if (
            self._held is not None
            or self._memory.limit is not None
            or compressor.can_be_due(sent, self._summary.text if self._summary else "")
        ):
            path = store.hasher.hash_answer(self._question.path, prefix + answer.text)
            pieces = [
                *self._pieces,
                Entry(answered, path, self._question.path, self._question.depth + 1),
            ]
            self._memory.tasks.run(self._compress_if_due(compressor, pieces, sent))

    async def _mark_unconfirmed(self) -> None:
        """Have the next equal question get this answer, in case it was stored after all."""
        store = self._memory.store
        with suppress(MemoryUnavailableError):
            await store.database.write(
                lambda connection: store.mark_unconfirmed(connection, self._key),
                wait=ABANDON_SECONDS,
            )

    async def _compress_if_due(
        self, compressor: Compressor, pieces: list[Entry], sent: list[Message]
    ) -> None:
        """Summarises the older messages if those that were sent are too many; a failure is logged,
        and tried again after the next turn."""
        key = self._key.session.key
        if key in self._memory.compressing:
            return  # the turn after that one asks again
        self._memory.compressing.add(key)
        try:
            crowded = (
                self._held is not None
                and len(_select_uncovered(pieces, self._summary))
                > self._memory.window * WINDOW_FILL_RATIO
            )
            limit = self._memory.limit
            is_long = limit is not None and 4 * estimate_request(sent) > 3 * limit
            if (
                crowded
                or is_long
                or await compressor.is_due(sent, self._summary.text if self._summary else "")
            ):
                keep = compressor.recent_messages
                if limit is not None:
                    keep = _select_keep(_select_uncovered(pieces, self._summary), keep, limit // 2)
                await self._compress(compressor, pieces, keep=keep)
        except ServiceError as error:
            self._log_failure(error)
        finally:
            self._memory.compressing.discard(key)

    def _log_failure(self, error: ServiceError) -> None:
        self._memory.store.counts.failed_summaries += 1
        logger.warning(
            "memory.compression_failed",
            extra={"agent_id": self._key.session.agent_id, "code": error.code},
        )
        logger.debug("memory.compression_failed_because", extra={"reason": error.message})

    async def _compress(
        self,
        compressor: Compressor,
        pieces: list[Entry],
        *,
        keep: int,
        max_tokens: int = SUMMARY_TOKENS,
        limit: int | None = None,
    ) -> Summary | None:
        """A stored summary of all but the last `keep` messages; None if it would cover nothing
        new. With a `limit`, the tokens that the chat's model takes, it is made in few requests."""
        older = _select_older(_select_uncovered(pieces, self._summary), keep)
        if not older:
            return None
        store, session, last = self._memory.store, self._key.session, older[-1]
        settings = self._memory.hash_settings(compressor)
        earlier = self._summary.text if self._summary else None
        messages = _join_messages(older)
        text = await compressor.summarize(
            earlier,
            messages,
            max_tokens=max_tokens,
            max_pieces=None if limit is None else MAX_PIECES,
            piece_tokens=limit,
        )
        made = Summary(last.path, last.depth, text)
        await store.database.write(
            lambda connection: store.store_summary(connection, session, made, settings),
            wait=5.0,
        )
        store.counts.summaries += 1
        store.counts.tokens_saved += max(
            0, compressor.estimate_tokens(messages) + estimate(earlier or "") - estimate(text)
        )
        return made


class SessionLocks:
    """Lets one turn of a session at a time through, in this process."""

    def __init__(self) -> None:
        self._locks: dict[bytes, tuple[asyncio.Lock, int]] = {}

    def lock(self, key: bytes, wait: float) -> "_SessionLock":
        """The lock of a session, to be entered; entering raises SessionBusyError after `wait`
        seconds."""
        return _SessionLock(self._locks, key, wait)

    def is_held(self, key: bytes) -> bool:
        """Whether a turn of the session is under way, or waits to be."""
        return key in self._locks


class _SessionLock:
    """One use of a session's lock, which may be left more than once."""

    def __init__(
        self, locks: dict[bytes, tuple[asyncio.Lock, int]], key: bytes, wait: float
    ) -> None:
        self._locks = locks
        self._key = key
        self._wait = wait
        self._has = False

    async def __aenter__(self) -> None:
        lock, users = self._locks.get(self._key, (asyncio.Lock(), 0))
        self._locks[self._key] = (lock, users + 1)
        try:
            async with asyncio.timeout(max(0.0, self._wait)):
                await lock.acquire()
        except TimeoutError:
            self._leave()
            raise SessionBusyError(
                "Another turn of this session is under way. Try again in a moment.", retry_after=2
            ) from None
        except BaseException:
            self._leave()
            raise
        self._has = True

    async def __aexit__(self, *_: object) -> None:
        if self._has:
            self._has = False
            self._locks[self._key][0].release()
            self._leave()

    def _leave(self) -> None:
        lock, users = self._locks[self._key]
        if users == 1:
            del self._locks[self._key]
        else:
            self._locks[self._key] = (lock, users - 1)


async def _build_entries(
    addresses: MessageHasher, messages: tuple[Message, ...], parent: bytes
) -> list[Entry]:
    if (
        len(messages) > MAX_INLINE_MESSAGES
        or sum(map(_count_characters, messages)) > MAX_INLINE_CHARACTERS
    ):
        return await asyncio.to_thread(addresses.build_entries, messages, parent)
    return addresses.build_entries(messages, parent)


def _count_characters(message: Message) -> int:
    """About how much there is to digest."""
    if isinstance(message.content, str):
        return len(message.content)
    return sum(
        len(part.text) if isinstance(part, TextPart) else MAX_INLINE_CHARACTERS
        for part in message.content
    )


def _restore_steps(entry: Entry, known: KnownMessage) -> Entry:
    """Return the entry with the tool calls and results that belong to it, and with what the
    provider sent with its calls, where the client left them out."""
    if not known.steps or entry.is_question:
        return entry
    if any(message.tool_calls for message in entry.messages):
        calls = [call for step in known.steps for call in step.calls]
        messages = tuple(restore_provider_data(message, calls) for message in entry.messages)
        return msgspec.structs.replace(entry, messages=messages)
    return msgspec.structs.replace(entry, messages=_build_step_messages(known.steps, known.last))


def _build_node_messages(node: Node) -> tuple[Message, ...]:
    if node.role == "user":
        return (Message(role="user", content=node.content),)
    return (
        _build_step_messages(node.steps, node.last)
        if node.steps
        else (Message(role="assistant", content=node.content),)
    )


def _build_step_messages(steps: tuple[Step, ...], last: str) -> tuple[Message, ...]:
    return (
        *(message for step in steps for message in step.messages),
        Message(role="assistant", content=last),
    )


def _prepend_steps(answer: TurnAnswer, trailing: tuple[Message, ...]) -> TurnAnswer:
    """The answer with what the client brought of the same turn: its steps, and what was said after
    them."""
    steps, said = split_steps(trailing)
    if not answer.steps:
        return msgspec.structs.replace(answer, steps=steps, last=said + answer.last)
    first, *others = answer.steps
    return msgspec.structs.replace(
        answer, steps=(*steps, msgspec.structs.replace(first, text=said + first.text), *others)
    )


def _select_uncovered(pieces: list[Entry], summary: Summary | None) -> list[Entry]:
    """Those that a summary does not cover."""
    return pieces if summary is None else [piece for piece in pieces if piece.depth > summary.depth]


def _join_messages(pieces: Iterable[Entry]) -> list[Message]:
    return [message for piece in pieces for message in piece.messages]


def _select_keep(pieces: list[Entry], keep: int, max_tokens: int) -> int:
    """How many of the last `pieces` may stay as they are so that these have about `max_tokens`:
    `keep`, or half as often as it takes."""
    while keep > 1:
        older = len(_select_older(pieces, keep))
        if older > 0 and estimate_request(_join_messages(pieces[older:])) <= max_tokens:
            break
        keep //= 2
    return keep


def _select_older(pieces: list[Entry], keep: int) -> list[Entry]:
    """All but the last `keep`, or a few more, so that what is left begins with a question."""
    cut = max(0, len(pieces) - keep)
    while cut > 0 and not pieces[cut].is_question:
        cut -= 1
    return pieces[:cut]
