"""Fixtures of all tests, and the report of what never ran.

At the end of a session the kernels and devices that nothing used are printed. When the whole suite ran
(pytest without a selection), they must be those of never_ran.json for the best ISA of this CPU, and "cuda" where nothing
promises a CUDA device; otherwise the session fails: a kernel that no test reaches is not a tested kernel. So must the
reasons of skipped tests be among those of skipped.json, and no more often than it says.
"""

import contextlib
import json
import os
import platform
from collections import Counter
from pathlib import Path

# The references' BLAS calls are small: its threads would wait for each other longer than they compute.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from vggnet import _C, configs, cuda

import emulator
import helpers

HERE = Path(__file__).parent
ISAS = list(_C.build_info()["isa_available"])
CUDA = ["cuda"] if cuda.is_available() else []


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


@contextlib.contextmanager
def _on(device):
    """What a test makes is there; what the emulator finds meanwhile (bounds, races, ...) is the test's failure."""
    before, found = helpers.use_device(device), emulator.findings()
    yield
    helpers.use_device(before)
    assert emulator.findings() == found, "the emulator found something: see its words on stderr"


@pytest.fixture(params=["cpu", *CUDA])
def device(request):
    """Every kind of device: `helpers.call`, `ops` and `Guarded` use it, and so does `vgg.VGG(..., device=device)`."""
    with _on(request.param):
        yield request.param


@pytest.fixture(params=[*ISAS, *CUDA])
def kernels(request):
    """`isa` and `device` in one: the CPU with every ISA that it has, then a CUDA device."""
    if request.param in CUDA:
        with _on(request.param):
            yield request.param
        return
    before = _C._select_isa(request.param)
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


def may_never_run():
    """What never_ran.json allows here. A device is promised by VGGNET_CUDA_LIBS, or by being there."""
    promised = CUDA or os.environ.get("VGGNET_CUDA_LIBS")
    kernels = json.loads((HERE / "never_ran.json").read_text()).get(ISAS[-1], [])
    return sorted([*kernels, *([] if promised else ["cuda"])])


def _skipped(reporter):
    """Why tests were skipped, by the beginning of the reason that skipped.json has, if it has one -> how many."""
    known = json.loads((HERE / "skipped.json").read_text())
    reasons = (report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", []))
    return Counter(next(filter(reason.startswith, known), reason) for reason in reasons)


def problems(reporter):
    """What makes a session of the whole suite fail."""
    if never_ran() != may_never_run():
        yield f"never_ran.json allows {', '.join(may_never_run()) or 'none'} for {ISAS[-1]}"
    allowed = json.loads((HERE / "skipped.json").read_text())
    for reason, count in _skipped(reporter).items():
        if count > allowed.get(reason, 0):
            yield f"skipped.json allows {allowed.get(reason, 0)}, not {count} tests to be skipped: {reason}"


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
    for reason, count in sorted(_skipped(terminalreporter).items()):
        terminalreporter.line(f"skipped: {count} ({reason})")
    for problem in getattr(config, "problems", ()):
        terminalreporter.line(problem, red=True)


def pytest_sessionfinish(session):
    config = session.config
    if not _whole_suite(config) or not session.testscollected:
        return
    config.problems = list(problems(config.pluginmanager.get_plugin("terminalreporter")))
    if config.problems:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
