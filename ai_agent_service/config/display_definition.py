"""Reads how an agent presents itself to people: the `display` of its definition."""

import base64
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from ai_agent_service.config.definition import Definition, use_default_for_null
from ai_agent_service.core.bounds import MAX_AVATAR_BYTES
from ai_agent_service.core.errors import Fault

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
)
_URL_PREFIXES = (
    "https://",
    "http://",
    *(f"data:{kind};base64," for kind in ("image/png", "image/jpeg", "image/gif", "image/webp")),
)

Line = Annotated[str, Field(min_length=1, max_length=200)]


class SuggestionPrompt(Definition):
    """A question that a new chat offers: what it sends, and the two lines that it is shown by."""

    content: str = Field(min_length=1, max_length=4000)
    """What is sent."""
    title: str = ""
    """The first line of its card; unset means `content`."""
    subtitle: str = ""
    """The second line."""

    @model_validator(mode="before")
    @classmethod
    def _wrap_text(cls, value: object) -> object:
        return {"content": value} if isinstance(value, str) else value


class DisplayDefinition(Definition):
    """How clients show an agent. `capabilities` are Open WebUI's, by its names; what is not named
    is as Open WebUI has it.

    `avatar` is an http(s) or `data:` address, or a file beside agent_config.json that `load_avatar`
    reads.
    """

    name: Annotated[str, Field(max_length=200)] | None = None
    """The agent's name; unset means its id."""
    description: Annotated[str, Field(max_length=4000)] | None = None
    """What is said of the agent; unset means its `description`."""
    capabilities: dict[Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")], bool] = Field(default={})
    """Open WebUI's switches by its names, such as `vision`; unless said otherwise `builtin_tools`
    is off and `usage` on."""
    suggestion_prompts: tuple[SuggestionPrompt, ...] = Field(default=(), max_length=20)
    """Questions that a new chat offers; a text stands for an object with this `content`."""
    tags: tuple[Line, ...] = Field(default=(), max_length=20)
    """Words to find the agent by."""
    avatar: str | None = Field(
        default=None,
        description=(
            "An `https://`, `http://` or `data:` address, or a PNG, JPEG, GIF or WebP file beside"
            f" the agents' file, of {MAX_AVATAR_BYTES // 1024} KiB at most."
        ),
    )

    _replace_null = field_validator("capabilities", "suggestion_prompts", "tags", mode="before")(
        use_default_for_null
    )

    @field_validator("avatar")
    @classmethod
    def _check_avatar(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("data:") and not value.startswith(_URL_PREFIXES):
            raise ValueError("a data: address of a PNG, JPEG, GIF or WebP in base64 is needed")
        if value is not None and len(value) > MAX_AVATAR_BYTES * 4 // 3 + 100:
            raise ValueError(f"an avatar has {MAX_AVATAR_BYTES} bytes at most")
        return value


def load_avatar(display: DisplayDefinition, folder: Path) -> DisplayDefinition | Fault:
    """`display` with the file that its avatar names, within `folder`, as a `data:` address; or what
    is wrong with it."""
    name = display.avatar
    if name is None or name.startswith(_URL_PREFIXES):
        return display
    inside = f"Name a PNG, JPEG, GIF or WebP file within {folder.resolve()}, or an https:// address"
    if "\x00" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        return _build_fault(
            "a file is named relative to the folder of the agents' file and without '..'", inside
        )
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            return _build_fault("this link leads out of the folder of the agents' file", inside)
        if not path.is_file():
            return _build_fault(f"{name!r} is not a file", inside)
        if path.stat().st_size > MAX_AVATAR_BYTES:
            return _build_fault(
                f"the file has more than {MAX_AVATAR_BYTES} bytes",
                "Make the image smaller: 256 pixels are enough",
            )
        data = path.read_bytes()
    except (OSError, RuntimeError) as error:
        return _build_fault(f"the file cannot be read ({error.__class__.__name__})", inside)
    kind = next((kind for signature, kind in _SIGNATURES if data.startswith(signature)), None)
    if kind is None and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "image/webp"
    if kind is None:
        return _build_fault("the file is not a PNG, JPEG, GIF or WebP image", inside)
    return display.model_copy(
        update={"avatar": f"data:{kind};base64,{base64.b64encode(data).decode()}"}
    )


def _build_fault(problem: str, remedy: str) -> Fault:
    return Fault(field="display.avatar", problem=problem, remedy=remedy)
