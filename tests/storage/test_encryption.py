"""Encryption at rest: which keys are taken, and who can read what was stored."""

import base64
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_agent_service.storage.encryption import Cipher, DecryptionError, parse_keys

OLD = bytes(range(32))
NEW = bytes(range(200, 232))
PLAIN = '{"text": "Grüße, 世界 👋"}'
ROW = b"row 1"


def key_id(key: bytes) -> str:
    return hashlib.sha256(b"key id" + key).hexdigest()[:8]


def altered(stored: str, position: int) -> str:
    """`stored` with one bit of its sealed bytes flipped."""
    head, payload = stored.rsplit(":", 1)
    sealed = bytearray(base64.b64decode(payload))
    sealed[position] ^= 1
    return f"{head}:{base64.b64encode(sealed).decode()}"


# Keys


@pytest.mark.parametrize(
    "written",
    [
        base64.b64encode(NEW).decode(),
        base64.urlsafe_b64encode(NEW).decode(),
        base64.b64encode(NEW).decode().rstrip("="),
        base64.urlsafe_b64encode(NEW).decode().rstrip("="),
        NEW.hex(),
        NEW.hex().upper(),
        f" {NEW.hex()}\n",
    ],
)
def test_a_key_may_be_written_in_base64_or_in_hex(written: str) -> None:
    assert parse_keys(written) == (NEW,)


def test_several_keys_keep_their_order() -> None:
    assert parse_keys(f"{NEW.hex()}, {base64.b64encode(OLD).decode()}") == (NEW, OLD)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_setting_has_no_keys(text: str) -> None:
    assert parse_keys(text) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "tr0ub4dor",
        NEW.hex()[:-2],
        NEW.hex() + "ff",
        base64.b64encode(NEW[:-1]).decode(),
        base64.b64encode(NEW + b"x").decode(),
        base64.b64encode(NEW).decode()[:-2] + "é=",
        base64.b64encode(NEW).decode() + "=",
    ],
)
def test_a_wrong_key_is_named_by_its_number_and_not_shown(wrong: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"^Key 2 is not a key: 32 bytes in base64 .* or 64 hex digits are expected",
    ) as caught:
        parse_keys(f"{OLD.hex()},{wrong}")
    assert OLD.hex() not in str(caught.value)
    assert not wrong or wrong not in str(caught.value)


def test_the_same_key_twice_is_refused_however_it_is_written() -> None:
    with pytest.raises(ValueError, match="Keys 1 and 3 are the same"):
        parse_keys(f"{OLD.hex()},{NEW.hex()},{base64.b64encode(OLD).decode()}")


# Round trips


@given(text=st.text(), bound_to=st.binary())
@settings(deadline=None)
def test_what_was_encrypted_is_read_back(text: str, bound_to: bytes) -> None:
    cipher = Cipher([NEW])
    assert cipher.decrypt(cipher.encrypt(text, bound_to=bound_to), bound_to=bound_to) == text


def test_the_stored_form_names_its_key_and_hides_its_text() -> None:
    prefix, named, payload = Cipher([NEW, OLD]).encrypt("plain words", bound_to=ROW).split(":")
    assert (prefix, named) == ("aesgcm", key_id(NEW))
    sealed = base64.b64decode(payload, validate=True)
    assert len(sealed) == 12 + len("plain words") + 16
    assert b"plain words" not in sealed


def test_equal_texts_are_not_stored_alike() -> None:
    cipher = Cipher([NEW])
    assert len({cipher.encrypt(PLAIN, bound_to=ROW) for _ in range(100)}) == 100


# Without keys, and other keys


def test_without_keys_text_is_stored_as_it_is() -> None:
    cipher = Cipher([])
    assert not cipher.is_enabled
    assert cipher.encrypt(PLAIN, bound_to=ROW) == PLAIN
    assert cipher.decrypt(PLAIN, bound_to=ROW) == PLAIN


def test_what_was_stored_before_there_were_keys_can_still_be_read() -> None:
    cipher = Cipher([NEW])
    assert cipher.is_enabled
    assert cipher.decrypt(PLAIN, bound_to=ROW) == PLAIN


def test_plain_text_that_would_be_read_back_as_encrypted_is_not_stored() -> None:
    with pytest.raises(ValueError, match="cannot be stored in the clear"):
        Cipher([]).encrypt("aesgcm:", bound_to=ROW)


def test_an_older_key_reads_what_it_wrote() -> None:
    stored = Cipher([OLD]).encrypt(PLAIN, bound_to=ROW)
    assert Cipher([NEW, OLD]).decrypt(stored, bound_to=ROW) == PLAIN


@pytest.mark.parametrize("keys", [[], [NEW]])
def test_a_lacking_key_is_named_by_its_id(keys: list[bytes]) -> None:
    stored = Cipher([OLD]).encrypt(PLAIN, bound_to=ROW)
    with pytest.raises(DecryptionError, match=f"needs the key with the id {key_id(OLD)}"):
        Cipher(keys).decrypt(stored, bound_to=ROW)


@pytest.mark.parametrize(
    ("keys", "written_with", "current"),
    [
        ([NEW, OLD], [NEW], True),
        ([NEW, OLD], [OLD], False),
        ([NEW, OLD], [], False),
        ([], [], True),
        ([], [OLD], False),
    ],
)
def test_a_value_is_current_if_it_would_be_stored_so_now(
    keys: list[bytes], written_with: list[bytes], current: bool
) -> None:
    assert Cipher(keys).is_current(Cipher(written_with).encrypt(PLAIN, bound_to=ROW)) is current


def test_a_cipher_refuses_keys_that_it_cannot_tell_apart() -> None:
    with pytest.raises(ValueError, match="same id"):
        Cipher([NEW, NEW])


# Faults


@pytest.mark.parametrize("position", [0, 12, -1], ids=["nonce", "ciphertext", "tag"])
def test_an_altered_value_is_refused(position: int) -> None:
    cipher = Cipher([NEW])
    with pytest.raises(DecryptionError, match="was altered"):
        cipher.decrypt(altered(cipher.encrypt(PLAIN, bound_to=ROW), position), bound_to=ROW)


def test_a_value_moved_to_another_row_is_refused() -> None:
    cipher = Cipher([NEW])
    stored = cipher.encrypt(PLAIN, bound_to=ROW)
    with pytest.raises(DecryptionError, match="belongs to another row"):
        cipher.decrypt(stored, bound_to=b"row 2")


@pytest.mark.parametrize(
    "stored",
    [
        "aesgcm:",
        "aesgcm:hidden words:AAAA",
        f"aesgcm:{key_id(NEW)}",
        f"aesgcm:{key_id(NEW)}:",
        f"aesgcm:{key_id(NEW)}:AAAA",
        f"aesgcm:{key_id(NEW)}:{base64.b64encode(bytes(12)).decode()}",
        f"aesgcm:{key_id(NEW)}:{base64.b64encode(bytes(20)).decode()}",
        f"aesgcm:{key_id(NEW)}:hidden words",
        f"aesgcm:{key_id(NEW)}:é",
    ],
)
def test_what_is_no_whole_encrypted_value_is_refused_and_not_shown(stored: str) -> None:
    with pytest.raises(DecryptionError, match="was altered") as caught:
        Cipher([NEW]).decrypt(stored, bound_to=ROW)
    assert "hidden" not in str(caught.value)


def test_a_lone_surrogate_is_refused_in_plain_words() -> None:
    with pytest.raises(ValueError, match=r"Text with a lone surrogate cannot be stored\."):
        Cipher([NEW]).encrypt("hidden \ud800", bound_to=ROW)
