"""Says in words what a field takes, from its JSON schema: one source for error messages, ``uplift techniques`` and forms.

A ``Schema`` is a place in a JSON schema document; ``step`` walks down it as keys walk down a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Schema:
    """A part of a JSON schema ``document`` (whose ``$defs`` it may refer to)."""

    document: Mapping[str, Any]
    part: Mapping[str, Any]

    def resolved(self) -> Schema:
        """The same with references followed and the ``null`` alternative of an optional field left out."""
        part = self.part
        if "$ref" in part:
            return Schema(self.document, self.document["$defs"][part["$ref"].rpartition("/")[2]]).resolved()
        kinds = [kind for kind in part.get("anyOf", ()) if kind.get("type") != "null"]
        if len(kinds) == 1:
            return Schema(self.document, kinds[0]).resolved()
        return self

    def tags(self) -> list[str]:
        """The ``use:`` values a section can have; empty when it is no choice."""
        part = self.resolved().part
        return sorted(part["discriminator"]["mapping"]) if "discriminator" in part else []

    def tagged(self, tag: str) -> Schema | None:
        """The section that ``use: tag`` chooses."""
        here = self.resolved()
        reference = here.part.get("discriminator", {}).get("mapping", {}).get(tag)
        return Schema(here.document, {"$ref": reference}).resolved() if reference else None

    def names(self) -> list[str]:
        """The keys a section knows."""
        return list(self.resolved().part.get("properties", {}))

    def step(self, key: str | int) -> Schema:
        """What is expected under a key or list index; an empty schema where nothing is known."""
        here = self.resolved()
        below: Any = here.part.get("items") if isinstance(key, int) else here.part.get("properties", {}).get(key)
        if below is None and not isinstance(key, int):
            below = here.part.get("additionalProperties")
        return Schema(here.document, below if isinstance(below, Mapping) else {})

    def words(self) -> str:
        """What is allowed here, in words: kinds, ranges, choices."""
        return _words(self)


@cache
def schema_of(model: type[BaseModel]) -> Schema:
    """The schema of a section, recipe or technique class."""
    document = model.model_json_schema()
    return Schema(document, document)


def _words(schema: Schema) -> str:
    part = schema.part
    if "$ref" in part:
        part = schema.document["$defs"][part["$ref"].rpartition("/")[2]]
    if "const" in part or "enum" in part:
        return _either([f"`{value}`" for value in part.get("enum", [part.get("const")])])
    for choice in ("anyOf", "oneOf"):
        if choice in part and "discriminator" in part:
            return f"a section with `use:` {_either([f'`{tag}`' for tag in schema.tags()])}"
        if choice in part:
            return _either([_words(Schema(schema.document, kind)) for kind in part[choice]])
    return _plain_words(schema, part)


def _plain_words(schema: Schema, part: Mapping[str, Any]) -> str:
    kind = part.get("type")
    if kind in {"number", "integer"}:
        return ("a whole number" if kind == "integer" else "a number") + _range(part)
    if kind == "string":
        return f"text that matches {part['pattern']}" if "pattern" in part else "text" + _size(part, "characters", "Length")
    if kind == "boolean":
        return "`true` or `false`"
    if kind == "null":
        return "`null`"
    if kind == "array":
        item = Schema(schema.document, part.get("items", {}))
        size = _size(part, "entries", "Items")
        return f"a list{size}, each {item.words()}" if size else f"a list of values, each {item.words()}"
    if part.get("properties"):
        return f"a section with {', '.join(part['properties'])}"
    return "a mapping" if kind == "object" else "any value"


def _range(part: Mapping[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {_number(part[name])}" for name, sign in signs.items() if name in part]
    return " " + " and ".join(bounds) if bounds else ""


def _number(value: float) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:,.0f}"
        if value.is_integer() and 1 <= abs(value) < 1e15
        else f"{value:g}"
    )


def _size(part: Mapping[str, Any], unit: str, name: str) -> str:
    low, high = part.get(f"min{name}"), part.get(f"max{name}")
    if low is not None and low == high:
        return f" with {low} {unit}"
    bounds = [f"at least {low}"] if low else []
    bounds += [f"at most {high}"] if high else []
    return f" with {' and '.join(bounds)} {unit}" if bounds else ""


def _either(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " or " + parts[-1] if len(parts) > 1 else "".join(parts)
