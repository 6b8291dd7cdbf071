"""JSON values that a provider may send where another one belongs."""

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Path = tuple[str | int, ...]

odd_texts = st.text('a {}"\0é\ud83d\ude00', max_size=4)
odd_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0.5, 12.0, float("nan"), float("inf"), -float("inf")])
    | odd_texts,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["text", "type", "content", "name", "function", "index", "error"]),
            inner,
            max_size=2,
        )
    ),
    max_leaves=4,
)


def list_places(value: Any, before: Path = ()) -> Iterator[Path]:
    """Yield the path of each member and item within `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*before, key)
        if isinstance(inner, dict | list):
            yield from list_places(inner, (*before, key))


def replace_place(value: Any, path: Path, new: Any) -> Any:
    """Return a copy of `value` with `new` at `path`."""
    copied = copy.deepcopy(value)
    place = copied
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return copied
