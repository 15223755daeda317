"""Before step 1: does the longest batch fit, does a checkpoint survive a round trip, is there room, how fast is it here?"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from uplift.core.errors import NumericsError
from uplift.core.storage import preflight_space
from uplift.learn.engine import Engine
from uplift.learn.state import load_checkpoint

TIMED = 2
"""Micro-batches behind a measured speed."""
ADAM_COPIES = 3
"""Weights and two moments."""
RESERVE = 0.97
"""Share of a time budget that is planned for; the rest absorbs noise."""


LOOKING = 0.15
"""Largest share of a time budget that goes into validations."""


PREFIX_SHARE = 0.5
"""Largest share of a time budget that goes into filling the cache of the frozen layers; above it there is no cache."""


def check_space(engine: Engine) -> int:
    """Bytes of one checkpoint; raises ResourceError when two do not fit on the disk."""
    size = ADAM_COPIES * sum(p.numel() * p.element_size() for p in engine.parameters.values())
    if engine.parallel.first:
        preflight_space(engine.run.path, 2 * size)
    return size


def check_longest(engine: Engine) -> None:
    """One forward and backward of the longest samples; most memory failures of hour 10 happen here instead."""
    order = sorted(range(len(engine.feed.encoded)), key=lambda i: -len(engine.feed.encoded[i]))
    chosen: list[int] = []
    room = engine.state.micro_tokens
    for index in order:
        if chosen and len(engine.feed.encoded[index]) > room:
            break
        chosen.append(index)
        room -= len(engine.feed.encoded[index])
    engine.probe(chosen)


def check_round_trip(engine: Engine) -> None:
    """Save, verify and read back a checkpoint of step 0, bit for bit."""
    engine.commit()
    if not engine.parallel.first:
        return
    _, weights, _, _ = load_checkpoint(engine.run.checkpoints / "step-00000000")
    for name, parameter in engine.parameters.items():
        if not torch.isfinite(parameter).all():
            raise NumericsError(f"`{name}` holds a number that is not finite before training", fix="use undamaged files")
        if not torch.equal(weights[name], parameter.detach().cpu()):
            raise NumericsError(
                f"`{name}` changed between saving and loading a checkpoint", fix="check this machine's memory and disk"
            )


def fill_prefix(engine: Engine, seconds: float | None) -> None:
    """Fill the cache of the frozen layers if the run is long enough for it to pay, else do without; its time counts.

    Below one epoch there is nothing to save.
    """
    cache, samples = engine.learner.prefix, engine.feed.encoded
    if cache is None:
        return
    begin, done, whole = time.monotonic(), 0, sum(map(len, samples))
    short = engine.planned < len(samples)
    for tokens in () if short else cache.fill(samples):
        done += tokens
        foretold = (time.monotonic() - begin) * whole / done
        if engine.parallel.any(seconds is not None and foretold > PREFIX_SHARE * seconds):
            short = True
            break
    if short:
        engine.learner.prefix = None
    engine.state.prefix_cached = not short
    engine.state.seconds += time.monotonic() - begin


def ordinary_samples(engine: Engine) -> list[int]:
    """Indices of about one micro-batch of samples from the middle of the first epoch."""
    steps = engine.feed.steps(0, engine.planned)
    indices: list[int] = []
    tokens = 0
    for index in steps[len(steps) // 2]:
        indices.append(index)
        tokens += len(engine.feed.encoded[index])
        if tokens >= engine.state.micro_tokens:
            break
    return indices


def measure_rate(engine: Engine) -> float:
    """Seconds per token of training on ordinary samples; run it after the longest ones have warmed everything up."""
    indices = ordinary_samples(engine)
    begin = time.monotonic()
    for _ in range(TIMED):
        engine.probe(indices)
    return (time.monotonic() - begin) / (TIMED * sum(len(engine.feed.encoded[index]) for index in indices))


def mean_of_processes(engine: Engine, measured: float) -> float:
    """One number from each process's own clock: plans made of different ones would end at different steps."""
    return engine.parallel.sum([measured])[0] / engine.parallel.world


def fit_to_seconds(engine: Engine, per_token: float, seconds: float) -> None:
    """Turn a time budget into a token limit, so the schedule ends with the budget and a restart ends at the same step."""
    looking = 0.0
    if engine.validation:
        begin = time.monotonic()
        engine.validate()
        engine.state.validations, engine.state.lowest = 0, []
        cost = mean_of_processes(engine, time.monotonic() - begin)
        engine.state.looks = max(1, min(engine.state.looks, int(seconds * LOOKING / cost)))
        looking = cost * engine.state.looks
    left = seconds * RESERVE - mean_of_processes(engine, engine.state.seconds)
    limit = max(1, int(max(left - looking, left * 0.5) / per_token))
    known = engine.horizon.tokens
    engine.horizon = replace(engine.horizon, tokens=min(limit, known) if known else limit)
    engine.state.token_limit = engine.horizon.tokens


def preflight(engine: Engine, seconds: float | None) -> float:
    """All checks of a fresh run, ending with a committed step-0 checkpoint; returns the foretold seconds of training.

    ``seconds``: the recipe's time budget.
    """
    check_space(engine)
    fill_prefix(engine, seconds)
    check_longest(engine)
    per_token = mean_of_processes(engine, measure_rate(engine))  # each timed its share of the same tokens
    if seconds is not None:
        fit_to_seconds(engine, per_token, seconds)
    check_round_trip(engine)
    return engine.state.seconds + engine.planned * engine.feed.tokens / engine.feed.size * per_token
