"""Keep texts in some languages. The identifier is py3langid, whose model of 97 languages lies in its package.

Its probabilities are normalised by the length of the text, but a few letters are still little evidence: of texts with fewer
than ``SHORT`` letters only those go that are surely in another language. A text without letters (numbers, emoji) has no
language and stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache

from uplift.core.errors import RecipeError
from uplift.core.prepare_section import Language
from uplift.data.clean.step import CleaningStep, Verdict, dropped
from uplift.data.optional import optional
from uplift.data.rows import nearest

SHORT = 50
"""Letters below which a text is short."""
WINDOW = 500
"""Characters of a long text that are looked at, at its beginning, in its middle and at its end."""
NO_LETTER = re.compile(r"[\W\d_]+")
UNDETERMINED = "und"


@cache
def identifier() -> Callable[[str], Mapping[str, float]]:
    """Language -> probability, for a text; the model is loaded once in a process."""
    with optional("telling languages apart"):
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return lambda text: dict(model.rank(text))


def detect(text: str) -> tuple[str, float]:
    """The most probable language (ISO 639-1) and its probability; ``und``, 0 for a text without letters."""
    probabilities = identifier()(_shown(text)) if _letters(text, 1) else {}
    return max(probabilities.items(), key=lambda item: item[1], default=(UNDETERMINED, 0.0))


class LanguageFilter(CleaningStep):
    """Keeps a text if the languages to keep have, together, at least the probability asked for.

    A short text goes only if one other language has it.
    """

    def __init__(self, settings: Language) -> None:
        self._keep, self._least = frozenset(settings.keep), settings.least
        known = identifier()("")
        for code in settings.keep:
            if code not in known:
                raise RecipeError(
                    f"the language `{code}` is not known{nearest(code, known)}",
                    where="data.prepare.keep",
                    why="these can be told apart: " + " ".join(sorted(known)),
                    fix="name languages by their ISO 639-1 codes",
                )

    def judge(self, row: int, text: str) -> Verdict:
        """Whether it is in one of the languages."""
        letters = _letters(text, SHORT)
        if not letters:
            return Verdict(text)
        probabilities = identifier()(_shown(text))
        code, best = max(probabilities.items(), key=lambda item: item[1])
        wanted = sum(probabilities[each] for each in self._keep)
        if wanted >= self._least or letters < SHORT and (code in self._keep or best < self._least):
            return Verdict(text)
        return dropped("language", f"{code} {best:.2f}; {' '.join(sorted(self._keep))} {wanted:.2f}")


def _letters(text: str, most: int) -> int:
    """How many letters the text has; counted up to about ``most``."""
    count = 0
    for start in range(0, len(text), WINDOW):
        count += len(NO_LETTER.sub("", text[start : start + WINDOW]))
        if count >= most:
            break
    return count


def _shown(text: str) -> str:
    """What is looked at of a text."""
    if len(text) <= 3 * WINDOW:
        return text
    middle = (len(text) - WINDOW) // 2
    return " ".join([text[:WINDOW], text[middle : middle + WINDOW], text[-WINDOW:]])
