"""Splits: duplicates stay on one side, shares hold, adding rows moves no other; by time, by strata, by near duplicates."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, date, datetime

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

from uplift.core.errors import DataError
from uplift.core.recipe import ClassifyTask, Split, TextTask
from uplift.core.values import Origin, Part, Sample
from uplift.data.formats import sample_id, to_samples
from uplift.data.moments import moment
from uplift.data.rows import Row, RowProblem
from uplift.data.splitting import normalized, split

SETTINGS = Split(validation=0.1, test=0.2, seed=3)


def sample(text: str, group: str | None = None, line: int = 1) -> Sample:
    return Sample(sample_id(text), Origin("f", line), text=text, group=group)


def test_shares_hold_and_parts_cover() -> None:
    samples = [sample(f"text {index}", line=index) for index in range(10_000)]
    parts = split(samples, SETTINGS)
    assert sorted(s.origin.line for part in parts.values() for s in part) == list(range(10_000))
    # Five standard deviations of a binomial share.
    assert abs(len(parts["test"]) / 10_000 - 0.2) < 5 * (0.2 * 0.8 / 10_000) ** 0.5
    assert abs(len(parts["validation"]) / 10_000 - 0.1) < 5 * (0.1 * 0.9 / 10_000) ** 0.5


def test_duplicates_never_straddle_whatever_their_case_and_spacing() -> None:
    rng = random.Random(0)
    samples = []
    for index in range(500):
        text = f"Some Text number {index}"
        variants = [text, text.upper(), f"  {text}\n", text.replace(" ", "   ")]
        samples += [sample(rng.choice(variants)) for _ in range(4)]
    parts = split(samples, SETTINGS)
    contents = {name: {normalized(s.text or "") for s in part} for name, part in parts.items()}
    assert all(contents.values())
    assert not contents["train"] & contents["test"] and not contents["train"] & contents["validation"]
    assert not contents["test"] & contents["validation"]


def test_groups_never_straddle() -> None:
    settings = Split(test=0.5, by="group", group="doc")
    samples = [sample(f"text {index}", group=str(index % 40)) for index in range(400)]
    parts = split(samples, settings)
    assert parts["test"] and parts["train"]
    assert not {s.group for s in parts["test"]} & {s.group for s in parts["train"]}


def test_more_rows_move_no_row_and_the_seed_moves_them() -> None:
    samples = [sample(f"text {index}") for index in range(200)]
    before = {s.id for s in split(samples[:100], SETTINGS)["test"]}
    after = {s.id for s in split(samples, SETTINGS)["test"]}
    assert before == after & {s.id for s in samples[:100]}
    assert {s.id for s in split(samples, Split(test=0.2, validation=0.1, seed=4))["test"]} != after


def test_wider_shares_contain_narrower_ones() -> None:
    samples = [sample(f"text {index}") for index in range(300)]
    narrow, wide = ({s.id for s in split(samples, Split(test=share))["test"]} for share in (0.1, 0.3))
    assert narrow < wide


# -- all kinds ---------------------------------------------------------------------------------------------------------
SHARES = st.sampled_from([(0.0, 0.2), (0.1, 0.1), (0.25, 0.5), (0.3, 0.0), (0.05, 0.33)])
KINDS = [{"by": "content"}, {"stratify": "c"}, {"by": "near"}, {"by": "near", "stratify": "c"}, {"by": "time", "time": "t"}]


def marked(text: str, line: int, stratum: str = "x", when: float = 0) -> Sample:
    extras = {"stratum": stratum, "time": ("number", when)}
    return Sample(sample_id(text), Origin("f", line), text=text, extras=extras)


@st.composite
def corpora(draw: st.DrawFn) -> list[Sample]:
    """Rows of few texts, so that many are equal, with strata and times that know nothing of the texts."""
    rows = draw(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc"), st.integers(0, 9), st.booleans()), max_size=80))
    texts = [f"Text {number} of all" for number in range(31)]
    return [
        marked(texts[number].upper() if loud else texts[number], line, stratum, when)
        for line, (number, stratum, when, loud) in enumerate(rows)
    ]


def placed(parts: dict[Part, list[Sample]]) -> dict[int, Part]:
    return {sample.origin.line: part for part, samples in parts.items() for sample in samples}


@settings(max_examples=60)
@given(corpora(), SHARES, st.sampled_from(KINDS), st.integers(0, 3), st.randoms(use_true_random=False))
def test_every_kind_covers_never_straddles_and_knows_no_order(
    samples: list[Sample], shares: tuple[float, float], kind: dict[str, str], seed: int, rng: random.Random
) -> None:
    asked = Split.model_validate({"validation": shares[0], "test": shares[1], "seed": seed, **kind})
    parts = split(samples, asked)
    where = placed(parts)
    assert sorted(where) == list(range(len(samples))) and sum(map(len, parts.values())) == len(samples)
    for part in parts.values():
        assert [sample.origin.line for sample in part] == sorted(sample.origin.line for sample in part)
    homes: dict[str, set[Part]] = {}
    for sample in samples:
        homes.setdefault(normalized(sample.text or ""), set()).add(where[sample.origin.line])
    assert all(len(parts_of) == 1 for parts_of in homes.values())
    shuffled = rng.sample(samples, len(samples))
    assert placed(split(shuffled, asked)) == where


# -- stratified --------------------------------------------------------------------------------------------------------
@settings(max_examples=60)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), SHARES, st.integers(0, 9))
def test_each_stratum_has_its_shares_to_within_one_row(sizes: list[int], shares: tuple[float, float], seed: int) -> None:
    samples = [
        marked(f"text {stratum} {index}", 1000 * stratum + index, str(stratum))
        for stratum, size in enumerate(sizes)
        for index in range(size)
    ]
    parts = split(samples, Split(validation=shares[0], test=shares[1], stratify="c", seed=seed))
    for part, share in (("validation", shares[0]), ("test", shares[1])):
        counts = Counter(sample.extras["stratum"] for sample in parts[part])  # type: ignore[index]
        assert all(abs(counts[str(stratum)] - share * size) <= 1 for stratum, size in enumerate(sizes))
    # Over all strata nothing adds up: the totals are as close as one rounding.
    assert abs(len(parts["test"]) - shares[1] * len(samples)) <= 0.5 + 1e-9


def test_strata_smaller_than_a_share_are_not_all_left_out() -> None:
    samples = [
        marked(f"text {stratum} {index}", 2 * stratum + index, str(stratum)) for stratum in range(50) for index in range(2)
    ]
    parts = split(samples, Split(test=0.1, validation=0.1, stratify="c"))
    assert (len(parts["test"]), len(parts["validation"])) == (10, 10)


def test_a_text_with_two_labels_stays_whole() -> None:
    samples = [marked("same text", line, "ab"[line > 2]) for line in range(5)]
    samples += [marked(f"text {line}", line, "ab"[line % 2]) for line in range(5, 60)]
    for seed in range(20):
        where = placed(split(samples, Split(test=0.5, stratify="c", seed=seed)))
        assert len({where[line] for line in range(5)}) == 1


def test_the_stratum_comes_from_the_rows() -> None:
    rows = [
        Row({"text": f"text {index}", "label": "np"[index % 3 == 0], "source": index % 2}, Origin("f", index))
        for index in range(90)
    ]
    asked = Split(test=0.2, stratify="label")
    parts = split(to_samples(rows, ClassifyTask(), "class", split=asked).samples, asked)
    assert Counter(sample.label for sample in parts["test"]) == {0: 12, 1: 6}
    asked = Split(test=0.2, stratify="source")
    parts = split(to_samples(rows, TextTask(), "language", split=asked).samples, asked)
    assert Counter(sample.origin.line % 2 for sample in parts["test"]) == {0: 9, 1: 9}
    rows[4] = Row({"text": "x", "label": "n", "source": None}, Origin("f", 4))
    assert [bad.rule for bad in to_samples(rows, TextTask(), "language", split=asked).quarantined] == ["missing_field"]
    with pytest.raises(DataError, match=r"no column `sourc`, did you mean `source`"):
        to_samples(rows, TextTask(), "language", split=Split(test=0.2, stratify="sourc"))


# -- time --------------------------------------------------------------------------------------------------------------
BY_TIME = Split(validation=0.2, test=0.2, by="time", time="t")


def test_the_latest_are_test_and_those_before_validation() -> None:
    times = list(range(50))
    random.Random(0).shuffle(times)
    parts = split([marked(f"text {when}", line, when=when) for line, when in enumerate(times)], BY_TIME)
    found = {part: sorted(sample.extras["time"][1] for sample in samples) for part, samples in parts.items()}
    assert found == {"train": list(range(30)), "validation": list(range(30, 40)), "test": list(range(40, 50))}


@settings(max_examples=60)
@given(st.lists(st.integers(0, 12), max_size=80), SHARES)
def test_one_moment_is_in_one_part_and_parts_follow_each_other(times: list[int], shares: tuple[float, float]) -> None:
    samples = [marked(f"text {line}", line, when=when) for line, when in enumerate(times)]
    parts = split(samples, Split(validation=shares[0], test=shares[1], by="time", time="t"))
    found = [{sample.extras["time"][1] for sample in parts[part]} for part in ("train", "validation", "test")]
    assert sum(map(len, found)) == len(set(times))
    for earlier in (0, 1):
        for later in range(earlier + 1, 3):
            assert not found[earlier] or not found[later] or max(found[earlier]) < min(found[later])
    most = max(Counter(times).values(), default=0)
    assert abs(len(parts["test"]) - shares[1] * len(times)) <= most / 2 + 0.5


def test_a_text_that_comes_again_is_as_old_as_at_first() -> None:
    samples = [marked(f"text {when}", when, when=when) for when in range(20)]
    samples.append(marked("TEXT 3", 20, when=99))
    assert placed(split(samples, BY_TIME))[20] == "train"


def test_times_are_dates_or_numbers_and_not_both() -> None:
    written = ["2024-01-31", "2024-02-01T00:00:00+02:00", "2024-01-31 22:00", datetime(2024, 2, 1, 1), date(2024, 2, 2)]
    rows = [Row({"text": f"text {index}", "t": value}, Origin("f", index)) for index, value in enumerate(written)]
    bad = ["", None, "yesterday", "31.1.2024", True, float("nan"), "1e999", "2024-02-30", [1]]
    rows += [Row({"text": f"bad {index}", "t": value}, Origin("f", 50 + index)) for index, value in enumerate(bad)]
    converted = to_samples(rows, TextTask(), "language", split=BY_TIME)
    assert [problem.rule for problem in converted.quarantined] == ["missing_field"] * 2 + ["time"] * 7
    where = placed(split(converted.samples, Split(test=0.4, by="time", time="t")))
    assert where == {0: "train", 1: "train", 2: "train", 3: "test", 4: "test"}
    mixed = to_samples([*rows[:2], Row({"text": "x", "t": 7}, Origin("f", 9))], TextTask(), "language", split=BY_TIME)
    with pytest.raises(DataError, match="dates in some rows and plain numbers in others"):
        split(mixed.samples, BY_TIME)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, ("number", 7)),
        ("7.5", ("number", 7.5)),
        (" 1700000000 ", ("number", 1_700_000_000)),
        ("1970-01-01", ("date", 0)),
        ("1970-01-01T01:00:00+01:00", ("date", 0)),
        ("1970-01-01T00:00:00.000001Z", ("date", 1)),
        (datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), ("date", -1_000_000)),
        (date(1970, 1, 2), ("date", 86_400_000_000)),
    ],
)
def test_moments(value: object, expected: tuple[str, float]) -> None:
    assert moment(value, "t") == expected


def test_a_long_text_is_no_moment() -> None:
    for text in ("9" * 100_000, "2024-" * 20_000, " " * 100_000 + "x"):
        with pytest.raises(RowProblem) as caught:
            moment(text, "t")
        assert len(caught.value.detail) < 200


# -- near duplicates ---------------------------------------------------------------------------------------------------
def reworded(rng: random.Random, families: int, copies: int, words: int = 120) -> list[Sample]:
    """Families of texts, each member of a family with one word changed."""
    samples = []
    for family in range(families):
        base = [f"w{rng.randrange(5000)}" for _ in range(words)]
        for _ in range(copies):
            text = list(base)
            text[rng.randrange(words)] = f"changed{rng.randrange(10**9)}"
            samples.append(marked(" ".join(text), len(samples), str(family % 2)))
    return samples


@pytest.mark.parametrize("stratify", [None, "c"])
def test_near_duplicates_never_straddle(stratify: str | None) -> None:
    samples = reworded(random.Random(0), families=150, copies=4)
    where = placed(split(samples, Split(validation=0.1, test=0.3, by="near", stratify=stratify)))
    families = [{where[4 * family + copy] for copy in range(4)} for family in range(150)]
    assert all(len(parts) == 1 for parts in families)
    share = sum(parts == {"test"} for parts in families) / 150
    assert abs(share - 0.3) < (4 * (0.3 * 0.7 / 150) ** 0.5 if stratify is None else 0.02)
    by_content = placed(split(samples, Split(validation=0.1, test=0.3)))
    assert sum(len({by_content[4 * family + copy] for copy in range(4)}) > 1 for family in range(150)) > 75


def test_texts_without_words_are_not_near_each_other() -> None:
    samples = [marked("!" * (line + 1), line) for line in range(400)]
    parts = split(samples, Split(test=0.5, by="near"))
    assert abs(len(parts["test"]) - 200) < 50


def test_a_new_row_moves_only_its_own_cluster() -> None:
    samples = reworded(random.Random(1), families=100, copies=3)
    asked = Split(test=0.4, by="near")
    before = placed(split(samples, asked))
    after = placed(
        split([*samples, *(marked(f"{sample.text} more", 1000 + line) for line, sample in enumerate(samples[:30]))], asked)
    )
    moved = {line // 3 for line, part in before.items() if after[line] != part}
    assert moved <= set(range(10))


# -- settings ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"by": "time"}, "needs `time:`"),
        ({"by": "group"}, "needs `group:`"),
        ({"time": "t"}, "`time:` is used with `by: time` alone"),
        ({"group": "g", "by": "near"}, "`group:` is used with `by: group` alone"),
        ({"by": "time", "time": "t", "stratify": "c"}, "`stratify:` goes with"),
        ({"by": "group", "group": "g", "stratify": "c"}, "`stratify:` goes with"),
    ],
)
def test_settings_that_do_nothing_are_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Split.model_validate({"test": 0.2, **values})
