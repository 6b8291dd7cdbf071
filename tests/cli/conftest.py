"""Fixtures of the tests of commands."""

from collections.abc import Generator

import pytest

from tests.support.commands import logging_restored


@pytest.fixture(autouse=True)
def _logging() -> Generator[None, None, None]:
    """What the commands do to logging stays with each test."""
    with logging_restored():
        yield
