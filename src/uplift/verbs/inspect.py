"""``uplift data inspect``: everything worth knowing about a data set before training on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from uplift.core.errors import ResourceError
from uplift.core.recipe import PackageModel
from uplift.core.storage import write_atomically
from uplift.core.values import Origin, Sample
from uplift.data.chat import Encoder
from uplift.data.explore.findings import Inspection
from uplift.data.explore.intake import take_in
from uplift.data.explore.survey import Reader, survey
from uplift.data.packages import named_source
from uplift.data.sources import Stream, stream_source
from uplift.learn.parallel import pick_device
from uplift.model.language_model import LanguageModel
from uplift.model.opening import load_tokenizer, locate, model_kind, open_model, resolve_model
from uplift.model.quiet import quiet
from uplift.study.data_advice import advice_of, recipe_of
from uplift.study.data_page import render_data_page
from uplift.study.suggestion import SMOLLM

EMBEDDED_TOKENS = 128
"""Tokens at the start of a text by which a model places it on the map."""
PACKED_TEXTS = 16


def inspect(
    source: str,
    *,
    parts: Mapping[str, str] | None = None,
    model: str | None = None,
    column: str = "",
    label: str = "",
    encoding: str | None = None,
    limit: int | None = None,
    output: Path | None = None,
    command: str = "uplift data inspect",
    device: str = "auto",
) -> Inspection:
    """Look at a source (a file, folder, pattern, packaged or hub data set) and held-out ``parts``; the page goes to ``output``.

    ``model`` gives the tokenizer (default: the packaged language model's), and where it is an encoder also the places on the
    map. Raises UsageError, DataError, ModelError, ResourceError.
    """
    others = dict(parts or {})

    def stream_of(name: str) -> Stream:
        return stream_source(named_source(name, encoding).model_copy(update={"limit": limit}), Path())

    streams = {name: stream_of(each) for name, each in others.items()}
    taken = take_in(stream_of(source), text=column, label=label)
    given = {name: take_in(stream, aim=taken.aim) for name, stream in streams.items()}
    notes = list(dict.fromkeys(note for stream in (taken.stream, *streams.values()) for note in stream.notes))
    if limit is not None:
        notes.append(f"Only the first {limit:,} rows of each part were read (`--limit`).")
    found = survey(taken, given, source, _reader(model, notes, device), command=command, notes=notes)
    recipe = recipe_of(found, source, others, model or "", encoding)
    found = found.model_copy(update={"advice": advice_of(found), "recipe": recipe})
    if output is not None:
        write_atomically(output, render_data_page(found))
    return found


def _reader(model: str | None, notes: list[str], device: str) -> Reader | None:
    """The tokenizer to read with. Without a network and without the packaged model there is none, and a note says so."""
    spec = resolve_model(model) if model else PackageModel(name=SMOLLM)
    try:
        folder = locate(spec, Path()).folder
    except ResourceError as error:
        if model:
            raise
        notes.append(f"No tokens were counted: {error.what}. Name a model with `--model`.")
        return None
    with quiet():
        tokenizer = load_tokenizer(folder, [])
    kind = model_kind(spec, Path())
    if not model or kind != "encoder":
        if model:
            notes.append("The map is drawn by words: `--model` with an encoder (`minilm-l6`) draws it by meaning.")
        return Reader(model or SMOLLM, tokenizer, kind)
    opened = open_model(spec, head="class", base_dir=Path(), device=pick_device(device), seed=0)

    def embed(texts: Sequence[str]) -> NDArray[np.float64]:
        return mean_embeddings(opened, texts)

    return Reader(model, tokenizer, kind, embed, opened.longest)


@torch.no_grad()
def mean_embeddings(model: LanguageModel, texts: Sequence[str]) -> NDArray[np.float64]:
    """(texts, D): the mean of a model's hidden states over the first tokens of each text."""
    encoder = Encoder(model.tokenizer, EMBEDDED_TOKENS, model.kind)
    means = []
    for start in range(0, len(texts), PACKED_TEXTS):
        rows = [encoder.encode(Sample("", Origin("", 0), text=text)).ids for text in texts[start : start + PACKED_TEXTS]]
        ids = torch.tensor([[token for row in rows for token in row]], device=model.device)
        positions = torch.tensor([[place for row in rows for place in range(len(row))]], device=model.device)
        lengths = tuple(map(len, rows))
        hidden = model.hidden(model.embed(ids), positions, lengths)
        means += [part.mean(dim=0).double().cpu().numpy() for part in hidden[0].split(lengths)]
    return np.array(means)
