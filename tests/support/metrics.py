"""Samples of /metrics as Prometheus reads them, and reports to be counted."""

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from ai_agent_service.core.events import StepRecord
from ai_agent_service.core.usage import Usage
from ai_agent_service.observability.records import RequestReport, RunReport

Sample = tuple[str, dict[str, str], float]


class Scrape:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: list[Sample] = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def value(self, name: str, **labels: str) -> float:
        """Sum the samples of `name` that have these labels."""
        return sum(
            value
            for found, has, value in self.samples
            if found == name and labels.items() <= has.items()
        )

    def labels(self, name: str) -> list[dict[str, str]]:
        """Return the labels of each sample of `name`."""
        return [labels for found, labels, _ in self.samples if found == name]


async def read_metrics(client: httpx2.AsyncClient) -> Scrape:
    """Scrape the service of `client`."""
    response = await client.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain")
    return Scrape(response.text)


def run_report(**fields: object) -> RunReport:
    """Report a run of the agent `a`, answered in a quarter of a second."""
    return RunReport(
        **{  # type: ignore[arg-type]
            "agent_id": "a",
            "key_id": "k",
            "tenant": "t",
            "user": "u",
            "session": None,
            "run_id": "run_1",
            "task": None,
            "outcome": "answered",
            "is_streamed": True,
            "provider": "p",
            "steps": (StepRecord((), Usage(10, 4, 3, 2, cost=0.5), "m", "p", 0.2),),
            "step_count": 1,
            "seconds": 0.25,
            **fields,
        }
    )


def request_report(
    run: RunReport | None = None,
    *,
    route: str = "/r",
    status: int = 200,
    error: str = "",
    method: str = "POST",
) -> RequestReport:
    """Report a request whose answer began after 0.1 seconds and ended after 0.3."""
    return RequestReport(method, route, status, 0.3, 0.1, "127.0.0.1", error, run)
