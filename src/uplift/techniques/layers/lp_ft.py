"""LP-FT: a new classification head trains alone first (linear probe), then everything trains at a lower rate (fine-tuning).

When: a new head on a good pretrained model: a random head sends wrong gradients into features that were right.
When not: language heads, which are pretrained and often the embedding table itself; tasks whose input the model never saw.
Paper: Kumar et al. 2022, Fine-Tuning Can Distort Pretrained Features and Underperform Out-of-Distribution.
Cost: memory that of full fine-tuning from the second phase on; time less (the first phase has almost no backward pass).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from uplift.core.capability import Capabilities
from uplift.core.errors import RecipeError
from uplift.core.values import Group, Progress, Signal
from uplift.techniques.partial_training import CHOICE, FROZEN_CLASH, PROMPT_CLASH, TurnTraining
from uplift.techniques.selection import class_head

LANGUAGE_HEAD = (
    "a language head is pretrained already, and where it is tied, training it alone would move the model's own input",
    "use `task.head: classifier`, or `gradual_unfreezing`, which leaves tied embeddings for last",
)


class LpFt(TurnTraining):
    """Trains the classification head for a share of the run, then all that can train, at ``rate`` times ``train.lr``."""

    use: Literal["lp_ft"] = "lp_ft"
    share: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of the run that trains the head alone (0: off, everything trains from the start at the full rate)."""
    rate: Annotated[float, Field(gt=0, le=10)] = 0.02
    """Rate of the second phase in units of `train.lr`; 0.02 is that of full fine-tuning over that of a head."""

    claim: ClassVar[str] = "the body stayed bit-equal while the head learned"
    capabilities: ClassVar[Capabilities] = Capabilities(
        needs=frozenset({"training", "class_head"}),
        gives=frozenset({"regroup", "head_first"}),
        exclusive=frozenset({CHOICE}),
        conflicts={"frozen_layers": FROZEN_CLASH, "language_head": LANGUAGE_HEAD, "virtual_prompt": PROMPT_CLASH},
    )
    off: ClassVar[Mapping[str, Any]] = {"share": 0.0}

    def training(self, model: Any) -> frozenset[str]:
        """The head, then everything. Raises RecipeError for a language head, or one that is not recognised."""
        if model.head_kind == "language":
            raise RecipeError("`lp_ft` needs a classification head", why=LANGUAGE_HEAD[0], fix=LANGUAGE_HEAD[1])
        head = class_head(self.eligible(model))
        if not head:
            raise RecipeError("`lp_ft` finds no classification head in this model", fix="use `task.head: classifier`")
        return self.eligible(model) if self.share == 0 or self._turn else head

    def groups(self, model: Any) -> list[Group]:
        """The two phases; the second has its own rate."""
        rules = super().groups(model)
        return [*rules, Group(self.eligible(model), lr_multiplier=self.rate)] if self._turn else rules

    def observe(self, progress: Progress, metrics: Mapping[str, float]) -> list[Signal]:
        """Begin the second phase when the first one's share is over."""
        if self._turn or self.share == 0 or progress.fraction < self.share - 1e-9:
            return []
        return self.turn_to(1, f"the head has had its {100 * self.share:.3g} % of the run: everything trains")

    def detail(self) -> str:
        """The rates of the two phases."""
        return f"then all at {self.rate:.3g} of the rate" if self._turn else ""
