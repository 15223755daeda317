"""``uplift techniques [NAME]``."""

from __future__ import annotations

from rich.table import Table

from uplift.cli import printing
from uplift.verbs.techniques import SEAMS, Card, card_dict, technique, techniques


def techniques_command(name: str | None = None, /, *, theme: str | None = None, json: bool = False) -> None:
    """List the techniques, or show one in full.

    Parameters
    ----------
    name: str
        A technique, as in `use: lora`.
    theme: str
        Only the techniques of this theme.
    json: bool
        Print JSON.
    """
    if name is not None:
        card = technique(name)
        printing.print_json(card_dict(card)) if json else _show(card)
        return
    cards = techniques(theme)
    if json:
        printing.print_json([card_dict(card) for card in cards])
        return
    table = Table("theme", "use", "what it does", "time of a step", box=None, header_style="bold")
    shown = ""
    for card in cards:
        table.add_row(card.theme if card.theme != shown else "", card.use, card.summary, f"{card.cost:.2g}x")
        shown = card.theme
    printing.output().print(table)


def _show(card: Card) -> None:
    console = printing.output()
    console.print(f"[bold]{card.use}[/bold]  ({card.theme})\n")
    console.print(card.text, markup=False)
    if card.options:
        table = Table(
            "option", "takes", "default", "meaning", title="Options", title_justify="left", box=None, header_style="bold"
        )
        for option in card.options:
            table.add_row(option.name, option.allowed, "required" if option.default is None else option.default, option.meaning)
        console.print()
        console.print(table)
    console.print("\n[bold]Seams[/bold]")
    for seam in card.seams:
        console.print(f"  {seam}: {SEAMS[seam]}", markup=False)
    words = card.capabilities
    for kind in ("needs", "gives", "mutates", "exclusive"):
        if getattr(words, kind):
            console.print(f"[bold]{kind.capitalize()}[/bold] {', '.join(sorted(getattr(words, kind)))}")
    for word, (why, fix) in words.conflicts.items():
        console.print(f"[bold]Not with[/bold] {word}: {why}; {fix}")
    console.print(f"[bold]Time of a step[/bold] {card.cost:.2g}x, {words.passes} extra forwards")
    if card.recipe:
        console.print(f"[bold]Recipe[/bold] {card.recipe}")
    for evidence in card.evidence:
        console.print(f"\n[bold]Measured[/bold] {evidence.question}", highlight=False)
        console.print(f"  {evidence.terms}", markup=False, highlight=False)
        for finding in evidence.findings:
            console.print(f"  {finding}", markup=False, highlight=False)
        console.print(f"  again: {evidence.command}", markup=False, highlight=False)
