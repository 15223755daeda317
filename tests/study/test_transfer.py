"""The arithmetic of a transfer study on curves made by hand, and what it says of them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from uplift.core.errors import DataError, UsageError
from uplift.core.recipe import Recipe
from uplift.core.report import Cost, Curve as ReportCurve, Report
from uplift.evaluate.outcomes import Outcomes
from uplift.study.charts import Line, LinePoint, score_by_rows
from uplift.study.plan import Tokens
from uplift.study.transfer import (
    ARMS,
    Cell,
    Curve,
    Design,
    area,
    area_gain,
    check_design,
    curve_of,
    jobs_of,
    labels_saved,
    rows_needed,
    steps_for,
)
from uplift.study.transfer_page import lines_of, render_transfer_page
from uplift.study.transfer_report import find, transfer_report, verdict
from uplift.study.transfer_tables import tables_of
from uplift.testing.tiny import tiny_recipe

TOKENS = Tokens(rows=600, mean=20.0, longest=40, learned=0.1, test_rows=100)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    place: Path = tmp_path_factory.mktemp("recipe")
    return tiny_recipe(place, train={"steps": None, "epochs": 2.0, "batch_tokens": 400, "budget": {"seconds": 9.0}})


# -- area --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rows", "scores", "expected"),
    [
        ((8, 32, 128), (0.5, 0.5, 0.5), 0.5),
        ((8, 32, 128), (0.0, 0.5, 1.0), 0.5),  # a straight line over the logarithm
        ((8, 16, 128), (0.0, 1.0, 1.0), (0.5 * 1 + 1.0 * 3) / 4),  # widths of one and three doublings
        ((8,), (0.7,), 0.7),
    ],
)
def test_the_area_is_the_mean_over_the_logarithm(rows, scores, expected):
    assert float(area(rows, np.array(scores))) == pytest.approx(expected, abs=1e-12)
    assert area(rows, np.array([scores, scores])) == pytest.approx([expected] * 2)


# -- labels saved ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scores", "target", "needed", "state"),
    [
        ((0.5, 0.7, 0.9), 0.6, math.sqrt(8 * 32), 0),  # half way up is half way along the logarithm
        ((0.5, 0.7, 0.9), 0.7, 32.0, 0),
        ((0.5, 0.7, 0.9), 0.9, 128.0, 0),
        ((0.5, 0.7, 0.9), 0.91, 128.0, 1),
        ((0.5, 0.7, 0.9), 0.5, 8.0, -1),
        ((0.5, 0.7, 0.9), 0.2, 8.0, -1),
        ((0.5, 0.8, 0.7), 0.75, 8 * 4 ** (0.25 / 0.3), 0),  # the first crossing counts
        ((0.5, 0.4, 0.9), 0.5, 8.0, -1),
    ],
)
def test_rows_needed_from_scratch(scores, target, needed, state):
    found, states = rows_needed((8, 32, 128), np.array([scores]), np.array([target]), True)
    assert found[0] == pytest.approx(needed) and states[0] == state
    turned, states = rows_needed((8, 32, 128), -np.array([scores]), -np.array([target]), False)
    assert turned[0] == pytest.approx(needed) and states[0] == state, "lower is better"


def test_rows_needed_of_one_point_and_of_many_curves():
    found, states = rows_needed((8,), np.array([[0.5], [0.5]]), np.array([0.4, 0.6]), True)
    assert found.tolist() == [8.0, 8.0] and states.tolist() == [-1, 1]
    curves = np.array([(0.5, 0.7, 0.9), (0.6, 0.6, 0.6)])
    found, states = rows_needed((8, 32, 128), curves, np.array([0.8, 0.6]), True)
    assert found == pytest.approx([64.0, 8.0]) and states.tolist() == [0, -1]


def line(*scores: float) -> Curve:
    return Curve(np.array(scores), np.array([scores] * 2000))


def test_labels_saved_is_the_ratio_of_rows():
    found = labels_saved((8, 32, 128), line(0.8, 0.85, 0.95), line(0.5, 0.7, 0.9), True)
    assert [one.needed for one in found] == pytest.approx([64.0, 128 / math.sqrt(2), 128.0])
    assert [one.ratio.value for one in found] == pytest.approx([8.0, 4 / math.sqrt(2), 1.0])
    assert [one.bound for one in found] == ["", "", "at least"]
    assert found[0].ratio.low == found[0].ratio.high == pytest.approx(8.0)
    worse = labels_saved((8, 32, 128), line(0.4, 0.5, 0.6), line(0.5, 0.7, 0.9), True)
    assert [one.bound for one in worse] == ["at most", "at most", ""] and worse[2].ratio.value == pytest.approx(16 / 128)


def test_the_interval_of_labels_saved_follows_the_replicates():
    rng = np.random.default_rng(0)
    scratch = Curve(np.array([0.5, 0.7, 0.9]), np.array([0.5, 0.7, 0.9]) + rng.normal(0, 0.02, (2000, 1)))
    one = labels_saved((8, 32, 128), line(0.8, 0.85, 0.95), scratch, True)[0]
    assert one.ratio.low < 8.0 < one.ratio.high and one.ratio.high <= 16.0


# -- curves of outcomes ------------------------------------------------------------------------------------------------
def outcomes_of(right: int, items: int = 100, seed: int = 0) -> Outcomes:
    """A system that gets ``right`` of ``items`` right; which ones depends on ``seed``."""
    truth = np.arange(items) % 2
    correct = np.zeros(items, dtype=bool)
    correct[np.random.default_rng(seed).permutation(items)[:right]] = True
    predicted = np.where(correct, truth, 1 - truth)
    ids = tuple(f"item-{index}" for index in range(items))
    return Outcomes(ids, np.ones(items), np.ones(items), "accuracy", truth, predicted, ("no", "yes"))


def cell_of(*right: int, last_loss: float = 0.1, steps: int = 20) -> Cell:
    """One cell with a seed per number of right answers."""
    curves = (ReportCurve(name="loss", steps=(1, 2, 3), values=(0.7, None, last_loss)),)
    cost = Cost(seconds=2.0, tokens=10, peak_memory_bytes=5, steps=steps)
    reports = {seed: Report(name="run", status="finished", cost=cost, curves=curves) for seed in range(len(right))}
    return Cell({seed: outcomes_of(count, seed=seed) for seed, count in enumerate(right)}, reports, steps=steps)


def test_a_curve_is_the_mean_over_seeds_with_paired_replicates():
    cells = [cell_of(60, 64), cell_of(80, 90)]
    curve = curve_of(cells, "accuracy", [[0, 1], [0, 1]], 300)
    assert curve is not None and curve.means == pytest.approx([0.62, 0.85]) and curve.replicates.shape == (300, 2)
    assert curve_of([cells[0], Cell()], "accuracy", [[0], []]) is None
    same = area_gain((8, 32), cells, cells, "accuracy", 300)
    assert same is not None and same.difference.low == same.difference.high == 0.0 and same.p == 1.0
    one_missing = [Cell({1: cells[0].outcomes[1]}), cells[1]]
    gain = area_gain((8, 32), cells, one_missing, "accuracy", 300)
    assert gain is not None and gain.difference.value == 0.0, "only seeds that both have are compared"
    assert area_gain((8, 32), cells, [Cell({7: outcomes_of(50)}), cells[1]], "accuracy", 300) is None


DESIGN = Design(rows=(8, 32, 128), seeds=3, blocks=True)


def cells_of(**scores: tuple[int, ...]) -> dict[tuple[str, int], Cell]:
    """Three seeds around each mean, the same test rows for all."""
    return {
        (arm, rows): cell_of(right - 1, right, right + 1)
        for arm, line in scores.items()
        for rows, right in zip((8, 32, 128), line, strict=True)
    }


@pytest.fixture
def cells() -> dict[tuple[str, int], Cell]:
    found = cells_of(
        transfer=(80, 85, 95), scratch=(50, 70, 90), embeddings=(56, 74, 91), body=(74, 82, 94), shuffled=(51, 69, 90)
    )
    found["block-0", 32], found["block-1", 32] = cell_of(84, 85, 86), cell_of(60, 61, 62)
    return found


def test_what_is_found_and_said(cells, base):
    found = transfer_report(DESIGN, base, cells, "accuracy", 100, 500)
    assert "8 rows give accuracy 80.0 %" in found.verdict and "needs about 64: 8.0 times as many" in found.verdict
    assert [one.ratio for one in found.labels_saved] == pytest.approx([8.0, 4 / math.sqrt(2), 1.0])
    gains = {arm.name: arm.gain.value for arm in found.arms if arm.gain is not None}
    whole = (0.3 + 2 * 0.15 + 0.05) / 4
    assert gains["transfer"] == pytest.approx(whole) and gains["shuffled"] == pytest.approx((0.01 - 2 * 0.01 + 0) / 4)
    shares = {arm.name: arm.share for arm in found.arms}
    assert shares["transfer"] == pytest.approx(1.0) and shares["scratch"] is None
    assert shares["body"] == pytest.approx((0.24 + 2 * 0.12 + 0.04) / 4 / whole)
    assert found.placebo is not None and found.placebo.about_zero and "as it must be" in found.placebo.text
    assert [(one.block, round(one.loss.value or 0, 6)) for one in found.blocks] == [(0, 0.0), (1, 0.24)]
    assert (found.blocks[1].p_holm or 1) < 0.05 <= (found.blocks[0].p_holm or 0)
    assert any("Block 1 matters most: drawn anew it costs 24.0 points" in reason for reason in found.reasons)
    assert any("+30.0 points with 8 rows and +5.0 points with 128" in reason for reason in found.reasons)
    assert found.cost.seconds == 2.0 * 3 * 17 and found.cost.steps == 20 * 3 * 17
    assert not found.warnings and any("The budget of the recipe is not used" in note for note in found.notes)


def test_a_placebo_that_gains_is_called_out(cells):
    cells |= cells_of(shuffled=(70, 80, 92))
    found = find(DESIGN, cells, "accuracy", 500)
    assert found.placebo is not None and not found.placebo.about_zero and "the scale of the weights" in found.placebo.text


@pytest.mark.parametrize(
    ("transfer", "words"),
    [
        ((50, 70, 90), "no difference"),
        ((40, 50, 70), "Training from scratch is better"),
        ((96, 97, 98), "does not reach with 128: more than 16.0 times as many"),
    ],
)
def test_the_verdict_is_honest(transfer, words):
    assert words in verdict(find(DESIGN, cells_of(transfer=transfer, scratch=(50, 70, 90)), "accuracy", 500))


def test_without_scratch_nothing_is_said_of_labels(base):
    report = transfer_report(DESIGN, base, cells_of(transfer=(80, 85, 95)), "accuracy", 100, 200)
    assert report.status == "finished" and not report.labels_saved and "nothing can be said" in report.verdict
    nothing = transfer_report(DESIGN, base, {}, "accuracy", 0, 200)
    assert nothing.status == "failed" and nothing.arms[0].points[0].score is None


def test_an_arm_that_has_not_fitted_its_rows_is_called_under_trained(cells, base):
    cells["scratch", 32] = cell_of(69, 70, 71, last_loss=0.6)
    adapted = base.model_copy(
        update={"techniques": Recipe.model_validate({**base.model_dump(), "techniques": ["lora"]}).techniques}
    )
    found = transfer_report(DESIGN, adapted, cells, "accuracy", 100, 200).warnings
    assert any("`scratch` has not fitted its own training rows (at 32 rows)" in warning for warning in found)
    assert any("trains an adapter" in warning for warning in found)


def test_tables_hold_every_number(cells, base):
    tables = {table.title: table for table in tables_of(transfer_report(DESIGN, base, cells, "accuracy", 100, 500))}
    assert set(tables) == {
        "Score by training rows",
        "What is transferred",
        "Labels saved",
        "Block by block",
        "Trained far enough?",
    }
    assert all(len(row) == len(table.head) for table in tables.values() for row in table.rows)
    assert tables["Labels saved"].rows[0][:3] == ("8", "64", "8.0 ×")
    assert tables["Labels saved"].rows[2][1:3] == ("> 128", "> 1.0 ×")
    assert tables["Trained far enough?"].rows[0] == ("transfer", "0.14", "0.14", "0.14")


def test_the_page_draws_the_curves_and_lets_no_text_become_markup(cells, base):
    cells["scratch", 32].failures[9] = "</text></svg><script>alert(1)</script>"
    report = transfer_report(DESIGN, base, cells, "accuracy", 100, 200)
    page = render_transfer_page(report)
    assert "<script" not in page and "&lt;script&gt;" in page and page.count("<svg") == 1
    assert [line.name for line in lines_of(report) if line.strong] == ["transfer", "scratch"]
    nothing = transfer_report(DESIGN, base, {}, "accuracy", 0, 200)
    assert "<svg" not in render_transfer_page(nothing)


def test_the_chart_places_rows_on_a_logarithm_and_is_described():
    points = tuple(LinePoint(rows, score, None, None) for rows, score in ((8, 0.5), (32, 0.7), (128, 0.9)))
    drawn = score_by_rows([Line("a & b", points), Line("empty", ())], "accuracy")
    assert drawn is not None and "a &amp; b 50.0 % at 8, 70.0 % at 32, 90.0 % at 128" in drawn and "empty" not in drawn
    across = sorted({float(x) for x in re.findall(r"translate\(([\d.]+),[\d.]+\)\"[^>]*d=\"M3", drawn)})
    assert score_by_rows([Line("empty", ())], "accuracy") is None
    assert len(across) == 3 and across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.1)


# -- which recipes -----------------------------------------------------------------------------------------------------
def test_jobs_differ_only_in_what_is_kept_and_how_much_is_seen(base):
    design = Design(rows=(600, 8), seeds=2, min_steps=5, scratch_times=3, scratch_lr=5e-3)
    jobs = jobs_of(design, base, TOKENS, 2, "runs")
    assert len(jobs) == 2 * 2 * len(ARMS) and len({job.recipe.hash() for job in jobs}) == len(jobs)
    assert [job.rows for job in jobs] == sorted(job.rows for job in jobs)
    for job in jobs:
        uses = [technique.use for technique in job.recipe.techniques]
        assert uses == (["subset"] if job.rows == 8 else []) + (["reinitialize"] if job.arm != "transfer" else [])
        assert job.recipe.seed == job.seed and job.recipe.train.budget.seconds is None and not job.recipe.evaluate.base
        slow = job.arm in ("scratch", "embeddings", "shuffled")
        assert job.recipe.train.steps == {8: 5, 600: 62}[job.rows] * (3 if slow else 1)
        assert job.recipe.train.lr == (5e-3 if slow else 1e-3)


def test_blocks_are_drawn_anew_one_by_one_beside_the_whole(base):
    jobs = jobs_of(Design(rows=(8, 32), seeds=1, blocks=True, block_rows=64), base, TOKENS, 3, "runs")
    assert [job.arm for job in jobs if job.rows == 64] == ["transfer", "block-0", "block-1", "block-2"]
    last = jobs[-1].recipe.techniques[-1].model_dump()
    assert last["keep"] == "all" and last["blocks"] == [2]


def test_steps_are_those_of_the_recipe_or_its_epochs(base):
    design = Design(min_steps=7)
    assert steps_for(base, TOKENS, 8, design) == 7
    # 600 rows of 20 tokens fill steps of 390 tokens (half a row is lost): 31 steps an epoch, two epochs.
    assert steps_for(base, TOKENS, 600, design) == 62
    fixed = base.model_copy(update={"train": base.train.model_copy(update={"steps": 3})})
    assert steps_for(fixed, TOKENS, 600, design) == 3


def test_a_design_that_does_not_fit_is_refused(base):
    with pytest.raises(UsageError, match="no arm `nothing`"):
        check_design(Design(arms=("nothing",)), base, 600, 2)
    with pytest.raises(DataError, match="512 training rows are asked for, and the data has 500"):
        check_design(Design(), base, 500, 2)
    with pytest.raises(DataError, match="900 training rows"):
        check_design(Design(blocks=True, block_rows=900), base, 600, 2)
    with pytest.raises(DataError, match="8 rows cannot show 10 labels"):
        check_design(Design(), base, 600, 10)
    check_design(Design(), base, 512, 2)
