"""``uplift export MODEL --to FORMAT -o OUT``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveFloat, PositiveInt
from rich.table import Table

from uplift.cli import printing
from uplift.cli.printing import number
from uplift.core.export_section import Format, Past
from uplift.core.recipe_file import load_recipe
from uplift.serve.export.cost import Cost
from uplift.serve.export.gate import Metric, Parity
from uplift.verbs.export import Exported, RefusedExport, export

MEGABYTE = 1e6


def export_command(
    model: str,
    /,
    *overrides: str,
    to: Format,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    type: str = "f32",
    recipe: Path | None = None,
    data: Path | None = None,
    rows: PositiveInt = 100,
    max_length: PositiveInt = 512,
    tolerance: PositiveFloat | None = None,
    past_tolerance: Past = "refuse",
    without_parity: Annotated[bool, Parameter(negative="")] = False,
    cost: bool = True,
    json: bool = False,
) -> None:
    """Write a model for another runtime, open the file there, and show it beside the original.

    Parameters
    ----------
    model: str
        A run's folder, a model folder, a GGUF file, a packaged model or a hub id.
    overrides: str
        Changes of the recipe, for example `evaluate.limit=50`.
    to: str
        gguf: llama.cpp. onnx: onnxruntime. executorch: phones and boards. torch: a torch.export program.
    output: Path
        A new folder for the file, its tokenizer and parity.json.
    type: str
        How numbers are kept; default f32. gguf: also f16, q8_0, and by llama.cpp's own quantizer q6_k, q5_k_m, q5_0, q4_k_m,
        q4_0. onnx: also int8 (encoders), int8_weights and int4_weights (decoders).
    recipe: Path
        A recipe whose test part both are measured on.
    data: Path
        A file of texts or chats to compare them on, in place of a recipe.
    rows: int
        Most rows of the recipe or file.
    max_length: int
        Tokens of the longest row that is compared; ExecuTorch files take no longer ones.
    tolerance: float
        Largest |logit difference| that is allowed, in place of the type's own limits.
    past_tolerance: str
        refuse: keep nothing and end with an error. warn: keep the file and say so.
    without_parity: bool
        Compare nothing: the file may be wrong.
    cost: bool
        Measure load time, speed and memory of both, each in a process of its own.
    json: bool
        Print JSON.
    """
    asked = None if recipe is None else load_recipe(recipe, overrides)
    try:
        found = export(
            model,
            output,
            to,
            number_type=type,
            recipe=asked,
            base_dir=Path() if recipe is None else recipe.parent,
            data=data,
            rows=rows,
            max_length=max_length,
            tolerance=tolerance,
            past=past_tolerance,
            gate=not without_parity,
            cost=cost,
            console=printing.progress(),
        )
    except RefusedExport as refused:
        _show(refused.exported, json)
        raise
    _show(found, json)
    if not json:
        printing.output().print(f"written to {found.file}", markup=False)


def _show(found: Exported, json: bool) -> None:
    if json:
        printing.print_json(found.as_json())
        return
    console = printing.output()
    for note in found.notes:
        console.print(note, markup=False, style="dim")
    if found.parity is None:
        console.print("WITHOUT PARITY: nobody has compared this file with the original; it may be wrong", style="bold red")
        return
    console.print(_table(found, found.parity))
    for problem in found.parity.problems:
        console.print(f"past the limit: {problem}", markup=False, style="bold red")


def _table(found: Exported, parity: Parity) -> Table:
    table = Table("", "original", f"{found.format} {found.type} in {parity.runtime}", box=None, header_style="bold")
    agreement = parity.agreement
    limits = parity.limits
    allowed = "" if limits.difference is None else f" (allowed {number(limits.difference)})"
    table.add_row("largest |logit difference|", "", f"{agreement.difference:.2g}{allowed}")
    table.add_row("mean divergence", "", f"{agreement.divergence:.2g} nats (allowed {limits.divergence:g})")
    table.add_row("same prediction", "", f"{100 * agreement.share:.2f} % of {agreement.predictions:,} in {agreement.rows} rows")
    same = parity.texts - len(parity.differing)
    table.add_row("same tokens", "", f"{same} of {parity.texts} texts")
    if parity.metric is not None:
        _add_metric(table, parity.metric)
    table.add_row("size", f"{parity.original_size / MEGABYTE:.1f} MB in float32", f"{parity.size / MEGABYTE:.1f} MB")
    if parity.original_cost is not None and parity.cost is not None:
        _add_cost(table, parity.original_cost, parity.cost)
    return table


def _add_metric(table: Table, metric: Metric) -> None:
    table.add_row(f"{metric.name} ({metric.items} rows)", _interval(metric.original), _interval(metric.exported))
    table.add_row("  file minus original", "", _interval(metric.difference))


def _interval(values: dict[str, float | None]) -> str:
    shown = number(values["value"])
    return shown if values["low"] is None else f"{shown} ({number(values['low'])} to {number(values['high'])})"


def _add_cost(table: Table, original: Cost, exported: Cost) -> None:
    table.add_row("time to open", f"{original.load:.2f} s", f"{exported.load:.2f} s")
    table.add_row("speed, one row at a time", *(f"{number(c.tokens_per_second)} tokens/s" for c in (original, exported)))
    table.add_row("peak memory", *(f"{c.memory / MEGABYTE:,.0f} MB" if c.memory else "-" for c in (original, exported)))
