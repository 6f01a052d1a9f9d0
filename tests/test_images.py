"""Every odd image is made for real here, as cameras, scanners and broken downloads make them."""

from __future__ import annotations

import struct
import threading
import zlib
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageFile

from uniedit_hf.images import MAX_PIXELS, ImageError, image_size, open_image


ORIENTATION = 0x0112

# What each EXIF orientation does to the stored rows and columns, after the EXIF standard.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def encode(picture: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def colours(height: int = 24, width: int = 40) -> np.ndarray:
    """Four flat quarters of different colors, that survive JPEG."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (250, 10, 10)
    pixels[: height // 2, width // 2 :] = (10, 250, 10)
    pixels[height // 2 :, : width // 2] = (10, 10, 250)
    pixels[height // 2 :, width // 2 :] = (240, 240, 240)
    return pixels


def png_header(width: int, height: int) -> bytes:
    """The first 41 bytes of a PNG, up to its pixels: all that a bomb needs."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 1000) + b"IDAT"


def pixel(image, at=(0, 0)):
    return open_image(image).getpixel(at)


# --- what can be passed -------------------------------------------------------------------------------------------


def test_every_way_to_pass_a_picture(tmp_path):
    pixels = colours()
    data = encode(Image.fromarray(pixels), "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    gone = str(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="is a folder: expected the path of one image file"):
        open_image(tmp_path)
    ways = [
        Image.fromarray(pixels),
        Image.open(path),
        data,
        bytearray(data),
        memoryview(data),
        path,
        str(path),
        {"bytes": data, "path": None},
        {"bytes": data, "path": gone},
        {"bytes": None, "path": str(path)},
        {"path": path},
        pixels,
    ]
    for way in ways:
        opened = open_image(way)
        assert opened.mode == "RGB"
        assert np.array_equal(np.asarray(opened), pixels)
        assert image_size(way) == (40, 24)


def test_arrays():
    grey = np.array([[0, 128], [255, 7]], np.uint8)
    for array in (grey, grey[:, :, None]):
        assert np.array_equal(np.asarray(open_image(array)), np.stack([grey] * 3, axis=2))
    clear = np.zeros((2, 3, 4), np.uint8)
    assert pixel(clear) == (255, 255, 255)
    assert image_size(clear) == (3, 2)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((4, 4, 2), np.uint8),
    ],
    ids=["float", "channels first", "one row", "two channels"],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ImageError, match=r"source is an array of .* with shape .*expected uint8"):
        open_image(array, name="source")


def test_what_was_passed_is_not_changed():
    picture = Image.new("RGB", (3, 2), "red")
    picture.info["comment"] = "mine"
    open_image(picture).putpixel((0, 0), (0, 0, 0))
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert picture.info == {"comment": "mine"}


# --- modes --------------------------------------------------------------------------------------------------------


def test_transparency_is_laid_on_white():
    half_red = Image.new("RGBA", (3, 2), (255, 0, 0, 128))
    assert pixel(half_red) == pixel(encode(half_red, "PNG")) == (255, 127, 127)
    assert pixel(encode(half_red, "WEBP", lossless=True)) == (255, 127, 127)
    assert pixel(encode(Image.new("LA", (3, 2), (0, 0)), "PNG")) == (255, 255, 255)
    assert pixel(Image.new("PA", (3, 2))) == (255, 255, 255)
    assert pixel(Image.new("RGBa", (3, 2), (0, 0, 0, 0))) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_transparency(kind):
    picture = Image.new("P", (4, 2), 0)
    picture.putpalette([0, 0, 0, 200, 30, 40])
    picture.putpixel((1, 0), 1)
    data = encode(picture, kind, transparency=0)
    assert pixel(data) == (255, 255, 255)
    assert pixel(data, (1, 0)) == (200, 30, 40)


@pytest.mark.parametrize(("mode", "colour"), [("L", 9), ("RGB", (9, 8, 7)), ("1", 0), ("I;16", 9000)])
def test_one_transparent_colour(mode, colour):
    data = encode(Image.new(mode, (3, 2), colour), "PNG", transparency=colour)
    assert "transparency" in Image.open(BytesIO(data)).info
    assert pixel(data) == (255, 255, 255)


def test_palette_and_one_bit():
    pixels = colours()
    palette = Image.fromarray(pixels).quantize(8)
    assert palette.mode == "P"
    assert np.array_equal(np.asarray(open_image(encode(palette, "PNG"))), pixels)
    bits = Image.fromarray(np.eye(4, dtype=bool))
    assert bits.mode == "1"
    opened = np.asarray(open_image(encode(bits, "PNG")))
    assert np.array_equal(opened[:, :, 1], np.eye(4, dtype=np.uint8) * 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    values = np.array([[0, 257 * 100, 65535], [128, 256, 40000]], np.uint16)
    data = encode(Image.fromarray(values), kind)
    assert Image.open(BytesIO(data)).mode == "I;16"
    assert np.array_equal(np.asarray(open_image(data))[:, :, 0], [[0, 100, 255], [0, 1, 156]])


def test_12_bit_tiff_is_scaled_by_its_own_depth():
    values = [0, 4095, 2048, 1024]
    packed = bytes(
        byte for a, b in zip(values[::2], values[1::2]) for byte in (a >> 4, (a & 15) << 4 | b >> 8, b & 255)
    )
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(packed)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + directory + bytes(4)
    assert np.array_equal(np.asarray(open_image(data))[0, :, 0], [0, 255, 128, 64])


def test_32_bit_grey_takes_the_smallest_depth_that_holds_it():
    cases = [
        (np.array([[0, 255]], np.int32), [0, 255]),
        (np.array([[0, 65535]], np.int32), [0, 255]),
        (np.array([[-5, 2**31 - 1]], np.int32), [0, 255]),
        (np.array([[0, 0.5]], np.float32), [0, 128]),
        (np.array([[64, 200.4]], np.float32), [64, 200]),
        (np.array([[0, 1e12]], np.float32), [0, 255]),
    ]
    for values, expected in cases:
        for image in (Image.fromarray(values), encode(Image.fromarray(values), "TIFF")):
            assert np.array_equal(np.asarray(open_image(image))[0, :, 0], expected)
    dark = b"P5 2 1 65535\n" + struct.pack(">HH", 200, 0)  # its depth is known, so it stays dark
    assert pixel(dark) == (1, 1, 1)
    with pytest.raises(ImageError, match="map 3 holds values that are not finite"):
        open_image(Image.fromarray(np.array([[np.nan, 1]], np.float32)), name="map 3")


def test_cmyk():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = encode(red, "JPEG", quality=100)
    assert b"Adobe" in data  # inverted values under Adobe's marker, as Photoshop writes them
    start = data.index(b"Adobe") - 4
    plain = data[:start] + data[start + 16 :]
    assert b"Adobe" not in plain
    assert Image.open(BytesIO(plain)).mode == "CMYK"
    for each in (data, plain, red):  # Pillow takes a CMYK JPEG as inverted with and without the marker
        assert np.abs(np.subtract(pixel(each), (255, 0, 0))).max() <= 3


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "lime", "blue")]
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert Image.open(BytesIO(data)).n_frames == 3
        assert pixel(data) == (255, 0, 0)


# --- orientation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "MPO"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation(kind, orientation):
    stored = colours()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(Image.fromarray(stored), kind, exif=exif)
    upright = UPRIGHT[orientation](stored).astype(int)
    opened = open_image(data)
    assert image_size(data) == opened.size == upright.shape[1::-1]
    # the middle of every quarter: there, lossy formats are close
    height, width = upright.shape[:2]
    for y in (height // 4, 3 * height // 4):
        for x in (width // 4, 3 * width // 4):
            assert np.abs(upright[y, x] - opened.getpixel((x, y))).max() < 30
    assert np.array_equal(np.asarray(open_image(opened)), np.asarray(opened)), "turned once, not again"


def test_size_of_a_png_is_read_without_decoding():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for options, size in (({"exif": exif}, (400, 600)), ({}, (600, 400))):
        data = encode(Image.fromarray(colours(400, 600)), "PNG", **options)
        assert image_size(data[: data.index(b"IDAT") + 20]) == size
    chunk = b"eXIf" + exif.tobytes()[6:]
    late = data[:-12] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[-12:]
    assert Image.open(BytesIO(late)).getexif()[ORIENTATION] == 6
    assert open_image(late).size == image_size(late) == (600, 400)  # EXIF behind the pixels counts for neither


def test_damaged_exif_leaves_a_picture_as_stored():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encode(Image.fromarray(colours()), "JPEG", exif=exif).replace(b"Exif\0\0MM\0*", b"Exif\0\0XX\0*")
    assert open_image(data).size == image_size(data) == (40, 24)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_truncated(kind, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"half.{kind.lower()}"
    data = encode(Image.fromarray(noise), kind)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=rf"row 7 \(.*half\.{kind.lower()}\) .*expected a complete"):
        open_image(path, name="row 7")


@pytest.mark.parametrize(
    "data",
    [
        png_header(50_000, 50_000),
        b"GIF89a"
        + struct.pack("<HH", 65535, 65535)
        + bytes(3)
        + b","
        + struct.pack("<HHHH", 0, 0, 65535, 65535)
        + b"\0\x08",
        b"P6 50000 50000 255\n",
    ],
    ids=["PNG", "GIF", "PPM"],
)
@pytest.mark.parametrize("read", [open_image, image_size])
def test_header_bomb(data, read):
    with pytest.raises(ImageError, match=r"source is larger than the limit of 89,478,485 pixels \(.*\d{10} pixels"):
        read(data, name="source")


def test_limit_is_checked_before_decoding():
    header = png_header(10_000, 9_000)  # there are no pixels to decode
    assert 10_000 * 9_000 > MAX_PIXELS
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ImageError, match="10,000 x 9,000 pixels, more"):
        open_image(header)
    data = encode(Image.fromarray(colours()), "PNG")
    with pytest.raises(ImageError, match="is 40 x 24 pixels, more than the limit of 959"):
        image_size(data, max_pixels=959)
    assert open_image(data, max_pixels=960).size == (40, 24)


@pytest.mark.parametrize("empty", [Image.new("RGB", (0, 5)), np.zeros((5, 0, 3), np.uint8)], ids=["PIL", "array"])
def test_no_pixels(empty):
    with pytest.raises(ImageError, match="target is 0 x 5 pixels: expected at least 1 x 1"):
        open_image(empty, name="target")


def test_no_pixels_in_a_header():
    with pytest.raises(ImageError):
        open_image(png_header(0, 5))


def test_not_a_picture(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(
        ImageError, match=r"image \(.*notes\.png\) begins with b'version https://' .*expected a complete PNG"
    ):
        open_image(path)
    with pytest.raises(ImageError, match="begins with nothing"):
        image_size(b"")
    with pytest.raises(ImageError, match="does not exist"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="is a folder: expected the path of one image file"):
        open_image(tmp_path)


def test_formats_that_run_programs_are_refused():
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert Image.open(BytesIO(script)).format == "EPS"
    with pytest.raises(ImageError, match="begins with b'%!PS"):
        open_image(script)


@pytest.mark.parametrize(
    "address",
    ["https://example.com/cat.png", "HTTP://x/y.jpg", "hf://datasets/a/b.png", "data:image/png;base64,iVBOR"],
)
def test_addresses_are_never_fetched(address, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("tried to reach a network"))
    for image in (address, {"bytes": None, "path": address}):
        with pytest.raises(ImageError, match="is an address, and nothing is fetched"):
            open_image(image)


@pytest.mark.parametrize(
    ("value", "found"),
    [(None, "NoneType"), (3, "int"), ({}, "keys: none"), ({"bytes": None, "path": None}, "without")],
)
def test_other_values(value, found):
    with pytest.raises(ImageError, match=rf"source_image of row 3 is .*{found}"):
        open_image(value, name="source_image of row 3")


# --- rules --------------------------------------------------------------------------------------------------------

SMALL = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8))
KINDS = {kind: encode(SMALL, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "JPEG2000")}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_damage_is_an_image_error_or_harmless(kind, draw):
    data = bytearray(KINDS[kind])
    for place in draw.draw(st.lists(st.integers(0, len(data) - 1), max_size=4)):
        data[place] = draw.draw(st.integers(0, 255))
    data = bytes(data[: draw.draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])
    try:
        opened = open_image(data, max_pixels=10**6)
    except ImageError:
        return
    assert opened.mode == "RGB"
    assert image_size(data, max_pixels=10**6) == opened.size


def test_many_threads_leave_pillow_as_it_was():
    before = (PIL.Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    data = encode(SMALL, "PNG")
    outcomes = []

    def work():
        for _ in range(50):
            outcomes.append(open_image(data).size)
            with pytest.raises(ImageError):
                open_image(data[:200])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [(12, 9)] * 200
    assert (PIL.Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before
