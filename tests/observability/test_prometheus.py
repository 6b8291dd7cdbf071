"""Metrics as Prometheus reads them: their names, their form, and values of the process."""

import re
from pathlib import Path

from ai_agent_service.observability.metrics import (
    FAMILIES,
    Metrics,
)
from ai_agent_service.observability.prometheus import collect_process_values, render_metrics

ROOT = Path(__file__).parents[2]


def test_names_follow_the_conventions_and_stand_in_the_documentation() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.split("## Metrics")[1].split("\n## ")[0]
    documented = {
        row[0]: (row[1], row[2])
        for row in re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", section, re.MULTILINE)
    }
    assert documented == {
        family.name: (family.kind, ", ".join(f"`{label}`" for label in family.labels))
        for family in FAMILIES
    }
    for family in FAMILIES:
        assert family.name.startswith(("aas_", "process_"))
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert family.help.endswith(".")


def test_what_the_system_tells_of_the_process_is_among_the_metrics() -> None:
    found = collect_process_values()
    assert set(found) == {family.name for family in FAMILIES if family.name.startswith("process_")}
    assert all(value > 0 for values in found.values() for value in values.values())


def test_the_form_is_the_one_that_is_asked_for() -> None:
    snapshot = Metrics().take_snapshot({})
    text, kind = render_metrics(
        snapshot, "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    )
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
    assert render_metrics(snapshot, "")[1].startswith("text/plain")
