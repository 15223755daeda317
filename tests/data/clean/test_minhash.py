"""MinHash: unbiased estimates, detection as the law says, signatures that depend on the text and the seed alone."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import numpy as np
import pytest

from uplift.data.clean.minhash import CROWD, MinHash, Signatures

PAIRS = 1500


def pairs(similarity: float, count: int, seed: int) -> tuple[list[str], list[str]]:
    """Pairs of texts that have exactly this share of their 200 different shingles in common."""
    rng = random.Random(seed)
    shared = round(200 * similarity)
    own = (200 - shared) // 2
    assert shared + 2 * own == 200
    ones, others = [], []
    for _ in range(count):
        start = _words(rng, shared + 4) if shared else []
        more = own if shared else own + 4
        ones.append(" ".join(start + _words(rng, more)))
        others.append(" ".join(start + _words(rng, more)))
    return ones, others


def _words(rng: random.Random, count: int) -> list[str]:
    return [f"{rng.getrandbits(48):x}" for _ in range(count)]


def shingles(text: str, gram: int = 5) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[at : at + gram]) for at in range(len(words) - gram + 1)}


def meet(minhash: MinHash, ones: Signatures, others: Signatures) -> np.ndarray:
    met, every = np.zeros(len(ones), dtype=bool), np.arange(len(ones))
    for band in range(minhash.bands):
        met |= minhash.band_keys(ones, every, band) == minhash.band_keys(others, every, band)
    return met


def test_planted_pairs_have_the_similarity_they_should() -> None:
    for similarity in (0.0, 0.5, 0.85, 1.0):
        for one, other in zip(*pairs(similarity, 5, 0), strict=True):
            a, b = shingles(one), shingles(other)
            assert len(a & b) / len(a | b) == similarity


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
def test_estimates_are_unbiased_and_detection_follows_the_law(similarity: float) -> None:
    minhash = MinHash()
    ones, others = (minhash.signatures(texts)[0] for texts in pairs(similarity, PAIRS, round(100 * similarity)))
    estimates = minhash.similarity(ones, others)
    deviation = (similarity * (1 - similarity) / 112) ** 0.5
    met = meet(minhash, ones, others).mean()
    print(
        f"{similarity}: mean {estimates.mean():.4f}, deviation {estimates.std() / deviation:.3f} of a binomial's, met {met:.3f}"
    )
    assert abs(estimates.mean() - similarity) <= 3 * deviation / PAIRS**0.5
    assert estimates.std() == pytest.approx(deviation, rel=0.1)
    within = np.abs(estimates - similarity) <= 3 * deviation
    assert within.mean() >= 0.99  # a normal variable is within three deviations 99.7 times in a hundred
    assert abs(met - (1 - (1 - similarity**8) ** 14)) <= 0.05


def test_unlike_texts_do_not_meet_and_equal_ones_always() -> None:
    minhash = MinHash()
    ones, others = (minhash.signatures(texts)[0] for texts in pairs(0.0, PAIRS, 1))
    assert not meet(minhash, ones, others).any()
    assert meet(minhash, ones, ones).all() and (minhash.similarity(ones, ones) == 1).all()


@pytest.mark.parametrize(("bands", "rows", "width"), [(20, 5, np.uint16), (50, 2, np.uint32), (3, 12, np.uint8)])
def test_other_bands_follow_the_law_too(bands: int, rows: int, width: type) -> None:
    minhash = MinHash(bands=bands, rows=rows)
    assert minhash.width is width
    for similarity in (0.3, 0.5, 0.7, 0.9):
        ones, others = (minhash.signatures(texts)[0] for texts in pairs(similarity, 800, 3))
        assert abs(meet(minhash, ones, others).mean() - (1 - (1 - similarity**rows) ** bands)) <= 0.06


def test_signatures_depend_on_nothing_but_text_and_seed() -> None:
    texts = [*pairs(0.5, 20, 2)[0], "one", "", "...", "two words"]
    whole, full = MinHash(seed=3).signatures(texts)
    alone = np.concatenate([MinHash(seed=3).signatures([text])[0] for text in texts])
    assert np.array_equal(whole, alone)
    assert full.tolist() == [True] * 21 + [False, False, True]
    assert not np.array_equal(whole, MinHash(seed=4).signatures(texts)[0])
    assert whole.dtype == np.uint8 and whole.shape == (24, 112)
    assert MinHash().signatures([])[0].shape == (0, 112)


def test_a_signature_is_a_minimum_over_a_set() -> None:
    minhash = MinHash(gram=1)
    once, shuffled, more = minhash.signatures(["a b c d e f", "f e d c b a a b c", "a b c d e f g"])[0]
    assert np.array_equal(once, shuffled)
    assert 0 < np.count_nonzero(once != more) < 60


def connected(minhash: MinHash, signatures: Signatures) -> list[frozenset[int]]:
    """The clusters by comparing every pair."""
    label = list(range(len(signatures)))
    for one in range(len(signatures)):
        for other in range(one):
            pair = signatures[[one]], signatures[[other]]
            near = minhash.similarity(*pair)[0] >= minhash.threshold and meet(minhash, *pair)[0]
            if near and label[one] != label[other]:
                label = [label[other] if each == label[one] else each for each in label]
    return sets(label)


def sets(labels: Sequence[int]) -> list[frozenset[int]]:
    groups: dict[int, set[int]] = {}
    for index, label in enumerate(labels):
        groups.setdefault(label, set()).add(index)
    return sorted((frozenset(group) for group in groups.values()), key=min)


@pytest.mark.parametrize("family", [2, 5, CROWD + 10])
def test_clusters_are_those_of_all_pairs_in_any_order(family: int) -> None:
    """Families of texts around the threshold: some of each are connected, some are not."""
    rng = random.Random(family)
    texts = []
    for _ in range(120 // family):
        start = _words(rng, 100)
        texts += [" ".join(start + _words(rng, rng.randint(0, 35))) for _ in range(family)]
    minhash = MinHash()
    signatures, _ = minhash.signatures(texts)
    clusters = sets(minhash.clusters(signatures).tolist())
    assert clusters == connected(minhash, signatures)
    assert 1 < len(clusters) < len(texts)
    order = rng.sample(range(len(texts)), len(texts))
    again = sets(minhash.clusters(signatures[order]).tolist())
    assert {frozenset(order[index] for index in group) for group in again} == set(clusters)


def test_many_texts_that_meet_without_being_alike_cost_little() -> None:
    rng = random.Random(0)
    start = _words(rng, 60)
    texts = [" ".join(start + _words(rng, 40)) for _ in range(2000)]
    minhash = MinHash()
    signatures, _ = minhash.signatures(texts)
    begin = time.process_time()
    labels = minhash.clusters(signatures)
    assert time.process_time() - begin < 20  # about a second
    assert len(set(labels.tolist())) > 1900
