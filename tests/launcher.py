"""Programs under mpirun, for the tests of many processes."""

import importlib.util
import shutil
import subprocess
import sys

import pytest

from helpers import ENVIRONMENT

needs_mpi = pytest.mark.skipif(
    shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None,
    reason="mpirun or mpi4py is missing",
)
OPEN_MPI = {  # of its own; other MPIs do not look at them
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",  # where other tests run beside, one core may be a busy one
}


NARROW = """
from vggnet import configs
for name, text in configs.CONFIGS.items():
    for wide, few in (("64", "2"), ("128", "3"), ("256", "4"), ("512", "5")):
        text = text.replace(wide, few)
    configs.CONFIGS[name] = text
"""  # the beginning of a program whose nets are as those of the fixture `narrow`


def start(n, *arguments, **environment):
    """``python ...`` as n processes; what they print, on both streams, is the stdout."""
    return subprocess.Popen(
        ["mpirun", "-n", str(n), sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT | OPEN_MPI | environment,
    )


def run(n, *arguments, timeout=120, **environment):
    """The same, to its end: exit status and output."""
    process = start(n, *arguments, **environment)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        raise
    return process.returncode, output


def plain():
    """The environment of a process that no launcher started."""
    prefixes = ("OMPI_COMM", "PMIX", "PMI_", "SLURM")
    return {name: value for name, value in ENVIRONMENT.items() if not name.startswith(prefixes)}
