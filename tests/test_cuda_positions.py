"""Kernels of csrc/cuda at positions from 2^31 on: their sources compiled for the host, where only the threads that come to such
positions run, on arrays whose other pages are never touched."""

import re
import subprocess
from pathlib import Path

from test_cuda_build import toolkit

CSRC = Path(__file__).parent.parent / "csrc"
PROGRAM = Path(__file__).parent / "backend" / "positions.cpp"
FILES = [
    "elementwise",
    "images",
    "lrn",
    "max_pool2d",
    "random",
    "update",
]  # in the others, threads work together
LAUNCH = re.compile(r"(\w+)<<<(.*?), BLOCK, 0, stream>>>")


def test_positions_beyond_32_bits(tmp_path):
    cuda, _ = toolkit()
    for name in FILES:
        text = (CSRC / "cuda" / f"{name}.cu").read_text()
        host, count = LAUNCH.subn(r"on_host(\2, BLOCK, [](auto... a) { \1(a...); })", text)
        assert count == text.count("<<<") > 0
        (tmp_path / f"{name}.cpp").write_text(host)
    program = tmp_path / "positions"
    includes = [tmp_path, CSRC / "cuda", cuda.home / "include"]
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", *(f"-I{folder}" for folder in includes)]
    subprocess.run(["g++", *flags, PROGRAM, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
