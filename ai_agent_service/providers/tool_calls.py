"""Build tool calls from the pieces that servers stream, whatever they omit or repeat."""

import json
from collections.abc import Callable, Iterable, Set
from typing import Any

import msgspec

from ai_agent_service.core.ids import generate_id
from ai_agent_service.core.messages import ToolCall
from ai_agent_service.core.text import join_surrogates
from ai_agent_service.providers.lenient import UNREADABLE, clean, read_count, read_items, read_text
from ai_agent_service.providers.provider_data import merge_members

LEGACY_INDEX = -1
"""The index of the one call in `function_call`, which came before `tool_calls`."""

_ARGUMENTS = ("arguments", "parameters", "input")
"""Names of a call's arguments: OpenAI; Cohere and others; Anthropic."""

_MEMBERS = frozenset({"id", "type", "index", "function"})
_FUNCTION_MEMBERS = frozenset({"name", "index", *_ARGUMENTS})
_FLAT_MEMBERS = _FUNCTION_MEMBERS | {"call_id"}
_NO_ARGUMENTS = frozenset({"{}", "null"})

MAX_ENTRIES = 1_024
"""Entries of one `tool_calls` array that are read."""

MAX_NAMED_PIECES = 256
"""Pieces with a name after which another one with the same name continues its call, whatever its
arguments: to look at all of them for each piece would take too long."""

MAX_REPETITIONS = 2
"""How often the arguments of one call may be repeated at their end."""


class ToolCallPiece(msgspec.Struct):
    """One entry of a `tool_calls` array: a whole call, or the next piece of one.

    `kept` and `function_kept` are members of the entry and of its function that the wire format
    does not know, such as a signature.
    """

    name: str = ""
    arguments: str = ""
    id: str = ""
    index: int | None = None
    kept: dict[str, Any] = {}
    function_kept: dict[str, Any] = {}


def read_piece(entry: Any) -> ToolCallPiece | None:
    """Return an entry of a `tool_calls` array; None for what is not a call."""
    if not isinstance(entry, dict):
        return None
    function = entry.get("function")
    known = _MEMBERS
    if not isinstance(function, dict):
        if function:
            return None
        is_flat = "name" in entry and not entry.keys().isdisjoint(_ARGUMENTS)
        function = entry if is_flat else {}
        known = known | _FLAT_MEMBERS if is_flat else known
    name, call_id = function.get("name"), entry.get("id") or entry.get("call_id")
    has_id = not isinstance(call_id, dict | list)
    return ToolCallPiece(
        name if isinstance(name, str) else "",
        _read_arguments(next((function[key] for key in _ARGUMENTS if key in function), None)),
        read_text(call_id) if has_id else "",
        read_count(entry.get("index")),
        _select_kept(entry, known),
        {} if function is entry else _select_kept(function, _FUNCTION_MEMBERS),
    )


def _select_kept(members: dict[str, Any], known: Set[str]) -> dict[str, Any]:
    return {
        name: value
        for name, value in members.items()
        if name not in known and value and isinstance(value, str | dict | list)
    }


def _read_arguments(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or value is False:
        return ""
    return msgspec.json.encode({} if value == [] else clean(value)).decode()


class PartialToolCall(msgspec.Struct, eq=False):
    """A tool call whose pieces are still arriving."""

    id: str = ""
    name: str = ""
    index: int | None = None
    arguments: list[str] = []
    kept: list[tuple[str, Any]] = []
    function_kept: list[tuple[str, Any]] = []
    named_pieces: int = 0

    @property
    def joined_arguments(self) -> str:
        """The arguments that have arrived, as one text."""
        return join_arguments(self.arguments)

    @property
    def has_complete_arguments(self) -> bool:
        """Whether no further piece of arguments can follow."""
        if not self.arguments:
            return True
        return self.arguments[-1].rstrip()[-1:] in ("", "}") and _is_object(self.joined_arguments)

    def build(self, call_id: str) -> tuple[ToolCall, dict[str, Any]]:
        """Return the call and the members that its provider wants back."""
        kept = {
            "call": merge_members(self.kept),
            "function": merge_members(self.function_kept),
        }
        name = join_surrogates(self.name).strip()
        arguments = repair_arguments(join_surrogates(self.joined_arguments))
        return ToolCall(join_surrogates(call_id), name, arguments), kept


class ToolCallAssembler:
    """Builds the calls of one answer; `tools` are the names in the request, which distinguish the
    second piece of a name from another call."""

    def __init__(self, tools: Iterable[str], report: Callable[[str], None]) -> None:
        self.calls: list[PartialToolCall] = []
        self._by_index: dict[int, PartialToolCall] = {}
        self._by_id: dict[str, PartialToolCall] = {}
        self._unplaced: dict[str, PartialToolCall] = {}
        """The calls without an index by their ids."""
        self._tools = frozenset(tools)
        self._report = report

    def add(self, entries: Any) -> None:
        """Take the value of `tool_calls` in a delta or a message."""
        if type(entries) is list and len(entries) == 1 and self._add_arguments(entries[0]):
            return
        if not isinstance(entries, list):
            self._report("tool_calls")
        touched: set[PartialToolCall] = set()
        found = read_items(entries)
        if len(found) > MAX_ENTRIES:
            self._report(f"more than {MAX_ENTRIES} tool_calls")
        for entry in found[:MAX_ENTRIES]:
            piece = read_piece(entry)
            if piece is None:
                self._report("tool_calls[]")
                continue
            call = self._find(piece)
            if call is None or self._begins_call(piece, call, is_touched=call in touched):
                call = PartialToolCall(index=piece.index)
                self.calls.append(call)
                if piece.index is not None:
                    self._by_index[piece.index] = call
            touched.add(call)
            self._extend(call, piece)

    def add_legacy(self, function: Any) -> None:
        """Take the value of `function_call`, which some servers send beside `tool_calls`."""
        if not self.calls or LEGACY_INDEX in self._by_index:
            self._by_index.setdefault(LEGACY_INDEX, PartialToolCall(index=LEGACY_INDEX))
            self.calls = [self._by_index[LEGACY_INDEX]]
            piece = read_piece({"function": function})
            if piece is None:
                self._report("function_call")
            else:
                self._extend(self.calls[0], piece)

    def build_calls(self) -> list[tuple[ToolCall, dict[str, Any]]]:
        """Return the calls under unique ids, each with the members that its provider wants back; a
        call without a name is left out."""
        found: dict[str, tuple[ToolCall, dict[str, Any]]] = {}
        for call in self.calls:
            if not call.name:
                self._report("tool_calls[].function.name")
                continue
            call_id = call.id if call.id and call.id not in found else generate_id("call_")
            found[call_id] = call.build(call_id)
        return list(found.values())

    def _add_arguments(self, entry: Any) -> bool:
        """Add the usual piece, which has an index and arguments; return whether it is one."""
        if type(entry) is not dict or type(function := entry.get("function")) is not dict:
            return False
        arguments, index = function.get("arguments"), entry.get("index")
        call = self._by_index.get(index) if type(index) is int else None
        if (
            call is None
            or type(arguments) is not str
            or entry.get("id")
            or function.get("name")
            or not (len(entry) == 2 or entry.keys() <= _MEMBERS)
            or not (len(function) == 1 or function.keys() <= _FUNCTION_MEMBERS)
        ):
            return False
        if arguments:
            call.arguments.append(arguments)
        return True

    def _extend(self, call: PartialToolCall, piece: ToolCallPiece) -> None:
        if piece.id and not call.id:
            call.id = piece.id
            self._by_id.setdefault(call.id, call)
            if call.index is None:
                self._unplaced.setdefault(call.id, call)
        if piece.name and piece.name != call.name:
            is_cumulative = piece.name.startswith(call.name) and piece.name in self._tools
            if is_cumulative and call.name + piece.name not in self._tools:
                call.name = piece.name
            else:
                call.name += piece.name
        if piece.arguments:
            call.arguments.append(piece.arguments)
        call.kept += piece.kept.items()
        call.function_kept += piece.function_kept.items()

    def _find(self, piece: ToolCallPiece) -> PartialToolCall | None:
        """Return the call that `piece` may belong to."""
        call = None if piece.index is None else self._by_index.get(piece.index)
        if call is None and piece.id:
            call = (self._by_id if piece.index is None else self._unplaced).get(piece.id)
        if call is not None or not self.calls:
            return call
        is_continued = not piece.name and (piece.index is None or not piece.id)
        is_unmarked = piece.index is None and not piece.id
        return self.calls[-1] if is_continued or is_unmarked else None

    def _begins_call(
        self, piece: ToolCallPiece, call: PartialToolCall, *, is_touched: bool
    ) -> bool:
        """Return whether `piece` begins another call in the place of `call`, for it has another
        id, or a name where none can follow (Gemini has no ids)."""
        if not piece.name or not call.name:
            return False
        call.named_pieces += 1
        if call.named_pieces > MAX_NAMED_PIECES and piece.name == call.name:
            return bool(piece.id) and piece.id != call.id
        if is_touched:
            return not piece.id or piece.id != call.id or call.has_complete_arguments
        if piece.id and call.id:
            is_other = bool(call.arguments) and call.has_complete_arguments
            return piece.id != call.id or (is_other and piece.name != call.name)
        if not call.arguments:
            return piece.name != call.name and not self._continues_name(piece, call)
        if not call.has_complete_arguments:
            return piece.name != call.name and piece.name in self._tools
        if piece.name != call.name:
            return True
        whole = call.joined_arguments
        is_repeated = len(call.arguments) > 1 and piece.arguments == whole
        is_filled = piece.index is not None and whole in _NO_ARGUMENTS
        return not is_repeated and not (is_filled and piece.arguments not in _NO_ARGUMENTS)

    def _continues_name(self, piece: ToolCallPiece, call: PartialToolCall) -> bool:
        if call.name + piece.name in self._tools:
            return True
        if call.name in self._tools:
            return False
        is_cumulative = piece.name.startswith(call.name) and piece.name in self._tools
        return is_cumulative or piece.index is not None


def join_arguments(pieces: list[str], repetitions: int = MAX_REPETITIONS) -> str:
    """Return the arguments of one call from their pieces.

    Some servers send `{}` before the real arguments, repeat the whole at the end, or send with each
    piece all of what came before.
    """
    text = "".join(pieces)
    if len(pieces) < 2 or _is_object(text):
        return text
    empty = next((n for n, each in enumerate(pieces) if each not in _NO_ARGUMENTS), len(pieces))
    if empty:
        return join_arguments(pieces[max(1, empty - 1) :], repetitions)
    *earlier, last = pieces
    if _is_object(last) and (
        all(last.startswith(piece) for piece in earlier)
        or (repetitions and _is_object(join_arguments(earlier, repetitions - 1)))
    ):
        return last
    return text


def repair_arguments(text: str) -> str:
    """Return arguments as the text of a JSON object, also if they are encoded twice, have line
    breaks within a text, or are an empty value of another type; others as they are."""
    if _is_object(text):
        return text
    try:
        value = json.loads(text, strict=False, parse_constant=_refuse_constant)
        if isinstance(value, str) and value.strip():
            value = json.loads(value, strict=False, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return "{}"
    return msgspec.json.encode(clean(value)).decode() if isinstance(value, dict) else text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON.")


def _is_object(text: str) -> bool:
    """Return whether `text` is a whole JSON object."""
    if not text.rstrip().endswith("}"):
        return False
    try:
        return isinstance(msgspec.json.decode(clean(text)), dict)
    except UNREADABLE:
        return False
