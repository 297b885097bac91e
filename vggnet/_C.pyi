"""Types of the C extension; the functions of section "operations" are public as vggnet.ops."""

import sys
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt

_Dtype: TypeAlias = Literal["float32", "int64", "uint8", "bfloat16"]
_Direction: TypeAlias = Literal["forward", "backward_input", "backward_weight"]
_Algorithm: TypeAlias = Literal["auto", "direct", "winograd2", "winograd4", "winograd6"]
_Pool: TypeAlias = bool | Literal["floor", "ceil"]
_Precision: TypeAlias = Literal["float32", "tf32", "bf16"]
_Shape: TypeAlias = Sequence[int]
_ArrayLike: TypeAlias = Any

class VggError(Exception): ...
class DeviceError(VggError, RuntimeError): ...
class WeightsError(VggError, ValueError): ...
class ImageError(VggError, ValueError): ...

@final
class Storage:
    """Owns bytes on one device. Made by tensors; tells the version that in-place operations bump."""

    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def version(self) -> int: ...

@final
class Tensor:
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> _Dtype: ...
    @property
    def device(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def storage(self) -> Storage: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def numpy(self) -> npt.NDArray[Any]: ...
    def to(self, device: str | None = None, dtype: _Dtype | None = None) -> Tensor: ...
    def copy_(self, obj: _ArrayLike, /) -> Tensor: ...
    def reshape(self, shape: _Shape, /) -> Tensor: ...
    def view(self, offset: int, shape: _Shape, dtype: _Dtype) -> Tensor: ...
    def freeze_views(self) -> Tensor: ...
    def item(self) -> float | int: ...
    def __float__(self) -> float: ...
    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]: ...
    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    if sys.version_info >= (3, 12):  # before, the buffer protocol has no name in Python
        def __buffer__(self, flags: int, /) -> memoryview: ...

# ---- tensors
def tensor(obj: _ArrayLike, dtype: _Dtype | None = None, device: str = "cpu") -> Tensor: ...
def from_dlpack(obj: Any, /) -> Tensor: ...
def empty(shape: _Shape | int, dtype: _Dtype = "float32", device: str = "cpu") -> Tensor: ...
def zeros(shape: _Shape | int, dtype: _Dtype = "float32", device: str = "cpu") -> Tensor: ...

# ---- operations
def conv2d(
    x: _ArrayLike,
    w: _ArrayLike,
    b: _ArrayLike | None = None,
    *,
    relu: bool = False,
    pool: _Pool = False,
    algorithm: _Algorithm = "auto",
    precision: _Precision = "float32",
    transformed: Tensor | None = None,
    out: Any = None,
    workspace: Tensor | None = None,
) -> Any: ...
def conv2d_transform_weights(
    w: _ArrayLike, x_shape: _Shape, *, algorithm: _Algorithm = "auto", out: Tensor | None = None
) -> Tensor: ...
def conv2d_transformed_bytes(
    x_shape: _Shape, w_shape: _Shape, *, algorithm: _Algorithm = "auto", device: str = "cpu"
) -> int: ...
def conv2d_backward_input(
    dy: _ArrayLike,
    w: _ArrayLike,
    *,
    y: _ArrayLike | None = None,
    index: _ArrayLike | None = None,
    input_shape: _Shape | None = None,
    algorithm: _Algorithm = "auto",
    precision: _Precision = "float32",
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor: ...
def conv2d_backward_weight(
    dy: _ArrayLike,
    x: _ArrayLike,
    kernel_size: int = 3,
    *,
    y: _ArrayLike | None = None,
    index: _ArrayLike | None = None,
    algorithm: _Algorithm = "auto",
    precision: _Precision = "float32",
    out: tuple[Tensor, Tensor] | None = None,
    accumulate: bool = False,
    workspace: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
def conv2d_algorithm(
    x_shape: _Shape, w_shape: _Shape, direction: _Direction = "forward", *, pool: _Pool = False
) -> _Algorithm: ...
def conv2d_workspace(
    x_shape: _Shape,
    w_shape: _Shape,
    direction: _Direction = "forward",
    *,
    pool: _Pool = False,
    algorithm: _Algorithm = "auto",
    precision: _Precision = "float32",
    transformed: bool = False,
    device: str = "cpu",
) -> int: ...
def max_pool2d(
    x: _ArrayLike, *, ceil_mode: bool = False, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]: ...
def max_pool2d_backward(
    dy: _ArrayLike, index: _ArrayLike, input_shape: _Shape, *, out: Tensor | None = None
) -> Tensor: ...
def relu(x: _ArrayLike, *, out: Tensor | None = None) -> Tensor: ...
def relu_backward(dy: _ArrayLike, y: _ArrayLike, *, out: Tensor | None = None) -> Tensor: ...
def add_(y: Tensor, x: _ArrayLike) -> None: ...
def lrn(
    x: _ArrayLike,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def lrn_backward(
    dy: _ArrayLike,
    x: _ArrayLike,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def linear(
    x: _ArrayLike,
    w: _ArrayLike,
    b: _ArrayLike | None = None,
    *,
    relu: bool = False,
    precision: _Precision = "float32",
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor: ...
def linear_backward_input(
    dy: _ArrayLike,
    w: _ArrayLike,
    *,
    precision: _Precision = "float32",
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor: ...
def linear_backward_weight(
    dy: _ArrayLike,
    x: _ArrayLike,
    *,
    precision: _Precision = "float32",
    out: tuple[Tensor, Tensor] | None = None,
    accumulate: bool = False,
    workspace: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
def linear_workspace(
    rows: int,
    in_features: int,
    out_features: int,
    direction: _Direction = "forward",
    *,
    weight_dtype: Literal["float32", "bfloat16"] = "float32",
    precision: _Precision = "float32",
    device: str = "cpu",
) -> int: ...
def dropout(
    x: _ArrayLike,
    p: float,
    seed: int,
    rows: _ArrayLike,
    purpose: int = 0,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def dropout_backward(
    dy: _ArrayLike,
    p: float,
    seed: int,
    rows: _ArrayLike,
    purpose: int = 0,
    *,
    out: Tensor | None = None,
) -> Tensor: ...
def softmax(x: _ArrayLike, *, out: Tensor | None = None) -> Tensor: ...
def cross_entropy(
    logits: _ArrayLike,
    labels: _ArrayLike,
    *,
    normalizer: float | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]: ...
def euclidean_loss(
    x: _ArrayLike,
    target: _ArrayLike,
    labels: _ArrayLike | None = None,
    *,
    normalizer: float | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]: ...
def sgd_(
    param: Tensor | Sequence[Tensor],
    grad: Tensor | Sequence[Tensor],
    velocity: Tensor | Sequence[Tensor],
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> None: ...
def average_gradients_(
    lists_of_tensors: Sequence[Sequence[Tensor]], *, weights: Sequence[float] | None = None
) -> None: ...
def augment(
    images: Sequence[npt.NDArray[np.uint8]],
    crops: npt.NDArray[np.int64],
    size: int,
    mean: Sequence[float],
    *,
    shift: npt.NDArray[np.float32] | None = None,
    device: str = "cpu",
    out: Tensor | None = None,
) -> Tensor: ...
def unfold(x: _ArrayLike, size: int, *, out: Tensor | None = None) -> Tensor: ...
def random_normal_(x: Tensor, scale: float, seed: int, purpose: int) -> None: ...
def random_uniform_(x: Tensor, scale: float, seed: int, purpose: int) -> None: ...
def random_bits(seed: int, rows: _ArrayLike, purpose: int, count: int) -> npt.NDArray[np.uint32]: ...

# ---- the machine
def build_info() -> dict[str, Any]: ...
def set_num_threads(n: int, device: str | None = None) -> None: ...
def get_num_threads(device: str | None = None) -> int: ...
def kernels() -> list[dict[str, Any]]: ...
def devices() -> list[str]: ...
def memory_stats(device: str = "cpu") -> dict[str, int]: ...
def reset_peak_memory(device: str = "cpu") -> None: ...
def keep_memory(on: bool, /) -> None: ...
def register_backend(capsule: Any, /) -> None: ...
def cpu_backend_capsule() -> Any: ...
def fma_peak(threads: int = 1) -> float: ...
def memory_bandwidth(threads: int = 1) -> dict[str, float]: ...

# ---- for the tests
def _select_isa(name: str, /) -> str: ...
def _fail_allocation(n: int, /) -> None: ...
