"""``uplift merge``: what is written where, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.model.test_adapters import saved

from uplift.cli.main import main
from uplift.core.errors import ModelError, UsageError
from uplift.core.storage import verify_directory
from uplift.model.adapters import load_adapters
from uplift.testing.passes import open_tiny, outputs, random_batch
from uplift.testing.tiny import tiny_causal
from uplift.verbs.merge import merge


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def pair(folder: Path, tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("adapters")
    return [str(saved(folder, root / name, seed)) for seed, name in enumerate(("one", "two"))]


def with_adapter(folder: Path, adapter: Path) -> torch.Tensor:
    model = open_tiny(folder)
    load_adapters(model, {"it": adapter})
    return outputs(model, random_batch())


def test_one_adapter_goes_into_the_weights(folder, pair, tmp_path) -> None:
    merged = merge(str(folder), pair[:1], tmp_path / "out", device="cpu")
    assert (merged.kind, merged.weights) == ("model", (1.0,))
    verify_directory(tmp_path / "out")
    found = outputs(open_tiny(tmp_path / "out"), random_batch())
    assert (found - with_adapter(folder, Path(pair[0]))).abs().max() < 1e-5
    assert not torch.allclose(found, outputs(open_tiny(folder), random_batch()))


def test_several_become_one_adapter_and_it_equals_the_model(folder, pair, tmp_path) -> None:
    merged = merge(str(folder), pair, tmp_path / "adapter", weights=[0.25, 0.75], device="cpu")
    assert merged.kind == "adapter" and (tmp_path / "adapter" / "adapter_config.json").is_file()
    merge(str(folder), pair, tmp_path / "model", weights=[0.25, 0.75], into="model", device="cpu")
    found = outputs(open_tiny(tmp_path / "model"), random_batch())
    assert (with_adapter(folder, tmp_path / "adapter") - found).abs().max() < 1e-5


def test_equal_shares_are_the_default_and_a_share_of_one_scales_it(folder, pair, tmp_path) -> None:
    assert merge(str(folder), pair, tmp_path / "both", device="cpu").weights == (0.5, 0.5)
    merge(str(folder), pair[:1], tmp_path / "nothing", weights=[0.0], device="cpu")
    found = outputs(open_tiny(tmp_path / "nothing"), random_batch())
    assert torch.allclose(found, outputs(open_tiny(folder), random_batch()), atol=1e-6)


def test_what_does_not_fit_together(folder, pair, tmp_path) -> None:
    out = tmp_path / "out"
    for options, words in (
        ({"weights": [1.0]}, "2 adapters and 1 weights"),
        ({"rank": 2}, "for `svd` only"),
    ):
        with pytest.raises(UsageError, match=words):
            merge(str(folder), pair, out, device="cpu", **options)
    with pytest.raises(UsageError, match="no adapter to merge"):
        merge(str(folder), [], out)
    with pytest.raises(ModelError, match="holds no adapter"):
        merge(str(folder), [str(tmp_path)], out)
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="exists"):
        merge(str(folder), pair, out)
    assert (out / "mine.txt").read_text() == "keep"


def test_the_command(folder, pair, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    words = ["merge", str(folder), *pair, "--weights", "0.7,-0.2", "--method", "svd", "--rank", "3", "-o", str(out), "--json"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["kind"] == "adapter" and [a["weight"] for a in printed["adapters"]] == [0.7, -0.2]
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 3
    assert main(["merge", str(folder), *pair, "-o", str(out)]) == 2
    assert main(["merge", str(folder), *pair, "--weights", "a,b", "-o", str(tmp_path / "x")]) == 2
    assert main(["merge", str(folder), *pair, "--weights", "nan,1", "-o", str(tmp_path / "x")]) == 2
    assert main(["merge", str(folder), pair[0], "-o", str(tmp_path / "y")]) == 0
    assert "model written to" in capsys.readouterr().out
