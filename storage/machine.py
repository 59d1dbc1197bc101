"""What a figure was measured on: the processor and the versions that decide it."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_ISA = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")


def hardware() -> dict[str, Any]:
    """CPU model, cores and the instruction sets that decide the speed of INT8."""
    cpuinfo = Path("/proc/cpuinfo").read_text("utf-8")
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "isa": [name for name in _ISA if flags and name in flags[1].split()],
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
    }


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
