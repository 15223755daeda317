"""Broken recipes by the hundred: each ends in recipe errors with a place, in time, and never in a traceback."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uplift.core.errors import RecipeError, RecipeErrors
from uplift.core.recipe_file import load_any
from uplift.core.registry import technique_class, technique_modules
from uplift.core.yaml_reader import plain, read_text

RECIPE = """\
# A run.
name: reviews
model: {use: package, name: smollm2-135m-instruct}
data:
  train: {use: csv, path: reviews.csv, where: {source: rotten_tomatoes}, limit: 1000}
  test: &test {use: jsonl, path: "test set.jsonl"}
  validation: *test
  split: {validation: 0.1, test: 0.2, by: content, seed: 3}
task:
  use: classify
  text: message
  labels: {0: negative, 1: positive}
techniques:
  - {use: label_smoothing, amount: 0.1}
  - use: ema
train:
  lr: 2e-4
  epochs: 2
  batch_tokens: 512
  optimizer: {use: adamw, betas: [0.9, 0.95]}
  schedule: {use: wsd, warmup: 0.1}
  clip: null
evaluate: {bootstrap: 500}
hardware: {device: cpu, prefix_cache: false}
seed: 7
"""
COMPARISON = (
    RECIPE
    + """\
arms:
  - name: small
    change: {train: {lr: 1e-5}, techniques: []}
  - {name: prompt, change: {train: {steps: 0}, techniques: [], task: {head: words}}}
  - use: tfidf
budget: {seconds: 60}
seeds: [0, 1]
placebo: true
"""
)
PIECES = [
    "\t",
    ":",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "*test",
    "!",
    "!!int ",
    "|",
    ">",
    "'",
    '"',
    "#",
    "%",
    "@",
    "`",
    ",",
]
PIECES += [
    "\n",
    "\r",
    "\x00",
    "\x07",
    "\x85",
    "\u2028",
    "\ufeff",
    "\U0001f600",
    "é",
    "---",
    "...",
    "? ",
    "<<: ",
    "~",
    "1e-4",
    "no",
]
PIECES += [
    "!!python/object:os.system ",
    "%YAML 1.1\n",
    "\\",
    "  ",
    "\n  ",
    "\n\n- ",
    "0" * 500,
    "[" * 80,
    "{a: " * 80,
    "- " * 80,
]
VALUES: list[Any] = [None, True, False, -1, 0, 1, 2.5, 1e300, 10**30, "", "no", "x", "auto", "1e-4", [], [1], {}, {"use": "x"}]
VALUES += [
    {"use": None},
    {"use": 3},
    [[]],
    {"a": {"b": []}},
    "../" * 50,
    "x" * 5000,
    "\ud800",
    "\x00",
    {"": 1},
    -1e-9,
    [None] * 40,
]
TRAPS = [
    "",
    " ",
    "#",
    "\t",
    "---",
    "--- \n...",
    "null",
    "[]",
    "{}",
    "{",
    "model",
    "a: b: c",
    "- model: x",
    "model: &a [*a]",
    "model: *b",
    "<<: *x",
    "? x",
    "{? : 1}",
    "!!set {a, b}",
    "!!binary aGk=",
    "!!python/name:os.system",
    "extends: recipe.yaml",
    "extends: .",
    "extends: /dev/null",
    "extends: ''",
    "extends: 3",
    "extends: none.yaml",
    "base: recipe.yaml\narms: []",
    "base: none.yaml\narms: [x]",
    "base: 3\narms: {}",
    "arms: 3",
    "arms: [{name: a, change: [1]}]",
    "arms: [{name: a, change: {techniques: 3}}]",
    "techniques: [lora, lora, {use: [lora]}, null, 3, {}]",
    "model: x\ndata: {train: x}\ntechniques: {use: lora}",
    "model: x\ndata: {train: x}\ntrain: {lr: 010, steps: 1_000, clip: no}",
    "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n" + "".join(f"k{i}: [*c,*c]\n" for i in range(2000)),
    "a" * 200_000,
    "[" * 200_000,
    "{" * 200_000,
    "- " * 200_000,
    "? " * 200_000,
    "a: " * 200_000,
    "!" * 200_000,
    '"' + "\\" * 200_001,
    "&a " * 50_000,
    "# x\n" * 100_000,
    "model: |\n" + "  x\n" * 100_000,
    "".join(f"k{i}: {i}\n" for i in range(9_000)),
    "".join(f"k{i}: {i}\n" for i in range(50_000)),
    "model: x\ndata: {train: x}\ntechniques: [" + "lorra, " * 5000 + "]",
    "x: " + "9" * 100_000,
    "x: 1e" + "9" * 1000,
    "\ufeff\ufeff",
    "a: !<tag:yaml.org,2002:str> b",
    "%TAG ! tag:x,2000:\n---\na: !b c",
]


def text_mutation(random_: random.Random, text: str) -> bytes:
    """The text with one to four pieces removed, put in, doubled or swapped; now and then a byte that is no UTF-8."""
    for _ in range(random_.randint(1, 4)):
        at, length = random_.randrange(len(text) + 1), random_.randint(1, 12)
        kind = random_.randrange(5)
        if kind == 0:
            text = text[:at] + text[at + length :]
        elif kind == 1:
            text = text[:at] + random_.choice(PIECES) + text[at:]
        elif kind == 2:
            text = text[:at] + text[at : at + length] * 2 + text[at + length :]
        elif kind == 3:
            text = text[:at] + random_.choice(PIECES) + text[at + length :]
        else:
            lines = text.split("\n")
            first, second = random_.randrange(len(lines)), random_.randrange(len(lines))
            lines[first], lines[second] = lines[second], lines[first]
            text = "\n".join(lines)
    content = text.encode("utf-8", "surrogatepass")
    if random_.random() < 0.05:
        at = random_.randrange(len(content) + 1)
        content = content[:at] + bytes([random_.randrange(128, 256)]) + content[at:]
    return content


def schema_mutation(random_: random.Random, text: str) -> bytes:
    """The recipe's tree with one to three values replaced, keys renamed, removed or added; written as JSON."""
    tree = plain(read_text(text, "good")[0])
    for _ in range(random_.randint(1, 3)):
        holder, key = random_.choice(list(slots(tree)))
        kind = random_.randrange(4)
        if kind == 0 or isinstance(holder, list):
            holder[key] = copy.deepcopy(random_.choice(VALUES))
        elif kind == 1:
            del holder[key]
        elif kind == 2:
            holder[str(key)[:-1] + random_.choice(["", "s", "x"])] = holder.pop(key)
        else:
            holder[random_.choice(["lr", "use", "path", "extends", "arms", "base", "seed", "x y", "ключ"])] = random_.choice(
                VALUES
            )
        if not list(slots(tree)):
            break
    return json.dumps(tree, ensure_ascii=random_.random() < 0.5).encode("utf-8", "surrogatepass")


def slots(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) of a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield tree, key
        yield from slots(value)


def broken_recipes(seed: int) -> Iterator[bytes]:
    """Traps first, then mutations without end."""
    yield from (trap.encode("utf-8", "surrogatepass") for trap in TRAPS)
    random_ = random.Random(seed)
    while True:
        mutate = random_.choice([text_mutation, schema_mutation])
        yield mutate(random_, random_.choice([RECIPE, COMPARISON]))


def check(content: bytes, path: Path) -> bool:
    """Whether ``content`` is broken; fails when it is broken and the errors are not as promised."""
    path.write_bytes(content)
    started = time.process_time()
    try:
        load_any(path)
    except RecipeErrors as error:
        assert error.exit_code == 2 and error.problems
        for problem in error.problems:
            assert isinstance(problem, RecipeError)
            where = problem.where
            assert where is not None and where.file == str(path), f"no file: {problem}\n{content[:300]!r}"
            assert where.line and where.column, f"no line: {problem}\n{content[:300]!r}"
            assert problem.what and problem.what.isprintable(), repr(problem.what)
            assert problem.fix or problem.why, f"no reason and no remedy: {problem}"
        return True
    finally:
        assert time.process_time() - started < 5.0, f"took {time.process_time() - started:.1f} s: {content[:300]!r}"
    return False


def check_many(count: int, seed: int, path: Path) -> None:
    assert not check(RECIPE.encode(), path) and not check(COMPARISON.encode(), path), "the unbroken ones load"
    for use in technique_modules():
        technique_class(use)  # the libraries behind them load once per process and are not part of the time
    broken = 0
    for content in broken_recipes(seed):
        broken += check(content, path)
        if broken == count:
            return


def test_500_broken_recipes(tmp_path: Path) -> None:
    check_many(500, 1, tmp_path / "recipe.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_20_000_broken_recipes_in_ten_parts(tmp_path: Path, seed: int) -> None:
    check_many(2000, seed, tmp_path / "recipe.yaml")


@pytest.mark.parametrize("count", [300])
def test_broken_overrides(tmp_path: Path, count: int) -> None:
    """Overrides of any shape either apply or name themselves."""
    path = tmp_path / "recipe.yaml"
    path.write_text(COMPARISON, encoding="utf-8")
    random_ = random.Random(5)
    keys = [
        "train.lr",
        "techniques.0.amount",
        "arms.1.change",
        "base.train",
        "model",
        "data.test.path",
        "seeds",
        "x",
        "",
        "train..",
        "a" * 500,
    ]
    for _ in range(count):
        text = f"{random_.choice(keys)}{random_.choice(['', '.x', '.0', '.99'])}{random_.choice(['=', '', '=='])}"
        text += random_.choice([*PIECES, *(json.dumps(value, ensure_ascii=False) for value in VALUES)])
        try:
            load_any(path, [text])
        except RecipeErrors as error:
            assert all(problem.where is not None and problem.where.file for problem in error.problems), text
