"""OpenAI's chat completions as structs: what is read of a request, and all that is answered.

Source: the OpenAI OpenAPI description, CreateChatCompletionRequest, CreateChatCompletionResponse
and CreateChatCompletionStreamResponse. Fields of a request that are not named here are passed over,
as clients send many.
"""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ai_agent_service.api.http.json_limits import WithTexts

Fraction = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
ToolMode = Literal["auto", "none", "required"]
Tokens = Annotated[int, Meta(ge=1, le=100_000_000)]


class ImageUrl(msgspec.Struct):
    """An image's address, http(s) or `data:`."""

    url: str
    detail: str | None = None


class InputAudio(msgspec.Struct):
    """A sound, in base64."""

    data: str
    format: str


class InputFile(msgspec.Struct):
    """A file, by the provider's id or as a `data:` URL."""

    file_id: str | None = None
    file_data: str | None = None
    filename: str | None = None


class TextContent(WithTexts, tag_field="type", tag="text"):
    """A text part."""

    texts: ClassVar = frozenset({"text"})
    text: str


class RefusalContent(WithTexts, tag_field="type", tag="refusal"):
    """A refusal that the assistant gave earlier."""

    texts: ClassVar = frozenset({"refusal"})
    refusal: str


class ImageContent(msgspec.Struct, tag_field="type", tag="image_url"):
    """An image part."""

    image_url: ImageUrl


class AudioContent(msgspec.Struct, tag_field="type", tag="input_audio"):
    """A sound part."""

    input_audio: InputAudio


class FileContent(msgspec.Struct, tag_field="type", tag="file"):
    """A file part."""

    file: InputFile


Part = TextContent | RefusalContent | ImageContent | AudioContent | FileContent


class CalledFunction(WithTexts):
    """A function and its arguments, as JSON text."""

    texts: ClassVar = frozenset({"arguments"})
    name: str
    arguments: str = ""


class CalledTool(msgspec.Struct):
    """A call that the assistant made."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatMessage(WithTexts):
    """One message of the conversation."""

    texts: ClassVar = frozenset({"content", "refusal"})
    role: str
    content: str | list[Part] | None = None
    tool_calls: Annotated[list[CalledTool], Meta(max_length=1024)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None


class OfferedFunction(msgspec.Struct):
    """A function that the client runs."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class OfferedTool(msgspec.Struct):
    """A tool that the client runs: a function. OpenAI's `custom` tools are refused by name."""

    function: OfferedFunction | None = None
    type: Literal["function", "custom"] = "function"


class ChosenFunction(msgspec.Struct):
    """A function by name."""

    name: str


class ToolReference(msgspec.Struct):
    """One of the client's functions."""

    function: ChosenFunction | None = None
    type: str = "function"


class AllowedTools(msgspec.Struct):
    """Those of the client's tools that may be called, or one of which has to be (`required`)."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ToolReference], Meta(max_length=1024)]


class ChosenTool(msgspec.Struct):
    """The tool that the model has to call, or those that it may call (`allowed_tools`)."""

    function: ChosenFunction | None = None
    allowed_tools: AllowedTools | None = None
    type: Literal["function", "allowed_tools", "custom"] = "function"


class StreamOptions(msgspec.Struct):
    """What a stream carries besides."""

    include_usage: bool | None = None


class ModelSettings(msgspec.Struct, kw_only=True):
    """What a caller may set of the model; it goes on to the provider as it is."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Fraction | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    seed: Integer | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=10_000)] | None = None
    response_format: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    prediction: dict[str, Any] | None = None


class ChatCompletionRequest(ModelSettings, kw_only=True):
    """A request for a chat completion; `model` is an agent's id."""

    model: str
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=20_000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[OfferedTool], Meta(max_length=1024)] | None = None
    tool_choice: ToolMode | ChosenTool | None = None
    n: Integer | None = None
    logprobs: bool | None = None
    modalities: list[str] | None = None
    functions: list[Any] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None


class CallersSettings(ModelSettings, kw_only=True, forbid_unknown_fields=True):
    """As ModelSettings, with what some providers know besides. No more: others take models,
    addresses and plug-ins in the same place."""

    num_predict: Tokens | None = None
    top_k: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    min_p: Fraction | None = None
    repeat_penalty: Annotated[float, Meta(ge=0, le=10)] | None = None
    think: bool | str | None = None


class PromptTokensDetails(msgspec.Struct):
    """What the prompt's tokens were."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct):
    """What the completion's tokens were."""

    reasoning_tokens: int


class StepUsage(msgspec.Struct):
    """What one step of a run called and took."""

    tool_calls: list[str]
    prompt_tokens: int | UnsetType = UNSET
    completion_tokens: int | UnsetType = UNSET
    cost: float | UnsetType = UNSET


class CompletionUsage(msgspec.Struct):
    """Tokens of all steps of the run; `cost` in US dollars where the provider states it, `steps`
    for Open WebUI only."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    cost: float | UnsetType = UNSET
    steps: list[StepUsage] | UnsetType = UNSET


class ResponseToolCall(msgspec.Struct):
    """A call for the client to run."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ResponseMessage(msgspec.Struct):
    """The answer."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: str | None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ResponseToolCall] | UnsetType = UNSET


class Choice(msgspec.Struct):
    """The one choice."""

    message: ResponseMessage
    finish_reason: str
    index: int = 0
    logprobs: None = None


class ChatCompletion(msgspec.Struct):
    """A whole chat completion."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    system_fingerprint: str | UnsetType = UNSET
    object: Literal["chat.completion"] = "chat.completion"
    usage: CompletionUsage | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct):
    """A call for the client to run, whole in one chunk."""

    index: int
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class Delta(msgspec.Struct, gc=False):
    """What a chunk adds."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, gc=False):
    """The one choice of a chunk."""

    delta: Delta
    finish_reason: str | None = None
    index: int = 0
    logprobs: None = None


class ChatCompletionChunk(msgspec.Struct, gc=False):
    """One chunk of a streamed chat completion."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str | UnsetType = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: CompletionUsage | UnsetType = UNSET
