"""A fork server: imports torch and Uplift once, then forks one child per case. It never computes anything itself.

One JSON object a line on stdin, one answer a line on stdout::

    {"case": "train", "arguments": {...}, "log": "/path"}  ->  {"pid": 123}
    {"wait": 123}                                          ->  {"code": -9}     (negative: ended by that signal)
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

import torch
from tests.faults import children
from transformers.conversion_mapping import get_checkpoint_conversion_mapping


def child(case: str, arguments: dict[str, Any], log: str) -> int:
    """Run one case with its output in ``log``; returns its exit code (99: a bug, with a traceback in the log)."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        return int(getattr(children, case)(**arguments))
    except BaseException:
        traceback.print_exc()
        return 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def serve() -> None:
    """Answer until stdin ends."""
    torch.set_num_threads(1)
    for kind in ("llama", "bert"):  # built on first use otherwise, in every child again
        get_checkpoint_conversion_mapping(kind)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                os._exit(child(request["case"], request["arguments"], request["log"]))
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
