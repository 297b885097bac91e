"""Makes a small ILSVRC-2012: the files as distributed, or unpacked, with the devkit and boxes, in their exact formats."""

import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

LAYOUTS = ("archives", "folders", "flat")


@dataclass
class Tree:
    """What `make` wrote.

    `synsets`: WordNet ids in the order of the class index; `words`: of each; `files[part]`: names and contents, in
    order; `labels[part]`: class indices; `boxes[part]`: of each file, left, top, right, bottom of each object.
    """

    directory: Path
    synsets: list[str]
    words: list[str]
    files: dict[str, list[tuple[str, bytes]]] = field(default_factory=dict)
    labels: dict[str, list[int]] = field(default_factory=dict)
    boxes: dict[str, list[list[tuple[int, ...]]]] = field(default_factory=dict)


def make(directory, *, classes=4, train=3, val=2, sizes=(40, 72), layout="archives", seed=0):
    """Write a tree.

    Parameters
    ----------
    directory : Path
        Made when it is not there.
    classes, train, val : int
        Classes, and images of each class in the two parts.
    sizes : (int, int)
        Sides of the images lie in this range, both included. Each class has a colour of its own, so a net can learn
        them.
    layout : "archives" | "folders" | "flat"
        The tar files; train/<wnid>/ and val/<wnid>/; or train/<wnid>/ and all of val/ in one folder.
    """
    assert layout in LAYOUTS
    rng = np.random.default_rng(seed)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    synsets = [f"n{1440764 + 7919 * k:08d}" for k in range(classes)]
    # Two of the real classes are called "crane", and nothing else.
    words = ["crane" if k in (1, 3) else f"thing {k}, Res {k}" for k in range(classes)]
    tree = Tree(directory, synsets, words)
    ids = rng.permutation(classes) + 1  # ILSVRC2012_ID of each synset: another order than that of the ids
    colours = rng.integers(0, 256, (classes, 3))

    def add(part, k, name):
        low, high = sizes
        height, width = rng.integers(low, high + 1, 2)
        image = colours[k] + rng.normal(0, 40, (height, width, 3))
        left, top = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
        boxes = [(left, top, int(width), int(height))] + ([(0, 0, left + 9, top + 7)] if k == 0 else [])
        content = io.BytesIO()
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
        tree.files.setdefault(part, []).append((name, content.getvalue()))
        tree.labels.setdefault(part, []).append(k)
        tree.boxes.setdefault(part, []).append(boxes)

    for k, wnid in enumerate(synsets):
        for j in sorted(rng.choice(30_000, train, replace=False), key=str):
            add("train", k, f"{wnid}/{wnid}_{j}.JPEG")
    for number, k in enumerate(rng.permutation(np.repeat(np.arange(classes), val)), 1):
        add("val", int(k), f"ILSVRC2012_val_{number:08d}.JPEG")
    if layout == "archives":
        _write_archives(tree)
    else:
        _write_folders(tree, flat=layout == "flat")
    _write_devkit(tree, ids)
    _write_boxes(tree)
    return tree


def tar(entries, mode="w"):
    """A tar file of (name, contents) pairs, as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.USTAR_FORMAT) as archive:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _write_archives(tree):
    """A tar of one tar a class, whose names have no folder; a tar of all validation images."""
    of_class = {wnid: [] for wnid in tree.synsets}
    for name, content in tree.files["train"]:
        wnid, _, file = name.partition("/")
        of_class[wnid].append((file, content))
    # The distributed files are in no particular order.
    inner = [(f"{wnid}.tar", tar(entries[::-1])) for wnid, entries in of_class.items()]
    (tree.directory / "ILSVRC2012_img_train.tar").write_bytes(tar(inner[::-1]))
    (tree.directory / "ILSVRC2012_img_val.tar").write_bytes(tar(tree.files["val"][::-1]))


def _write_folders(tree, *, flat):
    for part, files in tree.files.items():
        for i, (name, content) in enumerate(files):
            wnid = tree.synsets[tree.labels[part][i]]
            path = tree.directory / part / (f"{wnid}/{name}" if part == "val" and not flat else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _write_devkit(tree, ids):
    import scipy.io

    numbers = ("num_children", "children", "wordnet_height", "num_train_images")
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", *numbers)
    count = len(tree.synsets)
    rows = [
        (int(ids[k]), wnid, tree.words[k], "a gloss", 0, np.zeros((0, 0)), 0, tree.labels["train"].count(k))
        for k, wnid in enumerate(tree.synsets)
    ]
    rows.sort()  # by ILSVRC2012_ID; the inner nodes of WordNet's tree come after the classes
    rows.append((count + 1, "n00001740", "entity", "a gloss", count, np.arange(1.0, count + 1), 1, 0))
    synsets = np.empty((len(rows), 1), dtype=[(name, object) for name in fields])
    for i, row in enumerate(rows):
        synsets[i, 0] = row
    matlab = io.BytesIO()
    scipy.io.savemat(matlab, {"synsets": synsets})
    truth = "".join(f"{ids[k]}\n" for k in tree.labels["val"]).encode()
    top = "ILSVRC2012_devkit_t12"
    files = [
        (f"{top}/readme.txt", b"read me"),
        (f"{top}/data/meta.mat", matlab.getvalue()),
        (f"{top}/data/ILSVRC2012_validation_ground_truth.txt", truth),
    ]
    if (tree.directory / "train").is_dir():
        for name, content in files:
            path = tree.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    else:
        (tree.directory / f"{top}.tar.gz").write_bytes(tar(files, "w:gz"))


def _write_boxes(tree):
    for part, archive in (
        ("train", "ILSVRC2012_bbox_train_v2.tar.gz"),
        ("val", "ILSVRC2012_bbox_val_v3.tgz"),
    ):
        entries = []
        for (name, content), k, boxes in zip(
            tree.files[part], tree.labels[part], tree.boxes[part], strict=True
        ):
            folder = tree.synsets[k] if part == "train" else "val"
            stem = Path(name).stem
            width, height = Image.open(io.BytesIO(content)).size
            objects = "".join(
                f"\t<object>\n\t\t<name>{tree.synsets[k]}</name>\n\t\t<pose>Unspecified</pose>\n"
                f"\t\t<truncated>0</truncated>\n\t\t<difficult>0</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>{box[0]}</xmin>\n"
                f"\t\t\t<ymin>{box[1]}</ymin>\n\t\t\t<xmax>{box[2]}</xmax>\n\t\t\t<ymax>{box[3]}</ymax>\n\t\t</bndbox>\n"
                "\t</object>\n"
                for box in boxes
            )
            xml = (
                f"<annotation>\n\t<folder>{folder}</folder>\n\t<filename>{stem}</filename>\n\t<source>\n"
                f"\t\t<database>ILSVRC_2012</database>\n\t</source>\n\t<size>\n\t\t<width>{width}</width>\n"
                f"\t\t<height>{height}</height>\n\t\t<depth>3</depth>\n\t</size>\n\t<segmented>0</segmented>\n"
                f"{objects}</annotation>\n"
            )
            entries.append((f"{folder}/{stem}.xml", xml.encode()))
        (tree.directory / archive).write_bytes(tar(entries, "w:gz"))
