"""How many processes of a check are worth running at once."""

from __future__ import annotations

import os
import sys


def cores() -> int:
    """The cores that this process has for itself.

    Workers that share a machine are each told their share (`OMP_NUM_THREADS`); else it is all cores
    the process may run on.
    """
    there = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    share = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(share), there) if share.isdecimal() and int(share) else there
