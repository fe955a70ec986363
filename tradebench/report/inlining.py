"""A drawing as part of a page: matplotlib's SVG without ballast, in colours that the page may set.

matplotlib writes an id, a group and a full style for every line, and six decimals. On a page that
holds a dozen drawings it is most of the bytes, and its one style sheet would style the whole page.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

DECIMALS = 2  # of a point: at four times the size still below a tenth of a pixel
# For readers without matplotlib's own font: Verdana has the same widths.
FONTS = "'DejaVu Sans',Verdana,sans-serif"
BALLAST = ("title", "metadata", "style")
# What a style says, and need not: it is inherited from the drawing, or what SVG does anyway.
SAID = {
    "font-family": "'DejaVu Sans'",
    "text-anchor": "start",
    "stroke-linejoin": "round",
    "stroke-linecap": "butt",
}
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
TOKEN = re.compile(r"[A-Za-z]|-?[\d.]+(?:e-?\d+)?")
REFERENCE = re.compile(r"(?:url\()?#([\w.-]+)\)?")
UNTURNED = re.compile(r"rotate\(-?0(?:\.0*)?[ ,)]")
# Coordinates that follow each command of a path as matplotlib writes it, all of them absolute.
ARITY = {"M": 2, "L": 2, "Q": 4, "C": 6, "z": 0}


def inline(svg: str, name: str, roles: Mapping[str, str]) -> str:
    """Return the SVG element alone, its ids and classes its own among all drawings of a page.

    `roles` maps a colour, `#rrggbb` in lower case, to a name: it becomes the CSS variable
    `--figure-NAME`, which is that colour where the page sets no other.
    """
    root = ElementTree.fromstring(svg)
    _strip(root)
    shared = Element("defs")
    _collect_definitions(root, shared)
    for element in root.iter():
        _shorten(element, roles)
    for element in shared.iter():
        _shorten(element, roles)
    _rename_ids(root, shared, name)
    _flatten(root)
    # What is used elsewhere keeps its own style: no rule need reach into a copy.
    if rules := _classes(root, f"#{name}-drawing"):
        sheet = Element("style")
        sheet.text = rules
        root.insert(0, sheet)
    if len(shared):
        root.insert(0, shared)
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "id": f"{name}-drawing",
        **{key: root.attrib[key] for key in ("width", "height", "viewBox")},
        "style": f"fill:{_colour('#000000', roles)};stroke-linejoin:round;font-family:{FONTS}",
    }
    # The space before the end of a tag is ElementTree's; in texts and values `>` is escaped.
    return ElementTree.tostring(root, encoding="unicode").replace(" />", "/>")


def _strip(root: Element) -> None:
    """Drop what only a file needs, namespaces and white space between elements."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: each for key, each in element.attrib.items()}
        if element.tag != "text" and element.tag != "tspan":
            element.text = None
        element.tail = None
    for parent in root.iter():
        parent[:] = [
            each for each in parent if each.tag.rpartition("}")[2] not in BALLAST and _drawn(each)
        ]


def _drawn(element: Element) -> bool:
    """Whether it is no path of a single place: a marker's line, of which nothing is seen."""
    return not (
        element.tag.rpartition("}")[2] == "path"
        and "id" not in element.attrib
        and not re.search("[LQCz]", element.get("d", ""))
    )


def _collect_definitions(root: Element, shared: Element) -> None:
    """Move what is only referred to to one place."""
    for parent in list(root.iter()):
        for child in [each for each in parent if each.tag == "defs"]:
            shared.extend(child)
            parent.remove(child)


def _shorten(element: Element, roles: Mapping[str, str]) -> None:
    """Write numbers, paths, colours and styles as briefly as they can be."""
    attributes = element.attrib
    for key in ("x", "y", "width", "height", "transform"):
        if key in attributes:
            attributes[key] = _rounded(attributes[key])
    if UNTURNED.match(attributes.get("transform", "")):
        del attributes["transform"]
    if "d" in attributes:
        attributes["d"] = _path(attributes["d"])
    said = dict(_declarations(attributes.pop("style", "")))
    if said := {key: value for key, value in said.items() if SAID.get(key) != value}:
        attributes["style"] = ";".join(
            f"{key}:{_colour(value, roles)}" for key, value in said.items()
        )


def _declarations(style: str) -> Iterator[tuple[str, str]]:
    for each in style.split(";"):
        key, colon, value = each.partition(":")
        if colon:
            yield key.strip(), _rounded(value.strip())


def _colour(value: str, roles: Mapping[str, str]) -> str:
    role = roles.get(value.lower())
    return value if role is None else f"var(--figure-{role},{value})"


def _rounded(text: str) -> str:
    return NUMBER.sub(lambda found: _number(float(found[0])), text)


def _number(value: float) -> str:
    text = f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text


def _path(data: str) -> str:
    """Return the same path with rounded places; a level or upright line has one coordinate."""
    tokens = TOKEN.findall(data)
    parts: list[str] = []
    at, here = 0, ("", "")
    while at < len(tokens):
        command = tokens[at]
        if command not in ARITY:
            return _rounded(" ".join(data.split()))
        numbers = [_number(float(each)) for each in tokens[at + 1 : at + 1 + ARITY[command]]]
        at += 1 + ARITY[command]
        if command == "L" and numbers[1] == here[1]:
            parts.append(f"H{numbers[0]}")
        elif command == "L" and numbers[0] == here[0]:
            parts.append(f"V{numbers[1]}")
        else:
            parts.append(command + " ".join(numbers))
        if numbers:
            here = (numbers[-2], numbers[-1])
    return "".join(parts)


def _rename_ids(root: Element, shared: Element, name: str) -> None:
    """Keep the ids that something refers to, each with the name of the drawing before it."""
    elements = [*root.iter(), *shared.iter()]
    values = [each.get(key, "") for each in elements for key in ("href", "clip-path", "style")]
    referred = dict.fromkeys(found for value in values for found in REFERENCE.findall(value))
    known = {each.get("id", "") for each in elements}
    short = {
        old: f"{name}-{number}"
        for number, old in enumerate(each for each in referred if each in known)
    }
    for element in elements:
        old = element.attrib.pop("id", None)
        if old in short:
            element.set("id", short[old])
        for key in ("href", "clip-path", "style"):
            if key in element.attrib:
                element.set(
                    key,
                    REFERENCE.sub(
                        lambda found: found[0].replace(found[1], short.get(found[1], found[1])),
                        element.attrib[key],
                    ),
                )


def _flatten(parent: Element) -> None:
    """Take children out of groups that say nothing, and join neighbours that say the same."""
    children: list[Element] = []
    for child in parent:
        _flatten(child)
        for each in child if child.tag == "g" and not child.attrib else (child,):
            if children and _alike(children[-1], each):
                children[-1].extend(each)
            elif each.tag != "g" or len(each):
                children.append(each)
    parent[:] = children


def _alike(one: Element, other: Element) -> bool:
    """Whether two groups may be one; what is half transparent is laid over the rest as a whole."""
    return one.tag == other.tag == "g" and one.attrib == other.attrib and "style" not in one.attrib


def _classes(root: Element, scope: str) -> str:
    """Give what has the same style, and what has the same frame, a class; return the sheet."""
    keys = (("style", "f"), ("clip-path", "c"))
    times = Counter((key, each.get(key, "")) for each in root.iter() for key, _ in keys)
    rules: dict[tuple[str, str], str] = {}
    for element in root.iter():
        names = []
        for key, letter in keys:
            value = element.get(key, "")
            if value and times[key, value] > 1:
                del element.attrib[key]
                names.append(rules.setdefault((key, value), f"{letter}{len(rules)}"))
        if names:
            element.set("class", " ".join(names))
    return "".join(
        f"{scope} .{name}{{{value if key == 'style' else f'{key}:{value}'}}}"
        for (key, value), name in rules.items()
    )
