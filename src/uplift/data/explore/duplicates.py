"""Rows that say the same, or nearly: how many, which, with which labels, and on which side of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from uplift.core.recipe import Split
from uplift.data.clean.minhash import MinHash
from uplift.data.explore.findings import (
    Cluster,
    Conflict,
    Duplicates,
    Leak,
    Overlapping,
    PartFound,
    Splits,
)
from uplift.data.explore.intake import Hashes, Taken, fetch_rows
from uplift.data.explore.measures import cut, shown
from uplift.data.explore.sample import TextRow
from uplift.data.leakage import find_leakage
from uplift.data.splitting import split

SHOWN_CLUSTERS = 4
SHOWN_IN_CLUSTER = 3
SHOWN_CONFLICTS = 8
SHOWN_LEAKS = 6
OWN_SPLIT = Split(validation=0.1, test=0.2)
"""What the suggested recipe cuts off."""
Groups = NDArray[np.int64]
"""For each row the number of its near-duplicate cluster; a row that is like no other has one of its own."""


def duplicates_of(taken: Taken, rows: Sequence[TextRow], groups: Groups) -> Duplicates:
    """Counts over all rows, near-duplicates over the sampled ``rows``, and the largest clusters."""
    exact_groups = _largest(taken.keys)
    texts = fetch_rows(taken, {number for numbers in exact_groups for number in numbers[:SHOWN_IN_CLUSTER]})
    clusters = [
        Cluster(kind="exact", rows=len(numbers), shown=[shown(texts[number]) for number in numbers[:SHOWN_IN_CLUSTER]])
        for numbers in exact_groups
    ]
    for inside in _near_only(taken.keys, rows, groups)[:SHOWN_CLUSTERS]:
        different = {int(taken.keys[rows[index].number]): index for index in reversed(inside)}
        first = sorted(different.values())[:SHOWN_IN_CLUSTER]
        clusters.append(Cluster(kind="near", rows=len(inside), shown=[shown(rows[index]) for index in first]))
    return Duplicates(
        rows=taken.rows,
        exact=taken.rows - len(np.unique(taken.exact)),
        normalized=taken.rows - len(np.unique(taken.keys)),
        sampled=len(rows),
        near=len(rows) - len(np.unique(groups)),
        clusters=clusters,
    )


def _largest(keys: Hashes) -> list[list[int]]:
    """The rows of the largest groups of equal keys, larger ones and earlier ones first."""
    _, firsts, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts > 1)
    order = sorted(repeated, key=lambda group: (-counts[group], firsts[group]))[:SHOWN_CLUSTERS]
    return [np.flatnonzero(inverse == group).tolist() for group in order]


def _near_only(keys: Hashes, rows: Sequence[TextRow], groups: Groups) -> list[list[int]]:
    """Clusters with at least two different texts, as indexes into ``rows``; larger ones first."""
    inside: dict[int, list[int]] = {}
    for index, group in enumerate(groups.tolist()):
        inside.setdefault(group, []).append(index)
    several = [part for part in inside.values() if len({int(keys[rows[index].number]) for index in part}) > 1]
    return sorted(several, key=lambda part: (-len(part), part[0]))


def near_groups(texts: Sequence[str]) -> Groups:
    """Near-duplicate clusters by MinHash; a text without words is like no other."""
    minhash = MinHash()
    signatures, full = minhash.signatures(texts)
    groups = np.arange(len(texts), dtype=np.int64)
    compared = np.flatnonzero(full)
    groups[compared] = compared[minhash.clusters(signatures[compared])]
    return groups


def near_to(groups: Groups, known: int) -> NDArray[np.bool_]:
    """For each text behind the first ``known``: is it in a cluster with one of these?"""
    return np.isin(groups[known:], groups[:known])


# -- labels ------------------------------------------------------------------------------------------------------------
def conflicts_of(taken: Taken, rows: Sequence[TextRow], groups: Groups) -> tuple[int, int, list[Conflict]]:
    """Rows whose text stands with another label too; sampled rows that are nearly such; the largest of both."""
    order = np.lexsort((np.arange(taken.rows), taken.keys))
    keys, labels = taken.keys[order], taken.labels[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    sizes = np.diff(np.r_[starts, len(keys)])
    mixed = np.flatnonzero(np.minimum.reduceat(labels, starts) != np.maximum.reduceat(labels, starts))
    ranked = sorted(mixed, key=lambda group: (-sizes[group], order[starts[group]]))[:SHOWN_CONFLICTS]
    members = [np.sort(order[starts[group] : starts[group] + sizes[group]]).tolist() for group in ranked]
    picked = [_one_of_each(numbers, taken.labels) for numbers in members]
    texts = fetch_rows(taken, {number for numbers in picked for number in numbers})
    conflicts = [
        Conflict(
            kind="exact",
            labels=_named(Counter(taken.labels[numbers].tolist()), taken.label_names),
            shown=[shown(texts[number]) for number in first],
        )
        for numbers, first in zip(members, picked, strict=True)
    ]
    near = 0
    for part in _near_only(taken.keys, rows, groups):
        numbers = [rows[index].number for index in part]
        found = Counter(taken.labels[numbers].tolist())
        if len(found) > 1:
            near += len(part)
            first = _one_of_each(numbers, taken.labels)
            kept = [shown(rows[part[numbers.index(number)]]) for number in first]
            conflicts.append(Conflict(kind="near", labels=_named(found, taken.label_names), shown=kept))
    exact_only = [each for each in conflicts if each.kind == "exact"]
    near_only = [each for each in conflicts if each.kind == "near"][:SHOWN_CONFLICTS]
    return int(sizes[mixed].sum()), near, [*exact_only, *near_only]


def _one_of_each(numbers: Sequence[int], labels: NDArray[np.int64]) -> list[int]:
    first: dict[int, int] = {}
    for number in numbers:
        first.setdefault(int(labels[number]), number)
    return list(first.values())[:SHOWN_IN_CLUSTER]


def _named(counts: Counter[int], names: Sequence[str]) -> dict[str, int]:
    return {names[label]: count for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if label >= 0}


# -- parts -------------------------------------------------------------------------------------------------------------
def own_split(rows: Sequence[TextRow], groups: Groups) -> Splits:
    """What the suggested split makes of the sampled rows: sizes, labels, and what of the held-out parts stands in training."""
    place = {id(row.sample): index for index, row in enumerate(rows)}
    parts = {
        name: [place[id(sample)] for sample in samples]
        for name, samples in split([row.sample for row in rows], OWN_SPLIT).items()
    }
    found = [_part(name, [rows[index] for index in inside]) for name, inside in parts.items()]
    train = groups[parts["train"]]
    leaks = []
    for name in ("validation", "test"):
        inside = [rows[index] for index in parts[name]]
        near = np.isin(groups[parts[name]], train)
        leaks.append(_leak(name, [rows[index] for index in parts["train"]], inside, near, len(inside), 0))
    return Splits(given=False, parts=found, leaks=leaks)


def given_split(
    train: Taken, rows: Sequence[TextRow], others: dict[str, tuple[Taken, list[TextRow]]], near: dict[str, NDArray[np.bool_]]
) -> Splits:
    """The parts as given. ``near``: for each sampled row of a part, whether a sampled training row is nearly the same."""
    parts = [_taken_part("train", train), *(_taken_part(name, taken) for name, (taken, _) in others.items())]
    leaks = []
    for name, (taken, inside) in others.items():
        same = int(np.isin(taken.keys, train.keys).sum())
        leaks.append(_leak(name, rows, inside, near[name], taken.rows, same))
    return Splits(given=True, parts=parts, leaks=leaks)


def _leak(name: str, train: Sequence[TextRow], held: Sequence[TextRow], near: NDArray[np.bool_], rows: int, same: int) -> Leak:
    found = find_leakage([row.sample for row in train], [row.sample for row in held])
    examples = [
        Overlapping(kind=each.kind, test=str(each.test), train=str(each.train or ""), excerpt=each.excerpt)
        for each in found.examples[:SHOWN_LEAKS]
    ]
    known = {each.test for each in examples}
    for row in (row for row, hit in zip(held, near, strict=True) if hit and str(row.origin) not in known):
        if len(examples) == SHOWN_LEAKS:
            break
        examples.append(Overlapping(kind="near", test=str(row.origin), train="", excerpt=cut(row.asked, 120)))
    return Leak(
        part=name,
        rows=rows,
        normalized=max(same, found.normalized),
        sampled=len(held),
        runs=found.ngram,
        near=int(near.sum()),
        examples=examples,
    )


def _part(name: str, rows: Sequence[TextRow]) -> PartFound:
    labels = Counter(row.label for row in rows if row.label is not None)
    return PartFound(part=name, rows=len(rows), quarantined=0, labels=dict(sorted(labels.items())))


def _taken_part(name: str, taken: Taken) -> PartFound:
    counts = Counter(taken.labels[taken.labels >= 0].tolist())
    labels = {taken.label_names[label]: count for label, count in counts.items()}
    return PartFound(part=name, rows=taken.rows, quarantined=taken.quarantined, labels=dict(sorted(labels.items())))
