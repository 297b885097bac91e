"""The extension as a whole: leaks, interpreters, environment, exceptions, threads, signals, docstrings."""

import doctest
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import vggnet as vgg
from vggnet import _C

PACKAGE = Path(vgg.__file__).parent
FUNCTIONS = [name for name in dir(_C) if inspect.isbuiltin(getattr(_C, name))]
TYPES = [_C.Tensor, _C.Storage]


def python(code, **environment):
    """Runs code in a new interpreter that sees this vggnet."""
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, timeout=300
    )


# ---- leaks


def test_fma_peak():
    assert _C.fma_peak() > 1e8
    with pytest.raises(ValueError, match="threads is 0"):
        _C.fma_peak(0)


def test_memory_bandwidth():
    rates = _C.memory_bandwidth()
    assert set(rates) == {"read", "write", "update"} and min(rates.values()) > 1e8
    with pytest.raises(ValueError, match="threads is 0"):
        _C.memory_bandwidth(0)
    _C._fail_allocation(1)
    with pytest.raises(MemoryError):
        _C.memory_bandwidth()


def test_nothing_leaks():
    """Every function and type, and an error on each path: neither Python objects nor tensor memory grows."""
    run = python((Path(__file__).parent / "leaks.py").read_text(), VGGNET_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["leaks"] == {}
    assert result["types"] == {"Tensor": 0, "Storage": 0}
    expected = {*FUNCTIONS, *(cls.__name__ for cls in TYPES)}
    assert expected <= set(result["called"]), "a function or type is missing from the leak test"


def test_types_are_collected_in_cycles():
    """GC sees a tensor's storage and type."""
    import gc

    t = vgg.zeros(3)
    assert gc.is_tracked(t)
    assert {_C.Tensor, t.storage} <= set(gc.get_referents(t))
    assert gc.is_tracked(t.storage)


def test_no_shutdown_crash():
    """Tensors, views and capsules alive at exit, in a global and in a thread."""
    run = python(
        """
        import threading, time
        import numpy as np
        import vggnet as vgg
        t = vgg.zeros(3)
        kept = [t, t.numpy(), memoryview(t), np.from_dlpack(t), t.__dlpack__()]
        kept.append(vgg.from_dlpack(np.zeros(3, np.float32)))
        kept.append(kept)
        threading.Thread(target=lambda: time.sleep(10) or kept, daemon=True).start()
        """
    )
    assert (run.returncode, run.stderr) == (0, "")


# ---- interpreters and environment


def test_import_in_subinterpreter():
    """NumPy's C API is one for the process: where Python asks (from 3.12 on), a subinterpreter is refused."""
    if sys.version_info < (3, 12):
        pytest.skip("Python asks from 3.12 on")
    run = python(
        """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        import vggnet
        i = interpreters.create()
        code = "try:\\n import vggnet._C\\nexcept ImportError as e: print(e)\\nelse: print('imported')"
        print(interpreters.run_string(i, code))
        interpreters.destroy(i)
        """
    )
    assert run.returncode == 0, run.stderr
    assert "does not support loading in subinterpreters" in run.stdout


def test_two_modules_have_states_of_their_own():
    run = python(
        """
        import importlib.util, sys
        import vggnet
        from vggnet import _C
        spec = importlib.util.spec_from_file_location("vggnet._C", _C.__file__)
        other = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(other)
        assert other.Tensor is not _C.Tensor and other.VggError is not _C.VggError
        t = other.zeros(3)
        assert type(t) is other.Tensor
        assert other.devices() == _C.devices() == ["cpu"]
        assert _C.relu(t).shape == (3,)  # foreign, so by way of its buffer
        try:
            _C.add_(t, t)
        except TypeError as error:
            print(error)
        del other, t
        import gc
        gc.collect()
        """
    )
    assert run.returncode == 0, run.stderr
    assert "expected a Tensor" in run.stdout


@pytest.mark.parametrize("isa", ["scalr", "AVX2", "mmx"])
def test_unknown_isa(isa):
    run = python("import vggnet", VGGNET_ISA=isa)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: environment variable VGGNET_ISA:")
    assert isa in last
    assert all(name in last for name in ("scalar", "avx2", "avx512"))


def test_import_loads_numpy_only():
    run = python(
        "import sys; import numpy; before = set(sys.modules); import vggnet; print(set(sys.modules) - before)"
    )
    assert run.returncode == 0, run.stderr
    for name in ("PIL", "safetensors", "tqdm", "matplotlib", "torch"):
        assert f"'{name}'" not in run.stdout
    assert run.stderr == ""


def test_build_info():
    info = vgg.build_info()
    assert set(info) == {"version", "compiler", "isa", "isa_available", "threads", "kernels", "cuda"}
    assert info["version"] == vgg.__version__
    assert re.fullmatch(r"(gcc|clang) \d+\..*", info["compiler"])
    assert info["isa"] in info["isa_available"]
    assert info["isa_available"][0] == "scalar"
    assert info["threads"] == vgg.get_num_threads()
    assert info["kernels"] == [k["name"] for k in _C.kernels() if k["selected"]]
    assert info["cuda"] == {"built": vgg.cuda.is_built(), "why_not": vgg.cuda.why_not()}
    for kernel in _C.kernels():
        assert set(kernel) == {"name", "slot", "isa", "mr", "nr", "available", "selected", "uses"}
        assert kernel["available"] == (kernel["isa"] in info["isa_available"])


def test_version_in_one_place():
    from importlib import metadata

    try:
        assert metadata.version("vggnet") == vgg.__version__
    except metadata.PackageNotFoundError:
        pytest.skip("vggnet is imported from its tree, not installed")


def test_extension_uses_the_limited_api():
    import sysconfig

    suffix = ".abi3.so" if not sysconfig.get_config_var("Py_GIL_DISABLED") else ".so"
    assert _C.__file__.endswith(suffix)


# ---- exceptions


def test_exceptions():
    assert vgg.VggError.__bases__ == (Exception,)
    assert vgg.DeviceError.__bases__ == (vgg.VggError, RuntimeError)
    assert vgg.WeightsError.__bases__ == (vgg.VggError, ValueError)
    assert vgg.ImageError.__bases__ == (vgg.VggError, ValueError)
    for error in (vgg.VggError, vgg.DeviceError, vgg.WeightsError, vgg.ImageError):
        assert error.__module__ == "vggnet"
        assert error.__doc__


# ---- backends


def test_register_backend_takes_its_capsule_only():
    for thing in (None, 3, vgg.zeros(1).__dlpack__()):
        with pytest.raises(TypeError, match='expected a PyCapsule named "vggnet.backend"'):
            _C.register_backend(thing)
    with pytest.raises(ValueError, match='"cpu" is registered already'):
        _C.register_backend(_C.cpu_backend_capsule())


# ---- threads and signals


def test_num_threads():
    before = vgg.get_num_threads()
    vgg.set_num_threads(3)
    assert vgg.get_num_threads() == 3
    vgg.set_num_threads(before)
    for bad, error in [
        (0, ValueError),
        (-1, ValueError),
        (1 << 40, ValueError),
        (1.5, TypeError),
        ("2", TypeError),
    ]:
        with pytest.raises(error, match="n is"):
            vgg.set_num_threads(bad)
    assert vgg.get_num_threads() == before


def test_the_gil_is_released():
    """Python goes on in another thread while one long operation runs."""
    x, w = np.ones((400, 3000), np.float32), np.ones((3000, 3000), np.float32)
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    _C.linear(x, w)
    end = time.perf_counter()
    done.set()
    thread.join()
    assert sum(start < tick < end for tick in ticks) >= 1


def test_operations_from_many_threads():
    x = np.random.default_rng(0).standard_normal((2, 16, 16, 8)).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((16, 3, 3, 8)).astype(np.float32)
    expected = _C.conv2d(x, w).numpy()
    wrong = []

    def work():
        for _ in range(20):
            if not np.array_equal(_C.conv2d(x, w).numpy(), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_signals_are_seen_after_an_operation():
    """A handler that raises, as Ctrl-C's does, is run when the operation ends; its results are dropped."""
    run = python(
        """
        import signal, threading, time, os
        import numpy as np
        from vggnet import _C
        x, w = np.ones((500, 4000), np.float32), np.ones((4000, 4000), np.float32)
        _C.set_num_threads(1)
        threading.Timer(0.02, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        before = _C.memory_stats()["current"]
        try:
            y = _C.linear(x, w)
        except KeyboardInterrupt:
            assert _C.memory_stats()["current"] == before
            print("interrupted in the operation")
        """
    )
    assert run.returncode == 0, run.stderr
    assert "interrupted in the operation" in run.stdout


# ---- documentation


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_documented(name):
    function = getattr(_C, name)
    parameters = inspect.signature(function).parameters
    doc = inspect.getdoc(function)
    assert doc
    assert doc.splitlines()[0].endswith((".", ":", '").')) or "\n\n" in doc
    if not name.startswith("_") and len(parameters) > 1:
        assert "Parameters\n----------" in doc
        for parameter in parameters:
            assert re.search(rf"\b{parameter}\b", doc), f"{name}: {parameter} is not documented"


def test_methods_are_documented():
    for cls in TYPES:
        assert inspect.getdoc(cls)
        for name, member in vars(cls).items():
            if not name.startswith("__") or name in ("__array__", "__dlpack__", "__dlpack_device__"):
                assert inspect.getdoc(member), f"{cls.__name__}.{name}"
                if callable(member):
                    inspect.signature(member)


def test_doctests():
    result = doctest.testmod(_C)
    for name in FUNCTIONS:
        finder = doctest.DocTestFinder()
        for test in finder.find(getattr(_C, name), name, globs={}):
            result = doctest.DocTestRunner().run(test)
            assert result.failed == 0


def test_typed():
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "_C.pyi").exists()
