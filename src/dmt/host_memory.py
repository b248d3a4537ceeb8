"""Memory of the host for large tensors."""

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BLOCK_BYTES = 2**29
_OLDER_KEPT_BLOCK_BYTES = 2**25  # the most that glibc before 2.35 takes
KEPT_BYTES = 2**30
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def reuse_host_memory() -> None:
    """Keep freed memory for the next step, and put tensors into huge pages; the command calls it, a script may.

    A training step on a CPU frees tensors of many megabytes that the next step needs again. glibc gives such blocks
    back to the system, and each of their pages is then a fault of the next step; here the process keeps those of up to
    512 MiB, and so may hold as much as it ever had in use at once. In huge pages (Linux, where
    ``transparent_hugepage`` is ``madvise`` or ``always``) the rows of embedding tables are found with fewer misses of
    the processor's address cache as well.

    Call it before torch is imported, which asks once whether to use huge pages, in the environment variable
    ``THP_MEM_ALLOC_ENABLE``. That, and glibc's own settings, stay as they are where they are set.
    """
    os.environ.setdefault(_HUGE_PAGES, "1")
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if set_option is None or _has_own_settings():
        return
    # The second option alone would do harm: after it glibc returns all blocks above 128 KiB.
    if any(set_option(_M_MMAP_THRESHOLD, size) for size in (KEPT_BLOCK_BYTES, _OLDER_KEPT_BLOCK_BYTES)):
        set_option(_M_TRIM_THRESHOLD, KEPT_BYTES)


def _has_own_settings() -> bool:
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    return any(name in os.environ for name in names) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
