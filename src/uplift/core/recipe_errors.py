"""Turns validation errors into recipe errors: where the value stands, what is wrong, and what is allowed there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from uplift.core.errors import Place, RecipeError
from uplift.core.schema import Schema
from uplift.core.wording import nearest, shown
from uplift.core.yaml_reader import Node

Path = tuple[str | int, ...]
Finder = Callable[[Path], Place]
MAX_PROBLEMS = 50
"""Most problems that are explained; nobody reads more, and each costs a search for the nearest name."""


@dataclass(frozen=True)
class _Located:
    """One validation error with the recipe key it is about and the schema of that key."""

    path: Path
    schema: Schema
    error: Mapping[str, Any]


def dotted(path: Sequence[str | int]) -> str:
    """``("techniques", 1, "rank")`` as ``techniques[1].rank``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{_safe(step)}" if text else _safe(step)
    return text


def undotted(key: str) -> Path:
    """The inverse of ``dotted`` for keys of this program: ``techniques[1].rank`` as ``("techniques", 1, "rank")``."""
    return tuple(int(step) if step.isdigit() else step for step in key.replace("[", ".").replace("]", "").split("."))


def place_in(node: Node, path: Path) -> Place:
    """Where the value under ``path`` stands, or the nearest section above it."""
    for step in path:
        below = child(node, step)
        if below is None:
            break
        node = below
    return node.place


def child(node: Node, step: str | int) -> Node | None:
    """The node under a key or list index, or None."""
    if isinstance(node.value, dict):
        return node.value.get(step)
    if isinstance(node.value, list) and isinstance(step, int) and 0 <= step < len(node.value):
        found: Node = node.value[step]
        return found
    return None


def problems_of(error: ValidationError, schema: Schema, find: Finder, prefix: Path = ()) -> list[RecipeError]:
    """One RecipeError per wrong key. ``find`` gives the place of a path (``prefix`` included)."""
    by_path: dict[Path, list[_Located]] = {}
    for raw in error.errors(include_url=False)[:MAX_PROBLEMS]:
        located = _locate(raw, schema)
        by_path.setdefault(located.path, []).append(located)
    problems = []
    for path, group in by_path.items():
        key = (*prefix, *path)
        what, why, fix = _explain(group[0], dotted(key), several=len(group) > 1)
        problems.append(RecipeError(what, where=replace(find(key), key=dotted(key)), why=why, fix=fix))
    return problems


def _locate(error: Mapping[str, Any], schema: Schema) -> _Located:
    """Leaves the words out of a location that are no keys: tags of ``use:`` choices, names of alternatives."""
    path: list[str | int] = []
    location: tuple[str | int, ...] = error["loc"]
    for index, step in enumerate(location):
        if error["type"] == "extra_forbidden" and index == len(location) - 1:
            path.append(step)  # the schema stays the section's, which knows the names that are allowed
            break
        tagged = schema.tagged(step) if isinstance(step, str) else None
        if tagged is not None:
            schema = tagged
            continue
        part = schema.resolved().part
        if "anyOf" in part or step == "[key]" or not part:
            continue
        path.append(step)
        schema = schema.step(step)
    return _Located(tuple(path), schema, error)


def _explain(located: _Located, key: str, several: bool) -> tuple[str, str, str]:
    """What, why and fix of one wrong key."""
    error, allowed = located.error, located.schema.words()
    kind = error["type"]
    if kind == "extra_forbidden":
        section, _, name = key.rpartition(".")
        return unknown_key(name, located.schema.names(), section)
    if kind == "missing":
        return f"`{key}` is missing", "", f"give it: {allowed}"
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        return _explain_tag(located, key)
    if kind in {"value_error", "assertion_error"}:
        return f"`{key}` does not hold together" if key else "does not hold together", str(error["ctx"]["error"]), ""
    value = error.get("input")
    what = f"`{key}` cannot be {shown(value)}"
    why = "" if several else _lower(error["msg"])
    return what, why, _hint(value, kind) or f"allowed: {allowed}"


def unknown_key(name: str, known: Sequence[str], section: str) -> tuple[str, str, str]:
    """What, why and fix of a key that nothing reads."""
    where = f" in `{section}`" if section else ""
    return f"there is no `{_safe(name)}`{where}", "a key that nothing reads would do nothing", nearest(name, known)


def _explain_tag(located: _Located, key: str) -> tuple[str, str, str]:
    tags, value = located.schema.tags(), located.error.get("input")
    use = value.get("use") if isinstance(value, Mapping) else None
    if use is None:
        if isinstance(value, Mapping):
            return f"`{key}` does not say which kind it is", "", f"add `use:`, one of: {', '.join(tags)}"
        return f"`{key}` cannot be {shown(value)}", "", f"allowed: {located.schema.words()}"
    return f"`{key}` has no kind {shown(use)}", "", nearest(str(use), tags)


def _hint(value: Any, kind: str) -> str:
    """A remedy for the slips that everyone makes once."""
    if kind.startswith("int") and isinstance(value, float) and value.is_integer() and abs(value) < 1e18:
        return f"write {int(value)}"
    if kind.startswith("bool") and isinstance(value, str):
        word = value.lower()
        return (
            f"write {'true' if word in {'yes', 'on', 'y'} else 'false'}" if word in {"yes", "no", "on", "off", "y", "n"} else ""
        )
    if kind.startswith("string") and isinstance(value, bool | int | float):
        return f'put it in quotes: "{value}"'
    return ""


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _safe(step: str | int) -> str:
    text = str(step)
    text = text if text.isascii() and text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 80 else text[:77] + "..."
