"""Processes under mpirun: what they gather, the mean of their tensors, and that none is left waiting when one is lost."""

import subprocess
import sys

import pytest
from vggnet import parallel
from vggnet.parallel import mpi
from vggnet.parallel.world import SIZES, started

import launcher

# Means against one process's average of all ranks' tensors, of which each rank draws its own.
MEANS = """
import numpy as np, vggnet as vgg
from vggnet import ops, parallel
from vggnet.parallel import mpi

world = parallel.world()
rank, size = world.rank, world.size
assert parallel.world() is world and (world.local_rank, world.local_size) == (rank, size)
assert vgg.get_num_threads() == world.threads
assert world.gather({"rank": rank, "text": "ü" * 100000 * rank}) == [
    {"rank": r, "text": "ü" * 100000 * r} for r in range(size)
]
mpi.PIECE = 1000  # several pieces a tensor, the last with fewer elements than ranks
SHAPES = [(3,), (1,), (2, 1000), (17, 531), (4, 5, 6), (0, 3), (1001,)]

def tensors(r, bucket):
    rng = np.random.default_rng([r, bucket])
    return [vgg.tensor(rng.standard_normal(shape, np.float32)) for shape in SHAPES]

weights = [3.0, 1.5, 0.0][:size]
for compress in (False, True):
    own = [tensors(rank, bucket) for bucket in range(3)]
    pending = [world.mean(bucket, weights, compress=compress) for bucket in own]
    for bucket, end in zip(own, pending):
        end.wait()
        assert end.done()
    for number, bucket in enumerate(own):
        every = [tensors(r, number) for r in range(size)]
        sizes = [sum(w * abs(x.numpy()) for w, x in zip(weights, xs)) / sum(weights) for xs in zip(*every)]
        ops.average_gradients_(every, weights=weights)
        for x, mean, bound in zip(bucket, every[0], sizes):
            if compress:
                assert (abs(x.numpy() - mean.numpy()) <= bound * 2.0**-7 * 1.01).all()
                assert x.size < 100 or (x.numpy() != mean.numpy()).any()
            else:
                np.testing.assert_array_equal(x.numpy(), mean.numpy())
        sums = world.gather([x.numpy().tobytes().hex()[:1000] for x in bucket])
        assert all(other == sums[0] for other in sums)

models = [vgg.VGG("A", 10, 32, fc_width=16, seed=seed) for seed in (rank, 0)]
world.broadcast(list(models[0].parameters.values()))
for name, x in models[0].parameters.items():
    np.testing.assert_array_equal(x.numpy(), models[1].parameters[name].numpy())

rows = world.concatenate(np.full((5 * rank, 700), rank, np.float32))
assert rows[:, 699].tolist() == [r for r in range(size) for _ in range(5 * r)]
for weights in ([1.0], [0.0] * size, [float("nan")] * size):
    try:
        world.mean([vgg.zeros((3,))], weights)
    except ValueError as error:
        assert str(error).startswith("weights")
    else:
        raise AssertionError(weights)
print("all is well")
"""

# One rank is lost, where the others wait for its part of a mean, or (with "late") will.
LOST = """
import os, signal, sys, time
import vggnet as vgg
from vggnet import parallel

how, late = sys.argv[1:]
world = parallel.world()
world.advice = "Resume it"
world.gather(None)
if world.rank == 1:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "raises":
        raise RuntimeError("what was wrong")
    if how == "leaves":
        sys.exit(0)
elif late == "late":
    time.sleep(100)
world.gather(None) if how == "leaves" else world.mean([vgg.zeros((9,))], [1] * world.size).wait()
"""


@launcher.needs_mpi
def test_means_are_those_of_one_process_bit_for_bit():
    status, output = launcher.run(3, "-c", MEANS)
    assert status == 0 and output.count("all is well") == 3, output


@launcher.needs_mpi
@pytest.mark.parametrize(
    "how, late, words",
    [
        ("killed", "late", "rank 1 has died: ending all. Resume it"),
        ("raises", "late", "rank 1 failed with the RuntimeError above. Resume it"),
        ("stopped", "", "rank 1 made no progress for 1 s, while rank 0 waited for it"),
        ("leaves", "", "rank 1 has ended, while rank 0 waits for it. Resume it"),
    ],
)
def test_the_loss_of_a_rank_ends_all(how, late, words):
    """`late`: also while the others compute, for longer than this test waits."""
    patience = "1" if how == "stopped" else "600"
    status, output = launcher.run(2, "-c", LOST, how, late, timeout=60, VGGNET_MPI_PATIENCE=patience)
    assert status != 0 and words in output, output


@pytest.mark.parametrize("name", [*SIZES, "PMIX_RANK"])
def test_launchers_are_known_by_their_variables(monkeypatch, name):
    for other in (*SIZES, "PMIX_RANK"):
        monkeypatch.delenv(other, raising=False)
    assert started() is None
    monkeypatch.setenv(name, "1")
    assert started() == (0 if name == "PMIX_RANK" else 1)


def test_a_process_alone_never_loads_mpi():
    program = (
        "import sys; from vggnet import parallel, train; world = parallel.world(); assert world.gather(1) == [1]\n"
        "assert not {'mpi4py', 'vggnet.parallel.mpi'} & set(sys.modules)"
    )
    for environment in ({}, {"OMPI_COMM_WORLD_SIZE": "1"}, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}):
        subprocess.run([sys.executable, "-c", program], env=launcher.plain() | environment, check=True)


@launcher.needs_mpi
def test_an_mpi_that_is_not_the_launchers():
    result = subprocess.run(
        [sys.executable, "-c", "from vggnet import parallel; parallel.world()"],
        env=launcher.plain() | launcher.OPEN_MPI | {"PMI_SIZE": "4"},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0 and "4 processes were started, but MPI (Open MPI" in result.stderr, (
        result.stderr
    )


def test_without_mpi4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r"pip install 'vggnet\[mpi\]'"):
        mpi.library()


def test_cores_are_shared():
    assert [mpi._own_cpus([[0, 1, 2, 3]] * 3, i) for i in range(3)] == [1, 1, 1]
    assert [mpi._own_cpus([[0, 1], [2, 3, 4], [4]], i) for i in range(3)] == [2, 2, 1]
    assert mpi._own_cpus([list(range(6))] * 2, 0) == 3


def test_alone():
    alone = parallel.Alone()
    alone.abort(1)
    assert alone.concatenate("rows") == "rows"


# A report of all processes is that of one, which rank 0 computes beside.
EVALUATION = """
import numpy as np, vggnet as vgg
from vggnet import evaluate, parallel
from vggnet._C import ImageError

class Data:
    classes = [str(i) for i in range(10)]
    labels = np.arange(102) % 10
    broken = (101,)
    def __len__(self):
        return 102
    def name(self, i):
        return f"{i}.jpg"
    def image(self, i):
        if i in self.broken:
            raise ImageError(f"{i}.jpg is broken")
        rng = np.random.default_rng(i)
        return rng.integers(0, 256, (32 + i % 3, 34 + i % 2, 3), np.uint8)

world = parallel.world()
model = vgg.VGG("A", 10, 32, fc_width=16, init="xavier")
seen = []
for name, batch in (("center", 8), ("dense", 2)):
    protocol = evaluate.Protocol(name, (32,), batch=batch)
    for data in (Data(), vgg.data.Subset(Data(), [2, 3])):  # fewer chunks than processes
        ours = evaluate.evaluate(model, data, protocol, progress=lambda done, n: seen.append(done / n))
        assert len(ours.broken) == (len(data) == 102)
        assert len(data) == 2 or seen[-1] > 0.9
        if world.rank:
                continue
        alone = evaluate.evaluate(model, data, protocol, world=parallel.Alone())
        np.testing.assert_array_equal(ours.posteriors, alone.posteriors)
        same = [r.to_dict() | {"seconds": 0, "images_per_second": 0} for r in (ours, alone)]
        assert same[0] == same[1], same
Data.broken = (0, 99)  # on two ranks
try:
    evaluate.evaluate(model, Data(), "center")
except ImageError as error:
    assert "2 of the 102" in str(error)
else:
    raise AssertionError("two of 102 are more than 1 %")
print("all is well")
"""


@launcher.needs_mpi
def test_evaluation_by_processes_is_that_of_one_bit_for_bit():
    status, output = launcher.run(3, "-c", launcher.NARROW + EVALUATION)
    assert status == 0 and output.count("all is well") == 3, output
