"""Faults of the certificate and the key that HTTPS is served with."""

from pathlib import Path

import pytest

from ai_agent_service.config.settings import load_settings
from ai_agent_service.config.tls import check_tls, collect_tls_warnings
from ai_agent_service.core.errors import ConfigError
from tests.support.certificates import certified
from tests.support.service import configuration


def faults(cert: Path | None, key: Path | None) -> list[tuple[str, str]]:
    found = check_tls(load_settings(tls_cert_file=cert, tls_key_file=key))
    assert all(fault.file == "environment" and fault.remedy for fault in found)
    return [(fault.field, fault.problem) for fault in found]


def test_without_files_nothing_is_wrong() -> None:
    assert faults(None, None) == []
    assert collect_tls_warnings(load_settings()) == []


def test_a_certificate_and_its_key_are_taken(tmp_path: Path) -> None:
    cert, key = certified(tmp_path)
    assert faults(cert, key) == []
    assert collect_tls_warnings(load_settings(tls_cert_file=cert, tls_key_file=key)) == []


def test_one_file_needs_the_other(tmp_path: Path) -> None:
    cert, key = certified(tmp_path)
    assert faults(cert, None) == [("TLS_KEY_FILE", "it has to be set where TLS_CERT_FILE is")]
    assert faults(None, key) == [("TLS_CERT_FILE", "it has to be set where TLS_KEY_FILE is")]


def test_files_that_cannot_be_read_are_told_both(tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    assert faults(absent, tmp_path) == [
        ("TLS_CERT_FILE", f"{absent} cannot be read (No such file or directory)"),
        ("TLS_KEY_FILE", f"{tmp_path} cannot be read (Is a directory)"),
    ]


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"\x30\x82", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
)
def test_what_is_not_pem_is_told(tmp_path: Path, content: bytes) -> None:
    cert, key = certified(tmp_path)
    other = tmp_path / "other"
    other.write_bytes(content)
    assert faults(other, key) == [("TLS_CERT_FILE", f"{other} is not a certificate in PEM")]
    assert faults(cert, other) == [("TLS_KEY_FILE", f"{other} is not a private key in PEM")]
    assert faults(key, cert)[0] == ("TLS_CERT_FILE", f"{key} is not a certificate in PEM")


def test_a_key_of_another_certificate_is_told(tmp_path: Path) -> None:
    cert, _ = certified(tmp_path)
    _, other = certified(tmp_path, "other")
    assert faults(cert, other) == [
        ("TLS_KEY_FILE", f"it is not the key of the first certificate in {cert}")
    ]


def test_an_encrypted_key_is_told(tmp_path: Path) -> None:
    cert, key = certified(tmp_path, password=b"secret")
    assert faults(cert, key) == [
        ("TLS_KEY_FILE", f"{key} is encrypted, and nobody is there to type its password")
    ]


@pytest.mark.parametrize(
    ("begins", "ends", "told"), [(-10, -1, "expired at"), (1, 10, "is valid from")]
)
def test_a_certificate_out_of_its_time_is_a_warning(
    tmp_path: Path, begins: float, ends: float, told: str
) -> None:
    cert, key = certified(tmp_path, begins=begins, ends=ends)
    assert faults(cert, key) == []
    [warning] = configuration(tmp_path, tls_cert_file=cert, tls_key_file=key).warnings
    assert told in warning


def test_faults_are_told_with_all_others(tmp_path: Path) -> None:
    cert, _ = certified(tmp_path)
    with pytest.raises(ConfigError, match="TLS_KEY_FILE"):
        configuration(tmp_path, tls_cert_file=cert)
