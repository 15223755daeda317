"""What is left under attack, as rows of words: the same for the terminal and the page."""

from __future__ import annotations

from dataclasses import dataclass

from uplift.core.report import Attack, AttackExample, Interval, Robustness
from uplift.study.wording import DASH, show_interval, show_score

SHOWN = 3
"""Attacked texts that are shown."""
RATE = "accuracy"


@dataclass(frozen=True)
class RobustnessTable:
    """``head`` names the columns, the first of words and the others of numbers; ``rows`` begins with no attack at all."""

    title: str
    lead: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    examples: tuple[tuple[str, AttackExample], ...]
    """(attack, example), at most ``SHOWN``, of different attacks where there are enough."""


def robustness_table(robustness: Robustness) -> RobustnessTable:
    """The numbers and examples of ``robustness`` in words."""
    with_base = robustness.base_clean is not None
    transfers = any(each.result.transfer is not None for each in robustness.attacks)
    head = ["attack", *(["base"] if with_base else []), "this model", "95 % interval", "broken", "queries", "words changed"]
    clean = ["none", *([_rate(robustness.base_clean)] if with_base else []), *_rate_and_interval(robustness.clean)]
    rows = [[*clean, DASH, DASH, DASH], *(_cells(each, with_base) for each in robustness.attacks)]
    if transfers:
        head.append("transfer")
        for row, attack in zip(rows, [None, *robustness.attacks], strict=True):
            row.append(_rate(attack.result.transfer) if attack else DASH)
    lead = (
        f"Accuracy on {robustness.rows:,} held-out rows when each may be attacked: at most {robustness.queries:,} texts a row, "
    )
    lead += f"similarity of at least {show_score(RATE, robustness.similarity)}. Broken: share of right answers lost."
    if transfers:
        lead += " Transfer: share of right answers kept when the texts that mislead another model are shown."
    if {"synonym", "gradient"} & {each.attack for each in robustness.attacks}:
        lead += " Words that a model embeds alike can be opposites: read the examples."
    return RobustnessTable("Under attack", lead, tuple(head), tuple(map(tuple, rows)), _examples(robustness))


def attack_name(attack: Attack) -> str:
    """``typo``, ``pgd, eps 0.05``."""
    return attack.attack if attack.eps is None else f"{attack.attack}, eps {attack.eps:g}"


def _cells(attack: Attack, with_base: bool) -> list[str]:
    result = attack.result
    queries = DASH if result.queries is None else f"{result.queries:.1f}"
    base = [_rate(attack.base.robust if attack.base else None)] if with_base else []
    tail = [_rate(result.success), queries, show_score(RATE, result.changed)]
    return [attack_name(attack), *base, *_rate_and_interval(result.robust), *tail]


def _rate(share: Interval | None) -> str:
    return show_score(RATE, share.value) if share is not None else DASH


def _rate_and_interval(share: Interval) -> list[str]:
    return [_rate(share), show_interval(RATE, share)]


def _examples(robustness: Robustness) -> tuple[tuple[str, AttackExample], ...]:
    """The first of each attack, then the second of each."""
    most = max((len(each.examples) for each in robustness.attacks), default=0)
    ranked = [
        (attack_name(each), each.examples[rank])
        for rank in range(most)
        for each in robustness.attacks
        if rank < len(each.examples)
    ]
    return tuple(ranked[:SHOWN])
