"""The catalogue: one row per device, copied from the vendors' data sheets.

Sheets of NVIDIA print most rates "with sparsity"; those are halved here. GeForce cards run products
of 16 bits at half their headline rate once they are summed up in 32 bits, as torch has them summed
up; the architecture white papers print both, and the slower is here. A100 and H100 are the SXM
modules. What torch reports as a device's total memory is not on any sheet: the ranges are from
out-of-memory messages ("GPU 0 has a total capacity of 139.80 GiB") in public bug reports and logs,
across drivers, Linux and Windows. Volta is left out: torch's present wheels no longer serve it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tradebench.devices.device import GIB, Device, Format

TERA = 1e12
GIGA = 1e9


def _gib(low: float, high: float) -> tuple[int, int]:
    return int(low * GIB), int(high * GIB)


def _tera(**rates: float) -> Mapping[Format, float]:
    """Rates given in TFLOP/s."""
    formats: tuple[Format, ...] = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8")
    return MappingProxyType({format: rates[format] * TERA for format in formats if format in rates})


A100 = _tera(fp32=19.5, tf32=156, bf16=312, fp16=312, int8=624)
HOPPER = _tera(fp32=66.9, tf32=494.7, bf16=989.4, fp16=989.4, fp8=1978.9, int8=1978.9)
CDNA3 = _tera(fp32=163.4, tf32=653.7, bf16=1307.4, fp16=1307.4, fp8=2614.9, int8=2614.9)

# One direction of a x16 slot. A card without a bridge reaches its neighbours through the host.
PCIE_4 = 32 * GIGA
PCIE_5 = 64 * GIGA

_ROWS = (
    Device(
        id="a100-40gb",
        name="NVIDIA A100-SXM4-40GB",
        architecture="sm_80",
        memory_bytes=40 * GIB,
        reported_bytes=_gib(39.38, 39.60),
        bandwidth=1555 * GIGA,
        rates=A100,
        link="NVLink 3",
        link_bandwidth=300 * GIGA,
        node=8,
        source="NVIDIA A100 Tensor Core GPU data sheet (2020), A100 40GB SXM",
    ),
    Device(
        id="a100-80gb",
        name="NVIDIA A100-SXM4-80GB",
        architecture="sm_80",
        memory_bytes=80 * GIB,
        reported_bytes=_gib(79.10, 79.36),
        bandwidth=2039 * GIGA,
        rates=A100,
        link="NVLink 3",
        link_bandwidth=300 * GIGA,
        node=8,
        source="NVIDIA A100 Tensor Core GPU data sheet (2021), A100 80GB SXM",
    ),
    Device(
        id="h100-80gb",
        name="NVIDIA H100 80GB HBM3",
        architecture="sm_90",
        memory_bytes=80 * GIB,
        reported_bytes=_gib(79.10, 79.36),
        bandwidth=3350 * GIGA,
        rates=HOPPER,
        link="NVLink 4",
        link_bandwidth=450 * GIGA,
        node=8,
        source="NVIDIA H100 Tensor Core GPU Architecture white paper, table of the H100 SXM5",
    ),
    Device(
        id="h200-141gb",
        name="NVIDIA H200",
        architecture="sm_90",
        memory_bytes=141 * GIB,
        reported_bytes=_gib(139.72, 139.82),
        bandwidth=4800 * GIGA,
        rates=HOPPER,
        link="NVLink 4",
        link_bandwidth=450 * GIGA,
        node=8,
        source="NVIDIA H200 Tensor Core GPU data sheet (SXM); rates are those of the H100 SXM5",
    ),
    Device(
        id="b200-180gb",
        name="NVIDIA B200",
        architecture="sm_100",
        memory_bytes=180 * GIB,
        reported_bytes=_gib(178.35, 178.37),
        bandwidth=7700 * GIGA,
        rates=_tera(fp32=75, tf32=1100, bf16=2250, fp16=2250, fp8=4500, int8=4500),
        link="NVLink 5",
        link_bandwidth=900 * GIGA,
        node=8,
        source="NVIDIA Blackwell data sheet, HGX B200, one GPU",
    ),
    Device(
        id="gb200-186gb",
        name="NVIDIA GB200",
        architecture="sm_100",
        memory_bytes=186 * GIB,
        reported_bytes=_gib(184.30, 184.32),
        bandwidth=8000 * GIGA,
        rates=_tera(fp32=80, tf32=1250, bf16=2500, fp16=2500, fp8=5000, int8=5000),
        link="NVLink 5",
        link_bandwidth=900 * GIGA,
        node=72,
        source="NVIDIA Blackwell data sheet, GB200 NVL72, one GPU",
    ),
    Device(
        id="l4-24gb",
        name="NVIDIA L4",
        architecture="sm_89",
        memory_bytes=24 * GIB,
        reported_bytes=_gib(21.95, 22.18),
        bandwidth=300 * GIGA,
        rates=_tera(fp32=30.3, tf32=60, bf16=121, fp16=121, fp8=242.5, int8=242.5),
        link="PCIe 4",
        link_bandwidth=PCIE_4,
        node=8,
        source="NVIDIA L4 Tensor Core GPU data sheet",
    ),
    Device(
        id="l40s-48gb",
        name="NVIDIA L40S",
        architecture="sm_89",
        memory_bytes=48 * GIB,
        reported_bytes=_gib(44.34, 44.53),
        bandwidth=864 * GIGA,
        rates=_tera(fp32=91.6, tf32=183, bf16=362.05, fp16=362.05, fp8=733, int8=733),
        link="PCIe 4",
        link_bandwidth=PCIE_4,
        node=8,
        source="NVIDIA L40S data sheet",
    ),
    Device(
        id="a10g-24gb",
        name="NVIDIA A10G",
        architecture="sm_86",
        memory_bytes=24 * GIB,
        reported_bytes=_gib(21.98, 22.20),
        bandwidth=600 * GIGA,
        rates=_tera(fp32=35, tf32=35, bf16=70, fp16=70, int8=140),
        link="PCIe 4",
        link_bandwidth=PCIE_4,
        node=8,
        source="NVIDIA A10G data sheet (the card of AWS G5)",
    ),
    Device(
        id="a5000-24gb",
        name="NVIDIA RTX A5000",
        architecture="sm_86",
        memory_bytes=24 * GIB,
        reported_bytes=_gib(23.50, 23.69),
        bandwidth=768 * GIGA,
        rates=_tera(fp32=27.8, tf32=55.6, bf16=111.1, fp16=111.1, int8=222.2),
        link="PCIe 4",
        link_bandwidth=PCIE_4,
        node=8,
        source="NVIDIA RTX A5000 data sheet",
    ),
    Device(
        id="a6000-48gb",
        name="NVIDIA RTX A6000",
        architecture="sm_86",
        memory_bytes=48 * GIB,
        reported_bytes=_gib(47.27, 47.54),
        bandwidth=768 * GIGA,
        rates=_tera(fp32=38.7, tf32=77.4, bf16=154.8, fp16=154.8, int8=309.7),
        link="PCIe 4",
        link_bandwidth=PCIE_4,
        node=8,
        source="NVIDIA Ampere GA102 GPU Architecture white paper, table of the RTX A6000",
    ),
    Device(
        id="rtx-6000-ada-48gb",
        name="NVIDIA RTX 6000 Ada Generation",
        architecture="sm_89",
        memory_bytes=48 * GIB,
        reported_bytes=_gib(47.27, 47.99),
        bandwidth=960 * GIGA,
        rates=_tera(fp32=91.1, tf32=182.1, bf16=364.2, fp16=364.2, fp8=728.5, int8=728.5),
        link="PCIe 4",
        link_bandwidth=PCIE_4,
        node=8,
        source="NVIDIA Ada GPU Architecture white paper, table of the RTX 6000 Ada",
    ),
    Device(
        id="rtx-3090-24gb",
        name="NVIDIA GeForce RTX 3090",
        architecture="sm_86",
        memory_bytes=24 * GIB,
        reported_bytes=_gib(23.50, 24.00),
        bandwidth=936 * GIGA,
        rates=_tera(fp32=35.6, tf32=35.6, bf16=71.2, fp16=71.2, int8=284.7),
        link="PCIe 4",
        link_bandwidth=PCIE_4,
        node=8,
        source="NVIDIA Ampere GA102 GPU Architecture white paper, table of the RTX 3090",
    ),
    Device(
        id="rtx-4090-24gb",
        name="NVIDIA GeForce RTX 4090",
        architecture="sm_89",
        memory_bytes=24 * GIB,
        reported_bytes=_gib(23.50, 24.00),
        bandwidth=1008 * GIGA,
        rates=_tera(fp32=82.6, tf32=82.6, bf16=165.2, fp16=165.2, fp8=330.3, int8=660.6),
        link="PCIe 4",
        link_bandwidth=PCIE_4,
        node=8,
        source="NVIDIA Ada GPU Architecture white paper, table of the RTX 4090",
    ),
    Device(
        id="rtx-5090-32gb",
        name="NVIDIA GeForce RTX 5090",
        architecture="sm_120",
        memory_bytes=32 * GIB,
        reported_bytes=_gib(31.36, 31.84),
        bandwidth=1792 * GIGA,
        rates=_tera(fp32=104.8, tf32=104.8, bf16=209.5, fp16=209.5, fp8=419, int8=838),
        link="PCIe 5",
        link_bandwidth=PCIE_5,
        node=8,
        source="NVIDIA RTX Blackwell GPU Architecture white paper, table of the RTX 5090",
    ),
    Device(
        id="mi300x-192gb",
        name="AMD Instinct MI300X",
        architecture="gfx942",
        memory_bytes=192 * GIB,
        reported_bytes=_gib(191.69, 191.99),
        bandwidth=5300 * GIGA,
        rates=CDNA3,
        link="Infinity Fabric, 7 links",
        link_bandwidth=448 * GIGA,
        node=8,
        source="AMD Instinct MI300X data sheet",
    ),
    Device(
        id="mi325x-256gb",
        name="AMD Instinct MI325X",
        architecture="gfx942",
        memory_bytes=256 * GIB,
        reported_bytes=_gib(255.69, 255.99),
        bandwidth=6000 * GIGA,
        rates=CDNA3,
        link="Infinity Fabric, 7 links",
        link_bandwidth=448 * GIGA,
        node=8,
        source="AMD Instinct MI325X data sheet",
    ),
)

DEVICES: Mapping[str, Device] = MappingProxyType({device.id: device for device in _ROWS})
