"""Turn a provider's error response into an error of our own."""

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from ai_agent_service.core.errors import (
    ContextTooLongError,
    InvalidRequestError,
    ProviderRateLimitError,
    ProviderRefusedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    ServiceError,
)
from ai_agent_service.core.redaction import redact_secrets

MAX_ERROR_CHARACTERS = 500

CONTEXT_LENGTH_PHRASES = (
    "context length",
    "context_length",
    "context size",
    "context window",
    "maximum context",
    "prompt is too long",
)
"""Phrases in the providers' messages about a conversation that is too long."""


class HttpTarget(msgspec.Struct, frozen=True):
    """The address of a request, its headers, and for messages the provider's name and the secrets
    to redact."""

    provider: str
    url: str
    headers: Mapping[str, str] = {}
    secrets: tuple[str, ...] = ()


def format_error_message(value: object, secrets: tuple[str, ...] = ()) -> str:
    """Return the message in a provider's error of any usual form, without secrets and cut to 500
    characters."""
    while isinstance(value, dict | list):
        if isinstance(value, list):
            value = value[0] if value else ""
        else:
            value = next(
                (value[key] for key in ("error", "message", "detail", "msg") if value.get(key)), ""
            )
    text = value if isinstance(value, str) else (str(value) if value else "")
    text = redact_secrets(" ".join(text.split()), secrets)
    return text if len(text) <= MAX_ERROR_CHARACTERS else f"{text[:MAX_ERROR_CHARACTERS]}..."


def parse_stream_error(value: Any, target: HttpTarget) -> ServiceError:
    """Return the error that a provider sends within an answer that began with 200."""
    code = value.get("code") if isinstance(value, dict) else None
    match code:
        case int():
            status = code
        case str() if len(code) == 3 and code.isdecimal():
            status = int(code)
        case _:
            status = 429 if code == "rate_limit_exceeded" else 502
    message = format_error_message(value, target.secrets)
    return _build_error(status, None, message, str(code), target)


def parse_error(
    status: int, headers: Mapping[str, str], text: bytes, target: HttpTarget
) -> ServiceError:
    """Return the error that a response with an error status means."""
    value: Any
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # An HTML page of a proxy shows its internals.
        value = "" if text.lstrip().startswith(b"<") else text.decode(errors="replace")
    inner = value.get("error") if isinstance(value, dict) else None
    code = str(inner.get("code")) if isinstance(inner, dict) else ""
    message = format_error_message(value, target.secrets)
    return _build_error(status, _parse_retry_after(headers), message, code, target)


def _build_error(
    status: int, retry_after: float | None, message: str, code: str, target: HttpTarget
) -> ServiceError:
    said = (
        f"{target.provider}: {message}"
        if message
        else f"{target.provider} answered with the status {status} and no explanation."
    )
    too_long = code == "context_length_exceeded" or any(
        sign in message.lower() for sign in CONTEXT_LENGTH_PHRASES
    )
    match status:
        case 400 | 413 | 422 | 500 | 502 if too_long:
            return ContextTooLongError(said, param="messages")
        case 400 | 413 | 422:
            return InvalidRequestError(said, code="provider_rejected_request")
        case 401 | 403:
            return ProviderRefusedError(said, code="provider_authentication_failed")
        case 402:
            return ProviderRefusedError(said, code="provider_payment_required")
        case 404:
            return ProviderRefusedError(said, code="provider_model_not_found")
        case 429:
            return ProviderRateLimitError(said, retry_after=retry_after)
        case 408 | 504:
            return ProviderTimeoutError(said)
        case _:
            return ProviderUnavailableError(said, retry_after=retry_after)


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
