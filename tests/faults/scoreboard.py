"""``python -m tests.faults.scoreboard [--all]``: run the fault tests, and write what they counted into the documentation.

The numbers go to ``docs/scoreboard.json``, the table made of them into ``docs/reliability.md``. ``--all`` adds the slow tier.
``--table`` only makes the table again.
"""

from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import uplift

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "docs" / "scoreboard.json", ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- scoreboard -->", "<!-- end of scoreboard -->"
FAULTS = {
    "F1": "SIGKILL at a random instant, half of them inside a save",
    "F2": "crash at a call to the disk during a save, replacement, pruning or recovery",
    "F3": "three SIGKILLs in one run, also during the restart",
    "F4": "full, failing or limited disk",
    "F6": "bit flips, missing, cut, swapped and foreign files in a checkpoint",
    "F8": "continuing with something else than the run was started with",
    "F9": "NaN or infinity in loss, gradient or weight",
    "F11": "SIGTERM, SIGINT, SIGHUP, a second SIGINT",
    "F12": "memory runs out in a step",
    "F14": "what must not matter: saving, looking, micro-batches",
    "FP": "two processes, one killed, stopped or missing at the restart",
}
MODULES = {
    "tests/faults/test_kill.py": "F1",
    "tests/core/test_storage.py": "F2",
    "tests/faults/test_disk_full.py": "F4",
    "tests/faults/test_damage.py": "F6",
    "tests/faults/test_identity.py": "F8",
    "tests/faults/test_numerics.py": "F9",
    "tests/faults/test_signals.py": "F11",
    "tests/faults/test_memory.py": "F12",
    "tests/faults/test_determinism.py": "F14",
    "tests/faults/test_processes.py": "FP",
}


class Counter:
    """A pytest plugin that adds up cases: a test counts as one unless it records ``cases`` (and another ``fault``)."""

    def __init__(self) -> None:
        self.rows = {fault: {"passed": 0, "failed": 0, "seconds": 0.0} for fault in FAULTS}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after each phase of each test."""
        module = report.nodeid.partition("::")[0]
        if module not in MODULES or (report.when != "call" and not report.failed):
            return
        recorded = dict(report.user_properties)
        row = self.rows[str(recorded.get("fault", MODULES[module]))]
        row["seconds"] += report.duration
        if report.passed:
            row["passed"] += int(str(recorded.get("cases", 1)))
        elif report.failed:
            row["failed"] += 1


def count(everything: bool) -> dict[str, Any]:
    """Run the tests; returns the content of ``scoreboard.json``."""
    counter = Counter()
    tier = "not gpu" if everything else "not slow and not gpu"
    code = pytest.main(["-q", "-m", tier, *MODULES], plugins=[counter])
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "tier": "all" if everything else "fast",
        "exit_code": int(code),
        "machine": f"{platform.system()} {platform.machine()}, CPU",
        "versions": {"uplift": uplift.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "faults": {fault: {**row, "seconds": round(row["seconds"], 1)} for fault, row in counter.rows.items()},
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        f"{results['date']}, {results['tier']} tier, {results['machine']}; {versions}.",
        "",
        "| id | fault | cases passed | failed | seconds |",
        "|---|---|---:|---:|---:|",
    ]
    for fault, row in results["faults"].items():
        total = row["passed"] + row["failed"]
        lines.append(f"| {fault} | {FAULTS[fault]} | {row['passed']} of {total} | {row['failed']} | {row['seconds']:.0f} |")
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Run, or with ``--table`` only draw; returns an exit code."""
    if "--table" not in words:
        RESULTS.write_text(json.dumps(count("--all" in words), indent=1) + "\n")
    results = json.loads(RESULTS.read_text())
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.partition(END)[2]}")
    return int(results["exit_code"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
