"""HTML and SVG as a tree of elements, in which every text is escaped: there is no other way to put
one in."""

import re
from xml.etree import ElementTree as ET

from ai_agent_service.core.redaction import redact_secrets

Element = ET.Element
Child = Element | str | None
Attribute = str | int | float | None

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_CONTROL_PICTURES = {0x7F: "\u2421", **{code: chr(0x2400 + code) for code in range(32)}}
_TEXT_ATTRIBUTES = ("title", "aria-label")
"""Attributes whose values people are told."""


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Element:
    """An element. `class_` is the attribute class and `aria_label` is aria-label; a child or an
    attribute that is None is left out."""
    found = {
        key.rstrip("_").replace("_", "-"): _clean(_format_number(value))
        for key, value in attributes.items()
        if value is not None
    }
    element = Element(name, found)
    last: Element | None = None
    for child in children:
        if isinstance(child, str):
            text = _clean(child)
            if last is None:
                element.text = (element.text or "") + text
            else:
                last.tail = (last.tail or "") + text
        elif child is not None:
            element.append(child)
            last = child
    return element


def render_page(root: Element, secrets: tuple[str, ...]) -> str:
    """`root` as a document of HTML, without `secrets` and whatever looks like an API key in its
    texts."""
    for element in root.iter():
        if element.tag == "style":
            continue
        element.text = element.text and redact_secrets(element.text, secrets)
        element.tail = element.tail and redact_secrets(element.tail, secrets)
        for name in _TEXT_ATTRIBUTES:
            if name in element.attrib:
                element.set(name, redact_secrets(element.attrib[name], secrets))
    return f"<!DOCTYPE html>\n{ET.tostring(root, encoding='unicode', method='html')}\n"


def _clean(text: str) -> str:
    """`text` with what HTML does not bear, or nobody sees, shown as a sign for it."""
    return _CONTROL.sub(lambda found: _CONTROL_PICTURES.get(ord(found[0]), "\ufffd"), text)


def _format_number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
