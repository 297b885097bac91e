"""The mean of gradients by NCCL, among virtual devices of the emulator: one thread for all, one a device, one process each;
in both orders of streams, with ranks that fail or vanish, and with every call made to fail. All in processes of their own."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import vggnet as vgg
from vggnet import nccl

import emulator
from helpers import ENVIRONMENT

needs_emulator = pytest.mark.skipif(emulator.library() is None, reason="VGGNET_CUDA_LIBS names no emulator")

# What every program below begins with: the same gradients for the same rank everywhere, and their mean in float64 in the
# order of ranks. Sizes: several pieces of what is gathered at a time, the last one not full; small ones; none.
COMMON = """
import ctypes, os, sys, threading
import numpy as np
import vggnet as vgg
from vggnet import _C, nccl, ops
SIZES = [5001, 0, 1, 64, 333]
def gradients(rank, sizes=SIZES):
    rng = np.random.default_rng(rank)
    return [rng.standard_normal(size, np.float32) for size in sizes]
def expected(size, weights, sizes=SIZES):
    parts = [gradients(rank, sizes) for rank in range(size)]
    for same in zip(*parts):
        total = np.zeros(len(same[0]))
        for weight, part in zip(weights, same):
            total += weight * part.astype(np.float64)
        yield (total / sum(weights)).astype(np.float32)
def on(device, arrays):
    return [_C.tensor(array, device=device) for array in arrays]
def assert_equal(tensors, arrays):
    for tensor, array in zip(tensors, arrays, strict=True):
        assert tensor.numpy().tobytes() == array.tobytes()
"""


def python(code, *arguments, **settings):
    path = f"{ENVIRONMENT['PYTHONPATH']}:{Path(__file__).parent}"
    options = {"PTXEMU_EXIT": "99", "PTXEMU_NCCL_TIMEOUT": "20", "PYTHONPATH": path} | settings
    return subprocess.Popen(
        [sys.executable, "-c", COMMON + code, *map(str, arguments)],
        env=ENVIRONMENT | options,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code, *arguments, **settings):
    """The program's words, after it ended well."""
    process = python(code, *arguments, **settings)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return out


# ---------------------------------------------------------------------------------------------- one process

ONE_THREAD = """
devices = int(sys.argv[1])
weights = [3.0, 0.0, 1.0, 4.0][:devices]
for order in (list(range(devices)), list(range(devices))[::-1]):  # another order is another communicator
    lists = [on(f"cuda:{device}", gradients(rank)) for rank, device in enumerate(order)]
    for _ in range(2):
        for tensors, same in zip(lists, map(gradients, range(devices))):
            for tensor, array in zip(tensors, same):
                tensor.copy_(array)
        ops.average_gradients_(lists, weights=weights)
        for tensors in lists:
            assert_equal(tensors, expected(devices, weights))
"""

ONE_THREAD_A_DEVICE = """
devices = int(sys.argv[1])
weights = [3.0, 0.0, 1.0, 4.0][:devices]
id = nccl.unique_id()
failures = []
def replica(rank):
    try:
        ranks = nccl.Communicator(id, rank, devices, f"cuda:{rank}")
        for _ in range(2):
            first, second = on(f"cuda:{rank}", gradients(rank)), on(f"cuda:{rank}", gradients(rank, [70]))
            pending = [ranks.mean(first, weights), ranks.mean(second, weights)]
            other = ops.relu(on(f"cuda:{rank}", [np.ones(9, np.float32)])[0])  # what goes on meanwhile
            for mean in pending[::-1]:
                mean.wait()
                assert mean.done()
            assert_equal(first, expected(devices, weights))
            assert_equal(second, expected(devices, weights, [70]))
            assert other.numpy().sum() == 9
    except BaseException as error:
        failures.append(error)
        raise
threads = [threading.Thread(target=replica, args=(rank,)) for rank in range(devices)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures
"""


@needs_emulator
@pytest.mark.parametrize("lazy", ["0", "1"], ids=["eager", "lazy"])
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("code", [ONE_THREAD, ONE_THREAD_A_DEVICE], ids=["one thread", "one a device"])
def test_devices_of_one_process(code, devices, lazy):
    run(code, devices, PTXEMU_DEVICES=str(devices), PTXEMU_LAZY=lazy)


@needs_emulator
def test_many_tensors_go_in_groups():
    """A group has 64 pieces at most."""
    run(
        """
sizes = [3] * 130 + [70]
lists = [on(f"cuda:{rank}", gradients(rank, sizes)) for rank in range(2)]
id = nccl.unique_id()
ranks = [None, None]
def replica(rank):
    ranks[rank] = nccl.Communicator(id, rank, 2, f"cuda:{rank}")
    ranks[rank].mean(lists[rank], [1, 2]).wait()
threads = [threading.Thread(target=replica, args=(rank,)) for rank in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for tensors in lists:
    assert_equal(tensors, expected(2, [1.0, 2.0], sizes))
""",
        PTXEMU_DEVICES="2",
    )


@needs_emulator
@pytest.mark.nightly
def test_large_tensors_go_in_pieces():
    """A piece is 64 MiB over the ranks: 4 Mi floats of each of 4."""
    run(
        """
sizes = [(4 << 20) + 100, 5, 300]
lists = [on(f"cuda:{rank}", gradients(rank, sizes)) for rank in range(4)]
ops.average_gradients_(lists)
for tensors in lists:
    assert_equal(tensors, expected(4, [1.0] * 4, sizes))
""",
        PTXEMU_DEVICES="4",
        PTXEMU_RACE="0",
        PTXEMU_UNINIT="0",
    )


@needs_emulator
def test_several_lists_on_one_device_need_no_nccl(tmp_path):
    for library in Path(ENVIRONMENT["VGGNET_CUDA_LIBS"]).glob("*.so.*"):
        if "nccl" not in library.name:
            (tmp_path / library.name).symlink_to(library)
    code = """
lists = [on("cuda:0", gradients(rank)) for rank in range(3)]
ops.average_gradients_(lists, weights=[1, 2, 3])
for tensors in lists:
    assert_equal(tensors, expected(3, [1.0, 2.0, 3.0]))
for case in ([[t] for device in (0, 1) for t in on(f"cuda:{device}", gradients(0, [3]))],
             [[t] for device in (0, 1, 0) for t in on(f"cuda:{device}", gradients(0, [3]))]):
    try:
        ops.average_gradients_(case)
    except (vgg.DeviceError, NotImplementedError) as error:
        print(error)
try:
    nccl.unique_id()
except vgg.DeviceError as error:
    print(error)
"""
    said = run(code, VGGNET_CUDA_LIBS=str(tmp_path), PTXEMU_DEVICES="2").splitlines()
    assert (
        said[1]
        == "average_gradients: 3 lists are on 2 devices; expected each on a device of its own, or all on one"
    )
    assert len(said) == 3 or "libnccl.so.2" in said[0]  # a real NCCL on the loader's path may answer
    for words in said[:1] + said[2:]:
        assert words.startswith("averaging over several devices needs NCCL: libnccl.so.2 can't be opened (")
        assert words.endswith("): pip install 'vggnet[cuda13]'")


TRAINING = """
from vggnet import configs, parallel, train
for name, text in configs.CONFIGS.items():
    for wide, few in (("64", "4"), ("128", "4"), ("256", "4"), ("512", "4")):
        text = text.replace(wide, few)
    configs.CONFIGS[name] = text
plan = parallel.plan_buckets
parallel.replicas.plan_buckets = lambda parameters, layers: plan(parameters, layers, 2000)  # several, of so small a net
rng = np.random.default_rng(0)
images, labels = rng.integers(0, 256, (5, 32, 32, 1), np.uint8), np.arange(5) % 2
data = vgg.data.ArrayDataset(images, labels, ["a", "b"])
recipe = train.Recipe(batch=3, lr=0.002, epochs=None, iterations=2, scale=(32, 32), rgb_shift=None, holdout=0)
trained, losses = [], []
for devices in (["cpu"], ["cuda:0", "cuda:1"], ["cuda:0", "cuda:1"]):  # batches of 2 and 1, and of 1 and 1
    model = vgg.VGG("A", 2, 32, 1, fc_width=8, mean=[120.0], init="he", classes=["a", "b"], device=devices[0])
    before = {name: tensor.numpy().copy() for name, tensor in model.parameters.items()}
    history = train.fit(model, data, recipe=recipe, devices=devices, progress=False)
    losses.append([row.train_loss for row in history.rows])
    trained.append({name: tensor.numpy() - before[name] for name, tensor in model.parameters.items()})
for name, step in trained[0].items():
    error = np.linalg.norm(trained[1][name] - step)
    assert error <= 1e-3 * np.linalg.norm(step), (name, error, np.linalg.norm(step))
    assert trained[1][name].tobytes() == trained[2][name].tobytes(), name
np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
"""


@needs_emulator
@pytest.mark.parametrize("lazy", ["0", "1"], ids=["eager", "lazy"])
def test_training_on_two_devices(lazy):
    """Buckets averaged while backward goes on give the updates of one device, to rounding, and the same bits every time."""
    run(TRAINING, PTXEMU_DEVICES="2", PTXEMU_LAZY=lazy)


# ---------------------------------------------------------------------------------------------- many processes

# The id goes through a file, as it would over MPI.
PROCESS = """
rank, size, path, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if rank == 0:
    with open(path + ".part", "wb") as file:
        file.write(nccl.unique_id())
    os.rename(path + ".part", path)
import time
while not os.path.exists(path):
    time.sleep(0.01)
with open(path, "rb") as file:
    ranks = nccl.Communicator(file.read(), rank, size, "cuda:1", timeout=60)
weights = [float(1 + r) for r in range(size)]
tensors = on("cuda:1", gradients(rank))
if what == "vanishes" and rank == 1:
    os.kill(os.getpid(), 9)
if what == "late" and rank == 1:
    time.sleep(4)
    os._exit(0)
if what == "fails" and rank == 1:
    ctypes.CDLL(os.path.join(os.environ["VGGNET_CUDA_LIBS"], "libcudart.so.13")).ptxemu_fail(b"ncclAllGather:1")
try:
    pending = ranks.mean(tensors, weights)
    pending.wait()
except vgg.DeviceError as error:
    print(error)
    try:
        ranks.mean(tensors, weights)
    except vgg.DeviceError as error:
        print(error)
else:
    assert_equal(tensors, expected(size, weights))
    print("averaged")
"""


def processes(tmp_path, size, what, **settings):
    """(exit status, words, errors) of each rank."""
    started = [
        python(PROCESS, rank, size, tmp_path / "id", what, PTXEMU_DEVICES="2", **settings)
        for rank in range(size)
    ]
    return [
        (process.returncode, out, err)
        for process, (out, err) in [(process, process.communicate(timeout=100)) for process in started]
    ]


@needs_emulator
@pytest.mark.parametrize("lazy", ["0", "1"], ids=["eager", "lazy"])
def test_two_processes(tmp_path, lazy):
    for status, out, err in processes(tmp_path, 2, "averages", PTXEMU_LAZY=lazy):
        assert (status, out) == (0, "averaged\n"), err


@needs_emulator
@pytest.mark.parametrize("what", ["vanishes", "late", "fails"])
def test_a_rank_that_does_not_come(tmp_path, what):
    """The other one says what happened and what to do, and starts nothing more. The emulator calls it a finding (99)."""
    begin = time.monotonic()
    first, second = processes(tmp_path, 2, what, PTXEMU_NCCL_TIMEOUT="2", PTXEMU_EXIT="0")
    assert time.monotonic() - begin < 40
    failed, again = first[1].splitlines()
    for words in (failed, again):
        assert words.startswith("rank 0 of 2: cuda:1: NCCL: ")
        assert words.endswith("The ranks can't go on: end them all, and resume from the last checkpoint")
    assert "the communicator was aborted" in again
    if what == "fails":
        assert "ncclAllGather" in second[1].splitlines()[0], second
    else:
        assert second[0] == (-9 if what == "vanishes" else 0)


# ---------------------------------------------------------------------------------------------- faults

FAULTS = """
import gc
emulator = ctypes.CDLL(os.path.join(os.environ["VGGNET_CUDA_LIBS"], "libcudart.so.13"))
emulator.ptxemu_calls.restype = ctypes.c_long
_C.zeros((1,), device="cuda:1").numpy()
lists = [on(f"cuda:{rank}", gradients(rank)) for rank in range(2)]
def reset():
    for rank, tensors in enumerate(lists):
        for tensor, array in zip(tensors, gradients(rank)):
            tensor.copy_(array)
def group():
    ops.average_gradients_([tensors[:1] for tensors in lists])
def alone():  # a communicator of one rank: made, used, given back
    ranks = nccl.Communicator(nccl.unique_id(), 0, 1, "cuda:1")
    ranks.mean(lists[1][:1], [1.0]).wait()
    del ranks
    gc.collect()
for name in sys.argv[1:]:
    code = ":999" if name.endswith(("Query", "Synchronize")) else ""  # by default a wait's failure breaks the context
    failures = 0
    for work in (group, alone):
        number, came = 0, 1
        while number < came:
            number += 1
            reset()
            emulator.ptxemu_fail(b"ncclGroupEnd:1")  # the kept communicator goes, so that all its calls come again
            try:
                group()
            except vgg.DeviceError:
                emulator.ptxemu_fail(f"{name}:{number}{code}".encode())
            used = [vgg.cuda.memory_stats(f"cuda:{d}")["current"] for d in range(2)]
            try:
                work()
            except (vgg.DeviceError, MemoryError) as error:
                assert "cuda:" in str(error), error
                failures += 1
            gc.collect()
            assert [vgg.cuda.memory_stats(f"cuda:{d}")["current"] for d in range(2)] == used, name
            came = emulator.ptxemu_calls(name.encode())
            emulator.ptxemu_fail(b"")
            reset()
            group()
            for tensors in lists:
                assert_equal(tensors[:1], list(expected(2, [1.0, 1.0]))[:1])
    print(name, failures)
"""

# Failures that are nobody's: of what gives back, or only looks.
HARMLESS = {
    "ncclCommDestroy",
    "ncclCommAbort",
    "cudaStreamQuery",
    "cudaStreamDestroy",
    "cudaEventDestroy",
    "cudaFreeAsync",
    "cudaStreamSynchronize",
}
RUNTIME = ["cudaEventCreateWithFlags", "cudaEventQuery", "cudaEventRecord", "cudaFreeAsync", "cudaLaunchKernel",
           "cudaMallocAsync", "cudaSetDevice", "cudaStreamCreateWithFlags", "cudaStreamDestroy", "cudaStreamQuery",
           "cudaStreamSynchronize", "cudaStreamWaitEvent"]  # fmt: skip


@needs_emulator
def test_each_call_fails_in_turn():
    """A clean error, nothing leaked, and the next average is right: the communicator is made anew."""
    functions = {name for library, name in vgg.cuda._backend.symbols() if library == "nccl"}
    names = sorted(functions - {"ncclGetErrorString", "ncclGetLastError"}) + RUNTIME
    said = run(FAULTS, *names, PTXEMU_DEVICES="2", PTXEMU_NCCL_TIMEOUT="0.2", PTXEMU_EXIT="0")
    failures = {name: int(count) for name, count in map(str.split, said.splitlines())}
    assert failures.keys() == set(names)
    assert {name for name, count in failures.items() if not count} <= HARMLESS


# ---------------------------------------------------------------------------------------------- arguments


def test_wrong_arguments():
    with pytest.raises(ValueError, match="size is 65; expected 1 to 64"):
        nccl.Communicator(bytes(128), 0, 65)
    with pytest.raises(ValueError, match="rank is 2; expected 0 to 1"):
        nccl.Communicator(bytes(128), 2, 2)
    if vgg.cuda.is_available():
        with pytest.raises(ValueError, match="id has 3 bytes; expected the 128"):
            nccl.Communicator(b"abc", 0, 1)
    else:
        with pytest.raises(vgg.DeviceError, match="no CUDA device"):
            nccl.unique_id()


@needs_emulator
def test_wrong_tensors_and_weights(narrow):
    ranks = nccl.Communicator(nccl.unique_id(), 0, 1, "cuda")
    good = vgg.zeros((3,), device="cuda")
    model = vgg.VGG("A", num_classes=2, input_size=32, fc_width=2, device="cuda")
    for tensors, weights, kind, words in [
        ([good], [1, 2], ValueError, "expected 1 finite numbers"),
        ([good], [np.nan], ValueError, "expected 1 finite numbers"),
        ([good], [0], ValueError, "a sum above 0"),
        ([np.zeros(3)], [1], TypeError, r"tensors\[0\] is .*expected a Tensor"),
        ([good, vgg.zeros((3,))], [1], ValueError, r"tensors\[1\] is float32 on cpu"),
        (
            [vgg.zeros((3,), "int64", "cuda")],
            [1],
            ValueError,
            "is int64 on cuda:0; expected float32 on cuda:0",
        ),
        ([model.parameters["fc8.bias"]], [1], ValueError, "read-only"),
    ]:
        with pytest.raises(kind, match=words):
            ranks.mean(tensors, weights)
    ranks.abort()
    with pytest.raises(vgg.DeviceError, match="the communicator was aborted"):
        ranks.mean([good], [1])
