"""How image files are read: allowed decoders, huge and odd pictures, what is no file."""

import os
import struct
import zlib

import layouts
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from cliad.cache.datasets.pictures import UnreadableImage, allowed_formats, is_image, open_image

RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)


def read_back(file, values):
    Image.fromarray(values).save(file)
    return np.asarray(open_image(file))[..., 0]


def png_header(file, width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))


@pytest.mark.parametrize("format", ["EPS", "PDF", "ICO", "TGA", "PCX", "ICNS", "DDS"])
def test_formats_that_are_not_on_the_list_are_unreadable(tmp_path, format):
    file = tmp_path / "a.jpg"
    layouts.picture().save(file, format=format)
    with pytest.raises(UnidentifiedImageError, match="it is none of JPEG, PNG"):
        open_image(file)
    assert not is_image(file)


def test_no_decoder_on_the_list_starts_a_program_or_reads_other_files():
    assert set(allowed_formats()) <= {
        "JPEG",
        "PNG",
        "WEBP",
        "GIF",
        "BMP",
        "TIFF",
        "PPM",
        "JPEG2000",
        "AVIF",
    }


@pytest.mark.parametrize(
    "width, height, said",
    [
        (2**31 - 1, 2**31 - 1, "exceeds limit"),
        (13_000, 13_000, "169,000,000 pixels; at most"),
        (100_000_000, 1, "one side may be at most 400 times the other"),
        (1, 500, "one side may be at most 400 times the other"),
    ],
)
def test_pictures_of_huge_sizes_are_refused_by_their_header(tmp_path, width, height, said):
    png_header(tmp_path / "a.png", width, height)
    with pytest.raises(Exception, match=said):
        open_image(tmp_path / "a.png")
    assert is_image(tmp_path / "a.png")


def test_what_is_no_ordinary_file_is_refused_unread(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "device.png", "folder.png"):
        with pytest.raises(UnreadableImage, match="not a file"):
            open_image(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "gone.png")


@pytest.mark.parametrize("scale", [1.0, 255.0, 65535.0, 1e6])
def test_float_pixels_are_scaled_by_their_range(tmp_path, scale):
    grey = read_back(tmp_path / "a.tif", (RAMP * scale).astype(np.float32))
    assert grey[0, 0] == 0 and grey[-1, -1] == 255
    assert np.abs(grey - RAMP * 255).max() <= 1


def test_float_pixels_below_zero_are_stretched_from_the_smallest_to_the_largest(tmp_path):
    grey = read_back(tmp_path / "a.tif", (RAMP * 2 - 1).astype(np.float32))
    assert np.abs(grey - RAMP * 255).max() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_float_pixels_that_are_not_finite_are_unreadable(tmp_path, value):
    with pytest.raises(UnreadableImage, match="float pixels are not finite"):
        read_back(tmp_path / "a.tif", np.where(RAMP > 0.5, value, RAMP).astype(np.float32))


@pytest.mark.parametrize("ending", ["tif", "png", "jp2", "pgm"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path, ending):
    values = (RAMP * 65535).astype(np.uint16)
    assert np.abs(read_back(tmp_path / f"a.{ending}", values) - (values >> 8)).max() <= 1


def test_16_bits_of_the_other_order_of_bytes_are_the_same(tmp_path):
    values = (RAMP * 65535).astype(np.uint16)
    same = read_back(tmp_path / "a.tif", values)
    assert np.array_equal(read_back(tmp_path / "b.tif", values.astype(">u2")), same)


def test_32_bit_numbers_are_scaled_by_their_range(tmp_path):
    small = read_back(tmp_path / "a.tif", (RAMP * 255).astype(np.int32))
    large = read_back(tmp_path / "b.tif", (RAMP * 2e9).astype(np.int32))
    assert np.abs(small - RAMP * 255).max() <= 1 and np.abs(large - RAMP * 255).max() <= 1


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif", "mpo"])
def test_the_first_picture_of_several_is_read(tmp_path, ending):
    first = Image.new("RGB", (16, 16), "red")
    file = tmp_path / f"a.{ending}"
    first.save(file, save_all=True, append_images=[Image.new("RGB", (16, 16), "blue")])
    red, green, blue = np.asarray(open_image(file))[8, 8].tolist()
    assert red > 200 and green < 50 and blue < 50


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "I", "F"])
def test_all_kinds_of_pixels_become_rgb(tmp_path, mode):
    file = tmp_path / "a.tif"
    layouts.picture(mode="L").convert(mode).save(file)
    image = open_image(file)
    grey = np.asarray(image)[..., 0]
    assert image.mode == "RGB" and grey.max() > 200 and grey.min() < 50
