"""Opens any model a recipe can name as a ``LanguageModel``: a folder, a hub id, a GGUF file, a package.

Files are judged before a library reads them (``files``); no code from a model's repository is ever run.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from uplift.core.errors import ModelError, Place, RecipeError, ResourceError, UpliftError
from uplift.core.recipe import AnyModel, BlankModel, GgufModel, HfModel, Model, PackageModel, StageModel
from uplift.core.values import derive_seed
from uplift.data.packages import CATALOGUE, fetch
from uplift.model.backbone import settle
from uplift.model.bottleneck import FOLDER, TENSORS, load_bottlenecks
from uplift.model.files import check_model_folder, weight_files
from uplift.model.gguf import converted
from uplift.model.heads import initialise
from uplift.model.identity import hash_of_file, identity_of
from uplift.model.language_model import ADAPTER, LanguageModel
from uplift.model.packed import float_state, read_packed, read_settings, start_int8
from uplift.model.quiet import quiet
from uplift.model.virtual_prompt import is_virtual_prompt, read_virtual_prompt

Kind = Literal["causal", "encoder"]
HeadKind = Literal["language", "class"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
HUB_SKIPPED = ["*/*", "*.bin", "*.pt", "*.gguf", "*.onnx"]
OFFLINE_HINT = "for a model that needs no hub, write `model: {use: package, name: smollm2-135m-instruct}`"
PACKAGED_MODELS = {"smollm2-135m-instruct", "minilm-l6"} & set(CATALOGUE)


@dataclass(frozen=True)
class Located:
    """A transformers folder on this machine, the name it was asked by, and the files its weights are known by."""

    folder: Path
    name: str
    weights: tuple[Path, ...]


def open_model(
    spec: Model,
    *,
    head: HeadKind,
    labels: Sequence[str] = (),
    base_dir: Path,
    device: torch.device,
    seed: int,
) -> LanguageModel:
    """The model with float32 weights on ``device``, in eval mode, its attention packed where the architecture allows.

    ``labels`` name the classes of a class head (empty: those the model was saved with). A head for other labels is new,
    drawn from ``seed``. Raises ModelError when the files are not acceptable or do not fit the head, ResourceError when
    they cannot be had now.
    """
    with quiet():
        located = locate(spec, base_dir)
        config = _configuration(located.folder)
        kind = kind_of(config, located.folder)
        if kind == "encoder" and head == "language":
            why = f"{config.model_type} is an encoder: it fills gaps and does not continue text"
            raise ModelError("this model has no language head to train", why=why, fix="use `task.head: classifier`")
        notes: list[str] = []
        tokenizer = load_tokenizer(located.folder, notes)
        if config.pad_token_id is None:
            config.pad_token_id = tokenizer.pad_token_id
        names = tuple(labels) or _saved_labels(config)
        load = _load_class if head == "class" else _load_language
        pretrained = load(located.folder, config, names, seed, notes).float().to(device).eval()
        _check_vocabulary(pretrained, tokenizer, located.folder)
        layout = settle(pretrained)
        if not layout.packed:
            notes.append(f"{config.model_type} runs padded: its attention cannot be packed")
        model = LanguageModel(
            pretrained,
            tokenizer,
            layout,
            kind=kind,
            head_kind=head,
            labels=names if head == "class" else tuple(labels),
            identity=identity_of(located.name, located.weights, located.folder, tokenizer),
            notes=notes,
        )
        model = _with_bottlenecks(_with_adapter(model, located.folder / ADAPTER), located.folder / FOLDER).eval()
        return _with_grid(model, located.folder)


def model_kind(spec: AnyModel, base_dir: Path) -> Kind:
    """Whether a recipe's model is a decoder or an encoder, without reading its weights. Raises as ``open_model`` does."""
    if isinstance(spec, BlankModel):
        return "causal"
    with quiet():
        folder = locate(spec, base_dir).folder
        return kind_of(_configuration(folder), folder)


def resolve_model(text: str, base_dir: Path = Path()) -> Model:
    """What a user means by ``text``: a run folder, a model folder, a GGUF file, a packaged model, or a hub id.

    Raises ModelError with the nearest packaged name when it is none of these.
    """
    path = base_dir / Path(text).expanduser()
    if text.endswith(".gguf"):
        return GgufModel(path=str(path))
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return HfModel(id=str(folder))
    if text in PACKAGED_MODELS:
        return PackageModel(name=text)
    near = difflib.get_close_matches(text, PACKAGED_MODELS, n=1)
    if HUB_ID.fullmatch(text) and not near and not path.exists():
        return HfModel(id=text)
    packaged = f"one of the packaged models ({', '.join(sorted(PACKAGED_MODELS))})"
    fix = f"did you mean `{near[0]}`?" if near else f"give a run or model folder, a .gguf file, a hub id, or {packaged}"
    raise ModelError(f"`{text}` is not a model", why="it holds no config.json" if path.exists() else "", fix=fix)


def open_asked(spec: Model, auto: Any, base_dir: Path, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model of another kind that is only asked (``auto``: ``AutoModelForMaskedLM``, ``AutoModelForSeq2SeqLM``), and its
    tokenizer. Raises ModelError, ResourceError.
    """
    with quiet():
        located = locate(spec, base_dir)
        tokenizer = load_tokenizer(located.folder, [])
        model, missing = _load(auto, located.folder, _configuration(located.folder))
        if missing:
            _refuse_missing(located.folder, missing)
        return model.float().to(device).eval().requires_grad_(False), tokenizer


def asked_kind(spec: Model, base_dir: Path) -> Literal["causal", "masked", "translating"]:
    """What a model can be asked for: to go on, to fill gaps, or to turn one text into another. Raises ModelError."""
    with quiet():
        folder = locate(spec, base_dir).folder
        config = _configuration(folder)
    if getattr(config, "is_encoder_decoder", False):
        return "translating"
    if any("MaskedLM" in str(name) for name in config.architectures or ()):
        return "masked"
    if kind_of(config, folder) == "causal":
        return "causal"
    why = f"{config.model_type} was saved without a head that fills gaps"
    raise ModelError("this model writes nothing", where=Place(str(folder)), why=why, fix="name a model that writes")


# -- where it is -------------------------------------------------------------------------------------------------------
def locate(spec: Model, base_dir: Path) -> Located:
    """The folder of a model, fetched or converted if need be, with its files judged. Raises ModelError, ResourceError."""
    if isinstance(spec, HfModel):
        folder, name = _hf_folder(spec, base_dir), spec.id
        check_model_folder(folder)
        return Located(folder, name, tuple(weight_files(folder)))
    if isinstance(spec, StageModel):
        fix = "give a model of its own, or put the recipe into a list of `stages:`"
        raise RecipeError(f"there is no stage `{spec.name}`", where="model", why="this recipe stands alone", fix=fix)
    name = spec.name if isinstance(spec, PackageModel) else spec.path
    path = fetch(spec.name) if isinstance(spec, PackageModel) else base_dir / Path(spec.path).expanduser()
    if path.is_dir():
        check_model_folder(path)
        return Located(path, name, tuple(weight_files(path)))
    folder = converted(path)
    check_model_folder(folder)
    return Located(folder, name, (path,))


def _hf_folder(spec: HfModel, base_dir: Path) -> Path:
    path = base_dir / Path(spec.id).expanduser()
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    where = Place(key="model.id")
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            fix = "give the base model it was trained on; a folder with the base and `adapter/` inside opens as one"
            raise ModelError("this is an adapter without its base model", where=Place(file=str(path)), fix=fix)
        raise ModelError("the folder has no config.json", where=Place(file=str(path)), fix="give a transformers model folder")
    if not HUB_ID.fullmatch(spec.id):
        raise ModelError(
            f"there is no folder `{spec.id}`", where=where, fix="check the path, or give a hub id like `owner/name`"
        )
    return _download(spec)


def _download(spec: HfModel) -> Path:
    """The hub snapshot, from the local cache when it is there. Only files that are ever read are fetched."""
    try:
        found = snapshot_download(spec.id, revision=spec.revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_SKIPPED)
    except Exception as error:  # the hub client raises its own, httpx's and the system's errors
        raise ResourceError(
            f"`{spec.id}` is not on this machine and cannot be fetched",
            where="model.id",
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix=f"check the name and the network, or give a local folder; {OFFLINE_HINT}",
        ) from error
    return Path(found)


# -- what it is --------------------------------------------------------------------------------------------------------
def kind_of(config: PreTrainedConfig, folder: Path) -> Kind:
    """Whether the configuration is of a decoder or an encoder. Raises ModelError for anything else."""
    where = Place(file=str(folder / "config.json"), key="model_type")
    if getattr(config, "is_encoder_decoder", False):
        fix = "use a decoder (Llama, Qwen, GPT-2, ...) or an encoder (BERT, RoBERTa, ...)"
        raise ModelError(f"{config.model_type} is an encoder-decoder, which is not supported", where=where, fix=fix)
    decodes = bool(getattr(config, "is_decoder", False)) or any("CausalLM" in name for name in config.architectures or ())
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decodes:
        return "encoder"
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise ModelError(f"`{config.model_type}` is not a text decoder or encoder", where=where, fix="use another model")


def _configuration(folder: Path) -> PreTrainedConfig:
    try:
        return cast(PreTrainedConfig, AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
    except Exception as error:  # libraries raise anything on a strange configuration
        raise _unreadable(folder / "config.json", error) from error


def load_tokenizer(folder: Path, notes: list[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder whose files were judged, with a padding token; ``notes`` gets what was decided."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # libraries raise anything on a strange tokenizer
        raise _unreadable(folder, error, what="the tokenizer") from error
    if tokenizer.pad_token_id is None:
        # Never a new token: that would change the embedding table.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        notes.append(f"the tokenizer has no padding token: {tokenizer.pad_token!r} is used for it")
    return cast(PreTrainedTokenizerBase, tokenizer)


def _check_vocabulary(pretrained: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    rows = int(cast(Any, pretrained.get_input_embeddings()).weight.shape[0])
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {rows}",
            where=Place(file=str(folder)),
            fix="use the tokenizer that belongs to the model",
        )


def _saved_labels(config: PreTrainedConfig) -> tuple[str, ...]:
    names = cast(dict[int, str], config.id2label or {})
    return tuple(str(names[index]) for index in sorted(names))


# -- weights -----------------------------------------------------------------------------------------------------------
def _load(auto: Any, folder: Path, config: PreTrainedConfig, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """(model, names of tensors that the files did not give). Draws of new weights leave the global generator alone."""
    try:
        source: dict[str, Any] = {"pretrained_model_name_or_path": folder, "local_files_only": True, "trust_remote_code": False}
        settings = read_settings(folder)
        if settings is not None:
            state = float_state(settings, *read_packed(folder, settings))
            source = {"pretrained_model_name_or_path": None, "state_dict": state}
            auto = auto._model_mapping[type(config)]  # the class itself: the factory wants files
        with torch.random.fork_rng(devices=[]):
            model, info = auto.from_pretrained(
                **source, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
    except Exception as error:  # libraries raise anything on strange weights
        raise _unreadable(folder, error, what="the model") from error
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    return model, set(info["missing_keys"]) | mismatched


def _load_language(
    folder: Path, config: PreTrainedConfig, labels: Sequence[str], seed: int, notes: list[str]
) -> PreTrainedModel:
    model, missing = _load(AutoModelForCausalLM, folder, config)
    if missing:
        _refuse_missing(folder, missing)
    return model


def _load_class(folder: Path, config: PreTrainedConfig, labels: Sequence[str], seed: int, notes: list[str]) -> PreTrainedModel:
    saved = _saved_labels(config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    model, missing = _load(AutoModelForSequenceClassification, folder, config, ignore_mismatched_sizes=True)
    inside = f"{model.base_model_prefix}."
    body = {name for name in missing if name.startswith(inside) and ".pooler." not in f".{name}"}
    if body:
        _refuse_missing(folder, body)
    # The right number of classes is not enough: rows trained for other labels, or these in another order, are not kept.
    final = {name for name, _ in model.named_parameters() if not name.startswith(inside)} if saved != tuple(labels) else set()
    fresh = {name: parameter for name, parameter in model.named_parameters() if name in missing | final}
    if fresh:
        initialise(fresh, derive_seed(seed, "head"))
        notes.append(f"new classification head for {len(labels)} labels: {', '.join(sorted(fresh))}")
    return model


def _with_adapter(model: LanguageModel, folder: Path) -> LanguageModel:
    """The model with the adapter saved beside it merged in: what comes after sees plain weights."""
    if not folder.is_dir():
        return model
    if is_virtual_prompt(folder):
        model.virtual = read_virtual_prompt(folder, model.backbone)
        model.identity["adapter_sha256"] = hash_of_file(folder / "adapter_model.safetensors")
        model.notes = (*model.notes, f"{model.virtual_length} virtual tokens saved with the model stand before every document")
        return model
    try:
        adapted = PeftModel.from_pretrained(model.pretrained, str(folder), is_trainable=False, local_files_only=True)
        merged = cast(Any, adapted).merge_and_unload()
    except Exception as error:  # PEFT raises anything on an adapter that does not fit
        raise _unreadable(folder, error, what="the adapter") from error
    model.pretrained = merged.requires_grad_(True).eval()
    model.identity["adapter_sha256"] = hash_of_file(folder / "adapter_model.safetensors")
    model.notes = (*model.notes, "the adapter saved with the model is merged into its weights")
    return model


def _with_bottlenecks(model: LanguageModel, folder: Path) -> LanguageModel:
    """The model with the bottleneck adapters saved beside it: they stay, since they cannot be merged."""
    if load_bottlenecks(model.pretrained, folder):
        model.identity["adapter_sha256"] = hash_of_file(folder / TENSORS)
        model.notes = (*model.notes, "the bottleneck adapters saved with the model are in it")
    return model


def _with_grid(model: LanguageModel, folder: Path) -> LanguageModel:
    """What was rounded on disk is known to be; layers that round their inputs as well do so again."""
    settings = read_settings(folder)
    if settings is None:
        return model
    model.grid = settings.grid
    model.notes = (*model.notes, f"the linear weights of the blocks are on disk in {model.grid}; here they are float32")
    if settings.activations == "int8":
        start_int8(model.pretrained, read_packed(folder, settings)[0].layers)
        model.notes = (*model.notes, "on the CPU these layers multiply in 8-bit integers where nothing trains")
    return model


def _refuse_missing(folder: Path, names: set[str]) -> None:
    shown = ", ".join(sorted(names)[:3])
    raise ModelError(
        f"the files lack {len(names)} tensors of the model ({shown}{', ...' if len(names) > 3 else ''})",
        where=Place(file=str(folder)),
        why="the missing parts would be random numbers",
        fix="get the whole model, or one whose configuration fits its weights",
    )


def _unreadable(path: Path, error: Exception, what: str = "the configuration") -> UpliftError:
    if isinstance(error, UpliftError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError(f"{what} does not fit into memory", where=Place(file=str(path)), fix="use a smaller model")
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ModelError(
        f"{what} cannot be opened", where=Place(file=str(path)), why=why, fix="get the model again, or use another"
    )
