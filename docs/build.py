"""Writes `docs/techniques/`: one page per technique and an index, made from the docstrings and the schema."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from uplift.core.storage import write_atomically
from uplift.verbs.techniques import SEAMS, Card, techniques

TARGET = Path(__file__).parent / "techniques"


def page(card: Card) -> str:
    """The page of one technique."""
    text = re.sub(r"\n(When|When not|Paper|Cost):", r"\n\n**\1**:", card.text)
    lines = [f"# `{card.use}`", "", f"Theme: {card.theme}", "", text, ""]
    if card.options:
        lines += ["| option | takes | default | meaning |", "|---|---|---|---|"]
        for option in card.options:
            default = "required" if option.default is None else f"`{option.default}`"
            lines.append(f"| `{option.name}` | {cell(option.allowed)} | {cell(default)} | {cell(option.meaning)} |")
        lines.append("")
    lines += ["## Seams", "", *(f"* `{seam}`: {SEAMS[seam]}" for seam in card.seams), ""]
    words = card.capabilities
    lines += ["## Demands", ""]
    lines += [
        f"* {kind}: {', '.join(sorted(getattr(words, kind)))}" for kind in ("needs", "gives", "mutates") if getattr(words, kind)
    ]
    lines += [f"* not with {word}: {why}; {fix}" for word, (why, fix) in words.conflicts.items()]
    lines += [f"* time of a step: {card.cost:.2g} times that of a plain one", ""]
    if card.recipe:
        lines += [f"Recipe: `{card.recipe}`", ""]
    for evidence in card.evidence:
        lines += ["## Measured", "", evidence.question, "", f"* {evidence.terms}", *(f"* {f}" for f in evidence.findings)]
        lines += [f"* again: `{evidence.command}`", ""]
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text as it may stand in a table."""
    return text.replace("|", "\\|")


def main() -> int:
    """Writes all pages."""
    TARGET.mkdir(exist_ok=True)
    cards = techniques()
    for card in cards:
        write_atomically(TARGET / f"{card.use}.md", page(card))
    rows = [f"| {card.theme} | [`{card.use}`]({card.use}.md) | {cell(card.summary)} | {card.cost:.2g}x |" for card in cards]
    table = ["| theme | use | what it does | time of a step |", "|---|---|---|---|", *rows]
    write_atomically(TARGET / "README.md", "\n".join(["# Techniques", "", *table, ""]))
    print(f"{len(cards)} pages in {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
