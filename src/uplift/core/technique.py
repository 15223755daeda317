"""The one extension point: a technique fills one or more seams. This file is the whole contract.

A technique is one file under ``uplift/techniques/<theme>/<name>.py`` (or an entry point of the group
``uplift.techniques``) with one class derived from ``Technique``; the file name is its ``use:`` name. Fields (with ranges)
are its options. Everything it must remember lives in private attributes that ``state`` and ``load_state`` carry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict

from uplift.core.capability import Capabilities
from uplift.core.values import Batch, Corpus, Effect, Group, Growth, Pass, Progress, Sample, Setting, Signal, Terms

if TYPE_CHECKING:
    from torch import Tensor, nn

Phase = Literal["structure", "adapter", "precision"]
Parameters = Mapping[str, "nn.Parameter"]


class Technique(BaseModel):
    """Base of all techniques: every seam has a null implementation, so a technique writes only its own.

    The instance in a recipe is never run: the engine works on ``fresh()`` copies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)

    use: str
    capabilities: ClassVar[Capabilities] = Capabilities()
    phase: ClassVar[Phase] = "adapter"
    off: ClassVar[Mapping[str, Any]] = {}
    """Field values under which the technique must change nothing, bit for bit ({} = it has no strength)."""
    default_lr: ClassVar[float | None] = None
    """Peak rate that ``train.lr: auto`` means with this technique; None: that of what trains (all weights, adapter, head)."""

    def fresh(self) -> Self:
        """An equal technique with no memory of any run."""
        return type(self)(**self.model_dump())

    def declare(self) -> Capabilities:
        """Capabilities of this instance; override when they depend on the options."""
        return self.capabilities

    def locate(self, base_dir: Path, output_dir: Path) -> None:
        """First of all, once: where relative paths of the options start, and the folder of all runs, for what they share."""

    def meet(self, setting: Setting) -> None:
        """Second, once, before ``samples``: the model, not edited yet, and the rows. Training learns nothing from test rows."""

    # -- data ---------------------------------------------------------------------------------------------------
    def samples(self, corpus: Corpus) -> Corpus:
        """Chain: change, add or prefix samples. Called for every part; look at ``corpus.part``."""
        return corpus

    def weights(self, sample: Sample, progress: Progress) -> float:
        """Product: how much this sample should be drawn now (1 = as usual, 0 = not yet)."""
        return 1.0

    # -- model --------------------------------------------------------------------------------------------------
    def edit(self, model: Any) -> Any:
        """Chain in phases structure -> adapter -> precision: change the ``LanguageModel`` before training."""
        return model

    def groups(self, model: Any) -> list[Group]:
        """Rules about parameters of the edited ``LanguageModel``; later ones refine earlier ones.

        Asked again after a ``regroup`` signal, and after ``load_state`` on resume: what trains may depend on the state. A
        technique that sends the signal declares ``gives={"regroup"}``.
        """
        return []

    def finish(self, model: Any) -> Any:
        """Chain: turn the trained ``LanguageModel`` into the one to evaluate and save (merge, swap averages in)."""
        return model

    def grow(self, model: Any) -> Growth:
        """``edit`` inside the run, after the technique's own ``grow`` signal: change the structure of the ``LanguageModel``.

        Called again on resume, after ``load_state`` and before the weights come back: the structure must be the same then.
        """
        raise NotImplementedError(f"{type(self).__name__} does not change the model inside a run")

    # -- forward ------------------------------------------------------------------------------------------------
    def embed(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """Chain: change embedding outputs (1, T, D) during training."""
        return embeddings

    def terms(self, forward: Pass, batch: Batch) -> Terms:
        """Sum: further loss terms as (sum, count); names are unique per technique."""
        return {}

    # -- update -------------------------------------------------------------------------------------------------
    def gradients(self, parameters: Parameters, progress: Progress) -> None:
        """Sum of pulls: add to ``.grad`` of the trainable parameters in place, before clipping."""

    def update(self, parameters: Parameters, progress: Progress, backward: Callable[[], None]) -> None:
        """One owner (``exclusive={"update"}``), called with the batch's gradients in ``.grad``, before the pulls.

        It may move the parameters and call ``backward()``: the gradients of the same batch, under the same random numbers, then
        replace those in ``.grad``. It leaves the parameters as it found them, bit for bit.
        """

    def after_update(self, parameters: Parameters, progress: Progress, lr: float) -> None:
        """Chain: change the trainable parameters in place after the optimizer step."""

    # -- control ------------------------------------------------------------------------------------------------
    def begin(self, model: Any, parameters: Parameters) -> None:
        """Once before step 1 (and again on resume, before ``load_state``): keep anchors, baselines, hashes."""

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Signal]:
        """Union: look at the metrics (training every step, ``validation_*`` at evaluations); ask for actions."""
        return []

    def averaged(self, parameters: Parameters) -> Mapping[str, Tensor] | None:
        """Weights to evaluate in place of the trained ones (EMA, SWA), or None."""
        return None

    # -- memory and proof ---------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """Everything to carry over a restart: tensors and JSON values, nested dicts allowed."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` returned."""

    def effect(self) -> Effect:
        """The proof, asked once at the end: what was claimed, the number measured, whether it holds."""
        raise NotImplementedError(f"{type(self).__name__} must prove its effect")
