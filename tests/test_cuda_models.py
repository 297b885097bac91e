"""Models on a CUDA device: precision, and passes that find no memory."""

import os
import subprocess
import sys

import numpy as np
import pytest
import vggnet as vgg
from vggnet import ops

from helpers import ENVIRONMENT
from launcher import NARROW

needs_cuda = pytest.mark.skipif(not vgg.cuda.is_available(), reason=f"{vgg.cuda.why_not()}")
TF32 = 2.0**-10  # of the sum of the terms' sizes: two factors of 11 bits each


def normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_tf32_of_operations(device):
    """Within TF32's error of float32, on the CPU equal to it."""

    def on(array):
        return vgg.tensor(array, device=device)

    x, w, dy = normal(2, 6, 5, 4), normal(8, 3, 3, 4), normal(2, 6, 5, 8)
    rows, weights, drows = normal(3, 20), normal(7, 20), normal(3, 7)
    cases = [
        (ops.conv2d, (x, w)),
        (ops.conv2d_backward_input, (dy, w)),
        (ops.conv2d_backward_weight, (dy, x)),
        (ops.linear, (rows, weights)),
        (ops.linear_backward_input, (drows, weights)),
        (ops.linear_backward_weight, (drows, rows)),
    ]
    for operation, arrays in cases:
        exact, rounded = (operation(*map(on, arrays), precision=p) for p in ("float32", "tf32"))
        sizes = operation(*map(np.abs, arrays))
        for e, r, s in zip(
            *(a if isinstance(a, tuple) else (a,) for a in (exact, rounded, sizes)), strict=True
        ):
            assert (np.abs(e.numpy() - r.numpy()) <= (0 if device == "cpu" else TF32) * s.numpy()).all()
        with pytest.raises(
            ValueError, match=r"precision is 'half'; expected one of \"float32\", \"tf32\", \"bf16\""
        ):
            operation(*arrays, precision="half")


@pytest.mark.usefixtures("narrow")
def test_precision_of_models(tmp_path):
    model = vgg.VGG("A", num_classes=3, input_size=32, fc_width=8, init="he", precision="tf32")
    x = normal(2, 32, 32, 3)
    model.save(tmp_path / "A.safetensors")
    loaded = vgg.load(tmp_path / "A.safetensors")
    strict = vgg.load(tmp_path / "A.safetensors", precision="float32")
    assert (loaded.precision, strict.precision) == ("tf32", "float32")
    np.testing.assert_array_equal(loaded.forward(x).numpy(), strict.forward(x).numpy())
    with pytest.raises(ValueError, match="precision is 'bf16'"):
        vgg.VGG("A", precision="bf16")


@needs_cuda
@pytest.mark.usefixtures("narrow")
def test_tf32_of_models():
    """The whole net with its gradients, and the dense map, which is made apart from runs."""
    nets = [
        vgg.VGG("A", num_classes=3, input_size=32, fc_width=8, init="he", device=device, precision=precision)
        for device, precision in (("cpu", "float32"), ("cuda", "tf32"))
    ]
    x, labels = normal(2, 32, 32, 3), np.array([0, 2])
    wide = normal(1, 64, 32, 3)
    (cpu_loss, cpu), (loss, grads) = (net.loss_and_gradients(x, labels, training=False) for net in nets)
    assert float(loss) == pytest.approx(float(cpu_loss), rel=1e-2)
    for name, expected in cpu.items():
        norm = np.linalg.norm(expected.numpy())
        assert np.linalg.norm(grads[name].numpy() - expected.numpy()) <= 0.1 * norm
    maps = [net.dense(wide).numpy() for net in nets]
    np.testing.assert_allclose(maps[1], maps[0], rtol=0, atol=1e-2 * np.abs(maps[0]).max())


OUT_OF_MEMORY = (
    NARROW
    + """
import re
import numpy as np
import vggnet as vgg
from vggnet.train.memory import micro_batch
net = vgg.VGG("A", num_classes=3, input_size=32, fc_width=8, init="he", device="cuda")
for training in (False, True):
    try:
        net.run(np.zeros((500, 32, 32, 3), np.float32), training=training)
    except MemoryError as error:
        said = str(error)
    print(said)
    found = re.fullmatch(
        r"cannot allocate (\\d+) bytes on device cuda:0: (\\d+) of its (\\d+) are free; a pass of 500 images takes (\\d+) "
        r"bytes, and the largest batch that fits has (\\d+)", said)
    wanted, free, total, whole, largest = map(int, found.groups())
    assert free < total == 1 << 20 and whole > free
    rows = np.arange(2 * largest) % 3
    for batch, fits in ((largest, True), (largest + largest // 8 + 1, False)):
        x = np.zeros((batch, 32, 32, 3), np.float32)
        try:
            if training:
                net.loss_and_gradients(x, rows[:batch])
            else:
                net.run(x)
        except MemoryError as error:
            assert not fits, (batch, error)
        else:
            assert fits, batch
    assert vgg.cuda.memory_stats()["current"] == sum(p.nbytes for p in net.parameters.values())
assert 1 <= micro_batch(net, 256, [layer.name for layer in net.layers if layer.parameter_shapes]) < 256
"""
)


@pytest.mark.skipif(
    not vgg.cuda.is_available() or "VGGNET_CUDA_LIBS" not in os.environ,
    reason="no emulator, whose memory can be small",
)
def test_out_of_memory():
    settings = {"PTXEMU_MEM": "1M", "PTXEMU_EXIT": "99"}
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY],
        env=ENVIRONMENT | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
