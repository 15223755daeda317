"""Before step 1: does the longest batch fit, does a checkpoint survive a round trip, is there room, how fast is it here?"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from uplift.core.errors import NumericsError
from uplift.core.storage import preflight_space
from uplift.learn.engine import Engine
from uplift.learn.state import load_checkpoint

ADAM_COPIES = 3
"""Weights and two moments."""
RESERVE = 0.97
"""Share of a time budget that is planned for; the rest absorbs noise."""


LOOKING = 0.15
"""Largest share of a time budget that goes into validations."""


@dataclass(frozen=True)
class Rate:
    """Measured seconds per token of training: the first time a token is seen, and again (prefix cached)."""

    first: float
    again: float


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


def measure_rate(engine: Engine) -> Rate:
    """Seconds per token from one ordinary micro-batch, run after the longest one has warmed everything up."""
    steps = engine.feed.steps(0, engine.planned)
    indices, tokens = [], 0
    for index in steps[len(steps) // 2]:
        indices.append(index)
        tokens += len(engine.feed.encoded[index])
        if tokens >= engine.state.micro_tokens:
            break
    times = []
    for _ in range(2):
        begin = time.monotonic()
        engine.probe(indices)
        times.append((time.monotonic() - begin) / tokens)
    return Rate(times[0], min(times[1], times[0]) if engine.learner.prefix is not None else sum(times) / 2)


def fit_to_seconds(engine: Engine, rate: Rate, seconds: float) -> None:
    """Turn a time budget into a token limit, so the schedule ends with the budget and a restart ends at the same step."""
    looking = 0.0
    if engine.validation:
        begin = time.monotonic()
        engine.validate()
        engine.state.validations = 0
        cost = time.monotonic() - begin
        engine.state.looks = max(1, min(engine.state.looks, int(seconds * LOOKING / cost)))
        looking = cost * engine.state.looks
    room = max(seconds * RESERVE - looking, seconds * 0.5)
    per_token, epoch = rate.first, engine.feed.tokens
    tokens = room / per_token
    if tokens > epoch:
        tokens = epoch + (room - epoch * per_token) / rate.again
    limit = max(1, int(tokens))
    known = engine.horizon.tokens
    engine.horizon = replace(engine.horizon, tokens=min(limit, known) if known else limit)
    engine.state.token_limit = engine.horizon.tokens


def preflight(engine: Engine, seconds: float | None) -> Rate:
    """All checks of a fresh run, ending with a committed step-0 checkpoint. ``seconds``: the recipe's time budget."""
    check_space(engine)
    check_longest(engine)
    rate = measure_rate(engine)
    if seconds is not None:
        # Each process timed its share of the same tokens, so the mean is the time of a token of the whole step.
        first, again = (value / engine.parallel.world for value in engine.parallel.sum([rate.first, rate.again]))
        fit_to_seconds(engine, Rate(first, again), seconds)
    check_round_trip(engine)
    return rate
