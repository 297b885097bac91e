"""The CUDA backend: is it there, and if not, why. ``device="cuda"`` never falls back to the CPU silently.

Nothing of CUDA is opened before it is asked for. Then its libraries are looked for in the folder that VGGNET_CUDA_LIBS names,
on the loader's path (the toolkit's, LD_LIBRARY_PATH), and in the nvidia-* wheels of ``pip install 'vggnet[cuda13]'``.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import _C
from ._C import DeviceError

# Each finds those it needs among the ones opened before it.
LIBRARIES = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcudnn.so.9")
PIP = "pip install 'vggnet[cuda13]'"

_lock = threading.Lock()
_backend: Any = None  # vggnet._cuda, once it is open
_why_not: str | None = None  # what went wrong the first time; it is not tried again


def why_not() -> str | None:
    """The one reason why no CUDA device can be used, or None when one can.

    Examples
    --------
    >>> why_not() is None or why_not().startswith("no CUDA device")
    True
    """
    global _why_not
    with _lock:
        if _backend is None and _why_not is None:
            reason = _open()
            if reason is not None:
                _why_not = f'no CUDA device: {reason}. Use device="cpu", or see: vggnet info'
    return _why_not


def is_available() -> bool:
    """Whether ``device="cuda"`` works. Never raises."""
    return why_not() is None


def is_built() -> bool:
    """Whether this package was built with its CUDA backend."""
    return importlib.util.find_spec("vggnet._cuda") is not None


def device_count() -> int:
    """The number of usable CUDA devices."""
    return sum(name.startswith("cuda:") for name in _C.devices()) if is_available() else 0


def memory_stats(device: str = "cuda") -> dict[str, int]:
    """Bytes in use and at the peak on a CUDA device, and how many allocations there were.

    Raises
    ------
    DeviceError
        If there is no CUDA device.
    """
    return _C.memory_stats(device)


@contextlib.contextmanager
def stream(stream: Any, device: str = "cuda") -> Iterator[None]:
    """Within the block, this thread's operations on a device are queued on a stream.

    Parameters
    ----------
    stream : int, or an object with ``cuda_stream`` (torch's) or ``ptr`` (CuPy's)
        A cudaStream_t: a blocking one, or the memory pool's order would not hold; 0 is the default stream.
    device : str

    Raises
    ------
    DeviceError
        If there is no CUDA device.
    """
    require()
    handle = int(getattr(stream, "cuda_stream", getattr(stream, "ptr", stream)))
    index = int(device.partition(":")[2] or 0)
    before = _backend.set_stream(index, handle)
    try:
        yield
    finally:
        _backend.set_stream(index, before)


def require() -> None:
    """Open the backend; the extension calls this when a name like "cuda" is used for the first time.

    Raises
    ------
    DeviceError
        With the one reason why it can't be used.
    """
    reason = why_not()
    if reason is not None:
        raise DeviceError(reason)


def _open() -> str | None:
    """Open libraries and backend, and register it; or the reason why that can't be done."""
    global _backend
    if not is_built():
        return "built without CUDA"
    paths = {}
    for library in LIBRARIES:
        found = _library(library)
        if isinstance(found, Exception):
            return f"{library} can't be opened ({found}): {PIP}"
        paths[library] = found
    try:
        backend = importlib.import_module("vggnet._cuda")
    except ImportError as error:
        return f"vggnet._cuda can't be loaded ({error})"
    reason = backend.open(paths["libcublas.so.13"], paths["libcudnn.so.9"])
    if reason is None:
        _C.register_backend(backend.backend_capsule())
        _backend = backend
    return None if reason is None else str(reason)


def _library(name: str) -> str | Exception:
    """Open a library so that what needs it finds it; what it was opened by, or the loader's own words."""
    folder = os.environ.get("VGGNET_CUDA_LIBS")
    candidates = [os.path.join(folder, name)] if folder else []
    candidates.append(name)
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        candidates += sorted(str(path) for path in Path(root).glob(f"*/lib/{name}"))
    failures = []
    for candidate in candidates:
        try:
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            failures.append(error)
        else:
            return candidate
    return failures[0]
