"""Who calls: the key that a request brings, and the user behind it."""

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from ai_agent_service.core.context import LOCAL_TENANT

Scope = Literal["chat", "memory:read", "memory:delete", "admin"]
SCOPES: frozenset[Scope] = frozenset(get_args(Scope))
DEFAULT_SCOPES: frozenset[Scope] = SCOPES - {"admin"}
"""What a key may do whose scopes are not named."""

Client = Literal["open_webui"]
"""A client that a key is known to be used by."""

Headers = Sequence[tuple[bytes, bytes]]
"""A request's headers as ASGI gives them: names in lower case, a name as often as it was sent."""


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """How much may be asked: requests and tokens a minute, and runs at once; None is not
    limited."""

    requests: int | None = None
    tokens: int | None = None
    parallel: int | None = None

    def __bool__(self) -> bool:
        return self != UNLIMITED


UNLIMITED = Limits()


class Rights(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key may do. `agents` None means all of them; `limits` are those of the key as a whole,
    `user_limits` those of each user behind it."""

    scopes: frozenset[Scope]
    agents: frozenset[str] | None = None
    client: Client | None = None
    limits: Limits = UNLIMITED
    user_limits: Limits = UNLIMITED

    def can_use(self, agent_id: str) -> bool:
        """Whether the agent is among those that the key is for."""
        return self.agents is None or agent_id in self.agents


class Key(Rights, frozen=True, kw_only=True):
    """A key, without its secret. `tenant` is whose conversations it reaches."""

    key_id: str
    name: str
    tenant: str
    scopes: frozenset[Scope] = DEFAULT_SCOPES


class User(msgspec.Struct, frozen=True):
    """A user whose identity was verified, and what the one who verified it says of them."""

    user_id: str
    roles: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()


class Principal(msgspec.Struct, frozen=True):
    """Who calls. `user` is None where users are not verified: callers name their users themselves
    then."""

    key: Key
    user: User | None = None

    @property
    def label(self) -> str:
        """The key's id, with that of the verified user."""
        return self.key.key_id if self.user is None else f"{self.key.key_id}|{self.user.user_id}"


LOCAL = Key(key_id="none", name="no key", tenant=LOCAL_TENANT, scopes=SCOPES)
"""What stands for the key of callers who need none."""


def get_header_values(headers: Headers, name: bytes) -> list[bytes]:
    """The values of the header `name`, which is in lower case; one for each time that it was
    sent."""
    return [value for sent, value in headers if sent == name]
