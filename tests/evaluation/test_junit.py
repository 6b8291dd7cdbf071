"""JUnit XML: what CI servers are shown of a run."""

from pathlib import Path
from xml.etree import ElementTree as ET

from ai_agent_service.evaluation.junit import write_junit
from ai_agent_service.evaluation.results import Check, Result, TurnAnswer


def test_each_case_is_a_test_with_what_was_expected_and_what_came(tmp_path: Path) -> None:
    failing = (
        Check("contains", 0.0, "with '<b>'", "'a\x00b'", turn=2),
        Check("exact", 1.0, "", ""),
    )
    broken = TurnAnswer(input="?", error="run_timeout", problem="Too slow.", seconds=2.0)
    results = [
        Result(id="good", agent="x", score=1.0, answers=(TurnAnswer(input="?", seconds=0.5),)),
        Result(id="bad", agent="x", score=1.0),
        Result(id="bad", agent="x", attempt=2, score=0.5, checks=failing),
        Result(id="broken", agent="y", score=0.0, answers=(broken,)),
    ]
    write_junit(tmp_path / "j.xml", "run", results)
    root = ET.parse(tmp_path / "j.xml").getroot()
    assert root.attrib == {"tests": "3", "failures": "1", "errors": "1", "time": "2.500"}
    good, bad, last = root.findall("testsuite/testcase")
    assert (good.attrib, len(good)) == ({"classname": "x", "name": "good", "time": "0.500"}, 0)
    failure, error = bad.find("failure"), last.find("error")
    assert failure is not None
    assert failure.attrib == {"message": "not met: contains"}
    assert failure.text == "attempt 2: turn 2, contains: expected with '<b>'; came 'a\ufffdb'"
    assert error is not None
    assert (last.get("classname"), error.attrib) == (
        "y",
        {"type": "run_timeout", "message": "Too slow."},
    )
