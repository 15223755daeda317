"""The words of texts: how many, how often, and which speak for a label."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from uplift.data.explore.findings import LabelWords, Vocabulary
from uplift.data.explore.sample import TextRow

WORD = re.compile(r"\w+")
TOP = 30
TOP_BY_LABEL = 12
MOST_LABELS = 12
LEAST_COUNT = 3
ZIPF_POINTS = 60
LONGEST_WORD = 40


def words_of(text: str) -> list[str]:
    """Lower-case words; of a run of letters longer than any word the beginning."""
    return [word[:LONGEST_WORD] for word in WORD.findall(text.lower())]


def vocabulary_of(rows: Sequence[TextRow]) -> Vocabulary:
    """Words of the rows, and for labelled rows those that speak for each label (by the rows they stand in)."""
    counts: Counter[str] = Counter()
    by_label: dict[str | None, Counter[str]] = {}
    rows_of: Counter[str | None] = Counter()
    for row in rows:
        words = words_of(row.text)
        counts.update(words)
        by_label.setdefault(row.label, Counter()).update(set(words))  # once a row: a word repeated in one row proves little
        rows_of[row.label] += 1
    standing: Counter[str] = Counter()
    for part in by_label.values():
        standing.update(part)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    labels = sorted((label for label in by_label if label is not None), key=lambda label: (-rows_of[label], label))
    zipf, slope = _zipf([count for _, count in ranked])
    return Vocabulary(
        words=sum(counts.values()),
        distinct=len(counts),
        once=round(sum(count == 1 for count in counts.values()) / max(1, len(counts)), 4),
        top=ranked[:TOP],
        zipf=zipf,
        slope=slope,
        by_label=[LabelWords(label=label, words=speaking_words(by_label[label], standing)) for label in labels[:MOST_LABELS]]
        if len(labels) > 1
        else [],
    )


def speaking_words(own: Counter[str], whole: Counter[str], top: int = TOP_BY_LABEL) -> list[tuple[str, float]]:
    """Words by how surely they are commoner in ``own`` than in the rest of ``whole``, in standard deviations.

    Log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, "Fightin' Words", equations 16, 19
    and 22): the prior is the whole corpus, so rare words need more evidence.
    """
    prior_total = float(sum(whole.values()))
    own_total = float(sum(own.values()))
    rest_total = prior_total - own_total
    scored = []
    for word, count in own.items():
        if count < LEAST_COUNT:
            continue
        prior, rest = float(whole[word]), float(whole[word] - count)
        own_odds = math.log((count + prior) / (own_total + prior_total - count - prior))
        rest_odds = math.log((rest + prior) / (rest_total + prior_total - rest - prior))
        scored.append((word, round((own_odds - rest_odds) / math.sqrt(1 / (count + prior) + 1 / (rest + prior)), 2)))
    return [pair for pair in sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:top] if pair[1] > 0]


def _zipf(counts: Sequence[int]) -> tuple[list[tuple[int, int]], float | None]:
    """(rank, count) at ranks evenly spread over the logarithm, and the slope between ranks 10 and the last repeated word."""
    if not counts:
        return [], None
    ranks = sorted({round(rank) for rank in np.geomspace(1, len(counts), ZIPF_POINTS)})
    points = [(rank, counts[rank - 1]) for rank in ranks]
    middle = [(math.log(rank), math.log(count)) for rank, count in points if rank >= 10 and count > 1]
    if len(middle) < 5:
        return points, None
    across, up = np.array(middle).T
    return points, round(float(np.polyfit(across, up, 1)[0]), 2)
