"""``uplift chat MODEL``."""

from __future__ import annotations

import sys

from cyclopts.types import NonNegativeFloat, NonNegativeInt, PositiveInt

from uplift.cli import printing
from uplift.cli.generate import Share
from uplift.verbs.generate import chat


def chat_command(
    model: str,
    /,
    *,
    system: str | None = None,
    max_tokens: PositiveInt = 512,
    temperature: NonNegativeFloat = 0.7,
    top_p: Share = 0.95,
    seed: NonNegativeInt = 0,
) -> None:
    """Talk with a model. `/new` forgets the talk so far; `/exit`, an empty line or the end of input ends it.

    Parameters
    ----------
    model: str
        A run's folder, a model folder, a GGUF file, a packaged model or a hub id.
    system: str
        System message of the chat template.
    max_tokens: int
        Most new tokens per answer.
    temperature: float
        0: always the likeliest token.
    top_p: float
        Sample from the likeliest tokens that together hold this probability.
    seed: int
        Makes sampling repeatable.
    """
    chat(
        model,
        read=_read,
        write=_write,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )


def _read() -> str | None:
    """The next question, or None at the end of the talk."""
    try:
        return printing.progress().input("[bold]you[/bold]> ") or None
    except EOFError:
        return None


def _write(piece: str) -> None:
    """Shows a piece of an answer as soon as it is there."""
    sys.stdout.write(piece)
    sys.stdout.flush()
