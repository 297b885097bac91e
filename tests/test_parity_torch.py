"""Optional second opinion: torch runs the same six nets, weights copied, in float64 and in float32.

Logits agree to 1e-5 relative L2. Gradients are as close to torch's float64 as torch's own float32 comes: a
ReLU or a pool's winner that flips at rounding moves a deep net's gradients by up to 1e-2, so they are
compared over seeds.
"""

import numpy as np
import pytest
import vggnet as vgg

from reference import net
from tolerance import relative_l2

torch = pytest.importorskip("torch", reason="the second opinion needs torch (pip install torch==2.13.0)")
F = torch.nn.functional


def torch_logits(config, parameters, x):
    """x (N, C, H, W); parameters in vggnet's layout, so fc6 takes (row, column, channel) order."""
    h = x
    for kind, name in net.layers(config)[:-1]:
        if kind == "conv":
            w = parameters[f"{name}.weight"]
            h = F.conv2d(h, w.permute(0, 3, 1, 2), parameters[f"{name}.bias"], padding=w.shape[1] // 2)
        elif kind == "relu":
            h = F.relu(h)
        elif kind == "lrn":
            h = F.local_response_norm(h, 5, alpha=5e-4, beta=0.75, k=2.0)  # torch divides alpha by the size
        elif kind == "pool":
            h = F.max_pool2d(h, 2)
        elif kind == "linear":
            h = h.permute(0, 2, 3, 1) if h.ndim == 4 else h
            h = F.linear(h.flatten(1), parameters[f"{name}.weight"], parameters[f"{name}.bias"])
    return h


def torch_run(config, arrays, x, labels, dtype):
    """-> logits, loss, {name: gradient}, dx (N, H, W, C)."""
    parameters = {k: torch.tensor(v, dtype=dtype, requires_grad=True) for k, v in arrays.items()}
    image = torch.tensor(x.transpose(0, 3, 1, 2), dtype=dtype, requires_grad=True)
    logits = torch_logits(config, parameters, image)
    loss = F.cross_entropy(logits, torch.tensor(labels))
    loss.backward()
    gradients = {k: v.grad.numpy() for k, v in parameters.items()}
    return logits.detach().numpy(), loss.item(), gradients, image.grad.numpy().transpose(0, 2, 3, 1)


def compare(config, seeds, n, **options):
    ours, theirs = [], []
    for seed in range(seeds):
        model = vgg.VGG(config, **options)
        draw = np.random.default_rng([*config.encode(), seed])
        arrays = net.random_parameters({k: t.shape for k, t in model.parameters.items()}, draw)
        model.load_parameters(arrays)
        size = model.input_size
        x = (60 * draw.standard_normal((n, size, size, 3))).astype(np.float32)
        labels = draw.integers(0, model.num_classes, n)
        run = model.run(x)
        loss, dlogits = vgg.ops.cross_entropy(run.logits, labels)
        grads, dx = run.backward({"fc8": dlogits}, input=True)
        exact, rounded = (
            torch_run(config, arrays, x, labels, dtype) for dtype in (torch.float64, torch.float32)
        )
        assert relative_l2(run.logits, exact[0]) < 1e-5
        assert float(loss) == pytest.approx(exact[1], rel=1e-4)
        ours.append([relative_l2(grads[k], exact[2][k]) for k in arrays] + [relative_l2(dx, exact[3])])
        theirs.append(
            [relative_l2(rounded[2][k], exact[2][k]) for k in arrays] + [relative_l2(rounded[3], exact[3])]
        )
    return np.array(ours), np.array(theirs)


@pytest.mark.parametrize("config", net.CONFIGS)
def test_small_nets(config):
    ours, theirs = compare(config, seeds=3, n=2, num_classes=10, input_size=32, fc_width=24)
    assert np.median(ours) <= 4 * np.median(theirs) + 1e-6
    assert ours.max() < 5e-2


@pytest.mark.nightly
@pytest.mark.parametrize("config", net.CONFIGS)
def test_full_size_nets(config):
    ours, theirs = compare(config, seeds=2, n=1, num_classes=1000, input_size=224, fc_width=4096)
    assert np.median(ours) <= 4 * np.median(theirs) + 1e-6
    assert ours.max() < 5e-2
