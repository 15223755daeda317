"""Every error a user can meet: what went wrong, where, why, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where something is: a file position, a recipe key, or both.

    ``line`` and ``column`` count from 1; ``key`` is a dotted recipe key such as ``train.lr``.
    """

    file: str | None = None
    line: int | None = None
    column: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        position = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        return f"{position} ({self.key})" if position and self.key else position or self.key or ""


class UpliftError(Exception):
    """An error with a place and a remedy; the command line prints it without a traceback.

    ``what`` is one sentence, ``why`` the cause in the user's terms, ``fix`` the next thing to do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: Place | str | None = None, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.fix = what, why, fix
        self.where = Place(key=where) if isinstance(where, str) else where

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where and str(self.where) else self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class UsageError(UpliftError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe cannot be carried out as written."""


class RecipeErrors(RecipeError):
    """All problems of one recipe, reported at once."""

    def __init__(self, problems: list[RecipeError]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class DataError(UpliftError):
    """The data cannot be used; the message names file and line."""

    exit_code = 65


class ModelError(UpliftError):
    """A model folder or file cannot be opened safely."""

    exit_code = 65


class ResourceError(UpliftError):
    """Disk, memory or a needed file is missing now; trying again later can work."""

    exit_code = 75


class NumericsError(UpliftError):
    """Training produced numbers that are not finite and the policy says to stop."""


class ProofError(UpliftError):
    """A technique was asked for and did nothing that could be measured."""


class Stopped(UpliftError):
    """A signal asked the run to stop; its state is saved. ``exit_code`` is 128 + signal number."""

    def __init__(self, what: str, signal_number: int) -> None:
        super().__init__(what, fix="run the same command again: it continues from the saved step")
        self.exit_code = 128 + signal_number
