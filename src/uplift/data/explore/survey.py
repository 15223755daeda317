"""All measures over the parts of a data set, put together. Costly ones look at a random part of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import uplift
from uplift.core.errors import UpliftError
from uplift.core.prepare_section import Filter, Html, Pii, Repair
from uplift.data.chat import Encoder, Kind
from uplift.data.clean.filter import RuleFilter
from uplift.data.clean.html import HtmlStripper
from uplift.data.clean.language import detect
from uplift.data.clean.pii import PiiScrubber
from uplift.data.clean.repair import Repairer
from uplift.data.clean.step import CleaningStep
from uplift.data.explore import cleaning, learning, space
from uplift.data.explore.duplicates import (
    Groups,
    conflicts_of,
    duplicates_of,
    given_split,
    near_groups,
    near_to,
    own_split,
)
from uplift.data.explore.findings import (
    Cleaning,
    Inspection,
    LabelCount,
    LabelFindings,
    Languages,
    Learning,
    Lengths,
    Overview,
    Splits,
    Tokens,
    TopicMap,
)
from uplift.data.explore.intake import Taken, merged_bad
from uplift.data.explore.masking import masked
from uplift.data.explore.measures import shown, spread_of
from uplift.data.explore.outliers import outliers_of
from uplift.data.explore.sample import TextRow
from uplift.data.explore.tokens import MOST_CHARACTERS as TOKEN_CHARACTERS, Cutter, tokens_of
from uplift.data.explore.words import vocabulary_of
from uplift.data.passages import passages

COMPARED_CHARACTERS = 10_000_000
"""Of the texts that are compared with each other (near-duplicates, words, splits)."""
MATRIX_ROWS, MATRIX_CHARACTERS = 10_000, 3_000_000
HELD_OUT_ROWS = 5000
STEPS: Mapping[str, Callable[[], CleaningStep]] = {
    "repair": lambda: Repairer(Repair()),
    "html": lambda: HtmlStripper(Html(boilerplate=False)),  # looking for the main content is slow, and here only whether counts
    "pii": lambda: PiiScrubber(Pii()),
    "filter": lambda: RuleFilter(Filter()),
}
"""Steps that look at one text and are worth trying on any data."""
Embed = Callable[[Sequence[str]], NDArray[np.float64]]


@dataclass(frozen=True)
class Reader:
    """Who would read the texts: a tokenizer and its model's kind; ``embed`` gives texts places on the map."""

    name: str
    tokenizer: Any
    kind: Kind = "causal"
    embed: Embed | None = None
    limit: int | None = None
    """Longest text the model can read."""


def survey(
    taken: Taken, others: Mapping[str, Taken], source: str, reader: Reader | None, *, command: str, notes: Iterable[str] = ()
) -> Inspection:
    """Everything about a training part and the other parts that were given; without a ``reader`` no tokens are counted.

    Advice and recipe are left empty.
    """
    told = list(notes)
    rows = taken.sample.first(characters=COMPARED_CHARACTERS)
    if len(rows) < taken.rows:
        told.append(
            f"Costly measures look at {len(rows):,} rows drawn at random of {taken.rows:,}; counts of rows, columns, "
            "characters, words, labels, exact duplicates and conflicts are over all rows."
        )
    held = {name: (other, other.sample.first(HELD_OUT_ROWS, COMPARED_CHARACTERS)) for name, other in others.items()}
    groups = near_groups([row.text for part in (rows, *(own for _, own in held.values())) for row in part])
    tokens, learned = _read_by(reader, taken) if reader else (None, None)
    matrix_rows = taken.sample.first(MATRIX_ROWS, MATRIX_CHARACTERS)
    found = space.tfidf_of([row.asked for row in matrix_rows])
    cleaned, languages = _cleaning(taken, told)
    inspection = Inspection(
        uplift=uplift.__version__,
        command=command,
        overview=_overview(taken, others, source, len(rows)),
        lengths=Lengths(
            rows=taken.rows,
            characters=spread_of(taken.characters),
            words=spread_of(taken.words),
            shortest=[shown(row) for row in taken.shortest],
            longest=[shown(row) for row in taken.longest],
        ),
        tokens=tokens,
        vocabulary=vocabulary_of(rows),
        languages=languages,
        duplicates=duplicates_of(taken, rows, groups[: len(rows)]),
        splits=_splits(taken, rows, held, groups),
        labels=_labels(taken, rows, groups[: len(rows)], matrix_rows, found[0] if found else None),
        outliers=outliers_of(taken.sample.first(cleaning.MOST_ROWS, cleaning.MOST_CHARACTERS)),
        cleaning=cleaned,
        topics=_topics(matrix_rows, found, reader),
        chat=learning.chat_of(rows),
        learning=learned,
        advice=[],
        recipe="",
        notes=told,
    )
    return masked(inspection)


def _overview(taken: Taken, others: Mapping[str, Taken], source: str, sampled: int) -> Overview:
    parts = [taken, *others.values()]
    return Overview(
        source=source,
        format=taken.stream.format,
        sha256=taken.stream.sha256,
        rows_in=sum(part.rows_in for part in parts),
        rows=sum(part.rows for part in parts),
        quarantined=sum(part.quarantined for part in parts),
        bad=merged_bad(parts),
        columns=taken.columns,
        goal=taken.aim.goal,
        text=taken.aim.text if taken.aim.goal != "chat" else ", ".join(taken.aim.columns),
        label=taken.aim.label,
        sampled=sampled,
    )


def _read_by(reader: Reader, taken: Taken) -> tuple[Tokens, Learning]:
    """Tokens, and what would be learned at the suggested length."""
    head: learning.Head = "class" if reader.kind == "encoder" else "language"
    cutter = Cutter(reader.tokenizer)
    few = taken.sample.first(learning.MOST_ROWS, learning.MOST_CHARACTERS)
    samples = learning.samples_for(few, taken.aim, taken.label_names, head)
    counts, _, _ = cutter.lengths([row.text for row in few])
    roomy = Encoder(reader.tokenizer, learning.LONGEST, reader.kind)
    added = learning.overhead_of(samples, counts.tolist(), roomy)
    looked_at = taken.sample.first(characters=TOKEN_CHARACTERS)
    goes_on = taken.aim.goal == "text" and reader.kind == "causal"
    tokens = tokens_of(reader.name, cutter, looked_at, added, reader.limit, passages=goes_on)
    encoder = Encoder(reader.tokenizer, tokens.suggested_length, reader.kind)
    return tokens, learning.learning_of(passages(samples, encoder), encoder, head)


def _cleaning(taken: Taken, notes: list[str]) -> tuple[Cleaning, Languages | None]:
    """What each step would do; a step whose package is missing is named in ``notes``."""
    rows = taken.sample.first(cleaning.MOST_ROWS, cleaning.MOST_CHARACTERS)
    found: list[Cleaning] = []
    for name, make in STEPS.items():
        try:
            found.append(cleaning.cleaning_of(rows, {name: make()}))
        except UpliftError as error:
            notes.append(f"`{name}` was not tried: {error.what}")
    try:
        languages = cleaning.languages_of(taken.sample.first(cleaning.LANGUAGE_ROWS), detect)
    except UpliftError as error:
        languages = None
        notes.append(f"Languages were not told: {error.what}")
    return Cleaning(rows=len(rows), rules=[rule for each in found for rule in each.rules]), languages


def _splits(taken: Taken, rows: Sequence[TextRow], held: Mapping[str, tuple[Taken, list[TextRow]]], groups: Groups) -> Splits:
    if not held:
        return own_split(rows, groups)
    near, start = {}, len(rows)
    everywhere = near_to(groups, len(rows))
    for name, (_, own) in held.items():
        near[name] = everywhere[start - len(rows) : start - len(rows) + len(own)]
        start += len(own)
    return given_split(taken, rows, dict(held), near)


def _labels(
    taken: Taken, rows: Sequence[TextRow], groups: Groups, matrix_rows: Sequence[TextRow], matrix: Any
) -> LabelFindings | None:
    if not taken.aim.label:
        return None
    counts = Counter(taken.labels[taken.labels >= 0].tolist())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], taken.label_names[item[0]]))
    conflicting, near, conflicts = conflicts_of(taken, rows, groups)
    return LabelFindings(
        column=taken.aim.label,
        counts=[
            LabelCount(label=taken.label_names[label], rows=count, share=round(count / taken.rows, 4))
            for label, count in ranked
        ],
        conflicting=conflicting,
        near_conflicting=near,
        conflicts=conflicts,
        sanity=space.judge_labels(matrix_rows, matrix) if matrix is not None else None,
    )


def _topics(rows: Sequence[TextRow], found: tuple[Any, Any] | None, reader: Reader | None) -> TopicMap | None:
    if found is None:
        return None
    matrix, words = found
    # The rows stand in the order of the source: every n-th of a random sample is a random sample.
    step = max(1, -(-len(rows) // space.MAP_ROWS))
    picked = rows[::step]
    embeddings = reader.embed([row.asked for row in picked]) if reader and reader.embed else None
    by = f"embeddings of {reader.name}" if reader and reader.embed else "TF-IDF of words and word pairs"
    return space.map_topics(picked, matrix[::step], words, embeddings, by)
