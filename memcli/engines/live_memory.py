"""How many bytes a process, or a graphics card, really holds at this moment.

MXNet takes CPU memory with ``posix_memalign`` of the process's C library and keeps no pool of its
own there, so the C library's books are exact: live bytes, not resident pages, and free of what
the system does with pages in its own time. Costs some ten microseconds a look.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PROBE_BYTES = 48 << 20
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1


class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


class LiveMemory:
    """Reads the bytes in use; ``method`` says how ("mallinfo2", "malloc_info", ...)."""

    def __init__(self, read: Callable[[], int], method: str) -> None:
        self.read = read
        self.method = method


def cpu_memory(allocate: Callable[[int], Any]) -> LiveMemory:
    """The best way that works here to read the bytes this process has allocated.

    Args:
        allocate: ``allocate(n)`` makes the engine hold n bytes for as long as its result lives. A
            way counts as working if it sees that. (It does not where another allocator, such as
            jemalloc, has been put in the C library's place; then the resident pages are all there
            is.)
    """
    for read, method in ((_mallinfo2(), "mallinfo2"), (_malloc_info(), "malloc_info")):
        if read is None:
            continue
        before = read()
        held = allocate(_PROBE_BYTES)
        grown = read() - before
        del held
        if abs(grown - _PROBE_BYTES) < _PROBE_BYTES // 100:
            return LiveMemory(read, method)
    return_pages_at_once()
    return LiveMemory(resident_bytes, "resident")


def gpu_memory(mx: Any, number: int) -> LiveMemory:
    """Bytes in use on graphics card ``number``, by everyone; CUDA counts in blocks of 2 MiB."""

    def read() -> int:
        free, total = mx.context.gpu_memory_info(number)
        return int(total - free)

    return LiveMemory(read, "cudaMemGetInfo")


def resident_bytes() -> int:
    """Bytes of this process that are in main memory now; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def available_bytes() -> int:
    """Memory that a process may still take, the cgroup's limit included."""
    free = 1 << 62
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            free = min(free, int(limit) - used)
    except (OSError, ValueError, IndexError):
        pass
    return free


def limit_growth(size: int) -> None:
    """Has the system refuse this process more than ``size`` bytes beyond what it has now."""
    try:
        status = Path("/proc/self/status").read_text()
        match = re.search(r"^VmData:\s+(\d+) kB", status, re.MULTILINE)
        if match:
            limit = int(match[1]) * 1024 + size
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            if hard == resource.RLIM_INFINITY or limit < hard:
                resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    except (OSError, ValueError):
        pass


def return_pages_at_once() -> None:
    """Has the C library give every freed block of 64 KiB and more back to the system.

    Without this, freed blocks of up to 32 MiB stay resident.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 64 << 10)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 10)
    except (OSError, AttributeError):
        pass


def _mallinfo2() -> Callable[[], int] | None:
    """The counter of glibc 2.33 and newer; ``mallinfo`` of older ones counts in 32 bits."""
    try:
        function = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return None
    function.restype = _Mallinfo2

    def read() -> int:
        info = function()
        return int(info.hblkhd + info.uordblks)

    return read


def _malloc_info() -> Callable[[], int] | None:
    """Any glibc, by the XML that it writes of itself."""
    try:
        libc = ctypes.CDLL(None)
        open_memory, write_info = libc.open_memstream, libc.malloc_info
        close, free = libc.fclose, libc.free
    except (OSError, AttributeError):
        return None
    open_memory.restype = ctypes.c_void_p
    write_info.argtypes = (ctypes.c_int, ctypes.c_void_p)
    close.argtypes = (ctypes.c_void_p,)
    free.argtypes = (ctypes.c_void_p,)

    def read() -> int:
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        stream = open_memory(ctypes.byref(text), ctypes.byref(size))
        write_info(0, stream)
        close(stream)
        whole = ctypes.string_at(text, size.value) if text.value else b""
        free(text)
        # What stands after the last heap sums up all of them.
        sums = whole[whole.rfind(b"</heap>") :]
        held = dict.fromkeys(("fast", "rest", "mmap", "current"), 0)
        for kind, number in re.findall(rb'type="(\w+)"[^>]*? size="(\d+)"', sums):
            if kind.decode() in held:
                held[kind.decode()] = int(number)
        return held["current"] - held["fast"] - held["rest"] + held["mmap"]

    return read
