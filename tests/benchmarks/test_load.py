"""The load generator: an answer that is not complete is never counted."""

import asyncio

import pytest

from benchmarks.load import IncompleteAnswer, connections

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


async def asked(answer: bytes) -> float:
    """The outcome of one turn of `plain` with a server that sends `answer` and leaves."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    async with server, connections(server.sockets[0].getsockname()[1], 1) as (connection,):
        return await connection.ask("plain")


async def test_a_whole_answer_is_timed() -> None:
    assert await asked(HEAD + chunked(b"data: a word word word\n\ndata: [DONE]\n\n")) > 0


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(
            HEAD + chunked(b"data: a word word\n\ndata: [DONE]\n\n"), id="a piece is missing"
        ),
        pytest.param(HEAD + chunked(b"data: a word word word\n\n"), id="[DONE] is missing"),
        pytest.param(
            HEAD
            + chunked(b"data: a word word word\n\ndata: [DONE]\n\n").removesuffix(b"0\r\n\r\n"),
            id="the end is missing",
        ),
        pytest.param(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n", id="an error"),
    ],
)
async def test_an_incomplete_answer_is_an_error(answer: bytes) -> None:
    with pytest.raises(IncompleteAnswer):
        await asked(answer)
