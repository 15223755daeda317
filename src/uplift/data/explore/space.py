"""Texts as points: TF-IDF, a model of the labels held against them, and a map on which alike texts lie together.

R rows, W words, C labels, K topics.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from uplift.data.explore.findings import Point, Sanity, Topic, TopicMap
from uplift.data.explore.intake import hash64
from uplift.data.explore.measures import cut, shown
from uplift.data.explore.sample import TextRow
from uplift.data.splitting import normalized

MOST_FEATURES = 60_000
FOLDS = 5
LEAST_OF_LABEL = 5
"""Rows that a label must have to be judged."""
SUSPICIOUS = 12
MAP_ROWS = 1500
LEAST_MAPPED = 30
MOST_TOPICS = 12
TOPIC_WORDS = 4
DIMENSIONS = 40
HOVER = 220
"""Characters of a text at its point."""
Floats = NDArray[np.float64]


def tfidf_of(texts: Sequence[str]) -> tuple[Any, NDArray[np.str_]] | None:
    """(R x W sparse, unit rows; the words), of one and two words that stand in at least two texts; None without any."""
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        min_df=2,
        sublinear_tf=True,
        token_pattern=r"(?u)\b\w+(?:['’]\w+)?",
        max_features=MOST_FEATURES,
        dtype=np.float32,
    )
    try:
        matrix = vectorizer.fit_transform(texts)
    except ValueError:  # no word, or none that stands twice
        return None
    return matrix, vectorizer.get_feature_names_out()


# -- labels ------------------------------------------------------------------------------------------------------------
def judge_labels(rows: Sequence[TextRow], matrix: Any) -> Sanity | None:
    """How well words alone foretell the labels, and rows whose label they contradict; None with fewer than two labels to judge.

    Equal texts share a fold, so no text is judged by a copy of itself. A row is suspicious when another label is the likeliest
    and reaches the probability that this label's own rows have on average (confident learning: Northcutt et al. 2021).
    """
    counts = Counter(row.label for row in rows if row.label is not None)
    names = sorted(label for label, count in counts.items() if count >= LEAST_OF_LABEL)
    if len(names) < 2:
        return None
    kept = np.array([index for index, row in enumerate(rows) if row.label in names])
    truth = np.array([names.index(str(rows[index].label)) for index in kept])
    folds = np.array([hash64(normalized(rows[index].asked)) % FOLDS for index in kept])
    probabilities = _held_out(matrix[kept], truth, folds, len(names))
    guessed = probabilities.argmax(axis=1)
    thresholds = np.array([probabilities[truth == label, label].mean() for label in range(len(names))])
    best = probabilities[np.arange(len(kept)), guessed]
    suspects = np.flatnonzero((guessed != truth) & (best >= np.maximum(thresholds[guessed], 0.5)))
    margins = best - probabilities[np.arange(len(kept)), truth]
    ranked = sorted(suspects, key=lambda index: (-round(float(margins[index]), 6), int(kept[index])))
    return Sanity(
        rows=len(kept),
        folds=FOLDS,
        accuracy=round(float((guessed == truth).mean()), 4),
        macro_f1=round(_macro_f1(truth, guessed, len(names)), 4),
        majority=round(max(counts[name] for name in names) / len(kept), 4),
        suspicious=len(suspects),
        examples=[
            shown(
                rows[kept[index]], f"labelled {rows[kept[index]].label}, reads like {names[guessed[index]]} ({best[index]:.0%})"
            )
            for index in ranked[:SUSPICIOUS]
        ],
    )


def _held_out(matrix: Any, truth: NDArray[np.int64], folds: NDArray[np.int64], labels: int) -> Floats:
    """(R, C) probabilities of each row from a model that has not seen it."""
    result = np.zeros((len(truth), labels))
    for fold in range(FOLDS):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        seen = np.unique(truth[outside])
        if not len(inside) or len(seen) < 2:
            result[inside] = np.bincount(truth, minlength=labels) / len(truth)
            continue
        model = LogisticRegression(C=3.0, max_iter=60, tol=1e-3)
        with one_thread(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a look, not a result: it may stop early
            model.fit(matrix[outside], truth[outside])
        result[np.ix_(inside, model.classes_)] = model.predict_proba(matrix[inside])
    return result


def _macro_f1(truth: NDArray[np.int64], guessed: NDArray[np.int64], labels: int) -> float:
    scores = []
    for label in range(labels):
        right = int(((truth == label) & (guessed == label)).sum())
        scores.append(2 * right / max(1, int((truth == label).sum() + (guessed == label).sum())))
    return sum(scores) / labels


# -- the map -----------------------------------------------------------------------------------------------------------
def map_topics(
    rows: Sequence[TextRow], matrix: Any, words: NDArray[np.str_], embeddings: Floats | None, by: str
) -> TopicMap | None:
    """The rows on a plane, in topics named by their words; None with fewer than ``LEAST_MAPPED`` rows, or all in one place.

    ``embeddings`` (R, any width) place them; None: TF-IDF reduced to ``DIMENSIONS``.
    """
    if len(rows) < LEAST_MAPPED:
        return None
    with one_thread():
        places = normalize(embeddings) if embeddings is not None else _reduced(matrix)
        distinct = len(np.unique(places.round(9), axis=0))
        if distinct < 2:
            return None
        topics = min(MOST_TOPICS, distinct, max(2, round(math.sqrt(len(rows) / 8))))
        found = KMeans(topics, n_init=4, random_state=0).fit_predict(places)
        plane = _plane(places)
    sizes = Counter(found.tolist())
    order = sorted(sizes, key=lambda topic: (-sizes[topic], topic))
    number = {topic: place for place, topic in enumerate(order)}
    described = [_topic(rows, np.flatnonzero(found == topic), matrix, words) for topic in order]
    points = [
        Point(
            x=round(float(x), 4),
            y=round(float(y), 4),
            topic=number[int(topic)],
            label=row.label,
            place=str(row.origin),
            text=cut(" ".join(row.text[: 4 * HOVER].split()), HOVER),
        )
        for row, (x, y), topic in zip(rows, plane, found, strict=True)
    ]
    return TopicMap(by=by, topics=described, points=points)


def _reduced(matrix: Any) -> Floats:
    """(R, at least 2): what has few words needs no reducing."""
    rows, words = matrix.shape
    if words <= DIMENSIONS:
        return np.pad(np.asarray(matrix.toarray(), dtype=np.float64), ((0, 0), (0, max(0, 2 - words))))
    dimensions = min(DIMENSIONS, rows - 1)
    return np.asarray(normalize(TruncatedSVD(dimensions, random_state=0).fit_transform(matrix)), dtype=np.float64)


def _plane(places: Floats) -> Floats:
    """(R, 2) in [0, 1]. Equal places draw t-SNE together, so texts without a known word lie in one spot."""
    start = PCA(2, random_state=0).fit_transform(places)
    start = 1e-4 * start / max(float(start[:, 0].std()), 1e-12)
    perplexity = min(30.0, (len(places) - 1) / 3)
    drawn = TSNE(2, init=start, perplexity=perplexity, max_iter=500, random_state=0, n_jobs=1).fit_transform(places)
    low, high = drawn.min(axis=0), drawn.max(axis=0)
    return np.asarray((drawn - low) / np.maximum(high - low, 1e-9), dtype=np.float64)


def _topic(rows: Sequence[TextRow], inside: NDArray[np.int64], matrix: Any, words: NDArray[np.str_]) -> Topic:
    """A topic's words: those that tell it best from all rows (by their part of the relative entropy), no grammar words."""
    own = np.asarray(matrix[inside].mean(axis=0)).ravel()
    whole = np.asarray(matrix.mean(axis=0)).ravel()
    scores = own * np.log(np.maximum(own, 1e-12) / np.maximum(whole, 1e-12))
    named: list[str] = []
    for index in np.argsort(-scores, kind="stable")[:200]:
        parts = str(words[index]).split()
        if scores[index] <= 0 or any(part in ENGLISH_STOP_WORDS or len(part) < 3 or not part.isalnum() for part in parts):
            continue
        if any(_are_related(part, other) for part in parts for name in named for other in name.split()):
            continue
        named.append(" ".join(parts)[:40])
        if len(named) == TOPIC_WORDS:
            break
    labels = Counter(rows[index].label for index in inside if rows[index].label is not None)
    label, count = min(labels.items(), key=lambda item: (-item[1], item[0])) if labels else (None, 0)
    purity = round(count / sum(labels.values()), 4) if labels else None
    return Topic(words=named, rows=len(inside), label=label, purity=purity)


def _are_related(one: str, other: str) -> bool:
    """Whether two words are forms of one, as far as their beginnings tell."""
    short, long = sorted((one, other), key=len)
    return long.startswith(short[: max(4, len(short) - 2)])


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order: the same data gives the same digits."""
    with threadpool_limits(1):
        yield
