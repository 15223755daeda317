"""Word augmentation: adds copies of the training rows with a few words replaced, inserted, swapped, dropped or mistyped.

When: a few dozen or hundred labelled rows and a model trained from scratch, by its papers (our experiment shows no gain over
plain copies: compare); `typo`, `ocr`: texts that will come mistyped.
When not: for a well-trained model with a thousand rows or more (expect nothing), or where one word decides (negations, names).
Paper: Wei and Zou 2019, EDA; Karimi et al. 2021, AEDA (`punctuation`); Belinkov and Bisk 2018 (`typo`).
Cost: memory of `copies` more training rows; time of an epoch times 1 + `copies` (with `turns` as before).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.core.model_section import Model
from uplift.core.values import Effect, Sample
from uplift.data.clean.step import Edit, edited
from uplift.data.formats import content_text
from uplift.data.rewording import SPANS, Span, follow
from uplift.data.splitting import normalized
from uplift.data.wordnet import synonyms
from uplift.data.words import FUNCTION_WORDS, OPTIONS, WORD, case_of, in_case, misreadings, typos
from uplift.model.language_model import LanguageModel
from uplift.model.neighbours import Neighbours
from uplift.model.opening import model_kind
from uplift.techniques.augmentation import Copying, row_seed
from uplift.techniques.teacher import Head, open_teacher

Operation = Literal["synonym", "insert", "swap", "delete", "punctuation", "typo", "ocr", "random", "copy"]
MARKS = (".", ";", "?", ":", "!", ",")
NEW_MODEL = (
    "words that mean alike are found in the model's embeddings, and those are new",
    "give the folder of WordNet (`wordnet`) or another model (`embeddings`), or leave `synonym` and `insert` out",
)


class Page:
    """A text, its words (``begin``, ``end``), and those that may be touched: outside of labelled spans."""

    def __init__(self, text: str, spans: Sequence[Span] = ()) -> None:
        self.text, self.spans = text, spans
        self.words = [match.span() for match in WORD.finditer(text)]
        self.free = [i for i, (begin, end) in enumerate(self.words) if not any(s < end and begin < e for s, e, _ in spans)]

    def __getitem__(self, index: int) -> str:
        """A word."""
        begin, end = self.words[index]
        return self.text[begin:end]

    def replaced(self, index: int, new: str, rule: str) -> Edit:
        """The edit that puts ``new`` in place of a word."""
        begin, end = self.words[index]
        return Edit(begin, end, new, rule)

    @property
    def gaps(self) -> list[int]:
        """Words before which something may be inserted."""
        return [i for i, (begin, _) in enumerate(self.words) if not any(s < begin < e for s, e, _ in self.spans)]


Known = Mapping[str, Sequence[str]]
Change = Callable[[Page, int, random.Random, Known], list[Edit]]


def _each_word(rule: str, options: Callable[[str, random.Random, Known], Sequence[str]]) -> Change:
    """``count`` of the words that have another form are replaced by one of their forms."""

    def change(page: Page, count: int, rng: random.Random, known: Known) -> list[Edit]:
        edits: list[Edit] = []
        for index in rng.sample(page.free, len(page.free)):
            forms = options(page[index], rng, known) if len(edits) < count else ()
            if forms:
                edits.append(page.replaced(index, rng.choice(forms), rule))
        return edits

    return change


def _insert(page: Page, count: int, rng: random.Random, known: Known) -> list[Edit]:
    """Words that mean like ``count`` of the text's own, each before a word drawn at random."""
    sources = [index for index in range(len(page.words)) if known.get(page[index])]
    places = rng.sample(page.gaps, min(count, len(page.gaps))) if sources else []
    chosen = [rng.choice(known[page[rng.choice(sources)]][:OPTIONS]) for _ in places]
    return [Edit(page.words[i][0], page.words[i][0], f"{word} ", "insert") for i, word in zip(places, chosen, strict=True)]


def _punctuation(page: Page, count: int, rng: random.Random, known: Known) -> list[Edit]:
    """A mark before each of ``count`` words."""
    places = rng.sample(page.gaps, min(count, len(page.gaps)))
    return [Edit(page.words[i][0], page.words[i][0], f"{rng.choice(MARKS)} ", "punctuation") for i in places]


def _swap(page: Page, count: int, rng: random.Random, known: Known) -> list[Edit]:
    """``count`` pairs of words change places, no word twice."""
    chosen = rng.sample(page.free, 2 * min(count, len(page.free) // 2))
    pairs = list(zip(chosen[::2], chosen[1::2], strict=True))
    return [page.replaced(one, page[other], "swap") for a, b in pairs for one, other in ((a, b), (b, a))]


def _delete(page: Page, count: int, rng: random.Random, known: Known) -> list[Edit]:
    """``count`` words go, with the white space before them; one word always stays."""
    edits: list[Edit] = []
    for index in sorted(rng.sample(page.free, min(count, len(page.free), max(0, len(page.words) - 1)))):
        begin, end = page.words[index]
        start = len(page.text[:begin].rstrip())
        if not page.text[:begin].strip():  # the first word takes the white space after it along
            start, end = begin, end + len(page.text[end:]) - len(page.text[end:].lstrip())
        before = [edit.end for edit in edits] + [stop for _, stop, _ in page.spans if stop <= begin]
        edits.append(Edit(max([start, *before]), end, "", "delete"))
    return edits


def _alike(word: str, rng: random.Random, known: Known) -> Sequence[str]:
    return known.get(word, ())[:OPTIONS]


def _any_word(word: str, rng: random.Random, known: Known) -> Sequence[str]:
    other = rng.choice(known[""])
    return [in_case(other, case_of(word) or "lower")] if other != word.lower() else []


CHANGES: Mapping[Operation, Change] = {
    "synonym": _each_word("synonym", _alike),
    "insert": _insert,
    "swap": _swap,
    "delete": _delete,
    "punctuation": _punctuation,
    "typo": _each_word("typo", lambda word, rng, known: typos(word, rng, 1)),
    "ocr": _each_word("ocr", lambda word, rng, known: misreadings(word, rng, 1)),
    "random": _each_word("random", _any_word),
    "copy": lambda page, count, rng, known: [],
}


def changed(page: Page, operations: Sequence[Operation], alpha: float, rng: random.Random, known: Known) -> list[Edit]:
    """The edits of one operation, drawn from those that find something to change: round(alpha * words) times.

    ``known``: words that mean alike, for each word; under "" all words there are.
    """
    count = round(alpha * len(page.words))
    for operation in rng.sample(operations, len(operations)):
        edits = CHANGES[operation](page, count, rng, known) if count else []
        if edits or operation == "copy":
            return sorted(edits, key=lambda edit: (edit.start, edit.end))
    return []


class AugmentWords(Copying):
    """Adds `copies` of every training row, each changed by one of the `operations`; validation and test stay as they are."""

    use: Literal["augment_words"] = "augment_words"
    operations: Annotated[list[Operation], Field(min_length=1)] = ["synonym", "insert", "swap", "delete"]
    """`synonym` and `insert` need words that mean alike: of `wordnet`, or the nearest ones in a model's embeddings, where
    opposites ("liked", "disliked") can be near each other, too;
    `random` puts any word of the rows (it destroys meaning) and `copy` changes nothing: placebos for comparisons."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of a text's words that one operation changes (0: off)."""
    wordnet: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Folder with the database files of WordNet (`index.noun`, ...), for English."""
    embeddings: Model | None = None
    """The model in whose embeddings near words are looked up; default: the recipe's own."""

    off: ClassVar[Mapping[str, Any]] = {"alpha": 0.0}

    _base_dir: Path = PrivateAttr(default_factory=Path)
    _edits: int = PrivateAttr(0)
    _same: int = PrivateAttr(0)
    _words: int = PrivateAttr(0)
    _left_out: int = PrivateAttr(0)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.wordnet is not None and self.embeddings is not None:
            raise ValueError("`wordnet` and `embeddings` both name what means alike: give one of them")
        return self

    @property
    def active(self) -> bool:
        """Whether any word may change."""
        return self.alpha > 0

    @property
    def _asks_for_likeness(self) -> bool:
        return bool({"synonym", "insert"} & set(self.operations))

    def declare(self) -> Capabilities:
        """New embeddings know no likeness of words."""
        own = self.active and self._asks_for_likeness and self.wordnet is None and self.embeddings is None
        return Capabilities(
            needs=frozenset({"training", "labels"}),
            mutates=frozenset({"train_rows"}),
            conflicts={"new_weights": NEW_MODEL} if own else {},
        )

    def locate(self, base_dir: Path, output_dir: Path) -> None:
        """Remember where relative paths start."""
        self._base_dir = base_dir

    def further(self, samples: Sequence[Sample]) -> list[Sample]:
        """The copies of all rows."""
        pages = [Page(content_text(sample), sample.extras.get(SPANS, ())) for sample in samples]
        known, made = self._known(pages), []
        held = {normalized(text) for text in self.held_texts}
        self._edits = self._same = self._words = self._left_out = 0
        for sample, page in zip(samples, pages, strict=True):
            for number in range(self.copies):
                rng = random.Random(row_seed(self.use, self.seed, sample, number))
                edits = changed(page, self.operations, self.alpha, rng, known)
                text = edited(page.text, edits).text
                assert text is not None
                if normalized(text) in held:
                    self._left_out += 1
                    continue
                self._same += text == page.text
                self._edits, self._words = self._edits + len(edits), self._words + len(page.words)
                made.append(self.copy_with(sample, text, number, follow(page.spans, edits)))
        return made

    def _known(self, pages: Sequence[Page]) -> Known:
        every = dict.fromkeys(page[index] for page in pages for index in range(len(page.words)))
        words = [word for word in every if word.lower() not in FUNCTION_WORDS]
        known: dict[str, Sequence[str]] = {}
        if self._asks_for_likeness and self.wordnet is not None:
            known = {**synonyms(self._base_dir / Path(self.wordnet).expanduser(), words)}
        elif self._asks_for_likeness:
            known = {**Neighbours(self._embedding_model()).nearest(words, OPTIONS)}
        return known | {"": sorted({word.lower() for word in every})}

    def _embedding_model(self) -> LanguageModel:
        own: LanguageModel = self._setting.model
        if self.embeddings is not None:
            head: Head = "language" if model_kind(self.embeddings, self._base_dir) == "causal" else "class"
            return open_teacher(self.embeddings, head, self._base_dir, own.device)
        if own.untrained:
            why, fix = NEW_MODEL
            raise RecipeError("`augment_words` finds no synonyms here", why=why, fix=fix)
        return own

    def effect(self) -> Effect:
        """Edits per word of the copies; holds when copies were added, and were changed unless they were to stay."""
        value = self._edits / max(1, self._words)
        detail = f"{self._made:,} copies of {self._rows:,} rows, {self._same:,} of them unchanged"
        detail += f"; {self._left_out:,} left out, which are held-out rows" if self._left_out else ""
        passed = self._made > 0 and (self._edits > 0 or "copy" in self.operations)
        return Effect(self.use, "training saw reworded copies", value, passed, detail)
