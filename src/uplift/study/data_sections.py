"""The sections of the page about a data set, each a function from findings to HTML."""

from __future__ import annotations

from collections.abc import Sequence

from uplift.data.explore.findings import (
    Chat,
    Cluster,
    Column,
    Conflict,
    Inspection,
    LabelFindings,
    Leak,
    Rendered,
    RowShown,
    RuleFound,
    Sanity,
    Spread,
    Topic,
)
from uplift.study.data_advice import per_cent
from uplift.study.data_charts import COLOURS, histogram, topic_map, zipf_chart
from uplift.study.markup import Html, element, join
from uplift.study.report_sections import number, number_head, row_head, sub, table

MOST_LABELS = 25
STARTS = 140
"""Characters of a row that its closed line shows."""
WIDE = 1060
"""Pixels of a chart over the whole width."""
HOW_ALIKE = {
    "exact": "same text",
    "normalized": "same but for case and spacing",
    "ngram": "a run of 13 words, or all of fewer",
    "near": "nearly the same",
}


def overview(found: Inspection) -> Html:
    """Rows, columns, and what was put aside."""
    over = found.overview
    rows = (
        element(
            "tr",
            row_head(element("code", column.name), sub(_use(column))),
            element("td", ", ".join(f"{name} {count:,}" for name, count in column.types.items()) or "nothing"),
            number(f"{column.missing:,}", class_="caution" if column.missing else ""),
            number("many" if column.distinct is None else f"{column.distinct:,}"),
            element("td", *(element("span", example, class_="tag") for example in column.examples)),
        )
        for column in over.columns
    )
    head = ["Column", "Type", number_head("Missing"), number_head("Distinct"), "Commonest"]
    return join(table(head, rows, "Columns"), _quarantine(found))


def _use(column: Column) -> str:
    return f"taken as the {column.use}" if column.use else ""


def _quarantine(found: Inspection) -> Html | None:
    if not found.overview.bad:
        return None
    lines = []
    for rule in found.overview.bad:
        lines.append(element("h3", element("code", rule.rule), f" {rule.count:,} rows"))
        examples = (
            element(
                "tr",
                row_head(element("code", each.place)),
                element("td", each.detail),
                element("td", element("code", each.excerpt)),
            )
            for each in rule.examples
        )
        lines.append(table(["Where", "What", "There"], examples, f"Rows put aside by {rule.rule}"))
    return join(*lines)


def lengths(found: Inspection) -> Html:
    """Histograms in tokens, words and characters, percentiles, cuts, the shortest and the longest."""
    tokens, own = found.tokens, found.lengths
    wide = None
    if tokens:
        marks = [(float(tokens.suggested_length), f"max_length {tokens.suggested_length:,}")]
        wide = _figure("Tokens, with the template around them", histogram(tokens.encoded, "tokens", marks, WIDE))
    figures = [_figure("Words", histogram(own.words, "words")), _figure("Characters", histogram(own.characters, "characters"))]
    spreads: list[tuple[str, Spread]] = [("characters", own.characters), ("words", own.words)]
    if tokens:
        spreads += [("tokens of the text", tokens.content), ("tokens as trained", tokens.encoded)]
    rows = (
        element(
            "tr",
            row_head(name),
            *(number(f"{value:,.0f}") for value in (one.least, one.p5, one.p25, one.p50, one.p75, one.p95, one.p99, one.most)),
            number(f"{one.mean:,.1f}"),
            number(f"{one.total:,}"),
        )
        for name, one in spreads
    )
    heads = ("Least", "5 %", "25 %", "Median", "75 %", "95 %", "99 %", "Most", "Mean", "In all")
    percentiles = table(["Per row", *map(number_head, heads)], rows, "Percentiles of lengths")
    extremes = element(
        "div",
        element("div", element("h3", "The shortest rows"), row_list(own.shortest)),
        element("div", element("h3", "The longest rows"), row_list(own.longest)),
        class_="two",
    )
    charts = join(wide, element("div", *figures, class_="two under"))
    return join(charts, element("h3", "Percentiles"), percentiles, _cuts(found), extremes)


def _cuts(found: Inspection) -> Html | None:
    if found.tokens is None:
        return None
    tokens = found.tokens
    whole = [cut.max_length for cut in tokens.cuts if not cut.rows and cut.max_length > tokens.suggested_length]
    enough = min(whole, default=max(cut.max_length for cut in tokens.cuts))
    rows = (
        element(
            "tr",
            row_head(f"{cut.max_length:,}", sub("suggested") if cut.max_length == tokens.suggested_length else None),
            number(per_cent(cut.rows)),
            number(per_cent(cut.tokens)),
            _meter(cut.rows),
            class_="chosen" if cut.max_length == tokens.suggested_length else None,
        )
        for cut in tokens.cuts
        if cut.max_length <= enough
    )
    title, longer = "What a max_length would cut off", ("Rows cut", "Tokens lost")
    if tokens.passages:
        title, longer = "What would go on in another passage", ("Rows longer", "Tokens beyond")
    head = [element("th", "max_length", scope="col"), *map(number_head, longer), ""]
    return join(element("h3", title), table(head, rows, f"{longer[0]}, by max_length"))


def tokenizer(found: Inspection) -> Html | None:
    """How well the tokenizer fits, and the words it takes apart."""
    tokens = found.tokens
    if tokens is None:
        return None
    facts = (
        ("bytes per token", f"{tokens.bytes_per_token:.2f}", "more is better; English prose is about 4"),
        ("tokens per word", f"{tokens.fertility:.2f}", "fewer is better; English prose is about 1.3"),
        ("parts of characters", per_cent(tokens.byte_pieces), "tokens for signs that the vocabulary does not hold"),
        ("unknown", per_cent(tokens.unknown), "tokens that stand for text that is lost"),
        ("vocabulary", f"{tokens.vocabulary:,}", "tokens that there are"),
    )
    rows = (
        element("tr", row_head(name), number(value), element("td", meaning, class_="muted")) for name, value, meaning in facts
    )
    measures = table(["Measure", number_head("Here"), "Reading"], rows, "Fit of the tokenizer")
    if not tokens.split_words:
        return measures
    words = (
        element(
            "tr",
            row_head(word.word),
            number(f"{word.count:,}"),
            element("td", *(element("i", piece) for piece in word.pieces), class_="split-pieces"),
        )
        for word in tokens.split_words
    )
    split = table(["Word", number_head("Times"), "Pieces"], words, "Words that are taken apart")
    return element("div", measures, element("div", split), class_="two")


def vocabulary(found: Inspection) -> Html:
    """Counts of words, Zipf's curve, the words that speak for a label."""
    own = found.vocabulary
    facts = (
        ("words", f"{own.words:,}"),
        ("distinct words", f"{own.distinct:,}"),
        ("stand only once", per_cent(own.once)),
        ("slope of the curve", "–" if own.slope is None else f"{own.slope:.2f}".replace("-", "\N{MINUS SIGN}")),
    )
    rows = (element("tr", row_head(name), number(value)) for name, value in facts)
    chart = _figure("Count of a word by its rank", zipf_chart(own.zipf)) if len(own.zipf) > 1 else None
    measured = table(["Measure", number_head("Here")], rows, "Vocabulary")
    top = element("div", *(_chip(word, f"{count:,}") for word, count in own.top), class_="words")
    parts = [element("div", chart, measured, class_="two"), element("h3", "The commonest words"), top]
    if own.by_label:
        cards = (
            element(
                "figure",
                element("figcaption", "Words that speak for ", element("code", one.label)),
                element("div", *(_chip(word, f"{score:.0f}") for word, score in one.words), class_="words"),
                class_="card",
            )
            for one in own.by_label
        )
        told = "How much commoner a word is than in all other rows, in standard deviations (log-odds, the whole as prior)."
        parts += [element("h3", "Word by label"), lead(told), element("div", *cards, class_="two")]
    return join(*parts)


def languages(found: Inspection) -> Html | None:
    """Shares of languages, with examples of those that are rare."""
    own = found.languages
    if own is None or not own.rows:
        return None
    rows = [
        element(
            "tr",
            row_head(element("code", each.code)),
            number(f"{each.rows:,}"),
            number(per_cent(each.share)),
            _meter(each.share),
        )
        for each in own.languages[:12]
    ]
    if own.unsure:
        rows.append(element("tr", row_head("not sure"), number("–"), number(per_cent(own.unsure)), _meter(own.unsure)))
    head = ["Language", number_head("Rows"), number_head("Share"), ""]
    rare = [each for each in own.languages[1:7]]
    examples = join(*(join(element("h3", "Rows in ", element("code", each.code)), row_list(each.examples)) for each in rare))
    return join(table(head, rows, "Languages"), examples)


def duplicates(found: Inspection) -> Html:
    """Counts, and the largest clusters side by side."""
    own = found.duplicates
    rows = (
        element("tr", row_head(name, sub(meaning)), number(f"{count:,}"), number(per_cent(count / max(1, of))))
        for name, meaning, count, of in (
            ("exact", "the very text of an earlier row", own.exact, own.rows),
            ("the same but for case and spacing", "exact ones included", own.normalized, own.rows),
            ("nearly the same", f"of {own.sampled:,} rows compared by MinHash; the others included", own.near, own.sampled),
        )
    )
    head = ["Rows that repeat another one", number_head("Rows"), number_head("Share")]
    return join(table(head, rows, "Duplicates"), *(_cluster(each) for each in own.clusters))


def _cluster(cluster: Cluster) -> Html:
    kind = "the same" if cluster.kind == "exact" else "nearly the same"
    return element(
        "div",
        element("p", element("b", f"{cluster.rows:,} rows"), f" that say {kind}"),
        side_by_side(cluster.shown),
        class_="cluster",
    )


def splits(found: Inspection) -> Html:
    """Parts, their labels, and what of the held-out ones stands in training."""
    own = found.splits
    names = sorted({label for part in own.parts for label in part.labels})[:8]
    rows = (
        element(
            "tr",
            row_head(part.part),
            number(f"{part.rows:,}"),
            *(number(per_cent(part.labels.get(name, 0) / max(1, part.rows))) for name in names),
        )
        for part in own.parts
    )
    parts = table(["Part", number_head("Rows"), *map(number_head, names)], rows, "Parts")
    leaks = (_leak_row(leak) for leak in own.leaks if leak.rows)
    head = ["Held-out part", *map(number_head, ("Same text", "Runs of 13 words, or all of fewer", "Nearly the same"))]
    tables = join(parts, element("h3", "What of it stands in training"), table(head, leaks, "Leakage"))
    examples = [
        element(
            "tr",
            row_head(element("code", each.test)),
            element("td", HOW_ALIKE.get(each.kind, each.kind)),
            element("td", element("code", each.train) if each.train else "–"),
            element("td", each.excerpt),
        )
        for leak in own.leaks
        for each in leak.examples
    ]
    head = ["Row", "How", "In training", "It begins"]
    return join(tables, table(head, examples, "Rows that leak") if examples else None)


def _leak_row(leak: Leak) -> Html:
    cells = ((leak.normalized, leak.rows), (leak.runs, leak.sampled), (leak.near, leak.sampled))
    return element(
        "tr",
        row_head(leak.part, sub(f"{leak.rows:,} rows, {leak.sampled:,} compared")),
        *(number(f"{count:,}", sub(per_cent(count / max(1, of))), class_="bad" if count else "") for count, of in cells),
    )


def labels(own: LabelFindings | None) -> Html | None:
    """Balance, conflicts, and rows that read like another label."""
    if own is None:
        return None
    rows = (
        element("tr", row_head(each.label), number(f"{each.rows:,}"), number(per_cent(each.share)), _meter(each.share))
        for each in own.counts[:MOST_LABELS]
    )
    parts: list[Html | None] = [
        table(["Label", number_head("Rows"), number_head("Share"), ""], rows, "Balance of labels"),
        lead(f"and {len(own.counts) - MOST_LABELS:,} more labels") if len(own.counts) > MOST_LABELS else None,
    ]
    if own.conflicts:
        told = f"{own.conflicting:,} rows stand with more than one label; {own.near_conflicting:,} nearly do."
        parts += [element("h3", "Conflicts"), lead(told), *map(_conflict, own.conflicts)]
    return join(*parts, _sanity(own.sanity) if own.sanity else None)


def _sanity(own: Sanity) -> Html:
    scores = (("accuracy", own.accuracy), ("macro F1", own.macro_f1), ("always the commonest label", own.majority))
    measured = (element("tr", row_head(name), number(per_cent(value)), _meter(value)) for name, value in scores)
    told = (
        f"TF-IDF and logistic regression, {own.folds}-fold cross-validated on {own.rows:,} rows, equal texts in one fold. "
        "A language model that does not beat it is not needed."
    )
    parts = [
        element("h3", "How far words alone go"),
        lead(told),
        table(["Score", number_head("Here"), ""], measured, "How far words alone go"),
    ]
    if own.examples:
        told = (
            f"{own.suspicious:,} rows read confidently like another label: a wrong label, irony, or the limit of what single "
            "words show. The clearest:"
        )
        parts += [element("h3", "Likely label errors"), lead(told), row_list(own.examples)]
    return join(*parts)


def _conflict(conflict: Conflict) -> Html:
    told = ", ".join(f"{label} {count:,}" for label, count in conflict.labels.items())
    kind = "The same text" if conflict.kind == "exact" else "Nearly the same text"
    return element("div", element("p", element("b", kind), f" as {told}"), side_by_side(conflict.shown), class_="cluster")


def outliers(found: Inspection) -> Html | None:
    """Rows unlike the others, one group for each respect."""
    parts = []
    for each in found.outliers:
        usual, limit = (per_cent(value) if each.share else f"{value:,.4g}" for value in (each.usual, each.limit))
        told = f"{each.meaning[:1].upper()}{each.meaning[1:]}. Usual here: {usual}. From {limit} on: {each.rows:,}."
        parts += [element("h3", each.name.capitalize()), lead(told), row_list(each.shown)]
    return join(*parts) if parts else None


def cleaning(found: Inspection) -> Html | None:
    """What each step would change or drop, with an example."""
    rows = [_rule_row(rule, found.cleaning.rows) for rule in found.cleaning.rules]
    if not rows:
        return None
    head = ["Step", "Rule", number_head("Rows"), number_head("Times"), "For example"]
    return table(head, rows, "What cleaning would do")


def _rule_row(rule: RuleFound, rows: int) -> Html:
    verb = element("span", "drops" if rule.drops else "changes", class_="sub")
    example = rule.examples[0] if rule.examples else None
    words: tuple[object, ...] = ()
    if example:
        text = element("div", example.text[: 2 * STARTS], class_="text")
        words = (element("code", example.place), " ", example.note, text)
    return element(
        "tr",
        row_head(rule.step, verb),
        element("td", element("code", rule.rule), class_="rule"),
        number(f"{rule.rows:,}", sub(per_cent(rule.rows / max(1, rows)))),
        number(f"{rule.times:,}"),
        element("td", *words),
    )


def topics(found: Inspection) -> Html | None:
    """The map with its card and the table of topics."""
    own = found.topics
    if own is None:
        return None
    names = [count.label for count in found.labels.counts][: COLOURS - 1] if found.labels else []
    buttons = [element("button", "colour by topic", type="button", value="by-topic", aria_pressed="true")]
    if names:
        buttons.append(element("button", "colour by label", type="button", value="by-label", aria_pressed="false"))
    key = [element("span", element("span", class_=f"dot d{place}"), name) for place, name in enumerate(names)]
    hint = element("span", "Point at a text to read it; click to keep it.", class_="muted")
    point_card = element("div", hint, class_="card-of-point")
    drawn = element(
        "div",
        element("div", *buttons, class_="bar-of-map"),
        topic_map(own, names),
        element("p", *key, class_="key", style="margin:6px 0 8px") if key else None,
        point_card,
        class_="card map by-topic",
    )
    rows = (_topic_row(place, topic, bool(names)) for place, topic in enumerate(own.topics))
    labelled = ("Commonest label", number_head("Its share")) if names else ()
    return join(drawn, element("h3", "Topics"), table(["Words", number_head("Rows"), *labelled], rows, "Topics"))


def _topic_row(place: int, topic: Topic, labelled: bool) -> Html:
    dot = element("span", class_=f"dot d{min(place, COLOURS - 1)}")
    name = " · ".join(topic.words) or "(no word of its own)"
    purity = "" if topic.purity is None else per_cent(topic.purity)
    cells = (element("td", topic.label or ""), number(purity)) if labelled else ()
    return element("tr", row_head(dot, name), number(f"{topic.rows:,}"), *cells)


def training(found: Inspection) -> Html | None:
    """What the model sees of three rows; turns of conversations."""
    own = found.learning
    if own is None:
        return _chat(found.chat) if found.chat else None
    key = element("p", element("span", "learned", class_="learned"), element("span", "read only"), class_="key")
    shown = (_rendered(each) for each in own.samples)
    told = element("p", f"{per_cent(own.learned)} of the tokens of {own.rows:,} samples are learned.", class_="how")
    problems = [element("li", f"{each.rows:,} of {each.of:,} rows {each.text}") for each in own.problems]
    told = join(told, element("ul", *problems, class_="notes") if problems else None)
    return join(_chat(found.chat) if found.chat else None, told, key, element("div", *shown, class_="two"))


def _rendered(sample: Rendered) -> Html:
    caption = f"{sample.place}: {sample.tokens:,} tokens, {sample.learned:,} learned"
    text = (element("mark", part) if learned else element("span", part) for part, learned in sample.stretches)
    return element("figure", element("figcaption", caption), element("div", *text, class_="seen"), class_="card")


def _chat(chat: Chat) -> Html:
    whole = sum(chat.turns.values())
    roles = (element("tr", row_head(role), number(f"{count:,}")) for role, count in chat.roles.items())
    turns = (
        element("tr", row_head(f"{turns}"), number(f"{count:,}"), _meter(count / max(1, whole)))
        for turns, count in list(chat.turns.items())[:12]
    )
    told = f"{chat.systems:,} different system messages." if chat.systems else "No system message."
    return join(
        lead(told),
        element(
            "div",
            table(["Role", number_head("Turns")], roles, "Roles"),
            table(["Turns in a chat", number_head("Chats"), ""], turns, "Turns"),
            class_="two",
        ),
    )


# -- parts -------------------------------------------------------------------------------------------------------------
def row_list(rows: Sequence[RowShown]) -> Html:
    """Rows as closed lines that open to their whole text."""
    return element("div", *map(_row, rows), class_="rows")


def _row(row: RowShown) -> Html:
    start = " ".join(row.text[: 2 * STARTS].split())[:STARTS]
    summary = element(
        "summary",
        element("span", row.place, class_="place", title=row.place),
        _tag(row.label),
        element("span", row.note, class_="noted") if row.note else None,
        element("span", start, class_="start"),
    )
    more = f" ({row.characters:,} characters in all)" if len(row.text) < row.characters and row.text.endswith("…") else ""
    text = element("div", row.text, element("span", more, class_="muted"), class_="text")
    return element("details", summary, text, class_="row")


def side_by_side(rows: Sequence[RowShown]) -> Html:
    """Texts beside each other."""
    cards = (
        element(
            "div",
            element("header", element("span", row.place), _tag(row.label)),
            element("div", row.text, class_="text"),
            class_="one",
        )
        for row in rows
    )
    return element("div", *cards, class_="side")


def _figure(caption: str, chart: Html) -> Html:
    return element("figure", element("figcaption", caption), chart, class_="card")


def _chip(word: str, count: str) -> Html:
    return element("span", word, element("small", count))


def lead(told: str) -> Html:
    """A sentence before a table."""
    return element("p", told, class_="how")


def _tag(label: str | None) -> Html | None:
    return None if label is None else element("span", label, class_="tag")


def _meter(share: float) -> Html:
    """A cell with a bar."""
    bar = element("i", style=f"width:{100 * min(1.0, share):.1f}%") if share > 0 else None
    return element("td", element("span", bar, class_="meter", aria_hidden="true"), class_="wide")
