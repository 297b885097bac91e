"""Reading images of every kind, the checks on arrays, and the isotropic rescaling."""

import hashlib
import json
import math
import struct
import warnings
import zlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from vggnet import ImageError, VggError, WeightsError, preprocess
from vggnet.preprocess import (
    FILTERS,
    Preprocessing,
    check_image,
    load_image,
    load_rescaled,
    rescale,
    rescaled_size,
)

from helpers import photos

EXIF_ORIENTATION = 0x0112


@pytest.fixture
def pixels(rng):
    """An image without symmetry, smooth enough for JPEG."""
    coarse = rng.integers(0, 256, (5, 7, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((42, 30), Image.Resampling.BILINEAR))


# ---- Preprocessing


def test_preprocessing_survives_json():
    pre = Preprocessing((123.68, 116.779, 103.939), "RGB", 224)
    assert Preprocessing.from_dict(json.loads(json.dumps(pre.to_dict()))) == pre
    assert pre.in_channels == 3
    assert Preprocessing([72.9], "gray", 32).in_channels == 1


def test_preprocessing_subtracts_the_mean_and_nothing_else(rng):
    x = rng.integers(0, 256, (2, 4, 5, 3), np.uint8)
    before = x.copy()
    y = Preprocessing((1.5, 2, 255), "RGB", 32).apply(x)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, x.astype(np.float64) - [1.5, 2, 255])
    np.testing.assert_array_equal(x, before)
    with pytest.raises(ValueError, match="uint8"):
        Preprocessing((1.5, 2, 255), "RGB", 32).apply(x / 255)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (1.0,)}, "one per RGB channel"),
        ({"mean": (0.485, 0.456, 0.406)}, "multiply the mean by 255"),
        ({"mean": (math.nan, 1, 2)}, r"0\.\.255"),
        ({"mean": (1, 2, 300)}, r"0\.\.255"),
        ({"channels": "BGR"}, "'BGR'"),
        ({"input_size": 0}, "positive"),
        ({"input_size": 224.0}, "positive int"),
        ({"scale": 1.0}, "255"),
    ],
)
def test_preprocessing_refuses(change, message):
    good = {"mean": (123.68, 116.779, 103.939), "channels": "RGB", "input_size": 224, "scale": 255}
    with pytest.raises(ValueError, match=message):
        Preprocessing(**(good | change))
    with pytest.raises(WeightsError, match=message):
        Preprocessing.from_dict(good | change)


def test_preprocessing_from_dict_refuses_other_fields():
    good = Preprocessing((0, 0, 0)).to_dict()
    for bad in (
        {},
        good | {"std": 1},
        {k: v for k, v in good.items() if k != "mean"},
        None,
        good | {"mean": 3},
    ):
        with pytest.raises(WeightsError, match="preprocessing"):
            Preprocessing.from_dict(bad)


# ---- files and PIL images


def both_ways(image, path, channels="RGB", **options):
    """What load_image makes of the saved file and of the opened image: must be the same."""
    image.save(path, **options)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    from_file = load_image(path, channels)
    with Image.open(path) as opened:
        from_image = load_image(opened, channels)
    np.testing.assert_array_equal(from_file, from_image)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert from_file.dtype == np.uint8
    assert from_file.flags.c_contiguous
    assert from_file.flags.writeable
    assert from_file.ndim == 3
    assert from_file.shape[2] == (3 if channels == "RGB" else 1)
    return from_file


def near(a, b, mean_tolerance):
    return np.abs(a.astype(int) - b.astype(int)).mean() < mean_tolerance


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tif"])
def test_rgb_is_exact(tmp_path, pixels, suffix):
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    np.testing.assert_array_equal(
        both_ways(Image.fromarray(pixels), tmp_path / f"a{suffix}", **options), pixels
    )


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_is_near(tmp_path, pixels, suffix):
    assert near(both_ways(Image.fromarray(pixels), tmp_path / f"a{suffix}", quality=95), pixels, 4)


def test_a_path_may_be_str_and_a_suffix_may_lie(tmp_path, pixels):
    path = tmp_path / "really-png.jpg"
    Image.fromarray(pixels).save(path, format="PNG")
    np.testing.assert_array_equal(load_image(str(path)), pixels)


def test_gray_to_rgb_and_back(tmp_path, pixels):
    gray = pixels[:, :, 1]
    as_rgb = both_ways(Image.fromarray(gray), tmp_path / "gray.png")
    np.testing.assert_array_equal(as_rgb, np.repeat(gray[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(
        both_ways(Image.fromarray(gray), tmp_path / "gray2.png", "gray"), gray[:, :, None]
    )
    luma = both_ways(Image.fromarray(pixels), tmp_path / "rgb.png", "gray")[:, :, 0]
    assert np.abs(luma - pixels @ [0.299, 0.587, 0.114]).max() <= 1


def test_bilevel(tmp_path):
    bits = np.eye(9, dtype=bool)
    np.testing.assert_array_equal(
        both_ways(Image.fromarray(bits), tmp_path / "bits.png", "gray")[:, :, 0], bits * np.uint8(255)
    )


def test_palette(tmp_path):
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 3).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50, 1, 2, 3])
    expected = np.array([[10, 20, 30], [200, 100, 50], [1, 2, 3]], np.uint8)[np.arange(12).reshape(3, 4) % 3]
    np.testing.assert_array_equal(both_ways(image, tmp_path / "p.png"), expected)
    expected[expected[:, :, 0] == 200] = 255  # entry 1 transparent: white
    np.testing.assert_array_equal(both_ways(image, tmp_path / "t.png", transparency=1), expected)
    np.testing.assert_array_equal(both_ways(image, tmp_path / "t.gif", transparency=1), expected)


def on_white(color, alpha):
    return np.floor(color * (alpha / 255) + 255 * (1 - alpha / 255) + 0.5)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(tmp_path, rng, mode):
    values = rng.integers(0, 256, (6, 5, len(mode)), np.uint8)
    got = both_ways(Image.fromarray(values, mode=None if mode == "RGBA" else mode), tmp_path / "a.png")
    expected = on_white(values[:, :, :-1].astype(float), values[:, :, -1:].astype(float))
    assert np.abs(got - np.broadcast_to(expected, got.shape)).max() <= 1


def test_premultiplied_alpha(rng):
    values = rng.integers(0, 256, (6, 5, 4), np.uint8)
    values[:, :, 3] = [0, 64, 128, 200, 255]
    plain = load_image(Image.fromarray(values)).astype(int)
    assert np.abs(load_image(Image.fromarray(values).convert("RGBa")) - plain).max() <= 2
    gray = Image.fromarray(values).convert("LA")
    assert np.abs(load_image(gray.convert("La")) - load_image(gray).astype(int)).max() <= 2


def test_transparent_color_of_an_rgb_png(tmp_path, pixels):
    rgb = pixels.copy()
    rgb[2:4, 3:9] = (9, 8, 7)
    got = both_ways(Image.fromarray(rgb), tmp_path / "a.png", transparency=(9, 8, 7))
    rgb[2:4, 3:9] = 255
    np.testing.assert_array_equal(got, rgb)


def test_cmyk_jpeg(tmp_path, pixels):
    cmyk = Image.fromarray(pixels).convert("CMYK")
    got = both_ways(cmyk, tmp_path / "cmyk.jpg", quality=95)
    with Image.open(tmp_path / "cmyk.jpg") as image:
        assert image.mode == "CMYK"
    assert near(got, pixels, 5)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBX", "CMYK"])
def test_other_modes_of_pil_images(pixels, mode):
    assert near(load_image(Image.fromarray(pixels).convert(mode)), pixels, 4)


def test_16_bit_gray_is_scaled_with_rounding(tmp_path):
    wide = np.array([[0, 128, 129, 257, 32767, 32768, 65407, 65535]], np.uint16)
    expected = np.floor(wide * (255 / 65535) + 0.5)
    for suffix in (".png", ".tif"):
        got = both_ways(Image.fromarray(wide), tmp_path / f"w{suffix}", "gray")
        np.testing.assert_array_equal(got[:, :, 0], expected)
    np.testing.assert_array_equal(load_image(Image.fromarray(wide))[:, :, 2], expected)
    (tmp_path / "w.pgm").write_bytes(b"P5 8 1 65535\n" + wide.astype(">u2").tobytes())
    np.testing.assert_array_equal(load_image(tmp_path / "w.pgm", "gray")[:, :, 0], expected)


def test_transparent_level_of_16_bit_gray(tmp_path):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    wide = np.array([[0, 1000, 65535]], ">u2")  # Pillow cannot write this kind
    (tmp_path / "t.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, 16, 0, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(">H", 1000))
        + chunk(b"IDAT", zlib.compress(b"\0" + wide.tobytes()))
        + chunk(b"IEND", b"")
    )
    assert load_image(tmp_path / "t.png", "gray").tolist() == [[[0], [255], [255]]]


def test_32_bit_pixels_have_no_range():
    for dtype in (np.int32, np.float32):
        with pytest.raises(ImageError, match="32-bit"):
            load_image(Image.fromarray(np.ones((2, 2), dtype)))


# The tag says where row 0 and column 0 of the stored pixels belong (EXIF 2.3, table 6).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
    9: lambda a: a,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_exif_rotation(tmp_path, pixels, orientation, suffix):
    if suffix == ".tif" and orientation == 9:
        pytest.skip("not a TIFF value")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    options = {"quality": 95} if suffix == ".jpg" else {"lossless": True} if suffix == ".webp" else {}
    got = both_ways(Image.fromarray(pixels), tmp_path / f"a{suffix}", exif=exif, **options)
    expected = UPRIGHT[orientation](pixels)
    assert got.shape == expected.shape
    assert near(got, expected, 4 if suffix == ".jpg" else 1e-9)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_spoil_the_pixels(tmp_path, pixels):
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert near(load_image(path), pixels, 4)


def test_rotated_16_bit_gray(tmp_path):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    wide = np.arange(6, dtype=np.uint16).reshape(2, 3) * 257
    got = both_ways(Image.fromarray(wide), tmp_path / "a.png", "gray", exif=exif)
    np.testing.assert_array_equal(got[:, :, 0], UPRIGHT[6](wide) // 257)


def test_pil_images_are_not_changed(pixels):
    image = Image.fromarray(pixels).convert("RGBA")
    before = image.tobytes()
    load_image(image)[:] = 0
    assert image.tobytes() == before
    assert image.mode == "RGBA"


def test_one_pixel(tmp_path):
    got = both_ways(Image.new("RGB", (1, 1), (1, 2, 3)), tmp_path / "dot.png")
    assert got.tolist() == [[[1, 2, 3]]]
    assert rescale(got, 5).tolist() == [[[1, 2, 3]] * 5] * 5


# ---- broken files


def jpeg(pixels, tmp_path):
    path = tmp_path / "whole.jpg"
    Image.fromarray(pixels).resize((420, 300)).save(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda whole: b"", "empty"),
        (lambda whole: b"<!DOCTYPE html><html>404</html>", "HTML page"),
        (lambda whole: b"\n  <HTML><body>", "HTML page"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (lambda whole: b"hello", "not an image"),
        (lambda whole: whole[: len(whole) // 2], "truncated"),
        (lambda whole: whole[:30], ""),
        (lambda whole: whole[:2], "not an image"),
    ],
)
def test_a_broken_file_is_named_with_its_cause(tmp_path, pixels, make, cause):
    path = tmp_path / "bad.jpg"
    path.write_bytes(make(jpeg(pixels, tmp_path)))
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert cause in str(caught.value)
    assert str(caught.value).count("bad.jpg") == 1
    assert isinstance(caught.value, (VggError, ValueError))
    with pytest.raises(ImageError, match=r"^image 3: "):
        load_image(path, name="image 3")


def test_a_png_with_a_damaged_chunk(tmp_path, pixels):
    path = tmp_path / "bad.png"
    Image.fromarray(pixels).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"bad\.png: "):
        load_image(path)


def test_every_truncation_is_an_error_or_harmless(tmp_path, pixels):
    """Only checksums after the last pixel may be missing."""
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    refused = 0
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        try:
            np.testing.assert_array_equal(load_image(path), pixels)
        except ImageError:
            refused += 7
    assert refused > len(content) - 40


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(ImageError, match=r"none\.jpg: no such file"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="download"):
        load_image("https://example.org/cat.jpg")


def test_decompression_bombs(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("L", (40, 50)).save(path)
    for limit in (1999, 999):  # Pillow warns up to twice the limit, and raises beyond
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for action in ("ignore", "error"):
            with warnings.catch_warnings():
                warnings.simplefilter(action, Image.DecompressionBombWarning)
                with pytest.raises(ImageError, match=r"bomb\.png: .*pixels"):
                    load_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert load_image(path).shape == (50, 40, 3)


# ---- arrays


def test_a_good_array_is_copied(rng):
    x = rng.integers(0, 256, (4, 6, 3), np.uint8)[:, ::2]
    x.flags.writeable = False
    y = load_image(x)
    np.testing.assert_array_equal(x, y)
    assert not np.shares_memory(x, y)
    assert y.flags.c_contiguous
    assert y.flags.writeable
    assert load_image(x[:, :, :1], "gray").shape == (4, 3, 1)


RGB = np.full((8, 9, 3), 200, np.uint8)


@pytest.mark.parametrize(
    ("image", "channels", "advice"),
    [
        (RGB / 255, "RGB", "multiply by 255, round and convert to uint8"),
        (RGB.astype(np.float32), "RGB", "round and convert to uint8: image.round()"),
        (RGB.astype(np.float16) / 255, "RGB", "values lie in .* 0..1"),
        (RGB - 123.7, "RGB", "round and convert"),
        (RGB - 230.7, "RGB", "the model subtracts its own mean"),
        (RGB * np.nan, "RGB", "NaN"),
        (RGB * 1e6, "RGB", "not pixels"),
        (RGB > 3, "RGB", r"\* 255"),
        (RGB.astype(np.int64), "RGB", r"image.astype\(np.uint8\)"),
        (RGB.astype(np.uint16) * 257, "RGB", "16 bits"),
        (RGB.astype(np.complex64), "RGB", "must be uint8"),
        (RGB.transpose(2, 0, 1), "RGB", r"transpose\(1, 2, 0\)"),
        (RGB[:, :, :1].transpose(2, 0, 1), "gray", r"transpose\(1, 2, 0\)"),
        (RGB.transpose(2, 0, 1) / 255.0, "RGB", r"transpose\(1, 2, 0\).*multiply by 255"),
        (np.dstack([RGB, RGB[:, :, :1]]), "RGB", "alpha"),
        (RGB[:, :, :1], "RGB", r"np.repeat\(image, 3, axis=2\)"),
        (RGB[:, :, 0], "RGB", r"np.repeat\(image\[:, :, None\], 3, axis=2\)"),
        (RGB[:, :, 0], "gray", r"image\[:, :, None\]"),
        (RGB, "gray", "fromarray"),
        (RGB[:, :, :2], "RGB", "neither gray nor RGB"),
        (RGB[None], "RGB", "list of images"),
        (RGB[0, 0], "RGB", "not an image"),
        (RGB[:0], "RGB", "no pixels"),
    ],
)
def test_an_array_of_another_kind_is_an_error_that_says_what_to_do(image, channels, advice):
    before = image.copy()
    with pytest.raises(ValueError, match=advice) as caught:
        load_image(image, channels, name="picture 7")
    message = str(caught.value)
    assert message.startswith("picture 7: ")
    assert str(image.shape) in message
    assert str(image.dtype) in message
    np.testing.assert_array_equal(image, before)


def test_the_advice_works(pixels):
    """What the messages recommend passes the check."""
    gray = pixels[:, :, 0]
    for fixed in (
        ((pixels / 255) * 255).round().clip(0, 255).astype(np.uint8),
        pixels.astype(np.float32).round().astype(np.uint8),
        pixels.transpose(2, 0, 1).transpose(1, 2, 0),
        np.repeat(gray[:, :, None], 3, axis=2),
        (pixels.astype(np.uint16) * 257 / 257).round().astype(np.uint8),
    ):
        check_image(fixed)
    np.testing.assert_array_equal(((pixels / 255) * 255).round().clip(0, 255).astype(np.uint8), pixels)


def test_contents_of_a_file(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(photos()[0]).save(path)
    np.testing.assert_array_equal(load_image(path.read_bytes()), load_image(path))
    with pytest.raises(ImageError, match="^image: the file is not an image"):
        load_image(b"bytes")
    with pytest.raises(ImageError, match="^here: the file is empty"):
        load_image(b"", name="here")


# ---- decoding at a lower resolution, in training


@pytest.fixture
def decoded_size(monkeypatch):
    """Sizes, height and width, that were decoded since."""
    sizes = []
    real = preprocess._decode

    def decode(image, channels):
        pixels = real(image, channels)
        sizes.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(preprocess, "_decode", decode)
    return sizes


@pytest.mark.parametrize("turned", [False, True])
def test_a_jpeg_file_is_decoded_smaller_but_not_below_the_side_asked(tmp_path, decoded_size, turned):
    """416 x 640: whole down to a side of 209, then its half, quarter, eighth."""
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6 if turned else 1
    Image.fromarray(photos()[0][:416]).save(path, quality=95, exif=exif)
    whole = load_image(path)
    for side, divisor in (
        (500, 1), (416, 1), (209, 1), (208, 2), (207, 2), (160, 2), (105, 2), (104, 4), (53, 4), (52, 8), (9, 8),
    ):  # fmt: skip
        pixels, size = load_rescaled(path, side)
        expected = rescale(whole, side).astype(int)
        assert min(decoded_size[-1]) == 416 // divisor
        assert size == whole.shape[:2] == ((640, 416) if turned else (416, 640))
        assert pixels.shape == expected.shape
        difference = np.abs(pixels - expected).mean()
        if divisor == 1:
            assert difference == 0
        else:  # as near as another filter is, and far nearer than pixels picked without one
            picked = rescale(whole[::divisor, ::divisor], side)
            assert difference < 4 and difference < 0.5 * np.abs(picked - expected).mean()


def test_only_jpeg_files_are_decoded_smaller(tmp_path, decoded_size):
    image = Image.fromarray(photos()[1])
    image.save(tmp_path / "a.png")
    image.convert("CMYK").save(tmp_path / "c.jpg")
    image.convert("L").save(tmp_path / "g.jpg")
    for source, side in ((tmp_path / "a.png", 427), (image, 427), (tmp_path / "c.jpg", 107)):
        assert load_rescaled(source, 100)[0].shape == (100, 150, 3)
        assert min(decoded_size[-1]) == side
    pixels, size = load_rescaled((tmp_path / "g.jpg").read_bytes(), 100, "box", "gray")
    assert (pixels.shape, size, decoded_size[-1]) == ((100, 150, 1), (427, 640), (107, 160))
    array = np.asarray(image)
    np.testing.assert_array_equal(load_rescaled(array, 100)[0], rescale(array, 100))


def test_load_rescaled_names_what_is_wrong(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"<html>")
    with pytest.raises(ImageError, match=r"a\.jpg: the file is an HTML page"):
        load_rescaled(tmp_path / "a.jpg", 32)
    with pytest.raises(ValueError, match="filter is 'cubic'"):
        load_rescaled(photos()[0], 32, "cubic")
    with pytest.raises(ValueError, match="short_side is 0"):
        load_rescaled(photos()[0], 0)


@pytest.mark.parametrize("source", [bytearray(b"GIF"), 3, None, [RGB], RGB.tolist()])
def test_other_things_are_type_errors(source):
    with pytest.raises(
        TypeError, match="expected one path, PIL image, contents of a file as bytes, or uint8 array"
    ):
        load_image(source)


@pytest.mark.parametrize("channels", ["BGR", "rgb", "L", 3, None, []])
def test_unknown_channels(channels):
    with pytest.raises(ValueError, match='"RGB" or "gray"'):
        load_image(RGB, channels)


# ---- rescaling


def naive_size(height, width, side):
    """floor(long * side / short + 0.5) with exact fractions."""
    short = min(height, width)
    scale = Fraction(side, short)
    return tuple(side if n == short else math.floor(n * scale + Fraction(1, 2)) for n in (height, width))


@given(*[st.integers(1, 10**6)] * 3)
@settings(max_examples=300, deadline=None)
def test_rescaled_size(height, width, side):
    assert rescaled_size(height, width, side) == naive_size(height, width, side)


def test_rescaled_size_of_halves_and_large_numbers():
    assert rescaled_size(2, 3, 1) == (1, 2)  # 1.5 rounds up
    assert rescaled_size(4, 10, 1) == (1, 3)  # 2.5 too
    assert rescaled_size(10, 4, 1) == (3, 1)
    assert rescaled_size(3, 10**17 + 1, 10) == naive_size(3, 10**17 + 1, 10)  # beyond float64
    for bad in ((0, 1, 1), (1, -1, 1), (1, 1, 0)):
        with pytest.raises(ValueError, match="positive"):
            rescaled_size(*bad)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(40, 60), (60, 40), (33, 33), (1, 1), (1, 9)])
def test_rescale_is_pillows(rng, filter, channels, size):
    image = rng.integers(0, 256, (*size, channels), np.uint8)
    image.flags.writeable = False
    before = image.copy()
    for side in (17, 32, 64):
        got = rescale(image, side, filter)
        height, width = naive_size(*size, side)
        assert got.shape == (height, width, channels)
        assert got.dtype == np.uint8
        assert got.flags.c_contiguous
        method = {"bilinear": 2, "bicubic": 3, "lanczos": 1, "box": 4}[filter]  # Pillow's numbers
        for c in range(channels):  # each channel by itself: they must not mix
            alone = Image.fromarray(np.ascontiguousarray(image[:, :, c])).resize((width, height), method)
            np.testing.assert_array_equal(got[:, :, c], np.asarray(alone))
    np.testing.assert_array_equal(image, before)


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    for filter in FILTERS:
        small = rescale(stripes, 8, filter).astype(int)
        assert np.abs(small - 128).max() <= 40, filter  # picking pixels would give 0 or 255


def test_bicubic_is_the_default(pixels):
    np.testing.assert_array_equal(rescale(pixels, 20), rescale(pixels, 20, "bicubic"))
    assert (rescale(pixels, 20) != rescale(pixels, 20, "bilinear")).any()


def test_rescale_to_the_same_size_is_the_identity(pixels):
    assert np.shares_memory(rescale(pixels, 30), pixels)
    np.testing.assert_array_equal(rescale(pixels, 30), pixels)
    flipped = pixels[:, ::-1]
    assert rescale(flipped, 30).flags.c_contiguous
    np.testing.assert_array_equal(rescale(flipped, 30), flipped)


def test_rescale_of_a_view(pixels):
    view = pixels[::2, 10:31][:, ::-1]
    np.testing.assert_array_equal(rescale(view, 40), rescale(view.copy(), 40))


def test_rescale_refuses(pixels):
    with pytest.raises(ValueError, match="bilinear, bicubic, lanczos, box"):
        rescale(pixels, 20, "nearest")
    with pytest.raises(ValueError, match="positive"):
        rescale(pixels, 0)
    with pytest.raises(ValueError, match="uint8"):
        rescale(pixels / 255, 20)
    with pytest.raises(ImageError, match="too elongated"):
        rescale(np.zeros((1, 10**6, 1), np.uint8), 256)


# ---- hostile files


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_bytes_give_pixels_or_an_image_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.png"
    Image.new("RGB", (5, 4), "red").save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert load_image(path).dtype == np.uint8
    except ImageError as error:
        message = str(error)
    else:
        message = ""
    assert not message or str(path) in message


def test_a_header_that_announces_too_much(tmp_path):
    path = tmp_path / "huge.png"
    Image.new("RGB", (5, 4)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"huge\.png"):
        load_image(path)
