"""``uplift data ...``: work on data and what is made from it before training. Commands are loaded when they are called."""

from __future__ import annotations

from cyclopts import App

COMMANDS: dict[str, tuple[str, str]] = {
    "clean": ("uplift.cli.clean:clean_command", "Repair, filter and deduplicate rows, with every removal accounted for."),
    "inspect": ("uplift.cli.inspect:inspect_command", "Look at a data set: one page, with what to do before training."),
    "rules": ("uplift.cli.clean:rules_command", "List the rules that `clean` can filter by, with meaning and threshold."),
    "tokenizer": ("uplift.cli.tokenizer:tokenizer_command", "Train a tokenizer, measure tokenizers, or extend a model's."),
}

data = App(name="data", help="Work on data: look at it, clean it, make tokenizers from it.")
for _name, (_home, _help) in COMMANDS.items():
    data.command(_home, name=_name, help=_help)
