"""What `uplift data inspect` finds, as values: the terminal, the page and `--json` show these and nothing else.

Shares are from 0 to 1. A row is named by its file and line; texts are cut to ``SHOWN`` characters, the counts never are.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1
"""Raised when a field changes its meaning or goes."""
SHOWN = 1200
"""Characters of a text that are shown."""
Goal = Literal["classify", "chat", "text"]
Weight = Literal["fix", "look", "good"]


class Found(BaseModel):
    """Base of all findings: frozen, no field beyond those declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RowShown(Found):
    """One row to look at. ``note`` says why it is shown."""

    place: str
    text: str
    characters: int
    label: str | None = None
    note: str = ""


class BadExample(Found):
    """One quarantined row: file:line:column, what was found, how it looks there."""

    place: str
    detail: str
    excerpt: str


class BadRule(Found):
    """A rule that rows broke, how many did, and the first of them."""

    rule: str
    count: int
    examples: list[BadExample]


class Column(Found):
    """A column. ``distinct`` is None above ``intake.MOST_DISTINCT``; ``use``: what the suggested task takes it for."""

    name: str
    types: dict[str, int]
    missing: int
    distinct: int | None
    examples: list[str]
    use: str = ""


class Overview(Found):
    """What was read. ``rows_in`` = ``rows`` + ``quarantined``, for each part (``train``, ``validation``, ``test``)."""

    source: str
    format: str
    sha256: str
    rows_in: int
    rows: int
    quarantined: int
    bad: list[BadRule]
    columns: list[Column]
    goal: Goal
    text: str
    label: str
    sampled: int
    """Rows that the costly measures looked at; all rows when they are few."""


class Spread(Found):
    """How a number is spread over rows: percentiles, and a histogram with logarithmic bins (``edges`` one more than counts)."""

    total: int
    mean: float
    least: int
    p5: float
    p25: float
    p50: float
    p75: float
    p95: float
    p99: float
    most: int
    edges: list[float]
    counts: list[int]


class Cut(Found):
    """At this ``max_length``: share of the rows that lose their end, and share of all tokens that go with it."""

    max_length: int
    rows: float
    tokens: float


class SplitWord(Found):
    """A frequent word that the tokenizer takes apart."""

    word: str
    count: int
    pieces: list[str]


class Tokens(Found):
    """How the tokenizer cuts the texts. ``encoded``: tokens of rows with the template around them, over ``rows`` rows."""

    tokenizer: str
    vocabulary: int
    rows: int
    content: Spread
    encoded: Spread
    bytes_per_token: float
    fertility: float
    unknown: float
    """Share of the tokens that stand for unknown text."""
    byte_pieces: float
    """Share of the tokens that are parts of a character, because the vocabulary does not hold it."""
    split_words: list[SplitWord]
    cuts: list[Cut]
    suggested_length: int
    suggested_cut: float
    """Share of the rows that are longer than the suggested length."""
    passages: bool = False
    """Whether longer rows go on in the next passage, so that nothing is lost; else their end is cut off."""


class Lengths(Found):
    """Characters and words of every row of the training part (``rows``), and the shortest and longest of them."""

    rows: int
    characters: Spread
    words: Spread
    shortest: list[RowShown]
    longest: list[RowShown]


class LabelWords(Found):
    """The words that speak most for a label: log-odds against all other rows, in standard deviations."""

    label: str
    words: list[tuple[str, float]]


class Vocabulary(Found):
    """Words of the sampled rows. ``once``: share of the distinct words that stand once; ``zipf``: (rank, count)."""

    words: int
    distinct: int
    once: float
    top: list[tuple[str, int]]
    zipf: list[tuple[int, int]]
    slope: float | None
    """Of log count over log rank in the middle of the curve; about -1 in natural text."""
    by_label: list[LabelWords]


class LanguageShare(Found):
    """A language (ISO 639-1), the share of sampled rows in it, and examples."""

    code: str
    rows: int
    share: float
    examples: list[RowShown]


class Languages(Found):
    """Languages of the sampled rows. ``unsure``: share whose best language has a probability below ``SURE``."""

    rows: int
    unsure: float
    languages: list[LanguageShare]


class Cluster(Found):
    """Rows that are equal or nearly so; ``rows`` in all, the first of them shown."""

    kind: Literal["exact", "near"]
    rows: int
    shown: list[RowShown]


class Duplicates(Found):
    """``exact``: rows with the very text of an earlier one; ``normalized``: the same but for case and spacing (exact
    ones included), both over all rows. ``near``: sampled rows beyond the first of a near-duplicate cluster, equal ones
    included."""

    rows: int
    exact: int
    normalized: int
    sampled: int
    near: int
    clusters: list[Cluster]


class Overlapping(Found):
    """A row of a held-out part that the training part holds too."""

    kind: str
    test: str
    train: str
    excerpt: str


class PartFound(Found):
    """A part: its rows, and how often each label stands in it."""

    part: str
    rows: int
    quarantined: int
    labels: dict[str, int]


class Leak(Found):
    """How much of a held-out part stands in training: the same text over all rows, runs of 13 words and near-duplicates over
    sampled rows."""

    part: str
    rows: int
    normalized: int
    sampled: int
    runs: int
    near: int
    examples: list[Overlapping]


class Splits(Found):
    """Parts that were given, or what the suggested split would make. ``given`` says which."""

    given: bool
    parts: list[PartFound]
    leaks: list[Leak]


class LabelCount(Found):
    """A label and its rows."""

    label: str
    rows: int
    share: float


class Conflict(Found):
    """Rows that say the same (or nearly) and carry different labels."""

    kind: Literal["exact", "near"]
    labels: dict[str, int]
    shown: list[RowShown]


class Sanity(Found):
    """Cross-validated TF-IDF and logistic regression against always guessing the commonest label, on sampled rows."""

    rows: int
    folds: int
    accuracy: float
    macro_f1: float
    majority: float
    suspicious: int
    """Rows that the model confidently puts elsewhere: candidates for wrong labels."""
    examples: list[RowShown]


class LabelFindings(Found):
    """``conflicting``: rows whose text also stands with another label (all rows); ``near_conflicting`` (sampled rows)."""

    column: str
    counts: list[LabelCount]
    conflicting: int
    near_conflicting: int
    conflicts: list[Conflict]
    sanity: Sanity | None


class Outliers(Found):
    """Rows unlike the others in one respect: what is measured, what is usual (median), from where on rows are odd.

    ``share``: the values are shares. ``shown``: the most extreme rows, the value in their note.
    """

    name: str
    meaning: str
    share: bool
    usual: float
    limit: float
    rows: int
    shown: list[RowShown]


class RuleFound(Found):
    """What a rule of a cleaning step strikes in the sampled rows: ``rows`` with it, ``times`` in all; ``drops``: they would
    go."""

    step: str
    rule: str
    rows: int
    times: int
    drops: bool
    examples: list[RowShown]


class Cleaning(Found):
    """What cleaning steps would do, each alone, to ``rows`` sampled rows. Personal data is masked in the examples."""

    rows: int
    rules: list[RuleFound]


class Topic(Found):
    """A cluster of texts, named by its words; ``purity`` is the share of its commonest label."""

    words: list[str]
    rows: int
    label: str | None
    purity: float | None


class Point(Found):
    """A row on the map, in [0, 1] x [0, 1]."""

    x: float
    y: float
    topic: int
    label: str | None
    place: str
    text: str


class TopicMap(Found):
    """Texts by content: near on the map is alike. ``by`` says what they were placed by."""

    by: str
    topics: list[Topic]
    points: list[Point]


class Rendered(Found):
    """A row as the model sees it: stretches of text, and whether each is learned."""

    place: str
    tokens: int
    learned: int
    stretches: list[tuple[str, bool]]


class Chat(Found):
    """Turns of the conversations: how often each role speaks, how many turns a chat has."""

    roles: dict[str, int]
    turns: dict[int, int]
    systems: int
    """Different system messages."""


class Problem(Found):
    """Something that ``rows`` of ``of`` rows have and should not."""

    rows: int
    of: int
    text: str


class Learning(Found):
    """What training would see of ``rows`` sampled rows at the suggested length: examples, shares, problems."""

    template: bool
    rows: int
    learned: float
    """Share of the tokens that are learned."""
    samples: list[Rendered]
    problems: list[Problem]


class Advice(Found):
    """What to do, most important first. ``weight``: fix (before training), look (with your own eyes), good (nothing to do)."""

    weight: Weight
    topic: str
    text: str
    todo: str = ""


class Inspection(Found):
    """Everything that was found."""

    version: int = Field(default=SCHEMA, description="schema version")
    uplift: str
    command: str
    overview: Overview
    lengths: Lengths
    tokens: Tokens | None
    vocabulary: Vocabulary
    languages: Languages | None
    duplicates: Duplicates
    splits: Splits
    labels: LabelFindings | None
    outliers: list[Outliers]
    cleaning: Cleaning
    topics: TopicMap | None
    chat: Chat | None
    learning: Learning | None
    advice: list[Advice]
    recipe: str
    notes: list[str]
