"""The memory plan is the memory taken: byte for byte by the allocator's counter, and in the resident set."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import numpy as np
import pytest
import vggnet as vgg
from vggnet import _C, ops

SMALL = {"num_classes": 10, "input_size": 32, "fc_width": 48, "init": "he"}


def peak_of(work) -> int:
    """Bytes that `work` adds at its peak to what lives before it."""
    gc.collect()  # what earlier tests left must not go in between
    before = vgg.memory_stats()["current"]
    _C.reset_peak_memory("cpu")
    keep = work()
    peak = vgg.memory_stats()["peak"] - before
    del keep
    return peak


@pytest.mark.parametrize("config", ["A", "A-LRN", "C", "E"])
@pytest.mark.parametrize("batch", [1, 5])
def test_inference_takes_what_the_plan_says(config: str, batch: int) -> None:
    model = vgg.VGG(config, **SMALL)
    plan = model.memory_plan(batch)

    def work() -> object:
        x = vgg.zeros((batch, 32, 32, 3))
        return x, model.forward(x)

    assert peak_of(work) == plan.total - plan["parameters"]


@pytest.mark.parametrize("config", ["A", "A-LRN", "C", "E"])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_training_step_takes_what_the_plan_says(config: str, batch: int) -> None:
    model = vgg.VGG(config, **SMALL)
    plan = model.memory_plan(batch, training=True)

    def work() -> object:
        x = vgg.zeros((batch, 32, 32, 3))
        velocity = [vgg.zeros(p.shape) for p in model.parameters.values()]
        _, grads = model.loss_and_gradients(x, np.zeros(batch, np.int64))
        ops.sgd_(list(model.parameters.values()), list(grads.values()), velocity, lr=0.01)
        return x, velocity, grads

    assert peak_of(work) == plan.total - plan["parameters"]


def test_the_plan_allocates_nothing() -> None:
    model = vgg.VGG("D", **SMALL)
    gc.collect()
    before = vgg.memory_stats()
    model.memory_plan(256, size=(480, 640))
    model.memory_plan(256, training=True)
    assert vgg.memory_stats() == before


def test_the_plan_of_another_size_goes_up_to_pool5() -> None:
    model = vgg.VGG("A", **SMALL)
    plan = model.memory_plan(1, size=(64, 96))

    def work() -> object:
        x = vgg.zeros((1, 64, 96, 3))
        return x, model.features(x, ["pool5"])

    assert peak_of(work) == plan.total - plan["parameters"]


def test_the_plan_of_some_layers() -> None:
    model = vgg.VGG("A", **SMALL)
    plan = model.memory_plan(2, size=(64, 96), layers=["relu1_1", "conv3_2"])

    def work() -> object:
        x = vgg.zeros((2, 64, 96, 3))
        return x, model.features(x, ["relu1_1", "conv3_2"])

    assert peak_of(work) == plan.total - plan["parameters"]


@pytest.mark.parametrize("training", [False, True])
def test_a_plan_that_is_too_small_fails_and_does_not_grow(
    monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    from vggnet.run import Arena

    model = vgg.VGG("A", **SMALL)
    views = Arena.views

    def cut(self: Arena, device: str) -> object:
        self.size -= 1 + self.size // 2
        return views(self, device)

    monkeypatch.setattr(Arena, "views", cut)
    gc.collect()
    before = vgg.memory_stats()["current"]
    with pytest.raises(ValueError, match="outside the tensor"):
        model.run(np.zeros((2, 32, 32, 3), np.float32), training=training)
    assert vgg.memory_stats()["current"] == before


def test_logits_do_not_hold_the_arena() -> None:
    model = vgg.VGG("A", **SMALL)
    x = np.zeros((4, 32, 32, 3), np.float32)
    model.forward(x)  # transforms weights, once
    gc.collect()
    before = vgg.memory_stats()["current"]
    logits = model.forward(x)
    assert vgg.memory_stats()["current"] - before == logits.nbytes


def test_training_lets_transformed_weights_go() -> None:
    model = vgg.VGG("A", **SMALL)
    x = np.zeros((2, 32, 32, 3), np.float32)
    gc.collect()
    before = vgg.memory_stats()["current"]
    model.forward(x)
    assert vgg.memory_stats()["current"] - before == model.memory_plan(2)["transformed weights"]
    model.loss_and_gradients(x, np.zeros(2, np.int64))
    assert vgg.memory_stats()["current"] == before


FULL = """
import json, pathlib, sys
import numpy as np
import vggnet as vgg
from vggnet import ops, _C

def rss():  # at its peak; getrusage would tell the parent's too
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

training = sys.argv[1] == "training"
before = rss()
model = vgg.VGG("D", init=None)
plan = model.memory_plan(2, training=training)
_C.reset_peak_memory("cpu")
x = vgg.zeros((2, 224, 224, 3))
if training:
    velocity = [vgg.zeros(p.shape) for p in model.parameters.values()]
    loss, grads = model.loss_and_gradients(x, np.array([1, 2]))
    ops.sgd_(list(model.parameters.values()), list(grads.values()), velocity, lr=0.01)
else:
    model.forward(x)
print(json.dumps({"plan": plan.total, "peak": vgg.memory_stats()["peak"], "rss": rss() - before}))
"""


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_net_d_at_full_size(mode: str) -> None:
    """Net D, two images of 224 x 224, in a process of its own so that its resident set can be seen."""
    done = subprocess.run([sys.executable, "-c", FULL, mode], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert figures["peak"] == figures["plan"]
    assert abs(figures["rss"] - figures["plan"]) <= 0.10 * figures["plan"], figures


LOAD = """
import json, pathlib, sys
import vggnet.checkpoint
import vggnet as vgg

def rss():
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

before = rss()
model = vgg.load(sys.argv[1])
print(json.dumps({"rss": rss() - before, "parameters": 4 * model.num_parameters}))
"""


def test_loading_does_not_hold_the_weights_twice(tmp_path) -> None:
    """A file is mapped while it is read, which counts as well; only parts of it may be there beside the model.

    Held twice, it would be 2 times the weights; the parts, and modules that loading imports, take up to 0.55.
    """
    path = tmp_path / "model.safetensors"
    vgg.VGG("A", input_size=32, init="he").save(path)
    done = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert figures["rss"] <= 1.75 * figures["parameters"], figures


RESIDENT = """
import gc
import numpy as np
import vggnet as vgg
from vggnet.memory import kept

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def give_and_take(count, megabytes):
    for _ in range(count):
        vgg.zeros((megabytes << 18,))

give_and_take(1, 1)
before = resident()
give_and_take(3, 200)
assert resident() - before < 50e6, "kept though nobody asked for it"
with kept():
    with kept():
        give_and_take(3, 200)
    assert 200e6 < resident() - before < 250e6, "not kept"
    a = vgg.zeros((200 << 18,))
    assert not a.numpy().any() and resident() - before < 250e6, "the kept block was not taken"
    del a
    give_and_take(1, 300)
    assert 300e6 < resident() - before < 350e6, "two sizes were kept"
    tensors = [vgg.zeros((70 << 18,)) for _ in range(12)]
    del tensors
    assert resident() - before < 9 * 75e6, "more blocks than there are places"
assert resident() - before < 50e6, "not given back"
"""


def test_large_memory_is_kept_while_somebody_asks_for_it() -> None:
    """For the next request of the same size only; by the resident set."""
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
