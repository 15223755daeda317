"""Drop texts, and lines of them, by the rules of C4, Gopher and FineWeb.

Rules on lines come first, so that what a text is judged by is what stays of it: judged again, it gets the same verdict.
The rules are made for web pages in English. Source code, verse, lists and other languages break several of them: leave those
out with ``off``, or set other ``limits``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from uplift.core.errors import RecipeError
from uplift.core.prepare_section import Filter
from uplift.data.clean.measures import Measures
from uplift.data.clean.rule import Rule
from uplift.data.clean.rules_c4 import C4, LineRules, bad_words
from uplift.data.clean.rules_fineweb import FINEWEB
from uplift.data.clean.rules_gopher import GOPHER
from uplift.data.clean.step import CleaningStep, Verdict, dropped, edited
from uplift.data.rows import nearest

RULES: Mapping[str, Rule] = C4 | GOPHER | FINEWEB
"""All rules by name, in the order in which they are applied."""
EMPTY = "empty"
"""The rule of a text none of whose lines stays."""


class RuleFilter(CleaningStep):
    """Applies the rules of some sets. A line that goes is an edit; a text that goes says what was measured."""

    def __init__(self, settings: Filter) -> None:
        limits = active_limits(settings)
        rules = {**RULES, "c4_bad_words": replace(RULES["c4_bad_words"], measure=bad_words(settings.bad_words))}
        self._lines = LineRules(limits)
        self._rules = [(rules[name], limit) for name, limit in limits.items() if rules[name].measure is not None]

    def judge(self, row: int, text: str) -> Verdict:
        """The text without the lines that break a rule; nothing, if what stays breaks one."""
        edits = self._lines.edits(text)
        verdict = edited(text, edits) if edits else Verdict(text, edits=())
        kept = verdict.text or ""
        if edits and not kept.strip():
            return dropped(EMPTY, f"all lines went: {', '.join(f'{rule} {count}' for rule, count in verdict.counts.items())}")
        measures = Measures(kept)
        for rule, limit in self._rules:
            assert rule.measure is not None  # the others are the line rules
            value = rule.measure(measures)
            if value < limit if rule.bound == "least" else value > limit:
                return dropped(rule.name, _told(rule, value, limit))
        return verdict


def active_limits(settings: Filter) -> dict[str, float]:
    """Rule -> threshold (0 where it has none) of the rules that apply, in their order.

    Raises RecipeError for a name that is not known or has no effect, and for a threshold that the rule cannot have.
    """
    _check(settings)
    off = {*settings.off} | (set() if settings.bad_words else {"c4_bad_words"})
    return {
        name: settings.limits.get(name, rule.default or 0)
        for name, rule in RULES.items()
        if rule.set in settings.rules and name not in off
    }


def _check(settings: Filter) -> None:
    for key, names in (("limits", settings.limits), ("off", settings.off)):
        for name in names:
            where = f"data.prepare.{key}"
            if name not in RULES:
                fix = "`uplift data rules` lists them"
                raise RecipeError(f"there is no rule `{name}`{nearest(name, RULES)}", where=where, fix=fix)
            if RULES[name].set not in settings.rules:
                what = f"`{name}` has no effect: `rules` does not name its set `{RULES[name].set}`"
                raise RecipeError(what, where=where, fix=f"add `{RULES[name].set}` to `rules`, or leave `{name}` out")
    for name, limit in settings.limits.items():
        where, rule = f"data.prepare.limits.{name}", RULES[name]
        if name in settings.off:
            raise RecipeError(f"`{name}` has a threshold and is off", where=where, fix="leave one of the two out")
        if rule.default is None:
            raise RecipeError(f"`{name}` has no threshold", where=where, fix="it applies, or it is named in `off`")
        if limit < 0 or rule.unit == "share" and limit > 1:
            most = "and at most 1" if rule.unit == "share" else ""
            raise RecipeError(f"{limit} is no threshold of `{name}`", where=where, fix=f"it is at least 0 {most}".rstrip())
    if settings.bad_words and ("c4" not in settings.rules or "c4_bad_words" in settings.off):
        raise RecipeError("`bad_words` has no effect", where="data.prepare.bad_words", fix="apply the rule `c4_bad_words`")
    if any(not word.strip() for word in settings.bad_words):
        raise RecipeError("a bad word is blank", where="data.prepare.bad_words", fix="leave it out")


def _told(rule: Rule, value: float, limit: float) -> str:
    if rule.default is None:
        return rule.meaning
    relation = "<" if rule.bound == "least" else ">"
    return f"{value:.4g} {relation} {limit:g}{f' {rule.unit}' if rule.unit else ''}: {rule.meaning}"
