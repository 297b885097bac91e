"""The CUDA backend: is it there, and if not, why. ``device="cuda"`` never falls back to the CPU silently."""

from __future__ import annotations

from . import _C


def why_not() -> str | None:
    """The one reason why no CUDA device can be used, or None when one can.

    Examples
    --------
    >>> why_not() is None or why_not().startswith("no CUDA device")
    True
    """
    reason = _C.build_info()["cuda"]["why_not"]
    return None if reason is None else str(reason)


def is_available() -> bool:
    """Whether ``device="cuda"`` works. Never raises."""
    return why_not() is None


def device_count() -> int:
    """The number of usable CUDA devices."""
    return sum(name.startswith("cuda:") for name in _C.devices())


def memory_stats(device: str = "cuda") -> dict[str, int]:
    """Bytes in use and at the peak on a CUDA device.

    Raises
    ------
    DeviceError
        If there is no CUDA device.
    """
    return _C.memory_stats(device)
