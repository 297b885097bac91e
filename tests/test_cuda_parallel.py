"""Training on two CUDA devices of an emulator, averaged by NCCL: what two CPU devices do, to rounding."""

import subprocess
import sys
from pathlib import Path

import pytest

import emulator
from helpers import ENVIRONMENT

pytestmark = pytest.mark.skipif(emulator.library() is None, reason="VGGNET_CUDA_LIBS names no emulator")

PROGRAM = """
import dataclasses
import numpy as np
from vggnet import configs, parallel
for name, text in configs.CONFIGS.items():
    for wide, few in (("64", "4"), ("128", "4"), ("256", "4"), ("512", "4")):
        text = text.replace(wide, few)
    configs.CONFIGS[name] = text
from test_train import SMALL, assert_equal_weights, fit, net, patterns
parallel.replicas.plan_buckets = lambda p, layers: parallel.plan_buckets(p, layers, 1000)
recipe = dataclasses.replace(SMALL, batch=3, iterations=2, holdout=0)

def trained(kind):
    model = net(device=f"{kind}:0", fc_width=8)
    history = fit(model, patterns(4), recipe=recipe, devices=[f"{kind}:0", f"{kind}:1"], progress=False)
    return model, [row.train_loss for row in history.rows]

(cpu, losses), (cuda, ours), (again, _) = trained("cpu"), trained("cuda"), trained("cuda")
np.testing.assert_allclose(ours, losses, rtol=1e-4)
before = net(fc_width=8)
for name, p in cpu.parameters.items():
    moved = np.linalg.norm(p.numpy() - before.parameters[name].numpy())
    assert np.linalg.norm(cuda.parameters[name].numpy() - p.numpy()) <= 1e-2 * moved, name
assert_equal_weights(cuda, again)
"""


def test_two_devices_of_one_process():
    settings = {"PTXEMU_EXIT": "99", "PTXEMU_DEVICES": "2", "PTXEMU_NCCL_TIMEOUT": "20"}
    path = f"{ENVIRONMENT['PYTHONPATH']}:{Path(__file__).parent}"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=ENVIRONMENT | settings | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
