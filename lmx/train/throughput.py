"""How fast a run is: step time, tokens a second, model FLOPs utilisation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

# Dense bfloat16 peak, FLOP/s of one jax device, by the start of `device_kind`. Sources: the vendors' data sheets (Google Cloud TPU
# system architecture pages; NVIDIA data sheets, without sparsity).
_PEAK_FLOPS = (
    ("TPU v2", 22.5e12),  # one of two cores of a 45 TFLOP/s chip
    ("TPU v3", 61.5e12),  # one of two cores of a 123 TFLOP/s chip
    ("TPU v4 lite", 138e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("TPU7x", 1153.5e12),  # one of two cores of a 2307 TFLOP/s chip
    ("NVIDIA A100", 312e12),
    ("NVIDIA L4", 121e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA B200", 2250e12),
)


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of a device in dense bfloat16, or None where it is not known (CPUs)."""
    matches = [(len(kind), peak) for kind, peak in _PEAK_FLOPS if device.device_kind.startswith(kind)]
    return max(matches)[1] if matches else None


class Stopwatch:
    """Seconds and tokens since the last lap, without the pauses."""

    def __init__(self, *, step: int, tokens: int, flops_per_token: float | None, peak: float | None) -> None:
        """Starts at a step.

        Args:
          step: the step reached.
          tokens: tokens trained on so far.
          flops_per_token: of the whole step, forward and backward, frozen models included.
          peak: FLOP/s of all devices together.
        """
        self._flops_per_token, self._peak = flops_per_token, peak
        self.restart(step, tokens)

    def restart(self, step: int, tokens: int, flops_per_token: float | None = None) -> None:
        """Starts a lap here, for instance after the compilation of the first step; other FLOPs where the shape has changed."""
        self._flops_per_token = flops_per_token if flops_per_token is not None else self._flops_per_token
        self._start, self._step, self._tokens = time.perf_counter(), step, tokens

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Does not count what happens inside (evaluation)."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - before

    def lap(self, step: int, tokens: int) -> dict[str, float]:
        """Step time, tokens/s and, where the peak is known, MFU since the last lap; empty if no step was measured."""
        seconds, steps, done = time.perf_counter() - self._start, step - self._step, tokens - self._tokens
        self.restart(step, tokens)
        if steps <= 0 or seconds <= 0:
            return {}
        speeds = {"time/step_seconds": seconds / steps, "time/tokens_per_second": done / seconds}
        if self._flops_per_token is not None and self._peak is not None:
            speeds["time/mfu"] = done / seconds * self._flops_per_token / self._peak
        return speeds
