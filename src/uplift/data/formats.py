"""From rows to samples: the formats of the field, detected by their columns; a row that does not fit is put aside."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from uplift.core.errors import DataError, Place
from uplift.core.recipe import ChatTask, ClassifyTask, Split, Task, TextTask
from uplift.core.values import Message, Origin, Role, Sample
from uplift.data.labels import Labels, label_key
from uplift.data.moments import moment
from uplift.data.rows import BadRow, Row, RowProblem, bad_row, check_text, content_id, nearest
from uplift.data.sources import columns_of, missing_column

Format = Literal["messages", "sharegpt", "alpaca", "prompt_completion", "label", "text"]
Head = Literal["language", "class"]

ROLES: tuple[str, ...] = get_args(Role)
SHAREGPT_ROLES: Mapping[str, str] = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool"} | {
    role: role for role in ROLES
}
UNSUPPORTED = ("tool_calls", "function_call", "images", "audio")
"""Keys of a message that change what it means and that cannot be carried yet."""
MARKS = ("group", "time", "stratify")
"""Keys of ``data.split`` that name columns."""
LOOKED_AT = 200
"""Rows that format detection looks at."""


@dataclass(frozen=True)
class Converted:
    """``samples`` and ``quarantined`` together are all the rows that went in; ``labels`` are the class words by index."""

    samples: list[Sample]
    quarantined: list[BadRow]
    labels: tuple[str, ...]


def detect_format(rows: Sequence[Row]) -> Format:
    """The format that most of the first rows have; on a tie the richer one. Raises DataError that lists the columns."""
    counts = Counter(found for row in rows[:LOOKED_AT] if (found := _format_of(row.values)))
    if not counts:
        raise DataError(
            "the columns fit no known format",
            where=Place(rows[0].origin.file) if rows else None,
            why=f"the columns are: {', '.join(columns_of(rows)) or 'none'}",
            fix="give `messages`, `conversations`, `instruction` and `output`, `prompt` and `completion`, or `text`",
        )
    richness = {name: -index for index, name in enumerate(get_args(Format))}
    return max(counts, key=lambda name: (counts[name], richness[name]))


def _format_of(values: Mapping[str, Any]) -> Format | None:
    if isinstance(values.get("messages"), list):
        return "messages"
    if isinstance(values.get("conversations"), list):
        return "sharegpt"
    if "instruction" in values and "output" in values:
        return "alpaca"
    if "prompt" in values and "completion" in values:
        return "prompt_completion"
    if "text" in values:
        return "label" if "label" in values else "text"
    return None


def to_samples(
    rows: Sequence[Row],
    task: Task,
    head: Head,
    labels: Labels | None = None,
    *,
    split: Split | None = None,
) -> Converted:
    """Every row as a sample of the task, or as a bad row.

    ``labels`` are those of the training rows when these rows are another part; None finds them. ``split``: samples carry what
    it goes by. Raises DataError when no row has a column that the task or the split needs, and when classification has fewer
    than two classes.
    """
    convert, known = converter(rows, task, head, labels)
    marks = {f"data.split.{key}": name for key in MARKS if split and (name := getattr(split, key)) is not None}
    _require_columns(rows, marks)
    samples: list[Sample] = []
    bad: list[BadRow] = []
    seen: Counter[str] = Counter()
    for row in rows:
        try:
            sample = _marked(convert(row), row, split) if split else convert(row)
        except RowProblem as problem:
            bad.append(bad_row(row.origin, problem, repr(dict(row.values))))
            continue
        if seen[sample.id]:
            sample = replace(sample, extras={**sample.extras, "occurrence": seen[sample.id]})
        seen[sample.id] += 1
        samples.append(sample)
    return Converted(samples, bad, known.words if known else ())


def converter(
    rows: Sequence[Row], task: Task, head: Head, labels: Labels | None
) -> tuple[Callable[[Row], Sample], Labels | None]:
    """What makes a sample of a row (or raises RowProblem), found by looking at ``rows``; and the labels of classification.

    Raises DataError as ``to_samples`` does.
    """
    if isinstance(task, ClassifyTask):
        _require_columns(rows, {"task.text": task.text, "task.label": task.label})
        known = labels or Labels.of(rows, task)
        return lambda row: _classify(row, task, head, known), known
    if isinstance(task, TextTask):
        _require_columns(rows, {"task.text": task.text})
        return lambda row: _plain(row, task), None
    kind = detect_format(rows)
    if kind not in CONVERSATIONS:
        raise DataError(
            "the task is chat, and the rows have no answers to learn",
            where=Place(rows[0].origin.file, key="task"),
            why=f"the columns are: {', '.join(columns_of(rows))}",
            fix="use `task: {use: text}` or `task: {use: classify}`, or give `messages` or `prompt` and `completion`",
        )
    return lambda row: _chat(row, task, kind), None


def _require_columns(rows: Sequence[Row], names: Mapping[str, str]) -> None:
    for key, name in names.items():
        if rows and not any(name in row.values for row in rows):
            raise missing_column(name, columns_of(rows), Place(rows[0].origin.file), key)


def _marked(sample: Sample, row: Row, split: Split) -> Sample:
    """The sample with what the split goes by: its group, its time, its stratum."""
    extras = dict(sample.extras)
    if split.time is not None:
        extras["time"] = moment(_mark(row, split.time, "time"), split.time)
    if split.stratify is not None:
        extras["stratum"] = str(_mark(row, split.stratify, "stratify"))
    group = str(_mark(row, split.group, "group")) if split.group is not None else None
    return replace(sample, group=group, extras=extras)


def _mark(row: Row, column: str, key: str) -> Any:
    value = row.values.get(column)
    if value is None or value == "":
        raise RowProblem("missing_field", f"`{column}`, which the split goes by (`{key}`), is missing")
    return value


# -- classification and plain text -------------------------------------------------------------------------------------
def _classify(row: Row, task: ClassifyTask, head: Head, labels: Labels) -> Sample:
    text = check_text(_field(row, task.text), task.text)
    index = labels.index(label_key(_field(row, task.label), task.label))
    return labelled(text, index, row.origin, task, head, labels.words)


def labelled(text: str, index: int, origin: Origin, task: ClassifyTask, head: Head, words: Sequence[str]) -> Sample:
    """The sample of a text with class ``index``: the text itself for a class head, a question and its answer otherwise."""
    sample = Sample(sample_id(text), origin, label=index, extras={"content": text})
    if head == "class":
        return replace(sample, text=text)
    turns = [Message("user", question(text, task, words)), Message("assistant", words[index], learn=True)]
    return sample.with_messages([Message("system", task.system), *turns] if task.system else turns)


def question(text: str, task: ClassifyTask, words: Sequence[str]) -> str:
    """The task's prompt about a text; ``words`` are the labels."""
    slots = {"text": text, "labels": ", ".join(words)}
    # One pass over the template: braces in the text are text.
    return re.sub(r"\{(text|labels)\}", lambda match: slots[match[1]], task.prompt)


def _plain(row: Row, task: TextTask) -> Sample:
    text = check_text(_field(row, task.text), task.text)
    return Sample(sample_id(text), row.origin, text=text)


def _field(row: Row, name: str) -> Any:
    if name not in row.values:
        raise RowProblem("missing_field", f"there is no `{name}`{nearest(name, row.values)}")
    return row.values[name]


# -- conversations -----------------------------------------------------------------------------------------------------
def _chat(row: Row, task: ChatTask, kind: Format) -> Sample:
    messages, extras = CONVERSATIONS[kind](row), {}
    if task.system and messages[0].role != "system":
        messages = [Message("system", task.system), *messages]
    _check_turns(messages)
    if kind == "prompt_completion":
        extras["join"] = "direct"
    asked = "\x1f".join(f"{m.role}\x1e{m.content}" for m in messages if not m.learn and m.role != "system")
    content = asked or "\x1f".join(m.content for m in messages)
    return Sample(sample_id(content), row.origin, messages=tuple(messages), extras=extras)


def _check_turns(messages: Sequence[Message]) -> None:
    if any(message.role == "system" for message in messages[1:]):
        raise RowProblem("role_order", "a system turn may only be the first one")
    if not any(message.learn for message in messages):
        raise RowProblem("no_answer", "there is no assistant turn to learn")


def _messages(row: Row) -> list[Message]:
    return _turns(_field(row, "messages"), "messages", "role", "content", {role: role for role in ROLES})


def _sharegpt(row: Row) -> list[Message]:
    turns = _turns(_field(row, "conversations"), "conversations", "from", "value", SHAREGPT_ROLES)
    return _with_system(row, turns)


def _alpaca(row: Row) -> list[Message]:
    instruction, extra = check_text(_field(row, "instruction"), "instruction"), row.values.get("input")
    if extra not in (None, ""):
        instruction += "\n\n" + check_text(extra, "input")
    answer = check_text(_field(row, "output"), "output")
    return _with_system(row, [Message("user", instruction), Message("assistant", answer, learn=True)])


def _prompt_completion(row: Row) -> list[Message]:
    prompt, completion = _field(row, "prompt"), _field(row, "completion")
    roles = {role: role for role in ROLES}
    if isinstance(prompt, list) or isinstance(completion, list):
        asked = _turns(prompt, "prompt", "role", "content", roles)
        answered = _turns(completion, "completion", "role", "content", roles)
        return [replace(message, learn=False) for message in asked] + answered
    answer = Message("assistant", check_text(completion, "completion"), learn=True)
    return _with_system(row, [Message("user", check_text(prompt, "prompt")), answer])


def _with_system(row: Row, turns: list[Message]) -> list[Message]:
    system = row.values.get("system")
    return [Message("system", check_text(system, "system")), *turns] if system not in (None, "") else turns


def _turns(value: Any, field: str, role_key: str, content_key: str, roles: Mapping[str, str]) -> list[Message]:
    if not isinstance(value, list):
        raise RowProblem("wrong_type", f"`{field}` is {type(value).__name__}, not a list of turns")
    if not value:
        raise RowProblem("empty_text", f"`{field}` has no turns")
    return [_turn(turn, f"{field}[{index}]", role_key, content_key, roles) for index, turn in enumerate(value)]


def _turn(turn: Any, name: str, role_key: str, content_key: str, roles: Mapping[str, str]) -> Message:
    if not isinstance(turn, dict):
        raise RowProblem("wrong_type", f"`{name}` is {type(turn).__name__}, not an object")
    for key in (role_key, content_key):
        if key not in turn:
            raise RowProblem("missing_field", f"`{name}` has no `{key}`{nearest(key, map(str, turn))}")
    for key in UNSUPPORTED:
        if turn.get(key):
            raise RowProblem("unsupported_field", f"`{name}.{key}` cannot be carried yet")
    role = roles.get(turn[role_key]) if isinstance(turn[role_key], str) else None
    if role is None:
        raise RowProblem("role", f"`{name}.{role_key}` is {turn[role_key]!r}{nearest(str(turn[role_key]), roles)}")
    content = turn[content_key]
    if role == "system" and content == "":
        return Message("system", "")
    content = check_text(content, f"{name}.{content_key}")
    return Message(cast(Role, role), content, learn=role == "assistant" and turn.get("weight", 1) != 0)


CONVERSATIONS: Mapping[Format, Callable[[Row], list[Message]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
}


# -- identity ----------------------------------------------------------------------------------------------------------
def sample_id(content: str) -> str:
    """The id of an input: equal inputs have equal ids, whatever their label or answer."""
    return content_id(content)


def content_text(sample: Sample) -> str:
    """What a sample asks, without labels, answers, system turns and the task's own question: for splits and leakage."""
    if "content" in sample.extras:
        return cast(str, sample.extras["content"])
    if sample.text is not None:
        return sample.text
    asked = [message.content for message in sample.messages if message.role != "system" and not message.learn]
    return "\n".join(asked or [message.content for message in sample.messages])
