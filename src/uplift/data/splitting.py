"""Train, validation and test parts by a hash of the content: adding rows moves no other row, duplicates never straddle."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from uplift.core.recipe import Split
from uplift.core.values import Part, Sample
from uplift.data.formats import content_text


def split(samples: Sequence[Sample], settings: Split) -> dict[Part, list[Sample]]:
    """Each sample's part; the order within a part is that of ``samples``. Shares hold on average over contents."""
    parts: dict[Part, list[Sample]] = {"train": [], "validation": [], "test": []}
    for sample in samples:
        position = split_position(sample, settings)
        if position < settings.test:
            parts["test"].append(sample)
        elif position < settings.test + settings.validation:
            parts["validation"].append(sample)
        else:
            parts["train"].append(sample)
    return parts


def split_position(sample: Sample, settings: Split) -> float:
    """Where a sample lies in [0, 1): a hash of the seed and its group, or of its content without case and spacing."""
    key = sample.group or "" if settings.by == "group" else normalized(content_text(sample))
    digest = hashlib.blake2b(f"{settings.seed}\x1f{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def normalized(text: str) -> str:
    """``text`` in lower case with single spaces: texts that differ only there count as the same."""
    return " ".join(text.lower().split())
