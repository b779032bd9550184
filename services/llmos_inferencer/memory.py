"""What this process has resident, and how it gives memory back."""

import ctypes
import gc
import os
import resource
from pathlib import Path

_STATM = Path("/proc/self/statm")


def resident() -> int:
    """Resident bytes of this process; where there is no /proc, the most it ever had."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def give_back() -> None:
    """Return freed memory to the system; without it glibc keeps about half of an unloaded session."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
