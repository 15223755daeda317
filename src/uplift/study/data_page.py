"""What was found about a data set as one self-contained HTML page: it opens from disk, asks no network, and prints.

Its only script, which shows a text at its point on the map, is named by its hash in the page's policy: nothing else can run,
whatever the rows hold.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uplift.data.explore.findings import Advice, Inspection
from uplift.study import data_sections as parts
from uplift.study.data_advice import beyond, per_cent
from uplift.study.markup import Html, element, join, prose
from uplift.study.report_html import whole_page
from uplift.study.report_sections import tile
from uplift.study.wording import show_count

SECTIONS: Mapping[str, tuple[str, str]] = {
    "rows": (
        "Columns and rows",
        "What each column holds. Rows that break a rule are put aside with their line, never repaired in silence; a missing "
        "value in the text or the label costs the row.",
    ),
    "recipe": (
        "A recipe to begin with",
        "It runs as it stands: save it as `recipe.yaml`, then `uplift run recipe.yaml`. `uplift data clean` carries out its "
        "`prepare` steps alone and shows what they do.",
    ),
    "length": (
        "Lengths",
        "Longer rows cost more: time grows with tokens, memory with the longest row. Rows beyond `max_length` lose their end, "
        "and with it the answer: if many are cut, raise it, or split the texts. Plain texts go on in the next passage.",
    ),
    "labels": (
        "Labels",
        "What a model learns is at best as good as its labels. Conflicts and likely errors are worth more of your time than "
        "any option of training.",
    ),
    "duplicates": (
        "Duplicates",
        "A row that stands twice counts twice, is memorised, and flatters the score when its copy is held out. `dedup` keeps "
        "one of each.",
    ),
    "given": (
        "Parts and leakage",
        "The parts as given. What stands in training and in a held-out part makes its score flatter: `decontaminate` removes "
        "it from training, never from the test.",
    ),
    "own": (
        "Parts and leakage",
        "What the split of the recipe would make of these rows. Equal texts stay together; nearly equal ones can still fall "
        "on both sides: `dedup` first, or `split: {{by: near}}`, or `by: group` where rows belong together.",
    ),
    "topics": (
        "Map of topics",
        "Placed by {by}: what lies together is alike, empty space means nothing. A far island is another source or another "
        "language; a label that is mixed into another one is hard to learn.",
    ),
    "training": (
        "What the model sees",
        "Rows as tokens at the suggested length, as training would read them. If the marked part is not what you want it to "
        "learn, the columns or the roles are wrong.",
    ),
    "vocabulary": (
        "Words",
        "Natural text follows Zipf: the curve is about straight, its slope near \N{MINUS SIGN}1. A flat start is boilerplate; "
        "many words that stand only once are noise, names or numbers.",
    ),
    "tokenizer": (
        "Tokenizer",
        "How `{tokenizer}` cuts these texts. Small pieces make training slower and contexts shorter; another tokenizer, or a "
        "few hundred added words (`uplift data tokenizer --extend`), can help.",
    ),
    "languages": (
        "Languages",
        "Told by the first characters of sampled rows; short texts are uncertain. A model learns the rare ones badly: keep "
        "those you need.",
    ),
    "texts": (
        "What cleaning would do",
        "Each step alone, tried on {tried} rows. `filter` holds rules made for web pages: it drops short texts and code, so it "
        "is not in the recipe. Personal data is masked in everything this page shows.",
    ),
    "outliers": (
        "Outliers",
        "Rows far from the others in one respect: often broken, foreign or wrongly joined. Look before you drop: some are the "
        "rare cases that you need.",
    ),
}
"""Anchor -> title, what it means, and what to do when it is bad."""
GOALS = {"classify": "text classification", "chat": "conversations", "text": "plain text"}
WEIGHT_WORDS = {"fix": "fix first", "look": "look at", "good": "in order"}


@dataclass(frozen=True)
class _Section:
    """A section: its anchor, which is also the topic of its advice; its title; what it means, and what to do when it is bad."""

    anchor: str
    title: str
    how: str
    content: Html | None


def render_data_page(found: Inspection) -> str:
    """The page as a complete HTML document; the same findings give the same bytes."""
    sections = [each for each in _sections(found) if each.content]
    body = (_section(each, found.advice) for each in sections)
    content = join(_hero(found), _contents(sections, found.advice), body, _method(found))
    folder = importlib.resources.files("uplift.study")
    style = (folder / "data_page.css").read_text(encoding="utf-8")
    script = (folder / "data_page.js").read_text(encoding="utf-8")
    told = "Made by Uplift. `uplift data inspect --json` prints every number of this page."
    return whole_page(found.overview.source, content, told, style=style, script=script)


def headline(found: Inspection) -> str:
    """What the data is, in a sentence."""
    over = found.overview
    what = f"{found.lengths.rows:,} rows of {GOALS[over.goal]}"
    if found.labels:
        what += f" with {len(found.labels.counts)} labels"
    typical = f"{found.tokens.content.p50:,.0f} tokens" if found.tokens else f"{found.lengths.words.p50:,.0f} words"
    first = sum(advice.weight == "fix" for advice in found.advice)
    state = f"{first} thing{'s' * (first != 1)} to fix before training" if first else "nothing has to be fixed before training"
    return f"{what}, typically {typical} long: {state}."


def _hero(found: Inspection) -> Html:
    over = found.overview
    names = (element("strong", over.source), element("span", over.format))
    eyebrow = element("p", "Uplift data inspect", *names, class_="eyebrow")
    tiles = element("dl", *_tiles(found), class_="tiles")
    return element("header", eyebrow, element("h1", headline(found)), _advice_list(found.advice), tiles, class_="hero")


def _tiles(found: Inspection) -> list[Html]:
    over, same, tokens = found.overview, found.duplicates, found.tokens
    bad = f"{over.quarantined:,} cannot be used" if over.quarantined else "all can be used"
    tiles = [tile("rows", f"{found.lengths.rows:,}", bad)]
    if tokens:
        every = tokens.content.mean * found.lengths.rows
        tiles.append(tile("tokens", show_count(every), f"{tokens.bytes_per_token:.2f} bytes each"))
        tiles.append(tile("suggested max_length", f"{tokens.suggested_length:,}", beyond(tokens)))
    tiles.append(tile("repeat another row", f"{same.normalized:,}", f"{same.near:,} nearly, of {same.sampled:,}"))
    if found.labels:
        commonest = found.labels.counts[0]
        tiles.append(tile("labels", len(found.labels.counts), f"{per_cent(commonest.share)} are {commonest.label}"))
        if found.labels.sanity:
            sanity = found.labels.sanity
            tiles.append(tile("words alone reach", f"{per_cent(sanity.accuracy)}", f"guessing {per_cent(sanity.majority)}"))
    if found.languages and found.languages.languages:
        first = found.languages.languages[0]
        tiles.append(tile("language", first.code, f"{per_cent(first.share)} of the rows"))
    return tiles


def _advice_list(advice: Sequence[Advice]) -> Html | None:
    if not advice:
        return None
    items = (
        element(
            "li",
            element("span", WEIGHT_WORDS[each.weight], class_=f"pill {each.weight}"),
            element("span", prose(f"{each.text}."), " ", _todo(each)),
        )
        for each in advice
    )
    return element("ul", *items, class_="advice")


def _todo(advice: Advice) -> Html | None:
    return element("span", prose(f"{advice.todo[:1].upper()}{advice.todo[1:]}."), class_="todo") if advice.todo else None


def _contents(sections: Sequence[_Section], advice: Sequence[Advice]) -> Html:
    links = []
    for each in sections:
        weights = {one.weight for one in advice if one.topic == each.anchor}
        mark = "fix" if "fix" in weights else "look" if "look" in weights else None
        links.append(element("a", each.title, href=f"#{each.anchor}", class_=mark))
    return element("nav", *links, class_="toc", aria_label="Sections")


def _section(each: _Section, advice: Sequence[Advice]) -> Html:
    own = [one for one in advice if one.topic == each.anchor]
    return element(
        "section",
        element("h2", each.title),
        element("p", prose(each.how), class_="how"),
        _advice_list(own),
        each.content,
        id=each.anchor,
    )


def _sections(found: Inspection) -> list[_Section]:
    """All sections in their order; those without content are left out of the page."""
    tokens = found.tokens
    told = {**SECTIONS, "splits": SECTIONS["given" if found.splits.given else "own"]}
    slots = {
        "tokenizer": tokens.tokenizer if tokens else "",
        "by": found.topics.by if found.topics else "",
        "tried": f"{found.cleaning.rows:,}",
    }
    contents: dict[str, Html | None] = {
        "rows": parts.overview(found),
        "recipe": element("pre", element("code", found.recipe)) if found.recipe else None,
        "length": parts.lengths(found),
        "labels": parts.labels(found.labels),
        "duplicates": parts.duplicates(found),
        "splits": parts.splits(found),
        "topics": parts.topics(found),
        "training": parts.training(found),
        "vocabulary": parts.vocabulary(found),
        "tokenizer": parts.tokenizer(found),
        "languages": parts.languages(found),
        "texts": parts.cleaning(found),
        "outliers": parts.outliers(found),
    }
    return [_Section(anchor, told[anchor][0], told[anchor][1].format(**slots), content) for anchor, content in contents.items()]


def _method(found: Inspection) -> Html:
    over = found.overview
    facts = {
        "command": found.command,
        "rows looked at closely": f"{over.sampled:,} of {found.lengths.rows:,}",
        "sha256 of the data": over.sha256,
        "Uplift": found.uplift,
    }
    listed = (element("div", element("dt", name), element("dd", value)) for name, value in facts.items())
    notes = element("ul", *(element("li", prose(note)) for note in found.notes), class_="notes") if found.notes else None
    return element(
        "section",
        element("h2", "How it was made"),
        element("div", element("dl", *listed, class_="facts"), notes, class_="card"),
    )
