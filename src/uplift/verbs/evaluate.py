"""``uplift eval``: measure any model on the test part of a recipe."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console

from uplift.core.recipe import Recipe
from uplift.core.report import Evaluation
from uplift.evaluate.tasks import evaluate_model, to_evaluation
from uplift.learn.assemble import assemble
from uplift.learn.parallel import processes
from uplift.model.opening import resolve_model
from uplift.study.machine import choose_threads
from uplift.verbs.display import Display
from uplift.verbs.robustness import Attacks
from uplift.verbs.run import chosen_test


def evaluate(model: str, recipe: Recipe, base_dir: Path, *, console: Console | None = None) -> Evaluation:
    """Metrics with 95 % intervals of ``model`` (run folder, model folder, GGUF file, package or hub id) on the test rows.

    Data, task and prompts (techniques that change samples) are the recipe's; nothing is trained or written. Raises ModelError,
    DataError, ResourceError.
    """
    display = Display(console)
    asked = recipe.model_copy(update={"model": resolve_model(model)})
    with processes(recipe.hardware) as parallel:
        torch.set_num_threads(choose_threads() if recipe.hardware.threads == "auto" else recipe.hardware.threads)
        assembly = assemble(asked, base_dir, parallel)
        corpus = assembly.corpora["test"]
        samples = [corpus[index] for index in chosen_test(assembly)]
        display.stage(f"measuring {model} on {len(samples)} test rows")
        measured = evaluate_model(
            assembly.model,
            samples,
            recipe.task,
            assembly.encoder,
            bootstrap=recipe.evaluate.bootstrap,
            batch_tokens=recipe.train.batch_tokens,
        )
        robustness = Attacks(assembly, base_dir, None, display).after()
        for note in (*assembly.warnings, *measured.notes):
            display.stage(note)
        return to_evaluation(measured).model_copy(update={"robustness": robustness})
