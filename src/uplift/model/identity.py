"""Names a model by content: hashes of its weights, tokenizer and chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from uplift.core.storage import file_sha256

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
)


def hash_of_file(path: Path) -> str:
    """sha256 of a file, remembered while its size and modification time stay."""
    status = path.stat()
    return _remembered(str(path.resolve()), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _remembered(path: str, modified: int, size: int) -> str:
    return file_sha256(Path(path))


def hash_of_files(paths: Sequence[Path]) -> str:
    """One sha256 for several files: their own hashes in name order; of one file, its hash."""
    hashes = [hash_of_file(path) for path in sorted(paths)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def identity_of(name: str, weights: Sequence[Path], folder: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What names a model: ``model`` and sha256 sums of its weights, configuration, tokenizer and template (empty without)."""
    template = str(tokenizer.chat_template or "")
    files = [folder / file for file in TOKENIZER_FILES if (folder / file).is_file()]
    return {
        "model": name,
        "weights_sha256": hash_of_files(weights),
        "configuration_sha256": hash_of_file(folder / "config.json") if (folder / "config.json").is_file() else "",
        "tokenizer_sha256": hash_of_files(files) if files else "",
        "template_sha256": hashlib.sha256(template.encode()).hexdigest() if template else "",
    }
