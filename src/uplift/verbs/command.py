"""The command that is being carried out, as a person would type it again."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def command_line(verb: str) -> str:
    """``uplift VERB ...`` with this process's arguments; from Python the verb alone."""
    if Path(sys.argv[0]).name in ("uplift", "__main__.py") and len(sys.argv) > 1:
        return shlex.join(["uplift", *sys.argv[1:]])
    return f"uplift {verb}"
