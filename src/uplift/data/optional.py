"""Packages that only some data needs: they are imported where they are used, and one error says how to get them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from uplift.core.errors import UsageError

INSTALL = "pip install 'llm-uplift[{}]'"
EXTRA = INSTALL.format("data")


@contextmanager
def optional(purpose: str, extra: str = "data") -> Iterator[None]:
    """Around the import of an optional package of ``extra``. ``purpose``: what needs it ("reading PDF files")."""
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        what = f"{purpose} needs {package}, which is not installed" if package else f"{purpose} needs more than is installed"
        raise UsageError(what, why="" if package else " ".join(str(error).split()), fix=INSTALL.format(extra)) from error
