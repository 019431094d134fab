"""Decoding: every mode and format to known pixels, and every damaged file to one line."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from vaegan.config import ConfigError
from vaegan.data import decode_file
from vaegan.data.decode import _DECODING_ERRORS, _any, _plain, decode_bytes, decode_native, to_channels, to_square


def photo(height=24, width=24, seed=0) -> np.ndarray:
    """A smooth random colour image, (H, W, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data: bytes, size=24, channels=3, fit="crop") -> torch.Tensor:
    return to_channels(decode_bytes(data, "it", size, fit), channels)


def hwc(images: torch.Tensor) -> np.ndarray:
    return images.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_back_their_pixels(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(hwc(decode(encode(Image.fromarray(photo()), kind, **options))), photo())


def test_grey_and_colour_convert_as_in_pillow():
    colour, grey = Image.fromarray(photo()), Image.fromarray(photo()).convert("L")
    assert np.array_equal(decode(encode(colour, "PNG"), channels=1)[0].numpy(), np.asarray(grey))
    assert np.array_equal(hwc(decode(encode(grey, "PNG"))), np.asarray(grey.convert("RGB")))
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 256).expand(3, 1, 256)
    assert torch.equal(to_channels(every, 1), every[:1])  # luma leaves grey alone


def test_jpeg_equals_pillow_and_keeps_close_to_the_original():
    data = encode(Image.fromarray(photo()), "JPEG", quality=95)
    assert np.array_equal(hwc(decode(data)), np.asarray(Image.open(io.BytesIO(data))))
    assert np.abs(hwc(decode(data)).astype(int) - photo()).mean() < 4


def test_cmyk_jpeg_is_colour():
    rgb = np.zeros((24, 24, 3), np.uint8)
    rgb[..., 0], rgb[:, 12:, 1] = 230, 200
    decoded = hwc(decode(encode(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=100)))
    assert np.abs(decoded[:, [2, 21]].astype(int) - rgb[:, [2, 21]]).max() <= 6


def test_palette_with_transparency_is_put_on_white():
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 255])
    opaque = hwc(decode(encode(image, "PNG"), size=2))
    assert opaque[0, 0].tolist() == [10, 20, 30] and opaque[1, 0].tolist() == [0, 0, 255]
    seen = hwc(decode(encode(image, "PNG", transparency=1), size=2))
    assert seen[0, 1].tolist() == [255, 255, 255] and seen[1, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_put_on_white(mode):
    pixels = np.full((4, 4, len(mode)), 100, np.uint8)
    pixels[..., -1] = [0, 51, 255, 255]
    decoded = decode(encode(Image.fromarray(pixels, mode), "PNG"), size=4)
    assert decoded[:, 0].tolist() == [[255, 224, 100, 100]] * 3  # 0.2 * 100 + 0.8 * 255 = 224


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 128, 129], [257, 32768, 65535], [256, 1, 65406]], np.uint16)
    expected = [[0, 0, 1], [1, 128, 255], [1, 0, 254]]  # values / 257, rounded
    for kind in ("PNG", "TIFF"):
        decoded = decode(encode(Image.fromarray(values), kind), size=3, channels=1)
        assert decoded[0].tolist() == expected


def test_one_bit_is_black_and_white():
    image = Image.fromarray(np.eye(5, dtype=np.uint8) * 255).convert("1")
    assert torch.equal(decode(encode(image, "PNG"), 5, 1)[0], torch.eye(5, dtype=torch.uint8) * 255)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8] = 255
    decoded = decode(encode(Image.fromarray(pixels), kind, exif=exif), size=16, channels=1)[0].int()
    assert decoded[2, 13] > 250 and decoded[2, 2] < 5  # the top left went to the top right


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black", "red")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert decode(data, size=8).min() >= 254


def test_floating_point_pixels_are_refused():
    data = encode(Image.fromarray(np.random.default_rng(0).random((4, 4), np.float32)), "TIFF")
    with pytest.raises(ConfigError, match="no known range"):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("cut", [0, 1, 5, 0.3, 0.6, 0.9])
def test_truncated_files_are_refused(kind, cut):
    data = encode(Image.fromarray(photo(64, 64)), kind)
    with pytest.raises(ConfigError, match=r"^it cannot be decoded as an image \(.+\); remove or replace the file$"):
        decode(data[: int(len(data) * cut) if cut < 1 else cut])


@pytest.mark.parametrize("missing", [1, 2, 8, 12, 20])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_without_its_end_is_refused(kind, missing):
    data = encode(Image.fromarray(photo()), kind)
    with pytest.raises(ConfigError, match="cannot be decoded"):
        decode(data[:-missing])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged TIFF tags
def test_damaged_files_give_one_line_or_an_image():
    """Random damage never ends in another exception, a crash or an image of another shape."""
    rng = np.random.default_rng(0)
    refused = 0
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        data = encode(Image.fromarray(photo()), kind)
        for _ in range(100):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 3):
                damaged[place] = rng.integers(256)
            try:
                assert decode(bytes(damaged)).shape == (3, 24, 24)
            except ConfigError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > 100


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_fitted_image_is_the_native_one_fitted(fit):
    for image in (Image.fromarray(photo(20, 33)), Image.fromarray(photo(20, 33)).convert("L")):
        data = encode(image, "PNG")
        native = decode_native(data, "it")
        assert np.array_equal(hwc(native).squeeze(), np.asarray(image)) and native.dtype == torch.uint8
        assert torch.equal(decode_bytes(data, "it", 16, fit), to_square(native, 16, fit))
    with pytest.raises(ConfigError, match="^it cannot be decoded as an image"):
        decode_native(data[:-9], "it")


def test_text_named_png_is_refused(tmp_path):
    path = tmp_path / "note.png"
    path.write_text("no image")
    with pytest.raises(ConfigError) as error:
        decode_file(path, 8, 3, "crop")
    assert str(error.value) == f"{path} cannot be decoded as an image (unknown format); remove or replace the file"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nothing.png cannot be read"):
        decode_file(tmp_path / "nothing.png", 8, 3, "crop")


def test_fit_pad_centres_without_enlarging():
    image = torch.full((1, 6, 10), 200, dtype=torch.uint8)
    padded = to_square(image, 16, "pad")
    assert torch.equal(padded[:, 5:11, 3:13], image) and padded.sum() == image.sum()  # nothing but zeros around
    shrunk = to_square(torch.full((1, 20, 40), 200, dtype=torch.uint8), 16, "pad")
    assert (shrunk[:, 4:12] == 200).all() and shrunk[:, :4].sum() == shrunk[:, 12:].sum() == 0


def test_fit_crop_cuts_the_centre():
    image = torch.arange(20, dtype=torch.uint8).expand(3, 8, 20)
    assert torch.equal(to_square(image, 8, "crop"), image[..., 6:14])
    assert torch.equal(to_square(image.mT, 8, "crop"), image.mT[:, 6:14])
    halved = to_square(torch.from_numpy(photo(32, 80)).permute(2, 0, 1), 16, "crop")
    reference = Image.fromarray(photo(32, 80)).resize((40, 16), Image.Resampling.BICUBIC).crop((12, 0, 28, 16))
    assert np.abs(hwc(halved).astype(int) - np.asarray(reference)).max() <= 1


def test_fit_stretch_and_extreme_shapes():
    reference = Image.fromarray(photo(40, 20)).resize((16, 16), Image.Resampling.BICUBIC)
    stretched = hwc(to_square(torch.from_numpy(photo(40, 20)).permute(2, 0, 1), 16, "stretch"))
    assert np.abs(stretched.astype(int) - np.asarray(reference)).max() <= 1
    for fit in ("crop", "pad", "stretch"):
        for shape in ((1, 1, 1), (3, 1, 300), (3, 300, 1), (1, 17, 16), (1, 15, 16)):
            assert to_square(torch.zeros(shape, dtype=torch.uint8), 16, fit).shape == (shape[0], 16, 16)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_one_image_and_a_batch_are_fitted_alike(fit):
    images = torch.stack([torch.from_numpy(photo(28, 40, seed)).permute(2, 0, 1) for seed in range(5)])
    for size in (16, 32, 64):
        batch = to_square(images, size, fit)
        assert all(torch.equal(to_square(image, size, fit), fitted) for image, fitted in zip(images, batch))


def test_fitting_is_torchvisions_antialiased_bicubic():
    images = torch.stack([torch.from_numpy(photo(28, 40, seed)).permute(2, 0, 1) for seed in range(3)])
    for size in (9, 64):
        expected = resize(images, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)
        assert torch.equal(to_square(images, size, "stretch"), expected)
        assert torch.equal(to_square(images[1], size, "stretch"), expected[1])


def text(key: str, value: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, value)
    return info


ORIENTATION = Image.Exif()
ORIENTATION[0x0112] = 6
# Options by format, in which a file is no more than its pixels.
PIXELS = [
    ("PNG", {}), ("PNG", {"optimize": True}), ("PNG", {"dpi": (72, 72)}), ("PNG", {"compress_level": 0}),
    ("PNG", {"pnginfo": text("Comment", "of no meaning")}), ("PNG", {"icc_profile": b"profile" * 20}),
    ("JPEG", {}), ("JPEG", {"optimize": True}), ("JPEG", {"progressive": True}), ("JPEG", {"comment": b"of no meaning"}),
    ("JPEG", {"quality": 95, "subsampling": 0}), ("JPEG", {"restart_marker_blocks": 1}),
]  # fmt: skip
# And in which it is more, so that Pillow's own way has to be taken.
MORE = [
    ("PNG", {"exif": ORIENTATION}), ("PNG", {"pnginfo": text("XML:com.adobe.xmp", 'tiff:Orientation="6"')}),
    ("PNG", {"pnginfo": text("Comment", "IDAT")}), ("PNG", {"icc_profile": np.random.default_rng(0).bytes(9000)}),
    ("JPEG", {"exif": ORIENTATION}), ("JPEG", {"xmp": b'tiff:Orientation="6"'}), ("WEBP", {}), ("BMP", {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), PIXELS)
def test_the_short_way_gives_what_pillow_gives(kind, options):
    for mode in ("RGB", "L", "RGB"):  # a header is remembered, and must not be taken for another one
        for size in ((24, 24), (17, 9)):
            data = encode(Image.fromarray(photo(*size)).convert(mode), kind, **options)
            assert np.array_equal(_plain(data), _any(data)) and _any(data).shape[:2] == size


@pytest.mark.parametrize(("kind", "options"), MORE)
def test_the_short_way_is_not_for_what_is_more_than_pixels(kind, options):
    data = encode(Image.fromarray(photo()), kind, **options)
    with pytest.raises(_DECODING_ERRORS):
        _plain(data)
    assert np.array_equal(hwc(decode_native(data, "it")), _any(data))


@pytest.mark.parametrize("mode", ["P", "1", "LA", "RGBA", "I;16"])
def test_the_short_way_is_not_for_other_pixels(mode):
    image = Image.fromarray(photo()[..., 0].astype(np.uint16)) if mode == "I;16" else Image.fromarray(photo())
    with pytest.raises(_DECODING_ERRORS):
        _plain(encode(image if mode == "I;16" else image.convert(mode), "PNG"))
    with pytest.raises(_DECODING_ERRORS):
        _plain(encode(Image.fromarray(photo()), "PNG", transparency=(0, 0, 0)))


def test_the_short_way_takes_no_file_that_pillow_refuses():
    """Whatever is damaged, cut off or put in: the same pixels, or Pillow's own way has the last word."""
    rng = np.random.default_rng(0)
    files = [encode(Image.fromarray(photo(16, 16)), kind, **options) for kind, options in PIXELS]
    taken = 0
    for data in files * 100:
        damaged = bytearray(data)
        place = rng.integers(len(data))
        if rng.random() < 0.6:
            damaged[place] = rng.integers(256)
        elif rng.random() < 0.5:
            del damaged[place : place + rng.integers(1, 40)]
        else:
            damaged[place:place] = rng.bytes(rng.integers(1, 20))
        try:
            short = _plain(bytes(damaged))
        except _DECODING_ERRORS:
            continue
        taken += 1
        assert np.array_equal(short, _any(bytes(damaged)))
    assert taken > 100
