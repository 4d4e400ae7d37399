"""The machine a benchmark ran on, for its printed table."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> str:
    """Processor name, cores and system."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"
