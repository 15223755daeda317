"""The loop. It knows seams, never a technique by name.

One step: draw -> micro-batches -> terms -> backward of each sum over its *global* count -> pulls -> clip -> guard ->
update -> after_update -> observe. The step is the unit of commit; a restart continues bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uplift.core.errors import NumericsError, ResourceError, Stopped
from uplift.core.recipe import Train
from uplift.core.run import Run
from uplift.core.storage import newest_verified, prune
from uplift.core.technique import Technique
from uplift.core.values import Batch, Progress, Signal, Terms, Unit, derive_seed
from uplift.learn.feed import Feed
from uplift.learn.growth import grow, grow_again, inherited, rewarming
from uplift.learn.learner import Learner
from uplift.learn.optim import apply_groups, averaged_by, build_optimizer, resolve_groups, set_lr
from uplift.learn.parallel import Parallel
from uplift.learn.schedule import Horizon, lr_factor
from uplift.learn.signals import SignalWatch
from uplift.learn.state import (
    RunState,
    compare_identity,
    load_checkpoint,
    load_weights,
    optimizer_memory,
    restore_optimizer,
    save_checkpoint,
    set_aside,
)
from uplift.learn.validation import look

UNITS: tuple[Unit, ...] = ("tokens", "samples")
OVERRUN = 1.1
"""A run with a time budget is cut at this multiple of it (a machine that became busy)."""
SAVE_SHARE = 30
"""Without `save_every`, at least this many times the cost of a save passes between two saves (about 3 %)."""
SAVE_SECONDS = 60.0
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")

Report = Callable[[Progress, Mapping[str, float]], None]


class Engine:
    """Trains a learner; everything it must remember is ``state``, the weights, the optimizer and the techniques."""

    def __init__(
        self,
        train: Train,
        learner: Learner,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        lr: float,
        feed: Feed,
        horizon: Horizon,
        validation: Sequence[Batch],
        run: Run,
        parallel: Parallel,
        identity: dict[str, str],
        seed: int,
        report: Report = lambda progress, metrics: None,
    ) -> None:
        self.train_section, self.learner, self.parameters = train, learner, parameters
        self.techniques: Sequence[Technique] = learner.techniques
        self.optimizer, self.lr, self.feed, self.horizon = optimizer, lr, feed, horizon
        self.validation, self.run, self.parallel, self.seed, self.report = validation, run, parallel, seed, report
        self.state = RunState(identity=identity)
        self.wrapped = parallel.wrap(learner)
        self.touched = dict(parameters)
        """Everything that has trained so far: what a checkpoint holds."""
        self._home = Path(parallel.share_text(str(run.path.absolute())))
        self._committed = -1
        self._since = self._saved = time.monotonic()
        self._save_cost = 0.0

    # -- where we are ---------------------------------------------------------------------------------------------
    @property
    def planned(self) -> float:
        """Draws that make up the whole run."""
        size, tokens = self.feed.size, self.feed.tokens
        limits = [math.inf if self.horizon.samples is None else self.horizon.samples]
        if self.horizon.tokens is not None:
            limits.append(self.horizon.tokens * size / tokens)
        if self.horizon.steps is not None:
            limits.append(self.horizon.steps * size / self.feed.steps_per_epoch)
        return max(1.0, min(limits))

    def fraction(self, samples: float = 0, steps: float = 0, tokens: float = 0) -> float:
        """Share of training done, with this much more than now."""
        state = self.state
        done = self.horizon.fraction(state.samples + samples, state.step + steps, state.tokens + tokens)
        if state.decay_from is None:
            return done
        return done + 1.0 - self.train_section.schedule.decay - state.decay_from  # the stable phase was cut short

    def progress(self) -> Progress:
        """Where the run is now."""
        state, fraction = self.state, min(1.0, self.fraction())
        total = round(state.step / fraction) if fraction > 0.02 else 0
        return Progress(state.step, state.epoch, state.tokens, fraction, total)

    @property
    def seconds(self) -> float:
        """Training time so far, over all restarts."""
        return self.state.seconds + time.monotonic() - self._since

    # -- the loop ---------------------------------------------------------------------------------------------------
    def train(self) -> RunState:
        """Train to the horizon, a stop signal or the budget. Raises Stopped, NumericsError, ResourceError."""
        self._since = time.monotonic()
        with SignalWatch() as watch:
            while self.fraction() < 1.0 and not self._over():
                metrics = self._step(self._next())
                self._keep_to_budget()
                if self._validation_due():
                    metrics |= self.validate()
                self._observe(metrics)
                self._refuse_bad(metrics)
                if self._save_due():
                    self.commit()
                if self.parallel.any(watch.received is not None):
                    self.commit()
                    raise Stopped(f"stopped by a signal after step {self.state.step}; saved", watch.received or 15)
        if self._committed != self.state.step:
            self.commit()
        if not self._restore_best():
            load_some(self.parameters, averaged_by(self.optimizer, self.parameters))
        return self.state

    def _over(self) -> bool:
        return self.parallel.any(bool(self.state.stopped))

    def _keep_to_budget(self) -> None:
        """End a run that a busy machine has made too long, and say so."""
        budget = self.train_section.budget.seconds
        if budget is not None and self.parallel.any(self.seconds > budget * OVERRUN):
            share = f"{100 * self.fraction():.0f} %"
            self.state.stopped = (
                f"the time budget of {budget:.0f} s ended training at {share} of its schedule (the machine was busy)"
            )
            self._event("budget_cut", self.state.stopped)

    def _next(self) -> list[int]:
        steps = self.feed.steps(self.state.epoch, self.planned)
        if self.state.index >= len(steps):
            self.state.epoch, self.state.index = self.state.epoch + 1, 0
            steps = self.feed.steps(self.state.epoch, self.planned)
        self.state.index += 1
        return steps[self.state.index - 1]

    def _step(self, indices: list[int]) -> dict[str, float]:
        """One optimizer step over these samples; a step with a non-finite loss or gradient changes nothing."""
        begin, size = time.monotonic(), sum(len(self.feed.encoded[i]) for i in indices)
        # The middle of the step, so neither the first nor the last one has rate 0; a last step may reach past the end.
        middle = self.fraction(len(indices) / 2, 0.5, size / 2) / max(1.0, self.fraction(len(indices), 1, size))
        lr = self.lr * lr_factor(self.train_section.schedule, middle) * rewarming(self.learner.model.lineage, self.state.step)
        progress = self.progress()
        sums = self.gradients(indices)
        limit = self.train_section.clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(list(self.parameters.values()), limit).item())
        finite = math.isfinite(norm) and all(math.isfinite(value) for value in sums.values())
        if finite:
            set_lr(self.optimizer, lr)
            self.optimizer.step()
            for technique in self.techniques:
                technique.after_update(self.parameters, progress, lr)
        self.optimizer.zero_grad(set_to_none=True)
        state = self.state
        state.step, state.samples, state.tokens = state.step + 1, state.samples + len(indices), state.tokens + size
        self._count_bad(finite, norm, sums)
        ids = [self.feed.encoded[i].id for i in indices]
        rate = size / max(1e-9, time.monotonic() - begin)
        return sums | {
            "lr": lr,
            "gradient_norm": norm,
            "tokens": float(state.tokens),
            "batch_mean_length": size / len(indices),
            "samples_hash": float(derive_seed(*ids) % 2**52),
            "tokens_per_second": rate,
        }

    def _backward(self, indices: list[int]) -> dict[str, float]:
        """Gradients of all micro-batches; on memory shortage the micro-batch is halved and the step starts over."""
        while True:
            try:
                return self._accumulate(indices)
            except (RuntimeError, MemoryError) as error:
                if not is_memory_shortage(error):
                    raise
                why = str(error).partition("\n")[0] or type(error).__name__
            # Outside the handler: the error's frames, and the tensors they hold, are gone before the next attempt.
            self.optimizer.zero_grad(set_to_none=True)
            self._halve_micro(why)

    def gradients(self, indices: list[int]) -> dict[str, float]:
        """Leave in ``.grad`` what the step over these samples would apply, before clipping; returns the mean losses."""
        progress, sums = self.progress(), self._passes(indices)
        for technique in self.techniques:
            technique.gradients(self.parameters, progress)
        return sums

    def _passes(self, indices: list[int]) -> dict[str, float]:
        """The gradients of all forward and backward passes of a step; the losses are those of the first."""
        progress, sums = self.progress(), self._backward(indices)

        def again() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            self._backward(indices)

        for technique in self.techniques:
            technique.update(self.parameters, progress, again)
        return sums

    def probe(self, indices: list[int]) -> None:
        """The passes of a step over these samples, then forget: for preflight and timing."""
        self._passes(indices)
        self.optimizer.zero_grad(set_to_none=True)

    def _halve_micro(self, why: str) -> None:
        smaller = max(self.state.micro_tokens // 2, max(len(item) for item in self.feed.encoded))
        if self.parallel.world > 1 or smaller >= self.state.micro_tokens:
            fix = "lower `train.max_length` or `train.micro_tokens`, or use an adapter"
            raise ResourceError("a training step does not fit into memory", why=why, fix=fix)
        self.state.micro_tokens = smaller
        self._event("micro_batch_halved", f"memory ran out: micro-batches of {self.state.micro_tokens} tokens from now on")

    def _accumulate(self, indices: list[int]) -> dict[str, float]:
        batches = self.feed.micro_batches(indices, self.state.micro_tokens, self.parallel, self.progress())
        own = [sum(batch.counts[unit] for batch in batches) for unit in UNITS]
        totals = dict(zip(UNITS, self.parallel.sum(own), strict=True))
        sums: dict[str, Tensor] = {}
        units: dict[str, Unit] = {}
        self.wrapped.train()
        for number, batch in enumerate(batches):
            torch.manual_seed(derive_seed(self.seed, "forward", self.state.step, number, self.parallel.rank))
            with self.parallel.accumulating(self.wrapped, number == len(batches) - 1):
                with self.parallel.autocast():
                    terms: Terms = self.wrapped(batch)
                loss = torch.stack([term.sum / max(totals[term.unit], 1e-12) for term in terms.values()]).sum()
                (loss * self.parallel.world).backward()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.sum.detach().to(self.parallel.exact)
                units[name] = term.unit
        values = self.parallel.sum([float(value) for value in torch.stack(list(sums.values())).tolist()])
        means = {name: value / max(totals[units[name]], 1e-12) for name, value in zip(sums, values, strict=True)}
        return {"loss": sum(means.values())} | {f"loss_{name}": value for name, value in means.items()}

    def _count_bad(self, finite: bool, norm: float, sums: Mapping[str, float]) -> None:
        state = self.state
        if finite:
            state.bad_in_a_row = 0
            return
        state.bad_in_a_row, state.skipped = state.bad_in_a_row + 1, state.skipped + 1
        self._event("bad_step", f"step {state.step}: loss {sums['loss']}, gradient norm {norm}: not applied")

    def _refuse_bad(self, metrics: Mapping[str, float]) -> None:
        """Stop after too many bad steps in a row; their true numbers are logged by now, and nothing of them is committed."""
        state = self.state
        if state.bad_in_a_row > self.train_section.bad_steps:
            why = f"step {state.step}: loss {metrics['loss']}, gradient norm {metrics['gradient_norm']}"
            fix = "lower `train.lr`, check the data named by `samples_hash`, or set `hardware.precision: fp32`"
            raise NumericsError(f"{state.bad_in_a_row} steps in a row were not finite", why=why, fix=fix)

    # -- looking ----------------------------------------------------------------------------------------------------
    def _validation_due(self) -> bool:
        if not self.validation:
            return False
        every = self.train_section.evaluate_every
        if self.state.stopped:
            return True
        if every:
            return self.state.step % every == 0
        return int(self.fraction() * self.state.looks) > self.state.validations

    def _save_due(self) -> bool:
        every = self.train_section.save_every
        if every:
            return self.state.step % every == 0
        return self.parallel.any(time.monotonic() - self._saved > max(SAVE_SECONDS, SAVE_SHARE * self._save_cost))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Task loss on the fixed validation batches (averaged weights when a technique keeps some), with its errors."""
        self.state.validations = max(self.state.validations + 1, int(self.fraction() * self.state.looks))
        self.learner.eval()
        with self._averaged(), self.parallel.autocast():
            metrics, sums = look(self.learner, self.validation, self.state.lowest)
        self.learner.train()
        if not self.state.lowest or sum(sums) < sum(self.state.lowest):
            self.state.lowest = sums
        return metrics

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        chosen = [weights for t in self.techniques if (weights := t.averaged(self.parameters)) is not None]
        chosen += [weights] if (weights := averaged_by(self.optimizer, self.parameters)) else []
        named = self.learner.model.parameters_by_name() if chosen else {}  # an average may hold what no longer trains
        kept = {name: named[name].detach().clone() for weights in chosen for name in weights}
        for weights in chosen:
            load_some(named, weights)
        try:
            yield
        finally:
            load_some(named, kept)

    def _observe(self, metrics: dict[str, float]) -> None:
        progress = self.progress()
        if self.parallel.first:
            self.run.log(self.state.step, metrics)
        signals: list[tuple[int, Signal]]
        signals = [(index, s) for index, t in enumerate(self.techniques) for s in t.observe(progress, metrics)]
        for _, signal in signals:
            if signal.kind == "keep_best":
                self._keep_best()
            elif signal.kind == "regroup":
                self._regroup()
                self._event("regrouped", signal.reason)
            elif signal.kind == "decay":
                self._decay_now(signal.reason)
            elif signal.kind == "stop":
                self.state.stopped = signal.reason  # before the commit of this step, or a restart would train on
                self._event("stopped_early", signal.reason)
        growing = next((index for index, signal in signals if signal.kind == "grow"), None)
        if growing is not None and not self._over():  # one at a time: others ask again after the next step
            self._grow(growing)
        self.report(progress, metrics)

    def _grow(self, index: int) -> None:
        """A technique changes the structure; moments follow the weights, and the best ones so far are of another model."""
        model, memory = self.learner.model, optimizer_memory(self.optimizer, self.parameters)
        growth = grow(model, self.techniques, index, self.seed, self.state.step)
        self._regroup(inherited(memory, growth.heirs, model.parameters_by_name()))
        self.touched, self.state.best_step = model.parameters_by_name(), None
        self._event("grown", growth.told)

    def _regroup(self, memory: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Ask the techniques again what trains; moments are kept for what goes on training and forgotten for the rest."""
        model = self.learner.model
        memory = optimizer_memory(self.optimizer, self.parameters) if memory is None else memory
        settings = resolve_groups(model, self.techniques)
        self.parameters = apply_groups(model, settings)
        self.optimizer = build_optimizer(self.parameters, settings, self.train_section.optimizer, self.lr)
        kept = {name: state for name, state in memory.items() if name in self.parameters}
        restore_optimizer(self.optimizer, self.parameters, kept)
        self.touched |= self.parameters
        self.wrapped = self.parallel.wrap(self.learner)
        self.state.regrouped = True

    def _decay_now(self, reason: str) -> None:
        """Begin the schedule's decay here; the run ends with it."""
        schedule = self.train_section.schedule
        if self.state.decay_from is None and self.fraction() < 1.0 - schedule.decay:
            self.state.decay_from = self.fraction()
            self._event("decay_begun", reason)

    def _event(self, code: str, text: str) -> None:
        if self.parallel.first:
            self.run.event(code, text, step=self.state.step)

    # -- keeping ----------------------------------------------------------------------------------------------------
    def commit(self) -> None:
        """Write one checkpoint; the oldest ones go once the new one is verified."""
        begin = time.monotonic()
        saved = replace(self.state, seconds=self.seconds, lineage=list(self.learner.model.lineage))
        if self.parallel.first:
            memory = optimizer_memory(self.optimizer, self.parameters)
            techniques = {str(i): t.state() for i, t in enumerate(self.techniques)}
            save_checkpoint(self._path(self.state.step), saved, self.touched, memory, techniques)
            prune(self.run.checkpoints, self.train_section.keep, protect=())
        self.parallel.barrier()
        self._committed, self._saved = self.state.step, time.monotonic()
        self._save_cost = self._saved - begin

    def _path(self, step: int) -> Path:
        return self._home / "checkpoints" / f"step-{step:08d}"

    def _keep_best(self) -> None:
        self.state.best_step = self.state.step
        if self.parallel.first:
            with self._averaged():
                # What trains later must go back too, to what it is now.
                all_of_it = any("regroup" in technique.declare().gives for technique in self.techniques)
                kept = self.learner.model.parameters_by_name() if all_of_it else self.touched
                save_checkpoint(self._home / "best", self.state, kept, {}, {})

    def _restore_best(self) -> bool:
        if self.state.best_step is None or self.state.best_step == self.state.step:
            return False
        self.parallel.barrier()
        _, weights, _, _ = load_checkpoint(self._home / "best")
        load_some(self.learner.model.parameters_by_name(), weights)
        self._event("best_restored", f"weights of step {self.state.best_step} restored (last step {self.state.step})")
        return True

    def resume(self) -> bool:
        """Continue from the newest checkpoint that verifies; False when there is none.

        The first process looks and sets damaged ones aside; all read what it found. Raises RecipeError when the data, the
        model or the recipe is not the one the run was started with.
        """
        name = self.parallel.share_text(self._newest() if self.parallel.first else "")
        if not name:
            if self.parallel.first:
                self.run.forget_after(0)
            return False
        state, weights, memory, techniques = load_checkpoint(self._home / "checkpoints" / name)
        changed = compare_identity(state.identity, self.state.identity)
        if changed:
            self._event("identity_changed", f"continuing where results may differ in the last digits: {changed}")
        for index, technique in enumerate(self.techniques):
            technique.load_state(techniques[str(index)])
        grown = grow_again(self.learner.model, self.techniques, state.lineage, self.seed)
        if state.regrouped or grown:
            self._regroup()
            self.touched = {} if grown else self.touched
            named = self.learner.model.parameters_by_name()
            self.touched |= {name: named[name] for name in weights if name in named}
        load_weights(self.touched, weights)
        restore_optimizer(self.optimizer, self.parameters, memory)
        self.state = replace(state, identity=self.state.identity)
        self._committed = state.step
        if state.token_limit is not None:
            self.horizon = replace(self.horizon, tokens=state.token_limit)
        self._refill_prefix()
        if self.parallel.first:
            self.run.forget_after(state.step)
        return True

    def _refill_prefix(self) -> None:
        """The same hidden states from the same blocks as before the restart, or none where there were none: the same bits."""
        cache = self.learner.prefix
        if cache is None:
            return
        if not self.state.prefix_cached:
            self.learner.prefix = None
            return
        for _ in cache.fill(self.feed.encoded):
            pass

    def _newest(self) -> str:
        damaged: list[Path] = []

        def note(path: Path, why: str) -> None:
            self._event("damaged_checkpoint", f"{path.name}: {why}")
            damaged.append(path)

        found = newest_verified(self.run.checkpoints, note)
        for path in damaged:
            set_aside(path)
        return found.name if found else ""


def is_memory_shortage(error: BaseException) -> bool:
    """Whether an allocator, torch's or the system's, found no room."""
    typed = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return typed or any(text in str(error).lower() for text in OUT_OF_MEMORY)


def load_some(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    """Copy the given weights into the parameters of the same names."""
    with torch.no_grad():
        for name, tensor in weights.items():
            parameters[name].copy_(tensor)
