"""What is said of a user, made sure of: an id, and the names of groups and roles."""

import logging
import re
from collections.abc import Iterable

from ai_agent_service.core.errors import InvalidTokenError

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 255
_UNSAFE_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, ends of lines, and halves of surrogate pairs."""


class IdentityError(Exception):
    """Why a request's user is not believed: words for the log, which never have what the request
    said."""


def build_invalid_token(mode: str, message: str, why: IdentityError) -> InvalidTokenError:
    """The error for the caller, always the same `message`; the log is told `why`."""
    logger.debug("identity.refused", extra={"mode": mode, "reason": str(why)})
    return InvalidTokenError(message)


def validate_text(value: object, what: str) -> str:
    """`value`, as it is, if it is a text of 1 to 255 characters that are not all blank and none of
    them control; else raises IdentityError."""
    if not isinstance(value, str) or not value or value.isspace():
        raise IdentityError(f"{what} is no text or an empty one")
    if len(value) > MAX_CHARACTERS:
        raise IdentityError(f"{what} is longer than {MAX_CHARACTERS} characters")
    if _UNSAFE_CHARACTERS.search(value):
        raise IdentityError(f"{what} has control characters")
    return value


def validate_names(values: Iterable[object], what: str) -> frozenset[str]:
    """`values`, each as `text` has it; raises IdentityError."""
    return frozenset(validate_text(value, what) for value in values)
