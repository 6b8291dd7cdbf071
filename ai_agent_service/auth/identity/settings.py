"""What is wrong, and what is odd, in the settings of IDENTITY_MODE."""

import re
from collections.abc import Iterable, Iterator

from pydantic import SecretStr

from ai_agent_service.auth.identity.fetch import find_url_problem
from ai_agent_service.auth.identity.trusted_proxy import parse_network
from ai_agent_service.config.settings import Settings
from ai_agent_service.core.errors import Fault

MIN_JWT_SECRET_BYTES = 32
MIN_PROXY_SECRET_LENGTH = 20
ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""What tokens may be signed by: nothing that whoever verifies could sign with as well."""

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PUBLIC_KEY = re.compile(r"---- ?BEGIN |^\s*(?:ssh-|ecdsa-)")
_KEY_HEADERS = ("authorization", "x-api-key")
_MODES = {"open_webui_": "open_webui_jwt", "trusted_proxy_": "trusted_proxy", "oidc_": "oidc"}

_Problem = tuple[str, str, str]
"""A variable, what is wrong with it, and what to do."""


def find_identity_faults(settings: Settings) -> list[Fault]:
    """Everything that is wrong for the mode that is set; no fault has a secret in it."""
    return [Fault.in_environment(*problem) for problem in _find_problems(settings)]


def find_identity_warnings(settings: Settings) -> list[str]:
    """What is set and not used, or used and likely not meant."""
    mode = settings.identity_mode
    unused = sorted(
        name.upper()
        for name, value in settings
        for prefix, needed in _MODES.items()
        if name.startswith(prefix)
        and needed != mode
        and value != Settings.model_fields[name].default
    )
    found = [f"{name} is set and not used, as IDENTITY_MODE is {mode}" for name in unused]
    if mode == "trusted_proxy" and any(
        written.endswith("/0") for written in settings.trusted_proxy_cidrs
    ):
        found.append(
            "TRUSTED_PROXY_CIDRS is every network: whoever knows TRUSTED_PROXY_SECRET can be any"
            " user"
        )
    return found


def _find_problems(settings: Settings) -> Iterable[_Problem]:
    match settings.identity_mode:
        case "none":
            return ()
        case "open_webui_jwt":
            return _check_open_webui(settings)
        case "trusted_proxy":
            return _check_trusted_proxy(settings)
        case "oidc":
            return _check_oidc(settings)


def _check_open_webui(settings: Settings) -> Iterator[_Problem]:
    field, secret = "OPEN_WEBUI_JWT_SECRET", _reveal_secret(settings.open_webui_jwt_secret)
    remedy = (
        "Make one with: openssl rand -hex 32, and give it to Open WebUI as"
        " FORWARD_USER_INFO_HEADER_JWT_SECRET"
    )
    if not secret:
        yield field, "it is needed for IDENTITY_MODE=open_webui_jwt", remedy
    elif len(secret.encode()) < MIN_JWT_SECRET_BYTES:
        yield field, f"it is shorter than {MIN_JWT_SECRET_BYTES} bytes", remedy
    elif _PUBLIC_KEY.search(secret):
        yield (
            field,
            "this is a key or a certificate, which others may know, and no secret",
            remedy,
        )


def _check_trusted_proxy(settings: Settings) -> Iterator[_Problem]:
    if not settings.trusted_proxy_cidrs:
        yield (
            "TRUSTED_PROXY_CIDRS",
            "it is needed for IDENTITY_MODE=trusted_proxy",
            "Name the proxy's network, such as 10.0.0.0/8",
        )
    for written in settings.trusted_proxy_cidrs:
        try:
            parse_network(written)
        except ValueError:
            remedy = (
                "Write an address, or a network such as 10.0.0.0/8, whose bits past the prefix"
                " are 0"
            )
            yield "TRUSTED_PROXY_CIDRS", f"{written!r} is no network", remedy
    field, secret = "TRUSTED_PROXY_SECRET", _reveal_secret(settings.trusted_proxy_secret)
    remedy = "Make one with: openssl rand -hex 32, and have the proxy send it"
    if not secret:
        yield field, "it is needed for IDENTITY_MODE=trusted_proxy", remedy
    elif len(secret) < MIN_PROXY_SECRET_LENGTH:
        yield field, f"it is shorter than {MIN_PROXY_SECRET_LENGTH} characters", remedy
    elif not secret.isprintable() or secret != secret.strip():
        yield (
            field,
            "a header cannot carry it, as it has control characters or spaces around it",
            remedy,
        )
    headers = {
        "TRUSTED_PROXY_SECRET_HEADER": settings.trusted_proxy_secret_header,
        "TRUSTED_PROXY_USER_HEADER": settings.trusted_proxy_user_header,
        "TRUSTED_PROXY_GROUPS_HEADER": settings.trusted_proxy_groups_header,
        "TRUSTED_PROXY_ROLES_HEADER": settings.trusted_proxy_roles_header,
    }
    taken: dict[str, str] = {}
    for field, name in headers.items():
        if not _HEADER.fullmatch(name):
            yield (
                field,
                f"{name!r} is no name of a header",
                "Write a name such as X-Forwarded-User",
            )
        elif name.lower() in _KEY_HEADERS:
            yield field, f"{name} is where API keys are", "Name another header"
        elif (other := taken.setdefault(name.lower(), field)) != field:
            yield field, f"{name} is {other} as well", "Name another header"


def _check_oidc(settings: Settings) -> Iterator[_Problem]:
    example = "https://login.example.com/realms/one"
    if not settings.oidc_issuer:
        yield (
            "OIDC_ISSUER",
            "it is needed for IDENTITY_MODE=oidc",
            f"Write it as tokens have it in iss, such as {example}",
        )
    elif problem := find_url_problem(settings.oidc_issuer) or (
        "the address has a query" if "?" in settings.oidc_issuer else None
    ):
        yield "OIDC_ISSUER", problem, f"Write an https address such as {example}"
    if settings.oidc_jwks_url is not None and (problem := find_url_problem(settings.oidc_jwks_url)):
        yield (
            "OIDC_JWKS_URL",
            problem,
            f"Write an https address such as {example}/certs, or unset it",
        )
    if not settings.oidc_audience:
        yield (
            "OIDC_AUDIENCE",
            "it is needed for IDENTITY_MODE=oidc",
            "Write what tokens for this service have in aud",
        )
    for name in settings.oidc_algorithms:
        if name not in ALGORITHMS:
            yield (
                "OIDC_ALGORITHMS",
                f"{name!r} is none that tokens may be signed by",
                f"Use {', '.join(ALGORITHMS)}",
            )
    name = settings.oidc_token_header
    if not _HEADER.fullmatch(name):
        yield (
            "OIDC_TOKEN_HEADER",
            f"{name!r} is no name of a header",
            "Write a name such as X-User-Token, or unset it",
        )
    elif name.lower() == "x-api-key":
        yield (
            "OIDC_TOKEN_HEADER",
            f"{name} is where API keys are",
            "Name another header, or unset it",
        )


def _reveal_secret(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret is not None else ""
