"""Where the numbers were made: versions, driver and device, as torch and the driver report them."""

from __future__ import annotations

import torch

from gpu.section import Bench
from tradebench import environment


def run(bench: Bench, name: str) -> None:
    """Write it down."""
    found = environment.capture().model_dump(mode="json")
    if bench.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        found["device"] = {
            "name": properties.name,
            "architecture": f"sm_{properties.major}{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "reported_bytes": properties.total_memory,
            "free_bytes": free,
            "total_bytes": total,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "allocator": torch.cuda.get_allocator_backend(),
        }
    bench.write("environment", found)
