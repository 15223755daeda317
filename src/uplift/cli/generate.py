"""``uplift generate MODEL PROMPT...``."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat, NonNegativeInt, PositiveInt
from cyclopts.validators import Number

from uplift.cli import printing
from uplift.core.errors import UsageError
from uplift.verbs.generate import generate

Share = Annotated[float, Parameter(validator=Number(gt=0, lte=1))]


def generate_command(
    model: str,
    /,
    *prompts: str,
    system: str | None = None,
    max_tokens: PositiveInt = 256,
    temperature: NonNegativeFloat = 0.0,
    top_p: Share = 1.0,
    seed: NonNegativeInt = 0,
    raw: bool = False,
    json: bool = False,
) -> None:
    """Continue prompts with a model.

    Parameters
    ----------
    model: str
        A run's folder, a model folder, a GGUF file, a packaged model or a hub id.
    prompts: str
        The prompts; without any, each line of standard input is one.
    system: str
        System message of the chat template.
    max_tokens: int
        Most new tokens per prompt.
    temperature: float
        0: always the likeliest token.
    top_p: float
        Sample from the likeliest tokens that together hold this probability.
    seed: int
        Makes sampling repeatable.
    raw: bool
        Continue the text as it is, without the model's chat template.
    json: bool
        Print JSON.
    """
    asked = list(prompts) or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not asked:
        raise UsageError("there is no prompt", fix="give one as an argument, or one per line on standard input")
    streams = len(asked) == 1 and not json
    answers = generate(
        model,
        asked,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        raw=raw,
        on_text=_write if streams else None,
    )
    if json:
        printing.print_json([{"prompt": prompt, "answer": answer} for prompt, answer in zip(asked, answers, strict=True)])
        return
    if streams:
        _write(0, "\n")
        return
    for answer in answers:
        printing.output().print(answer, markup=False)


def _write(index: int, piece: str) -> None:
    """Shows a piece of the answer as soon as it is there."""
    sys.stdout.write(piece)
    sys.stdout.flush()
