"""The rule of limits; what it admits is tested with what counts by it."""

import pytest

from ai_agent_service.auth.principal import Key, Limits, Principal
from ai_agent_service.core.errors import RateLimitError
from ai_agent_service.limits.rate_limit import (
    MAX_USER_ID_LENGTH,
    AdmissionRequest,
    Level,
    Subject,
    build_headers,
    decide,
    format_duration,
    list_subjects,
    settle_level,
)


def test_a_cost_fits_if_it_is_earned_again_within_a_minute() -> None:
    subject = Subject("key:k", "key", Limits(requests=6, tokens=60))
    ask = AdmissionRequest((subject,), "run_1", 30, 100)
    (after,) = decide(ask, [Level(1030, 1010, 0)], 1000)
    assert after == Level(1040, 1040, 1)
    assert build_headers((subject,), [after], 1000)["x-ratelimit-remaining-requests"] == "2"
    with pytest.raises(RateLimitError) as refusal:
        decide(ask, [Level(1055, 1045, 0)], 1000)
    assert refusal.value.retry_after == 15
    assert refusal.value.headers["x-ratelimit-remaining-tokens"] == "15"


def test_what_a_run_used_takes_the_place_of_what_was_reserved() -> None:
    subject = Subject("key:k", "key", Limits(tokens=60))
    assert (
        settle_level(Level(0, 1050, 1), subject, reserved=30, used=10, now=1000).tokens_until
        == 1030
    )
    assert (
        settle_level(Level(0, 1050, 1), subject, reserved=30, used=130, now=1000).tokens_until
        == 1150
    )
    assert (
        settle_level(Level(0, 900, 1), subject, reserved=30, used=40, now=1000).tokens_until == 1010
    )


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (-1, "0s"),
        (0, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (1.2, "1.2s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (86.4, "1m26.4s"),
        (3600, "1h0m0s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written


def test_a_long_name_of_a_user_takes_little_room() -> None:
    principal = Principal(Key(key_id="k", name="a key", tenant="t", user_limits=Limits(requests=1)))
    names = {
        list_subjects(principal, user)[0].name
        for user in ("u" * MAX_USER_ID_LENGTH, "u" * 100_000, "u" * 99_999 + "\ud800")
    }
    assert len(names) == 3
    assert max(map(len, names)) < MAX_USER_ID_LENGTH + 20
