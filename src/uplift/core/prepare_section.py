"""`data.prepare`: what happens to rows between reading and splitting, as a list of steps in the order they are carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from uplift.core.section import Section
from uplift.core.source_section import AnySource

Share = Annotated[float, Field(ge=0, le=1)]
PiiKind = Literal["email", "phone", "ip", "card", "key"]
RuleSet = Literal["c4", "gopher", "fineweb"]


class Repair(Section):
    """Undo broken encodings, and bring Unicode and white space into one form."""

    use: Literal["repair"] = "repair"
    encoding: bool = True
    """Undo text that was decoded with the wrong table ("Ã©" for "é")."""
    unicode: Literal["NFC", "NFKC", "keep"] = "NFC"
    spaces: bool = True
    """Odd spaces become plain ones, control and invisible characters go, spaces at line ends go. Indentation always stays."""


class Html(Section):
    """Take the text out of web pages: markup goes; navigation, banners and footers go too."""

    use: Literal["html"] = "html"
    boilerplate: bool = True
    """Leave only the main content of a whole page. A fragment always keeps all its text."""


class Language(Section):
    """Keep texts in some languages (ISO 639-1 codes)."""

    use: Literal["language"] = "language"
    keep: Annotated[list[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]], Field(min_length=1)]
    least: Share = 0.65
    """Least probability of the language."""


class Filter(Section):
    """Drop texts, and lines, by the rules of C4, Gopher and FineWeb."""

    use: Literal["filter"] = "filter"
    rules: Annotated[list[RuleSet], Field(min_length=1)] = list(get_args(RuleSet))
    limits: Mapping[str, float] = Field(default_factory=dict)
    """Another threshold for a rule, by its name; `uplift data rules` lists names, meanings and defaults."""
    off: list[str] = []
    """Rules that are not applied, by name."""
    bad_words: list[str] = []
    """Words and phrases of which one is enough to drop a text (rule `c4_bad_words`); none are built in."""


class Pii(Section):
    """Find e-mail addresses, phone numbers, IP addresses, payment cards (checked by Luhn) and secret keys."""

    use: Literal["pii"] = "pii"
    kinds: Annotated[list[PiiKind], Field(min_length=1)] = list(get_args(PiiKind))
    action: Literal["replace", "drop"] = "replace"
    """replace: each becomes its kind in brackets, `[email]`; drop: the row goes."""


class Lines(Section):
    """Drop lines or paragraphs that were seen before, in this row or in an earlier one."""

    use: Literal["lines"] = "lines"
    unit: Literal["line", "paragraph"] = "line"
    length: Annotated[int, Field(ge=1, le=100_000)] = 40
    """Characters a unit must have at least to be compared."""
    repeats: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """How often a unit may appear over all rows; later ones go."""


class Dedup(Section):
    """Keep one of rows that are equal, or nearly so (MinHash-LSH of word 5-grams, as FineWeb does it)."""

    use: Literal["dedup"] = "dedup"
    near: bool = True
    """Also rows that are nearly equal; false: only those that differ in nothing but case and spacing."""
    gram: Annotated[int, Field(ge=1, le=50)] = 5
    """Words in a shingle."""
    bands: Annotated[int, Field(ge=1, le=200)] = 14
    rows: Annotated[int, Field(ge=1, le=50)] = 8
    """Hashes in a band. Two rows of similarity s meet with probability 1 - (1 - s^rows)^bands."""
    keep: Literal["first", "longest"] = "first"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Decontaminate(Section):
    """Drop rows that hold a text of an evaluation set: the same but for case and spacing, or with a run of words in common."""

    use: Literal["decontaminate"] = "decontaminate"
    against: list[AnySource] = []
    """Evaluation sets: files, folders, packaged data sets. In a recipe its own `test` and `validation` sources come on top."""
    columns: list[str] = []
    """Their columns that hold texts; none named: all that hold text."""
    gram: Annotated[int, Field(ge=1, le=100)] = 13
    """Words that a run has in common. A shorter evaluation text must be there as a whole."""


class Quality(Section):
    """Drop texts by a score: log perplexity under a language model in nats per byte, or the probability of a class."""

    use: Literal["quality"] = "quality"
    model: Annotated[str, Field(min_length=1)]
    """A folder, a packaged model or a hub id: a causal language model, or a classifier."""
    label: str | None = None
    """The class whose probability is the score; null: the model is a language model."""
    least: float | None = None
    """Lower scores go."""
    most: float | None = None
    """Higher scores go."""

    @model_validator(mode="after")
    def _limits_the_score(self) -> Self:
        if self.least is None and self.most is None:
            raise ValueError("give `least`, `most` or both, or every text passes")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError("`least` is above `most`: no text passes")
        return self


Step = Repair | Html | Language | Filter | Pii | Lines | Dedup | Decontaminate | Quality


def _step_from_text(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


AnyStep = Annotated[Step, Field(discriminator="use"), BeforeValidator(_step_from_text)]
