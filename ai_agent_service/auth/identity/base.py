"""Who the user behind a key is, by IDENTITY_MODE."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Protocol

from ai_agent_service.auth.identity.fetch import Fetch, KeySetStatus
from ai_agent_service.auth.identity.settings import find_identity_faults
from ai_agent_service.auth.identity.trusted_proxy import TrustedProxy, parse_network
from ai_agent_service.auth.principal import Headers, User
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.errors import ConfigError
from ai_agent_service.core.tasks import Tasks

DEFAULT_ALGORITHMS = ("RS256",)


class Identity(Protocol):
    """Tells the user of a request by what it brings besides its key."""

    @property
    def verifies(self) -> bool:
        """Whether users are verified; else callers name them themselves."""

    @property
    def source(self) -> KeySetStatus | None:
        """How the keys stand that are fetched from elsewhere; None where none are."""

    async def identify_user(self, headers: Headers, peer: str | None) -> User | None:
        """The user, who is verified; None where users are not.

        `peer` is the address of who connected. Raises InvalidTokenError, whose message does not
        tell why, and AccessUnavailableError.
        """

    def is_user_token(self, token: str) -> bool:
        """Whether `token`, of an `Authorization: Bearer` header, tells the user and is no API
        key."""


class UnverifiedIdentity:
    """IDENTITY_MODE=none: whatever headers say of a user is not looked at."""

    verifies = False
    source = None

    async def identify_user(self, headers: Headers, peer: str | None) -> None:
        """None: callers name their users themselves."""

    def is_user_token(self, token: str) -> bool:
        """False: the Authorization header is the key's."""
        return False


@asynccontextmanager
async def open_identity(settings: Settings, fetch: Fetch) -> AsyncGenerator[Identity, None]:
    """The identity of the mode that is set; `fetch` gets an identity provider's keys, in tasks that
    end with this.

    Raises ConfigError for what `find_identity_faults` finds.
    """
    if faults := find_identity_faults(settings):
        raise ConfigError(faults)
    match settings.identity_mode:
        case "none":
            yield UnverifiedIdentity()
        case "open_webui_jwt":
            # the library takes a tenth of a second, and most need it not
            from ai_agent_service.auth.identity.open_webui import OpenWebUI  # noqa: PLC0415

            assert settings.open_webui_jwt_secret is not None
            yield OpenWebUI(settings.open_webui_jwt_secret.get_secret_value())
        case "trusted_proxy":
            assert settings.trusted_proxy_secret is not None
            yield TrustedProxy(
                networks=map(parse_network, settings.trusted_proxy_cidrs),
                secret=settings.trusted_proxy_secret.get_secret_value(),
                secret_header=settings.trusted_proxy_secret_header,
                user_header=settings.trusted_proxy_user_header,
                groups_header=settings.trusted_proxy_groups_header,
                roles_header=settings.trusted_proxy_roles_header,
            )
        case "oidc":
            from ai_agent_service.auth.identity.jwks import Jwks  # noqa: PLC0415 - as above

            # as above
            from ai_agent_service.auth.identity.jwt import PinnedAlgorithms  # noqa: PLC0415
            from ai_agent_service.auth.identity.oidc import Oidc  # noqa: PLC0415 - as above

            assert settings.oidc_issuer is not None
            assert settings.oidc_audience is not None
            algorithms = PinnedAlgorithms(settings.oidc_algorithms or DEFAULT_ALGORITHMS)
            async with Tasks(grace=0.5) as tasks:
                keys = Jwks(settings.oidc_issuer, settings.oidc_jwks_url, algorithms, fetch, tasks)
                keys.prefetch()
                yield Oidc(
                    issuer=settings.oidc_issuer,
                    audience=settings.oidc_audience,
                    algorithms=algorithms,
                    keys=keys,
                    header=settings.oidc_token_header,
                    user_claim=settings.oidc_user_claim,
                    groups_claim=settings.oidc_groups_claim,
                    roles_claim=settings.oidc_roles_claim,
                )
