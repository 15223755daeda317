"""``uplift data tokenizer``: train a tokenizer, measure it beside others, or teach a pretrained one the words of a domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tokenizers import Tokenizer

from uplift.core.errors import UsageError
from uplift.core.model_section import BlankModel, TokenizerKind, TrainTokenizer
from uplift.core.recipe import Split, TextTask
from uplift.core.storage import commit_directory
from uplift.core.values import Sample
from uplift.data.formats import to_samples
from uplift.data.merges import NewToken, choose_tokens, extended
from uplift.data.packages import named_source
from uplift.data.sources import read_source
from uplift.data.splitting import split
from uplift.data.tokenizer import TokenizerFit, measure_tokenizer, texts_of, train_tokenizer
from uplift.learn.parallel import pick_device
from uplift.model.blank import tokenizer_folder
from uplift.model.opening import load_tokenizer, open_model, resolve_model
from uplift.model.quiet import quiet
from uplift.model.vocabulary import add_rows

HELD_OUT = 0.1
"""Share of the texts that a tokenizer is measured on and not made from."""


@dataclass(frozen=True)
class TokenizerReport:
    """What was made (``path``), from how many texts, and how it and the others cut ``measured`` held-out texts."""

    path: Path | None
    trained: int
    measured: int
    fits: tuple[TokenizerFit, ...]
    added: tuple[NewToken, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        added = [{"token": token.text, "gain": token.gain, "pieces": list(token.pieces)} for token in self.added]
        fits = [fit.to_json() for fit in self.fits]
        path = None if self.path is None else str(self.path)
        return {"path": path, "trained": self.trained, "measured": self.measured, "tokenizers": fits, "added": added}


def train(
    sources: Sequence[str],
    output: Path,
    *,
    kind: TokenizerKind = "bpe",
    vocabulary: int = 8192,
    column: str = "text",
    beside: Sequence[str] = (),
) -> TokenizerReport:
    """A new tokenizer in ``output``, measured beside others on texts that were kept out.

    ``sources``: files, folders or packaged data sets. Raises UsageError, DataError, ResourceError.
    """
    _require_empty(output)
    asked = _asked(kind, vocabulary)
    made_from, kept_out = _texts(sources, column)
    tokenizer = train_tokenizer(asked.kind, asked.vocabulary, made_from)
    commit_directory(output, lambda folder: _keep(tokenizer, folder), asked.model_dump(mode="json"))
    fits = [measure_tokenizer(output.name, tokenizer, kept_out), *_others(beside, kept_out)]
    return TokenizerReport(output, len(made_from), len(kept_out), tuple(fits))


def evaluate(sources: Sequence[str], tokenizers: Sequence[str], *, column: str = "text") -> TokenizerReport:
    """How each of ``tokenizers`` (folders, packaged models, hub ids) cuts the texts; nothing is written."""
    made_from, kept_out = _texts(sources, column)
    texts = [*made_from, *kept_out]
    return TokenizerReport(None, 0, len(texts), tuple(_others(tokenizers, texts)))


def extend(
    sources: Sequence[str],
    model: str,
    output: Path,
    *,
    tokens: int = 500,
    column: str = "text",
    beside: Sequence[str] = (),
    device: str = "auto",
) -> TokenizerReport:
    """``model`` with at most ``tokens`` more tokens, those that save most on the texts, as a model folder in ``output``.

    The new rows are the means of the rows that the tokens replace; all old tokens keep theirs. Raises UsageError, DataError,
    ModelError, ResourceError.
    """
    _require_empty(output)
    made_from, kept_out = _texts(sources, column)
    opened = open_model(resolve_model(model), head="language", base_dir=Path(), device=pick_device(device), seed=0)
    before = measure_tokenizer(model, opened.tokenizer, kept_out)
    fast: Any = opened.tokenizer
    added = choose_tokens(Tokenizer.from_str(fast.backend_tokenizer.to_str()), made_from, tokens)
    if not added:
        fix = "give more text of the domain"
        raise UsageError("the texts hold no word that the tokenizer does not know", where=", ".join(sources), fix=fix)
    fast._tokenizer, numbers = extended(fast.backend_tokenizer, added)
    add_rows(opened.pretrained, {number: token.pieces for number, token in zip(numbers, added, strict=True)})
    commit_directory(output, opened.save, {"extends": model, "tokens": len(added)})
    after = measure_tokenizer(output.name, opened.tokenizer, kept_out)
    return TokenizerReport(
        output, len(made_from), len(kept_out), (after, before, *_others(beside, kept_out)), added=tuple(added)
    )


def _asked(kind: TokenizerKind, vocabulary: int) -> TrainTokenizer:
    try:
        return TrainTokenizer(kind=kind, vocabulary=vocabulary)
    except ValidationError as error:
        fix = "for example `--vocabulary 8192`"
        raise UsageError(error.errors()[0]["msg"], where="--vocabulary", fix=fix) from error


def _keep(tokenizer: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)


def _require_empty(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists", where="--output", fix="give the name of a new folder")


def _texts(sources: Sequence[str], column: str) -> tuple[list[str], list[str]]:
    """(texts to work from, texts kept out), cut by content as a recipe's parts are."""
    samples: list[Sample] = []
    for name in sources:
        samples += to_samples(read_source(named_source(name), Path()).rows, TextTask(text=column), "language").samples
    parts = split(samples, Split(test=HELD_OUT))
    made_from, kept_out = list(texts_of(parts["train"])), list(texts_of(parts["test"]))
    return made_from, kept_out or made_from


def _others(names: Sequence[str], texts: Sequence[str]) -> list[TokenizerFit]:
    """Measures of other tokenizers, named as a recipe would name them."""
    fits = []
    for name in names:
        with quiet():
            spec = BlankModel.model_validate({"parameters": 10**6, "tokenizer": name})
            fits.append(measure_tokenizer(name, load_tokenizer(tokenizer_folder(spec, (), Path()), []), texts))
    return fits
