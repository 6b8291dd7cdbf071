"""Secrets in text: what is known and what looks like one."""

import pytest

from ai_agent_service.core.redaction import find_secrets, redact_secrets


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefgh12345678",
        "Bearer abc.def",
        "bearer xyz",
        "ghp_abcdefgh12345678",
        "github_pat_abcdefgh12345678",
        "xoxb-abcdefgh-12345678",
        "glpat-abcdefgh12345678",
        "sk-or-v1-0123456789abcdef",
        "sk-abc***************xyz",
    ],
)
def test_what_looks_like_a_key_is_taken_out(secret: str) -> None:
    assert redact_secrets(f"the key '{secret}' is wrong") == "the key '[redacted]' is wrong"


def test_known_secrets_are_taken_out_wherever_they_stand() -> None:
    assert (
        redact_secrets("xhunter2y and task-oriented text", ("hunter2", ""))
        == "x[redacted]y and task-oriented text"
    )


def test_secrets_are_known_by_the_names_of_their_variables() -> None:
    environment = {
        "OPENAI_API_KEY": "canary-one",
        "API_KEYS": "canary-two-and-more, canary-three",
        "GITHUB_TOKEN": "canary-four",
        "POSTGRES_PASSWORD": "canary-five",
        "DATABASE_URL": "postgresql://user:canary%2Fsix@host/database?sslpassword=x",
        "REDIS_URI": "redis://:canary-7@ss@host/1",
        "FEED_URL": "https://host/feed?api_key=canary-eight&page=2",
        "HTTP_PROXY": "http://me:canary-nine@proxy:3128",
        "SERVICE_APIKEY": "canary-ten",
        "PGPASSWORD": "canary-eleven",
        "OLD_KEY_2": "canary-twelve",
        "OTHER_PASSWORD": "postgres",
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=canary-13,authorization=Basic%20canary-14==",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://user:canary-15@collector:4318?token=canary-16",
        "SORT_KEY": "agent_id",
        "OPENAI_BASE_URL": "http://127.0.0.1:8000/v1",
        "SHORT_SECRET": "abc",
        "DB_PWD": "canary-17",
        "PWD": "/srv/agents",
        "OLDPWD": "/srv/Agents",
        "PATH": "/usr/bin:/bin",
        "MONKEY": "business-as-usual",
        "TOKENIZER": "o200k_base",
    }
    found = find_secrets(environment)
    assert set(found) == {
        "canary-one",
        "canary-two-and-more, canary-three",
        "canary-two-and-more",
        "canary-three",
        "canary-four",
        "canary-five",
        "canary%2Fsix",
        "canary/six",
        "canary-7@ss",
        "canary-eight",
        "canary-nine",
        "canary-ten",
        "canary-eleven",
        "canary-twelve",
        "api-key=canary-13,authorization=Basic%20canary-14==",
        "canary-13",
        "Basic%20canary-14==",
        "Basic canary-14==",
        "canary-14==",
        "canary-15",
        "canary-16",
        "canary-17",
    }
    assert list(found) == sorted(found, key=len, reverse=True)
