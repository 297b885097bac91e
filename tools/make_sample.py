"""Select the sample of Fashion-MNIST that ships in vggnet/sample, and write or check it.

Of each class, those images are taken whose key is smallest: the SHA-256 of "vggnet sample <seed> <part>
<index>", where <part> is train or test and <index> counts from 0 in the original file. So the choice is fixed
for ever, is the same on every machine, favours no image, and is balanced over the classes. The selected
images keep their original order.

    python tools/make_sample.py [--dir FOLDER]           write the file, print its SHA-256
    python tools/make_sample.py [--dir FOLDER] --check   compare the file with the selection

FOLDER holds the four original files; by default it is where Debian's package dataset-fashion-mnist puts them.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from vggnet.data import FASHION_MNIST_DIR, FashionMNIST

SEED = 0
PER_CLASS = {"train": 400, "test": 100}
SAMPLE = Path(__file__).parent.parent / "vggnet" / "sample" / "fashion_mnist.npz"


def select(labels: npt.NDArray[np.int64], part: str) -> npt.NDArray[np.int32]:
    """Indices of the selected images, ascending."""
    keys = [hashlib.sha256(f"vggnet sample {SEED} {part} {i}".encode()).digest() for i in range(len(labels))]
    chosen: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label).tolist()
        chosen += sorted(members, key=keys.__getitem__)[: PER_CLASS[part]]
    return np.array(sorted(chosen), np.int32)


def selection(folder: str) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of the sample."""
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for part in PER_CLASS:
        dataset = FashionMNIST(folder, train=part == "train")
        index = select(dataset.labels, part)
        arrays[f"{part}_images"] = np.stack([dataset.image(i)[:, :, 0] for i in index])
        arrays[f"{part}_labels"] = dataset.labels[index].astype(np.uint8)
        arrays[f"{part}_index"] = index
    return arrays


def main() -> int:
    parser = argparse.ArgumentParser(description="Write or check vggnet/sample/fashion_mnist.npz")
    parser.add_argument(
        "--dir", default=FASHION_MNIST_DIR, help="folder of the original files (default: %(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    arrays = selection(arguments.dir)
    if arguments.check:
        with np.load(SAMPLE, allow_pickle=False) as file:
            same = set(file) == set(arrays) and all(
                file[name].dtype == array.dtype and np.array_equal(file[name], array)
                for name, array in arrays.items()
            )
        print(f"{SAMPLE}: {'as selected' if same else 'DIFFERS from the selection'}")
        return 0 if same else 1
    np.savez_compressed(SAMPLE, allow_pickle=False, **arrays)
    content = SAMPLE.read_bytes()
    print(
        f"{SAMPLE}: {len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()} "
        "(belongs into vggnet/data/fashion_mnist.py)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
