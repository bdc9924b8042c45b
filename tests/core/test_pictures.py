"""Pictures: by hand, what is refused, files that are whole or absent, and the grid."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perfuse.arrays.pictures import (
    open_picture,
    preprocess,
    preprocess_mask,
    save_png,
    save_pngs,
    to_pictures,
    to_pil,
    to_unit,
)
from perfuse.errors import InputError, NonFiniteError
from perfuse.shapes.sheet import grid

RED, BLUE = (220, 30, 40), (20, 60, 200)


def plain(colour=RED, size=(64, 64)):
    return Image.new("RGB", size, colour)


# --- out --------------------------------------------------------------------------------------


def test_channels_go_last_and_values_to_255():
    decoded = np.full((2, 3, 4, 5), -1, np.float32)
    decoded[1, 0] = 1
    pictures = to_pictures(decoded)
    assert pictures.shape == (2, 4, 5, 3)
    assert pictures.dtype == np.uint8
    assert pictures[0].max() == 0
    assert pictures[1, 2, 3].tolist() == [255, 0, 0]
    assert to_unit(decoded).dtype == np.float32
    assert to_pil(decoded)[1].getpixel((0, 0)) == (255, 0, 0)


def test_there_and_back():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8))
    assert np.array_equal(to_pictures(preprocess(image))[0], np.asarray(image))


@pytest.mark.parametrize("convert", [to_unit, to_pictures, to_pil])
def test_nan_and_infinity_are_counted(convert):
    decoded = np.zeros((3, 3, 8, 8), np.float32)
    decoded[1, 0, :2, 0] = np.nan
    decoded[2, 1, 0, 0] = np.inf
    with pytest.raises(NonFiniteError, match=r"3 of 576 .*picture 1, 2.*precision: float32"):
        convert(decoded)


def test_decoded_pictures_of_another_shape_are_refused():
    with pytest.raises(InputError, match="NCHW"):
        to_pictures(np.zeros((3, 8, 8), np.float32))
    with pytest.raises(InputError, match="channels"):
        to_pil(np.zeros((1, 2, 8, 8), np.float32))


# --- in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([], "No picture"),
        ("photo.png", "A str was given"),
        ([plain(), np.zeros((64, 64, 3))], "A ndarray was given.*all of one kind"),
        (np.zeros(5), r"this one is \(5,\)"),
        (np.zeros((0, 8, 3)), r"this one is \(0, 8, 3\)"),
        (np.full((8, 8, 3), 200.0), "values from 200 to 200.*uint8"),
        (np.full((8, 8, 3), np.nan), "values from nan"),
        (np.zeros((8, 8, 3), np.int64) + 9, "int64 holds values from 9"),
        (
            [np.zeros((8, 8, 3)), np.zeros((8, 16, 3))],
            r"differ in shape: \(8, 8, 3\), \(8, 16, 3\)",
        ),
        (plain(size=(7, 30)), "7 x 30 pixels, smaller than 8 x 8"),
    ],
)
def test_what_is_not_a_picture_is_refused(image, message):
    with pytest.raises(InputError, match=message):
        preprocess(image)


@pytest.mark.parametrize(("height", "nearest"), [(60, 64), (1, 8), (0, 8), (-8, 8)])
def test_a_size_the_vae_cannot_take_is_refused(height, nearest):
    with pytest.raises(InputError, match=f"height={height} .*multiple of 8.*: {nearest}"):
        preprocess(plain(), height, 64)
    with pytest.raises(InputError, match="width=60"):
        preprocess_mask(plain(), 64, 60)


def test_the_multiple_may_be_another():
    assert preprocess(plain(size=(70, 50)), multiple=4).shape == (1, 3, 48, 68)


@pytest.mark.parametrize(
    "mask",
    [
        np.eye(16, dtype=np.uint8),
        np.eye(16, dtype=np.uint8) * 255,
        np.eye(16, dtype=bool),
        np.eye(16, dtype=np.float32)[None, ..., None],
        Image.fromarray(np.eye(16, dtype=np.uint8) * 255),
    ],
)
def test_however_a_mask_is_written_it_is_the_same(mask):
    assert np.array_equal(preprocess_mask(mask), np.eye(16, dtype=np.float32)[None, None])


def test_a_mask_in_colour_is_refused():
    with pytest.raises(InputError, match="one channel; this one has 3"):
        preprocess_mask(np.zeros((1, 8, 8, 3)))


def test_the_callers_arrays_are_left_alone():
    array, mask = np.full((8, 8, 3), 0.25, np.float32), np.full((8, 8), 0.25, np.float32)
    preprocess(array)[:] = 9
    preprocess_mask(mask)[:] = 9
    assert (array == 0.25).all()
    assert (mask == 0.25).all()


def test_a_picture_file_is_opened_upright_and_in_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: width and height change places
    Image.new("L", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    image = open_picture(tmp_path / "turned.jpg")
    assert (image.size, image.mode) == ((20, 30), "RGB")


def test_a_file_that_is_no_picture_is_named(tmp_path):
    with pytest.raises(InputError, match="no picture at .*absent.png"):
        open_picture(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InputError, match="text.png cannot be read"):
        open_picture(tmp_path / "text.png")
    whole = save_png(
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), tmp_path / "w"
    )
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(InputError, match="half.png cannot be read"):
        open_picture(tmp_path / "half.png")
    with pytest.raises(InputError, match="cannot be read"):
        open_picture(tmp_path)


def test_a_picture_of_400_million_pixels_is_refused_before_it_is_read(tmp_path):
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", b""))
    )
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(InputError, match=r"huge\.png has too many pixels .* Make it smaller"):
        open_picture(tmp_path / "huge.png")


def test_a_large_picture_is_not_copied_before_it_is_made_small(monkeypatch):
    image = Image.new("RGB", (64, 64))
    monkeypatch.setattr(image, "convert", None)  # a copy of four bytes for each pixel
    assert preprocess(image, 8, 8).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("mode", "corner"), [("RGBA", 255), ("P", 255), ("I;16", 255), ("LA", 255), ("1", 255)]
)
def test_pictures_of_any_mode(tmp_path, mode, corner):
    white = Image.new("I;16", (8, 8), 65535) if mode == "I;16" else None
    white = white or Image.new("RGBA", (8, 8), (255, 255, 255, 9)).convert(mode)
    white.save(tmp_path / "white.png")
    image = open_picture(tmp_path / "white.png")
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (corner,) * 3


# --- saving -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 3), (9, 7, 4)])
def test_what_is_saved_is_what_is_read(tmp_path, shape):
    picture = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    path = save_png(picture, tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(path)), picture.squeeze())
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_saved_file_has_the_usual_permissions(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    saved = save_png(plain(), str(tmp_path / "a.png"))
    assert saved.stat().st_mode == ordinary.stat().st_mode


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = save_png(plain(), tmp_path / "a.png")
    before = path.read_bytes()

    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[:11])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"a.png cannot be written: No space left on device"):
        save_png(plain(BLUE), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_of_several_pictures_all_are_saved_or_none(tmp_path):
    old = save_png(plain(), tmp_path / "a.png").read_bytes()
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "absent" / "c.png"]
    with pytest.raises(InputError, match="c.png cannot be written"):
        save_pngs([plain(BLUE)] * 3, paths)
    assert os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == old
    assert save_pngs([plain(BLUE)] * 2, paths[:2]) == paths[:2]
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes() != old


@pytest.mark.parametrize("name", ["absent/a.png", "file/a.png", "folder", "x" * 300 + ".png", ""])
def test_a_place_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written: .*Choose a file"):
        save_png(plain(), tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 2), np.uint8), 3]
)
def test_what_is_no_picture_is_not_saved(tmp_path, image):
    with pytest.raises(InputError, match="picture"):
        save_png(image, tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


# --- the grid ---------------------------------------------------------------------------------


def count(sheet, colour):
    return int((np.asarray(sheet) == colour).all(axis=-1).sum())


def test_pictures_are_enlarged_without_smoothing_and_none_is_hidden():
    sheet = grid([plain(RED), plain(BLUE), plain(BLUE)], 2, scale=3)
    assert count(sheet, RED) == (64 * 3) ** 2
    assert count(sheet, BLUE) == 2 * (64 * 3) ** 2
    board = np.indices((64, 64)).sum(0) % 2 * 255
    sheet = grid([board.astype(np.uint8)], 1, scale=2)
    assert count(sheet, (0, 0, 0)) == 64 * 64 // 2 * 4


def test_small_pictures_grow_by_themselves_and_large_ones_do_not():
    assert count(grid([plain(RED)], 1), RED) == 192**2
    assert count(grid([plain(RED, (512, 384))], 1), RED) == 512 * 384


def where(sheet, colour):
    """The box of a colour: left, top, right, bottom."""
    ys, xs = np.nonzero((np.asarray(sheet) == colour).all(axis=-1))
    return xs.min(), ys.min(), xs.max(), ys.max()


def test_rows_go_down_and_columns_across():
    green, black = (0, 160, 60), (0, 0, 0)
    sheet = grid([plain(c) for c in (RED, BLUE, green, black)], 2)
    red, blue, below = (where(sheet, c) for c in (RED, BLUE, green))
    assert red[1] == blue[1] and red[2] < blue[0]
    assert red[0] == below[0] and red[3] < below[1]


def ink(sheet, box):
    """How many pixels of a region are not paper."""
    region = np.asarray(sheet.crop(box).convert("L"))
    return int((region < 200).sum())


def test_captions_are_written_where_they_belong():
    images = [plain(RED), plain(BLUE), None, plain(RED)]
    bare = grid(images, 2)
    sheet = grid(
        images,
        2,
        title="perfuse",
        row_captions=["a small red circle at the top left on a white background", "a blue square"],
        column_captions=["torch:cpu", "openvino:CPU"],
        cell_captions=["0.0 dB", "41.3 dB", "failed", "39.9 dB"],
    )
    assert sheet.width > bare.width and sheet.height > bare.height
    assert count(sheet, RED) == count(bare, RED)
    blue_left, blue_top, blue_right, blue_bottom = where(sheet, BLUE)
    assert ink(sheet, (0, blue_top, blue_left - 200, blue_bottom)) > 300  # beside its row
    assert ink(sheet, (blue_left, 50, blue_right, blue_top - 2)) > 50  # above its column
    assert ink(sheet, (blue_left, blue_bottom + 3, blue_right, blue_bottom + 25)) > 20  # below it
    assert ink(sheet, (0, 0, sheet.width, 45)) > 50  # the title
    # No ink beyond the last caption, nor on the margin.
    assert ink(sheet, (0, sheet.height - 15, sheet.width, sheet.height)) == 0
    assert ink(sheet, (sheet.width - 15, 0, sheet.width, sheet.height)) == 0


def test_long_captions_are_wrapped_within_their_cell():
    long = "a photograph of an astronaut riding a horse on mars " * 8
    wordless = "x" * 400
    sheet = grid(
        [plain(RED), plain(BLUE)],
        1,
        row_captions=[long, wordless],
        column_captions=[wordless],
        cell_captions=[long, wordless],
    )
    assert count(sheet, RED) == count(sheet, BLUE) == 192**2
    assert ink(sheet, (sheet.width - 18, 0, sheet.width, sheet.height)) == 0
    left = where(sheet, RED)[0]
    assert ink(sheet, (left - 8, 0, left - 2, sheet.height)) == 0  # nothing reaches the pictures


def test_characters_that_the_font_lacks_do_no_harm():
    assert count(grid([plain()], 1, cell_captions=["水彩画 😀 café\n\n"]), RED) == 192**2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": 0}, "0 columns"),
        ({"columns": 2, "row_captions": ["a"]}, "row_captions holds 1 captions; 2 are needed"),
        ({"columns": 2, "column_captions": ["a"]}, "column_captions holds 1"),
        ({"columns": 2, "cell_captions": ["a"]}, "cell_captions holds 1 captions; 3 are"),
        ({"columns": 2, "scale": 0}, "scale=0"),
    ],
)
def test_a_grid_that_does_not_add_up_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        grid([plain()] * 3, **arguments)
    with pytest.raises(InputError, match="needs a picture"):
        grid([None], 1)


def test_importing_needs_neither_pillow_nor_torch():
    code = "import sys, perfuse.arrays.pictures; print([m for m in ('PIL', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
