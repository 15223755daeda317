"""The chat template as a skeleton: what it writes around the turns, found once per structure by rendering placeholders.

The template runs in transformers' own sandbox and never sees content, so content cannot steer it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uplift.core.errors import DataError
from uplift.data.tokens import SafeTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD = "\x0c"
"""White space that no template writes: when it is gone around a placeholder, the template strips that turn."""
SLOT = re.compile(rf"({PAD}?)Turn(\d{{4}})Slot({PAD}?)")
KEPT_STRUCTURES = 4096

Structure = tuple[tuple[str, bool], ...]
"""(role, learned) of each turn."""


@dataclass(frozen=True)
class Slot:
    """The place of turn ``index`` and whether the template strips white space at its start and end."""

    index: int
    strip_start: bool = False
    strip_end: bool = False

    def fill(self, content: str) -> str:
        """The content as the template would write it."""
        content = content.lstrip() if self.strip_start else content
        return content.rstrip() if self.strip_end else content


@dataclass(frozen=True)
class Segment:
    """A stretch of the rendered chat that is learned or not: literal text and slots in order."""

    pieces: tuple[str | Slot, ...]
    learned: bool


class ChatTemplate:
    """Skeletons of one tokenizer's chat template. Raises DataError when the template does not keep every turn once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, safe: SafeTokenizer) -> None:
        self._tokenizer, self._controls = tokenizer, safe.control_texts
        self._known: dict[tuple[Structure, bool], tuple[Segment, ...]] = {}
        self._turn_end: str | None = None

    @property
    def turn_end(self) -> str:
        """The control token that ends an assistant turn, or nothing when the template writes none."""
        if self._turn_end is None:
            rendered = self._render([("user", False), ("assistant", True)], False)
            tail = rendered[_slots(rendered, ["user", "assistant"])[-1].end() :]
            found = [(tail.find(text), text) for text in self._controls if text in tail]
            self._turn_end = min(found, key=lambda item: item[0])[1] if found else ""
        return self._turn_end

    def skeleton(self, structure: Structure, *, generation: bool) -> tuple[Segment, ...]:
        """The segments of a chat of this structure; ``generation``: it ends where the model's answer begins."""
        key = (structure, generation)
        if key not in self._known:
            if len(self._known) >= KEPT_STRUCTURES:
                self._known.clear()
            self._known[key] = self._build(structure, generation)
        return self._known[key]

    def _build(self, structure: Structure, generation: bool) -> tuple[Segment, ...]:
        rendered = self._render(structure, generation)
        slots = _slots(rendered, [role for role, _ in structure])
        edges: list[tuple[int, bool]] = []
        for index, (_, learned) in enumerate(structure):
            if learned:
                before = slots[index - 1].end() if index else 0
                edges.append((self._answer_start(rendered, structure[:index], before, slots[index].start()), True))
                edges.append((slots[index].end() + self._end_length(rendered[slots[index].end() :]), False))
        segments, start, learned = [], 0, False
        for position, next_learned in [*edges, (len(rendered), False)]:
            segments.append(Segment(_pieces(rendered, start, position, slots), learned))
            start, learned = position, next_learned
        return tuple(segment for segment in segments if segment.pieces)

    def _answer_start(self, rendered: str, before: Structure, earliest: int, slot: int) -> int:
        """Where the model's part of a turn begins: right after the generation prompt, else at the content."""
        prompt = self._render(before, True) if before else ""
        start = len(prompt)
        fits = rendered.startswith(prompt) and earliest <= start <= slot
        # A control token in between means that the template has no generation prompt: that text is the role header.
        if fits and before and not any(text in rendered[start:slot] for text in self._controls):
            return start
        return slot

    def _end_length(self, after: str) -> int:
        """Characters after an answer up to the end of its end-of-turn token; 0 when something else follows."""
        end = self.turn_end
        position = after.find(end) if end else -1
        return position + len(end) if position >= 0 and not after[:position].strip() else 0

    def _render(self, structure: Sequence[tuple[str, bool]], generation: bool) -> str:
        messages: list[dict[str, Any]] = [
            {"role": role, "content": f"{PAD}Turn{index:04d}Slot{PAD}"} for index, (role, _) in enumerate(structure)
        ]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        except Exception as error:  # a template is a program: any error of it is a template problem
            roles = ", ".join(role for role, _ in structure)
            fix = "merge or remove turns that this model's template does not know, or use another model"
            raise DataError(f"the chat template refuses turns of {roles}", why=str(error), fix=fix) from error
        return str(text)


def _slots(rendered: str, roles: Sequence[str]) -> list[re.Match[str]]:
    found = list(SLOT.finditer(rendered))
    numbers = [int(match[2]) for match in found]
    if numbers == list(range(len(roles))):
        return found
    lost = [index for index in range(len(roles)) if numbers.count(index) != 1]
    if lost:
        problem = "leaves out" if lost[0] not in numbers else "repeats or changes"
        what = f"the chat template {problem} the content of a `{roles[lost[0]]}` turn"
    else:
        what = "the chat template changes the order of the turns"
    why = f"turn {lost[0] + 1} of {', '.join(roles)}" if lost else ", ".join(roles)
    raise DataError(what, why=why, fix="use a model whose template writes every turn once, or repair its `chat_template`")


def _pieces(rendered: str, start: int, end: int, slots: Sequence[re.Match[str]]) -> tuple[str | Slot, ...]:
    pieces: list[str | Slot] = []
    for match in slots:
        if start <= match.start() < end:
            pieces += [rendered[start : match.start()], Slot(int(match[2]), not match[1], not match[3])]
            start = match.end()
    pieces.append(rendered[start:end])
    return tuple(piece for piece in pieces if piece != "")


class PlainFormat:
    """The format of a base model without a chat template: turns one after another, an end-of-text token after answers.

    A system turn ends with a blank line, other turns with a line break; ``direct`` joins prompt and completion as they
    are. Roles are not written.
    """

    def __init__(self, end: str) -> None:
        self.turn_end = end

    def skeleton(self, structure: Structure, *, generation: bool, direct: bool = False) -> tuple[Segment, ...]:
        """The segments of a chat of this structure (``generation`` adds nothing: the answer follows the last turn)."""
        segments = []
        for index, (role, learned) in enumerate(structure):
            last = index == len(structure) - 1 and not generation
            if role == "assistant":
                segments.append(Segment((Slot(index), *([self.turn_end] if self.turn_end else [])), learned))
                after = "" if last else "\n"
            else:
                segments.append(Segment((Slot(index),), False))
                after = "\n\n" if role == "system" else "" if direct else "\n"
            if after:
                segments.append(Segment((after,), False))
        return tuple(segments)
