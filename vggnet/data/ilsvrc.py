"""ImageNet's ILSVRC-2012: the files as they are distributed, read in place, and the usual unpacked folders."""

from __future__ import annotations

import io
import os
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from .._C import ImageError
from ..preprocess import Channels, channel_count
from . import tar
from .base import DatasetNotFoundError, read_only
from .files import ImageFiles
from .folder import ImageFolder

if TYPE_CHECKING:
    from typing import TypeAlias

    Boxes: TypeAlias = npt.NDArray[np.float64]

DEVKIT = "ILSVRC2012_devkit_t12"
WNID = re.compile(r"n\d{8}")


class ILSVRC2012(ImageFiles):
    """The training or validation part of ILSVRC-2012, with names, and boxes where they are given.

    In `dir` is, for each part, either the file as distributed, read without unpacking it, or a folder:

    - ILSVRC2012_img_train.tar, or train/ with a folder for each WordNet id, as in train/n01440764/;
    - ILSVRC2012_img_val.tar, or val/ with such folders, or val/ with all images in it;
    - ILSVRC2012_devkit_t12.tar.gz, or the folder in it: the classes' names, and the labels of validation
      images that do not lie in folders;
    - for `boxes`: ILSVRC2012_bbox_train_v2.tar.gz, ILSVRC2012_bbox_val_v3.tgz, or folders of these names.

    Classes are in the order of their WordNet ids, as in Caffe, torchvision and the authors' weights; images in
    the order of their names.

    Parameters
    ----------
    dir : path
    part : "train" or "val"
    channels : "RGB" or "gray"
        What images are converted to: ``model.preprocessing.channels``.
    strict : bool
        Let `Loader` stop at the first broken image rather than skip up to 1 % of them.

    Attributes
    ----------
    classes : list of str
        The devkit's words, as in "tench, Tinca tinca"; where two classes have the same, as the two cranes do,
        the WordNet id follows. Without a devkit, the WordNet ids.
    synsets : list of str
        WordNet ids of the classes.
    labels : (N,) int64

    Raises
    ------
    DatasetNotFoundError
        When files are missing; the message says which.
    ImageError
        When an archive or the devkit is damaged, or images and devkit do not fit together.
    ImportError
        When there is a devkit but no SciPy, which reads its meta.mat: ``pip install 'vggnet[mat]'``.

    Notes
    -----
    An archive is looked through at the first use; what lies where is kept in a hidden file beside it, or in
    the user's cache folder. Source: O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015.

    Examples
    --------
    >>> val = ILSVRC2012("imagenet", "val")         # doctest: +SKIP
    >>> len(val), val.classes[0], val.synsets[0]    # doctest: +SKIP
    (50000, 'tench, Tinca tinca', 'n01440764')
    """

    ARCHIVES: ClassVar = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
    BOXES: ClassVar = {"train": "ILSVRC2012_bbox_train_v2", "val": "ILSVRC2012_bbox_val_v3"}

    def __init__(
        self,
        dir: str | os.PathLike[str],
        part: Literal["train", "val"] = "train",
        *,
        channels: Channels = "RGB",
        strict: bool = False,
    ) -> None:
        channel_count(channels)  # raises for another name
        if part not in self.ARCHIVES:
            raise ValueError(
                f'part is {part!r}; expected "train" or "val" (ILSVRC keeps the test labels secret)'
            )
        root = Path(dir)
        if not root.is_dir():
            raise DatasetNotFoundError(
                f"{root}: no such folder; expected the folder of the files of ILSVRC-2012"
            )
        self.dir = root
        self.part = part
        self.channels = channels
        self.strict = strict
        self._find()
        devkit = _Devkit.read(root)
        if devkit is None and "/" not in self._name(0):
            raise DatasetNotFoundError(
                f"{root} has no {DEVKIT}.tar.gz, which has the labels of the validation images and the classes' "
                f"names; put it there, unpacked or not, or sort the images into folders, as in {root / part / 'n01440764'}"
            )
        wnids = self._wnids(devkit)
        if devkit is None:
            self.synsets = sorted(set(wnids))
            self.classes = list(self.synsets)
        else:
            self.synsets = sorted(devkit.words)
            self.classes = devkit.names()
        index = {wnid: label for label, wnid in enumerate(self.synsets)}
        try:
            self.labels = read_only(np.array([index[wnid] for wnid in wnids], np.int64))
        except KeyError as error:
            raise ImageError(
                f"{root}: {part} has images of {error}, which the devkit does not have"
            ) from error
        if part == "train" and len(seen := set(wnids)) < len(index):
            missing = sorted(index.keys() - seen)
            raise ImageError(
                f"{root}: train has no images of {len(missing)} of the devkit's {len(index)} classes, as of "
                f"{missing[0]}: is it complete?"
            )
        self._box_lock = threading.Lock()
        self._box_arrays: tar.Arrays | None = None

    def _find(self) -> None:
        """The images of the part: `_names` or `_tar`."""
        archive, folder = self.dir / self.ARCHIVES[self.part], self.dir / self.part
        self._tar: tar.TarFiles | None = None
        self._names: list[str] = []
        if archive.is_file():
            kept = self.dir / f".{archive.name}.npz"
            arrays = tar.remember(kept, [archive], lambda: tar.index([archive], nested=self.part == "train"))
            self._tar = tar.TarFiles([archive], arrays)
        elif folder.is_dir():
            if self.part == "train" or any(entry.is_dir() for entry in folder.iterdir()):
                files = ImageFolder(folder)
                self._names = [Path(files.name(i)).relative_to(folder).as_posix() for i in range(len(files))]
            else:
                suffixes = ImageFolder.SUFFIXES
                names = (entry.name for entry in folder.iterdir())
                self._names = sorted(
                    name for name in names if name.lower().endswith(suffixes) and not name.startswith(".")
                )
        else:
            raise DatasetNotFoundError(
                f"{self.dir} has neither {archive.name} nor a folder {self.part}; put the file of ILSVRC-2012 "
                "there as it was distributed, or the folder of the images"
            )
        if not len(self):
            raise ImageError(f"{archive if archive.is_file() else folder}: no images in it")

    def _wnids(self, devkit: _Devkit | None) -> list[str]:
        """WordNet id of each image: its folder, or by its number in the devkit's list."""
        names = map(self._name, range(len(self)))
        if "/" not in self._name(0):
            assert devkit is not None
            return [devkit.truth_of(name) for name in names]
        wnids = [name.partition("/")[0] for name in names]
        for folder in dict.fromkeys(wnids):
            if not WNID.fullmatch(folder):
                raise ImageError(
                    f"{self.dir / self.part / folder}: expected folders named by WordNet ids, as n01440764 (for "
                    "folders with other names there is data.ImageFolder)"
                )
        return wnids

    def __len__(self) -> int:
        return len(self._names) if self._tar is None else len(self._tar)

    def _name(self, i: int) -> str:
        """As in n01440764/n01440764_10026.JPEG or ILSVRC2012_val_00000001.JPEG."""
        return self._names[i] if self._tar is None else self._tar.name(i)

    def _source(self, i: int) -> str | bytes:
        return self.name(i) if self._tar is None else self._tar.read(i)

    def name(self, i: int) -> str:
        """Path of image `i`, within the archive if it lies in one."""
        if self._tar is not None:
            return self._tar.path(i)
        return os.path.join(self.dir, self.part, *self._names[i].split("/"))

    def boxes(self, i: int) -> Boxes:
        """Boxes of the objects of the image's class, for localisation (paper, appendix A).

        Returns
        -------
        (M, 4) float64
            Left, top, right, bottom, in pixels of ``image(i)``, as edges: an object as wide as the image goes
            from 0 to its width. M is 0 where nobody annotated the image: that is so for more than half of the
            training images.

        Raises
        ------
        DatasetNotFoundError
            When there are no annotations in `dir`.
        ImageError
            When one cannot be read.

        Notes
        -----
        The numbers of the annotations are taken as they are. The devkit's evaluation counts both border pixels in, which
        makes a box wider by one.
        """
        name = Path(self._name(i))
        synset = self.synsets[self.labels[i]]
        folder = self.dir / self.BOXES[self.part]
        if folder.is_dir():
            for path in (folder / synset, folder / "val", folder):
                annotation = path / f"{name.stem}.xml"
                if annotation.is_file():
                    return _boxes(annotation.read_bytes(), str(annotation))
            return np.zeros((0, 4))
        arrays = self._annotations()
        place = int(np.searchsorted(arrays["names"], name.stem.encode()))
        if place == len(arrays["names"]) or arrays["names"][place] != name.stem.encode():
            return np.zeros((0, 4))
        first, last = arrays["ends"][place : place + 2]
        return np.array(arrays["boxes"][first:last])

    def _annotations(self) -> tar.Arrays:
        """Boxes of all images of the archive: sorted names, where the boxes of each begin and end, boxes."""
        with self._box_lock:
            if self._box_arrays is None:
                archive = self.dir / (self.BOXES[self.part] + (".tar.gz" if self.part == "train" else ".tgz"))
                if not archive.is_file():
                    raise DatasetNotFoundError(
                        f"{self.dir} has no {archive.name}, the boxes of {self.part}; put it there, as it was "
                        "distributed"
                    )
                kept = self.dir / f".{archive.name}.npz"
                self._box_arrays = tar.remember(kept, [archive], lambda: _all_boxes(archive))
            return self._box_arrays


def _boxes(xml: bytes, name: str) -> Boxes:
    """Boxes of one annotation; those of other synsets than the image's, and those without a pixel, are left out."""
    try:
        objects = ElementTree.fromstring(xml).findall("object")
        found = []
        for entry in objects:
            synset = entry.findtext("name") or ""
            own = Path(name).stem.partition("_")[0]
            # Names are WordNet ids, or words in a few; a training image's own id begins its name.
            if WNID.fullmatch(own) and WNID.fullmatch(synset) and synset != own:
                continue
            box = [float(entry.findtext(f"bndbox/{edge}") or "") for edge in ("xmin", "ymin", "xmax", "ymax")]
            if box[0] < box[2] and box[1] < box[3]:
                found.append(box)
    except (ElementTree.ParseError, ValueError) as error:
        raise ImageError(f"{name}: not an annotation of ILSVRC-2012 ({error})") from error
    return np.array(found, np.float64).reshape(-1, 4)


def _all_boxes(archive: Path) -> tar.Arrays:
    found: dict[bytes, Boxes] = {}
    for name, content in _members(archive, lambda name: name.endswith(".xml")):
        found[Path(name).stem.encode()] = _boxes(content, name)
    names = sorted(found)
    if not names:
        raise ImageError(f"{archive}: no annotations in it")
    return {
        "names": np.array(names),
        "ends": np.cumsum([0] + [len(found[name]) for name in names]),
        "boxes": np.concatenate([found[name] for name in names]),
    }


def _members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and contents of files in a compressed archive."""
    try:
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                file = members.extractfile(member) if member.isfile() and wanted(member.name) else None
                if file is not None:
                    yield member.name, file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ImageError(f"{archive}: damaged or incomplete archive ({error}); get it again") from error


@dataclass
class _Devkit:
    """What the devkit knows.

    `words` of each class by WordNet id; `wnids` by ILSVRC2012_ID, which begins at 1; `truth`: the ILSVRC2012_ID of
    each validation image.
    """

    path: Path
    words: dict[str, str]
    wnids: dict[int, str]
    truth: list[int]

    META = "data/meta.mat"
    TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"

    @classmethod
    def read(cls, root: Path) -> _Devkit | None:
        folder, archive = root / DEVKIT, root / f"{DEVKIT}.tar.gz"
        wanted = (cls.META, cls.TRUTH)
        if folder.is_dir():
            path = folder
            files = {name: (folder / name).read_bytes() for name in wanted if (folder / name).is_file()}
        elif archive.is_file():
            path = archive
            members = _members(archive, lambda name: name.endswith(wanted))
            files = {"/".join(name.split("/")[-2:]): content for name, content in members}
        else:
            return None
        for name in wanted:
            if name not in files:
                raise ImageError(
                    f"{path}: no {name} in it; it is not the devkit of ILSVRC-2012, or incomplete"
                )
        words, wnids = cls._synsets(files[cls.META], path)
        try:
            truth = [int(line) for line in files[cls.TRUTH].split()]
        except ValueError as error:
            raise ImageError(f"{path}: {cls.TRUTH}: {error}") from error
        return cls(path, words, wnids, truth)

    @classmethod
    def _synsets(cls, content: bytes, path: Path) -> tuple[dict[str, str], dict[int, str]]:
        try:
            from scipy.io import loadmat  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError(
                f"{path}: reading the names of the classes, {cls.META}, needs SciPy: pip install 'vggnet[mat]'"
            ) from error
        try:
            table = loadmat(io.BytesIO(content), variable_names=["synsets"], squeeze_me=True)["synsets"]
            rows = [
                row for row in np.atleast_1d(table) if int(row["num_children"]) == 0
            ]  # inner nodes are no classes
            words = {str(row["WNID"]): str(row["words"]) for row in rows}
            wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
        except Exception as error:  # loadmat raises nearly anything for damaged files
            raise ImageError(
                f"{path}: {cls.META} cannot be read ({type(error).__name__}: {error})"
            ) from error
        return words, wnids

    def names(self) -> list[str]:
        """Of the classes, in the order of their WordNet ids, no two the same."""
        count = Counter(self.words.values())
        return [
            words if count[words] == 1 else f"{words} ({wnid})" for wnid, words in sorted(self.words.items())
        ]

    def truth_of(self, name: str) -> str:
        """WordNet id of a validation image, by the number that ends its name."""
        match = re.search(r"_(\d{8})\.", name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(self.truth) or self.truth[number - 1] not in self.wnids:
            raise ImageError(
                f"{name}: no label for it among the {len(self.truth)} of {self.path}; expected names as "
                "ILSVRC2012_val_00000001.JPEG"
            )
        return self.wnids[self.truth[number - 1]]
