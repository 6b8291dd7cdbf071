"""What is said of a user, made sure of: an id, and the names of groups and roles."""

import logging
import re
from collections.abc import Iterable

from ai_agent_service.core.errors import InvalidToken

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 255
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, ends of lines, and halves of surrogate pairs."""


class Refused(Exception):
    """Why a request's user is not believed: words for the log, which never have what the request said."""


def refusal(mode: str, message: str, why: Refused) -> InvalidToken:
    """The error for the caller, always the same `message`; the log is told `why`."""
    logger.debug("identity.refused", extra={"mode": mode, "reason": str(why)})
    return InvalidToken(message)


def text(value: object, what: str) -> str:
    """`value`, as it is, if it is a text of 1 to 255 characters that are not all blank and none of them control; else raises Refused."""
    if not isinstance(value, str) or not value or value.isspace():
        raise Refused(f"{what} is no text or an empty one")
    if len(value) > MAX_CHARACTERS:
        raise Refused(f"{what} is longer than {MAX_CHARACTERS} characters")
    if _UNFIT.search(value):
        raise Refused(f"{what} has control characters")
    return value


def names(values: Iterable[object], what: str) -> frozenset[str]:
    """`values`, each as `text` has it; raises Refused."""
    return frozenset(text(value, what) for value in values)
