"""Recognise a provider's error about a conversation that does not fit its model."""

import re

import msgspec

from ai_agent_service.providers.error_report import ErrorReport, normalize_name

_WINDOW = r"(?P<window>\d[\d,]*)"
_IS = r"(?:\s*(?:is|of|only|:|=|\(|\[|<=?))*\s*"


class Wording(msgspec.Struct, frozen=True):
    """A vendor's words for a conversation that is too long, as a regular expression whose group
    `window` is the model's limit in tokens; `source` is where the words were found."""

    vendor: str
    pattern: str
    source: str


_LITELLM = "BerriAI/litellm: litellm/litellm_core_utils/exception_mapping_utils.py"
_PI = "badlogic/pi-mono: packages/ai/src/utils/overflow.ts"
_BEDROCK = "https://repost.aws/knowledge-center/bedrock-validation-exception-errors"
_LETTA = "letta-ai/letta: letta/llm_api/error_utils.py"
_QUOTED = "quoted in the tests of several open-source clients"

WORDINGS = (
    Wording(
        "OpenAI, Azure, DeepSeek, vLLM", rf"maximum context length(?:{_IS}{_WINDOW})?", _LITELLM
    ),
    Wording("OpenAI", rf"exceed the configured limit{_IS}{_WINDOW} tokens", _LITELLM),
    Wording("OpenAI Responses, Codex", r"exceed(?:s|ed)? (?:the|this model's) context window", _PI),
    Wording("Anthropic", rf"prompt is too long(?:: \d+ tokens > {_WINDOW})?", _PI),
    Wording("Anthropic", rf"exceeds? context limit(?:: \d+ \+ \d+ > {_WINDOW})?", _LITELLM),
    Wording(
        "Gemini, Vertex AI",
        rf"token count.{{0,40}} exceeds the maximum number of tokens(?: allowed)?"
        rf"(?:{_IS}{_WINDOW})?",
        _LITELLM,
    ),
    Wording(
        "Gemini",
        r"input context is too long",
        _QUOTED,
    ),
    Wording("xAI", rf"maximum prompt length(?:{_IS}{_WINDOW})?", _PI),
    Wording("Bedrock", r"input is too long", _BEDROCK),
    Wording("Bedrock", rf"too many input tokens(?:\. max input tokens: {_WINDOW})?", _QUOTED),
    Wording("Bedrock", r"(?:number of )?input tokens exceed(?:s|ed)", _QUOTED),
    Wording("vLLM", rf"maximum model length(?:{_IS}{_WINDOW})?", _QUOTED),
    Wording("vLLM", rf"too long to fit into the model(?: \(context length {_WINDOW})?", _QUOTED),
    Wording("TGI", rf"`inputs` tokens \+ `max_new_tokens` must be{_IS}{_WINDOW}", _LITELLM),
    Wording("TGI", rf"`inputs` must have less than {_WINDOW} tokens", _QUOTED),
    Wording(
        "Together, SGLang", rf"longer than the model'?s context length(?:{_IS}{_WINDOW})?", _LITELLM
    ),
    Wording("llama.cpp", rf"exceeds? the available context size(?:{_IS}{_WINDOW})?", _LITELLM),
    Wording(
        "llama-cpp-python",
        rf"exceeds? context window(?:{_IS}{_WINDOW})?",
        "abetlen/llama-cpp-python: issue 416",
    ),
    Wording(
        "Ollama",
        r"exceed(?:s|ed) (?:the )?(?:max(?:imum)? )?context length",
        _QUOTED,
    ),
    Wording("Mistral", rf"too large for model with {_WINDOW} maximum context length", _PI),
    Wording("Mistral, Cohere", r"\btoo many (?:total )?tokens\b", _LITELLM),
    Wording("Cohere", rf"number of tokens .{{0,60}}cannot exceed {_WINDOW}", _QUOTED),
    Wording("Moonshot", rf"exceeded model token limit(?:{_IS}{_WINDOW})?", _PI),
    Wording("Moonshot", r"token length (?:is )?too long", _QUOTED),
    Wording(
        "DashScope",
        rf"range of input length should be \[\d+,\s*{_WINDOW}\]",
        "https://www.alibabacloud.com/help/en/model-studio/error-code",
    ),
    Wording(
        "Zhipu",
        r"prompt too long|prompt 超长|prompt exceeds max length",
        _QUOTED,
    ),
    Wording("Zhipu, Baidu, Tencent", r"(?:输入|上下文)长度(?:超过|超出)|超出上下文", _QUOTED),
    Wording("MiniMax", r"context window exceeds limit", _PI),
    Wording("Cerebras", rf"current length is \d+ while limit is {_WINDOW}", _LITELLM),
    Wording("Groq", r"reduce the length of the (?:messages|prompt|input)", _PI),
    Wording("LM Studio", rf"context length of only {_WINDOW}", _QUOTED),
    Wording("LM Studio", r"greater than the context length", _PI),
    Wording("GitHub Copilot", rf"prompt token count of \d+ exceeds the limit of {_WINDOW}", _PI),
    Wording("Poolside", rf"maximum allowed input length(?:{_IS}{_WINDOW})?", _LETTA),
    Wording(
        "SambaNova, NVIDIA", rf"maximum (?:input|sequence) length(?:{_IS}{_WINDOW})?", _LITELLM
    ),
    Wording("vLLM", rf"context length is only {_WINDOW}", _QUOTED),
    Wording(
        "Databricks, watsonx, Volcengine, Novita",
        r"(?:prompt|input|total) (?:tokens?|length)\b[^.]{0,60}\bexceed\w*\b[^.]{0,40}?"
        rf"\b(?:max\w*|limit)\b(?:[^.\d]{{0,30}}{_WINDOW})?",
        _QUOTED,
    ),
    Wording("DS4", rf"configured context size is {_WINDOW}", _QUOTED),
    Wording(
        "any", r"(?:prompt|context|conversation)(?: is)? too (?:long|large)", "servers' variations"
    ),
    Wording(
        "any",
        r"(?:exceed\w*|overflow\w*|longer than|larger than|fit)\b[^.]{0,60}"
        r"\bcontext[ _](?:length|size|window|limit)",
        "servers' variations",
    ),
    Wording(
        "any",
        r"\bcontext[ _](?:length|size|window|limit)[^.]{0,30}\b(?:exceeded|overflow|too small)",
        "servers' variations",
    ),
)

CODES = frozenset(
    {
        "contextlengthexceeded",  # OpenAI, Azure, Groq, OpenRouter
        "contextwindowexceeded",  # Vertex AI
        "contextwindowexceedederror",  # LiteLLM
        "exceedcontextsizeerror",  # llama.cpp
        "modelcontextwindowexceeded",  # Zhipu
        "modelmaxprompttokensexceeded",  # GitHub Copilot
        "inputtoolong",
        "prompttoolong",
    }
)
"""Values of `code` or `type`, as `normalize_name` returns them."""

_TOO_LONG = tuple(re.compile(each.pattern, re.IGNORECASE) for each in WORDINGS)
_THROTTLED = re.compile(
    r"rate.?limit|throttl|too many requests|please wait|(?:per|a|every) (?:minute|min\b|second|hour"
    r"|day)|\bTPM\b|\bITPM\b",
    re.IGNORECASE,
)
_OUTPUT = re.compile(
    r"(?<![\d,])(?P<named>\d[\d,]*+)(?= (?:in|for) the completion| output tokens)"
    r"|max(?:_completion|_output|_new)?_tokens\W{1,3}is too large: (?P<asked>\d[\d,]*)",
    re.IGNORECASE,
)


class Overflow(msgspec.Struct, frozen=True):
    """A conversation that is too long for a window of `window` tokens (None: not stated)."""

    window: int | None = None


def find_overflow(report: ErrorReport) -> Overflow | None:
    """Return the overflow that `report` is about, if it is about one.

    Throttling is none, even where it counts tokens, nor is a request for more output than the
    window has, because a shorter conversation does not change that.
    """
    window = report.window
    has_code = any(normalize_name(code) in CODES for code in report.codes)
    if not has_code and _THROTTLED.search(report.message):
        return None
    matches = [match for each in _TOO_LONG if (match := each.search(report.message))]
    if not has_code and not matches:
        return None
    for match in matches:
        window = window or _parse_count(match.groupdict().get("window"))
    output = _OUTPUT.search(report.message)
    asked = _parse_count(output["named"] or output["asked"]) if output else None
    return None if window and asked and asked >= window else Overflow(window)


def _parse_count(text: str | None) -> int | None:
    digits = (text or "").replace(",", "")
    return int(digits) if 0 < len(digits) <= 10 else None
