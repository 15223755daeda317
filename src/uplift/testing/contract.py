"""The conformance suite: what every technique must hold, run over all of them with no code for any of them.

Authors of techniques call ``check_technique`` (or parametrise pytest over ``CHECKS``) and need no other tests than the exact
invariants of their formula. What a case needs (a class head, a prompt, no training) is read from the declared capabilities.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from uplift.core.legality import clashes_of
from uplift.core.recipe import Recipe
from uplift.core.recipe_file import load_recipe
from uplift.core.registry import technique_class
from uplift.core.technique import Technique
from uplift.core.values import Corpus, Effect
from uplift.learn.assemble import apply_samples, assemble
from uplift.learn.parallel import Parallel
from uplift.testing.tiny import tiny_causal, tiny_moe, tiny_recipe
from uplift.testing.training import (
    Trained,
    differences,
    gradients,
    open_run,
    relative_difference,
    start_engine,
    train,
    train_in_two_parts,
)
from uplift.verbs.run import run
from uplift.verbs.techniques import technique as card_of

STEPS = 20
SECTIONS = ("When", "When not", "Paper", "Cost")
TRAINING = {
    "steps": STEPS,
    "save_every": STEPS // 2,
    "evaluate_every": STEPS // 4,
    "lr": 3e-3,
    "optimizer": {"weight_decay": 0.01},
}


def recipe_for(directory: Path, techniques: list[Technique], **changes: Any) -> Recipe:
    """A tiny recipe that gives these techniques what they declare to need."""
    needs = frozenset[str]().union(*(technique.declare().needs for technique in techniques))
    if "no_training" in needs and "training" not in needs:
        changes = {**changes, "train": {**changes.get("train", {}), "steps": 0}}
    if "adapter" in needs and not any("adapter" in technique.declare().gives for technique in techniques):
        techniques = [*techniques, technique_class("lora").model_validate({"use": "lora"})]
    if "new_weights" in needs and not any("new_weights" in technique.declare().gives for technique in techniques):
        techniques = [*techniques, technique_class("reinitialize").model_validate({"use": "reinitialize"})]
    head = "classifier" if "class_head" in needs else "words"
    routed = any("routers" in technique.declare().gives for technique in techniques)
    mixed, dropped = "routers" in needs and not routed, "dropout_in_model" in needs
    biased = not (routed and head == "classifier")  # a mixture with biases has no classification head
    folder = directory / ("model" + "-moe" * mixed + "-dropout" * dropped + "-unbiased" * (not biased))
    # The plain one too: it must not depend on which recipe was made in this folder first.
    for place, make, rate, bias in (
        (directory / "model", tiny_causal, 0.0, True),
        (folder, tiny_moe if mixed else tiny_causal, 0.2 * dropped, biased),
    ):
        if not (place / "config.json").exists():
            make(place, attention_bias=bias, attention_dropout=rate)  # some techniques train biases
    if folder.name != "model":
        changes = {"model": {"id": str(folder)}, **changes}
    return tiny_recipe(directory, "classify", techniques=techniques, task_options={"head": head}, **changes)


@dataclass
class Case:
    """One technique under test; trainings that several checks look at are made once.

    ``directory`` is scratch space; ``recipes`` is where ``<use>.yaml`` is expected.
    """

    technique: type[Technique]
    directory: Path
    recipes: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def named(cls, use: str, directory: Path, recipes: Path | None = None) -> Case:
        """The case of a registered technique."""
        return cls(technique_class(use), directory, recipes)

    @property
    def use(self) -> str:
        """The name of the technique."""
        return str(self.technique.model_fields["use"].default)

    @property
    def trains(self) -> bool:
        """Whether the technique works on training at all."""
        return "no_training" not in self.make().declare().needs

    def make(self, **options: Any) -> Technique:
        """An instance from the defaults and ``options``."""
        return self.technique.model_validate({**self.settings, **options})

    def recipe(self, techniques: list[Technique] | None = None, **changes: Any) -> Recipe:
        """A recipe that fits the technique (with other techniques, or none, in its place)."""
        base = recipe_for(self.directory, [self.make()], **{"train": TRAINING, **changes})
        return base if techniques is None else base.model_copy(update={"techniques": techniques})

    @cached_property
    def whole(self) -> Trained:
        """The uninterrupted training from defaults."""
        return train(self.recipe(), self.directory / "whole")


def check_defaults(case: Case) -> None:
    """Builds from its defaults, is found under its name, and equals its fresh copy."""
    made = case.make()
    assert made.use == case.use and made.fresh() == made and made.fresh() is not made
    assert type(made).model_validate(made.model_dump()) == made


def check_unknown_keys(case: Case) -> None:
    """Refuses options it does not know, and numbers outside of any sense."""
    for wrong in ({"no_such_option": 1}, {"use": "another"}):
        try:
            case.make(**wrong)
        except ValidationError:
            continue
        raise AssertionError(f"`{case.use}` accepts {wrong}")
    for name, info in case.technique.model_fields.items():
        if info.annotation in (int, float):
            assert info.metadata, f"`{case.use}.{name}` is a number without a range"


def check_documented(case: Case) -> None:
    """The module's docstring says what, when, when not, the paper and the cost; every option says what it means."""
    text = inspect.cleandoc(sys.modules[case.technique.__module__].__doc__ or "")
    summary = text.partition("\n\n")[0]
    assert len(summary) > 20 and summary.endswith("."), "the first sentence says what it does"
    for section in SECTIONS:
        found = re.search(rf"^{section}: (.+)$", text, flags=re.MULTILINE)
        assert found and len(found[1]) > 10, f"`{case.use}`: the docstring has no `{section}:`"
    cost = re.search(r"^Cost: (.+)$", text, flags=re.MULTILINE)
    assert cost and "memory" in cost[1] and "time" in cost[1], "the cost names memory and time"
    silent = [option.name for option in card_of(case.use).options if not option.meaning]
    assert not silent, f"`{case.use}`: options without a meaning: {silent}"


def check_off_is_absent(case: Case) -> None:
    """At the values of ``off`` the result is bit for bit that without the technique."""
    if not case.technique.off:
        return
    off = case.make(**case.technique.off)
    if not case.trains:
        assert _texts(case, [off]) == _texts(case, [])
        return
    absent = train(case.recipe([]), case.directory / "absent")
    switched_off = train(case.recipe([off]), case.directory / "off")
    found = differences(absent, switched_off)
    assert not found, f"`{case.use}` with {dict(case.technique.off)} changes: {found[:3]}"
    assert differences(absent, case.whole), f"`{case.use}` with its defaults changes nothing"


def check_resume(case: Case) -> None:
    """20 steps equal 10, a restart, and 10 more: weights, metrics and proof, bit for bit."""
    if not case.trains:
        return
    again = train_in_two_parts(case.recipe(), case.directory / "parts", STEPS // 2 + 1)
    found = differences(case.whole, again)
    assert not found, f"`{case.use}` continues differently: {found[:3]}"
    assert case.whole.techniques[0].effect() == again.techniques[0].effect(), "the proof does not survive a restart"
    fresh = case.whole.techniques[0].fresh()
    assert fresh.state() == case.make().state(), "`fresh()` remembers the run"


def check_accumulation(case: Case) -> None:
    """One batch, two micro-batches, or every sample packed alone: the same gradients to 1e-6.

    Not asked of dropout: its masks are drawn for a micro-batch, here as everywhere.
    """
    declared = case.make().declare()
    if not case.trains or "dropout" in declared.gives or "dropout_in_model" in declared.needs:
        return
    recipe = case.recipe(train={**TRAINING, "steps": 3, "batch_tokens": 512, "micro_tokens": 512})
    with open_run(recipe, case.directory / "micro") as folder:
        _, engine = start_engine(recipe, folder)
        engine.train()
        indices = list(range(min(6, len(engine.feed.encoded))))
        together = gradients(engine, indices, 4096)
        for micro_tokens in (256, 8):
            apart = relative_difference(together, gradients(engine, indices, micro_tokens))
            assert apart <= 1e-6, f"`{case.use}`: micro-batches of {micro_tokens} tokens change the gradient by {apart:.2g}"


def check_effect(case: Case) -> None:
    """Its proof of effect holds after a short training (or prompting), and does not hold before anything happened."""
    assert not case.make().effect().passed, "the proof holds before anything was done"
    technique = case.whole.techniques[0] if case.trains else _prompted(case)
    effect = technique.effect()
    assert isinstance(effect, Effect) and effect.technique == case.use and effect.claim
    assert effect.passed, f"`{case.use}` did not prove itself: {effect}"


def with_tiny_models(technique: Technique, directory: Path) -> Technique:
    """The technique with every model that its options name (a teacher) replaced by a tiny one."""
    folder = directory / "other-model"

    def replaced(value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("use") in ("hf", "gguf", "package", "stage"):
            if not (folder / "config.json").exists():
                tiny_causal(folder, seed=1)
            return {"use": "hf", "id": str(folder)}
        if isinstance(value, Mapping):
            return {key: replaced(each) for key, each in value.items()}
        return [replaced(each) for each in value] if isinstance(value, list) else value

    return type(technique).model_validate(replaced(technique.model_dump()))


def check_recipe(case: Case) -> None:
    """``<use>.yaml`` shows it, is valid, and runs to the end at toy scale."""
    assert case.recipes is not None and (case.recipes / f"{case.use}.yaml").is_file(), f"recipes/{case.use}.yaml is missing"
    shown = load_recipe(case.recipes / f"{case.use}.yaml")
    assert case.use in [technique.use for technique in shown.techniques]
    techniques = [with_tiny_models(technique, case.directory) for technique in shown.techniques]
    toy = recipe_for(case.directory, techniques, train=TRAINING, output_dir=str(case.directory / "recipe"))
    report = run(toy, Path())
    assert report.status == "finished" and {effect.technique for effect in report.effects} >= {case.use}


def check_declared(case: Case) -> None:
    """Clashes with itself or a bare recipe are explained in words; a technique is never refused where its needs are met."""
    words = case.make().declare()
    for why, fix in words.conflicts.values():
        assert why and fix, "a conflict says why, and what to do instead"
    assert not clashes_of(case.recipe()), clashes_of(case.recipe())


CHECKS: dict[str, Callable[[Case], None]] = {
    "defaults": check_defaults,
    "unknown_keys": check_unknown_keys,
    "documented": check_documented,
    "declared": check_declared,
    "off_is_absent": check_off_is_absent,
    "resume": check_resume,
    "accumulation": check_accumulation,
    "effect": check_effect,
    "recipe": check_recipe,
}


def check_technique(use: str, directory: Path, recipes: Path | None = None) -> None:
    """Run every check over the registered technique ``use``. Raises AssertionError with what does not hold.

    ``directory`` is scratch space; ``recipes`` is the folder with ``<use>.yaml`` (None: the recipe is not checked).
    """
    case = Case.named(use, directory, recipes)
    for name, check in CHECKS.items():
        if name != "recipe" or recipes is not None:
            check(case)


def _prompted(case: Case) -> Technique:
    """The technique after it prepared the prompts of the test part."""
    technique = case.make()
    _texts(case, [technique])
    return technique


def _texts(case: Case, techniques: list[Technique]) -> list[Any]:
    """The test samples as these techniques leave them."""
    plain: Corpus = assemble(case.recipe([]), Path(), Parallel(torch.device("cpu"))).plain["test"]
    return list(apply_samples(plain, techniques))
