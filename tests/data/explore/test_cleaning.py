"""What steps would do, and languages: counted over all rows they looked at."""

from __future__ import annotations

import re

from uplift.data.clean.step import CleaningStep, Edit, Verdict, dropped, edited
from uplift.data.explore.cleaning import cleaning_of, languages_of


class Shorten(CleaningStep):
    """Drops short texts, replaces numbers."""

    def judge(self, row: int, text: str) -> Verdict:
        if len(text) < 5:
            return dropped("short", f"{len(text)} characters")
        return edited(text, [Edit(found.start(), found.end(), "[n]", "number") for found in re.finditer(r"\d+", text)])


class Silent(CleaningStep):
    """Changes without saying where."""

    def judge(self, row: int, text: str) -> Verdict:
        return Verdict(text.replace("colour", "color"), {"spelling": 1} if "colour" in text else {})


def test_rules_are_counted_by_rows_and_by_times(take) -> None:
    rows = take([{"text": each} for each in ("1 and 2 and 3", "none here", "abc", "4 only", "the colour red")]).sample.first()
    found = {(rule.step, rule.rule): rule for rule in cleaning_of(rows, {"a": Shorten(), "b": Silent()}).rules}
    assert {name: (rule.rows, rule.times, rule.drops) for name, rule in found.items()} == {
        ("a", "number"): (2, 4, False),
        ("a", "short"): (1, 1, True),
        ("b", "spelling"): (1, 1, False),
    }
    assert found["a", "number"].examples[0].text == "[n] and 2 and 3"
    assert found["a", "short"].examples[0].note == "3 characters"
    assert found["b", "spelling"].examples[0].text == "the colour red → the color red"


def test_languages_are_ranked_and_unsure_rows_are_no_language(take) -> None:
    texts = ["en one", "en two", "en three", "de eins", "?? what"]
    rows = take([{"text": text} for text in texts]).sample.first()
    found = languages_of(rows, lambda text: (text[:2], 0.4 if text.startswith("?") else 0.9))
    assert [(each.code, each.rows, each.share) for each in found.languages] == [("en", 3, 0.6), ("de", 1, 0.2)]
    assert found.unsure == 0.2 and found.languages[1].examples[0].text == "de eins"
