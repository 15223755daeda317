"""``uplift export``: what is written, what is compared, what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.model.test_adapters import saved as saved_adapter
from transformers import AutoTokenizer

from uplift.cli.main import main
from uplift.core.errors import ModelError, ResourceError, UsageError
from uplift.core.storage import verify_directory
from uplift.model.adapters import load_adapters
from uplift.model.language_model import LanguageModel
from uplift.model.quantized import quantize_linear
from uplift.serve.export import gate
from uplift.serve.export.original import logits_of
from uplift.serve.export.plain import make_plain, traceable
from uplift.serve.export.runtimes import Opening, open_runtime
from uplift.testing.passes import open_tiny, outputs, random_batch
from uplift.testing.tiny import tiny_causal, tiny_encoder, tiny_recipe, tiny_rows, write_rows
from uplift.verbs import export as verb
from uplift.verbs.export import RefusedExport, export
from uplift.verbs.run import run

SMALL: dict[str, Any] = {"cost": False}


def needs(*packages: str) -> Any:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)}: pip install 'llm-uplift[export]'")


TORCH, ONNX = (
    pytest.param("torch", id="torch"),
    pytest.param("onnx", id="onnx", marks=needs("onnx", "onnxscript", "onnxruntime")),
)
SLOW_TORCH = pytest.param("torch", id="torch", marks=pytest.mark.slow)
SLOW_ONNX = pytest.param("onnx", id="onnx", marks=[pytest.mark.slow, *ONNX.marks])
EXECUTORCH = pytest.param("executorch", id="executorch", marks=[pytest.mark.slow, needs("executorch")])
GGUF = pytest.param("gguf", id="gguf", marks=[pytest.mark.slow, needs("llama_cpp")])
"""Tracing takes seconds: each way of it is fast for one kind of model, slow for the other."""


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("causal") / "model", num_hidden_layers=1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("classifier")
    model = open_tiny(tiny_encoder(root / "encoder"), head="class")
    with torch.no_grad():
        model.pretrained.classifier.weight.normal_()
    (root / "model").mkdir()
    model.save(root / "model")
    return root / "model"


# -- every format, in its own runtime ----------------------------------------------------------------------------------
@pytest.mark.parametrize("to", [SLOW_TORCH, ONNX, EXECUTORCH, GGUF])
def test_a_decoder_says_the_same_in_its_runtime(to: str, causal, tmp_path) -> None:
    found = export(str(causal), tmp_path / "out", to, **SMALL)
    assert found.parity is not None and not found.parity.problems and not found.parity.differing
    agreement = found.parity.agreement
    assert 0 < agreement.difference < 1e-5 and agreement.share == 1.0 and agreement.rows == 12
    verify_directory(tmp_path / "out")
    report = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert report["parity"]["agreement"]["difference"] == agreement.difference and found.file.is_file()
    if to != "gguf":
        beside = AutoTokenizer.from_pretrained(tmp_path / "out")
        assert (
            beside.chat_template and beside("a 12")["input_ids"] == AutoTokenizer.from_pretrained(causal)("a 12")["input_ids"]
        )


@pytest.mark.parametrize("to", [TORCH, SLOW_ONNX, EXECUTORCH])
def test_an_encoder_with_classes_says_the_same_in_its_runtime(to: str, classifier, tmp_path) -> None:
    found = export(str(classifier), tmp_path / "out", to, **SMALL)
    assert found.parity is not None and found.parity.agreement.difference < 1e-5
    assert found.parity.agreement.predictions == found.parity.agreement.rows


@pytest.mark.slow
@pytest.mark.parametrize("to", [TORCH, ONNX])
def test_rows_and_lengths_are_free(to: str, causal, tmp_path) -> None:
    export(str(causal), tmp_path / "out", to, gate=False)
    file = next((tmp_path / "out").glob("model.*"))
    runtime = open_runtime(to, Opening(str(file), 1, 0, 64))
    alone = runtime.run([[5, 6, 7]])[0]
    for rows in ([[5]], [[5, 6, 7], [9] * 40, [4]], [[5, 6, 7]] * 7):
        found = runtime.run(rows)
        assert [part.shape for part in found] == [(len(row), 320) for row in rows]
        if rows[0] == [5, 6, 7]:
            assert abs(found[0] - alone).max() < 1e-5


@pytest.mark.slow
@needs("onnx", "onnxscript", "onnxruntime")
def test_int8_is_smaller_and_differs(classifier, tmp_path) -> None:
    plain = export(str(classifier), tmp_path / "plain", "onnx", **SMALL).parity
    small = export(str(classifier), tmp_path / "small", "onnx", number_type="int8", **SMALL).parity
    assert plain is not None and small is not None
    assert small.size < 0.8 * plain.size and 1e-4 < small.agreement.difference < 2.0


@pytest.mark.slow
@needs("onnx", "onnxscript", "onnxruntime")
def test_weights_of_a_decoder_in_few_bits(causal, tmp_path) -> None:
    found = {
        kind: export(str(causal), tmp_path / kind, "onnx", number_type=kind, **SMALL).parity
        for kind in ("f32", "int8_weights", "int4_weights")
    }
    plain, eight, four = found.values()
    assert plain is not None and eight is not None and four is not None
    assert plain.size > eight.size > four.size
    assert plain.agreement.divergence < eight.agreement.divergence < 0.001 < 4 * four.agreement.divergence


@pytest.mark.slow
def test_a_decoder_with_classes(tmp_path) -> None:
    model = open_tiny(tiny_causal(tmp_path / "base"), head="class")
    with torch.no_grad():
        model.pretrained.score.weight.normal_()
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model")
    found = export(str(tmp_path / "model"), tmp_path / "out", "torch", **SMALL)
    assert found.parity is not None and found.parity.agreement.difference < 1e-5


# -- the gate ----------------------------------------------------------------------------------------------------------
def broken(model: LanguageModel) -> None:
    """One matrix transposed."""
    weight = model.pretrained.model.layers[0].self_attn.o_proj.weight
    weight.data = weight.data.T.contiguous()


def not_a_number(model: LanguageModel) -> None:
    model.pretrained.model.norm.weight.data[0] = float("nan")


@pytest.fixture
def quick(monkeypatch) -> Any:
    """Exports in no time: the file holds nothing, and its runtime is a copy of the model, changed by a function."""

    def prepare(model: Path, head: Any = "language", change: Any = lambda model: None) -> None:
        copy = open_tiny(model, head)
        change(copy)

        class Copy:
            def run(self, rows: Any) -> Any:
                return [logits_of(copy, list(row)) for row in rows]

        monkeypatch.setattr(verb, "write_torch", lambda model, path, length: path.write_bytes(b"file"))
        monkeypatch.setattr(gate, "open_runtime", lambda kind, opening: Copy())

    return prepare


@pytest.mark.slow
def test_a_file_that_was_written_wrong_is_refused(causal, tmp_path, monkeypatch) -> None:
    write = verb.write_torch

    def writing(model: LanguageModel, path: Path, length: int) -> None:
        broken(model)
        write(model, path, length)
        broken(model)  # transposed again: as it was

    monkeypatch.setattr(verb, "write_torch", writing)
    with pytest.raises(RefusedExport) as caught:
        export(str(causal), tmp_path / "out", "torch", **SMALL)
    assert not (tmp_path / "out").exists()
    parity = caught.value.exported.parity
    assert parity is not None and parity.agreement.difference > 0.1 and "logits differ by up to" in parity.problems[0]


def test_a_refused_file_is_not_left_behind(causal, tmp_path, quick, capsys) -> None:
    quick(causal, change=broken)
    words = ["export", str(causal), "--to", "torch", "-o", str(tmp_path / "out"), "--no-cost"]
    assert main(words) == 1
    printed = capsys.readouterr()
    assert "largest |logit difference|" in printed.out and "past the limit" in printed.out and "fix:" in printed.err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_past_the_limit_it_can_be_kept_with_a_warning_or_a_wider_limit(causal, tmp_path, quick, capsys) -> None:
    quick(causal, change=broken)
    words = ["export", str(causal), "--to", "torch", "--no-cost", "-o"]
    assert main([*words, str(tmp_path / "kept"), "--past-tolerance", "warn"]) == 0
    assert "past the limit" in capsys.readouterr().out
    assert json.loads((tmp_path / "kept" / "parity.json").read_text())["parity"]["problems"]
    assert main([*words, str(tmp_path / "wide"), "--tolerance", "100"]) == 0
    assert "past the limit" not in capsys.readouterr().out
    assert main([*words, str(tmp_path / "narrow"), "--tolerance", "1e-3"]) == 1


def test_numbers_that_are_not_finite_are_never_kept(causal, tmp_path, quick) -> None:
    quick(causal, change=not_a_number)
    with pytest.raises(RefusedExport) as caught:
        export(str(causal), tmp_path / "out", "torch", past="warn", **SMALL)
    assert caught.value.exported.as_json()["parity"]["agreement"]["difference"] is None


def test_another_tokenizer_beside_the_file_is_caught(causal, tmp_path, quick, monkeypatch) -> None:
    quick(causal)

    def other(folder: Any, **options: Any) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        tokenizer.chat_template = "{{ messages }}"
        return tokenizer

    monkeypatch.setattr(gate, "AutoTokenizer", SimpleNamespace(from_pretrained=other))
    with pytest.raises(RefusedExport, match="nothing is left") as caught:
        export(str(causal), tmp_path / "out", "torch", **SMALL)
    assert "chat template" in caught.value.why


def test_without_parity_is_said_loudly(causal, tmp_path, capsys) -> None:
    assert main(["export", str(causal), "--to", "gguf", "-o", str(tmp_path / "out"), "--without-parity"]) == 0
    assert "WITHOUT PARITY" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["parity"] is None


def test_a_missing_runtime_is_an_error_with_the_command(causal, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for to, number_type, package in (
        ("gguf", "f32", "llama_cpp"),
        ("gguf", "q4_0", "llama_cpp"),
        ("onnx", "f32", "onnxruntime"),
    ):
        with pytest.raises(ResourceError, match=package) as caught:
            export(str(causal), tmp_path / "out", to, number_type=number_type)
        assert "llm-uplift[export]" in caught.value.fix
        assert ("--without-parity" in caught.value.fix) == (to == "gguf" and number_type == "f32")
    assert not (tmp_path / "out").exists()


# -- rows and metrics --------------------------------------------------------------------------------------------------
def test_the_metric_of_a_recipe(tmp_path, quick) -> None:
    tiny_encoder(tmp_path / "model")
    recipe = tiny_recipe(tmp_path, rows=160, task_options={"head": "classifier"}, train={"steps": 6, "lr": 3e-3})
    report = run(recipe, tmp_path)
    folder = tmp_path / "runs" / f"tiny-{recipe.hash()}"
    quick(folder / "model", "class")
    found = export(str(folder), tmp_path / "out", "torch", recipe=recipe, base_dir=tmp_path, **SMALL)
    assert found.parity is not None and found.parity.metric is not None and report.evaluation is not None
    metric = found.parity.metric
    assert metric.name == report.evaluation.metric and metric.items == report.evaluation.items
    assert metric.original["value"] == metric.exported["value"] == pytest.approx(report.evaluation.value)
    assert metric.difference["value"] == 0.0
    limited = export(str(folder), tmp_path / "two", "torch", recipe=recipe, base_dir=tmp_path, rows=5, **SMALL)
    assert limited.parity is not None and limited.parity.metric is not None and limited.parity.metric.items == 5


def test_a_file_of_texts_gives_rows_and_bits_per_byte(causal, tmp_path, quick, capsys) -> None:
    quick(causal)
    data = write_rows(tmp_path / "rows.jsonl", tiny_rows("text", 30))
    words = [
        "export",
        str(causal),
        "--to",
        "torch",
        "-o",
        str(tmp_path / "out"),
        "--data",
        str(data),
        "--rows",
        "6",
        "--no-cost",
    ]
    assert main([*words, "--json"]) == 0
    parity = json.loads(capsys.readouterr().out)["parity"]
    assert parity["agreement"]["rows"] == 12 + 6 and parity["metric"]["name"] == "bits_per_byte"
    assert parity["metric"]["exported"]["value"] == pytest.approx(parity["metric"]["original"]["value"], abs=1e-5)


# -- what is in the file -----------------------------------------------------------------------------------------------
def test_adapters_and_integer_layers_become_plain_weights(causal, tmp_path) -> None:
    model = open_tiny(causal)
    load_adapters(model, {"it": saved_adapter(causal, tmp_path / "adapter", 1)})
    expected = outputs(model, random_batch())
    assert "merged" in make_plain(model)[0] and model.peft is None
    assert (outputs(model, random_batch()) - expected).abs().max() < 1e-5
    quantize_linear(model.pretrained.model.layers[0].mlp.up_proj, "int8")
    expected = outputs(model, random_batch())
    assert make_plain(model) == ["1 quantised layers are written as the rounded numbers they stand for"]
    assert (outputs(model, random_batch()) - expected).abs().max() < 1e-6


def test_packing_is_back_after_an_export(causal) -> None:
    model = open_tiny(causal)
    before = outputs(model, random_batch())
    with traceable(model):
        assert model.config._attn_implementation == "sdpa"
    assert torch.equal(outputs(model, random_batch()), before)


def test_what_is_refused_before_anything_is_written(causal, classifier, tmp_path) -> None:
    out = tmp_path / "out"
    cases: list[tuple[type[Exception], str, tuple[str, str], dict[str, Any]]] = [
        (UsageError, "no type `q9`", (str(causal), "gguf"), {"number_type": "q9"}),
        (UsageError, "no type `q8_0`", (str(causal), "onnx"), {"number_type": "q8_0"}),
        (UsageError, "both name rows", (str(causal), "torch"), {"recipe": tiny_recipe(tmp_path), "data": tmp_path}),
        (ModelError, "cannot run this model", (str(classifier), "gguf"), {"gate": False}),
        (ModelError, "no trained classification head", (str(tiny_encoder(tmp_path / "bare")), "torch"), {}),
    ]
    for kind, words, (model, to), options in cases:
        with pytest.raises(kind, match=words):
            export(model, out, to, **options)
        assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="exists"):
        export(str(causal), out, "torch")
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
