"""Rows unlike the others: by length, by characters, by repetition, by their words."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from uplift.data.explore.findings import Outliers
from uplift.data.explore.measures import robust_scores, shown
from uplift.data.explore.sample import TextRow
from uplift.data.explore.words import words_of

EXTREME = 5.0
"""Robust standard deviations from the median."""
SHOWN_ROWS = 5
LOOKED_AT = 2000
"""Characters at the start of a text that are looked at."""
LEAST_ROWS = 20
SYMBOL, DIGIT, BEYOND_ASCII, LETTERS = map(re.compile, (r"[^\w\s]|_", r"\d", r"[^\x00-\x7f]", r"[^\W\d_]+"))


@dataclass(frozen=True)
class Measure:
    """One respect in which a row can be odd. ``least``: below this value nothing is odd, whatever the others are.

    ``logarithm``: distances are taken between logarithms; the value is a share where ``form`` says so.
    """

    name: str
    meaning: str
    value: Callable[[TextRow], float]
    least: float
    form: str
    logarithm: bool = False


def outliers_of(rows: Sequence[TextRow]) -> list[Outliers]:
    """Rows far from the usual in each respect, the farthest first; respects in which none is odd are left out."""
    if len(rows) < LEAST_ROWS:
        return []
    found = [_odd(measure, rows) for measure in (*MEASURES, _unlikely(rows))]
    return [each for each in found if each is not None]


def _odd(measure: Measure, rows: Sequence[TextRow]) -> Outliers | None:
    values = np.array([measure.value(row) for row in rows])
    scores = robust_scores(np.log(np.maximum(values, 1.0)) if measure.logarithm else values)
    odd = np.flatnonzero((scores >= EXTREME) & (values >= measure.least)).tolist()
    if not odd:
        return None
    ranked = sorted(odd, key=lambda index: (-round(float(scores[index]), 6), rows[index].number))
    return Outliers(
        name=measure.name,
        meaning=measure.meaning,
        share=measure.form.endswith("%"),
        usual=round(float(np.median(values)), 4),
        limit=round(float(values[odd].min()), 4),
        rows=len(odd),
        shown=[shown(rows[index], format(values[index], measure.form)) for index in ranked[:SHOWN_ROWS]],
    )


def _symbols(row: TextRow) -> float:
    text = row.text[:LOOKED_AT]
    return len(SYMBOL.findall(text)) / max(1, len(text))


def _digits(row: TextRow) -> float:
    text = row.text[:LOOKED_AT]
    return len(DIGIT.findall(text)) / max(1, len(text))


def _capitals(row: TextRow) -> float:
    letters = "".join(LETTERS.findall(row.text[:LOOKED_AT]))
    small = letters.lower()
    return sum(map(str.__ne__, letters, small)) / len(letters) if len(letters) >= 10 and len(small) == len(letters) else 0.0


def _foreign(row: TextRow) -> float:
    text = row.text[:LOOKED_AT]
    return len(BEYOND_ASCII.findall(text)) / max(1, len(text))


def _repetition(row: TextRow) -> float:
    """Times that deflate makes a text shorter; a text below 200 characters is not judged."""
    data = row.text[:LOOKED_AT].encode("utf-8", "surrogatepass")
    return len(data) / len(zlib.compress(data, 6)) if len(data) >= 200 else 1.0


def _longest_word(row: TextRow) -> float:
    return float(max(map(len, row.text[:LOOKED_AT].split()), default=0))


def _unlikely(rows: Sequence[TextRow]) -> Measure:
    """The measure by the words of all rows: mean surprise of a word, in bits."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(words_of(row.text[:LOOKED_AT]))
    total = sum(counts.values()) + len(counts)

    def surprise(row: TextRow) -> float:
        # A text's own words do not make it usual.
        words = Counter(words_of(row.text[:LOOKED_AT]))
        bits = sum(count * -math.log2((counts[word] - count + 1) / total) for word, count in words.items())
        return bits / sum(words.values()) if words else 0.0

    meaning = "words that hardly occur in other rows, in bits per word: another language, another topic, gibberish"
    return Measure("unusual words", meaning, surprise, 0.0, ".1f")


MEASURES = (
    Measure("length", "characters, far more than usual: joined rows, whole documents",
            lambda row: float(len(row.text)), 200.0, ",.0f", logarithm=True),
    Measure("symbols", "share of characters that are neither letters, digits nor spaces: markup, tables, noise",
            _symbols, 0.15, ".0%"),
    Measure("digits", "share of characters that are digits: tables, logs, numbers", _digits, 0.15, ".0%"),
    Measure("capitals", "share of letters that are capitals: shouting, codes", _capitals, 0.4, ".0%"),
    Measure("non-ASCII characters", "share of characters outside ASCII: another script, broken encoding", _foreign, 0.1, ".0%"),
    Measure("repetition", "times that compression makes it shorter: repeated lines, templates", _repetition, 4.0, ".1f"),
    Measure("longest word", "characters between two spaces: encoded data, links, missing spaces", _longest_word, 40.0, ".0f"),
)  # fmt: skip
