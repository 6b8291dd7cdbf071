"""What deploy/monitoring holds: each expression is of metrics and labels that a service really
tells."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ai_agent_service.core.errors import ProviderUnavailableError
from ai_agent_service.core.usage import Usage
from ai_agent_service.server.application import create_app
from tests.support.clients import CHAT, Watched, asking
from tests.support.fake_provider import calls, says
from tests.support.metrics import read_metrics
from tests.support.service import AGENT, configuration, open_client

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
OF_THE_TARGET = {"job", "instance"}
"""Labels that Prometheus itself adds."""

_SELECTOR = re.compile(r"\b((?:aas|process)_\w+|up)\b(?:\{([^}]*)\})?")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_QUERY = re.compile(r"label_values\((\w+), (\w+)\)")


def expressions() -> Iterator[tuple[str, str]]:
    """The title of each panel and the name of each alert, with an expression of it."""
    dashboard = json.loads((FOLDER / "grafana-dashboard.json").read_text(encoding="utf-8"))
    for panel in dashboard["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel.get("targets", ()))
    for rule in rules():
        yield rule["alert"], rule["expr"]


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    [group] = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """The metrics of an expression and the labels by which it selects."""
    return [
        (name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels)))
        for name, labels in _SELECTOR.findall(expression)
    ]


def grouping(expression: str) -> set[str]:
    """The labels by which an expression groups."""
    return {
        label.strip() for labels in _GROUPING.findall(expression) for label in labels.split(",")
    }


@pytest.fixture
async def told(tmp_path: Path) -> dict[str, set[str]]:
    """The samples that a service tells to which everything happened, by name, with their labels."""
    remembering = {**AGENT, "resources": ["memory"], "allowed_mcp_servers": {"dead": {}}}
    (tmp_path / "mcp.json").write_text(
        json.dumps([{"server_label": "dead", "server_url": "http://127.0.0.1:1/mcp"}]),
        encoding="utf-8",
    )
    gate = asyncio.Event()
    script = Watched(
        calls(("calculate", {"expression": "1"})),
        says("1", usage=Usage(9, 1, cost=0.1)),
        [ProviderUnavailableError("down")],
        [gate, *says("late")],
    )
    app = create_app(
        configuration(tmp_path, script, agents=[remembering], max_concurrent_requests=1)
    )
    async with open_client(app) as client, asyncio.timeout(40):
        for stream in (True, False):
            await client.post(CHAT, json=asking(stream=stream), headers={"X-Session-Id": "s"})
        waiting = asyncio.create_task(client.post(CHAT, json=asking()))
        await script.waiting.wait()
        assert (await client.post(CHAT, json=asking())).status_code == 429
        gate.set()
        await waiting
        found = await read_metrics(client)
    lenient = {
        **remembering,
        "allowed_mcp_servers": {},
        "resource_config": {"memory": {"required": False}},
    }
    away: dict[str, Any] = {
        "database_url": "postgresql://nobody@127.0.0.1:1/d",
        "database_timeout": 0.2,
        "api_keys": "a-key-of-the-environment",
    }
    app = create_app(configuration(tmp_path, Watched(says("Hi")), agents=[lenient], **away))
    async with open_client(app) as client:
        client.headers["authorization"] = "Bearer a-key-of-the-environment"
        assert (
            await client.post(CHAT, json=asking(), headers={"X-Session-Id": "s"})
        ).status_code == 200
        samples = [*found.samples, *(await read_metrics(client)).samples]
    names = {name for name, _, _ in samples}
    return {
        name: {label for found, labels, _ in samples if found == name for label in labels}
        for name in names
    }


async def test_every_expression_is_of_what_a_service_tells(told: dict[str, set[str]]) -> None:
    told = {**told, "up": set()}  # Prometheus's own
    faults = []
    for title, expression in expressions():
        found = selectors(expression)
        assert found, title
        known: set[str] = set(OF_THE_TARGET)
        for name, labels in found:
            if name not in told:
                faults.append(f"{title}: {name} is not told")
            known |= told.get(name, set())
            faults += [
                f"{title}: {name} has no label {label}"
                for label in labels - told.get(name, set()) - OF_THE_TARGET
            ]
        faults += [
            f"{title}: nothing has the label {label}" for label in grouping(expression) - known
        ]
    assert faults == []


def test_every_expression_has_its_brackets_closed_and_its_rates_of_counters() -> None:
    for title, expression in expressions():
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing), title
        for name in re.findall(r"(?:rate|increase)\((\w+)", expression):
            assert name.endswith(("_total", "_bucket", "_count", "_sum")), title


def test_the_labels_of_legends_and_annotations_are_there() -> None:
    dashboard = json.loads((FOLDER / "grafana-dashboard.json").read_text(encoding="utf-8"))
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(targets) > 30
    for target in targets:
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= grouping(
            target["expr"]
        ), target["expr"]
    for rule in rules():
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert used <= grouping(rule["expr"]) | {"instance", "server", "role"}, rule["alert"]
    [variable] = [each for each in dashboard["templating"]["list"] if each["type"] == "query"]
    assert _QUERY.fullmatch(variable["definition"])


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = json.loads((FOLDER / "grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_alerts_are_those_that_an_operator_needs() -> None:
    assert {rule["alert"] for rule in rules()} >= {
        "AgentServiceDown",
        "AgentServiceErrors",
        "AgentServiceSlowFirstByte",
        "AgentServiceShedsRequests",
        "AgentProviderBreakerOpen",
        "AgentMcpServerDown",
        "AgentDatabaseAway",
        "AgentEventLoopLag",
    }
    assert all({"expr", "for", "labels", "annotations"} <= set(rule) for rule in rules())


def test_what_watches_the_service_hides_no_errors_and_is_none() -> None:
    [alert] = [rule["expr"] for rule in rules() if rule["alert"] == "AgentServiceErrors"]
    assert [re.findall(r'route!~"([^"]*)"', labels) for _, labels in _SELECTOR.findall(alert)] == [
        ["/health.*|/metrics"]
    ] * 2


def test_a_breaker_that_tries_again_and_again_is_told_of_as_one_that_is_open() -> None:
    [alert] = [rule["expr"] for rule in rules() if rule["alert"] == "AgentProviderBreakerOpen"]
    assert alert.endswith(
        "> 0"
    )  # half open it is 1 while a provider hangs: with == 2 the time would restart


def test_the_sample_scrapes_the_service_and_has_the_rules() -> None:
    sample = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    assert sample["rule_files"] == ["alerts.yml"]
    [job] = sample["scrape_configs"]
    assert (job["job_name"], job["metrics_path"]) == ("ai-agent-service", "/metrics")
    assert 'job="ai-agent-service"' in rules()[0]["expr"]
