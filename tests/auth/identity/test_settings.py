"""Faults and warnings about the settings of IDENTITY_MODE."""

from typing import Any

import pytest

from ai_agent_service.auth.identity.fetch import find_url_problem
from ai_agent_service.auth.identity.settings import (
    ALGORITHMS,
    find_identity_faults,
    find_identity_warnings,
)
from ai_agent_service.config.settings import load_settings

PROXY: dict[str, Any] = {
    "identity_mode": "trusted_proxy",
    "trusted_proxy_cidrs": "10.0.0.0/8",
    "trusted_proxy_secret": "s" * 20,
}
OIDC: dict[str, Any] = {
    "identity_mode": "oidc",
    "oidc_issuer": "https://login.example.com/",
    "oidc_audience": "agents",
}


def fields(**settings: Any) -> list[str]:
    """The settings that are at fault."""
    faults = find_identity_faults(load_settings(**settings))
    assert not any("canary" in str(fault) for fault in faults)
    return [fault.field for fault in faults]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "identity_mode": "none",
            "oidc_issuer": "no address",
            "trusted_proxy_cidrs": "x",
            "open_webui_jwt_secret": "short",
        },
        {"identity_mode": "open_webui_jwt", "open_webui_jwt_secret": "\u00e4" * 16},
        PROXY,
        PROXY
        | {
            "trusted_proxy_cidrs": "10.1.2.3, fd00::/8|::ffff:10.0.0.0/104",
            "trusted_proxy_user_header": "X-User",
        },
        OIDC,
        OIDC
        | {
            "oidc_algorithms": ",".join(ALGORITHMS),
            "oidc_jwks_url": "https://a.example.com/?p=x",
            "oidc_token_header": "X-Token",
        },
        OIDC
        | {
            "oidc_issuer": "http://127.0.0.1:8080/realms/one",
            "oidc_jwks_url": "http://localhost/certs",
        },
    ],
    ids=str,
)
def test_what_is_right_has_no_fault(settings: dict[str, Any]) -> None:
    assert fields(**settings) == []


@pytest.mark.parametrize(
    "secret",
    [
        None,
        "",
        "canary" * 5,
        "-----BEGIN PUBLIC KEY-----\ncanary",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQC canary",
        "---- BEGIN SSH2 canary canary canary",
    ],
)
def test_the_secret_of_open_webui_is_there_and_long_and_a_secret(secret: str | None) -> None:
    assert fields(identity_mode="open_webui_jwt", open_webui_jwt_secret=secret) == [
        "OPEN_WEBUI_JWT_SECRET"
    ]


def test_every_fault_of_a_proxy_is_told_at_once() -> None:
    assert fields(identity_mode="trusted_proxy") == ["TRUSTED_PROXY_CIDRS", "TRUSTED_PROXY_SECRET"]
    wrong = {
        "trusted_proxy_cidrs": "10.0.0.1/8, 10.0.0.0/33, proxy, fd00::/8",
        "trusted_proxy_secret": "canary",
        "trusted_proxy_secret_header": "X Secret",
        "trusted_proxy_user_header": "Authorization",
        "trusted_proxy_groups_header": "X-Same",
        "trusted_proxy_roles_header": "x-same",
    }
    assert fields(identity_mode="trusted_proxy", **wrong) == [
        *["TRUSTED_PROXY_CIDRS"] * 3,
        "TRUSTED_PROXY_SECRET",
        "TRUSTED_PROXY_SECRET_HEADER",
        "TRUSTED_PROXY_USER_HEADER",
        "TRUSTED_PROXY_ROLES_HEADER",
    ]


@pytest.mark.parametrize("secret", ["canary" * 5 + "\n", " " + "canary" * 5, "canary\x00" * 5])
def test_a_proxys_secret_fits_a_header(secret: str) -> None:
    assert fields(**PROXY | {"trusted_proxy_secret": secret}) == ["TRUSTED_PROXY_SECRET"]


def test_every_fault_of_a_provider_is_told_at_once() -> None:
    assert fields(identity_mode="oidc") == ["OIDC_ISSUER", "OIDC_AUDIENCE"]
    wrong = {
        "oidc_algorithms": "RS256,HS256,none,ES256K",
        "oidc_jwks_url": "http://x",
        "oidc_token_header": "X-API-Key",
        "oidc_audience": "",
    }
    assert fields(identity_mode="oidc", oidc_issuer="http://login.example.com", **wrong) == [
        "OIDC_ISSUER",
        "OIDC_JWKS_URL",
        "OIDC_AUDIENCE",
        *["OIDC_ALGORITHMS"] * 3,
        "OIDC_TOKEN_HEADER",
    ]
    assert fields(**OIDC | {"oidc_token_header": "X:Y", "oidc_issuer": "https://a/?x=1"}) == [
        "OIDC_ISSUER",
        "OIDC_TOKEN_HEADER",
    ]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "https://",
        "https:///x",
        "http://login.example.com",
        "http://127.0.0.1.example.com",
        "http://localhost.example.com",
        "http://10.0.0.1/",
        "http://169.254.169.254/",
        "http://[::2]/",
        "https://user:canary@login.example.com",
        "https://login.example.com/#x",
        "https://[",
        "https://a:99999/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "https://a b/",
        "https://a\n/",
        "https://\u00e4.example.com",
        5,
        None,
    ],
)
def test_only_https_or_this_machine_is_asked(url: object) -> None:
    assert find_url_problem(url)
    assert "canary" not in str(find_url_problem(url))


@pytest.mark.parametrize(
    "url",
    [
        "https://a",
        "https://a:1/x?y=z",
        "https://10.0.0.1/",
        "http://127.1.2.3:80/",
        "http://[::1]:8080/x",
        "http://localhost",
    ],
)
def test_https_and_this_machine_may_be_asked(url: str) -> None:
    assert find_url_problem(url) is None


def test_what_is_set_and_not_used_is_told() -> None:
    assert find_identity_warnings(load_settings()) == []
    assert find_identity_warnings(load_settings(**PROXY)) == []
    assert find_identity_warnings(
        load_settings(
            **OIDC
            | {"identity_mode": "none", "open_webui_jwt_secret": "canary", "oidc_user_claim": "sub"}
        )
    ) == [
        "OIDC_AUDIENCE is set and not used, as IDENTITY_MODE is none",
        "OIDC_ISSUER is set and not used, as IDENTITY_MODE is none",
        "OPEN_WEBUI_JWT_SECRET is set and not used, as IDENTITY_MODE is none",
    ]


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_a_proxy_that_may_be_anywhere_is_told(network: str) -> None:
    assert (
        len(find_identity_warnings(load_settings(**PROXY | {"trusted_proxy_cidrs": network}))) == 1
    )
