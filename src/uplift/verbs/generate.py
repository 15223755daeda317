"""``uplift generate`` and ``uplift chat``: use a run's model, or any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from uplift.core.errors import UsageError
from uplift.core.values import Message
from uplift.learn.parallel import pick_device
from uplift.model.language_model import LanguageModel
from uplift.model.opening import open_model, resolve_model
from uplift.serve import generate as serve

EXIT_WORDS = ("/exit", "/quit")
FORGET_WORD = "/new"
STOPPED = " [stopped]"


def generate(
    model: str,
    prompts: Sequence[str],
    *,
    system: str | None = None,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    raw: bool = False,
    device: str = "auto",
    on_text: serve.OnText | None = None,
) -> list[str]:
    """Answers to ``prompts``, in their order.

    ``model``: a run's folder, a model folder, a GGUF file, a packaged model or a hub id. Prompts are user turns where the
    model has a chat template, else (or with ``raw``) texts to continue. Raises ModelError, ResourceError, UsageError.
    """
    opened = _open(model, device)
    chats = bool(opened.tokenizer.chat_template) and not raw
    if system is not None and not chats:
        raise UsageError("a system message needs a chat template", fix="leave `--system` out, or use a chat model")
    asked: list[serve.Prompt] = [_turns(system, prompt) if chats else prompt for prompt in prompts]
    answers = serve.generate(
        opened, asked, max_new_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop, on_text=on_text
    )
    return [answer.text for answer in answers]


def chat(
    model: str,
    *,
    read: Callable[[], str | None],
    write: Callable[[str], None],
    system: str | None = None,
    max_tokens: int = 512,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
    device: str = "auto",
) -> list[Message]:
    """Talk until ``read`` gives None or ``/exit``; answers are streamed to ``write``. Returns the turns.

    ``/new`` forgets the talk so far; an interrupt (Ctrl-C) ends the answer being written, not the talk. Models without a
    chat template get the turns as plain text.
    """
    opened = _open(model, device)
    start = [] if system is None else [Message("system", system)]
    turns = list(start)
    for number in range(10**9):
        line = read()
        if line is None or line.strip() in EXIT_WORDS:
            break
        if line.strip() == FORGET_WORD:
            turns = list(start)
            continue
        turns.append(Message("user", line))
        pieces: list[str] = []

        def tell(index: int, piece: str, pieces: list[str] = pieces) -> None:
            pieces.append(piece)
            write(piece)

        try:
            serve.generate(
                opened,
                [turns],
                max_new_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed + number,
                on_text=tell,
            )
        except KeyboardInterrupt:
            write(STOPPED)
        write("\n")
        turns.append(Message("assistant", "".join(pieces)))
    return turns


def _turns(system: str | None, prompt: str) -> list[Message]:
    before = [] if system is None else [Message("system", system)]
    return [*before, Message("user", prompt)]


def _open(text: str, device: str) -> LanguageModel:
    return open_model(resolve_model(text), head="language", base_dir=Path(), device=pick_device(device), seed=0)
