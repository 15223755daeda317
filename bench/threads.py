"""``python -m bench.threads``: what waiting threads cost, on a quiet machine and on one whose cores are shared.

Every setting of ``GOMP_SPINCOUNT`` (read by OpenMP when torch is imported) gets a process of its own that trains a small stack
of matrix products and pointwise operations on all cores. Beside it: nothing, or one process per core that counts numbers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

SETTINGS = {"default": None, "20000": "20000", "0": "0"}
SECONDS = 6.0

WORK = """
import time, torch
torch.set_num_threads({threads})
block = lambda: torch.nn.Sequential(torch.nn.Linear(576, 576), torch.nn.SiLU(), torch.nn.LayerNorm(576))
layers = torch.nn.Sequential(*[block() for _ in range(8)])
x = torch.randn(512, 576)
def step():
    layers(x).square().mean().backward()
step()
wall, cpu, count = time.monotonic(), time.process_time(), 0
while time.monotonic() - wall < {seconds}:
    step()
    count += 1
print(1000 * (time.monotonic() - wall) / count, 1000 * (time.process_time() - cpu) / count)
"""


def measure(spin: str | None, threads: int) -> tuple[float, float]:
    """Milliseconds (wall, CPU) a step with this setting."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if spin is not None:
        environment["GOMP_SPINCOUNT"] = spin
    code = WORK.format(threads=threads, seconds=SECONDS)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


def main() -> None:
    """Print the table."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"{threads} threads; milliseconds a step, by the clock and of CPU time")
    print(f"{'GOMP_SPINCOUNT':<16}{'quiet':>18}{'shared cores':>18}")
    for name, spin in SETTINGS.items():
        quiet = measure(spin, threads)
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(threads)]
        time.sleep(0.5)
        try:
            shared = measure(spin, threads)
        finally:
            for other in others:
                other.kill()
                other.wait()
        print(f"{name:<16}{quiet[0]:>8.1f} /{quiet[1]:>7.1f}{shared[0]:>9.1f} /{shared[1]:>7.1f}")


if __name__ == "__main__":
    main()
