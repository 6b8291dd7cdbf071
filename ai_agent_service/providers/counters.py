"""Count requests to a provider and how they end, as plain numbers that metrics read."""

from collections import Counter

import msgspec


class ProviderCounts(msgspec.Struct):
    """One provider's numbers since the start.

    `requests` are questions to a model, including those that an open breaker refuses; `retries` are
    further attempts; `errors` are the failed questions by the code of their ServiceError.
    """

    requests: int = 0
    retries: int = 0
    errors: Counter[str] = msgspec.field(default_factory=Counter)
