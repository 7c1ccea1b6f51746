"""Speed of training: tokens per second and model FLOPs utilisation (MFU).

`MFU = positions/s * flops per position / (devices * peak)`, with the FLOPs of the formula of the
network (forward and backward, without recomputation; Chowdhery et al. 2022, arXiv:2204.02311, B)
and the *nominal dense bf16* peak of the device, whatever the precision of the run, so that numbers
of different runs on one kind of device compare. Devices without an entry in the table, CPUs among
them, get the speed of a large matrix product in the run's precision, measured once (about 0.1 s).
"""

import math
import time

import torch

# Dense (no sparsity) bf16 or fp16 tensor-core FLOP/s from the vendors' data sheets. The first entry
# whose name is part of the device's name counts, so longer names stand first.
_PEAKS = (
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("A40", 150e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("V100", 125e12),
    ("T4", 65e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Peak FLOP/s of one device: nominal where known, else measured with a matrix product."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, peak in _PEAKS:
            if part in name:
                return peak
    return _measure(device, dtype)


def _measure(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """FLOP/s of the fastest of five products of two `size x size` matrices."""
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # the read waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class Speed:
    """Speed since the last reading, with pauses (validation, sampling) left out.

    Args:
        flops_per_position: FLOPs of one position, forward and backward.

    Attributes:
        tokens_per_second: smoothed over about ten steps, for the screen; 0 before the first.
    """

    def __init__(self, flops_per_position: float) -> None:
        self.tokens_per_second = 0.0
        self._flops = flops_per_position
        self._peak = math.inf
        self._mark = time.perf_counter()
        self._seconds = self._tokens = self._positions = 0.0

    def start(self, device: torch.device, precision: str, devices: int) -> None:
        """Look up what the devices can do, and start the clock."""
        dtype = torch.bfloat16 if "16" in precision else torch.float32
        self._peak = peak_flops(device, dtype) * devices
        self.resume()

    def resume(self) -> None:
        """Forget the time since the last step: it was not training."""
        self._mark = time.perf_counter()

    def step(self, tokens: float, positions: float) -> None:
        """Count one finished optimizer step."""
        now = time.perf_counter()
        seconds = max(now - self._mark, 1e-9)
        self._mark = now
        self._seconds += seconds
        self._tokens += tokens
        self._positions += positions
        rate, last = tokens / seconds, self.tokens_per_second
        self.tokens_per_second = last + 0.1 * (rate - last) if last else rate

    def read(self) -> dict[str, float]:
        """Tokens/s, MFU and seconds since the last reading; starts anew."""
        seconds = max(self._seconds, 1e-9)
        result = {
            "time/tokens_per_second": self._tokens / seconds,
            "time/mfu": self._positions * self._flops / seconds / self._peak,
            "time/seconds": seconds,
        }
        self._seconds = self._tokens = self._positions = 0.0
        return result
