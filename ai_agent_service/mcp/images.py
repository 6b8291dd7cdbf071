"""Read images as tools send them: by their content, since labels are often wrong."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

_DATA_URL = re.compile(r"data:([^,]*?)(;base64)?,", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_URL_SAFE = str.maketrans("-_", "+/")

_MARKS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
"""How the types begin that providers accept; for another one they refuse the whole request."""


def decode_base64(text: str) -> bytes | None:
    """Return the bytes of base64 in either alphabet, in lines or not, padded or not, or in a
    `data:` URL; None if it is something else."""
    if (match := _DATA_URL.match(text.lstrip())) is not None:
        text = text.lstrip()[match.end() :]
        if match[2] is None:
            return unquote_to_bytes(text)
    text = _SPACE.sub("", text).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def find_image_type(data: bytes) -> str | None:
    """Return the type of an image that a model can be shown; None for anything else."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for mark, kind in _MARKS if data.startswith(mark)), None)


def build_image_url(data: bytes, kind: str) -> str:
    """Return the `data:` URL of an image."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
