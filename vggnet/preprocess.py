"""From an image as users have it to the uint8 pixels that a model takes (paper, sections 3.1 and 3.2).

Three things live here: what a model file says about its input (`Preprocessing`), reading one image with every
check (`load_image`), and the isotropic rescaling of training and testing (`rescale`). Cropping, mirroring,
the RGB shift and the mean subtraction happen later, in C, from the uint8 pixels made here.

Pillow is imported at the first use: `import vggnet` must not pay for it.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ._C import ImageError, WeightsError

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = [
    "FILTERS",
    "Channels",
    "Preprocessing",
    "channel_count",
    "check_image",
    "load_image",
    "load_rescaled",
    "rescale",
    "rescaled_size",
]

Channels: TypeAlias = Literal["RGB", "gray"]
Pixels: TypeAlias = npt.NDArray[np.uint8]
ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | PILImage.Image | Pixels"

#: Resampling filters by name: Pillow's, which widen when they shrink an image (antialiasing).
FILTERS = ("bilinear", "bicubic", "lanczos", "box")

_CHANNEL_COUNT: dict[str, int] = {"RGB": 3, "gray": 1}


def channel_count(channels: str) -> int:
    """Return 3 for "RGB", 1 for "gray"; ValueError for anything else."""
    try:
        return _CHANNEL_COUNT[channels]
    except (KeyError, TypeError):
        raise ValueError(f'channels is {channels!r}; expected "RGB" or "gray"') from None


@dataclass(frozen=True)
class Preprocessing:
    """What a model expects of its input, stored in the model file.

    A model's input is ``pixel - mean``, in float32, channels last, with pixels on the 0..255 scale and
    nothing divided (paper, section 2.1).

    Parameters
    ----------
    mean : tuple of float
        One value per channel, on the 0..255 scale, in the order of `channels`.
    channels : "RGB" or "gray"
        Number and order of the channels.
    input_size : int
        Side of the square training crop, in pixels.
    scale : float
        Value of a white pixel: always 255. Recorded so that a model file says it, checked when it is read.
    covariance : C tuples of C floats, optional
        Of the channels over the training set, with pixels on the 0..1 scale: what the random RGB shift of training
        (paper, section 3.1) is made from.

    Examples
    --------
    >>> pre = Preprocessing((123.68, 116.779, 103.939), "RGB", 224)
    >>> pre.in_channels
    3
    >>> Preprocessing.from_dict(pre.to_dict()) == pre
    True
    """

    mean: tuple[float, ...]
    channels: Channels = "RGB"
    input_size: int = 224
    scale: float = 255.0
    covariance: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        count = channel_count(self.channels)
        mean = tuple(float(value) for value in self.mean)
        object.__setattr__(self, "mean", mean)
        if len(mean) != count:
            raise ValueError(
                f"mean has {len(mean)} values; expected {count}, one per {self.channels} channel"
            )
        if not all(math.isfinite(value) and 0 <= value <= 255 for value in mean):
            raise ValueError(f"mean is {mean}; expected values in 0..255")
        if 0 < max(mean) <= 1:
            raise ValueError(
                f"mean is {mean}, on the 0..1 scale; pixels here are 0..255: multiply the mean by 255"
            )
        if not isinstance(self.input_size, int) or isinstance(self.input_size, bool) or self.input_size < 1:
            raise ValueError(f"input_size is {self.input_size!r}; expected a positive int, in pixels")
        if self.scale != 255:
            raise ValueError(f"scale is {self.scale!r}; only 255 (pixels on the 0..255 scale) is supported")
        if self.covariance is not None:
            self._check_covariance(count)

    def _check_covariance(self, count: int) -> None:
        assert self.covariance is not None
        rows = tuple(tuple(float(value) for value in row) for row in self.covariance)
        object.__setattr__(self, "covariance", rows)
        if [len(row) for row in rows] != [count] * count:
            raise ValueError(
                f"covariance is {rows}; expected {count} rows of {count}, one per {self.channels} channel"
            )
        if not np.isfinite(rows).all() or not np.allclose(rows, np.transpose(rows), rtol=1e-9, atol=0):
            raise ValueError(f"covariance is {rows}; expected a symmetric matrix of finite values")
        if np.abs(rows).max() > 0.25:  # the variance of pixels of which half are black and half are white
            raise ValueError(
                f"covariance is {rows}, not of pixels on the 0..1 scale: divide one of the 0..255 scale by 255 * 255"
            )

    @property
    def in_channels(self) -> int:
        """Number of channels: 3 for RGB, 1 for gray."""
        return channel_count(self.channels)

    def apply(self, image: Pixels) -> npt.NDArray[np.float32]:
        """Subtract the mean.

        Parameters
        ----------
        image : (..., H, W, C) uint8

        Returns
        -------
        (..., H, W, C) float32
            A new array: what ``model.run`` takes.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim < 3 or image.shape[-1] != self.in_channels:
            raise ValueError(
                f"image is {image.dtype} of shape {image.shape}; expected uint8 of shape (..., H, W, "
                f"{self.in_channels}), as load_image returns it"
            )
        return np.subtract(image, np.array(self.mean, np.float32), dtype=np.float32)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "mean": list(self.mean),
            "channels": self.channels,
            "input_size": self.input_size,
            "scale": self.scale,
            "covariance": None if self.covariance is None else [list(row) for row in self.covariance],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read what `to_dict` wrote; files of earlier versions have no covariance.

        Raises
        ------
        WeightsError
            If a field is missing, unknown or out of range.
        """
        expected = {"mean", "channels", "input_size", "scale"}
        if not isinstance(values, Mapping) or set(values) - {"covariance"} != expected:
            found = sorted(map(str, values)) if isinstance(values, Mapping) else values
            raise WeightsError(f"preprocessing has the fields {found}; expected {sorted(expected)}")
        try:
            return cls(**{**values, "mean": tuple(values["mean"])})
        except (TypeError, ValueError) as error:
            raise WeightsError(f"preprocessing: {error}") from error


# ---- reading


def load_image(source: ImageSource, channels: Channels = "RGB", name: str | None = None) -> Pixels:
    """Read one image as the pixels a model takes.

    Files and PIL images of any mode are converted: EXIF rotation is applied; palettes are expanded; CMYK
    becomes RGB; 16-bit gray is scaled to 8 bits with rounding; transparent parts are composited on white; RGB
    becomes gray (or gray RGB) as `channels` asks. Colour profiles are ignored, and of an animation the first
    frame is taken.

    An array is never converted, since nothing tells what its values mean: it must be uint8, (H, W, C) and in
    the order of `channels`. RGB and BGR arrays look alike: OpenCV's need ``image[:, :, ::-1]`` first.

    Parameters
    ----------
    source : path, bytes, PIL image or (H, W, C) uint8 array
        Bytes are the contents of an image file. Never written to.
    channels : "RGB" or "gray"
        What the model takes: ``model.preprocessing.channels``.
    name : str, optional
        What to call the image in an error message; by default its path.

    Returns
    -------
    (H, W, 3) or (H, W, 1) uint8
        A new C-contiguous array.

    Raises
    ------
    ImageError
        If a file or PIL image cannot be read; the message names it and the cause.
    ValueError
        If an array is not of the kind above; the message says how to convert it.
    TypeError
        If `source` is something else.

    Notes
    -----
    Pillow releases the GIL while it decodes, so threads read images in parallel.
    """
    return _load(source, channels, name, None)[0]


def load_rescaled(
    source: ImageSource,
    short_side: int,
    filter: str = "bicubic",
    channels: Channels = "RGB",
    name: str | None = None,
) -> tuple[Pixels, tuple[int, int]]:
    """Read one image for training, and rescale it: ``rescale(load_image(source, channels), short_side, filter)``, but faster.

    A JPEG file is decoded at a half, a quarter or an eighth of its size, from as many of its DCT coefficients, if
    no side gets shorter than `short_side` by that; then `filter` does the rest. The size is that of `rescale`,
    pixels differ slightly. For training only: evaluation decodes every image whole.

    Parameters
    ----------
    source, channels, name
        As of `load_image`.
    short_side, filter
        As of `rescale`.

    Returns
    -------
    pixels : (H', W', C) uint8
        C-contiguous.
    size : (int, int)
        Height and width before: of what `load_image` returns.

    Raises
    ------
    ImageError, ValueError, TypeError
        As `load_image` and `rescale` do.
    """
    if short_side < 1:
        raise ValueError(f"short_side is {short_side}; expected at least 1 pixel")
    pixels, size = _load(source, channels, name, short_side)
    return _resize(pixels, rescaled_size(*size, short_side), filter), size


def _load(
    source: ImageSource, channels: Channels, name: str | None, short_side: int | None
) -> tuple[Pixels, tuple[int, int]]:
    """Pixels, and their height and width before a JPEG file was decoded smaller: never, without `short_side`."""
    count = channel_count(channels)
    if isinstance(source, np.ndarray):
        check_image(source, channels, name or "image")
        return np.array(source, order="C"), source.shape[:2]
    from PIL import Image

    if not isinstance(source, (str, os.PathLike, bytes, Image.Image)):
        raise TypeError(
            f"{name or 'image'}: got {type(source).__name__}; expected one path, PIL image, contents of a "
            f"file as bytes, or uint8 array of shape (H, W, {count}) (np.asarray converts other arrays, "
            "PIL.Image.open reads file objects)"
        )
    if isinstance(source, os.PathLike):
        source = os.fsdecode(source)
    if name is None:
        name = source if isinstance(source, str) else getattr(source, "filename", "") or "image"
    try:
        if isinstance(source, Image.Image):
            pixels = _decode(source, channels)
            return pixels, pixels.shape[:2]
        with open(source, "rb") if isinstance(source, str) else io.BytesIO(source) as file:
            return _read_file(file, channels, short_side)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise ImageError(f"{name}: {_cause(error)}") from error


def check_image(image: npt.NDArray[Any], channels: Channels = "RGB", name: str = "image") -> None:
    """Raise unless `image` is uint8, (H, W, C), with the channels a model takes.

    Raises
    ------
    ValueError
        With every reason, and for each what to do.
    """
    if (
        image.dtype == np.uint8
        and image.ndim == 3
        and image.size
        and image.shape[2] == channel_count(channels)
    ):
        return
    problems = [problem for problem in (_shape_problem(image, channels), _dtype_problem(image)) if problem]
    raise ValueError(
        f"{name}: a {image.dtype} array of shape {image.shape}; expected uint8 of shape "
        f"(H, W, {channel_count(channels)}), {channels}, values 0..255. " + ". ".join(problems)
    )


def _shape_problem(image: npt.NDArray[Any], channels: Channels) -> str | None:
    count = channel_count(channels)
    shape = image.shape
    if not image.size:
        return "It holds no pixels"
    if image.ndim == 2:
        return (
            "Gray without a channel axis: use image[:, :, None]"
            if channels == "gray"
            else "The model takes RGB: use np.repeat(image[:, :, None], 3, axis=2)"
        )
    if image.ndim == 4:
        return "That is a batch: pass a list of images, list(images)"
    if image.ndim != 3:
        return "That is not an image"
    if shape[2] == count:
        return None
    if shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        return "The channels come first: use image.transpose(1, 2, 0)"
    if shape[2] == 4:
        return (
            "Four channels: PIL.Image.fromarray(image) composites an alpha channel on white, "
            "image[:, :, :3] drops it"
        )
    if shape[2] == 1:
        return "The model takes RGB: use np.repeat(image, 3, axis=2)"
    if shape[2] == 3:
        return "The model takes gray: pass PIL.Image.fromarray(image), which is converted"
    return f"{shape[2]} channels are neither gray nor RGB"


def _dtype_problem(image: npt.NDArray[Any]) -> str | None:
    if image.dtype == np.uint8 or not image.size:
        return None
    if image.dtype == np.bool_:
        return "Boolean: use image.astype(np.uint8) * 255"
    if image.dtype.kind not in "iuf":
        return "Pixels must be uint8"
    low, high = float(image.min()), float(image.max())
    values = f"values lie in {low:.6g}..{high:.6g}"
    if not (math.isfinite(low) and math.isfinite(high)):
        return "It holds NaN or infinity"
    if low < 0:
        return (
            f"Its {values}, as after normalising or subtracting a mean: pass the original pixels, "
            "the model subtracts its own mean"
        )
    if image.dtype.kind == "f" and high <= 1.5:
        return (
            f"Its {values}, so they lie in 0..1: this model's pixels are 0..255; multiply by 255, round and "
            "convert to uint8: (image * 255).round().clip(0, 255).astype(np.uint8)"
        )
    if image.dtype.kind == "f" and high < 255.5:
        return f"Its {values}: round and convert to uint8: image.round().astype(np.uint8)"
    if high <= 255:
        return f"Its {values}: use image.astype(np.uint8)"
    if high <= 65535:
        return f"Its {values}, as of 16 bits: use (image / 257).round().astype(np.uint8) if 65535 is white"
    return f"Its {values}, which are not pixels on the 0..255 scale"


def _read_file(file: BinaryIO, channels: Channels, short_side: int | None) -> tuple[Pixels, tuple[int, int]]:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file)
    except UnidentifiedImageError as error:
        raise ValueError(_what_else(file)) from error
    with image:
        # Pillow only warns between one and two times its limit.
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise ValueError(
                f"{image.width} x {image.height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS = "
                f"{limit} (a decompression bomb?); raise that limit if the image is genuine"
            )
        width, height = image.size
        if short_side is not None:
            image.draft(None, (short_side, short_side))  # JPEG alone; no side gets shorter
        whole = image.size == (width, height)
        pixels = _decode(image, channels)
        if whole:
            return pixels, pixels.shape[:2]
        return pixels, (width, height) if _orientation(image) >= 5 else (height, width)


def _decode(image: PILImage.Image, channels: Channels) -> Pixels:
    """Pixels of an opened image, upright, of the asked channels; raises whatever Pillow raises."""
    from PIL import Image

    image.load()
    # These formats have 16 bits where Pillow says 32.
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image = _upright(image)  # after load: Pillow turns a TIFF itself while it loads, and drops the tag
    if wide:
        image = _eight_bits(image)
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"32-bit pixels (mode {image.mode}) have no set range; scale them to 0..255 and save as 8 bits"
        )
    if image.has_transparency_data:
        # Premultiplied modes convert to their plain sibling only.
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert("RGB" if channels == "RGB" else "L"))
    return pixels.reshape(*pixels.shape[:2], -1)


def _upright(image: PILImage.Image) -> PILImage.Image:
    """Undo the rotation that a camera noted in the EXIF tag Orientation."""
    from PIL import Image

    turn = Image.Transpose
    method = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: PILImage.Image) -> int:
    """The EXIF tag Orientation, 1 to 8; from 5 on, height and width change places. 1 where there is none."""
    from PIL import ExifTags

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata, sound pixels: as if there were none
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _eight_bits(image: PILImage.Image) -> PILImage.Image:
    """16-bit gray to 8 bits, rounded (Pillow's own conversion clips or truncates, by version)."""
    from PIL import Image

    wide = np.asarray(image).astype(np.int64)
    gray = ((wide.clip(0, 65535) * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[wide == transparent] = 255  # one gray level declared transparent: white, as for other images
    return Image.fromarray(gray)


def _what_else(file: BinaryIO) -> str:
    """Say what a file is that Pillow does not know."""
    file.seek(0)
    head = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "the file is empty"
    if head.startswith((b"<!doctype html", b"<html")):
        return "the file is an HTML page, not an image (a failed download?)"
    if head.startswith(b"version https://git-lfs"):
        return "the file is a Git LFS pointer, not the image itself: run git lfs pull"
    return "the file is not an image that Pillow can read"


def _cause(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        if "://" in str(error.filename):
            return "addresses are not fetched (no network access): download the image first"
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "this is a folder, not an image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


# ---- rescaling


def rescaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Size after isotropic rescaling to a smallest side of `short_side`.

    The long side is floor(long * short_side / short + 0.5), in exact integer arithmetic (isotropic: paper,
    section 3.1; the rounding is ours).

    Examples
    --------
    >>> rescaled_size(375, 500, 256)
    (256, 341)
    """
    if height < 1 or width < 1 or short_side < 1:
        raise ValueError(
            f"height {height}, width {width}, short_side {short_side}: expected positive numbers of pixels"
        )
    short, long = min(height, width), max(height, width)
    scaled = (2 * long * short_side + short) // (2 * short)
    return (short_side, scaled) if height <= width else (scaled, short_side)


def rescale(image: Pixels, short_side: int, filter: str = "bicubic") -> Pixels:
    """Rescale an image isotropically to a smallest side: S in training, Q in testing (paper, section 3).

    Parameters
    ----------
    image : (H, W, 3) or (H, W, 1) uint8
        Not written to.
    short_side : int
        Smallest side of the result, in pixels.
    filter : "bilinear", "bicubic", "lanczos" or "box"
        Pillow's filter of that name, antialiased when the image shrinks.

    Returns
    -------
    (H', W', C) uint8
        C-contiguous, of `rescaled_size`. An image whose smallest side fits already is returned as it is, not
        copied.

    Raises
    ------
    ImageError
        If the image is so elongated that its rescaled size exceeds Pillow's limit,
        PIL.Image.MAX_IMAGE_PIXELS.
    """
    check_image(image, "gray" if image.ndim == 3 and image.shape[2] == 1 else "RGB")
    return _resize(image, rescaled_size(image.shape[0], image.shape[1], short_side), filter)


def _resize(image: Pixels, size: tuple[int, int], filter: str) -> Pixels:
    if filter not in FILTERS:
        raise ValueError(f"filter is {filter!r}; expected one of {', '.join(FILTERS)}")
    if size == image.shape[:2]:
        return np.ascontiguousarray(image)
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
        raise ImageError(
            f"a {image.shape[0]} x {image.shape[1]} image rescaled to {size[0]} x {size[1]} exceeds "
            f"PIL.Image.MAX_IMAGE_PIXELS = {Image.MAX_IMAGE_PIXELS}: too elongated for a side of {min(size)}"
        )
    source = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    pixels = np.array(source.resize((size[1], size[0]), Image.Resampling[filter.upper()]))
    return pixels.reshape(*size, image.shape[2])
