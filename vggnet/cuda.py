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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from . import _C
from ._C import DeviceError

RUNTIME = "libcudart.so.13"
# Each finds those it needs among the ones opened before it.
LIBRARIES = ("libcublasLt.so.13", "libcublas.so.13", "libcudnn.so.9")
# Multiply-adds of a multiprocessor in a clock, by compute capability: float32, and TF32 in tensor cores without sparsity;
# bfloat16 has twice TF32's. Of NVIDIA's tuning guides and white papers; a later capability than those here counts as the last
# one before it.
RATES = {
    (7, 5): (64, 64),
    (8, 0): (64, 512),
    (8, 6): (128, 128),
    (8, 9): (128, 128),
    (9, 0): (128, 1024),
    (10, 0): (128, 2048),
    (12, 0): (128, 128),
}
PIP = "pip install 'vggnet[cuda13]'"

T = TypeVar("T")

_lock = threading.Lock()
_backend: Any = None  # vggnet._cuda, once it is open
_why_not: str | None = None  # what went wrong the first time; it is not tried again


def why_not() -> str | None:
    """The one reason why no CUDA device can be used, or None when one can.

    Built without CUDA, no driver, a driver that is too old, no visible device, or a library that is missing, with the line
    that installs it. It is looked for once.

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

    Returns
    -------
    dict
        "current" and "peak": bytes of this process's tensors and workspaces; "allocations" since the start; "free" and
        "total": bytes of the device, whoever uses them, with what the memory pool holds for the next tensors as free.

    Raises
    ------
    DeviceError
        If there is no CUDA device.
    """
    return _C.memory_stats(device)


def properties(device: str = "cuda") -> dict[str, Any]:
    """What a CUDA device is.

    Returns
    -------
    dict
        "name", "capability" (major, minor), "multiprocessors", "clock" in Hz, "bandwidth" of its memory in bytes a second,
        "memory" in bytes; "driver" and "runtime", CUDA's versions as 1000 major + 10 minor; and "float32", "tf32" and "bf16",
        the peaks in FLOP/s that follow from these. An emulator has a clock, and so peaks, of 0.

    Raises
    ------
    DeviceError
        If there is no CUDA device.
    """
    require()
    found: dict[str, Any] = _backend.properties(_index(device))
    known = max((cc for cc in RATES if cc <= found["capability"]), default=min(RATES))
    rates = [2.0 * rate * found["multiprocessors"] * found["clock"] for rate in RATES[known]]
    return found | {"float32": rates[0], "tf32": rates[1], "bf16": 2 * rates[1]}


def record(device: str = "cuda") -> Any:
    """A point in this thread's stream of a device, for `elapsed`."""
    require()
    return _backend.record(_index(device))


def elapsed(begin: Any, end: Any) -> float:
    """Seconds that the device took from one point to another; waits for the later one."""
    return float(_backend.elapsed(begin, end))


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


@contextlib.contextmanager
def stream(stream: Any, device: str = "cuda") -> Iterator[None]:
    """Within the block, this thread's operations on a device are queued on a stream.

    It waits for what the thread had queued before, and what the thread queues after the block waits for it.

    Parameters
    ----------
    stream : int, or an object with ``cuda_stream`` (torch's) or ``ptr`` (CuPy's)
        A cudaStream_t of that device; 0 is the default stream. It must outlive the block.
    device : str

    Raises
    ------
    DeviceError
        If there is no CUDA device.
    """
    require()
    handle = int(getattr(stream, "cuda_stream", getattr(stream, "ptr", stream)))
    index = _index(device)
    with _device_errors():
        before = _backend.set_stream(index, handle)
    try:
        yield
    finally:
        _backend.set_stream(index, before)


class Graph(Generic[T]):
    """What a function queues on a CUDA device, captured once and replayed by one launch.

    The function is called twice: once as usual, which makes plans and loads kernels, and once to be captured. A replay does
    what was captured, with the same memory: it reads the tensors that the function read, as they are then, and writes those
    that it made.

    Parameters
    ----------
    function : callable without arguments
        Its operations on the device are captured, those of the calling thread. It must not read values (``numpy()``,
        ``float``) nor bring any to the device (arrays as arguments): make tensors of these before. Python that it runs, and
        random seeds, are as they were when it was captured.
    device : str

    Attributes
    ----------
    result
        What the function returned when it was captured; its tensors hold values after the first replay, and the last
        replay's from then on.

    Raises
    ------
    DeviceError
        If there is no CUDA device, or it fails.
    ValueError
        If the function does what can't be captured; the message says what.

    Notes
    -----
    Memory that the function takes is kept for the graph while it lives. Weights may change between replays, in place, but not
    by them. Replays of one graph wait for each other.

    Examples
    --------
    >>> import vggnet
    >>> if is_available():
    ...     model = vggnet.VGG("A", num_classes=10, input_size=32, fc_width=16, device="cuda")
    ...     x = vggnet.zeros((1, 32, 32, 3), device="cuda")
    ...     graph = Graph(lambda: model.forward(x))
    ...     logits = graph()  # of what x holds now
    """

    def __init__(self, function: Callable[[], T], device: str = "cuda") -> None:
        require()
        function()
        self.result: T
        with _device_errors():
            self._capture, self.result = _backend.capture(_index(device), function)
        self._function = function  # with what it refers to: each replay reads it

    def __call__(self) -> T:
        """Replay on this thread's stream; returns `result`."""
        with _device_errors():
            _backend.replay(self._capture)
        return self.result


def capturing(device: str = "cuda") -> bool:
    """Whether this thread is making a `Graph` on a device: what is queued then will be done later, and again."""
    return _backend is not None and bool(_backend.capturing(_index(device)))


@contextlib.contextmanager
def _device_errors() -> Iterator[None]:
    """The backend's RuntimeError as what users catch."""
    try:
        yield
    except RuntimeError as error:
        raise DeviceError(str(error)) from None


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
    if isinstance(failure := _library(RUNTIME), Exception):
        return f"{RUNTIME} can't be opened ({failure}): {PIP}"
    try:
        backend = importlib.import_module("vggnet._cuda")
    except ImportError as error:
        return f"vggnet._cuda can't be loaded ({error})"
    reason = backend.find_devices()  # before the large libraries, which nobody needs without a device
    if reason is not None:
        return str(reason)
    paths = {}
    for library in LIBRARIES:
        found = _library(library)
        if isinstance(found, Exception):
            return f"{library} can't be opened ({found}): {PIP}"
        paths[library] = found
    # Opened when devices first average: nobody else needs it.
    nccl = "\n".join(_candidates("libnccl.so.2"))
    reason = backend.open(paths["libcublas.so.13"], paths["libcudnn.so.9"], nccl)
    if reason is None:
        _C.register_backend(backend.backend_capsule())
        _backend = backend
    return None if reason is None else str(reason)


def _library(name: str) -> str | Exception:
    """Open a library so that what needs it finds it; what it was opened by, or the loader's own words."""
    failures = []
    for candidate in _candidates(name):
        try:
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            failures.append(error)
        else:
            return candidate
    return failures[0]


def _candidates(name: str) -> list[str]:
    """Where a library may be."""
    folder = os.environ.get("VGGNET_CUDA_LIBS")
    candidates = [os.path.join(folder, name)] if folder else []
    candidates.append(name)
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        candidates += sorted(str(path) for path in Path(root).glob(f"*/lib/{name}"))
    return candidates
