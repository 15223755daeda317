"""Carries out ``evaluate.robustness``: the rows, the model that texts are taken over from, the base's numbers remembered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from uplift.core.recipe import ClassifyTask, Model, Robustness
from uplift.core.report import Robustness as Report
from uplift.core.storage import write_atomically
from uplift.core.values import Corpus, Sample
from uplift.data.chat import Encoder
from uplift.data.formats import content_text, labelled
from uplift.evaluate.base import question_key
from uplift.evaluate.robustness import Misleading, beside_base, measure_robustness, misleading_texts
from uplift.evaluate.tasks import chosen_rows
from uplift.learn.assemble import Assembly, resolve_head
from uplift.model.language_model import LanguageModel
from uplift.model.opening import model_kind, open_model
from uplift.verbs.display import Display

VERSION = 1
"""Raise it when the same attack would find other texts: what is remembered then no longer counts."""


class Attacks:
    """The attacks of one recipe: ``before`` on the model as it was opened, ``after`` on the result.

    ``memory``: a folder where what many runs share is kept (the base's numbers, the texts of the other model), or None.
    """

    def __init__(self, assembly: Assembly, base_dir: Path, memory: Path | None, display: Display) -> None:
        self._assembly, self._base_dir, self._memory, self._display = assembly, base_dir, memory, display
        self._base: Report | None = None
        self._taken: Misleading | None = None

    @property
    def _settings(self) -> Robustness | None:
        """With whole paths; None when there is nothing to do: no attack, or no test rows."""
        settings = self._assembly.recipe.evaluate.robustness if len(self._assembly.plain["test"]) else None
        if settings is None or settings.wordnet is None:
            return settings
        return settings.model_copy(update={"wordnet": str(self._base_dir / Path(settings.wordnet).expanduser())})

    def before(self) -> None:
        """Attack the untouched model, unless that was done before."""
        settings = self._settings
        if settings is None:
            return
        samples = self._samples(self._assembly.plain["test"], settings)
        self._display.stage(f"attacking the model as it is on {len(samples)} test rows")
        asked = ("attacked", settings.model_dump(mode="json"), self._texts_of_other(settings))
        file = self._file(self._assembly.model, samples, *asked)
        self._base = _remembered(file)
        if self._base is None:
            self._base = self._measure(samples, settings)
            if file is not None:
                write_atomically(file, self._base.model_dump_json())

    def after(self) -> Report | None:
        """Attack the model as it is now; with the base's numbers where they were measured."""
        settings = self._settings
        if settings is None:
            return None
        samples = self._samples(self._assembly.corpora["test"], settings)
        if self._base is not None and not self._assembly.makes_model and samples == self._plain_samples(settings):
            return beside_base(self._base, self._base)
        self._display.stage(f"attacking the result on {len(samples)} test rows: {', '.join(settings.attacks)}")
        result = self._measure(samples, settings)
        return beside_base(result, self._base) if self._base is not None else result

    def _measure(self, samples: Sequence[Sample], settings: Robustness) -> Report:
        recipe = self._assembly.recipe
        assert isinstance(recipe.task, ClassifyTask)  # the recipe is refused otherwise
        return measure_robustness(
            self._assembly.model,
            samples,
            recipe.task,
            self._assembly.encoder,
            settings,
            seed=recipe.seed,
            batch_tokens=recipe.train.batch_tokens,
            misleading=self._texts_of_other(settings),
        )

    def _samples(self, corpus: Corpus, settings: Robustness) -> list[Sample]:
        """The rows to attack: the first of those that are evaluated, in the order of their hashes."""
        limit = min(settings.rows, self._assembly.recipe.evaluate.limit or settings.rows)
        return [corpus[index] for index in chosen_rows(self._assembly.parts.test, limit)]

    def _plain_samples(self, settings: Robustness) -> list[Sample]:
        return self._samples(self._assembly.plain["test"], settings)

    # -- transfer ----------------------------------------------------------------------------------------------------
    def _texts_of_other(self, settings: Robustness) -> Misleading | None:
        """Texts that make the other model wrong, found once."""
        if settings.transfer_from is None:
            return None
        if self._taken is None:
            self._taken = self._attack_other(settings, settings.transfer_from)
        return self._taken

    def _attack_other(self, settings: Robustness, spec: Model) -> Misleading:
        recipe, parts = self._assembly.recipe, self._assembly.parts
        task = recipe.task
        assert isinstance(task, ClassifyTask)
        head = resolve_head(task, model_kind(spec, self._base_dir))
        device = self._assembly.model.device
        model = open_model(spec, head=head, labels=parts.labels, base_dir=self._base_dir, device=device, seed=recipe.seed)
        if any(note.startswith("new classification head") for note in model.notes):
            self._assembly.warnings.append(
                "the head of `evaluate.robustness.transfer_from` is untrained: give a model that was trained on these labels"
            )
        encoder = Encoder(model.tokenizer, recipe.train.max_length, model.kind)
        samples = [
            labelled(content_text(sample), sample.label or 0, sample.origin, task, head, parts.labels)
            for sample in self._plain_samples(settings)
        ]
        self._display.stage(f"attacking {model.identity['model']} for texts to take over")
        file = self._file(model, samples, "texts", settings.model_dump(mode="json", exclude={"transfer_from", "eps", "steps"}))
        found = _texts(file, len(samples))
        if found is None:
            found = misleading_texts(
                model, samples, task, encoder, settings, seed=recipe.seed, batch_tokens=recipe.train.batch_tokens
            )
            if file is not None:
                write_atomically(file, json.dumps(found))
        return found

    def _file(self, model: LanguageModel, samples: Sequence[Sample], *asked: object) -> Path | None:
        """Where the answer to this question is kept; ``asked`` are JSON values."""
        if self._memory is None:
            return None
        recipe = self._assembly.recipe
        shaping = (recipe.seed, VERSION, *asked)
        return (
            self._memory / f"{question_key(model, samples, recipe.task, recipe.train.max_length, recipe.seed, *shaping)}.json"
        )


def _remembered(file: Path | None) -> Report | None:
    """A remembered measurement; anything unreadable counts as not remembered (it is only a saving of time)."""
    try:
        return Report.model_validate_json(file.read_text(encoding="utf-8")) if file is not None else None
    except (OSError, ValueError):
        return None


def _texts(file: Path | None, rows: int) -> Misleading | None:
    """Remembered texts by attack, with the same leniency."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
        return found if found and all(len(texts) == rows for texts in found.values()) else None
    except (OSError, ValueError, AttributeError, TypeError):
        return None
