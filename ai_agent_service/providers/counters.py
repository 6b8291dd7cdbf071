"""Counts what providers are asked and how it ends, as plain numbers that metrics read."""

from collections.abc import Mapping

import msgspec


class ProviderCounts(msgspec.Struct):
    """One provider's numbers since the start.

    `requests` are questions to a model, those that an open breaker refuses included; `retries` are
    further attempts at one; `errors` are the ends of questions by the code of their ServiceError.
    """

    requests: int = 0
    retries: int = 0
    errors: dict[str, int] = {}

    def count_error(self, code: str) -> None:
        """Counts an error."""
        self.errors[code] = self.errors.get(code, 0) + 1


class ProviderCountsRegistry:
    """The counts of all providers, by their names."""

    def __init__(self) -> None:
        self._providers: dict[str, ProviderCounts] = {}

    def get_counts(self, provider: str) -> ProviderCounts:
        """The counts of `provider`, to add to."""
        return self._providers.setdefault(provider, ProviderCounts())

    def get_all(self) -> Mapping[str, ProviderCounts]:
        """Every provider's counts, to read."""
        return self._providers
