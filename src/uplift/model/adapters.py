"""Saved adapters of one opened model: load several, switch between them, combine them into one, fold one into the weights.

All of it is PEFT's format, so that what is written here loads in plain PEFT, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import save_file
from torch import Tensor

from uplift.core.errors import ModelError, Place
from uplift.model.files import check_adapter_folder, read_json
from uplift.model.language_model import LanguageModel
from uplift.model.quiet import quiet

Method = Literal["cat", "svd", "linear"]
CONFIG = "adapter_config.json"
PLACES = ("", "adapter", "model/adapter")
"""Where an adapter stands: its own folder, beside a run's model, or inside a saved model."""
TAKEN_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts that change the base: an adapter saved with one of these belongs to a base that nobody has."""
ADAPTER, COMBINED = "default", "combined"
"""Names inside PEFT: of an adapter that nobody named, and of one made from several."""


@dataclass(frozen=True)
class SavedWeights:
    """An adapter apart from its model: PEFT's configuration and tensors, on the CPU."""

    config: PeftConfig
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, peft: PeftModel, adapter: str = ADAPTER) -> SavedWeights:
        """A copy of an adapter inside ``peft``."""
        config = deepcopy(peft.peft_config[adapter])
        config.inference_mode = True
        tensors = get_peft_model_state_dict(peft, adapter_name=adapter)
        return cls(config, {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()})

    def save(self, directory: Path) -> None:
        """Write a folder that plain PEFT loads; meant as the ``write`` callback of ``storage.commit_directory``."""
        save_file(self.tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        self.config.save_pretrained(str(directory))


def find_adapter(path: Path) -> Path:
    """The adapter's folder for a path that names it, a run or a saved model. Raises ModelError when there is none."""
    for place in PLACES:
        if (path / place / CONFIG).is_file():
            return path / place
    fix = f"give a folder with {CONFIG}, or a run that trained an adapter"
    raise ModelError(f"`{path}` holds no adapter", where=Place(file=str(path)), fix=fix)


def task_type(folder: Path) -> str:
    """What an adapter was trained for, in PEFT's words: ``CAUSAL_LM``, ``SEQ_CLS``, ... Raises ModelError."""
    return str(read_json(folder / CONFIG).get("task_type") or "CAUSAL_LM")


def load_adapters(model: LanguageModel, folders: Mapping[str, Path]) -> None:
    """Load saved adapters under the given names into a model without one; the first becomes the active one.

    Raises ModelError when a folder is not safe, does not fit the model, or holds an adapter of a changed base.
    """
    if model.peft is not None:
        raise ModelError("the model has an adapter already", fix="open the plain model")
    for name, folder in folders.items():
        check_adapter_folder(folder)
        _refuse_changed_base(folder)
        try:
            with quiet():
                _load(model, name, folder)
        except Exception as error:  # PEFT raises anything on an adapter that does not fit
            why = " ".join(str(error).split())[:300] or type(error).__name__
            where = Place(file=str(folder))
            raise ModelError(
                "the adapter does not fit the model", where=where, why=why, fix="give the model it was trained on"
            ) from error
    use_adapter(model, next(iter(folders)))


def _load(model: LanguageModel, name: str, folder: Path) -> None:
    if model.peft is None:
        pretrained = cast(Any, model.pretrained)
        model.peft = PeftModel.from_pretrained(pretrained, str(folder), adapter_name=name, local_files_only=True)
        model.peft.eval()
    else:
        model.peft.load_adapter(str(folder), adapter_name=name, local_files_only=True)


def _refuse_changed_base(folder: Path) -> None:
    start = str(read_json(folder / CONFIG).get("init_lora_weights", "")).lower()
    if start.startswith(TAKEN_FROM_BASE):
        raise ModelError(
            f"the adapter was saved with its start `{start}` still taken out of the base",
            where=Place(file=str(folder / CONFIG), key="init_lora_weights"),
            why="added to the original model it would not give what was trained",
            fix="save it as a plain adapter (Uplift does; in PEFT: `path_initial_model_for_weight_conversion`)",
        )


def _adapted(model: LanguageModel, *names: str) -> PeftModel:
    """The model's PEFT view, once it is sure that the named adapters are in it."""
    known = list(model.peft.peft_config) if model.peft is not None else []
    for name in names:
        if name not in known:
            listed = ", ".join(f"`{other}`" for other in known) or "none"
            raise ModelError(f"there is no adapter `{name}`", why=f"loaded: {listed}", fix="load it first")
    assert model.peft is not None
    return model.peft


def use_adapter(model: LanguageModel, name: str) -> None:
    """Make one loaded adapter the only active one. Raises ModelError for an unknown name."""
    _adapted(model, name).set_adapter(name)
    model.pretrained.requires_grad_(False)


@contextmanager
def without_adapter(model: LanguageModel) -> Iterator[None]:
    """The base model as it is under its adapters.

    That is the original model for saved adapters, and not while one trains whose start changed the base (``pissa``, ...).
    """
    if model.peft is None:
        yield
        return
    trained = {parameter: parameter.requires_grad for parameter in model.pretrained.parameters()}
    try:
        with model.peft.disable_adapter():
            yield
    finally:  # PEFT lets all adapters train again
        for parameter, trains in trained.items():
            parameter.requires_grad_(trains)


def combine_adapters(
    model: LanguageModel, weights: Mapping[str, float], method: Method = "cat", *, rank: int | None = None
) -> str:
    """Make one LoRA adapter from several loaded ones, activate it and return its name.

    ``cat``: exactly the weighted sum of the changes, the ranks add up. ``svd``: the best approximation of that sum at ``rank``
    (default: the largest of the ranks). ``linear``: sums A and B apart, a rough guess that needs equal ranks.
    Raises ModelError when they cannot be combined.
    """
    peft = _adapted(model, *weights)
    for name in weights:
        _refuse_uncombinable(peft, name)
        _name_layers(peft, name)
    try:
        with quiet():
            cast(Any, peft).add_weighted_adapter(
                list(weights),
                list(weights.values()),
                COMBINED,
                combination_type=method,
                svd_rank=rank,
                svd_full_matrices=False,
            )
    except Exception as error:  # PEFT raises ValueError, torch RuntimeError on shapes
        why = " ".join(str(error).split())[:300]
        raise ModelError(f"`{method}` cannot combine these adapters", why=why, fix="use `cat`, or `svd` with a rank") from error
    if not all(tensor.isfinite().all() for tensor in get_peft_model_state_dict(peft, adapter_name=COMBINED).values()):
        fix = "use `cat`, or check the adapters"
        raise ModelError("the combined adapter holds numbers that are not finite", why=f"`{method}` made them", fix=fix)
    use_adapter(model, COMBINED)
    return COMBINED


def _refuse_uncombinable(peft: PeftModel, name: str) -> None:
    config: Any = peft.peft_config[name]
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise ModelError(f"`{name}` is a {kind} adapter", why="only LoRA changes can be added up", fix="leave it out")
    if config.use_dora:
        why = "the row lengths that DoRA trains do not add up"
        raise ModelError(f"`{name}` is a DoRA adapter", why=why, fix="fold it into the weights, alone")
    if config.modules_to_save:
        why = f"it brings its own {', '.join(sorted(config.modules_to_save))}, and there can be only one"
        raise ModelError(f"`{name}` has a head of its own", why=why, fix="fold one of them into the weights, alone")


def _name_layers(peft: PeftModel, name: str) -> None:
    """Spell out which layers an adapter has: PEFT gives the combined one the first one's rules about layers and scale."""
    config: Any = peft.peft_config[name]
    root: Any = peft.get_base_model()
    config.target_modules = {key for key, m in root.named_modules() if isinstance(m, LoraLayer) and name in m.lora_A}
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.use_rslora, config.init_lora_weights = False, True  # the layers keep the scale they have


def fold_adapter(model: LanguageModel, name: str) -> None:
    """Add an adapter to the weights, in their own float32, and take all adapter layers out. Raises ModelError."""
    peft: Any = _adapted(model, name)
    try:
        with quiet():
            merged = peft.merge_and_unload(adapter_names=[name])
    except Exception as error:  # prompt-like adapters have no weights to add
        raise ModelError(f"`{name}` cannot go into the weights", why=str(error), fix="keep it as an adapter") from error
    model.pretrained, model.peft = merged.requires_grad_(True).eval(), None
