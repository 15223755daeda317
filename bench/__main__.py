"""``python -m bench``: the command line of the benchmark."""

from __future__ import annotations

import argparse
import sys


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Uplift against other trainers, in one table.")
    parser.add_argument(
        "--only", choices=("full", "lora", "top", "distill", "pretrain"), help="one kind of training (default: all)"
    )
    parser.add_argument("--peer", metavar="NAME", help="only peers whose name contains this")
    parser.add_argument("--quick", action="store_true", help="one counted step in place of three: rough")
    parser.add_argument("--steps", type=int, default=None, metavar="N", help="counted steps")
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="default: all cores")
    parser.add_argument(
        "--tiny", action="store_true", help="a toy shape: checks the benchmark itself, its numbers mean nothing"
    )
    parser.add_argument("--verbose", action="store_true", help="let the workers print")
    parser.add_argument("--name", default=None, help="name of the file under bench/results")
    return parser.parse_args()


def main() -> int:
    """Run the benchmark. Exit code 0: all bars met; 1: some missed, or a peer could not run."""
    options = arguments()
    from bench.training import RESULTS, run  # after the options, so that --help needs no torch

    counted = options.steps or (1 if options.quick else 3)
    name = options.name or ("tiny" if options.tiny else options.only if options.only in ("pretrain", "distill") else "training")
    outcome = run(
        only=options.only,
        peer=options.peer,
        counted=counted,
        threads=options.threads,
        tiny=options.tiny,
        verbose=options.verbose,
        path=RESULTS / f"{name}.json",
    )
    return 0 if outcome.reached else 1


if __name__ == "__main__":
    sys.exit(main())
