"""Read what an error says from the JSON of any provider, by its structure."""

import html
import re
from collections.abc import Iterable

import msgspec

MAX_DEPTH = 10
MAX_ITEMS = 20
MAX_TITLE_CHARACTERS = 100
MAX_MESSAGE_CHARACTERS = 4_000
MAX_PAGE_CHARACTERS = 64 * 1024
"""How much of a page is searched for its title."""

_NESTED = (
    *("error", "errors", "err", "fault", "detail", "message", "msg", "response", "baseresp"),
    *("body", "choices", "result", "data"),
)
"""Members whose object or array holds the error, the outermost first."""

_MESSAGES = (
    "message",
    "msg",
    "detail",
    "errordescription",
    "errormessage",
    "errormsg",
    "faultstring",
    "statusmsg",
    "description",
    "error",
    "errors",
    "title",
    "reason",
)
"""Members whose text is the message, the most specific first."""

_CODES = (
    "code",
    "errorcode",
    "type",
    "errortype",
    "status",
    "statuscode",
    "httpstatus",
    "httpstatuscode",
    "reason",
)
_CODE_ONLY = ("details", "innererror", "metadata")
_WINDOWS = ("nctx", "maxcontextlength")
_STATUS = re.compile(r"([45][0-9][0-9])(?:\s|$)")
_NO_ERROR = re.compile(
    r"0|2\d\d|ok|success\w*|ping|heartbeat|keepalive|status|info|progress|processing|pending"
    r"|queued|waiting|running|started|loading|inprogress"
)
"""Codes, types and states in messages that are not about an error."""
_MARKUP = re.compile(r"\s*<(?:!doctype|\?xml|!--|[a-z][\w:-]*[\s>/])", re.IGNORECASE)
_TITLE = re.compile(
    r"<(title|message)\b[^<>]{0,500}>(.{0,1000}?)</\1\s{0,100}>", re.IGNORECASE | re.DOTALL
)
_ADDRESS = re.compile(r"\d{1,3}(\.\d{1,3}){3}|(:[0-9a-f]*+){3}", re.IGNORECASE)


class ErrorReport(msgspec.Struct, frozen=True):
    """What an error says: its message, its codes and types, the HTTP status it states, and the
    context window of the model in tokens."""

    message: str = ""
    codes: tuple[str, ...] = ()
    status: int | None = None
    window: int | None = None
    is_markup: bool = False
    """Whether it is an HTML or XML page; the message is its title then."""


class _Findings(msgspec.Struct):
    codes: list[str] = []
    status: int | None = None
    window: int | None = None


def read_error(value: object) -> ErrorReport:
    """Return what `value`, decoded JSON of any shape or a text, says as an error.

    The message is a text of `value` itself, the innermost one that an error object nests. Texts
    that contain JSON are read as that JSON, such as OpenRouter's `error.metadata.raw`.
    """
    if isinstance(value, str) and is_markup(value):
        return ErrorReport(read_title(value), is_markup=True)
    found = _Findings()
    message = _visit(value, found, 0)
    message = message[:MAX_MESSAGE_CHARACTERS]
    return ErrorReport(message, tuple(found.codes), found.status, found.window)


def is_error(value: object) -> bool:
    """Return whether decoded JSON is an error in place of an answer or of a part of it."""
    match value:
        case [dict(first), *_]:
            return is_error(first)
        case dict():
            fields = {normalize_name(str(name)): part for name, part in value.items()}
        case _:
            return False
    if any(fields.get(name) for name in ("error", "err", "fault")):
        return True
    if any(_is_nested_error(fields.get(name)) for name in ("response", "result", "data")):
        return True
    choices = fields.get("choices")
    if isinstance(choices, list) and any(map(_is_nested_error, choices)):
        return True
    base = fields.get("baseresp")
    if isinstance(base, dict) and base.get("status_code"):
        return True
    if "choices" in fields or "delta" in fields:
        return False
    named = [fields.get(name) for name in ("type", "object")]
    if any(isinstance(name, str) and normalize_name(name).endswith("error") for name in named):
        return True
    message = fields.get("message") or fields.get("msg")
    codes = [fields.get(name) for name in (*_CODES, "requestid") if name in fields]
    is_message = isinstance(message, str) and bool(codes) and "done" not in fields
    is_note = any(_is_harmless(code) for code in codes)
    return bool(fields.get("errors") or fields.get("detail") or (is_message and not is_note))


def is_markup(text: str) -> bool:
    """Return whether `text` is an HTML or XML page."""
    return bool(_MARKUP.match(text))


def read_title(page: str) -> str:
    """Return the title of an HTML page, or the message of an XML one; empty if it contains an IP
    address."""
    match = _TITLE.search(page, 0, MAX_PAGE_CHARACTERS)
    title = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", match[2])).split()) if match else ""
    return "" if _ADDRESS.search(title) else title[:MAX_TITLE_CHARACTERS]


def normalize_name(name: str) -> str:
    """Return the name of a member or of an error in lower case with letters and digits only; of
    AWS's `namespace#Name:uri` the name."""
    name = name.rpartition("#")[2].partition(":")[0]
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _is_harmless(code: object) -> bool:
    if isinstance(code, bool) or not isinstance(code, int | str):
        return False
    return bool(_NO_ERROR.fullmatch(normalize_name(str(code))))


def _is_nested_error(value: object) -> bool:
    return isinstance(value, dict) and bool(value.get("error"))


def _visit(value: object, found: _Findings, depth: int) -> str:
    """Return the message in `value`, and add its codes to `found`."""
    if depth > MAX_DEPTH:
        return ""
    match value:
        case str():
            return _visit_text(value, found, depth)
        case list():
            return _first(_visit(item, found, depth + 1) for item in value[:MAX_ITEMS])
        case dict():
            return _visit_object(value, found, depth)
        case _:
            return ""


def _visit_text(text: str, found: _Findings, depth: int) -> str:
    text = text.strip()
    if text[:1] in ("{", "["):
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return text
        return _visit(value, found, depth + 1) or (text if value else "")
    return read_title(text) if is_markup(text) else text


def _visit_object(value: dict[object, object], found: _Findings, depth: int) -> str:
    fields = {normalize_name(str(name)): part for name, part in value.items()}
    for name in _CODES:
        _add_code(fields.get(name), found)
    for name in _WINDOWS:
        if isinstance(window := fields.get(name), int) and window > 1:
            found.window = found.window or window
    parts = [(name, fields.get(name)) for name in _NESTED]
    nested = _first(
        _visit(part, found, depth + 1) for _, part in parts if isinstance(part, dict | list)
    )
    for name in _CODE_ONLY:
        _visit(fields.get(name), found, depth + 1)
    metadata = fields.get("metadata")
    raw = _visit(metadata.get("raw"), found, depth + 1) if isinstance(metadata, dict) else ""
    texts = (fields.get(name) for name in _MESSAGES)
    own = _first(_visit(text, found, depth + 1) for text in texts if isinstance(text, str))
    place = fields.get("loc")
    if (
        own and place and isinstance(place, list)
    ):  # FastAPI's {"loc": ["body", "messages"], "msg": ...}
        own = f"{'.'.join(str(part) for part in place[:MAX_ITEMS])}: {own}"
    return raw or nested or own


def _add_code(value: object, found: _Findings) -> None:
    if isinstance(value, int) and 400 <= value <= 599:
        found.status = found.status or value
    elif isinstance(value, str):
        if match := _STATUS.match(value):
            found.status = found.status or int(match[1])
        elif value and len(found.codes) < MAX_ITEMS:
            found.codes.append(value[:MAX_TITLE_CHARACTERS])


def _first(texts: Iterable[str]) -> str:
    return next(filter(None, texts), "")
