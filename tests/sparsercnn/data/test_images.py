"""Every kind of picture is read right, or refused in one line that names the file and what is wrong with it."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, features

from sparsercnn.data.images import MAX_ASPECT_RATIO, read_image, silence_pillow
from sparsercnn.errors import InputError

H, W = 30, 40
GRAY = (np.arange(H)[:, None] * 3 + np.arange(W) * 4).astype(np.uint8)
RGB = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=-1)
SIXTEEN = GRAY.astype(np.uint16) * 256 + 77


def spread(gray):
    return np.repeat(gray[..., None], 3, axis=-1)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def png(width, height, depth, color, rows, damage=False):
    def chunk(name, data, damage=False):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ damage)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows), damage) + chunk(b"IEND", b"")


def tiff(samples, bits, photometric=1, sample_format=1):
    """An uncompressed gray TIFF file; Pillow cannot write most kinds."""
    values = {256: W, 257: H, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: H, 279: len(samples)}
    values[339] = sample_format
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II*\0" + struct.pack("<I", 8 + len(samples)) + samples + struct.pack("<H", len(values)) + tags + bytes(4)


def twelve_bits(samples):
    pairs = samples.reshape(-1, 2).astype(int)
    packed = [(a >> 4, (a & 15) << 4 | b >> 8, b & 255) for a, b in pairs]
    return np.array(packed, np.uint8).tobytes()


def with_alpha(mode):
    image = Image.fromarray(RGB).convert(mode)
    image.putalpha(Image.fromarray(GRAY))
    return image


def palette(**options):
    image = Image.fromarray(GRAY // 8).convert("P")
    image.putpalette([x for i in range(256) for x in (i, 255 - i, 7)])
    return encode(image, options.pop("kind", "PNG"), **options)


PALETTE_COLORS = np.stack([GRAY // 8, 255 - GRAY // 8, np.full_like(GRAY, 7)], axis=-1)
FRAMES = dict(save_all=True, append_images=[Image.fromarray(255 - RGB)])
SIXTEEN_BIT_RGB = b"".join(b"\0" + row.tobytes() for row in (RGB.astype(np.uint16) * 256 + 77).astype(">u2"))
READ_RIGHT = {
    "png": (encode(RGB, "PNG"), RGB),
    "bmp": (encode(RGB, "BMP"), RGB),
    "ppm": (encode(RGB, "PPM"), RGB),
    "webp": (encode(RGB, "WEBP", lossless=True), RGB),
    "jpeg 2000": (encode(RGB, "JPEG2000"), RGB),
    "tiff": (encode(RGB, "TIFF", compression="tiff_lzw"), RGB),
    "gray": (encode(GRAY, "PNG"), spread(GRAY)),
    "1 bit": (encode(Image.fromarray(GRAY > 99), "PNG"), spread((GRAY > 99) * np.uint8(255))),
    "palette": (palette(), PALETTE_COLORS),
    "palette and transparency": (palette(transparency=bytes(range(256))), PALETTE_COLORS),
    "gif": (palette(kind="GIF"), PALETTE_COLORS),
    "gray and alpha": (encode(with_alpha("L"), "PNG"), spread(np.asarray(Image.fromarray(RGB).convert("L")))),
    "rgb and alpha": (encode(with_alpha("RGB"), "PNG"), RGB),
    "cmyk": (encode(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB),
    "16 bits": (encode(SIXTEEN, "PNG"), spread(GRAY)),
    "16 bits big-endian": (encode(SIXTEEN.astype(">u2"), "TIFF"), spread(GRAY)),
    "16 bits, white is 0": (tiff(SIXTEEN.tobytes(), 16, photometric=0), spread(255 - GRAY)),
    "16 bits pgm": (b"P5 40 30 65535\n" + SIXTEEN.astype(">u2").tobytes(), spread(GRAY)),
    "16 bits jpeg 2000": (encode(SIXTEEN, "JPEG2000"), spread(GRAY)),
    "16 bits rgb": (png(W, H, 16, 2, SIXTEEN_BIT_RGB), RGB),
    "12 bits": (tiff(twelve_bits(GRAY.astype(np.uint16) * 16 + 7), 12), spread(GRAY)),
    "animated png": (encode(RGB, "PNG", **FRAMES), RGB),
    "animated webp": (encode(RGB, "WEBP", lossless=True, **FRAMES), RGB),
    "pages": (encode(RGB, "TIFF", **FRAMES), RGB),
    "one pixel wide": (encode(RGB[:, :1], "PNG"), RGB[:, :1]),
    "one pixel": (encode(RGB[:1, :1], "PNG"), RGB[:1, :1]),
}


def write(folder, content, name="picture.jpg"):
    path = folder / name
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("kind", READ_RIGHT)
def test_read_right_whatever_the_suffix(tmp_path, kind):
    content, expected = READ_RIGHT[kind]
    image = read_image(write(tmp_path, content), "RGB")
    assert image.dtype == np.uint8 and np.array_equal(image, expected)


def test_first_picture_of_what_a_camera_wrote(tmp_path):
    smooth = np.asarray(Image.fromarray(RGB).resize((80, 60)))
    path = write(tmp_path, encode(smooth, "MPO", **FRAMES, quality=95))
    assert np.abs(read_image(path, "RGB").astype(int) - smooth).mean() < 3


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif(tmp_path):
    assert np.abs(read_image(write(tmp_path, encode(RGB, "AVIF", quality=100)), "RGB").astype(int) - RGB).mean() < 3


REFUSED = {
    "empty": (b"", "it is empty"),
    "text": (b"hello", "damaged, or no image in one of the formats JPEG, PNG"),
    "html": (b"\n<!DOCTYPE html><html>Not found</html>", "an HTML page"),
    "svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    "pdf": (b"%PDF-1.7\n", "a PDF document"),
    "postscript, which would run": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript document"),
    "half a jpeg": (encode(np.tile(RGB, (9, 9, 1)), "JPEG")[:-2000], "truncated"),
    "half a png": (encode(RGB, "PNG")[:-60], "truncated"),
    "wrong checksum": (png(W, H, 8, 2, b"".join(b"\0" + r.tobytes() for r in RGB), damage=True), "checksum"),
    "float": (encode(GRAY.astype(np.float32), "TIFF"), "floating-point"),
    "float pfm": (b"Pf\n40 30\n-1.0\n" + GRAY.astype("<f4").tobytes(), "32 bits"),
    "32 bits": (tiff(GRAY.astype(np.uint32).tobytes(), 32), "32 bits"),
    "signed": (tiff(SIXTEEN.astype(np.int16).tobytes(), 16, sample_format=2), "signed"),
    "bomb": (png(50000, 40000, 8, 0, b""), "exceeds limit of 178956970 pixels"),
    "thin": (encode(np.zeros((MAX_ASPECT_RATIO + 1, 1), np.uint8), "PNG"), "1×65 pixels; one side may be 64 times"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name(tmp_path, kind):
    content, message = REFUSED[kind]
    path = write(tmp_path, content)
    with pytest.raises(InputError) as error:
        read_image(path, "RGB")
    assert str(error.value).startswith(f"cannot read image {path}: ") and message.lower() in str(error.value).lower()
    assert "\n" not in str(error.value)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    path = write(tmp_path, png(9000, 9000, 8, 0, b""))  # decoding would find no pixels
    with pytest.raises(InputError, match="9000×9000 pixels, more than INPUT.MAX_PIXELS, which is 67108864"):
        read_image(path, "RGB")
    small = write(tmp_path, encode(RGB, "PNG"))
    assert read_image(small, "RGB", H * W).shape == (H, W, 3)
    with pytest.raises(InputError, match="40×30 pixels, more than INPUT.MAX_PIXELS"):
        read_image(small, "RGB", H * W - 1)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "no regular file"), ("", "no regular file"), ("gone.png", "No such file")):
        with pytest.raises(InputError, match=message):
            read_image(str(tmp_path / name), "RGB")


@pytest.mark.parametrize("name", ["null\0byte.png", "two\nlines.png"])
def test_odd_names_stay_one_line(tmp_path, name):
    with pytest.raises(InputError) as error:
        read_image(str(tmp_path / name), "RGB")
    assert str(error.value).isprintable()


def test_pillow_does_not_warn_of_what_is_read_all_the_same(tmp_path):
    broken_exif = b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff broken"
    contents = READ_RIGHT["palette and transparency"][0], encode(RGB, "JPEG", exif=broken_exif)
    for content in contents:
        path = write(tmp_path, content)
        with pytest.warns(UserWarning):
            read_image(path, "RGB")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            silence_pillow()
            read_image(path, "RGB")
        assert not seen
