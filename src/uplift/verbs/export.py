"""``uplift export``: a model as a file for another runtime, compared with the original before anybody gets it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from uplift.core.errors import ModelError, Place, UsageError
from uplift.core.export_section import Format, Past
from uplift.core.recipe import ChatTask, FileSource, Model, Recipe, Task, TextTask
from uplift.core.storage import commit_directory, write_file
from uplift.core.values import Message, Origin, Sample
from uplift.data.chat import Encoder
from uplift.data.formats import to_samples
from uplift.data.sources import read_source
from uplift.evaluate.tasks import chosen_rows
from uplift.learn.assemble import assemble
from uplift.learn.parallel import Parallel
from uplift.model.files import read_json
from uplift.model.language_model import LanguageModel
from uplift.model.opening import HeadKind, locate, model_kind, open_model, resolve_model
from uplift.model.quiet import quiet
from uplift.serve.export.executorch import write_executorch
from uplift.serve.export.formats import FORMS, Limits, check_packages, check_type, finer_types
from uplift.serve.export.gate import Parity, Trial, parity_of
from uplift.serve.export.gguf import check_architecture, write_gguf
from uplift.serve.export.hush import hushed
from uplift.serve.export.onnx import write_onnx
from uplift.serve.export.parity import ParityError, probe_texts
from uplift.serve.export.plain import longest, make_plain
from uplift.serve.export.torch_program import write_torch
from uplift.study.first_look import first_look
from uplift.verbs.display import Display

REPORT = "parity.json"


@dataclass(frozen=True)
class Exported:
    """What was written. ``parity`` None: nobody compared it."""

    file: Path
    format: Format
    type: str
    parity: Parity | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The whole as plain values, the share of agreeing predictions spelled out; null: a number that is not finite."""
        content = asdict(self) | {"file": str(self.file)}
        if self.parity is not None:
            found = {**asdict(self.parity.agreement), "share": self.parity.agreement.share}
            content["parity"]["agreement"] = {name: value if isfinite(value) else None for name, value in found.items()}
        return content


class RefusedExport(ParityError):
    """The file lies past the limits and was not kept; ``exported`` says what was found."""

    def __init__(self, exported: Exported) -> None:
        assert exported.parity is not None
        finer = "`, `".join(finer_types(exported.format, exported.type))
        super().__init__(
            f"the exported file differs from the original: nothing is left at {exported.file.parent}",
            where=Place(file=str(exported.file)),
            why="; ".join(exported.parity.problems),
            fix=(f"a finer `--type`: `{finer}`; " if finer else "")
            + "where the difference is known and wanted, `--tolerance` or `--past-tolerance warn`",
        )
        self.exported = exported


def export(
    model: str,
    output: Path,
    to: Format,
    *,
    number_type: str = "f32",
    recipe: Recipe | None = None,
    base_dir: Path = Path(),
    data: Path | None = None,
    rows: int = 100,
    max_length: int = 512,
    tolerance: float | None = None,
    past: Past = "refuse",
    gate: bool = True,
    cost: bool = True,
    console: Console | None = None,
) -> Exported:
    """Write ``model`` into the new folder ``output`` for another runtime, with the tokenizer, and compare before it appears.

    ``recipe``: its test part gives rows and the task metric; ``data``: a file of texts or chats instead; neither: built-in
    texts alone. ``rows``: most rows of it. ``max_length``: tokens of the longest row (ExecuTorch plans memory for it).
    ``tolerance``: allowed |logit difference| in place of the type's own. ``past``: what happens beyond it. ``gate=False``
    compares nothing; ``cost=False`` measures no speed and memory. Raises UsageError, ModelError, ResourceError, and
    RefusedExport, after which nothing is left behind.
    """
    check_type(to, number_type)
    check_packages(to, number_type, gate=gate)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"`{output}` exists", fix="give a new folder")
    if recipe is not None and data is not None:
        raise UsageError("`--recipe` and `--data` both name rows", fix="keep one of them")
    display = Display(console)
    display.stage(f"opening {model}")
    trial = _trial(resolve_model(model), recipe, base_dir, data, rows, max_length)
    notes = [*trial.model.notes, *make_plain(trial.model)]
    if to == "gguf":
        check_architecture(trial.model)
    found: list[Exported] = []

    def write(target: Path) -> None:
        display.stage(f"writing {FORMS[to].file} ({number_type})")
        more = _write(trial, target, to, number_type, max_length)
        limits = _limits(to, number_type, tolerance)
        parity = parity_of(model, trial, target, to, limits, cost=cost, tell=display.stage) if gate else None
        exported = Exported(output / FORMS[to].file, to, number_type, parity, (*notes, *more))
        found.append(exported)
        if parity is not None and parity.problems and (past == "refuse" or not isfinite(parity.agreement.difference)):
            raise RefusedExport(exported)
        write_file(target / REPORT, json.dumps(exported.as_json(), indent=1) + "\n")

    commit_directory(output, write, {"model": trial.model.identity, "format": to, "type": number_type})
    return found[0]


def _limits(to: Format, number_type: str, tolerance: float | None) -> Limits:
    limits = FORMS[to].types[number_type]
    # |ln p - ln q| is at most twice the largest logit difference, so the mean divergence cannot exceed that.
    return limits if tolerance is None else Limits(2 * tolerance, tolerance)


# -- what it is tried with ---------------------------------------------------------------------------------------------
def _trial(spec: Model, recipe: Recipe | None, base_dir: Path, data: Path | None, rows: int, max_length: int) -> Trial:
    if recipe is not None:
        assembly = assemble(recipe.model_copy(update={"model": spec}), base_dir, Parallel(torch.device("cpu")))
        corpus = assembly.corpora["test"]
        if not len(corpus):
            raise UsageError("the recipe has no test part", where="data.split.test", fix="set `data.split.test` or `data.test`")
        most = min(rows, recipe.evaluate.limit or rows)
        samples = [corpus[index] for index in chosen_rows(assembly.parts.test, most)]
        model, encoder = assembly.model, assembly.encoder
        encoder.max_length = longest(model, min(max_length, encoder.max_length))
        bootstrap = recipe.evaluate.bootstrap
        return Trial(_sure(model), encoder, _rows(model, encoder, samples), samples, recipe.task, bootstrap)
    model = open_model(spec, head=_head(spec), base_dir=Path(), device=torch.device("cpu"), seed=0)
    encoder = Encoder(model.tokenizer, longest(model, max_length), model.kind)
    if data is None:
        return Trial(_sure(model), encoder, _rows(model, encoder, []))
    samples, task = _samples(model, data, rows)
    return Trial(_sure(model), encoder, _rows(model, encoder, samples), samples, task)


def _head(spec: Model) -> HeadKind:
    """The head that the model was saved with."""
    if model_kind(spec, Path()) == "encoder":
        return "class"
    names = read_json(locate(spec, Path()).folder / "config.json").get("architectures") or [""]
    return "class" if str(names[0]).endswith("ForSequenceClassification") else "language"


def _sure(model: LanguageModel) -> LanguageModel:
    """The model, if nothing in it was made up while it was opened. Raises ModelError for a new head."""
    if any(note.startswith("new classification head") for note in model.notes):
        raise ModelError(
            "the model has no trained classification head",
            why="a new one, drawn at random, would be exported",
            fix="train it first (`task: {use: classify, head: classifier}`), or give the recipe that it was trained with",
        )
    return model


def _samples(model: LanguageModel, data: Path, rows: int) -> tuple[list[Sample], Task | None]:
    """The first samples of a file: chats for a model that writes, else texts; a task whose likelihood can be measured."""
    look = first_look(data)
    found = read_source(FileSource(path=str(data.absolute())), data.parent)
    task: Task = ChatTask() if look.goal == "chat" and model.head_kind == "language" else TextTask(text=look.text or "text")
    samples = to_samples(found.rows, task, "language").samples
    chosen = [samples[index] for index in chosen_rows(samples, rows)]
    return chosen, task if model.head_kind == "language" else None


def _rows(model: LanguageModel, encoder: Encoder, samples: Sequence[Sample]) -> list[list[int]]:
    """Ids of the built-in texts, of a short chat where the model has a template, and of the samples."""
    label = 0 if model.head_kind == "class" else None
    probes = [
        Sample(f"probe-{i}", Origin("probe", i + 1), text=text, label=label)
        for i, text in enumerate(probe_texts(model.tokenizer))
    ]
    if model.head_kind == "language" and getattr(model.tokenizer, "chat_template", None):
        turns = (Message("user", "What is 2 + 3?"), Message("assistant", "It is 5.", learn=True))
        probes.append(Sample("probe-chat", Origin("probe", 0), messages=turns))
    encoded = [encoder.encode(sample).ids for sample in [*probes, *samples]]
    return [[int(token) for token in ids] for ids in encoded if len(ids)]


# -- writing -----------------------------------------------------------------------------------------------------------
def _write(trial: Trial, target: Path, to: Format, number_type: str, max_length: int) -> list[str]:
    """Write the file, and beside all but GGUF the tokenizer and the configuration; returns notes."""
    model, path = trial.model, target / FORMS[to].file
    with quiet(), hushed():
        if to == "gguf":
            return write_gguf(model, path, number_type)
        length = longest(model, max_length) if to == "executorch" else longest(model, 2**20)
        if to == "onnx":
            write_onnx(model, path, length, number_type)
        elif to == "executorch":
            write_executorch(model, path, length)
        else:
            write_torch(model, path, length)
        model.tokenizer.save_pretrained(target)
        model.config.save_pretrained(target)
    return [f"rows may have up to {length} tokens"]
