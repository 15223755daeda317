"""Reads YAML 1.2 into a tree that remembers where every value stands, with caps against hostile files.

Only the parser's events are taken from the YAML library; values are built here, so that no tag can construct an object,
``1e-4`` is a number, ``no`` and ``010`` are what YAML 1.2 says (text, ten), duplicate keys are errors, and nesting,
aliases and sizes are bounded (a recipe is a page, not a database).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from uplift.core.errors import Place, RecipeError

MAX_BYTES = 1_000_000
MAX_DEPTH = 64
MAX_VALUES = 10_000
"""Values of one file, each alias counted as all the values it stands for."""

_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {word: value for value in (True, False) for word in (str(value).lower(), str(value), str(value).upper())}
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class Node:
    """A value with its place. ``value`` is a scalar, ``dict[str, Node]`` or ``list[Node]``.

    ``size`` counts the values below it (aliases expanded), ``height`` the levels below it.
    """

    value: Any
    place: Place
    size: int = 1
    height: int = 0


@dataclass
class _Builder:
    """The state of one reading: the file's name, the anchors met so far and the problems found."""

    file: str
    anchors: dict[str, Node] = field(default_factory=dict)
    problems: list[RecipeError] = field(default_factory=list)
    values: int = 0

    def place(self, event: Event) -> Place:
        return Place(self.file, event.start_mark.line + 1, event.start_mark.column + 1)


def read_file(path: Path) -> tuple[Node, list[RecipeError]]:
    """The tree of one YAML file and the problems that did not stop the reading. Raises RecipeError for those that did."""
    name = str(path)
    try:
        if not path.exists():
            raise RecipeError("there is no such file", where=Place(name), fix="check the path, or write one with `uplift init`")
        if not path.is_file():
            raise RecipeError("is not a file", where=Place(name), fix="give the path of a YAML file")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise RecipeError("the file cannot be read", where=Place(name), why=_ascii(str(error)), fix="check the path") from error
    if len(content) > MAX_BYTES:
        raise RecipeError(
            f"is larger than {MAX_BYTES:,} bytes",
            where=Place(name, 1, 1),
            fix="this is not a recipe; data stay in their own files",
        )
    return read_text(_decode(content, name), name)


def read_text(text: str, file: str) -> tuple[Node, list[RecipeError]]:
    """The tree of YAML ``text``; ``file`` names it in places. Raises RecipeError when it is no single YAML document."""
    bad = _FORBIDDEN.search(text)
    if bad:
        line, column = _line_column(text, bad.start())
        what = f"contains the control character U+{ord(bad.group()):04X}"
        raise RecipeError(what, where=Place(file, line, column), fix="remove it; recipes are plain text")
    builder = _Builder(file)
    events = _events(text, file)
    for event in events:
        if isinstance(event, DocumentStartEvent):
            root = _build(next(events), events, builder, 0)
            _refuse_second_document(events, builder)
            return root, builder.problems
    raise RecipeError("the file is empty", where=Place(file, 1, 1), fix="write a recipe, or let `uplift init DATA` write one")


def plain(node: Node) -> Any:
    """The tree without places: dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def graft(value: Any, place: Place) -> Node:
    """A tree of plain values that all stand at one place."""
    if isinstance(value, dict):
        return Node({str(key): graft(child, place) for key, child in value.items()}, place)
    if isinstance(value, list):
        return Node([graft(child, place) for child in value], place)
    return Node(value, place)


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", errors="replace")
        line, column = _line_column(before, len(before))
        raise RecipeError(
            "is not UTF-8 text",
            where=Place(name, line, column),
            why=f"byte 0x{content[error.start]:02x} cannot stand here",
            fix="save the file as UTF-8",
        ) from error


def _line_column(text: str, index: int) -> tuple[int, int]:
    return text.count("\n", 0, index) + 1, index - (text.rfind("\n", 0, index) + 1) + 1


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def _events(text: str, file: str) -> Iterator[Event]:
    """Parser events; every failure of the parser becomes a RecipeError at the place it had reached."""
    last = Place(file, 1, 1)
    try:
        for event in YAML(pure=True).parse(text):
            last = Place(file, event.start_mark.line + 1, event.start_mark.column + 1)
            yield event
    except MarkedYAMLError as error:
        at_end = "end" in (error.problem or "") and "stream" in (error.problem or "")
        # What was opened and never closed is found at its start, not at the end of the file.
        mark = (error.context_mark if at_end else None) or error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark else last
        raise RecipeError(
            _ascii(error.problem or "is not YAML"), where=place, why=_ascii(error.context or ""), fix=_syntax_fix(text, place)
        ) from error
    except (
        YAMLError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        # The parser's own slips on strange input (an IndexError, say) are still the file's fault, not a crash.
        raise RecipeError(
            "is not YAML that can be read", where=last, why=_ascii(str(error))[:200], fix="compare with `uplift init`'s output"
        ) from error


def _syntax_fix(text: str, place: Place) -> str:
    lines = text.split("\n")
    line = lines[place.line - 1] if place.line and place.line <= len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "indent with spaces; YAML allows no tabs there"
    return "check the indentation, the quotes and the brackets near this line"


def _build(event: Event, events: Iterator[Event], builder: _Builder, depth: int) -> Node:
    """The node that starts with ``event``; takes its following events."""
    place = builder.place(event)
    if depth > MAX_DEPTH:
        raise RecipeError(f"is nested deeper than {MAX_DEPTH} levels", where=place, fix="flatten it")
    if isinstance(event, AliasEvent):
        node = _aliased(event, builder, place, depth)
    elif isinstance(event, ScalarEvent):
        node = Node(_scalar(event, builder, place), place)
    elif isinstance(event, MappingStartEvent):
        node = _mapping(events, builder, place, depth)
    elif isinstance(event, SequenceStartEvent):
        node = _sequence(events, builder, place, depth)
    else:  # pragma: no cover - the parser yields no other event here
        raise RecipeError("is not YAML that can be read", where=place)
    builder.values += node.size if isinstance(event, AliasEvent) else 1
    if builder.values > MAX_VALUES:
        raise RecipeError(
            f"holds more than {MAX_VALUES:,} values", where=place, fix="this is not a recipe; data stay in their own files"
        )
    _refuse_tag(event, builder, place)
    if not isinstance(event, AliasEvent) and event.anchor:
        builder.anchors[event.anchor] = node
    return node


def _aliased(event: AliasEvent, builder: _Builder, place: Place, depth: int) -> Node:
    node = builder.anchors.get(event.anchor)
    if node is None:
        raise RecipeError(
            f"`*{_ascii(event.anchor)}` stands for nothing defined before it",
            where=place,
            fix=f"define `&{_ascii(event.anchor)}` first",
        )
    if depth + node.height > MAX_DEPTH:
        raise RecipeError(f"is nested deeper than {MAX_DEPTH} levels", where=place, fix="flatten it")
    return node


def _refuse_tag(event: Event, builder: _Builder, place: Place) -> None:
    tag = getattr(event, "tag", None)
    if tag is not None and str(tag) not in _PLAIN_TAGS and str(tag) != "!":
        shown = _ascii(str(tag).replace("tag:yaml.org,2002:", "!!"))
        what = f"the tag `{shown}` is refused"
        builder.problems.append(
            RecipeError(what, where=place, why="recipes hold plain values, never objects", fix="remove the tag")
        )


def _scalar(event: ScalarEvent, builder: _Builder, place: Place) -> Any:
    text: str = event.value
    if _SURROGATE.search(text):
        builder.problems.append(RecipeError("holds half of a character pair", where=place, fix="write the character itself"))
        return ""
    if event.style is not None or (event.tag is not None and str(event.tag) in {"tag:yaml.org,2002:str", "!"}):
        return text
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > 400 and _FLOAT.fullmatch(text):
        builder.problems.append(RecipeError("a number of more than 400 digits", where=place, fix="write a shorter number"))
        return 0
    if _INTEGER.fullmatch(text):
        return int(text, 0) if text[:2] in {"0x", "0o"} else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITE.fullmatch(text):
        return float(text.replace(".", "").lower())
    return text


def _mapping(events: Iterator[Event], builder: _Builder, place: Place, depth: int) -> Node:
    children: dict[str, Node] = {}
    first: dict[str, Place] = {}
    while not isinstance(event := next(events), MappingEndEvent):
        key, key_place = _key(event, events, builder, depth), builder.place(event)
        child = _build(next(events), events, builder, depth + 1)
        if key is None:
            continue
        if key in children:
            what = f"the key `{_ascii(key)}` stands here a second time"
            builder.problems.append(
                RecipeError(what, where=key_place, why=f"it was first given at {first[key]}", fix="keep one of the two")
            )
            continue
        # A scalar's own position is the useful one; a section is best found by its key.
        if isinstance(child.value, dict | list):
            child = Node(child.value, key_place, child.size, child.height)
        children[key], first[key] = child, key_place
    return _parent(children, list(children.values()), place)


def _key(event: Event, events: Iterator[Event], builder: _Builder, depth: int) -> str | None:
    """The key's text as written (so that ``0: negative`` is the label ``"0"``); None when it cannot be a key."""
    place = builder.place(event)
    if isinstance(event, ScalarEvent):
        _refuse_tag(event, builder, place)
        if event.anchor:
            builder.anchors[event.anchor] = Node(event.value, place)
        if event.value == "<<" and event.style is None:
            builder.problems.append(
                RecipeError("merge keys `<<` are not part of YAML 1.2", where=place, fix="use `extends: parent.yaml`")
            )
            return None
        if _SURROGATE.search(event.value):
            builder.problems.append(
                RecipeError("holds half of a character pair", where=place, fix="write the character itself")
            )
            return None
        if event.value or event.style is not None:
            return str(event.value)
    else:
        _build(event, events, builder, depth + 1)
    builder.problems.append(RecipeError("a key must be a word", where=place, fix="write `name: value`"))
    return None


def _sequence(events: Iterator[Event], builder: _Builder, place: Place, depth: int) -> Node:
    children: list[Node] = []
    while not isinstance(event := next(events), SequenceEndEvent):
        children.append(_build(event, events, builder, depth + 1))
    return _parent(children, children, place)


def _parent(value: dict[str, Node] | list[Node], children: list[Node], place: Place) -> Node:
    return Node(
        value, place, 1 + sum(child.size for child in children), 1 + max((child.height for child in children), default=0)
    )


def _refuse_second_document(events: Iterator[Event], builder: _Builder) -> None:
    for event in events:
        if isinstance(event, DocumentStartEvent):
            raise RecipeError(
                "a second document starts here", where=builder.place(event), fix="one file holds one recipe; remove `---`"
            )
