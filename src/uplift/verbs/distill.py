"""``uplift distill``: a student from a teacher and a data file: the recipe, and the answers of a teacher that is to speak."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uplift.core.errors import Place, UsageError
from uplift.core.model_section import GgufModel, HfModel
from uplift.core.recipe import ChatTask, FileSource
from uplift.core.storage import write_atomically
from uplift.core.values import Generation, Message, Sample
from uplift.data.formats import to_samples
from uplift.data.sources import read_source
from uplift.learn.parallel import pick_device
from uplift.model.endpoint import Endpoint
from uplift.model.opening import open_model, resolve_model
from uplift.serve.generate import generate
from uplift.study.first_look import FirstLook, first_look
from uplift.study.suggestion import distillation, quoted

SHARES = 20
"""The file of answers is written about this many times on the way, so that a stop loses little."""
AT_ONCE = 8


@dataclass(frozen=True)
class Answered:
    """How many questions there are, how many have an answer in the file, and how many answers were cut by the length limit."""

    questions: int
    answers: int
    cut: int


def write_recipe(
    student: str,
    teacher: str,
    data: Path,
    directory: Path,
    *,
    labels: Mapping[str, str] | None = None,
    spoken: bool = False,
    force: bool = False,
) -> Path:
    """Write ``directory/distill.yaml``: ``student`` learns from ``teacher`` on ``data``, whose kind is looked up.

    ``labels``: label value -> word, for a teacher that is asked in words. ``spoken``: ``data`` holds the teacher's own answers,
    so they alone are learned. Raises UsageError when the file is there (unless ``force``), ModelError, DataError.
    """
    target = directory / "distill.yaml"
    if target.exists() and not force:
        raise UsageError("this file exists already", where=Place(str(target)), fix="give another --directory, or --force")
    look = first_look(data)
    models = [_model(student, directory), "" if spoken else _model(teacher, directory)]
    write_atomically(target, distillation(look, directory, models[0], models[1], labels or {}))
    return target


def write_answers(
    teacher: str | Endpoint,
    data: Path,
    output: Path,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    device: str = "auto",
    tell: Callable[[int, int], None] = lambda done, all_of_them: None,
) -> Answered:
    """Have the teacher answer every question of a chat file, and write rows to train on (sequence-level distillation).

    A file that is there is continued. Answers that the length limit cut are left out: they would teach to stop anywhere.
    ``tell``: called with questions done and all of them. Raises UsageError, DataError, ModelError, ResourceError.
    """
    samples = _questions(first_look(data))
    rows = _rows_of(output)
    open_ones = [sample for sample in samples if sample.id not in rows]
    ask = _asker(teacher, max_tokens, temperature, seed, device) if open_ones else None
    size, cut = max(AT_ONCE, -(-len(open_ones) // SHARES)), 0
    for begin in range(0, len(open_ones), size):
        group = open_ones[begin : begin + size]
        assert ask is not None
        for sample, answer in zip(group, ask([_asked(sample) for sample in group]), strict=True):
            cut += answer.finished == "length"
            if answer.finished == "stop" and answer.text.strip():
                turns = [*_asked(sample), Message("assistant", answer.text)]
                rows[sample.id] = json.dumps(
                    {"id": sample.id, "messages": [{"role": turn.role, "content": turn.content} for turn in turns]},
                    ensure_ascii=False,
                )
        write_atomically(output, "".join(f"{line}\n" for line in rows.values()))
        tell(begin + len(group), len(open_ones))
    return Answered(len(samples), sum(sample.id in rows for sample in samples), cut)


def _questions(look: FirstLook) -> list[Sample]:
    if look.goal != "chat":
        why = f"this is a file for `{look.goal}`"
        fix = "give rows with `messages`, or `prompt` and `completion`"
        raise UsageError("a teacher answers questions, and there are none", where=str(look.path), why=why, fix=fix)
    rows = read_source(FileSource(path=str(look.path.absolute())), look.path.parent)
    return list({sample.id: sample for sample in to_samples(rows.rows, ChatTask(), "language").samples}.values())


def _asked(sample: Sample) -> list[Message]:
    """The turns before the last answer."""
    last = max(index for index, message in enumerate(sample.messages) if message.role == "assistant")
    return [*sample.messages[:last]]


def _rows_of(output: Path) -> dict[str, str]:
    """The rows of an earlier start, by id. Raises UsageError for a file of another kind."""
    if not output.exists():
        return {}
    lines = output.read_text(encoding="utf-8").splitlines()
    try:
        return {json.loads(line)["id"]: line for line in lines}
    except (ValueError, KeyError, TypeError):
        fix = "give a new file name"
        raise UsageError("this file holds something else than answers", where=Place(str(output)), fix=fix) from None


def _asker(
    teacher: str | Endpoint, max_tokens: int, temperature: float, seed: int, device: str
) -> Callable[[Sequence[Sequence[Message]]], list[Generation]]:
    if isinstance(teacher, Endpoint):
        return lambda asked: [
            teacher.answer(turns, max_new_tokens=max_tokens, temperature=temperature, seed=seed) for turns in asked
        ]
    spec = resolve_model(teacher)
    model = open_model(spec, head="language", base_dir=Path(), device=pick_device(device), seed=0)
    return lambda asked: generate(
        model, asked, max_new_tokens=max_tokens, temperature=temperature, seed=seed, batch_size=AT_ONCE
    )


def _model(text: str, directory: Path) -> str:
    """The YAML of a model section; paths are written as seen from the recipe's folder."""
    spec = resolve_model(text)
    if isinstance(spec, GgufModel):
        return f"{{use: gguf, path: {quoted(os.path.relpath(Path(spec.path).absolute(), directory.absolute()))}}}"
    if isinstance(spec, HfModel):
        local = Path(spec.id).expanduser()
        name = os.path.relpath(local.absolute(), directory.absolute()) if local.exists() else spec.id
        return f"{{use: hf, id: {quoted(name)}}}"
    return f"{{use: package, name: {quoted(spec.name)}}}"
