"""Reads what /metrics tells, as Prometheus would."""

import httpx2
from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, dict[str, str], float]


class Told:
    """What a service told of itself."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: list[Sample] = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of `name` that have these labels."""
        return sum(
            value
            for found, has, value in self.samples
            if found == name and labels.items() <= has.items()
        )

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of each sample of `name`."""
        return [labels for found, labels, _ in self.samples if found == name]


async def metrics_of(client: httpx2.AsyncClient) -> Told:
    """What the service of `client` tells now."""
    response = await client.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain")
    return Told(response.text)
