"""GGUF files become ordinary transformers folders: dequantised once to float32, kept in the user's cache, reused after.

Values are ``scale * code + offset`` in up to 16 bits of mantissa, so bf16 or fp16 would change them; float32 keeps them exact.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from uplift.core.errors import ModelError, Place
from uplift.core.storage import DamagedFiles, commit_directory, read_manifest
from uplift.data.packages import cache_folder
from uplift.model.gguf_header import check_gguf
from uplift.model.identity import hash_of_file

CONVERSION = 1
"""Raise it when the conversion changes, and older results are made again."""


def converted(path: Path) -> Path:
    """The transformers folder made from a GGUF file; the first call converts (some 20 s for 135M parameters).

    Raises ModelError when the file is not sound or its architecture unknown, ResourceError when the cache is full.
    """
    header = check_gguf(path)
    digest = hash_of_file(path)
    folder = cache_folder() / "converted" / digest[:16]
    meta = {"source": path.name, "source_sha256": digest, "conversion": CONVERSION}
    if not _is_current(folder, meta):
        needed = sum(4 * _elements(tensor.shape) for tensor in header.tensors)
        try:
            commit_directory(folder, lambda target: _convert(path, target), meta, needed_bytes=needed)
        except (ValueError, KeyError, TypeError, NotImplementedError, RuntimeError) as error:
            why = f"{header.values.get('general.architecture')}: {str(error).splitlines()[0] if str(error) else error!r}"
            fix = "take a safetensors version of the model"
            raise ModelError("this GGUF model cannot be converted", where=Place(file=str(path)), why=why, fix=fix) from error
    return folder


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _is_current(folder: Path, meta: dict[str, object]) -> bool:
    try:
        manifest = read_manifest(folder)
        sizes = {name: (folder / name).stat().st_size for name in manifest.files}
    except (DamagedFiles, OSError):
        return False
    return dict(manifest.meta) == meta and all(sizes[name] == record.size for name, record in manifest.files.items())


def _convert(path: Path, target: Path) -> None:
    """Write ``target`` as plain safetensors with the tokenizer and chat template of the GGUF file."""
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(path.parent),
        "gguf_file": path.name,
        "local_files_only": True,
    }
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar covers a tenth of the work
        quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    settings = quantized.config.to_dict()
    settings.pop("quantization_config", None)  # transformers refuses to save a model that has been quantized
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantized.state_dict(), strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config = quantized.generation_config
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)
