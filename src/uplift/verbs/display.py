"""What a run shows while it works: stages, what is learned, and one line of training progress. Silent without a console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from uplift.core.values import Progress
from uplift.data.audit import Audit


class Display:
    """Talks to people through ``console``; every method is a no-op when it is None."""

    def __init__(self, console: Console | None, brief: bool = False) -> None:
        self.console, self.brief = console, brief
        self._bar: Bar | None = None
        self._smoothed: float | None = None

    def stage(self, text: str) -> None:
        """One line that says what happens now."""
        if self.console:
            self.console.print(f"[dim]>[/dim] {text}", highlight=False)

    def audit(self, audit: Audit) -> None:
        """What the model will learn: counts, and (not in ``brief``) decoded samples with the learned part marked."""
        if self.console:
            text = "\n".join([str(audit).splitlines()[0], *audit.problems()]) if self.brief else str(audit)
            self.console.print(text, markup=False, highlight=False, style="dim")

    @contextmanager
    def training(self) -> Iterator[None]:
        """A progress bar for the time of the training loop."""
        if self.console is None:
            yield
            return
        columns = (
            TextColumn("  training"),
            BarColumn(24),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=self.console, transient=True) as bar:
            bar.add_task("training", total=1.0, note="")
            self._bar = bar
            yield
            self._bar = None

    def step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """After each optimizer step."""
        if self._bar is None:
            return
        loss = metrics["loss"]
        self._smoothed = loss if self._smoothed is None else 0.9 * self._smoothed + 0.1 * loss
        note = f"step {progress.step}  loss {self._smoothed:.3f}  {metrics['tokens_per_second']:.0f} tokens/s"
        self._bar.update(self._bar.task_ids[0], completed=progress.fraction, note=note)
