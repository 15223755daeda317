"""What techniques share whose rows a model writes: asked once, kept beside the runs, refused rows counted by reason.

Kept on disk so that a run that goes on, and every process of a run, trains on the same rows, whatever a server answers twice.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr

from uplift.core.capability import Capabilities
from uplift.core.errors import DataError, Place
from uplift.core.lock import DirectoryInUse, DirectoryLock
from uplift.core.model_section import Model
from uplift.core.storage import write_atomically
from uplift.core.values import Effect, Sample
from uplift.data.formats import content_text
from uplift.data.rewording import spans_in
from uplift.techniques.augmentation import Augmenting, Copying
from uplift.techniques.authors import Author, facts_of, named_author, own_author
from uplift.techniques.sieve import Sieve, plain

FOLDER = ".written"
VERSION = 1
"""Part of a file's name; raise it when the same options would write other rows."""
WAIT = 0.2


@dataclass(frozen=True)
class Draft:
    """A row as it was written: the number of its source row (-1: none) and of its copy; why it is refused ("": it is not)."""

    source: int
    number: int
    text: str
    label: int
    refused: str = ""


def filled(template: str, slots: Mapping[str, str]) -> str:
    """The template with its slots filled in one pass: braces in what fills them are text."""
    return re.sub(r"\{(\w+)\}", lambda match: slots.get(match[1], match[0]), template)


def remembered(folder: Path, facts: Mapping[str, Any], make: Callable[[], Sequence[Draft]]) -> tuple[list[Draft], Path]:
    """``make()``, asked once for the same facts; another process that asks meanwhile waits for it. Raises DataError."""
    text = json.dumps({**facts, "version": VERSION}, sort_keys=True)
    home = folder / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16]
    file = home / "rows.json"
    home.mkdir(parents=True, exist_ok=True)
    lock = DirectoryLock(home)
    while not file.exists():
        try:
            with lock:
                if not file.exists():
                    rows = [asdict(draft) for draft in make()]
                    write_atomically(file, json.dumps({"asked": facts, "rows": rows}, indent=1))
        except DirectoryInUse:
            time.sleep(WAIT)
    try:
        return [Draft(**row) for row in json.loads(file.read_text(encoding="utf-8"))["rows"]], file
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "remove the file: the rows are written again"
        raise DataError("rows that were written before are damaged", where=Place(str(file)), why=str(error), fix=fix) from error


class WrittenRows(Augmenting):
    """Base: further training rows that a model writes. Not a technique by itself."""

    model: Model | None = None
    """The model that writes (a folder, hub id, package or GGUF file); default: the recipe's own, as it was opened."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.9
    """0: the likeliest words; higher: freer."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 256
    """Longest answer; one that is not finished by then is refused."""

    _base_dir: Path = PrivateAttr(default_factory=Path)
    _output_dir: Path = PrivateAttr(default_factory=Path)
    _refused: Counter[str] = PrivateAttr(default_factory=Counter)
    _file: Path | None = PrivateAttr(None)

    @property
    def active(self) -> bool:
        """Whether it does anything."""
        return True

    @property
    def asks_own_model(self) -> bool:
        """Whether the recipe's own model writes."""
        return self.model is None

    def declare(self) -> Capabilities:
        """Its own model must have words to write with."""
        own = {"prompt", "language_head"} if self.active and self.asks_own_model else set[str]()
        return Capabilities(needs=frozenset({"training", "labels"} | own), mutates=frozenset({"train_rows"}))

    def locate(self, base_dir: Path, output_dir: Path) -> None:
        """Remember where paths start and where rows are kept."""
        self._base_dir, self._output_dir = base_dir, output_dir

    def facts(self) -> Mapping[str, Any]:
        """What else than the options and the rows decides what is written."""
        return facts_of(self.model, self._setting.model, self._base_dir)

    def author(self, spec: Model | None) -> Author:
        """The model that writes, opened."""
        if spec is None:
            return own_author(self._setting.model, self.use)
        return named_author(spec, self._base_dir, self._setting.model.device)

    def drafts(self, samples: Sequence[Sample]) -> Sequence[Draft]:
        """What the model writes of these rows, refused rows among it."""
        raise NotImplementedError

    def made(self, samples: Sequence[Sample], draft: Draft) -> Sample:
        """A kept draft as a row."""
        raise NotImplementedError

    def further(self, samples: Sequence[Sample]) -> list[Sample]:
        """The kept rows; all that were written are in a file beside the runs."""
        rows = [(sample.id, sample.label, content_text(sample)) for sample in samples]
        facts = {
            "options": self.model_dump(mode="json", exclude={"turns"}),
            "facts": self.facts(),
            "labels": list(self._setting.model.labels),
            "rows": hashlib.sha256(json.dumps([rows, self.held_texts]).encode()).hexdigest(),
        }
        drafts, self._file = remembered(self._output_dir, facts, lambda: self.drafts(samples))
        self._refused = Counter(draft.refused for draft in drafts if draft.refused)
        kept = [self.made(samples, draft) for draft in drafts if not draft.refused]
        if not kept:
            fix = "use a model that writes better, or raise `max_new_tokens`"
            what = f"none of the {len(drafts):,} rows that were written for `{self.use}` is fit to train on"
            raise DataError(what, where=Place(str(self._file)), why=f"refused: {self._reasons()}", fix=fix)
        return kept

    def _reasons(self) -> str:
        return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in sorted(self._refused.items()))

    def written(self, author: Author, questions: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, str]]:
        """Answers as texts, and why each is refused for itself."""
        answers = author.write(questions, seeds, self.max_new_tokens, self.temperature)
        return [(plain(answer.text), "unfinished" if answer.finished == "length" else "") for answer in answers]

    def effect(self) -> Effect:
        """Share of the written rows that were kept; holds when there are any."""
        asked = self._made + self._refused.total()
        detail = f"{self._made:,} of {asked:,} written rows kept"
        detail += f"; refused: {self._reasons()}" if self._refused else ""
        if self._file is not None:
            detail += f"; all of them are in {self._file}"
        return Effect(self.use, "training saw rows that a model wrote", self._made / max(1, asked), self._made > 0, detail)


class WrittenCopies(WrittenRows, Copying):
    """Base: further training rows that a model writes of those there are. Not a technique by itself."""

    def made(self, samples: Sequence[Sample], draft: Draft) -> Sample:
        """A kept draft as a row."""
        source = samples[draft.source]
        return self.copy_with(source, draft.text, draft.number, spans_in(source, draft.text) or ())

    def judged(
        self, samples: Sequence[Sample], asked: Sequence[tuple[int, int]], texts: Sequence[tuple[str, str]]
    ) -> list[Draft]:
        """Copies (row, number) with what was written of each, and why it is refused: known, in a held-out part, a span lost."""
        sieve, found = Sieve([content_text(sample) for sample in samples], self.held_texts), []
        for (index, number), (text, refused) in zip(asked, texts, strict=True):
            lost = "" if spans_in(samples[index], text) is not None else "lost_span"
            found.append(Draft(index, number, text, samples[index].label or 0, refused or lost or sieve.judge(text)))
        return found
