"""Streams: the emulator does nothing that is queued before somebody waits for it (PTXEMU_LAZY=1), so a wait that is missing
shows, as do races and reads of what was never written; and once eagerly. In processes of their own, which fail on a finding."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import emulator
from helpers import ENVIRONMENT, ops, where
from reference import linear as reference
from tolerance import assert_within, linear_bound

needs_emulator = pytest.mark.skipif(emulator.library() is None, reason="VGGNET_CUDA_LIBS names no emulator")

OPERATIONS = """
from test_backend import CASES, on, to_host
from tolerance import relative_l2
for name, case in CASES.items():
    if name != "conv2d_transformed":
        for cpu, cuda in zip(case(on("cpu")), case(on("cuda:1")), strict=True):
            assert cuda.device == "cuda:1" and cuda.shape == cpu.shape
            assert relative_l2(to_host(cuda), to_host(cpu)) < 1e-6, name
"""

# Gradients are made on a stream of each device, averaged, and read by what is queued next on these streams.
AVERAGE = """
import ctypes, os
import numpy as np
from vggnet import _C, cuda, ops
runtime = ctypes.CDLL(os.path.join(os.environ["VGGNET_CUDA_LIBS"], "libcudart.so.13"))
_C.zeros((1,), device="cuda:1")
streams = []
for device in range(2):
    streams.append(ctypes.c_void_p())
    assert runtime.cudaSetDevice(device) == 0
    assert runtime.cudaStreamCreateWithFlags(ctypes.byref(streams[-1]), 0) == 0
rng = np.random.default_rng(0)
a, b = rng.standard_normal((2, 5000)).astype(np.float32)
for attempt in range(3):
    with cuda.stream(streams[0].value, "cuda:0"), cuda.stream(streams[1].value, "cuda:1"):
        x, y = _C.tensor(a, device="cuda:0"), _C.tensor(b, device="cuda:1")
        twin, other = _C.tensor(a, device="cuda:0"), _C.tensor(b, device="cuda:1")
        ops.add_(x, twin)
        ops.add_(y, other)
        ops.average_gradients_([[x], [y]], weights=[3.0, 1.0])
        ops.add_(twin, x)
        ops.add_(other, y)
        expected = (6.0 * a + 2.0 * b) / 4
        results = [(other, b), (twin, a)]
        for tensor, array in results if attempt % 2 else results[::-1]:  # who is read first runs first
            assert np.abs(tensor.numpy() - (array + expected)).max() < 1e-5, attempt
"""

# More uploads than the pinned ring holds, of memory that is changed at once; downloads in between.
UPLOADS = """
import numpy as np
from vggnet import _C, ops
held = []
array = np.zeros(3 << 20, np.float32)
for value in range(7):
    array[:] = value
    held.append(_C.tensor(array, device="cuda"))
    array[:] = -1
for value, tensor in enumerate(held):
    assert (tensor.numpy() == value).all(), value
"""

# Pixels of two batches arrive although what was queued before them has not begun (device memory is looked at where it lies,
# since reading it would wait). Then more batches than there are stages and places in the pinned ring, read last to first.
BATCHES = """
import ctypes, os
import numpy as np
from vggnet import _C, ops
def batch(number):
    images = [np.full((6, 7, 3), 10 * number + i, np.uint8) for i in range(3)]
    return ops.augment(images, np.array([[1, 2, 0]] * 3), 4, (0.0, 0.0, 0.0), device="cuda")
computed = ops.relu(_C.tensor(np.ones(64, np.float32), device="cuda"))
address = computed.__cuda_array_interface__["data"][0]
batches = [batch(0), batch(1)]
uploads = [_C.tensor(np.ones(1, np.float32), device="cuda") for _ in range(7)]  # wait for what is in the ring's way
has_begun = ctypes.string_at(address, 256) == np.ones(64, np.float32).tobytes()
assert has_begun == (os.environ["PTXEMU_LAZY"] == "0")
batches += [batch(number) for number in range(2, 24)]
for number in reversed(range(24)):
    for i, image in enumerate(batches[number].numpy()):
        assert (image == 10 * number + i).all(), (number, i)
"""


@needs_emulator
@pytest.mark.parametrize("lazy", ["0", "1"], ids=["eager", "lazy"])
@pytest.mark.parametrize(
    "code",
    [OPERATIONS, AVERAGE, UPLOADS, BATCHES],
    ids=["operations", "average", "uploads", "batches"],
)
def test_order(code, lazy):
    options = {
        "PTXEMU_LAZY": lazy,
        "PTXEMU_RACE": "1",
        "PTXEMU_UNINIT": "1",
        "PTXEMU_EXIT": "99",
        "PTXEMU_DEVICES": "2",
    }
    path = {"PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{Path(__file__).parent}"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT | path | options,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@needs_emulator
def test_a_net_lazily():
    """Training steps and a dense map, all queued before anything is read, are those of the CPU."""
    code = """
import numpy as np
from test_backend import _train_and_infer, to_host
from tolerance import relative_l2
from vggnet import configs
for name, text in configs.CONFIGS.items():
    for wide, few in (("64", "8"), ("128", "128"), ("256", "12"), ("512", "9")):
        text = text.replace(wide, few)
    configs.CONFIGS[name] = text
for cpu, cuda in zip(_train_and_infer("A-LRN", "cpu"), _train_and_infer("A-LRN", "cuda"), strict=True):
    assert relative_l2(to_host(cuda), to_host(cpu)) < 1e-4
"""
    path = {"PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{Path(__file__).parent}"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT | path | {"PTXEMU_LAZY": "1", "PTXEMU_EXIT": "99"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_fc6_at_its_full_size(device):
    """25088 inputs, 4096 outputs: 411 MB of weights."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((1, 25088), np.float32)
    w = rng.standard_normal((4096, 25088), np.float32) / 112
    b = rng.standard_normal(4096, np.float32)
    wide = x.astype(np.float64), w, b.astype(np.float64)
    assert_within(
        ops.linear(x, w, b, relu=True), np.maximum(reference.forward(*wide), 0), linear_bound(*wide), where()
    )


# Looked at where it lies in the emulator's memory: Tensors have no slices.
FAR = """
import ctypes
import numpy as np
from vggnet import _C, ops
size = (1 << 31) + 1000
x = _C.empty((size,), device="cuda")
values = (ctypes.c_float * size).from_address(x.__cuda_array_interface__["data"][0])
places = [0, 1 << 30, (1 << 31) - 1, 1 << 31, size - 1]
for place in places:
    values[place] = -1 - place % 7
ops.relu(x, out=x)
_C.zeros((1,), device="cuda").numpy()  # waits
assert [values[place] for place in places] == [0] * len(places)
"""


@needs_emulator
@pytest.mark.nightly
def test_positions_beyond_2_31():
    """ReLU of 2^31 + 1000 values, in place: 8.6 GB of memory, 3 minutes."""
    options = {"PTXEMU_RACE": "0", "PTXEMU_UNINIT": "0", "PTXEMU_EXIT": "99"}
    run = subprocess.run(
        [sys.executable, "-c", FAR], env=ENVIRONMENT | options, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
