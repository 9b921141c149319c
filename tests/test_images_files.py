"""Image files: what is read faithfully, what is refused, and that a failed write leaves nothing behind."""

from __future__ import annotations

import errno
import io
import os
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

from refbfr_core.errors import (
    ConfigError,
    DiskFullError,
    ImageContractError,
    ImageFileError,
    OutputError,
    UnknownNameError,
)
from refbfr_core.images import read_image, to_uint8, write_image


def smooth(height: int = 24, width: int = 32) -> torch.Tensor:
    rows = torch.linspace(0, 1, height)[:, None].expand(height, width)
    columns = torch.linspace(0, 1, width)[None].expand(height, width)
    return torch.stack([rows, columns, 1 - rows])[None]


def as_bytes(image: torch.Tensor) -> np.ndarray:
    return to_uint8(image)[0].numpy()


@pytest.mark.parametrize("suffix", [".png", ".webp", ".PNG"])
def test_lossless_formats_return_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    image = torch.rand(1, 3, 17, 23)
    path = write_image(tmp_path / f"a{suffix}", image)
    again = read_image(path)
    assert again.shape == (1, 3, 17, 23) and again.dtype == torch.float32
    assert torch.equal(to_uint8(again), to_uint8(image))


@pytest.mark.parametrize(("suffix", "quality"), [(".jpg", None), (".jpeg", 90), (".webp", 90)])
def test_lossy_formats_come_close(tmp_path: Path, suffix: str, quality: int | None) -> None:
    image = smooth()
    again = read_image(write_image(tmp_path / f"a{suffix}", image, quality))
    assert (again - image).abs().mean() < 4 / 255


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_saturated_red_stays_red(tmp_path: Path, suffix: str) -> None:
    red = torch.zeros(1, 3, 32, 32)
    red[:, 0, :, 8:20] = 1.0
    again = read_image(write_image(tmp_path / f"red{suffix}", red))
    inside, outside = again[0, :, :, 10:18], again[0, :, :, 24:]
    tolerance = 3 / 255 if suffix == ".jpg" else 0
    assert inside[0].min() >= 1 - tolerance and inside[1:].max() <= tolerance
    assert outside.max() <= tolerance


def test_quality_changes_the_size(tmp_path: Path) -> None:
    noise = torch.rand(1, 3, 64, 64)
    small = write_image(tmp_path / "s.jpg", noise, 10).stat().st_size
    assert small < write_image(tmp_path / "l.jpg", noise, 95).stat().st_size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(as_bytes(smooth())).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as picture:
        witness = np.asarray(ImageOps.exif_transpose(picture))
    assert np.array_equal(as_bytes(read_image(tmp_path / "turned.png")), witness)


def test_a_16_bit_picture_is_turned_too(tmp_path: Path) -> None:
    grey = np.arange(6, dtype=np.uint16).reshape(2, 3) * 10000
    ok, data = cv2.imencode(".png", grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    chunk = struct.pack(">I", len(block) - 6) + b"eXIf" + block[6:] + struct.pack(">I", zlib.crc32(b"eXIf" + block[6:]))
    raw = data.tobytes()
    (tmp_path / "a.png").write_bytes(raw[:33] + chunk + raw[33:])
    seen = read_image(tmp_path / "a.png")
    expected = np.rot90(grey, -1).astype(np.float32) / 65535
    assert np.allclose(seen[0, 0].numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_pngs_keep_their_precision(tmp_path: Path, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    if channels == 4:
        values[..., 3] = 65535
    cv2.imwrite(str(tmp_path / "deep.png"), values.squeeze())
    seen = read_image(tmp_path / "deep.png")[0].permute(1, 2, 0).numpy()
    rgb = np.repeat(values, 3, axis=2) if channels == 1 else values[..., 2::-1]
    assert np.allclose(seen, rgb / 65535.0, atol=1e-6)


def test_grey_bilevel_and_palette_become_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(as_bytes(smooth())[..., 0])
    grey.save(tmp_path / "grey.png")
    seen = as_bytes(read_image(tmp_path / "grey.png"))
    assert np.array_equal(seen, np.repeat(np.asarray(grey)[..., None], 3, axis=2))

    grey.convert("1").save(tmp_path / "bilevel.png")
    assert set(np.unique(as_bytes(read_image(tmp_path / "bilevel.png")))) == {0, 255}

    palette = Image.fromarray(as_bytes(smooth())).quantize(8)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(as_bytes(read_image(tmp_path / "palette.png")), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette"])
def test_transparent_pixels_lie_over_the_background(tmp_path: Path, kind: str) -> None:
    if kind == "palette":
        picture = Image.new("P", (4, 2), 0)
        picture.putpalette([0, 0, 0, 255, 0, 0])
        picture.putpixel((0, 0), 1)
        picture.save(tmp_path / "a.png", transparency=0)
    else:
        picture = Image.new(kind, (4, 2), (0,) * len(kind))
        picture.putpixel((0, 0), (255, 0, 0, 255) if kind == "RGBA" else (255, 255))
        picture.save(tmp_path / "a.png")
    for background in (1.0, 0.25):
        seen = read_image(tmp_path / "a.png", background=background)[0]
        assert seen[:, 1, 3].tolist() == [background] * 3
        assert seen[0, 0, 0] == 1.0 and seen[1, 0, 0] == (1.0 if kind == "LA" else 0.0)


def test_cmyk_jpegs_keep_their_colours(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    colour = read_image(tmp_path / "print.jpg").mean(dim=(0, 2, 3))
    assert torch.allclose(colour, torch.tensor([1.0, 0.0, 0.0]), atol=4 / 255)


def encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format=suffix)
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("lenient", [False, True])
def test_truncated_files_are_refused(
    tmp_path: Path, image_format: str, kept: float, lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some libraries set this for the whole process when they are imported; missing rows must not turn into grey ones.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    data = encoded(image_format)
    path = tmp_path / "cut.bin"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageFileError, match=r"cut\.bin is (truncated or damaged|not an image)"):
        read_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_a_flipped_byte_in_a_png_is_noticed(tmp_path: Path) -> None:
    data = bytearray(encoded("PNG"))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(ImageFileError, match="truncated or damaged"):
        read_image(tmp_path / "bad.png")


def test_other_bad_inputs_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("this is not a picture")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.tif")
    Image.new("RGB", (4, 4)).save(
        tmp_path / "moving.webp", save_all=True, append_images=[Image.new("RGB", (4, 4), "red")]
    )
    for name, words in {
        "missing.png": "there is no file",
        "empty.png": "0 bytes",
        "text.png": "not an image",
        "a.tif": "TIFF",
        "moving.webp": "animation of 2 frames",
        ".": "is a folder",
    }.items():
        with pytest.raises(ImageFileError, match=words) as caught:
            read_image(tmp_path / name)
        assert isinstance(caught.value, OSError)


def test_more_pixels_than_is_safe_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageFileError, match="more pixels than is safe"):
        read_image(tmp_path / "huge.png")


def test_writing_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    image = smooth()
    with pytest.raises(UnknownNameError, match=r"Known: \.jpeg, \.jpg, \.png, \.webp"):
        write_image(tmp_path / "a.gif", image)
    with pytest.raises(ConfigError, match="lossless"):
        write_image(tmp_path / "a.png", image, quality=90)
    for quality in (0, 101, 9.5):
        with pytest.raises(ConfigError, match="1 to 100"):
            write_image(tmp_path / "a.jpg", image, quality=quality)
    with pytest.raises(ImageContractError, match="holds 2"):
        write_image(tmp_path / "a.png", image.repeat(2, 1, 1, 1))
    with pytest.raises(ImageContractError, match="from_network"):
        write_image(tmp_path / "a.png", image * 2 - 1)
    assert not any(tmp_path.iterdir())


def test_one_picture_without_batch_axis_and_a_new_folder(tmp_path: Path) -> None:
    path = write_image(tmp_path / "new" / "folder" / "a.png", smooth()[0])
    assert path.is_file()
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, DiskFullError),
        (errno.EDQUOT, DiskFullError),
        (errno.EROFS, OutputError),
        (errno.EIO, OutputError),
    ],
)
def test_a_failing_disk_keeps_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    path = write_image(tmp_path / "a.png", smooth())
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(kind, match=r"cannot write .*a\.png"):
        write_image(path, 1 - smooth())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits on file size are set the Linux way")
def test_a_real_limit_on_file_size_leaves_nothing_behind(tmp_path: Path) -> None:
    script = f"""
        import resource, signal, torch
        from refbfr_core.errors import DiskFullError
        from refbfr_core.images import write_image
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        image = torch.rand(1, 3, 256, 256)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_image({str(tmp_path / "a.png")!r}, image)
        except DiskFullError as error:
            print("refused", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("refused cannot write")
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, a place nobody may write to")
def test_a_place_nobody_may_write_to(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Choose a folder you may write to"):
        write_image("/proc/refbfr.png", smooth())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with pytest.raises(OutputError):
        write_image(folder / "a.png", smooth())


def test_a_file_in_the_place_of_a_folder_or_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        write_image(tmp_path / "file" / "a.png", smooth())
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError):
        write_image(tmp_path / "folder.png", smooth())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.png"]


def test_an_interrupt_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_image(tmp_path / "a.png", smooth())
    assert not any(tmp_path.iterdir())


def test_real_photographs_are_read(shared_dir: Path) -> None:
    photos = sorted((shared_dir / "faces" / "photos").rglob("*.*"))
    pictures = [path for path in photos if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"}]
    assert pictures
    for path in pictures[:6]:
        image = read_image(path)
        assert image.ndim == 4 and image.std() > 0.05
