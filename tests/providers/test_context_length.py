"""What providers say about a conversation that does not fit the model."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.providers.context_length import WORDINGS, find_overflow
from ai_agent_service.providers.error_report import ErrorReport, read_error

TOO_LONG: tuple[tuple[str, int | None], ...] = (
    (
        "This model's maximum context length is 8192 tokens. However, your messages resulted in"
        " 9000 tokens. Please reduce the length of the messages.",
        8192,
    ),
    (
        "This model's maximum context length is 128,000 tokens. However, you requested 140000"
        " tokens (139000 in the messages, 1000 in the completion).",
        128000,
    ),
    (
        "Requested token count exceeds the model's maximum context length of 131072 tokens.",
        131072,
    ),
    ("Input length (265330) exceeds model's maximum context length (262144).", 262144),
    (
        "'max_tokens' or 'max_completion_tokens' is too large: 2000. This model's maximum context"
        " length is 4096 tokens and your request has 2104 input tokens (2000 > 4096 - 2104).",
        4096,
    ),
    ("Your input exceeds the context window of this model. Please adjust your input.", None),
    (
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in"
        " 300000 tokens.",
        272000,
    ),
    ("prompt is too long: 208310 tokens > 200000 maximum", 200000),
    (
        "input length and `max_tokens` exceed context limit: 190000 + 21333 > 200000, decrease"
        " input length or `max_tokens` and try again",
        200000,
    ),
    (
        "The input token count (1058724) exceeds the maximum number of tokens allowed (1048576).",
        1048576,
    ),
    (
        "The input token count exceeds the maximum number of tokens allowed 1048576.",
        1048576,
    ),
    (
        "This model's maximum prompt length is 131072 but the request contains 136973 tokens.",
        131072,
    ),
    ("Your input context is too long. Please reduce your input context.", None),
    ("Input is too long for requested model.", None),
    ("Too many input tokens. Max input tokens: 8192, request input token count: 11000", 8192),
    ("Input Tokens Exceeded: Number of input tokens exceeds maximum length.", None),
    (
        "The decoder prompt (length 9000) is longer than the maximum model length of 8192.",
        8192,
    ),
    (
        "The prompt (total length 9000) is too long to fit into the model (context length 8192).",
        8192,
    ),
    (
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000"
        " `inputs` tokens and 512 `max_new_tokens`",
        4096,
    ),
    ("Input validation error: `inputs` must have less than 1024 tokens. Given: 2000", 1024),
    (
        "The input (516368 tokens) is longer than the model's context length (262144 tokens).",
        262144,
    ),
    (
        "request (4390 tokens) exceeds the available context size (4096 tokens), try increasing it",
        4096,
    ),
    ("the request exceeds the available context size, try increasing it", None),
    ("Requested tokens (600) exceed context window of 512", 512),
    ("the input length exceeds the context length", None),
    ("prompt too long; exceeded max context length by 4096 tokens", None),
    (
        "Prompt contains 65673 tokens and 0 draft tokens, too large for model with 32768 maximum"
        " context length",
        32768,
    ),
    (
        "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 4500.",
        4081,
    ),
    ("Your request exceeded model token limit: 262144 (requested: 300000)", 262144),
    ("Invalid request: Input token length too long", None),
    ("InternalError.Algo.InvalidParameter: Range of input length should be [1, 202745]", 202745),
    ("Prompt exceeds max length", None),
    ("Prompt 超长", None),
    ("输入长度超过限制", None),
    ("invalid params, context window exceeds limit", None),
    (
        "Please reduce the length of the messages or completion. Current length is 9000 while"
        " limit is 8192",
        8192,
    ),
    ("Please reduce the length of the messages or completion.", None),
    (
        "Trying to keep the first 5000 tokens when context the overflows. However, the model is"
        " loaded with context length of only 4096 tokens, which is not enough.",
        4096,
    ),
    (
        "The number of tokens to keep from the initial prompt is greater than the context length.",
        None,
    ),
    ("prompt token count of 145000 exceeds the limit of 128000", 128000),
    ("Input length 131393 exceeds the maximum allowed input length of 131040 tokens.", 131040),
    ("The maximum input length is 4096 tokens.", 4096),
    ("Prompt has 300,000 tokens, but the configured context size is 131,072 tokens", 131072),
    ("You passed 9000 input tokens, but the model's context length is only 8192 tokens.", 8192),
    ("Input length 9000 exceeds maximum allowed token size 8192", 8192),
    ("the number of input tokens 9000 cannot exceed the total tokens limit 8192", 8192),
    ("Total tokens of image and text exceed max message tokens.", None),
    ("prompt tokens 9000 exceeds the max sequence length 8192", 8192),
    ("The request does not fit the context window.", None),
    ("The conversation is too long for this model.", None),
    ("Context length exceeded.", None),
)

OTHER = (
    "",
    "Too many tokens, please wait before trying again.",
    "ThrottlingException: Too many tokens, please wait before trying again.",
    "Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30000, Used 29000.",
    "Request too large for model `x` on tokens per minute (TPM): Limit 6000, Requested 9000,"
    " please reduce the length of the messages",
    "This request would exceed your organization's rate limit of 40000 input tokens per minute.",
    "max_tokens is too large: 999999. This model supports at most 16384 completion tokens.",
    "max_tokens: 100000 > 64000, which is the maximum allowed number of output tokens",
    "Range of max_tokens should be [1, 8192]",
    "'max_tokens' is too large: 9000. This model's maximum context length is 4096 tokens and your"
    " request has 20 input tokens (9000 > 4096 - 20).",
    "This model's maximum context length is 4096 tokens. However, you requested 5020 tokens (20 in"
    " the messages, 5000 in the completion).",
    "Invalid 'user': string too long. Expected a string with maximum length 64.",
    "This model supports at most 1 image per prompt.",
    "The server is overloaded.",
    "Invalid API key.",
    "You have exceeded your monthly token limit.",
    "image exceeds 5 MB maximum: 7000000 bytes > 5242880 bytes",
)


@pytest.mark.parametrize(("message", "window"), TOO_LONG)
def test_a_conversation_that_is_too_long_is_known_by_every_vendors_words(
    message: str, window: int | None
) -> None:
    overflow = find_overflow(ErrorReport(message))
    assert overflow is not None
    assert overflow.window == window


@pytest.mark.parametrize("message", OTHER)
def test_throttling_and_too_much_output_are_no_long_conversation(message: str) -> None:
    assert find_overflow(ErrorReport(message)) is None


@pytest.mark.parametrize(
    "code",
    [
        "context_length_exceeded",
        "exceed_context_size_error",
        "model_context_window_exceeded",
        "ContextWindowExceededError",
    ],
)
def test_a_code_needs_no_words(code: str) -> None:
    assert find_overflow(ErrorReport("Sorry.", (code,))) is not None


def test_the_window_of_llama_cpps_error_is_read_from_its_member() -> None:
    error = {
        "code": 400,
        "message": "the request exceeds the available context size, try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 5000,
        "n_ctx": 4096,
    }
    overflow = find_overflow(read_error({"error": error}))
    assert overflow is not None
    assert overflow.window == 4096


def test_every_wording_has_a_vendor_and_a_source_and_an_example() -> None:
    for wording in WORDINGS:
        assert wording.vendor
        assert wording.source
        assert any(re.search(wording.pattern, text, re.IGNORECASE) for text, _ in TOO_LONG), wording


@given(st.text(), st.sampled_from(TOO_LONG))
def test_the_words_are_found_within_others(lead: str, example: tuple[str, int | None]) -> None:
    overflow = find_overflow(ErrorReport(f"litellm.BadRequestError: {example[0]} {lead}"))
    assert overflow is not None or lead
