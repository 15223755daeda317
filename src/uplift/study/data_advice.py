"""What the findings about a data set mean: what to do before training, what to look at, and a recipe to begin with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from uplift.core.recipe import Data
from uplift.core.source_section import PackageSource
from uplift.data.explore.findings import Advice, Inspection, LabelFindings, Leak, RuleFound, Tokens, Weight
from uplift.data.packages import CATALOGUE, named_source
from uplift.data.rows import NAME_ENCODING
from uplift.study.suggestion import MINILM, SMOLLM, file_source, quoted, split_shares

NOTICED = 0.01
"""A share of the rows that is worth a step."""
FEW_ROWS = 200
RARE_LABEL = 10
UNBALANCED = 0.7
NEAR_CHANCE = 0.05
"""Less gain than this over the commonest label: words hardly foretell the label."""
TOO_EASY = 0.97
POOR_BYTES_PER_TOKEN = 2.5
MANY_BYTE_PIECES = 0.05
MANY_CUT = 0.01
WEIGHTS = get_args(Weight)
MOST_BAD = float(Data.model_fields["max_bad"].default)
PII_STEP, REPAIR_STEP, HTML_STEP = "pii", "repair", "html"
DOES = {REPAIR_STEP: "repairs them", HTML_STEP: "takes it off", PII_STEP: "masks them"}
LEAST_HIT = {REPAIR_STEP: NOTICED, HTML_STEP: NOTICED, PII_STEP: 0.001}
"""Step -> share of the rows from which on it goes into the recipe: personal data is learned from few rows."""


def per_cent(share: float) -> str:
    """Per cent with the digits that matter; something is never shown as nothing, nor nearly all as all."""
    if share in (0.0, 1.0):
        return f"{100 * share:.0f} %"
    if share < 0.001 or share > 0.999:
        return "< 0.1 %" if share < 0.5 else "> 99.9 %"
    return f"{100 * share:.1f} %"


def beyond(tokens: Tokens) -> str:
    """What becomes of rows that are longer than the suggested length."""
    share = per_cent(tokens.suggested_cut)
    return f"{share} of the rows go on in another passage" if tokens.passages else f"it cuts {share} of the rows"


def advice_of(found: Inspection) -> list[Advice]:
    """All advice, most important first; what is in order is said too."""
    told = [each for judge in JUDGES for each in judge(found)]
    told = [each.model_copy(update={"text": each.text[:1].upper() + each.text[1:]}) for each in told]
    return sorted(told, key=lambda advice: WEIGHTS.index(advice.weight))


def _reading(found: Inspection) -> Iterator[Advice]:
    over = found.overview
    if over.quarantined:
        share = over.quarantined / over.rows_in
        weight: Weight = "fix" if share > MOST_BAD else "look"
        first = over.bad[0]
        text = (
            f"{over.quarantined:,} of {over.rows_in:,} rows cannot be used, most by the rule `{first.rule}` ({first.count:,})"
        )
        todo = f"a run refuses more than {per_cent(MOST_BAD)}: repair them" if weight == "fix" else "a run leaves them out"
        todo = NAME_ENCODING if first.rule == "utf8" else todo
        yield Advice(weight=weight, topic="rows", text=text, todo=todo)
    else:
        yield Advice(weight="good", topic="rows", text=f"All {over.rows_in:,} rows can be read and used")
    if over.rows < FEW_ROWS:
        text = f"{over.rows:,} rows are few: scores on a held-out part will be uncertain by several points"
        yield Advice(weight="look", topic="rows", text=text, todo="use several seeds, and look at the intervals")


def _duplicates(found: Inspection) -> Iterator[Advice]:
    same = found.duplicates
    beyond = max(0, same.near - round(same.normalized * same.sampled / max(1, same.rows)))
    if not same.normalized and not beyond:
        yield Advice(weight="good", topic="duplicates", text="No row repeats another one")
        return
    shares = same.normalized / same.rows, beyond / max(1, same.sampled)
    parts = []
    if same.normalized:
        parts.append(f"{same.normalized:,} rows ({per_cent(shares[0])}) repeat an earlier one but for case and spacing")
    if beyond:
        parts.append(f"about {beyond:,} of {same.sampled:,} ({per_cent(shares[1])}) nearly do")
    weight: Weight = "fix" if max(shares) >= NOTICED else "look"
    todo = "`prepare: [dedup]` keeps one of each" if weight == "fix" else "few enough to leave; `dedup` keeps one of each"
    yield Advice(weight=weight, topic="duplicates", text=", ".join(parts), todo=todo)


def _splits(found: Inspection) -> Iterator[Advice]:
    for leak in found.splits.leaks:
        if not leak.rows:
            continue
        hit = max(leak.runs, leak.near)
        where = f"the {leak.part} part" if found.splits.given else f"the {leak.part} part that the split would cut off"
        if leak.normalized or hit:
            todo = "`decontaminate` against it: its score would flatter"
            if not found.splits.given:
                todo = "`dedup` first" if leak.near else "boilerplate and quotations do that: look at them"
            weight: Weight = "fix" if found.splits.given and leak.normalized else "look"
            yield Advice(weight=weight, topic="splits", text=_leak_text(leak, where), todo=todo)
        elif found.splits.given:
            yield Advice(weight="good", topic="splits", text=f"Nothing of {where} stands in training")


def _leak_text(leak: Leak, where: str) -> str:
    parts = []
    if leak.normalized:
        parts.append(f"{leak.normalized:,} of {leak.rows:,} stand in training")
    if leak.runs > leak.normalized:
        parts.append(f"{leak.runs:,} of {leak.sampled:,} share a run of 13 words with it")
    if leak.near > leak.normalized:
        parts.append(f"{leak.near:,} of {leak.sampled:,} are nearly the same as a training row")
    return f"of {where} {', '.join(parts)}"


def _labels(found: Inspection) -> Iterator[Advice]:
    labels = found.labels
    if labels is None:
        return
    rows = sum(count.rows for count in labels.counts)
    if labels.conflicting:
        text = f"{labels.conflicting:,} rows carry a text that also stands with another label"
        weight: Weight = "fix" if labels.conflicting >= NOTICED * rows else "look"
        yield Advice(weight=weight, topic="labels", text=text, todo="decide on one label for each; they are listed")
    elif len(labels.counts) > 1:
        yield Advice(weight="good", topic="labels", text="No text stands with two labels")
    if labels.counts and labels.counts[0].share > UNBALANCED:
        text = f"{per_cent(labels.counts[0].share)} of the rows are `{labels.counts[0].label}`"
        yield Advice(weight="look", topic="labels", text=text, todo="judge by macro F1, not by accuracy")
    rare = [count.label for count in labels.counts if count.rows < RARE_LABEL]
    if rare:
        text = f"{len(rare)} labels have fewer than {RARE_LABEL} rows: {', '.join(f'`{label}`' for label in rare[:5])}"
        yield Advice(weight="look", topic="labels", text=text, todo="collect more of them, merge them, or leave them out")
    yield from _sanity(labels)


def _sanity(labels: LabelFindings) -> Iterator[Advice]:
    sanity = labels.sanity
    if sanity is None:
        return
    reached, guessing = per_cent(sanity.accuracy), per_cent(sanity.majority)
    score = f"TF-IDF with logistic regression reaches {reached} (always the commonest label: {guessing})"
    if sanity.accuracy >= TOO_EASY:
        todo = "look at the words of each label: a footer or a name may give it away"
        yield Advice(weight="look", topic="labels", text=f"{score}: nearly too easy", todo=todo)
    elif sanity.accuracy - sanity.majority < NEAR_CHANCE:
        todo = "check that the labels belong to the texts; a language model may still find what words do not show"
        yield Advice(weight="look", topic="labels", text=f"{score}: words hardly foretell the label", todo=todo)
    else:
        yield Advice(weight="good", topic="labels", text=f"{score}: the labels follow from the texts")
    if sanity.suspicious:
        text = f"{sanity.suspicious:,} of {sanity.rows:,} rows read like another label"
        yield Advice(weight="look", topic="labels", text=text, todo="check those listed: they are the likeliest label errors")


def _texts(found: Inspection) -> Iterator[Advice]:
    for step, what in (
        (REPAIR_STEP, "hold broken encodings, odd spaces or invisible characters"),
        (HTML_STEP, "hold markup of web pages"),
        (PII_STEP, "hold personal data or secret keys"),
    ):
        hit, rules = _struck(found, step)
        if not hit:
            continue
        text = f"at least {hit:,} of {found.cleaning.rows:,} rows {what} ({', '.join(rules)})"
        todo = f"`prepare: [{step}]` {DOES[step]}"
        yield Advice(
            weight="fix" if hit >= LEAST_HIT[step] * found.cleaning.rows else "look", topic="texts", text=text, todo=todo
        )
    if found.languages and len(found.languages.languages) > 1:
        first, *rest = found.languages.languages
        share = sum(each.share for each in rest)
        if share >= NOTICED:
            others = per_cent(share)
            text = f"{per_cent(first.share)} of the rows are in `{first.code}`, {others} in {len(rest)} other languages"
            todo = f"wanted? Else `prepare: [{{use: language, keep: [{first.code}]}}]`"
            yield Advice(weight="look", topic="languages", text=text, todo=todo)


def _struck(found: Inspection, step: str) -> tuple[int, list[str]]:
    """Rows that the commonest rule of a step strikes, and the rules, commonest first."""
    rules = [rule for rule in found.cleaning.rules if rule.step == step]
    ranked: list[RuleFound] = sorted(rules, key=lambda rule: (-rule.rows, rule.rule))
    return (ranked[0].rows if ranked else 0), [f"{rule.rule} {rule.rows:,}" for rule in ranked[:5]]


def _tokens(found: Inspection) -> Iterator[Advice]:
    tokens = found.tokens
    if tokens is None:
        return
    if tokens.passages and tokens.suggested_cut:
        text = f"at `max_length: {tokens.suggested_length}` {per_cent(tokens.suggested_cut)} of the rows are read as passages"
        yield Advice(weight="good", topic="length", text=f"{text}; nothing is cut off")
    elif tokens.suggested_cut > MANY_CUT:
        text = f"even at {tokens.suggested_length:,} tokens {per_cent(tokens.suggested_cut)} of the rows are cut"
        yield Advice(weight="look", topic="length", text=text, todo="shorten what comes before the answer, or split these rows")
    else:
        text = f"`max_length: {tokens.suggested_length}` holds {per_cent(1 - tokens.suggested_cut)} of the rows whole"
        yield Advice(weight="good", topic="length", text=text)
    if tokens.unknown > 0.001 or tokens.byte_pieces > MANY_BYTE_PIECES or tokens.bytes_per_token < POOR_BYTES_PER_TOKEN:
        text = (
            f"`{tokens.tokenizer}` cuts these texts into small pieces: {tokens.bytes_per_token:.2f} bytes per token, "
            f"{per_cent(tokens.byte_pieces)} parts of characters, {per_cent(tokens.unknown)} unknown"
        )
        todo = "training and answers take longer; `uplift data tokenizer --extend` teaches it the words"
        yield Advice(weight="look", topic="tokenizer", text=text, todo=todo)
    for problem in found.learning.problems if found.learning else []:
        if problem.rows >= NOTICED * problem.of:
            text = f"{problem.rows:,} of {problem.of:,} rows {problem.text}"
            yield Advice(weight="look", topic="training", text=text, todo="see what the model sees, below")


JUDGES: tuple[Callable[[Inspection], Iterator[Advice]], ...] = (
    _reading,
    _splits,
    _labels,
    _duplicates,
    _texts,
    _tokens,
)


# -- recipe ------------------------------------------------------------------------------------------------------------
def steps_of(found: Inspection) -> list[str]:
    """Steps of `data.prepare` that the findings call for, as YAML."""
    steps = [step for step, least in LEAST_HIT.items() if _struck(found, step)[0] > least * found.cleaning.rows]
    same = found.duplicates
    if same.normalized >= NOTICED * same.rows or same.near >= NOTICED * same.sampled:
        steps.append("dedup")
    return steps


def recipe_of(found: Inspection, source: str, others: dict[str, str], model: str = "", encoding: str | None = None) -> str:
    """A recipe that runs as it stands in the current folder: the packaged model (or ``model``), these parts, this task."""
    steps = steps_of(found)
    named = {each: _source(each, encoding) for each in (source, *others.values())}
    against = [f"{name}: {named[other]}" for name, other in others.items()]
    leaking = [name for leak in found.splits.leaks if found.splits.given and leak.normalized for name in [leak.part]]
    if leaking:
        steps.append(f"{{use: decontaminate, against: [{', '.join(named[others[name]] for name in leaking)}]}}")
    prepare = "".join(f"    - {step}\n" for step in steps)
    length = found.tokens.suggested_length if found.tokens else 1024
    name = re.sub(r"[^a-z0-9._-]+", "-", Path(source).stem.lower()).strip("-._")[:40] or "first"
    chosen = model or (MINILM if found.tokens and found.tokens.tokenizer == MINILM else SMOLLM)
    shares = {part: share for part, share in split_shares(found.overview.rows) if part not in others}
    split = ", ".join([*(f"{part}: {share}" for part, share in shares.items()), "by: content"])
    return (
        f"name: {name}\n"
        f"model: {_model(chosen)}\n"
        f"data:\n  train: {named[source]}\n"
        + "".join(f"  {part}\n" for part in against)
        + (f"  prepare:\n{prepare}" if prepare else "")
        + f"  split: {{{split}}}\n"
        + _task(found)
        + f"train: {{epochs: 2, max_length: {length}, batch_tokens: {max(2048, length)}}}\n"
    )


def _source(source: str, encoding: str | None) -> str:
    packaged = isinstance(named_source(source), PackageSource)
    return f"{{use: package, name: {source}}}" if packaged else file_source(source, encoding)


def _model(name: str) -> str:
    return f"{{use: package, name: {name}}}" if name in CATALOGUE else f"{{use: hf, id: {quoted(name)}}}"


def _task(found: Inspection) -> str:
    over = found.overview
    if over.goal == "chat":
        return "task: {use: chat}\n"
    if over.goal == "text":
        return f"task: {{use: text, text: {quoted(over.text)}}}\n"
    return f"task: {{use: classify, text: {quoted(over.text)}, label: {quoted(over.label)}}}\n"
