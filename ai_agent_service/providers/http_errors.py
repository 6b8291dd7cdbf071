"""Turn a provider's error response into an error of our own."""

import logging
import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import msgspec

from ai_agent_service.core.errors import (
    ContextTooLongError,
    InvalidRequestError,
    ProviderProtocolError,
    ProviderRateLimitError,
    ProviderRefusedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    ServiceError,
    UpstreamAnswer,
)
from ai_agent_service.core.redaction import redact_secrets
from ai_agent_service.providers.context_length import find_overflow
from ai_agent_service.providers.error_report import (
    ErrorReport,
    is_error,
    is_markup,
    normalize_name,
    read_error,
)
from ai_agent_service.providers.sse import EventReader

logger = logging.getLogger(__name__)

MAX_ERROR_CHARACTERS = 500

ERROR_NAMES: Mapping[str, int] = {
    "authenticationerror": 401,
    "unauthorized": 401,
    "unauthenticated": 401,
    "invalidapikey": 401,
    "apikeyinvalid": 401,
    "incorrectapikeyerror": 401,
    "invalidauthenticationerror": 401,
    "unrecognizedclientexception": 401,
    "insufficientquota": 402,
    "insufficientbalance": 402,
    "insufficientcredits": 402,
    "billingerror": 402,
    "billinghardlimitreached": 402,
    "billingnotactive": 402,
    "exceededcurrentquotaerror": 402,
    "paymentrequired": 402,
    "arrearage": 402,
    "permissionerror": 403,
    "permissiondenied": 403,
    "permissiondeniederror": 403,
    "accessdeniedexception": 403,
    "modelnotfound": 404,
    "modelnotfounderror": 404,
    "notfound": 404,
    "notfounderror": 404,
    "resourcenotfounderror": 404,
    "resourcenotfoundexception": 404,
    "deploymentnotfound": 404,
    "unknownmodel": 404,
    "ratelimiterror": 429,
    "ratelimitexceeded": 429,
    "ratelimitreachederror": 429,
    "resourceexhausted": 429,
    "throttling": 429,
    "throttlingexception": 429,
    "toomanyrequests": 429,
    "toomanyrequestsexception": 429,
    "invalidrequesterror": 400,
    "invalidargument": 400,
    "validationexception": 400,
    "badrequesterror": 400,
    "badrequest": 400,
    "requesttoolarge": 413,
    "timeouterror": 504,
    "deadlineexceeded": 504,
    "modeltimeoutexception": 504,
    "internalerror": 500,
    "internalservererror": 500,
    "apierror": 500,
    "servererror": 500,
    "overloadederror": 503,
    "engineoverloadederror": 503,
    "serviceunavailable": 503,
    "serviceunavailableexception": 503,
    "unavailable": 503,
}
"""The HTTP status that the name of an error means, by `normalize_name` of its code, type or
status."""

ERROR_PHRASES = (
    (
        re.compile(
            r"(?:incorrect|invalid|wrong|expired|missing) api[ _-]?key"
            r"|api[ _-]?key (?:is )?(?:not valid|invalid|expired)"
            r"|no connected db",  # LiteLLM with a master key only, about any other key
            re.IGNORECASE,
        ),
        401,
    ),
    (
        re.compile(
            r"insufficient (?:balance|credits?|quota|funds)|credit balance is too low"
            r"|no credits? left|out of credits",
            re.IGNORECASE,
        ),
        402,
    ),
    (
        re.compile(
            r"invalid model(?: name| id|:)|not a valid model|unknown model|no such model"
            r"|\bmodel\b.{0,100}?\b(?:not found|not exist)",
            re.IGNORECASE,
        ),
        404,
    ),
)
"""Phrases of servers that answer with a general status and no code, such as LiteLLM's "Invalid
model name" and DeepSeek's "Model Not Exist"."""

EXACT_STATUSES = frozenset({401, 402, 404, 429})
"""Statuses that the name of an error or a phrase may state in place of a general one."""

GENERAL_STATUSES = frozenset({400, 413, 422, 500, 502, 503})
_NOT_ABOUT_LENGTH = frozenset({401, 402, 403, 404, 408, 429})
_WRONG_PATH = re.compile(
    r"\W*+(?:error\W*+)?(?:404\W*+)?(?:(?:page|resource|endpoint|route|path|url)\W*+)?"
    r"(?:not found)?\W*+"
    r"|cannot post .*|(?:invalid|unknown) (?:url|path|route).*|no (?:such )?route.*",
    re.IGNORECASE | re.DOTALL,
)


class HttpTarget(msgspec.Struct, frozen=True):
    """The address of a request, its headers, and for messages the provider's name, the secrets to
    redact, the model, and what to do if the address is wrong."""

    provider: str
    url: str
    headers: Mapping[str, str] = {}
    secrets: tuple[str, ...] = ()
    model: str = ""
    address_hint: str = ""


def find_stream_error(value: object, target: HttpTarget) -> ServiceError | None:
    """Return the error that `value` means, decoded JSON that came in place of an answer or of a
    part of it; None if it is not an error."""
    return parse_stream_error(value, target) if is_error(value) else None


def parse_stream_error(value: object, target: HttpTarget) -> ServiceError:
    """Return the error that a provider sends within an answer that began with 200."""
    return _build_error(None, None, read_error(value), target)


def read_other_event(value: object, target: HttpTarget) -> ServiceError | None:
    """Return the error that explains why an answer broke off, if it does, in the words of `value`,
    an event without a part of an answer; raises the error that `value` is."""
    error = parse_stream_error(value, target)
    if is_error(value):
        raise error
    return error if error.upstream is not None and error.upstream.message else None


def find_body_error(body: bytes, target: HttpTarget) -> ServiceError | None:
    """Return the error that a whole body with the status 200 means: an error in JSON, a page, or
    nothing at all."""
    text = body.decode(errors="replace").removeprefix("\ufeff").strip()
    if not text:
        return ProviderProtocolError(f"{target.provider} answered 200 with an empty body.")
    if is_markup(text):
        said = _describe_body(200, read_error(text), target)
        return ProviderProtocolError(f"{said} {target.address_hint}".strip())
    try:
        return find_stream_error(msgspec.json.decode(text), target)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def parse_error(
    status: int, headers: Mapping[str, str], text: bytes | None, target: HttpTarget
) -> ServiceError:
    """Return the error that a response with an error status means; `text` is its body, None if
    that could not be read."""
    retry_after = _parse_retry_after(headers)
    if text is not None and not text.strip():
        said = f"{target.provider} answered with the status {status} and an empty body."
        return _build_error(status, retry_after, ErrorReport(), target, said)
    return _build_error(status, retry_after, read_error(_decode_body(text or b"")), target)


def _decode_body(text: bytes) -> object:
    """Return the JSON of a body, also of one that is an event stream, or else its text."""
    if text.startswith((b"data:", b"event:")):
        reader = EventReader()
        text = next(iter([*reader.feed(text), *reader.close()]), text)
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return text.decode(errors="replace")


def _build_error(
    status: int | None,
    retry_after: float | None,
    report: ErrorReport,
    target: HttpTarget,
    said: str = "",
) -> ServiceError:
    error = _choose_error(status, retry_after, report, target, said)
    code = next(iter(report.codes), "")
    message = _clean(report.message, target)
    error.upstream = UpstreamAnswer(status or _find_status(None, report), code, message)
    return error


def _choose_error(
    status: int | None,
    retry_after: float | None,
    report: ErrorReport,
    target: HttpTarget,
    said: str,
) -> ServiceError:
    provider = target.provider
    exact = _find_status(status, report)
    words = _clean(report.message, target)
    if report.is_markup or not words:
        said = words = said or _describe_body(status or exact, report, target)
    else:
        said = f"{provider}: {words}"
    if exact not in _NOT_ABOUT_LENGTH and (overflow := find_overflow(report)):
        return ContextTooLongError(said, param="messages", window=overflow.window)
    match exact:
        case 400 | 413 | 422:
            return InvalidRequestError(said, code="provider_rejected_request")
        case 401:
            # The words are for the operator: a user would take the key for theirs.
            logger.warning("provider.key_rejected", extra={"provider": provider, "said": words})
            return ProviderRefusedError(
                f"The provider {provider} rejected this service's API key. Ask the operator to"
                " check it.",
                code="provider_authentication_failed",
                detail=said,
            )
        case 403:
            refused = f"The provider {provider} refused access to this service: {words}"
            return ProviderRefusedError(refused, code="provider_authentication_failed")
        case 402:
            refused = f"The provider {provider} wants payment from this service: {words}"
            return ProviderRefusedError(refused, code="provider_payment_required")
        case 404:
            missing = _describe_missing(said, words, report, target)
            return ProviderRefusedError(missing, code="provider_model_not_found")
        case 429:
            return ProviderRateLimitError(said, retry_after=retry_after)
        case 408 | 504:
            return ProviderTimeoutError(said)
        case _:
            return ProviderUnavailableError(said, retry_after=retry_after)


def _find_status(status: int | None, report: ErrorReport) -> int:
    """Return the status of the response, or the more exact one that the error states."""
    names = (ERROR_NAMES.get(normalize_name(code)) for code in report.codes)
    stated = [found for found in names if found]
    stated += [found for phrase, found in ERROR_PHRASES if phrase.search(report.message)]
    exact = next((found for found in stated if found in EXACT_STATUSES), None)
    status = status or report.status
    if status is None:
        return exact or next(iter(stated), 502)
    if status == 429:
        return 402 if exact == 402 else 429
    return exact if exact and status in GENERAL_STATUSES else status


def _describe_body(status: int, report: ErrorReport, target: HttpTarget) -> str:
    """Return a sentence about an answer without a message of an API."""
    said = f"{target.provider} answered with the status {status} and"
    if not report.is_markup:
        return f"{said} no explanation."
    title = _clean(report.message, target)
    page = f'an HTML page ("{title}")' if title else "an HTML page"
    return f"{said} {page} in place of an API's answer."


def _describe_missing(said: str, words: str, report: ErrorReport, target: HttpTarget) -> str:
    """Return the message of a 404: an unknown model, or an address that the server does not
    have."""
    if report.is_markup or _WRONG_PATH.fullmatch(report.message):
        return f"{said} {target.address_hint}".strip()
    if target.model and ("model" in words.lower() or target.model in words):
        return f"{target.provider} does not know the model {target.model!r}: {words}"
    return said


def _clean(message: str, target: HttpTarget) -> str:
    """Return `message` in one line, without secrets and cut to 500 characters."""
    text = redact_secrets(" ".join(message.split()), target.secrets)
    return text if len(text) <= MAX_ERROR_CHARACTERS else f"{text[:MAX_ERROR_CHARACTERS]}..."


def _parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds in `retry-after-ms` or `Retry-After` (RFC 9110: seconds or a date); None
    without a valid one."""
    try:
        value = headers.get("Retry-After", "")
        if milliseconds := headers.get("retry-after-ms"):
            seconds = float(milliseconds) / 1000
        elif value.replace(".", "", 1).isdigit():
            seconds = float(value)
        else:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
