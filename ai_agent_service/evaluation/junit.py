"""Writes a run as JUnit XML, which CI servers show: a test case for each case, with what was
expected and what came."""

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from ai_agent_service.evaluation.results import Result, group_by_case

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(path: Path, name: str, results: Sequence[Result]) -> None:
    """Writes `results` to `path`; those of several attempts at a case are one test case, which
    failed if one of them did.

    A case that an error broke, or that was not wholly judged, is an error and no failure.
    """
    cases = group_by_case(results)
    broken = {
        name
        for name, attempts in cases.items()
        if any(attempt.error or attempt.not_judged for attempt in attempts)
    }
    failed = [
        name
        for name, attempts in cases.items()
        if name not in broken and any(attempt.failed for attempt in attempts)
    ]
    seconds = sum(result.seconds for result in results)
    counts = {
        "tests": str(len(cases)),
        "failures": str(len(failed)),
        "errors": str(len(broken)),
        "time": f"{seconds:.3f}",
    }
    root = ET.Element("testsuites", counts)
    suite = ET.SubElement(root, "testsuite", {"name": _clean(name), **counts})
    for case_id, attempts in cases.items():
        took = sum(attempt.seconds for attempt in attempts)
        place = {
            "classname": _clean(attempts[0].agent),
            "name": _clean(case_id),
            "time": f"{took:.3f}",
        }
        case = ET.SubElement(suite, "testcase", place)
        if error := next((attempt.error for attempt in attempts if attempt.error), None):
            ET.SubElement(
                case, "error", {"type": _clean(error.error or ""), "message": _clean(error.problem)}
            )
        elif checks := [check for attempt in attempts for check in attempt.not_judged]:
            said = "; ".join(
                dict.fromkeys(f"{check.metric}: {check.not_judged}" for check in checks)
            )
            ET.SubElement(
                case, "error", {"type": "not_judged", "message": _clean(f"not judged: {said}")}
            )
        elif lines := [
            _format_line(attempt, len(attempts)) for attempt in attempts if attempt.failed
        ]:
            metrics = sorted({check.metric for attempt in attempts for check in attempt.failed})
            ET.SubElement(
                case, "failure", {"message": f"not met: {', '.join(metrics)}"}
            ).text = _clean("\n".join(lines))
    path.write_bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def _format_line(result: Result, attempts: int) -> str:
    lead = f"attempt {result.attempt}: " if attempts > 1 else ""
    return "\n".join(
        f"{lead}turn {check.turn}, {check.metric}: expected {check.expected}; came {check.came}"
        for check in result.failed
    )


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
