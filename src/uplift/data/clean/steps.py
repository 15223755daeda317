"""From the sections of `data.prepare` to steps that can be carried out, and what the order of steps means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from uplift.core.errors import Place, RecipeError, UsageError
from uplift.core.prepare_section import (
    Decontaminate,
    Dedup,
    Filter,
    Html,
    Language,
    Lines,
    Pii,
    Quality,
    Repair,
    Step,
)
from uplift.core.source_section import AnySource
from uplift.data.clean.chunk import Planned
from uplift.data.clean.columns import Columns
from uplift.data.clean.decontaminate import Decontaminator
from uplift.data.clean.dedup import Deduplicator
from uplift.data.clean.filter import RuleFilter
from uplift.data.clean.html import HtmlStripper
from uplift.data.clean.language import LanguageFilter
from uplift.data.clean.lines import LineDeduplicator
from uplift.data.clean.pii import PiiScrubber
from uplift.data.clean.repair import Repairer
from uplift.data.clean.step import CleaningStep
from uplift.data.rows import Row

QualityMaker = Callable[[Quality, Path], CleaningStep]
"""Opens the model of a `quality` step; given from a room that knows models."""
EACH: tuple[type[Step], ...] = (Repair, Html, Pii)
"""Steps that work on each text of a row; the others look at all its texts together."""
REWRITES: tuple[type[Step], ...] = (Html, Repair, Pii, Lines, Filter)
"""Steps that can change a text."""
JUDGES: tuple[type[Step], ...] = (Filter, Language, Dedup, Decontaminate, Quality)
"""Steps that decide by the text as a whole whether a row stays."""
MAKERS: Mapping[str, Callable[..., CleaningStep]] = {
    "repair": Repairer,
    "html": HtmlStripper,
    "language": LanguageFilter,
    "filter": RuleFilter,
    "pii": PiiScrubber,
    "lines": LineDeduplicator,
    "dedup": Deduplicator,
}


def plan_steps(
    sections: Sequence[Step],
    base_dir: Path,
    *,
    quality: QualityMaker | None = None,
    against: Sequence[AnySource] = (),
) -> list[Planned]:
    """The steps, made and numbered. ``against``: more evaluation sets for `decontaminate`.

    Raises RecipeError when a step has nothing to work with, and what making a step raises.
    """
    planned = []
    for number, section in enumerate(sections):
        step = _made(section, base_dir, quality, against)
        alone = isinstance(section, Quality)
        planned.append(Planned(number, section.use, step, whole=not isinstance(section, EACH), alone=alone))
    return planned


def _made(section: Step, base_dir: Path, quality: QualityMaker | None, against: Sequence[AnySource]) -> CleaningStep:
    if isinstance(section, Decontaminate):
        sources = [*section.against, *against]
        if not sources:
            fix = "name evaluation sets in `against`"
            raise RecipeError("`decontaminate` has nothing to compare with", where="data.prepare", fix=fix)
        return Decontaminator(section.model_copy(update={"against": sources}), base_dir)
    if isinstance(section, Quality):
        if quality is None:
            raise RecipeError("`quality` cannot open models here", where="data.prepare", fix="leave the step out")
        return quality(section, base_dir)
    return MAKERS[section.use](section)


def check_texts(sections: Sequence[Step], columns: Columns, rows: Sequence[Row]) -> None:
    """Refuse with UsageError to remove lines from rows of several texts: instructions repeat by design, and would be lost."""
    several = next((row for row in rows if len(columns.slots(row.values)) > 1), None)
    if several is not None and any(isinstance(section, Lines) for section in sections):
        raise UsageError(
            "`lines` works on documents, and these rows hold several texts",
            where=Place(several.origin.file, several.origin.line),
            why=f"the texts are in {', '.join(columns.names)}; what repeats there, such as an instruction, would be cut",
            fix="leave `lines` out, or name one column of plain text",
        )


def changes_alone(sections: Sequence[Step]) -> list[Step]:
    """The steps that validation and test rows pass too: they change each text by itself and never lose a row."""
    return [
        section
        for section in sections
        if isinstance(section, Repair | Html) or (isinstance(section, Pii) and section.action == "replace")
    ]


def advice(sections: Sequence[Step]) -> list[str]:
    """What is wrong with the order, if anything: with it, cleaning the result again could change it again."""
    found = []
    for index, section in enumerate(sections):
        before = [other for other in sections[:index] if isinstance(other, JUDGES) and type(other) is not type(section)]
        if isinstance(section, REWRITES) and before:
            names = ", ".join(f"`{other.use}`" for other in before)
            found.append(f"`{section.use}` changes texts that {names} judged before: put it first")
    return found
