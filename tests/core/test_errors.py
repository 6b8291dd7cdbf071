"""The tree of errors is drawn as it is."""

import re

from ai_agent_service.core import errors
from ai_agent_service.core.errors import ServiceError


def draw_branches(parent: type[ServiceError], depth: int = 1) -> list[tuple[int, str, int]]:
    """Each error below `parent`: how deep it is, its name and its status."""
    return [
        drawn
        for each in parent.__subclasses__()
        if each.__module__ == errors.__name__
        for drawn in ((depth, each.__name__, each.status), *draw_branches(each, depth + 1))
    ]


def test_the_drawing_of_errors_is_the_tree_with_each_status() -> None:
    drawn = re.findall(
        r"^    ((?:\|   |    )*)[|`]-- (\w+) +(\d{3})\b", errors.__doc__ or "", re.MULTILINE
    )
    assert sorted(
        (len(indent) // 4 + 1, name, int(status)) for indent, name, status in drawn
    ) == sorted(draw_branches(ServiceError))
