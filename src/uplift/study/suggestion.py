"""From a first look at data and machine to a commented recipe and a comparison whose arms fit both."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from uplift.data.rows import NAME_ENCODING
from uplift.study.first_look import FirstLook
from uplift.study.machine import Machine

GIB = 2**30
SMOLLM = "smollm2-135m-instruct"
MINILM = "minilm-l6"
MINILM_LENGTH = 512
SMOLLM_PARAMETERS = 134.5e6
FULL_TRAINING_BYTES = 16
"""Per parameter: weight, gradient and two AdamW moments in fp32."""
SHARE_OF_PEAK = 0.5
"""Of the measured matrix product speed; what small models reach in training. `uplift plan --probe` measures it."""
SECONDS_PER_ARM = 90
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = {"null", "true", "false"}


@dataclass(frozen=True)
class Suggestion:
    """Two YAML files and, for the terminal, what was seen and chosen."""

    recipe: str
    comparison: str
    seen: tuple[str, ...]


@dataclass(frozen=True)
class _Arm:
    """One arm: the YAML of its change, and why it is there. ``uses`` are the techniques it needs to exist."""

    name: str
    change: str
    reason: str
    uses: tuple[str, ...] = ()


def suggest(look: FirstLook, machine: Machine, directory: Path, available: Collection[str]) -> Suggestion:
    """A recipe and a comparison for the data on this machine. ``available``: the techniques that may be named.

    ``directory`` is where the files will stand; the data path is written relative to it.
    """
    seen = _seen(look, machine)
    remarks = "".join(f"# {line}\n" for line in seen)
    data = file_source(os.path.relpath(look.path.absolute(), directory.absolute()), look.encoding)
    shared = _data_section(look, data) + _task_section(look)
    techniques = [line for use, line in _usual_techniques(look) if use in available]
    recipe = (
        f"# What was seen:\n{remarks}\nname: first\n"
        f"# The packaged {SMOLLM}; a folder, a .gguf file or a hub id of a causal model or encoder works as well.\n"
        f"model: {{use: package, name: {SMOLLM}}}\n{shared}"
        + ("techniques:\n" + "".join(techniques) if techniques else "")
        + _train_section(look, "epochs: 2, ")
    )
    comparison = (
        f"# What was seen:\n{remarks}\nname: first-comparison\n"
        f"model: {{use: package, name: {SMOLLM}}}\n{shared}{_train_section(look, '')}{_arms(look, machine, available)}"
    )
    return Suggestion(recipe, comparison, seen)


def distillation(look: FirstLook, directory: Path, student: str, teacher: str, labels: Mapping[str, str]) -> str:
    """A recipe in which ``student`` learns from ``teacher`` (YAML of their model sections) on the data.

    An empty ``teacher``: the rows hold its answers already. ``labels``: label value -> word.
    """
    data = file_source(os.path.relpath(look.path.absolute(), directory.absolute()), look.encoding)
    task = _task_section(look)
    if labels and look.goal == "classify":
        task += f"  labels: {{{', '.join(f'{quoted(value)}: {quoted(word)}' for value, word in labels.items())}}}\n"
    learned = (
        f"techniques:\n  - use: distill\n    teacher: {teacher}\n"
        "    cache: true  # the teacher is asked once, in the first epoch\n"
        if teacher
        else ""
    )
    return f"name: distill\nmodel: {student}\n{_data_section(look, data)}{task}{learned}{_train_section(look, 'epochs: 3, ')}"


def file_source(path: str, encoding: str | None) -> str:
    """YAML of a file as a source of rows."""
    return quoted(path) if encoding is None else f"{{path: {quoted(path)}, encoding: {quoted(encoding)}}}"


def quoted(text: str) -> str:
    """Text as a YAML value that reads back unchanged."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    escaped = "".join(
        c if c.isprintable() or c == " " else f"\\U{ord(c):08x}" for c in text.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"' if text else json.dumps(text)


def _seen(look: FirstLook, machine: Machine) -> tuple[str, ...]:
    more = "" if look.complete else " (the first ones; there are more)"
    lines = [
        f"{_one_line(look.path.name)}: {look.kind}, {look.rows:,} rows{more}",
        f"columns: {', '.join(map(_one_line, look.columns))}",
    ]
    if look.quarantined:
        lines.append(f"{look.quarantined:,} rows cannot be read; `uplift run` lists each with its line")
        if look.not_utf8:
            lines.append(f"most of these are no text in the encoding that was read: {NAME_ENCODING}")
    if look.labels:
        shown = ", ".join(f"{_one_line(value)} {count:,}" for value, count in look.labels[:8])
        lines.append(f"{len(look.labels)} labels: {shown}{', ...' if len(look.labels) > 8 else ''}")
        lines.append(f"always guessing the most frequent one is right {look.majority:.0%} of the time")
    if look.majority > 0.7:
        lines.append("the labels are unbalanced: look at macro F1, not at accuracy")
    median, high, longest = look.lengths
    lines.append(f"about {median:,} tokens per row (95 %: {high:,}, longest: {longest:,})")
    lines.append(machine.describe())
    return tuple(lines)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:80]


def _data_section(look: FirstLook, data: str) -> str:
    (_, validation), (_, test) = split_shares(look.rows)
    why = "" if look.rows >= 500 else "; few rows, so a larger share is kept for testing"
    return (
        f"data:\n  train: {data}\n"
        f"  # By a hash of the content: duplicates never stand on both sides{why}.\n"
        f"  split: {{validation: {validation}, test: {test}, by: content}}\n"
    )


def split_shares(rows: int) -> tuple[tuple[str, float], tuple[str, float]]:
    """Shares of the held-out parts: of few rows a larger one, or their scores say nothing."""
    return (("validation", 0.1), ("test", 0.2)) if rows >= 500 else (("validation", 0.15), ("test", 0.3))


def _task_section(look: FirstLook) -> str:
    if look.goal == "chat":
        return "task: {use: chat}\n"
    if look.goal == "text":
        return f"task: {{use: text, text: {quoted(look.text)}}}\n"
    lines = f"task:\n  use: classify\n  text: {quoted(look.text)}\n  label: {quoted(look.label)}\n"
    if all(re.fullmatch(r"-?[0-9]+", value) for value, _ in look.labels):
        pairs = ", ".join(f'"{value}": word{index}' for index, (value, _) in enumerate(sorted(look.labels)[:6]))
        lines += f"  # Say what the numbers mean; a language model answers in words:\n  # labels: {{{pairs}}}\n"
    return lines


def _usual_techniques(look: FirstLook) -> list[tuple[str, str]]:
    lines = [("lora", "  - {use: lora, rank: 8}  # trains about 1 % of the weights; the model stays as it was\n")]
    if look.goal == "classify":
        lines.append(("label_smoothing", "  - {use: label_smoothing, amount: 0.01}  # labels are never all right\n"))
    lines.append(
        ("early_stopping", "  - {use: early_stopping, patience: 3}  # stops when the validation part no longer gains\n")
    )
    return lines


def _max_length(look: FirstLook) -> int:
    """Tokens that hold 95 % of the rows with the prompt around them, in steps of 64."""
    return min(1024, max(64, 64 * -(-round(look.lengths[1] * 1.3 + 48) // 64)))


def _train_section(look: FirstLook, before: str) -> str:
    length = _max_length(look)
    return (
        f"# max_length: 95 % of the rows fit with room to spare; longer ones are cut and counted.\n"
        f"train: {{{before}batch_tokens: {max(1024, 2 * length)}, max_length: {length}}}\n"
    )


def _arms(look: FirstLook, machine: Machine, available: Collection[str]) -> str:
    tokens = SHARE_OF_PEAK * machine.gemm_flops / (6 * SMOLLM_PARAMETERS)
    lines = ["arms:\n"]
    if look.goal == "classify":
        lines.append(
            "  # Words and logistic regression, seconds: whoever does not beat it needs no language model.\n  - {use: tfidf}\n"
        )
    for arm in [*_prompt_arms(look), *_trained_arms(look, machine)]:
        if set(arm.uses) <= set(available):
            lines.append(f"  # {arm.reason}\n  - name: {arm.name}\n    change: {arm.change}\n")
    lines.append(
        f"# Training seconds per arm and seed; about {tokens * SECONDS_PER_ARM:,.0f} tokens of {SMOLLM} on this machine,\n"
        f"# {look.lengths[0] * look.rows:,} are in the file. `uplift plan --probe` measures it.\n"
        f"budget: {{seconds: {SECONDS_PER_ARM}}}\n"
        "seeds: [0]  # more seeds, narrower intervals\n"
    )
    if look.goal == "classify":
        lines.append(
            "# Trains the best arm once more on shuffled labels: it must not be better than guessing.\nplacebo: true\n"
        )
    return "".join(lines)


def _prompt_arms(look: FirstLook) -> list[_Arm]:
    if look.goal != "classify":
        return [_Arm("untouched", "{train: {steps: 0}}", "The model as it is: what training is held against.")]
    return [
        _Arm("zero-shot", "{train: {steps: 0}, task: {head: words}}", "Only asks: what the model can do untaught."),
        _Arm(
            "few-shot",
            "{train: {steps: 0}, task: {head: words}, techniques: [{use: few_shot}]}",
            "Shows examples in the prompt; no weight changes, but every question becomes longer.",
            ("few_shot",),
        ),
    ]


def _trained_arms(look: FirstLook, machine: Machine) -> list[_Arm]:
    arms = [
        _Arm(
            "lora",
            "{techniques: [{use: lora, rank: 8}]}",
            "The usual way: little memory, and a small file as the result.",
            ("lora",),
        )
    ]
    if look.goal == "classify":
        short = f", train: {{max_length: {MINILM_LENGTH}}}" if _max_length(look) > MINILM_LENGTH else ""
        arms += [
            _Arm(
                "linear-probe",
                "{task: {head: classifier}, techniques: [{use: linear_probe}]}",
                "Trains only the last layer: cheap, and hard to overfit.",
                ("linear_probe",),
            ),
            _Arm(
                "minilm-full",
                f"{{model: {{use: package, name: {MINILM}}}, task: {{head: classifier}}{short}}}",
                "A small encoder with all its weights trained: often the best score per second on short texts.",
            ),
            _Arm(
                "lora-robust",
                "{techniques: [{use: lora, rank: 8}, {use: label_smoothing, amount: 0.01}, {use: fgm}, {use: early_stopping}]}",
                "LoRA against noise: smoothed labels, adversarial embeddings (twice the time of a step), stops in time.",
                ("lora", "label_smoothing", "fgm", "early_stopping"),
            ),
        ]
    else:
        arms.append(
            _Arm(
                "lora-noise",
                "{techniques: [{use: lora, rank: 8}, {use: neftune}]}",
                "LoRA with noise on the embeddings: often better answers from few examples.",
                ("lora", "neftune"),
            )
        )
    needed = FULL_TRAINING_BYTES * SMOLLM_PARAMETERS + GIB
    if machine.memory_available > 1.5 * needed:
        reason = (
            f"All weights: about {needed / GIB:.0f} GiB of the {machine.memory_available / GIB:.0f} GiB that are free here."
        )
        arms.append(_Arm("full", "{train: {lr: 2e-5}}", reason))
    return arms
