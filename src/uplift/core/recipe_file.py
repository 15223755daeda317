"""Recipes, comparisons and stages from YAML files: ``extends:``, overrides, validation with places, and back to YAML.

Every problem of a file is reported at once, each with file:line:column, the key, the reason and what is allowed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import ValidationError
from ruamel.yaml import YAML

from uplift.core import recipe_errors, yaml_reader
from uplift.core.errors import Place, RecipeError, RecipeErrors, UpliftError
from uplift.core.legality import clashes_of
from uplift.core.prepare_section import AnyStep, Step
from uplift.core.recipe import Comparison, Recipe, RecipeArm, Stages
from uplift.core.recipe_errors import dotted
from uplift.core.registry import technique_class, technique_modules
from uplift.core.schema import schema_of
from uplift.core.section import Section
from uplift.core.technique import Technique
from uplift.core.wording import nearest, shown
from uplift.core.yaml_reader import Node

MAX_PARENTS = 8
MAX_ARMS = 100
Found = TypeVar("Found")
_COMPARISON_KEYS = frozenset(Comparison.model_fields)


Kind = Literal["recipe", "comparison", "stages"]
KINDS: Mapping[Kind, str] = {"recipe": "recipe", "comparison": "comparison", "stages": "chain of stages"}
MARKS: Mapping[str, Kind] = {"arms": "comparison", "stages": "stages"}
"""The key that makes a file more than one recipe."""
INSTEAD: Mapping[Kind, str] = {
    "recipe": "use `uplift run`, or add `arms:`",
    "comparison": "use `uplift compare`, or remove `arms:`",
    "stages": "use `uplift run`, or remove `stages:`",
}


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file. Raises RecipeErrors with every problem and its place."""
    return cast(Recipe, _load(path, overrides, ("recipe",)))


def load_comparison(path: Path | str, overrides: Sequence[str] = ()) -> Comparison:
    """The comparison in a YAML file, every arm checked. Raises RecipeErrors with every problem and its place."""
    return cast(Comparison, _load(path, overrides, ("comparison",)))


def load_runnable(path: Path | str, overrides: Sequence[str] = ()) -> Recipe | Stages:
    """The recipe or (when the file has ``stages:``) the stages in a YAML file."""
    return cast(Recipe | Stages, _load(path, overrides, ("recipe", "stages")))


def load_any(path: Path | str, overrides: Sequence[str] = ()) -> Recipe | Comparison | Stages:
    """The recipe, the comparison (when the file has ``arms:``) or the stages (``stages:``) in a YAML file."""
    return _load(path, overrides, ("recipe", "comparison", "stages"))


def _load(path: Path | str, overrides: Sequence[str], wanted: Sequence[Kind]) -> Recipe | Comparison | Stages:
    validate = {"recipe": _validate_recipe, "comparison": _validate_comparison, "stages": _validate_stages}
    found: Recipe | Comparison | Stages | None = None
    with _collected() as problems:
        node = _read(Path(path), overrides, problems)
        mark = next((key for key in MARKS if key in node.value), None)
        kind = MARKS[mark] if mark else "recipe"
        if kind not in wanted:
            place = node.value[mark].place if mark else node.place
            raise _error(f"this file holds a {KINDS[kind]}, not a {KINDS[wanted[0]]}", place, INSTEAD[kind])
        found = validate[kind](node, problems)  # type: ignore[operator]
    return _present(found)


def load_prepare(path: Path | str) -> list[Step]:
    """The steps of ``prepare:`` in a YAML file, or of ``data.prepare`` in a recipe or a comparison's base; no more is read.

    Raises RecipeErrors with every problem and its place.
    """
    found: _Prepared | None = None
    with _collected() as problems:
        node = _read(Path(path), (), problems)
        places = (("prepare",), ("data", "prepare"), ("base", "data", "prepare"))
        keys = next((keys for keys in places if recipe_errors.place_in(node, keys) is not node.place), None)
        listed: Node | None = node
        for key in keys or ():
            listed = recipe_errors.child(listed, key) if listed is not None else None
        if keys is None or listed is None:
            raise _error("there are no steps in this file", node.place, "list them under `prepare:`, or `data.prepare`")
        subject = _Subject([Node({"prepare": listed}, node.place)], problems, keys[:-1], node.place)
        try:
            found = _Prepared.model_validate({"prepare": yaml_reader.plain(listed)})
        except ValidationError as error:
            problems += recipe_errors.problems_of(error, schema_of(_Prepared), subject.find, keys[:-1])
    return _present(found).prepare


class _Prepared(Section):
    """What a file with steps alone holds."""

    prepare: list[AnyStep]


def merge_change(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``change``: mappings merge, lists and values replace, a section with another ``use`` replaces."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("use", old.get("use")) == old.get("use"):
            merged[key] = merge_change(old, value)
        else:
            merged[key] = value
    return merged


def arm_recipe(comparison: Comparison, arm: RecipeArm) -> Recipe:
    """The recipe of one arm: the base with the change, named after the arm, under the comparison's budget."""
    content = merge_change(comparison.base.model_dump(), arm.change)
    content["name"], content["output_dir"] = arm.name, comparison.output_dir
    recipe = Recipe.model_validate(content)
    limits = comparison.budget.model_dump(exclude_none=True)
    budget = recipe.train.budget.model_copy(update=limits)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"budget": budget})})


def to_yaml(value: Recipe | Comparison | Stages) -> str:
    """YAML that loads to an equal object, all defaults written out."""
    writer = YAML(pure=True)
    writer.default_flow_style = False
    writer.width = 120
    stream = io.StringIO()
    writer.dump(value.model_dump(mode="json"), stream)
    return stream.getvalue()


# -- reading -----------------------------------------------------------------------------------------------------------
@contextmanager
def _collected() -> Iterator[list[RecipeError]]:
    """Raises all problems together, those met on the way and the one that stopped the reading."""
    problems: list[RecipeError] = []
    try:
        yield problems
    except RecipeErrors as error:
        raise RecipeErrors(_sorted(error.problems)) from error
    except RecipeError as error:
        raise RecipeErrors(_sorted([*problems, error])) from error
    if problems:
        raise RecipeErrors(_sorted(problems))


def _present(found: Found | None) -> Found:
    if found is None:  # pragma: no cover - problems were raised before
        raise RecipeError("the recipe cannot be read")
    return found


def _sorted(problems: list[RecipeError]) -> list[RecipeError]:
    """In the order of the file, so that they can be mended from top to bottom."""

    return sorted(problems, key=_position)


def _position(problem: RecipeError) -> tuple[str, int, int]:
    where = problem.where or Place()
    return (where.file or "", where.line or 0, where.column or 0)


def _error(what: str, where: Place, fix: str, why: str = "") -> RecipeError:
    return RecipeError(what, where=where, why=why, fix=fix)


def _read(path: Path, overrides: Sequence[str], problems: list[RecipeError]) -> Node:
    """The file's tree with its parents merged below it and the overrides on top; always a mapping."""
    node = _read_with_parents(path, problems, ())
    if len(overrides) > yaml_reader.MAX_VALUES:
        raise RecipeError("too many overrides", where=Place("command line"))
    base = node.value.get("base")
    if base is not None and "arms" in node.value and isinstance(base.value, str) and base.value:
        node.value["base"] = _base_from_file(base, problems)
    for text in overrides:
        try:
            node = _overridden(node, text)
        except RecipeError as error:
            problems.append(error)
    return node


def _read_with_parents(path: Path, problems: list[RecipeError], children: tuple[Path, ...]) -> Node:
    node, found = yaml_reader.read_file(path)
    problems += found
    if not isinstance(node.value, dict):
        raise _error(
            "a recipe is a mapping of keys to values",
            node.place,
            "start with `model:`, `data:`, `task:`",
            f"this is {shown(yaml_reader.plain(node))}",
        )
    parent = node.value.pop("extends", None)
    if parent is None:
        return node
    if not isinstance(parent.value, str) or not parent.value or "\0" in parent.value:
        raise _error(f"`extends` cannot be {shown(yaml_reader.plain(parent))}", parent.place, "give the path of one YAML file")
    target = path.parent / parent.value
    chain = (*children, path.resolve())
    if _resolved(target, parent.place) in chain:
        raise _error("`extends` comes back to a file that extends it", parent.place, "remove one `extends:`")
    if len(chain) > MAX_PARENTS:
        raise _error(f"more than {MAX_PARENTS} files extend each other", parent.place, "write the values into one file")
    try:
        below = _read_with_parents(target, problems, chain)
    except RecipeError as error:
        if error.where and error.where.line is None:  # a missing parent: the line to mend is here
            raise _error(
                f"`{parent.value}`: {error.what}".encode("ascii", "backslashreplace").decode(),
                parent.place,
                error.fix,
                error.why,
            ) from error
        raise
    return _merged(below, node)


def _resolved(path: Path, place: Place) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise _error("the path in `extends` cannot be followed", place, "give the path of one YAML file") from error


def _merged(base: Node, change: Node) -> Node:
    """``merge_change`` on trees: every value keeps the place where it stands."""
    if not isinstance(base.value, dict) or not isinstance(change.value, dict):
        return change
    uses = [node.value["use"].value for node in (base, change) if "use" in node.value]
    if len(uses) == 2 and uses[0] != uses[1] or len(uses) == 1 and "use" in change.value:
        return change
    children = dict(base.value)
    for key, below in change.value.items():
        children[key] = _merged(children[key], below) if key in children else below
    return Node(children, change.place)


def _overridden(root: Node, text: str) -> Node:
    """The tree with one ``dotted.key=value`` set."""
    place = Place(f"override {shown(text)[1:-1]}")
    key, equals, value_text = text.partition("=")
    steps = key.strip().split(".")
    if not equals or not all(steps) or len(steps) > yaml_reader.MAX_DEPTH or not key.isprintable():
        raise _error("an override is `key.key=value`", place, "for example `train.lr=1e-4` or `techniques.0.rank=16`")
    value, found = yaml_reader.read_text(value_text, place.file or "") if value_text.strip() else (Node(None, place), [])
    if found:
        raise found[0]
    if "arms" in root.value and "base" in root.value and steps[0] not in _COMPARISON_KEYS:
        steps = ["base", *steps]
    return _set(root, steps, yaml_reader.graft(yaml_reader.plain(value), place))


def _set(node: Node, steps: list[str], value: Node) -> Node:
    """A copy with ``value`` under ``steps``: an anchored section that stands elsewhere as well stays as it is."""
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(node.value, list):
        index = _index(node, step, value.place)
        items = list(node.value)
        items[index] = _set(items[index], rest, value)
        return replace(node, value=items)
    if node.value is None:
        node = Node({}, value.place)
    if not isinstance(node.value, dict):
        fix = "override the whole of it, for example `model={use: hf, id: ...}`"
        raise _error(f"{shown(step)} is looked for inside one value, not a section", value.place, fix)
    return replace(node, value={**node.value, step: _set(node.value.get(step, Node(None, value.place)), rest, value)})


def _index(node: Node, step: str, place: Place) -> int:
    if not step.isascii() or not step.isdigit() or len(step) > 6 or int(step) >= len(node.value):
        raise _error(f"the list has no entry {shown(step)}", place, f"count from 0; it has {len(node.value)} entries")
    return int(step)


# -- validation --------------------------------------------------------------------------------------------------------
@dataclass
class _Subject:
    """What is validated: a tree for places, the keys to name it by, and the problems found."""

    nodes: list[Node]
    problems: list[RecipeError]
    prefix: recipe_errors.Path = ()
    fallback: Place = field(default_factory=Place)

    def find(self, path: recipe_errors.Path) -> Place:
        """Where the value under ``path`` (prefix included) stands: the first tree that knows it, else the fallback."""
        inner = path[len(self.prefix) :]
        for node in self.nodes:
            if inner and recipe_errors.place_in(node, inner) is not node.place:
                return recipe_errors.place_in(node, inner)
        return self.fallback

    def report(self, error: RecipeError, path: recipe_errors.Path) -> None:
        key = (*self.prefix, *path)
        where = replace(self.find(key), key=dotted(key))
        self.problems.append(RecipeError(error.what, where=where, why=error.why, fix=error.fix))


def _validate_recipe(node: Node, problems: list[RecipeError], prefix: recipe_errors.Path = ()) -> Recipe | None:
    subject = _Subject([node], problems, prefix, node.place)
    if not isinstance(node.value, dict):
        problems.append(_error("a recipe is a mapping of keys to values", node.place, "start with `model:`, `data:`, `task:`"))
        return None
    return _validate_content(yaml_reader.plain(node), subject)


def _validate_content(content: dict[str, Any], subject: _Subject) -> Recipe | None:
    before = len(subject.problems)
    content = dict(content)
    if isinstance(content.get("techniques"), list):
        content["techniques"] = _validate_techniques(content["techniques"], subject)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        subject.problems += recipe_errors.problems_of(error, schema_of(Recipe), subject.find, subject.prefix)
        return None
    for clash in clashes_of(recipe):
        subject.report(RecipeError(clash.what, why=clash.why, fix=clash.fix), recipe_errors.undotted(clash.key))
    return recipe if len(subject.problems) == before else None


def _validate_techniques(items: list[Any], subject: _Subject) -> list[Technique]:
    """The techniques that are valid; the problems of the others are reported under their own lines."""
    good = []
    for index, item in enumerate(items):
        if len(subject.problems) > recipe_errors.MAX_PROBLEMS:
            break
        technique = _validate_technique(item, index, subject)
        if technique is not None:
            good.append(technique)
    return good


def _validate_technique(item: Any, index: int, subject: _Subject) -> Technique | None:
    path = ("techniques", index)
    content = {"use": item} if isinstance(item, str) else item
    if not isinstance(content, Mapping) or not isinstance(content.get("use"), str):
        fix = "write {use: name, option: value}; `uplift techniques` lists the names"
        subject.report(RecipeError(f"`{dotted(path)}` cannot be {shown(item)}", fix=fix), path)
        return None
    if content["use"] not in technique_modules():
        fix = nearest(content["use"], technique_modules())
        subject.report(RecipeError(f"there is no technique {shown(content['use'])}", fix=fix), (*path, "use"))
        return None
    cls = technique_class(content["use"])
    try:
        return cls.model_validate(dict(content))
    except ValidationError as error:
        subject.problems += recipe_errors.problems_of(error, schema_of(cls), subject.find, (*subject.prefix, *path))
    except UpliftError as error:
        subject.report(RecipeError(error.what, why=error.why, fix=error.fix), path)
    return None


def _validate_comparison(node: Node, problems: list[RecipeError]) -> Comparison | None:
    base_node, rest = _base_of(node, problems)
    base = _validate_recipe(base_node, problems, ("base",) if "base" in node.value else ())
    content = {key: yaml_reader.plain(below) for key, below in rest.items()}
    subject = _Subject([Node(rest, node.place)], problems, (), node.place)
    comparison = None
    try:
        # A base that is broken has been reported; a stand-in lets the rest of the file be checked as well.
        comparison = Comparison.model_validate({**content, "base": base or _STAND_IN})
    except ValidationError as error:
        problems += recipe_errors.problems_of(error, schema_of(Comparison), subject.find)
    if base is not None and isinstance(rest["arms"].value, list):
        for index, arm in enumerate(rest["arms"].value[:MAX_ARMS]):
            _validate_arm(base, base_node, arm, index, problems)
    return comparison


_STAND_IN = Recipe.model_validate({"model": "stand-in", "data": {"train": "stand-in"}})


def _base_of(node: Node, problems: list[RecipeError]) -> tuple[Node, dict[str, Node]]:
    """The base recipe's tree and the comparison's own keys. The base is a mapping, a file, or stands beside ``arms:``."""
    rest = {key: below for key, below in node.value.items() if key in _COMPARISON_KEYS}
    beside = {key: below for key, below in node.value.items() if key not in _COMPARISON_KEYS}
    base = rest.pop("base", None)
    if base is None:
        known = {key: below for key, below in beside.items() if key in Recipe.model_fields}
        _report_unknown(beside, (*Recipe.model_fields, "arms", "budget", "seeds", "placebo", "extends"), problems)
        return Node(known, node.place), rest
    for key, below in beside.items():
        if key in Recipe.model_fields:
            problems.append(
                _error(
                    f"`{key}` stands beside `base:`",
                    replace(below.place, key=key),
                    "move it into `base:`, or into an arm's `change:`",
                )
            )
    _report_unknown(
        {k: v for k, v in beside.items() if k not in Recipe.model_fields}, (*sorted(_COMPARISON_KEYS), "extends"), problems
    )
    if isinstance(base.value, dict) and "extends" in base.value:
        problems.append(
            _error("`extends` cannot stand inside `base:`", base.value.pop("extends").place, "write `base: parent.yaml`")
        )
    return base, rest


def _base_from_file(base: Node, problems: list[RecipeError]) -> Node:
    path = Path(base.place.file or "").parent / base.value
    try:
        return _read_with_parents(path, problems, ())
    except RecipeError as error:
        if error.where and error.where.line is None:
            raise _error(
                f"`base` names {shown(base.value)}: {error.what}", replace(base.place, key="base"), error.fix, error.why
            ) from error
        raise


def _report_unknown(nodes: Mapping[str, Node], known: Sequence[str], problems: list[RecipeError]) -> None:
    for key, node in list(nodes.items())[: recipe_errors.MAX_PROBLEMS]:
        if key not in known:
            what, why, fix = recipe_errors.unknown_key(key, known, "")
            problems.append(_error(what, replace(node.place, key=dotted((key,))), fix, why))


def _validate_arm(base: Recipe, base_node: Node, arm: Node, index: int, problems: list[RecipeError]) -> None:
    """Checks the arm's merged recipe; a problem is placed at the line of the change that causes it."""
    change = recipe_errors.child(arm, "change")
    if change is None or not isinstance(change.value, dict):
        return  # nothing changes, or the comparison's own validation has reported it
    subject = _Subject([change, base_node], problems, ("arms", index, "change"), change.place)
    _validate_content(merge_change(base.model_dump(), yaml_reader.plain(change)), subject)


# -- stages ------------------------------------------------------------------------------------------------------------
_STAGES_KEYS = frozenset(Stages.model_fields)


def _validate_stages(node: Node, problems: list[RecipeError]) -> Stages | None:
    """Every stage is what stands beside ``stages:`` with the stage's own keys laid over it."""
    shared = Node({key: below for key, below in node.value.items() if key not in _STAGES_KEYS}, node.place)
    before = len(problems)
    _report_unknown(shared.value, (*Recipe.model_fields, *sorted(_STAGES_KEYS), "extends"), problems)
    if len(problems) > before:
        return None
    listed = node.value["stages"]
    own = {key: yaml_reader.plain(below) for key, below in node.value.items() if key in _STAGES_KEYS}
    recipes = [
        _validate_stage(shared, listed.value, index, problems)
        for index in range(len(listed.value) if isinstance(listed.value, list) else 0)
    ]
    if recipes and None in recipes:
        return None  # their problems have been reported
    try:
        return Stages.model_validate({**own, "stages": recipes or own["stages"]})
    except ValidationError as error:
        subject = _Subject([node], problems, (), listed.place)
        problems += recipe_errors.problems_of(error, schema_of(Stages), subject.find)
    return None


def _validate_stage(shared: Node, stages: list[Node], index: int, problems: list[RecipeError]) -> Recipe | None:
    """One stage's recipe; without a model of its own it goes on with what the stage before it made."""
    stage = stages[index]
    if not isinstance(stage.value, dict) or "name" not in stage.value:
        what = f"stage {index + 1} has no name"
        problems.append(_error(what, replace(stage.place, key=f"stages[{index}]"), "write a list of {name: ..., ...}"))
        return None
    merged = _merged(shared, stage)
    before = stages[index - 1].value if index else None
    if isinstance(before, dict) and "name" in before and "model" not in stage.value:
        flows = {"use": "stage", "name": yaml_reader.plain(before["name"])}
        merged = Node({**merged.value, "model": yaml_reader.graft(flows, stage.place)}, stage.place)
    found: list[RecipeError] = []
    recipe = _validate_recipe(merged, found, ("stages", index))
    told = {_position(problem) for problem in problems}  # what the stages share is reported with the first
    problems += [problem for problem in found if _position(problem) not in told]
    return recipe
