"""The rules that FineWeb adds to those of C4 and Gopher (Penedo et al. 2024, "The FineWeb datasets", section 3.6)."""

from __future__ import annotations

from uplift.data.clean.measures import Measures, repeated_parts
from uplift.data.clean.rule import Rule, by_name

SHORT_LINE = 30
TERMINAL = tuple(".?!…。！？．｡؟۔।॥։።፧៕៖၊။᙮᠃᠉⁇⁈⁉‼")
"""Marks that end a sentence in some script."""


def _line_punctuation(text: Measures) -> float:
    return sum(line.rstrip().endswith(TERMINAL) for line in text.lines) / max(1, len(text.lines))


def _short_lines(text: Measures) -> float:
    return sum(len(line) <= SHORT_LINE for line in text.lines) / max(1, len(text.lines))


def _repeated_characters(text: Measures) -> float:
    return repeated_parts(text.lines)[1] / max(1, len(text.text) - text.text.count("\n"))


def _line_breaks(text: Measures) -> float:
    return text.text.count("\n") / max(1, len(text.tokens))


FINEWEB = by_name(
    Rule(
        "fineweb_line_punctuation",
        "fineweb",
        "few of its lines end with a mark that ends a sentence",
        0.12,
        "share",
        "least",
        _line_punctuation,
    ),
    Rule(
        "fineweb_short_lines",
        "fineweb",
        f"many of its lines have at most {SHORT_LINE} characters",
        0.67,
        "share",
        measure=_short_lines,
    ),
    Rule(
        "fineweb_repeated_characters",
        "fineweb",
        "many of its characters are in lines that stood there before",
        0.01,
        "share",
        measure=_repeated_characters,
    ),
    Rule("fineweb_line_breaks", "fineweb", "it has many line breaks for its tokens", 0.3, "per token", measure=_line_breaks),
)
