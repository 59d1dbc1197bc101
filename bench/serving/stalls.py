"""How often a core is taken away from a program: by the hypervisor, or by other work.

Light to import, for the processes that spin, one a core.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

from fleet.measured import Stalls

_STALL_S = 0.0002
"""A longer gap between two looks at the clock is a core that was taken away."""


def probe(seconds: float) -> Stalls:
    """How often each core that this process may use is taken from a program that only spins."""
    cores = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(cores), mp_context=context) as pool:
        found = [pause for of in pool.map(spin, cores, [seconds] * len(cores)) for pause in of]
    return Stalls(len(found) / (seconds * len(cores)), tuple(round(pause, 6) for pause in found))


def spin(core: int, seconds: float) -> list[float]:
    """Pauses in seconds of a program that looks at the clock on one core for so long."""
    os.sched_setaffinity(0, {core})
    gc.disable()
    pauses = []
    last = began = time.perf_counter()
    while last - began < seconds:
        now = time.perf_counter()
        if now - last > _STALL_S:
            pauses.append(now - last)
        last = now
    return pauses
