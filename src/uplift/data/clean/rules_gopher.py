"""The quality and repetition rules of MassiveText (Rae et al. 2021, "Scaling language models", tables A1 and section A1.1).

Tokens are words and punctuation marks, as in the pipeline that made FineWeb, whose thresholds these are too. They are made for
web pages in English: source code, lists, verse and other languages fall under several of them.
"""

from __future__ import annotations

from collections.abc import Callable

from uplift.data.clean.measures import Measures
from uplift.data.clean.rule import Rule, Unit, by_name

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
BULLETS = ("•", "-", "*", "‣", "◦", "▪")
ELLIPSES = ("...", "…")
TOP = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def _mean_word_length(text: Measures) -> float:
    return text.word_characters / max(1, text.words)


def _per_token(*marks: str) -> Callable[[Measures], float]:
    return lambda text: sum(map(text.text.count, marks)) / max(1, len(text.tokens))


def _bullets(text: Measures) -> float:
    return sum(line.lstrip().startswith(BULLETS) for line in text.lines) / max(1, len(text.lines))


def _ellipsis_lines(text: Measures) -> float:
    return sum(line.rstrip().endswith(ELLIPSES) for line in text.lines) / max(1, len(text.lines))


def _stop_words(text: Measures) -> float:
    known = text.vocabulary
    return sum(any(form in known for form in (word, word.capitalize(), word.upper())) for word in STOP_WORDS)


def _top(size: int) -> Callable[[Measures], float]:
    return lambda text: text.top_n_gram(size)


def _repeated(size: int) -> Callable[[Measures], float]:
    return lambda text: text.repeated_n_grams(size)


def _rule(
    name: str, meaning: str, default: float, unit: Unit, measure: Callable[[Measures], float], least: bool = False
) -> Rule:
    return Rule(f"gopher_{name}", "gopher", meaning, default, unit, "least" if least else "most", measure)


GOPHER = by_name(
    _rule("words_least", "it has few words", 50, "words", lambda text: text.words, least=True),
    _rule("words_most", "it has very many words", 100_000, "words", lambda text: text.words),
    _rule("word_length_least", "its words are short, on average", 3, "characters", _mean_word_length, least=True),
    _rule("word_length_most", "its words are long, on average", 10, "characters", _mean_word_length),
    _rule("hashes", "it has many hash signs for its tokens", 0.1, "per token", _per_token("#")),
    _rule("ellipses", "it has many ellipses for its tokens", 0.1, "per token", _per_token(*ELLIPSES)),
    _rule("bullets", "most of its lines begin with a bullet", 0.9, "share", _bullets),
    _rule("ellipsis_lines", "many of its lines end with an ellipsis", 0.3, "share", _ellipsis_lines),
    _rule(
        "alphabetic",
        "many of its tokens hold no letter",
        0.8,
        "share",
        lambda text: text.alphabetic / max(1, len(text.tokens)),
        least=True,
    ),
    _rule("stop_words", f"it has few of the words {' '.join(STOP_WORDS)}", 2, "words", _stop_words, least=True),
    _rule("repeated_paragraphs", "many paragraphs stood there before", 0.3, "share", lambda text: text.repeated_paragraphs[0]),
    _rule(
        "repeated_paragraph_characters",
        "many of its characters are in paragraphs that stood there before",
        0.2,
        "share",
        lambda text: text.repeated_paragraphs[1],
    ),
    _rule("repeated_lines", "many of its lines stood there before", 0.3, "share", lambda text: text.repeated_lines[0]),
    _rule(
        "repeated_line_characters",
        "many of its characters are in lines that stood there before",
        0.2,
        "share",
        lambda text: text.repeated_lines[1],
    ),
    *(
        _rule(f"top_{size}_gram", f"much of it is the most frequent run of {size} tokens", limit, "share", _top(size))
        for size, limit in TOP.items()
    ),
    *(
        _rule(
            f"repeated_{size}_grams",
            f"much of it is runs of {size} tokens that stood there before",
            limit,
            "share",
            _repeated(size),
        )
        for size, limit in REPEATED.items()
    ),
)
