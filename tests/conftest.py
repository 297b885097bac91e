"""Fixtures of all tests, and the report of what never ran.

At the end of a session the kernels and devices that nothing used are printed. When the whole suite ran
(pytest without a selection), they must be those of never_ran.json for the best ISA of this CPU; otherwise the
session fails: a kernel that no test reaches is not a tested kernel.
"""

import json
import os
import platform
from pathlib import Path

# The references' BLAS calls are small: its threads would wait for each other longer than they compute.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from vggnet import _C, configs

HERE = Path(__file__).parent
ISAS = list(_C.build_info()["isa_available"])


@pytest.fixture
def rng(request):
    """Seeded by the test's own name, so a test draws the same numbers whichever others run."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture(params=ISAS)
def isa(request):
    """Every ISA that this CPU has, in turn."""
    before = _C._select_isa(request.param)
    assert _C.build_info()["isa"] == request.param
    yield request.param
    _C._select_isa(before)


@pytest.fixture
def threads():
    """set_num_threads, put back afterwards."""
    before = _C.get_num_threads()
    yield _C.set_num_threads
    _C.set_num_threads(before)


@pytest.fixture
def narrow(monkeypatch):
    """The paper's nets with a few channels instead of hundreds: files of weights take kilobytes."""
    for name, text in configs.CONFIGS.items():
        for wide, few in (("64", "2"), ("128", "3"), ("256", "4"), ("512", "5")):
            text = text.replace(wide, few)
        monkeypatch.setitem(configs.CONFIGS, name, text)


def never_ran():
    """Kernels of the table that nothing called, and devices that nothing was allocated on."""
    kernels = {kernel["name"] for kernel in _C.kernels() if not kernel["uses"]}
    used = {device.split(":")[0] for device in _C.devices() if _C.memory_stats(device)["allocations"]}
    return sorted(kernels | ({"cpu", "cuda"} - used))


def _whole_suite(config):
    """Whether pytest was told to run everything: no file, no -k, no --lf, no -x."""
    partial = ("keyword", "lf", "failedfirst", "collectonly", "maxfail", "deselect", "ignore")
    narrowed = any(getattr(config.option, name, None) for name in partial)
    return not narrowed and not any("::" in a or a.endswith(".py") for a in config.args)


def pytest_terminal_summary(terminalreporter, config):
    idle, best = never_ran(), ISAS[-1]
    terminalreporter.section("kernels and devices")
    terminalreporter.line(
        f"{platform.machine()}, best ISA {best}; ran: {', '.join(ISAS)}; devices: {_C.devices()}"
    )
    terminalreporter.line(f"never ran: {', '.join(idle) or 'none'}")
    if problem := getattr(config, "never_ran_problem", None):
        terminalreporter.line(problem, red=True)


def pytest_sessionfinish(session):
    config = session.config
    if not _whole_suite(config) or not session.testscollected:
        return
    expected = json.loads((HERE / "never_ran.json").read_text())
    best = ISAS[-1]
    if sorted(expected.get(best, [])) != never_ran():
        config.never_ran_problem = f"never_ran.json says {expected.get(best)} for {best}"
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
