"""A script: calls every function, method and property of the extension over and over, and many errors.

Prints what grew, in Python's memory blocks or in tensors' bytes, as JSON. tests/test_extension.py runs it.
"""

import gc
import json
import sys

import numpy as np
import vggnet as vgg
from vggnet import _C


def f(*shape):
    return np.zeros(shape, np.float32)


x, w, dy, index = f(1, 4, 4, 3), f(2, 3, 3, 3), f(1, 2, 2, 2), np.zeros((1, 2, 2, 2), np.uint8)
t, u, v = vgg.zeros(4), vgg.zeros(4), vgg.zeros(4)
image = np.zeros((5, 5, 3), np.uint8)


class Legacy:
    def __dlpack__(self):
        return t.__dlpack__()


def error(call):
    try:
        call()
    except Exception:
        return
    raise SystemExit(f"did not raise: {call}")


calls = {
    "tensor": lambda: vgg.tensor([[1, 2.0], [3, 4]]),
    "from_dlpack": lambda: (vgg.from_dlpack(x), vgg.from_dlpack(t), vgg.from_dlpack(Legacy())),
    "empty": lambda: vgg.empty((2, 3)),
    "zeros": lambda: vgg.zeros([2, 3], "int64"),
    "conv2d": lambda: (vgg.ops.conv2d(x, w), vgg.ops.conv2d(x, w, f(2), relu=True, pool=True)),
    "conv2d_backward_input": lambda: vgg.ops.conv2d_backward_input(
        dy, w, y=dy, index=index, input_shape=x.shape
    ),
    "conv2d_backward_weight": lambda: vgg.ops.conv2d_backward_weight(dy, x, y=dy, index=index),
    "conv2d_algorithm": lambda: vgg.ops.conv2d_algorithm(x.shape, w.shape),
    "conv2d_workspace": lambda: vgg.ops.conv2d_workspace(
        x.shape, list(w.shape), "backward_weight", pool="ceil"
    ),
    "conv2d_transform_weights": lambda: vgg.ops.conv2d_transform_weights(w, x.shape, algorithm="winograd4"),
    "conv2d_transformed_bytes": lambda: vgg.ops.conv2d_transformed_bytes(x.shape, w.shape),
    "max_pool2d": lambda: vgg.ops.max_pool2d(x),
    "max_pool2d_backward": lambda: vgg.ops.max_pool2d_backward(dy, index, (1, 4, 4, 2)),
    "relu": lambda: (vgg.ops.relu([1.0, 2.0]), vgg.ops.relu(t, out=u)),
    "relu_backward": lambda: vgg.ops.relu_backward(t, u, out=t),
    "add_": lambda: vgg.ops.add_(t, u),
    "lrn": lambda: vgg.ops.lrn(x),
    "lrn_backward": lambda: vgg.ops.lrn_backward(x, x),
    "linear": lambda: vgg.ops.linear(f(2, 3), f(4, 3), f(4), workspace=vgg.empty(1 << 16, "uint8")),
    "linear_backward_input": lambda: vgg.ops.linear_backward_input(f(2, 4), f(4, 3)),
    "linear_backward_weight": lambda: vgg.ops.linear_backward_weight(f(2, 4), f(2, 3)),
    "linear_workspace": lambda: vgg.ops.linear_workspace(2, 3, 4),
    "dropout": lambda: vgg.ops.dropout(f(2, 3), 0.5, 2**63, [1, 2]),
    "dropout_backward": lambda: vgg.ops.dropout_backward(f(2, 3), 0.5, 2**63, np.array([1, 2], np.int32)),
    "softmax": lambda: vgg.ops.softmax(x),
    "cross_entropy": lambda: vgg.ops.cross_entropy(f(2, 3), [0, 1], normalizer=4),
    "euclidean_loss": lambda: vgg.ops.euclidean_loss(f(2, 8), f(2, 4), [0, 1], normalizer=4),
    "sgd_": lambda: (vgg.ops.sgd_(t, u, v, 0.1), vgg.ops.sgd_([t], [u], [v], 0.1)),
    "average_gradients_": lambda: vgg.ops.average_gradients_([[t], [u]], weights=[1, 2]),
    "augment": lambda: vgg.ops.augment(
        [image, image[::-1]], [[0, 1, 0], [1, 0, 1]], 4, (1, 2, 3), shift=f(2, 3)
    ),
    "unfold": lambda: vgg.ops.unfold(x, 2),
    "random_normal_": lambda: _C.random_normal_(t, 1.0, 1, 1),
    "random_uniform_": lambda: _C.random_uniform_(t, 1.0, 1, 1),
    "random_bits": lambda: _C.random_bits(1, [1, 2], 3, 5),
    "build_info": _C.build_info,
    "get_num_threads": lambda: (_C.get_num_threads(), _C.get_num_threads("cpu:1")),
    "kernels": _C.kernels,
    "set_num_threads": lambda: (_C.set_num_threads(2, "cpu:1"), _C.set_num_threads(2)),
    "devices": _C.devices,
    "memory_stats": _C.memory_stats,
    "reset_peak_memory": _C.reset_peak_memory,
    "keep_memory": lambda: (_C.keep_memory(True), _C.keep_memory(False)),
    "cpu_backend_capsule": _C.cpu_backend_capsule,
    "fma_peak": lambda: None,
    "memory_bandwidth": lambda: None,
    "register_backend": lambda: error(lambda: _C.register_backend(_C.cpu_backend_capsule())),
    "_select_isa": lambda: _C._select_isa(""),
    "_fail_allocation": lambda: _C._fail_allocation(0),
    "Tensor": lambda: (
        t.shape,
        t.dtype,
        t.device,
        t.nbytes,
        t.ndim,
        t.size,
        t.storage,
        t.readonly,
        repr(t),
        t.numpy(),
        t.to(dtype="int64"),
        t.to(dtype="bfloat16").to(dtype="float32"),
        error(t.to(dtype="bfloat16").numpy),
        t.copy_(u),
        t.copy_([1, 2, 3, 4]),
        t.reshape((2, -1)),
        t.view(0, (2,), "float32"),
        vgg.zeros(1).item(),
        float(vgg.zeros(1)),
        np.asarray(t),
        np.asarray(t, np.float64),
        memoryview(t).tolist(),
        np.from_dlpack(t),
        t.__dlpack__(),
        t.__dlpack__(max_version=(1, 0), copy=True),
        t.__dlpack_device__(),
        vgg.zeros(2).freeze_views(),
    ),
    "Storage": lambda: (t.storage.nbytes, t.storage.device, t.storage.version, repr(t.storage)),
}


bad = vgg.zeros(3)
calls["errors"] = lambda: [
    error(call)
    for call in (
        lambda: vgg.tensor("a"),
        lambda: vgg.tensor([[1], [1, 2]]),
        lambda: vgg.empty(-1),
        lambda: vgg.empty(2, device="no"),
        lambda: _C.set_num_threads(2, "no"),
        lambda: _C.set_num_threads(2, 3),
        lambda: vgg.empty(2, device="cuda:99"),
        lambda: vgg.empty(2, "f8"),
        lambda: vgg.from_dlpack(3),
        lambda: vgg.from_dlpack(f(3, 3).T),
        lambda: vgg.from_dlpack(np.zeros(2)),
        lambda: t.reshape(5),
        lambda: t.copy_(bad),
        lambda: t.view(4, (4,), "float32"),
        lambda: t.item(),
        lambda: t.to("nowhere"),
        lambda: t.__dlpack__(stream=1),
        lambda: vgg.ops.conv2d(x, w, f(9)),
        lambda: vgg.ops.conv2d(x, w, pool="no"),
        lambda: vgg.ops.conv2d(x, f(2, 5, 5, 3)),
        lambda: vgg.ops.conv2d(x, w, out=bad),
        lambda: vgg.ops.conv2d(x, w, workspace=bad),
        lambda: vgg.ops.relu(None),
        lambda: vgg.ops.max_pool2d(x, out=(bad, bad)),
        lambda: vgg.ops.max_pool2d_backward(dy, index + 9, (1, 4, 4, 2)),
        lambda: vgg.ops.cross_entropy(f(2, 3), [0, 7]),
        lambda: vgg.ops.euclidean_loss(f(2, 8), f(2, 4), [0, 7]),
        lambda: vgg.ops.dropout(f(2, 3), 2.0, 1, [1, 2]),
        lambda: vgg.ops.sgd_([t], [u], [bad], 0.1),
        lambda: vgg.ops.sgd_([t], [3], [u], 0.1),
        lambda: vgg.ops.add_(t, bad),
        lambda: vgg.ops.average_gradients_([[t], [bad]]),
        lambda: vgg.ops.average_gradients_([[t]], weights=[-1]),
        lambda: vgg.ops.augment([image], [[9, 9, 0]], 4, (0, 0, 0)),
        lambda: vgg.ops.augment([image], [[0, 0, 0]], 4, (0,)),
        lambda: _C.random_bits(-1, [1], 0, 1),
        lambda: _C._select_isa("no"),
        lambda: _C.register_backend(3),
    )
]
sys.setswitchinterval(10)
leaks = {}
for name, call in calls.items():
    counts = []
    for repeats in (1000, *[100] * 10):  # caches of Python and NumPy fill up at first; a leak goes on
        for _ in range(repeats):
            call()
        gc.collect()
        counts.append((sys.getallocatedblocks(), _C.memory_stats()["current"]))
        if len(counts) > 1 and counts[-1][0] - counts[-2][0] < 50 and counts[-1][1] == counts[0][1]:
            break
    else:
        leaks[name] = counts
types = {cls.__name__: sys.getrefcount(cls) for cls in (vgg.Tensor, vgg.Storage)}
for _ in range(100):
    calls["Tensor"](), calls["from_dlpack"]()
gc.collect()
grown = {cls.__name__: sys.getrefcount(cls) - types[cls.__name__] for cls in (vgg.Tensor, vgg.Storage)}
print(json.dumps({"leaks": leaks, "called": list(calls), "types": grown}))
