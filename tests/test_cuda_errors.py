"""Why there is no CUDA device: one cause, named; each brought about in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import vggnet as vgg

from helpers import ENVIRONMENT

EMULATOR = os.environ.get("VGGNET_CUDA_LIBS", "")
needs_cuda = pytest.mark.skipif(not vgg.cuda.is_built(), reason="built without CUDA")
needs_emulator = pytest.mark.skipif(
    not (vgg.cuda.is_built() and Path(EMULATOR, "libcudart.so.13").is_file()),
    reason="VGGNET_CUDA_LIBS names no folder with libraries",
)
TOOLKIT = Path("/usr/local/cuda/lib64/libcudart.so.13")

ASK = """
import vggnet as vgg
reason = vgg.cuda.why_not()
print(reason)
assert vgg.cuda.is_available() is (reason is None)
assert reason is None or vgg.cuda.device_count() == 0
assert vgg.zeros((2,)).device == "cpu"
if reason:
    try:
        vgg.zeros((2,), device="cuda:0")
    except vgg.DeviceError as error:
        assert str(error) == reason, error
    else:
        raise AssertionError("a tensor on a device that is not there")
"""


def ask(program=ASK, **settings):
    environment = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("PTXEMU_")} | settings
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_opens_nothing():
    """Neither an import nor work on the CPU looks for CUDA."""
    ask("""
import sys
import vggnet as vgg
vgg.ops.relu(vgg.zeros((3,)))
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
assert "libcud" not in maps and "libcublas" not in maps, maps
assert "vggnet._cuda" not in sys.modules
""")


def test_built_without_cuda():
    reason = ask("import vggnet.cuda as c; c.is_built = lambda: False" + ASK)
    assert reason == 'no CUDA device: built without CUDA. Use device="cpu", or see: vggnet info'


@needs_emulator
def test_a_device_is_there():
    assert ask() == "None"


@needs_emulator
@pytest.mark.parametrize("visible", [None, "", "7"])
def test_no_visible_device(visible):
    settings = {"PTXEMU_DEVICES": "0"} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    reason = ask(**settings)
    said = "no GPU is visible" + ("" if visible is None else f': CUDA_VISIBLE_DEVICES is "{visible}"')
    assert reason.startswith(f"no CUDA device: {said}. ")


@needs_emulator
def test_old_driver():
    reason = ask(PTXEMU_FAIL="cudaGetDeviceCount:1+:35")
    assert "the NVIDIA driver is too old: it knows CUDA 13.0, and 13.0 is needed" in reason


@needs_emulator
def test_broken_driver():
    assert "the driver fails: " in ask(PTXEMU_FAIL="cudaGetDeviceCount:1+:999")


@needs_emulator
@pytest.mark.parametrize("missing", ["libcublas.so.13", "libcudnn.so.9"])
def test_missing_library(tmp_path, missing):
    for library in Path(EMULATOR).glob("*.so.*"):
        if library.name != missing:
            (tmp_path / library.name).symlink_to(library)
    reason = ask(VGGNET_CUDA_LIBS=str(tmp_path))
    if reason == "None":
        pytest.skip(f"{missing} is on the loader's path too")
    assert f"{missing} can't be opened" in reason
    assert "pip install 'vggnet[cuda13]'" in reason


@needs_emulator
def test_older_library(tmp_path):
    """One without a function that is needed."""
    for library in Path(EMULATOR).glob("*.so.*"):
        other = "libcublas.so.13" if library.name == "libcudnn.so.9" else library.name
        (tmp_path / library.name).symlink_to(library.with_name(other))
    assert "libcudnn.so.9 has no function cudnnCreate" in ask(VGGNET_CUDA_LIBS=str(tmp_path))


@needs_cuda
@pytest.mark.skipif(not TOOLKIT.is_file(), reason=f"{TOOLKIT} is not there")
def test_no_driver():
    """The real runtime library, where there is no driver."""
    if Path("/dev/nvidiactl").exists():
        pytest.skip("a driver is there")
    reason = ask(VGGNET_CUDA_LIBS=str(TOOLKIT.parent))
    assert reason == 'no CUDA device: there is no NVIDIA driver. Use device="cpu", or see: vggnet info'
