"""``uplift distill STUDENT TEACHER DATA``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat, NonNegativeInt, PositiveInt

from uplift.cli import printing
from uplift.cli.results import show_report
from uplift.core.errors import UsageError
from uplift.core.recipe_file import load_recipe
from uplift.model.endpoint import Endpoint
from uplift.verbs.distill import write_answers, write_recipe
from uplift.verbs.run import run


def distill_command(
    student: str,
    teacher: str,
    data: Path,
    /,
    *overrides: str,
    labels: str | None = None,
    answers: Path | None = None,
    served: Annotated[str | None, Parameter(name="--model")] = None,
    max_tokens: PositiveInt = 256,
    temperature: NonNegativeFloat = 0.0,
    seed: NonNegativeInt = 0,
    directory: Path = Path(),
    force: bool = False,
    json: bool = False,
) -> int:
    """Write a recipe in which one model learns from another, and carry it out.

    Parameters
    ----------
    student: str
        The model that learns: a model folder, a packaged model or a hub id.
    teacher: str
        The model it learns from, or the address of an OpenAI-compatible server (`http://host:port/v1`).
    data: Path
        What they work on: JSONL, CSV, Parquet, text, or a saved data set's folder.
    overrides: str
        Changes of the recipe, for example `train.epochs=5`.
    labels: str
        Words for the label values, such as `0=negative,1=positive`, for a teacher that is asked in words.
    answers: Path
        Have the teacher answer all questions first, into this file, and learn its answers (a server always does).
    served: str
        Which of the server's models.
    max_tokens: int
        Most tokens of an answer.
    temperature: float
        Of the answers; 0: always the likeliest token.
    seed: int
        Makes sampled answers repeatable.
    directory: Path
        Where `distill.yaml` goes.
    force: bool
        Overwrite it if it is there.
    json: bool
        Print the report as JSON.
    """
    console, remote = printing.progress(), teacher.startswith(("http://", "https://"))
    if remote and (answers is None or served is None):
        raise UsageError("a server is asked for answers", fix="give `--answers FILE.jsonl` and `--model NAME`")
    if answers is not None:
        asked = Endpoint(teacher, served or "") if remote else teacher
        found = write_answers(asked, data, answers, max_tokens=max_tokens, temperature=temperature, seed=seed)
        console.print(f"{found.answers} of {found.questions} questions answered, {found.cut} cut: {answers}", markup=False)
        data = answers
    spoken = answers is not None
    recipe = write_recipe(student, teacher, data, directory, labels=_words(labels), spoken=spoken, force=force)
    report = run(load_recipe(recipe, overrides), recipe.parent, console=console)
    printing.print_json(report) if json else show_report(report)
    return 0 if report.status == "finished" and report.proven else 1


def _words(text: str | None) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if any(not value.strip() or not word.strip() for value, _, word in pairs):
        raise UsageError(f"`--labels {text}` does not name words", fix="write `--labels 0=negative,1=positive`")
    return {value.strip(): word.strip() for value, _, word in pairs}
