"""What docs/scaling.md shows of the measurement: written into it by `--record`, and compared with
it by a test."""

import msgspec

from benchmarks import plan, replicas
from benchmarks.replicas import Measured
from benchmarks.servers import ROOT

RECORDED = ROOT / "benchmarks" / "replicas.json"
PAGE = ROOT / "docs" / "scaling.md"


def recorded() -> Measured:
    """The measurement that the page is of."""
    return msgspec.json.decode(RECORDED.read_bytes(), type=Measured)


def record(measured: Measured) -> None:
    """Keeps a measurement, and has the page show it."""
    written = msgspec.json.format(msgspec.json.encode(measured), indent=2) + b"\n"
    RECORDED.write_bytes(written)
    PAGE.write_text(shown(PAGE.read_text(encoding="utf-8"), measured), encoding="utf-8")


def shown(page: str, measured: Measured) -> str:
    """`page` with the tables of `measured` between its marks, which are comments of HTML."""
    for name, content in blocks(measured).items():
        before, begin, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert begin, f"the page has no mark {name!r}"
        assert end, f"what follows the page's mark {name!r} has no end"
        page = f"{before}{begin}{content}\n{end}{after}"
    return page


def blocks(measured: Measured) -> dict[str, str]:
    """What stands between the page's marks."""
    inputs = plan.inputs_of(measured)
    when = (
        f"On {measured.day}, on {measured.cores} cores; each figure is the median of"
        f" {measured.rounds} rounds of {measured.turns:,} turns:"
    )
    return {
        "measured": f"{when}\n\n{replicas.table(measured)}",
        "inputs": plan.inputs_table(inputs),
        "plan": plan.table(inputs),
        "example": plan.table(plan.inputs_of(measured, **EXAMPLE), (EXAMPLE_RATE,)),
    }


EXAMPLE: dict[str, float] = {"seconds": 15, "chunks": 300, "tools": 2, "text_kb": 8}
EXAMPLE_RATE = 111
"""20,000 people, of whom each takes 20 turns in the busiest hour: 20,000 x 20 / 3,600."""
