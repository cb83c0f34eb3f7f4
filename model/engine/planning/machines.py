"""GPUs that the estimator knows, by the numbers of their makers' data sheets; free of torch."""

from dataclasses import dataclass
from enum import Enum

GIB = 2.0**30


class Gpu(Enum):
    """Kinds of GPUs, with their memory in gigabytes, and the CPU that the command runs on."""

    h100_80 = "h100_80"
    h200_141 = "h200_141"
    b200_180 = "b200_180"
    a100_80 = "a100_80"
    a100_40 = "a100_40"
    l40s_48 = "l40s_48"
    cpu = "cpu"


@dataclass(frozen=True)
class Machine:
    """One GPU and what it is connected to, or one process on a CPU. Rates are of one direction."""

    name: str
    memory: float  # bytes
    peak: float  # FLOP/s of dense products in bfloat16, on a CPU in float32
    bandwidth: float  # bytes a second of its memory
    link: float  # bytes a second to the other GPUs of its node
    network: float  # bytes a second of its share of the network between nodes
    host_link: float  # bytes a second to the memory of its host
    is_gpu: bool = True


MACHINES: dict[Gpu, Machine] = {
    # NVIDIA H100 data sheet, SXM: 80 GB, 989.4 TFLOP/s, 3.35 TB/s, NVLink 900 GB/s both ways, PCIe 5 128 GB/s both
    # ways. Network: DGX H100 data sheet, a port of 400 Gb/s for each GPU.
    Gpu.h100_80: Machine("H100 SXM 80 GB", 80e9, 989.4e12, 3.35e12, 450e9, 50e9, 64e9),
    # NVIDIA H200 data sheet, SXM: 141 GB, 989.4 TFLOP/s, 4.8 TB/s, NVLink and PCIe as the H100.
    Gpu.h200_141: Machine("H200 SXM 141 GB", 141e9, 989.4e12, 4.8e12, 450e9, 50e9, 64e9),
    # NVIDIA DGX B200 data sheet, an eighth: 180 GB, 2.25 PFLOP/s dense, 8 TB/s, NVLink 1.8 TB/s both ways, PCIe 5.
    Gpu.b200_180: Machine("B200 180 GB", 180e9, 2250e12, 8e12, 900e9, 50e9, 64e9),
    # NVIDIA A100 data sheet, SXM: 312 TFLOP/s, 2.039 or 1.555 TB/s, NVLink 600 GB/s both ways, PCIe 4 64 GB/s both
    # ways. Network: DGX A100 data sheet, a port of 200 Gb/s for each GPU.
    Gpu.a100_80: Machine("A100 SXM 80 GB", 80e9, 312e12, 2.039e12, 300e9, 25e9, 32e9),
    Gpu.a100_40: Machine("A100 SXM 40 GB", 40e9, 312e12, 1.555e12, 300e9, 25e9, 32e9),
    # NVIDIA L40S data sheet: 48 GB, 362 TFLOP/s, 864 GB/s, no NVLink, PCIe 4. The network is assumed: 100 Gb/s a GPU.
    Gpu.l40s_48: Machine("L40S 48 GB", 48e9, 362e12, 0.864e12, 32e9, 12.5e9, 32e9),
}
"""A data sheet's gigabytes count as 10^9 bytes. Devices have some per cent more, which are left to what the estimator
does not count: the CUDA context, buffers of NCCL, and gaps between the pieces of the allocator."""


def peak_of_device(name: str) -> float | None:
    """FLOP/s of dense products in bfloat16 of the GPU that CUDA calls `name`; None for one that is not known here."""
    kinds = {"H100": Gpu.h100_80, "H200": Gpu.h200_141, "B200": Gpu.b200_180, "A100": Gpu.a100_80, "L40S": Gpu.l40s_48}
    known = [gpu for kind, gpu in kinds.items() if kind in name and "PCIe" not in name]
    return MACHINES[known[0]].peak if known else None


def cpu_machine(memory: float, peak: float) -> Machine:
    """A process on a CPU with so many bytes of memory, whose products reach `peak` FLOP/s in float32.

    The bandwidths are those of the two cores of benchmarks/RESULTS.md: 35e9 bytes a second of memory, and half of it
    between processes, which is a guess.
    """
    return Machine("CPU", memory, peak, 35e9, 17e9, 1e9, 35e9, is_gpu=False)
