"""Addresses that are handed on to a provider, and those that are not, however they are spelled."""

from pathlib import Path

import pytest

from ai_agent_service.api.http.url_safety import validate_file_data, validate_image_url
from ai_agent_service.core.errors import InvalidRequestError
from ai_agent_service.server.application import create_app
from tests.support.clients import CHAT, asking, read_error
from tests.support.fake_provider import Script, says
from tests.support.service import configuration, open_client

GOOD = [
    "https://example.com/cat.png",
    "HTTP://Example.COM:8080/a?b=http://localhost/#c",
    "https://xn--bcher-kva.example.org/x.png",
    "https://images.example.co.uk./x",
    "http://93.184.216.34/x.png",
    "https://[2606:4700:4700::1111]:443/x.png",
    "https://a_b.example.com/x",
    "https://example.com/%00%0a?x=@localhost",
    "https://localhost.example.com/",
    "https://1.example.com/",
    "https://0xdeadbeef.example.com/",
]
DATA = ["data:image/png;base64,iVBORw0KGgo=", "DATA:image/svg+xml;utf8,<svg/>"]
SCHEMES = [
    *(
        "",
        "image.png",
        "//example.com/x",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "gopher://example.com",
        "javascript:alert(1)",
    ),
    *(
        "data:text/html;base64,AAAA",
        "data:,x",
        "http:example.com",
        "http:/example.com",
        "https:\\\\example.com",
        " https://example.com",
    ),
    *(
        "jar:http://example.com!/",
        "url:http://example.com",
        "h\ttp://example.com",
        "http\n://example.com",
        "unix:///run/docker.sock",
    ),
]
HOSTS = [
    # loopback and unspecified
    *(
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "127.255.255.254",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0x7F.0x0.0x0.0x1",
        "0177.0.0.1",
    ),
    *(
        "017700000001",
        "0177.0.0x1",
        "00000177.0.0.1",
        "127.0.0.1.",
        "0",
        "0.0.0.0",
        "0x",
        "0x0",
        "00",
    ),
    # private, link-local, shared, reserved, multicast, metadata
    *(
        "10.0.0.1",
        "0xa.1",
        "012.1",
        "167772161",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "0xc0a80101",
        "3232235777",
    ),
    *(
        "169.254.169.254",
        "0xa9fea9fe",
        "2852039166",
        "0251.0376.0251.0376",
        "169.254.43518",
        "100.64.0.1",
        "100.100.100.200",
    ),
    *(
        "192.0.0.192",
        "168.63.129.16",
        "198.18.0.1",
        "192.0.2.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
    ),
    # no addresses at all
    *(
        "256.1.1.1",
        "1.2.3.4.5",
        "4294967296",
        "0x100000000",
        "1.2.3.0x",
        "09.1.1.1",
        "1..1",
        "1.16777216",
        "9" * 200,
        "0x" + "f" * 200,
    ),
    *(
        "1.1.1.1e1.1",
        "1.2.3.08",
        "example.1",
        "1572395042",
        "010.8.8.8",
        "93.184.216.034",
        "0x5d.0xb8.0xd8.0x22",
    ),
    # IPv6
    *(
        "[::1]",
        "[::]",
        "[0:0:0:0:0:0:0:1]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::ffff:8.8.8.8]",
    ),
    *(
        "[0:0:0:0:0:ffff:a9fe:a9fe]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::a00:1]",
        "[2002:7f00:1::]",
    ),
    *(
        "[2002:a9fe:a9fe::1]",
        "[2001:0:7f00:1::]",
        "[fe80::1]",
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "[::1%25lo]",
        "[fc00::1]",
    ),
    *(
        "[fd00:ec2::254]",
        "[fec0::1]",
        "[ff02::1]",
        "[2001:db8::1]",
        "[100::1]",
        "[2606:4700::5efe:7f00:1]",
        "[2606:4700::200:5efe:10.0.0.1]",
    ),
    *("[::1", "::1", "[]", "[:]", "[::1]x", "[localhost]", "[v1.a]"),
    # names
    *(
        "localhost",
        "LOCALHOST",
        "localhost.",
        "a.localhost",
        "printer.local",
        "metadata.google.internal",
        "METADATA.google.INTERNAL.",
    ),
    *(
        "host.docker.internal",
        "db",
        "metadata",
        "instance-data",
        "kubernetes.default.svc",
        "router.lan",
        "nas.home.arpa",
        "x.corp",
    ),
    *("localhost.localdomain", "metadata.tencentyun.com", "x.intranet", "internal", "local"),
    # tricks
    *(
        "user@example.com",
        "user:pw@example.com",
        "example.com@127.0.0.1",
        "127.0.0.1@example.com",
        "@example.com",
    ),
    *(
        "example.com\\@127.0.0.1",
        "127.0.0.1\\.example.com",
        "127.0.0.1%00.example.com",
        "%31%32%37.0.0.1",
        "%6cocalhost",
    ),
    *(
        "①②⑦.⓪.⓪.①",
        "\uff11\uff12\uff17.0.0.1",
        "127\u30020.0.1",
        "127\uff0e0.0.1",
        "127.0.0.1\u200b",
        "loc\u00adalhost",
        "\u24dbocalhost",
    ),
    *(
        "loca\u0142host.com",
        "exa mple.com",
        "example.com\t",
        "exam\nple.com",
        "\x00example.com",
        "example.com\x7f",
        "example.com\r",
    ),
    *(
        "",
        ".",
        "..",
        ".example.com",
        "a..com",
        "-a.com",
        "a-.com",
        "example.com:",
        "example.com:port",
        "example.com:99999",
        "a.com:80:80",
    ),
    *(
        "a" * 64 + ".com",
        "a." * 130 + "com",
        "exa<mple.com",
        "{x}.com",
        "a;b.com",
        "example.com,localhost",
    ),
]


@pytest.mark.parametrize("url", [*GOOD, *DATA])
def test_public_addresses_and_data_are_handed_on_as_they_are(url: str) -> None:
    assert validate_image_url(url, "p") == url


@pytest.mark.parametrize(
    "url",
    [*SCHEMES, *(f"http://{host}/x.png" for host in HOSTS), *(f"HTTPS://{host}" for host in HOSTS)],
)
def test_every_other_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validate_image_url(url, "messages[0].content[0].image_url.url")
    assert caught.value.code == "url_not_allowed"
    assert caught.value.param == "messages[0].content[0].image_url.url"
    assert len(url) < 8 or url not in caught.value.message


@pytest.mark.parametrize(
    "text", [*GOOD, "JVBERi0xLjQ=", "", "data:application/pdf;base64,JVBERi0=", "DATA:text/plain,x"]
)
def test_files_are_base64_data_or_public_addresses(text: str) -> None:
    assert validate_file_data(text, "p") == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "file:///etc/passwd",
            " file:///etc/passwd",
            "http://127.0.0.1/a.pdf",
            "HTTP://localhost",
            "ftp://example.com",
            "s3://bucket/key",
        ),
        *(
            " " * 41 + "http://10.0.0.1/x",
            "\x01http://10.0.0.1",
            "ht\ttp://10.0.0.1",
            "\ufeffhttp://10.0.0.1",
        ),
    ],
)
def test_files_at_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validate_file_data(text, "p")
    assert (caught.value.code, caught.value.param) == ("url_not_allowed", "p")


@pytest.mark.parametrize("role", ["user", "system", "assistant"])
@pytest.mark.parametrize(
    ("part", "place"),
    [
        (
            {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}},
            "image_url.url",
        ),
        ({"type": "file", "file": {"file_data": "file:///etc/passwd"}}, "file.file_data"),
        ({"type": "file", "file": {"file_id": "http://127.0.0.1/"}}, "file.file_id"),
        (
            {"type": "input_audio", "input_audio": {"data": "http://127.0.0.1/", "format": "wav"}},
            "input_audio.data",
        ),
    ],
)
async def test_the_provider_is_not_asked_with_a_private_address(
    tmp_path: Path, part: dict[str, object], place: str, role: str
) -> None:
    script = Script(says("Hi"))
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": role, "content": [{"type": "text", "text": "a"}, part]},
    ]
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        for path, body in (
            (CHAT, asking(messages=messages)),
            ("/agents/helper/chat", {"messages": messages}),
        ):
            error = read_error(await client.post(path, json=body), 400)
            assert (error["code"], error["param"]) == (
                "url_not_allowed",
                f"messages[1].content[1].{place}",
            )
            assert "169.254" not in error["message"]
    assert script.requests == []
