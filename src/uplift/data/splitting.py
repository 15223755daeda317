"""Train, validation and test parts in which equal texts never straddle.

Texts that belong together (equal but for case and spacing, of one group, nearly equal) move as one unit. A unit's place is a
hash of the seed and its key, so adding rows moves no other row: with ``by: content`` and ``by: group`` never, with ``by: near``
only rows whose cluster changes. ``stratify`` and ``by: time`` hold exact shares, so their cuts move with every row added.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uplift.core.errors import DataError
from uplift.core.recipe import Split
from uplift.core.values import Part, Sample
from uplift.data.clean.minhash import MinHash
from uplift.data.formats import content_text

Parts = Mapping[str, Part]
"""Key of a unit -> its part."""


def split(samples: Sequence[Sample], settings: Split) -> dict[Part, list[Sample]]:
    """Each sample's part; the order within a part is that of ``samples``.

    Shares hold on average over units; with ``stratify`` to within one unit for each value, with ``by: time`` to within the
    texts of one moment. Raises DataError: times that cannot be compared.
    """
    keys = KEYS[settings.by](samples)
    if settings.by == "time":
        part_of = _by_time(samples, keys, settings)
    elif settings.stratify is not None:
        part_of = _by_stratum(samples, keys, settings)
    else:
        part_of = {key: _part(position(key, settings.seed), settings) for key in set(keys)}
    parts: dict[Part, list[Sample]] = {"train": [], "validation": [], "test": []}
    for sample, key in zip(samples, keys, strict=True):
        parts[part_of[key]].append(sample)
    return parts


def position(key: str, seed: int) -> float:
    """Where a unit lies in [0, 1)."""
    digest = hashlib.blake2b(f"{seed}\x1f{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def normalized(text: str) -> str:
    """``text`` in lower case with single spaces: texts that differ only there count as the same."""
    flat = text.lower().strip()
    if flat.isascii():
        flat = flat.replace("\n", " ")
        if "  " not in flat and flat.isprintable():  # nothing is left to do, and that is known without taking it apart
            return flat
    return " ".join(flat.split())


def _part(place: float, settings: Split) -> Part:
    """Test first, so that a wider share contains a narrower one."""
    return "test" if place < settings.test else "validation" if place < settings.test + settings.validation else "train"


# -- what moves as one -------------------------------------------------------------------------------------------------
def _content_keys(samples: Sequence[Sample]) -> list[str]:
    return [normalized(content_text(sample)) for sample in samples]


def _group_keys(samples: Sequence[Sample]) -> list[str]:
    return [sample.group or "" for sample in samples]


def _near_keys(samples: Sequence[Sample]) -> list[str]:
    """The key of each sample's cluster of near duplicates: that of the member whose own hash is least."""
    keys = _content_keys(samples)
    if not keys:
        return []
    texts = list(dict.fromkeys(keys))
    minhash = MinHash()
    signatures, comparable = minhash.signatures(texts)
    found = zip(minhash.clusters(signatures).tolist(), comparable.tolist(), strict=True)
    # A text without words is alone.
    clusters = [cluster if some else -index - 1 for index, (cluster, some) in enumerate(found)]
    lead: dict[int, str] = {}
    # The order of the leads has nothing to do with ``position``: a cluster is as likely to be in a part as a single text.
    for index in sorted(range(len(texts)), key=lambda each: hashlib.blake2b(texts[each].encode(), digest_size=16).digest()):
        lead.setdefault(clusters[index], texts[index])
    key_of = {text: lead[cluster] for text, cluster in zip(texts, clusters, strict=True)}
    return [key_of[key] for key in keys]


KEYS: Mapping[str, Callable[[Sequence[Sample]], list[str]]] = {
    "content": _content_keys,
    "group": _group_keys,
    "near": _near_keys,
    "time": _content_keys,
}
"""``by`` -> the key of each sample's unit."""


# -- exact shares ------------------------------------------------------------------------------------------------------
@dataclass
class _Unit:
    """What moves as one: its key, how many samples it has, and what it is ordered by."""

    key: str
    size: int
    order: Any


def _by_stratum(samples: Sequence[Sample], keys: Sequence[str], settings: Split) -> Parts:
    """In each stratum the units in the order of their hashes are dealt out: test, validation, train."""
    members: dict[str, Counter[str]] = {}
    for sample, key in zip(samples, keys, strict=True):
        members.setdefault(key, Counter())[sample.extras["stratum"]] += 1
    strata: dict[str, list[_Unit]] = {}
    for key, counts in members.items():
        # A text with two labels goes with the one that it has more often.
        stratum = min(counts, key=lambda each: (-counts[each], each))
        strata.setdefault(stratum, []).append(_Unit(key, counts.total(), (position(key, settings.seed), key)))
    names = sorted(strata, key=lambda name: (position(name, settings.seed), name))
    sizes = [sum(unit.size for unit in strata[name]) for name in names]
    result: dict[str, Part] = {}
    quotas = zip(_quotas(sizes, settings.test), _quotas(sizes, settings.validation), strict=True)
    for name, (test, validation) in zip(names, quotas, strict=True):
        result |= _dealt(sorted(strata[name], key=lambda unit: unit.order), test, validation)
    return result


def _by_time(samples: Sequence[Sample], keys: Sequence[str], settings: Split) -> Parts:
    """The latest are test, those before them validation. A text that comes again is as old as when it first came."""
    kinds = {sample.extras["time"][0] for sample in samples}
    if len(kinds) > 1:
        what = f"`{settings.time}` holds dates in some rows and plain numbers in others"
        raise DataError(what, where="data.split.time", why="they cannot be compared", fix="write all of them in one way")
    units: dict[str, _Unit] = {}
    for sample, key in zip(samples, keys, strict=True):
        when = sample.extras["time"][1]
        unit = units.setdefault(key, _Unit(key, 0, when))
        unit.size, unit.order = unit.size + 1, min(unit.order, when)
    ordered = sorted(units.values(), key=lambda unit: unit.order, reverse=True)
    whole = len(samples)
    return _dealt(ordered, round(whole * settings.test), round(whole * settings.validation), tied=True)


def _quotas(sizes: Sequence[int], share: float) -> list[int]:
    """Whole numbers of rows, each within one of its share; sums are rounded, so that small strata do not all get none."""
    result, total, given = [], 0, 0
    for size in sizes:
        total += size
        result.append(round(total * share) - given)
        given += result[-1]
    return result


def _dealt(units: Sequence[_Unit], test: int, validation: int, *, tied: bool = False) -> dict[str, Part]:
    """The first units, up to the number of rows closest to ``test``, are test, and so on.

    ``tied``: units of equal order stay together.
    """
    blocks = _blocks(units, tied)
    ends = [0]
    for block in blocks:
        ends.append(ends[-1] + sum(unit.size for unit in block))
    first = _closest(ends, test)
    second = max(first, _closest(ends, ends[first] + validation))
    result: dict[str, Part] = {}
    for index, block in enumerate(blocks):
        part: Part = "test" if index < first else "validation" if index < second else "train"
        result |= {unit.key: part for unit in block}
    return result


def _blocks(units: Iterable[_Unit], tied: bool) -> list[list[_Unit]]:
    blocks: list[list[_Unit]] = []
    for unit in units:
        if tied and blocks and blocks[-1][0].order == unit.order:
            blocks[-1].append(unit)
        else:
            blocks.append([unit])
    return blocks


def _closest(ends: Sequence[int], wanted: int) -> int:
    """How many blocks come closest to ``wanted`` rows; of two that are as close, the fewer."""
    return min(range(len(ends)), key=lambda count: (abs(ends[count] - wanted), count))
