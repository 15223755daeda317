"""A scaling study without training: which runs a design makes, and what is said of outcomes made from a known law."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from uplift.core.errors import DataError, UsageError
from uplift.core.recipe import Budget, Recipe
from uplift.core.study_report import ScalingReport
from uplift.study.plan import Tokens
from uplift.study.scaling import (
    Design,
    Ladder,
    Outcome,
    Rung,
    best_rate,
    check_design,
    check_text,
    chosen_rate,
    fitted_runs,
    ladder_for,
    next_rate,
    price_in_seconds,
    recipe_for,
    rungs_of,
    search_rung,
)
from uplift.study.scaling_law import Law, Price, best_split
from uplift.study.scaling_page import render_scaling_page, render_scaling_terminal
from uplift.study.scaling_report import Scene, scaling_report
from uplift.study.scaling_tables import tables_of
from uplift.testing.tiny import merged

TOKENS = Tokens(rows=5000, mean=200.0, longest=256, learned=1.0, test_rows=100)
LADDER = Ladder.of((30_000, 100_000, 300_000, 1_000_000), (300_000, 1_000_000, 5_000_000))
DESIGN = Design(sizes=LADDER.sizes, tokens=LADDER.tokens)
LAW = Law(*(np.float64(value) for value in (1.2, 40.0, 400.0, 0.3, 0.4)))


def recipe(**changes: object) -> Recipe:
    base = {
        "name": "prose",
        "model": {"use": "blank", "shape": "llama", "parameters": "1M"},
        "data": {"train": {"use": "text", "path": "prose.txt"}, "split": {"test": 0.1}},
        "task": {"use": "text"},
        "train": {"lr": 3e-3, "steps": 50, "schedule": {"use": "wsd"}, "budget": {"seconds": 60}},
        "seed": 5,
    }
    return Recipe.model_validate(merged(base, changes))


# -- which runs --------------------------------------------------------------------------------------------------------
def test_every_run_has_its_own_size_tokens_rate_and_whole_schedule() -> None:
    base = recipe()
    rungs = rungs_of(Design(sizes=LADDER.sizes, tokens=LADDER.tokens, seeds=2), LADDER, base, 3.0)
    assert len(rungs) == 4 * 3 * 2 and len(set(rungs)) == 24
    assert [rung.size * rung.tokens for rung in rungs] == sorted(rung.size * rung.tokens for rung in rungs)
    held_out = [rung for rung in rungs if rung.held_out]
    assert {(rung.size, rung.tokens) for rung in held_out} == {(1_000_000, 5_000_000)} and len(held_out) == 2
    made = [recipe_for(rung, base, TOKENS, "runs") for rung in rungs]
    assert len({one.hash() for one in made}) == 24
    for rung, one in zip(rungs, made, strict=True):
        assert one.model.parameters == rung.size and one.train.budget == Budget(tokens=rung.tokens)  # type: ignore[union-attr]
        assert one.train.steps is None and one.train.epochs * TOKENS.per_epoch > rung.tokens, "the tokens end it"
        assert one.train.schedule == base.train.schedule and one.seed == rung.seed and not one.evaluate.base
        assert one.train.lr == pytest.approx(9e-3 * (30_000 / rung.size) ** (1 / 3))


def test_the_search_is_the_same_run_as_that_of_the_ladder() -> None:
    base = recipe()
    found = search_rung(LADDER, base, 3.0)
    same = next(one for one in rungs_of(DESIGN, LADDER, base, 3.0) if (one.size, one.tokens) == (30_000, 1_000_000))
    assert recipe_for(found, base, TOKENS, "runs").hash() == recipe_for(same, base, TOKENS, "runs").hash()


def test_the_search_begins_at_the_rate_of_the_recipe_or_of_a_new_model_of_the_smallest_size() -> None:
    assert search_rung(LADDER, recipe(), 3.0).lr == pytest.approx(9e-3)
    automatic = search_rung(LADDER, recipe(train={"lr": "auto"}), 1.0).lr
    assert automatic == pytest.approx(0.003239 - 0.0001395 * math.log(30_000))


@pytest.mark.parametrize("budget", [1e13, 1e15, 1e18])
def test_the_ladder_spends_its_budget(budget: float) -> None:
    found = ladder_for(budget, Price(), 1e12, 2, 3)
    assert 0.85 * budget < found.cost(Price(), 2, 3) <= 1.02 * budget
    assert len(found.sizes) == 4 and len(found.tokens) == 3
    assert found.tokens[-1] == pytest.approx(10 * found.sizes[-1], rel=0.06)


def test_the_cost_of_a_ladder_is_that_of_its_runs() -> None:
    found = Ladder.of((1000, 2000), (5000, 6000))
    each = Price(each=6.0, fixed=100.0)
    runs = sum(tokens * (100 + 6 * size) for size in (1000, 2000) for tokens in (5000, 6000))
    assert found.cost(each, 3, 2) == 3 * runs + 2 * 5000 * 6100


def test_a_ladder_ends_where_the_text_ends_and_grows_its_models_instead() -> None:
    free, cut = ladder_for(1e15, Price(), 1e12, 1, 3), ladder_for(1e15, Price(), 2e6, 1, 3)
    assert cut.tokens[-1] == 2_000_000 and cut.sizes[-1] > free.sizes[-1]
    assert 0.85e15 < cut.cost(Price(), 1, 3) <= 1.02e15


def test_the_rate_is_searched_outwards() -> None:
    assert next_rate({}) == 1.0
    assert next_rate({1.0: 3.0}) == 3.0
    assert next_rate({1.0: 3.0, 3.0: 2.9}) == pytest.approx(1 / 3)
    low = {1.0: 3.0, 3.0: 3.2, 1 / 3: 3.1}
    assert next_rate(low) is None and best_rate(low) == 1.0
    edge = {1.0: 3.0, 3.0: 2.9, 1 / 3: 3.1}
    assert next_rate(edge) == 9.0
    assert next_rate({**edge, 9.0: 3.0}) is None
    assert next_rate({**edge, 9.0: 2.8}) == 27.0
    assert next_rate({**edge, 9.0: 2.8, 27.0: 2.7}) is None
    diverged = {1.0: math.inf, 3.0: math.inf, 1 / 3: 3.0}
    assert best_rate(diverged) == 1 / 3 and next_rate(diverged) == pytest.approx(1 / 9)


@pytest.mark.parametrize("lowest", [0.6, 0.9, 1.0, 1.3, 1.7])
def test_the_rate_is_taken_from_between_those_tried(lowest: float) -> None:
    def bowl(factor: float) -> float:
        return 3.0 + 0.2 * math.log(factor / lowest) ** 2

    assert chosen_rate({factor: bowl(factor) for factor in (1.0, 3.0, 1 / 3)}) == pytest.approx(lowest, rel=1e-2)


def test_the_best_rate_tried_is_taken_at_an_edge_beside_a_divergence_and_when_all_are_alike() -> None:
    assert chosen_rate({1.0: 3.0, 3.0: 2.9, 1 / 3: 3.1}) == 3.0
    assert chosen_rate({1.0: 3.0, 3.0: math.inf, 1 / 3: 3.1}) == 1.0
    assert chosen_rate({1.0: 3.0, 3.0: 3.0, 1 / 3: 3.0}) == 1 / 3
    assert chosen_rate({1.0: 3.0}) == 1.0


def test_seconds_a_token_are_a_line_over_the_size() -> None:
    exact = price_in_seconds([1e5, 3e5, 1e6], [2e-5 + 1e-10 * N for N in (1e5, 3e5, 1e6)])
    assert (exact.each, exact.fixed) == pytest.approx((1e-10, 2e-5))
    one = price_in_seconds([1e5], [5e-5])
    assert (one.each, one.fixed) == pytest.approx((5e-10, 0.0))
    falling = price_in_seconds([1e5, 1e6], [3e-5, 2e-5])
    assert falling.each > 0 and falling.fixed == 0.0, "a larger model is never cheaper"


# -- refusals ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"use": "hf", "id": "x"}}, "made of new models"),
        ({"model": {"parameters": None, "width": 64, "layers": 4}}, "dimensions are fixed"),
        ({"model": {"heads": 4}}, "dimensions are fixed"),
        ({"model": {"shape": "qwen3_moe"}}, "mixture of experts"),
        ({"task": {"use": "classify"}}, "not about labels"),
        ({"train": {"steps": 0}}, "trains nothing"),
        ({"train": {"schedule": {"use": "constant"}}}, "only a part of a schedule"),
        ({"train": {"schedule": {"use": "decay", "warmup": 0.0}}}, "only a part of a schedule"),
    ],
)
def test_a_recipe_that_makes_no_ladder_is_refused(changes: dict[str, dict[str, object]], words: str) -> None:
    whole = {**recipe().model_dump(mode="json"), "name": "prose"}
    for key, value in changes.items():
        whole[key] = value if "use" in value and key != "train" else merged(whole[key], value)
    with pytest.raises(UsageError, match=words) as caught:
        check_design(DESIGN, Recipe.model_validate(whole))
    assert caught.value.fix
    check_design(DESIGN, recipe())


def test_a_ladder_that_determines_no_law_is_refused_before_it_runs() -> None:
    with pytest.raises(UsageError, match="5 different runs"):
        check_design(Design(sizes=(30_000, 300_000), tokens=(10**5, 10**6, 10**7)), recipe())
    with pytest.raises(UsageError, match="3 sizes from"):
        check_design(Design(sizes=(30_000, 50_000, 90_000), tokens=(10**5, 10**6, 10**7)), recipe())
    with pytest.raises(DataError, match="the text has 1,000,000"):
        check_text(DESIGN, 1e6)
    check_text(DESIGN, 2e6)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"sizes": (30_000, 90_000)},
        {"budget": {"tokens": 5}},
        {"budget": {"seconds": 5, "flops": 1e9}},
        {"sizes": ("many",), "tokens": (10**6,)},
        {"budget": {"seconds": 5}, "target": {"tokens": 7}},
    ],
)
def test_a_design_that_says_too_little_or_too_much_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Design.model_validate(asked)


def test_sizes_can_be_written_short() -> None:
    asked = Design.model_validate({"sizes": ("30k", "1M"), "tokens": ("1.5M", "2b"), "size": "10M"})
    assert asked.sizes == (30_000, 1_000_000) and asked.tokens == (1_500_000, 2_000_000_000) and asked.size == 10**7


# -- what is said ------------------------------------------------------------------------------------------------------
SCENE = Scene(train_tokens=6e6, size=2_000_000, size_parameters=1_980_000)


def outcome(rung: Rung, noise: float, miss: float = 0.0) -> Outcome:
    """What the law says of the rung, with a deviation; two bytes a token, ten million FLOPs a second."""
    loss = float(LAW.loss(rung.size, rung.tokens)) * math.exp(noise) * (1 + miss * rung.held_out)
    seconds = 6.0 * rung.size * rung.tokens / 1e9
    return Outcome(rung, rung.size, rung.tokens, loss, loss / 2 / math.log(2), seconds, rung.tokens // 4096, 10**8)


def outcomes_of(miss: float = 0.0, noise: float = 0.003) -> list[Outcome]:
    base, rng = recipe(), np.random.default_rng(2)
    tried = [search_rung(LADDER, base, factor) for factor in (1.0, 3.0, 1 / 3)]
    found = [outcome(rung, gap) for rung, gap in zip(tried, (0.0, 0.05, 0.08), strict=True)]
    return found + [outcome(rung, noise * rng.standard_normal(), miss) for rung in rungs_of(DESIGN, LADDER, base, 1.0)]


def report_of(found: list[Outcome], design: Design = DESIGN, **changes: object) -> ScalingReport:
    return scaling_report(design, recipe(**changes), found, SCENE, 120)


def test_the_law_is_fitted_to_all_but_the_held_out_run_and_the_search() -> None:
    found = outcomes_of(miss=0.5)
    runs = fitted_runs(found)
    assert len(runs) == 11 and runs.losses.max() < 6 and (1e6, 5e6) not in zip(runs.parameters, runs.tokens, strict=True)


def test_a_law_that_predicts_says_so() -> None:
    report = report_of(outcomes_of(), DESIGN.model_copy(update={"target": Budget(flops=1e14)}))
    assert report.status == "finished" and report.held_out is not None and report.law is not None
    assert report.held_out.close and report.held_out.covered and abs(report.held_out.error or 1) < 0.02
    assert "Within 2 %: yes. Inside the band: yes." in report.reasons[0]
    best, fixed, enough = report.advice
    N, D = (float(value) for value in best_split(LAW, 1e14))
    for part, true in ((best.parameters, N), (best.tokens, D), (best.loss, float(LAW.loss(N, D)))):
        assert part.low is not None and part.high is not None and part.low <= true <= part.high
    assert best.bits_per_byte is not None and best.loss.value is not None
    assert best.bits_per_byte.value == pytest.approx(best.loss.value / 2 / math.log(2))
    assert best.flops == pytest.approx(1e14) and best.seconds == pytest.approx(1e5, rel=1e-6)
    assert best.epochs == pytest.approx((best.tokens.value or 0) / 6e6) and best.beyond == pytest.approx(1e14 / 3e13)
    assert fixed.tokens.value == pytest.approx(1e14 / 6 / 1_980_000) and fixed.parameters.value == 1_980_000
    assert (fixed.loss.value or 0) >= best.loss.value, "no other size is better at this budget"
    assert (enough.tokens.low or 0) < (enough.tokens.value or 0) < (enough.tokens.high or 0)
    assert re.search(r"1e\+14 FLOPs are best spent on [\d.]+ [kM] parameters and [\d.]+ [kM] tokens: loss", report.verdict)
    assert "Do not rely" not in report.verdict and len(report.reasons) == 3


def test_a_law_that_misses_says_so() -> None:
    report = report_of(outcomes_of(miss=0.05))
    assert report.held_out is not None and not report.held_out.close and not report.held_out.covered
    assert report.held_out.error == pytest.approx(-0.05, abs=0.02) and "missed the largest run by" in report.verdict
    assert "Within 2 %: no. Inside the band: no." in report.reasons[0]


def test_the_budget_is_that_asked_then_that_of_the_recipe_then_ten_times_the_largest_run() -> None:
    found = outcomes_of()
    assert report_of(found).advice[0].question == "best use of 60 s", "the recipe's"
    largest = 6 * 1e6 * 5e6
    none = report_of(found, train={"budget": {"seconds": None}})
    assert none.advice[0].flops == pytest.approx(10 * largest)
    asked = report_of(found, DESIGN.model_copy(update={"target": Budget(seconds=7200.0)}))
    assert asked.advice[0].question == "best use of 2 h 00 min"
    assert asked.advice[0].seconds == pytest.approx(7200.0) and asked.advice[1].seconds == pytest.approx(7200.0)


def test_what_makes_the_advice_doubtful_is_warned_of() -> None:
    found = outcomes_of()
    far = report_of(found, DESIGN.model_copy(update={"target": Budget(flops=1e19)})).warnings
    assert any("times the FLOPs of the largest run" in one for one in far) and any(
        "passes over this text" in one for one in far
    )
    edge = [one for one in found if not one.rung.search]
    edge += [outcome(search_rung(LADDER, recipe(), factor), gap) for factor, gap in ((1.0, 0.1), (3.0, 0.0), (1 / 3, 0.2))]
    edge[0].steps, edge[1].loss, edge[1].failure = 7, None, "it blew up"
    told = report_of(edge).warnings
    assert any("is the last one tried" in one for one in told)
    assert any("1 runs took fewer than 50 steps" in one for one in told)
    assert any("failed: it blew up" in one for one in told)
    lost = [one for one in found if not one.rung.held_out]
    unproven = report_of(lost)
    assert unproven.held_out is None and any("nothing shows whether the law predicts" in one for one in unproven.warnings)


@pytest.mark.parametrize(
    ("alpha", "beta", "missing"), [(0.0, 0.3, "the size"), (0.3, 0.0, "the number of tokens"), (0.0, 0.0, "")]
)
def test_runs_that_do_not_show_a_best_size_get_no_advice(alpha: float, beta: float, missing: str) -> None:
    found = [one for one in outcomes_of() if not one.rung.search]
    for number, one in enumerate(found):
        noise = 0.01 * math.sin(7.0 * number)
        one.loss = 4.0 * (one.parameters / 1e6) ** -alpha * (one.tokens / 1e6) ** -beta * math.exp(noise)
    report = report_of(found)
    assert report.status == "finished" and report.law is not None and report.held_out is not None and not report.advice
    assert report.verdict.startswith("These runs name no best use of 60 s: ") and "--tokens" in report.verdict
    assert missing in report.verdict and len(report.reasons) == 1
    page = render_scaling_page(report)
    assert page.count("<svg") == 1 and ">best size<" not in page
    assert [table.title for table in tables_of(report)] == ["The law", "Runs"]


def test_too_few_runs_that_ended_give_a_report_that_says_so() -> None:
    found = outcomes_of()
    for one in found[6:]:
        one.loss, one.failure = None, "no memory"
    report = report_of(found)
    assert report.status == "failed" and "do not determine a law" in report.reason and report.law is None
    assert "No law could be fitted" in report.verdict and not report.advice
    assert "<svg" not in render_scaling_page(report)
    assert [table.title for table in tables_of(report)] == ["Runs", "Learning rate"]


def test_the_report_is_json_and_tables_hold_every_number() -> None:
    report = report_of(outcomes_of())
    assert ScalingReport.model_validate_json(report.model_dump_json()) == report
    tables = {table.title: table for table in tables_of(report)}
    assert list(tables) == ["What to train", "The law", "Runs", "Learning rate"]
    assert all(len(row) == len(table.head) for table in tables.values() for row in table.rows)
    assert len(tables["Runs"].rows) == 12 and "held out" in tables["Runs"].rows[-1][0]
    assert [row[0] for row in tables["The law"].rows] == ["E", "A", "B", "alpha", "beta", "optimal exponent"]
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    render_scaling_terminal(report, console)
    assert report.verdict.split(":")[0][:40] in console.export_text()


def test_the_page_draws_two_figures_and_lets_no_text_become_markup(tmp_path: Path) -> None:
    found = outcomes_of()
    found[4].loss, found[4].failure = None, "</svg><script>alert(1)</script>"
    report = report_of(found)
    page = render_scaling_page(report)
    assert page.count("<svg") == 2 and "<script" not in page and "&lt;script&gt;" in page
    assert "Loss by size at this budget" in page and "90 % band" in page
