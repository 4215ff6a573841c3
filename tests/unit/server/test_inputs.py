"""Pictures from strangers: every form they come in, and every odd or hostile file."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipelines.errors import Error
from server import decoder, pixels
from server.decoder import Decoder
from server.inputs import BadInput, InputGone, Inputs, StoredInput, UnfetchableInput, is_url
from server.net import Guard

pytestmark = pytest.mark.anyio

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(size: tuple[int, int] = (4, 2), mode: str = "RGB", colour: Any = RED) -> Image.Image:
    return Image.new(mode, size, colour)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_head(width: int, height: int, *, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG that says how large it is and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """``data`` as a chunk behind the header."""
    return png[:33] + chunk(kind, data) + png[33:]


PNG = file_of(plain())


@pytest.fixture
async def inputs(tmp_path: Path) -> Inputs:
    made = Inputs(Guard(), tmp_path / "inputs")
    await made.start()
    return made


Read = Callable[..., Any]


@pytest.fixture
def read(inputs: Inputs) -> Read:
    """What the engine gets of a file, as a list of pixels."""

    async def reading(data: bytes, kind: pixels.Kind = "image") -> list[tuple[int, ...]]:
        stored = await inputs.store(data, kind)
        picture = inputs.read(stored.digest)
        assert (str(picture.dtype), picture.shape) == ("uint8", (stored.height, stored.width, 3))
        return [tuple(int(value) for value in pixel) for pixel in picture.reshape(-1, 3)]

    return reading


# The forms


def spellings() -> dict[str, str]:
    noisy = np.random.default_rng(1).integers(0, 256, (9, 9, 3), np.uint8)
    # Every character of both alphabets, and padding.
    data = file_of(Image.fromarray(noisy))
    text = base64.b64encode(data).decode()
    assert set("+/=") <= set(text)
    return {
        "plain": text,
        "unpadded": text.rstrip("="),
        "url-safe": text.replace("+", "-").replace("/", "_"),
        "in lines": "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76)) + "\n",
        "spaced": f"  {text[:9]} \t{text[9:]} ",
        "data URI": f"data:image/png;base64,{text}",
        "capitals": f"DATA:image/png;BASE64,{text}",
        "parameters": f"data:image/png;name=a.png;charset=utf-8;base64,{text}",
        "no type": f"data:;base64,{text}",
        "wrong type": f"data:text/html;base64,{text}",
        "escaped": f"data:image/png;base64,{quote(text, safe='')}",
        "not base64": f"data:image/png,{quote(data)}",
    }


@pytest.mark.parametrize("form", spellings())
async def test_a_picture_may_come_as_text_of_any_form(inputs: Inputs, form: str) -> None:
    stored = await inputs.store(spellings()[form], "image")
    assert stored == await inputs.store(base64.b64decode(spellings()["plain"]), "image")
    assert (stored.width, stored.height) == (9, 9)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "The picture is empty."),
        ("  ", "The picture is empty."),
        (b"", "The picture is empty."),
        ("data:image/png;base64,", "The picture is empty."),
        ("data:image/png;base64", "The data URI holds no data."),
        ("a cat, sitting", "The picture is neither a URL nor base64."),
        ("a.png", "The picture is neither a URL nor base64."),
        ("//example.com/a.png", "The picture is neither a URL nor base64."),
        ("AAAAA", "The picture is neither a URL nor base64."),
        ("Zäh\ud800", "The picture is neither a URL nor base64."),
        ("data:image/png;base64,ä", "The picture is neither a URL nor base64."),
        (base64.b64encode(b"<svg/>").decode(), "The file is no PNG, JPEG or WebP picture."),
    ],
)
async def test_text_that_holds_no_picture_is_refused(inputs: Inputs, source: str | bytes, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        await inputs.store(source, "image")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/a.png", "https://10.0.0.1/", " HTTP://[::1]/", "file:///etc/passwd", "ftp://a/b", "http://"],
)
async def test_urls_that_may_not_be_fetched_read_like_unreachable_ones(inputs: Inputs, url: str) -> None:
    assert is_url(url)
    with pytest.raises(UnfetchableInput) as caught:
        await inputs.store(url, "image")
    assert str(caught.value) == "Unable to fetch image from provided URL"


async def test_a_url_is_fetched_up_to_the_limit(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + PNG)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a.png?token=1"
        for limit in (len(PNG), len(PNG) - 1):
            inputs = Inputs(Guard(["127.0.0.1"]), tmp_path, max_bytes=limit)
            if limit == len(PNG):
                assert (await inputs.store(url, "image")).width == 4
            else:
                with pytest.raises(BadInput, match="The picture is larger than"):
                    await inputs.store(url, "image")


async def test_sizes_are_limited_in_every_form(tmp_path: Path) -> None:
    inputs = Inputs(Guard(), tmp_path, max_bytes=len(PNG) - 1)
    text = base64.b64encode(PNG).decode()
    for source in (PNG, text, f"data:;base64,{text}", f"data:,{quote(PNG)}", "A" * 1000):
        with pytest.raises(BadInput, match="The picture is larger than"):
            await inputs.store(source, "image")


# What is stored


async def test_a_picture_is_stored_once_under_its_hash(inputs: Inputs, tmp_path: Path) -> None:
    first = await inputs.store(PNG, "image")
    second = await inputs.store(file_of(plain(), "WEBP", lossless=True), "image")
    assert first == second == StoredInput(digest=first.digest, width=4, height=2)
    (file,) = (tmp_path / "inputs").iterdir()
    assert file.name == f"{first.digest}.png"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == first.digest
    with Image.open(file) as image:
        assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})


async def test_a_mask_is_stored_grey_and_read_in_three_channels(inputs: Inputs, tmp_path: Path) -> None:
    stored = await inputs.store(file_of(plain(colour=(10, 20, 30))), "mask")
    with Image.open(tmp_path / "inputs" / f"{stored.digest}.png") as image:
        assert image.mode == "L"
    assert np.unique(inputs.read(stored.digest)).tolist() == [18]


async def test_half_written_files_are_cleared_at_start(inputs: Inputs, tmp_path: Path) -> None:
    half = tmp_path / "inputs" / ".0.png.0123.tmp"
    half.write_bytes(b"half")
    await inputs.start()
    assert not half.exists()


@pytest.mark.parametrize("digest", ["0" * 64, "", "../latentd.db", "A" * 64, "0" * 63 + "\n"])
async def test_what_is_not_stored_is_gone(inputs: Inputs, digest: str) -> None:
    with pytest.raises(InputGone, match="no longer stored") as caught:
        inputs.read(digest)
    assert isinstance(caught.value, Error)


async def test_a_damaged_file_is_gone(inputs: Inputs, tmp_path: Path) -> None:
    stored = await inputs.store(PNG, "image")
    (tmp_path / "inputs" / f"{stored.digest}.png").write_bytes(PNG[:50])
    with pytest.raises(InputGone):
        inputs.read(stored.digest)


# Conversions


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (plain(mode="1", colour=1), WHITE),
        (plain(mode="L", colour=77), (77, 77, 77)),
        (plain(mode="P"), RED),
        (plain().convert("P", palette=Image.Palette.ADAPTIVE), RED),
        (plain(mode="I;16", colour=40_000), (156, 156, 156)),
        (plain(mode="I;16", colour=65_535), WHITE),
        (plain(mode="I;16", colour=255), (1, 1, 1)),
        (plain(mode="RGBA", colour=(255, 0, 0, 255)), RED),
        (plain(mode="RGBA", colour=(255, 0, 0, 0)), WHITE),
        (plain(mode="RGBA", colour=(255, 0, 0, 51)), (255, 204, 204)),
        (plain(mode="LA", colour=(0, 0)), WHITE),
        (plain(mode="LA", colour=(0, 255)), BLACK),
        (plain((1, 1)), RED),
    ],
)
async def test_every_kind_of_pixels_becomes_rgb(read: Read, image: Image.Image, colour: tuple[int, ...]) -> None:
    assert await read(file_of(image)) == [colour] * (image.width * image.height)


@pytest.mark.parametrize(
    ("image", "value"),
    [
        (plain(mode="1", colour=1), 255),
        (plain(colour=WHITE), 255),
        (plain(colour=GREEN), 150),
        (plain(mode="I;16", colour=40_000), 156),
        (plain(mode="RGBA", colour=(255, 255, 255, 0)), 0),
        (plain(mode="RGBA", colour=(0, 0, 0, 0)), 0),
        (plain(mode="RGBA", colour=(255, 255, 255, 128)), 128),
        (plain(mode="LA", colour=(255, 255)), 255),
    ],
)
async def test_a_mask_is_luminance_and_black_where_transparent(read: Read, image: Image.Image, value: int) -> None:
    assert set(await read(file_of(image), "mask")) == {(value,) * 3}


async def test_transparent_colours_and_palette_entries_show_white(read: Read) -> None:
    palette = Image.new("P", (3, 1))
    palette.putpalette([*RED, *GREEN, *BLUE])
    palette.putdata([0, 1, 2])
    assert await read(file_of(palette, transparency=1)) == [RED, WHITE, BLUE]
    assert await read(file_of(palette, transparency=bytes([255, 0, 255]))) == [RED, WHITE, BLUE]
    assert set(await read(file_of(plain(), transparency=RED))) == {WHITE}
    assert set(await read(file_of(plain(mode="L", colour=9), transparency=9))) == {WHITE}
    # A transparent value of 16 bits has no meaning in 8.
    assert set(await read(with_chunk(file_of(plain(mode="I;16", colour=0)), b"tRNS", b"\0\0"))) == {BLACK}


async def test_sixteen_bits_of_colour_become_eight(read: Read) -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 65_535, 32_768, 0) for _ in range(2))
    data = png_head(1, 2, bits=16) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert await read(data) == [(255, 128, 0)] * 2


async def test_cmyk_becomes_rgb(read: Read) -> None:
    data = file_of(plain((8, 8), "CMYK", (0, 255, 255, 0)), "JPEG", quality=100)
    (colour,) = set(await read(data))
    assert np.abs(np.subtract(colour, RED)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
async def test_exif_orientation_is_applied(read: Read, orientation: int, kind: str) -> None:
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :8] = 255
    # How a camera stores what is upright: the transpositions undone.
    undo: dict[int, Callable[[Any], Any]] = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: np.transpose, 6: np.rot90, 7: lambda a: np.rot90(a.T, 2), 8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    data = file_of(Image.fromarray(np.ascontiguousarray(undo[orientation](upright))), kind, exif=exif, **options)
    seen = np.array(await read(data), np.uint8).reshape(16, 32, 3)[:, :, 0]
    assert np.array_equal(seen > 127, upright > 127)


async def test_broken_exif_says_nothing(read: Read) -> None:
    assert set(await read(file_of(plain((8, 8), colour=WHITE), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0"))) == {
        WHITE
    }


def profile(space: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]


def swapped_primaries() -> bytes:
    """sRGB under another name, its red and blue exchanged: any colour engine that reads it turns red into blue."""
    data = profile("sRGB").replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be")).replace(b"sRGB", b"test")
    data = data.replace(b"rXYZ", b"tmp!", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"tmp!", b"bXYZ", 1)
    # The colour space in the head, which the name above shares no letters with.
    assert data[16:20] == b"RGB "
    return data


async def test_a_colour_profile_is_applied_to_images_and_dropped(read: Read) -> None:
    data = file_of(plain(), icc_profile=swapped_primaries())
    (colour,) = set(await read(data))
    assert np.abs(np.subtract(colour, BLUE)).max() <= 2
    assert set(await read(data, "mask")) == {(76, 76, 76)}


async def test_srgb_keeps_its_values_and_bad_profiles_are_ignored(read: Read) -> None:
    for icc in (profile("sRGB"), b"no profile", profile("LAB")):
        assert set(await read(file_of(plain(colour=(1, 2, 3)), icc_profile=icc))) == {(1, 2, 3)}
    assert set(await read(file_of(plain(mode="L", colour=9), icc_profile=swapped_primaries()))) == {(9, 9, 9)}


async def test_only_the_first_frame_is_read(read: Read) -> None:
    frames = {"save_all": True, "append_images": [plain(colour=BLUE)], "lossless": True}
    assert set(await read(file_of(plain(), "WEBP", **frames))) == {RED}
    assert set(await read(file_of(plain(), "PNG", save_all=True, append_images=[plain(colour=BLUE)]))) == {RED}
    many = file_of(plain((16, 16)), "MPO", save_all=True, append_images=[plain((16, 16), colour=BLUE)])
    assert all(red > 200 and blue < 50 for red, _, blue in await read(many))


# Hostile files

NO_PICTURE = "The file is no PNG, JPEG or WebP picture."
DAMAGED = "The picture is damaged or truncated."


def claim(width: int, height: int, *, bits: int = 8, colour: int = 2) -> bytes:
    """As large as it likes, and a few bytes of pixels."""
    return png_head(width, height, bits=bits, colour=colour) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


@cache
def hostile() -> dict[str, tuple[bytes, str]]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    bomb = zlib.compress(bytes(100 * 2**20))
    large = "at most 8192 a side and 16.8 million in all are read."
    return {
        "13,000 squared": (claim(13_000, 13_000), f"The picture has 13000 x 13000 pixels: {large}"),
        "20,000 squared": (
            claim(20_000, 20_000, bits=1, colour=0),
            f"The picture has 20000 x 20000 pixels: {large}",
        ),
        "2 billion wide": (claim(2**31 - 1, 1), f"The picture has 2147483647 x 1 pixels: {large}"),
        "9,000 squared": (claim(9_000, 9_000, bits=16, colour=6), f"The picture has 9000 x 9000 pixels: {large}"),
        "one side": (claim(8_193, 1), f"The picture has 8193 x 1 pixels: {large}"),
        "too many": (claim(8_192, 2_051), f"The picture has 8192 x 2051 pixels: {large}"),
        "no pixels": (claim(8_192, 2_050), DAMAGED),
        "no area": (claim(0, 1), NO_PICTURE),
        "text bomb": (with_chunk(PNG, b"zTXt", b"Comment\0\0" + bomb), DAMAGED),
        "profile bomb": (with_chunk(PNG, b"iCCP", b"icc\0\0" + bomb), DAMAGED),
        "pixel bomb": (png_head(4_000, 4_000) + chunk(b"IDAT", bomb[:1000]), DAMAGED),
        "truncated PNG": (file_of(noise)[:-2000], DAMAGED),
        "truncated JPEG": (file_of(noise, "JPEG")[:-500], DAMAGED),
        "truncated WebP": (file_of(noise, "WEBP")[:-500], DAMAGED),
        "wrong sum": (file_of(noise)[:60] + b"\0" + file_of(noise)[61:], DAMAGED),
        "signature": (PNG[:8], NO_PICTURE),
        "GIF": (file_of(plain(), "GIF", save_all=True, append_images=[plain(colour=BLUE)]), NO_PICTURE),
        "BMP": (file_of(plain(), "BMP"), NO_PICTURE),
        "TIFF": (file_of(plain(), "TIFF"), NO_PICTURE),
        "PPM": (file_of(plain(), "PPM"), NO_PICTURE),
        "EPS": (file_of(plain(), "EPS"), NO_PICTURE),
        "PDF": (file_of(plain(), "PDF"), NO_PICTURE),
        "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/"/></svg>', NO_PICTURE),
        "HTML": (b"<html>", NO_PICTURE),
        "zip": (b"PK\x03\x04" + bytes(100), NO_PICTURE),
        "zeros": (bytes(1000), NO_PICTURE),
    }


@pytest.mark.parametrize("name", hostile())
async def test_hostile_files_are_refused(inputs: Inputs, name: str) -> None:
    data, message = hostile()[name]
    with pytest.raises(BadInput) as caught:
        await inputs.store(data, "image")
    assert str(caught.value) == message


async def test_a_canvas_that_webp_only_claims_is_refused(inputs: Inputs) -> None:
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + (16_382).to_bytes(3, "little") * 2
    animation = b"ANIM" + struct.pack("<I", 6) + bytes(6)
    body = b"WEBP" + extended + animation
    with pytest.raises(BadInput):
        await inputs.store(b"RIFF" + struct.pack("<I", len(body)) + body, "image")


async def test_the_largest_allowed_picture_is_decoded(inputs: Inputs) -> None:
    stored = await inputs.store(file_of(plain((8_192, 2_050), "RGBA", (1, 2, 3, 255)), compress_level=1), "image")
    assert (stored.width, stored.height) == (8_192, 2_050)


# The process


def script(path: Path, text: str) -> Any:
    """In place of the decoder's own."""
    path.write_text(f"import os, resource, signal, socket, sys\n{text}", encoding="utf-8")

    class Module:
        __file__ = str(path)

    return Module


@pytest.mark.parametrize(
    "text",
    ["os.kill(os.getpid(), signal.SIGSEGV)", "raise MemoryError", "sys.exit(1)", "while True: signal.pause()"],
)
async def test_a_decoder_that_dies_or_hangs_costs_one_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(decoder, "pixels", script(tmp_path / "child.py", text))
    made = Inputs(Guard(), tmp_path, decoder=Decoder(max_side=9, max_pixels=81, timeout_s=0.5))
    with pytest.raises(BadInput, match=DAMAGED):
        await made.store(PNG, "image")


@pytest.mark.parametrize(
    "answer",
    [
        pixels.HEADER.pack(b"R", 4, 2),
        pixels.HEADER.pack(b"R", 90, 1) + bytes(270),
        b"X" + bytes(11),
        b"R" + bytes(8),
        b"R",
    ],
)
async def test_what_a_decoder_answers_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(decoder, "pixels", script(tmp_path / "child.py", f"sys.stdout.buffer.write({answer!r})"))
    made = Decoder(max_side=9, max_pixels=81)
    with pytest.raises(pixels.Refused, match=DAMAGED):
        await made.decode(PNG, "image")


async def test_the_decoder_inherits_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTD_API_KEY", "canary-0123456789abcdef")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen = tmp_path / "seen"
    text = f"open({str(seen)!r}, 'w').write(repr(sorted(os.environ)) + repr(sys.flags.isolated))\nsys.exit(1)"
    monkeypatch.setattr(decoder, "pixels", script(tmp_path / "child.py", text))
    with pytest.raises(pixels.Refused):
        await Decoder(max_side=9, max_pixels=81).decode(PNG, "image")
    names = seen.read_text()
    assert "LATENTD" not in names and "PYTHONPATH" not in names and names.endswith("1")


def test_a_confined_process_opens_nothing() -> None:
    code = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from server import pixels
pixels._confine()
for opening in (lambda: open(os.devnull), socket.socket):
    try:
        opening()
    except OSError:
        continue
    os._exit(1)
"""
    root = Path(pixels.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code, root], timeout=60).returncode == 0


def test_grey_of_eight_bits_is_left_alone() -> None:
    grey: NDArray[np.uint8] = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = pixels.decode(file_of(Image.fromarray(grey)), "mask", max_side=99, max_pixels=9999)
    assert np.array_equal(np.asarray(image), grey)
