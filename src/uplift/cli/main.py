"""The command line. Commands are loaded when called, so that ``uplift --help`` is quick and imports no torch."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from cyclopts import App, CycloptsError

import uplift
from uplift.core.errors import UpliftError, UsageError
from uplift.core.interruption import Interrupted
from uplift.core.wording import nearest

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("uplift.cli.init:init_command", "Look at a data file and this machine, and write a recipe and a comparison."),
    "doctor": ("uplift.cli.doctor:doctor_command", "Check versions, speed, memory and disk of this machine."),
    "techniques": ("uplift.cli.techniques:techniques_command", "List the techniques, or show one in full."),
    "data": ("uplift.cli.data:data", "Work on data: look at it, clean it, make tokenizers from it."),
    "explain": ("uplift.cli.explain:explain_command", "Show what a recipe will do, before anything runs."),
    "plan": ("uplift.cli.plan:plan_command", "Predict memory, time and disk of a recipe."),
    "run": ("uplift.cli.run:run_command", "Carry out a recipe and report what it gained."),
    "distill": ("uplift.cli.distill:distill_command", "Teach one model what another one knows."),
    "compare": ("uplift.cli.compare:compare_command", "Run the arms of a comparison under one budget and rank them."),
    "study": ("uplift.cli.study:study", "Studies of many runs: what pretraining is worth, which size a budget buys."),
    "eval": ("uplift.cli.evaluate:eval_command", "Measure any model on the test part of a recipe."),
    "generate": ("uplift.cli.generate:generate_command", "Continue prompts with a model."),
    "chat": ("uplift.cli.chat:chat_command", "Talk with a model."),
    "merge": ("uplift.cli.merge:merge_command", "Combine saved adapters, or add them to a model's weights."),
    "export": ("uplift.cli.export:export_command", "Write a model for another runtime, and compare the two."),
}
INTERNAL_ERROR = 70
TALKATIVE = ("torchao", "torch.utils._pytree")
"""Loggers that warn of kernels and classes nobody asked for, as soon as they are imported."""


def application() -> App:
    """The command line application with all commands, none of them loaded."""
    app = App(
        name="uplift",
        help="A better model from your data, with the evidence that it is better.",
        version=uplift.__version__,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for name, (home, text) in COMMANDS.items():
        app.command(home, name=name, help=text)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0 done; 2 usage or recipe; 65 data or model; 75 a resource is missing; 130, 143 stopped by a signal; 70 a fault of Uplift.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not os.environ.get("UPLIFT_DEBUG"):
        # What libraries have to say to their developers would stand between the user and the result.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # odd characters in data must not break a message
    try:
        return _dispatch(words)
    except UpliftError as error:
        return _fail(str(error), error.exit_code)
    except Interrupted as stop:
        return _fail(str(stop), 128 + stop.number)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except BrokenPipeError:
        # The reader (`head`, say) has left; what it wanted it has got. The stream is closed without another write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except MemoryError:
        return _fail(
            "memory ran out\n  fix: lower `train.micro_tokens` or `train.max_length`; `uplift plan` says what fits", 75
        )
    except Exception as error:
        if os.environ.get("UPLIFT_DEBUG"):
            traceback.print_exc()
        what = " ".join(f"internal error: {type(error).__name__}: {error}".split())[:500]
        return _fail(f"{what}\n  fix: run again with UPLIFT_DEBUG=1 for the full trace, and report it", INTERNAL_ERROR)


def _dispatch(words: list[str]) -> int:
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise UsageError(f"there is no command `{words[0]}`", fix=nearest(words[0], COMMANDS))
    try:
        result = application()(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise UsageError(str(error), fix=f"see `uplift {words[0] if words else ''} --help`".replace("  ", " ")) from error
    return result if isinstance(result, int) else 0


def _fail(text: str, code: int) -> int:
    sys.stderr.write(text + "\n")
    return code
