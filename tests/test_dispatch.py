"""Which kernel runs: the best that the CPU has, capped by VGGNET_ISA, never silently another."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from vggnet import _C

import tolerance
from reference import conv2d

ISAS = ["scalar", "avx2", "avx512"]
AVAILABLE = list(_C.build_info()["isa_available"])

CHILD = """
import json
import numpy as np
from vggnet import _C
rng = np.random.default_rng(0)
x, w = (rng.standard_normal(s).astype(np.float32) for s in [(2, 9, 11, 19), (37, 3, 3, 19)])
y = _C.conv2d(x, w, algorithm="direct")
for algorithm in ("winograd2", "winograd4", "winograd6"):
    _C.conv2d(x, w, algorithm=algorithm)
for algorithm in ("winograd4", "winograd6"):
    _C.conv2d_backward_weight(y, x, algorithm=algorithm)
_C.conv2d(x[..., :3], np.repeat(w[..., :3], 2, axis=0))
_C.conv2d_backward_input(y, w[..., :3])
_C.conv2d_backward_weight(y, x[..., :3])
_C.linear_backward_weight(_C.linear(x[0, :8, 0], w[:, 0, 0]), x[0, :8, 0])
_C.average_gradients_([[_C.zeros((64,))]])
y = y.numpy().tolist()
state = {"info": _C.build_info(), "kernels": _C.kernels(), "threads": _C.get_num_threads()}
print(json.dumps({**state, "y": y}))
"""


def child(**environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith("VGGNET_")} | environment
    return subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, timeout=120)


def test_the_table():
    kernels = _C.kernels()
    assert len({k["name"] for k in kernels}) == len(kernels)
    for kernel in kernels:
        pattern = "vgg_sgemm_{mr}x{nr}__{isa}" if kernel["slot"] == "gemm" else "vgg_{slot}__{isa}"
        assert kernel["name"] == pattern.format(**kernel)
        assert kernel["isa"] in ISAS
        assert kernel["available"] == (kernel["isa"] in AVAILABLE)
        assert kernel["mr"] >= 1 and kernel["nr"] >= 1 and kernel["uses"] >= 0
    by_slot = {}
    for kernel in kernels:
        by_slot.setdefault(kernel["slot"], []).append(kernel)
    for slot, rows in by_slot.items():
        assert rows[0]["isa"] == "scalar", f"slot {slot} has no kernel that runs everywhere"
        assert sum(row["selected"] for row in rows) == 1


def test_each_isa_runs_its_own_kernel(isa):
    before = {k["name"]: k["uses"] for k in _C.kernels()}
    _C.conv2d(np.ones((1, 2, 2, 3), np.float32), np.ones((4, 3, 3, 3), np.float32))
    used = [k for k in _C.kernels() if k["uses"] > before[k["name"]]]
    assert used and all(k["isa"] == isa and k["selected"] for k in used)
    assert _C.build_info()["isa"] == isa


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="this system has no /proc/cpuinfo")
def test_detection_agrees_with_the_system():
    """The operating system's kernel asked CPUID too."""
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    assert ("avx2" in AVAILABLE) == ({"avx2", "fma"} <= flags)
    assert ("avx512" in AVAILABLE) == ({"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags)


def test_best_is_taken_when_nothing_is_said():
    result = json.loads(child().stdout)
    assert result["info"]["isa"] == AVAILABLE[-1] == result["info"]["isa_available"][-1]


@pytest.mark.parametrize("name", ["", *ISAS])
def test_environment_caps_the_choice(name):
    completed = child(VGGNET_ISA=name)
    if name and name not in AVAILABLE:
        assert completed.returncode != 0
        assert re.search(rf"ImportError.*VGGNET_ISA.*{name}", completed.stderr)
        return
    assert completed.returncode == 0, completed.stderr
    result = json.loads(completed.stdout)
    assert result["info"]["isa"] == (name or AVAILABLE[-1])
    selected = [k for k in result["kernels"] if k["selected"]]
    assert all(k["isa"] == result["info"]["isa"] and k["uses"] for k in selected)
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32).astype(float) for s in [(2, 9, 11, 19), (37, 3, 3, 19)])
    tolerance.assert_within(result["y"], conv2d.forward(x, w), tolerance.conv2d_bound(x, w))


@pytest.mark.parametrize("name", ["sse9", "AVX2 ", "avx", "scalar,avx2"])
def test_unknown_isa_is_an_import_error(name):
    completed = child(VGGNET_ISA=name)
    assert completed.returncode != 0
    assert "ImportError" in completed.stderr and "VGGNET_ISA" in completed.stderr
    assert name in completed.stderr and "scalar" in completed.stderr and "avx2" in completed.stderr


def test_select_isa_refuses_what_is_not_there():
    before = _C.build_info()["isa"]
    with pytest.raises(ValueError, match="sse9"):
        _C._select_isa("sse9")
    for name in set(ISAS) - set(AVAILABLE):
        with pytest.raises(NotImplementedError, match=name):
            _C._select_isa(name)
    assert _C.build_info()["isa"] == before


def test_number_of_threads():
    assert json.loads(child(VGGNET_NUM_THREADS="3").stdout)["threads"] == 3
    assert json.loads(child().stdout)["threads"] == len(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match="0"):
        _C.set_num_threads(0)
    assert _C.get_num_threads() >= 1
