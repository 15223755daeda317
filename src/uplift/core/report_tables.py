"""The tables of every key of ``report.json`` for the documentation, made from the classes themselves."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from uplift.core.report import ComparisonReport, Report, ReportPart


def schema_tables() -> str:
    """Markdown tables of every key of ``report.json``, one for each class, those of runs and comparisons first."""
    order: list[type[ReportPart]] = [Report, ComparisonReport]
    for model in order:
        for field in model.model_fields.values():
            order += [part for part in _parts(field.annotation) if part not in order]
    return "\n".join(_table(model) for model in order)


def _table(model: type[ReportPart]) -> str:
    lines = [
        f"### {model.__name__}",
        "",
        " ".join((model.__doc__ or "").split()),
        "",
        "| key | type | meaning |",
        "| --- | --- | --- |",
    ]
    for name, field in model.model_fields.items():
        meaning = " ".join((field.description or "").split())
        lines.append(f"| `{name}` | {_type_name(field.annotation)} | {meaning} |")
    return "\n".join([*lines, ""])


def _parts(annotation: Any) -> list[type[ReportPart]]:
    """Report classes that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, ReportPart):
        return [annotation]
    return [part for inner in typing.get_args(annotation) for part in _parts(inner)]


def _type_name(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type_name(inner[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in inner)
    if origin is tuple:
        return f"list of {_type_name(inner[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"object of {_type_name(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, ReportPart):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    words = {str: "text", int: "integer", float: "number", bool: "true/false", type(None): "null", Any: "any"}
    return words.get(annotation, str(annotation))
