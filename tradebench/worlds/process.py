"""What the operating system and the driver say about this process: secondary figures.

Host memory holds imports, heaps and allocator slack beside tensors; it separates techniques on
large models only.
"""

from __future__ import annotations

import os
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def reset_process_peak() -> None:
    """Start the kernel's high-water mark anew.

    `ru_maxrss` cannot be reset and is inherited over fork and exec, so it is never used.
    """
    CLEAR_REFS.write_text("5")


def process_peak_bytes() -> int:
    """The high-water mark of resident memory since the last reset."""
    for line in STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel reports no VmHWM for this process")


def process_used_bytes() -> int:
    """Device memory of this process as NVML sees it, or what the whole device has in use.

    NVML cannot name the processes of another PID namespace, so inside a container the second
    reading stands in; it is right when nothing else uses the device.
    """
    import pynvml
    import torch

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
    for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
        if process.pid == os.getpid() and process.usedGpuMemory is not None:
            return int(process.usedGpuMemory)
    free, total = torch.cuda.mem_get_info()
    return int(total - free)
