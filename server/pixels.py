"""From a picture file to plain pixels: a process of its own, started by ``decoder.py``, that may crash as it likes.

Reads the file from standard input, writes ``HEADER`` and the pixels, or the reason for a refusal, to standard output.
Imports nothing of ours, so that it starts in 50 ms. Arguments: image or mask, largest side, largest number of pixels.
"""

from __future__ import annotations

import io
import resource
import struct
import sys
from typing import Literal, cast

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

# All that an allowed file may need (TIFF reads EXIF): once the process is confined it can import nothing more.
from PIL import JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401 # isort: skip

#: "R" (three bytes a pixel), "L" (one) or "!" (a refusal: the rest is text), width, height.
HEADER = struct.Struct("<cII")

#: Said of a picture that is one by its first bytes and cannot be decoded all the same.
DAMAGED = "The picture is damaged or truncated."

Kind = Literal["image", "mask"]

#: EPS would start Ghostscript, GIF and TIFF are not needed, and none of the others is a picture's usual form.
_FORMATS = ("PNG", "JPEG", "WEBP")
_ADDRESS_SPACE = 1536 * 1024 * 1024
_CPU_S = 10
#: 65535 is white: divided by 257, rounded.
_EIGHT_BITS = [(value + 128) // 257 for value in range(65536)]


class Refused(Exception):
    """The file is no picture that can be used; the text is a sentence for the client."""


def decode(data: bytes, kind: Kind, *, max_side: int, max_pixels: int) -> Image.Image:
    """The file's first frame, upright, in 8 bits: "RGB" for images, "L" for masks. Raises ``Refused``.

    Images become sRGB where an ICC profile says what they are, then their alpha is laid over white. Masks are numbers,
    not colours: no profile is applied, the luminance counts, and what is transparent was not painted, so it is black
    (a mask that is transparent all over repaints nothing).
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise Refused("The file is no PNG, JPEG or WebP picture.") from None
    if max(image.size) > max_side or image.width * image.height > max_pixels:
        most = f"at most {max_side} a side and {max_pixels / 1e6:.1f} million in all are read"
        raise Refused(f"The picture has {image.width} x {image.height} pixels: {most}.")
    image.load()
    upright = _eight_bits(_upright(image))
    return _as_mask(upright) if kind == "mask" else _as_image(upright)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Metadata that cannot be read says nothing about the orientation; the pixels are there.
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8; Pillow's own conversion clips it instead. Its transparent value is lost."""
    if not image.mode.startswith("I"):
        return image
    image.info.pop("transparency", None)
    return image.convert("I").point(_EIGHT_BITS, "L")


def _as_image(image: Image.Image) -> Image.Image:
    colours, alpha = _split_alpha(image)
    rgb = _to_srgb(colours, image.info.get("icc_profile"))
    if alpha is None:
        return rgb
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _as_mask(image: Image.Image) -> Image.Image:
    colours, alpha = _split_alpha(image)
    grey = colours.convert("L")
    if alpha is None:
        return grey
    black = Image.new("L", grey.size, 0)
    black.paste(grey, mask=alpha)
    return black


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Without alpha, palette and transparent colours; grey stays grey, for profiles of grey."""
    if not image.has_transparency_data:
        return (image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")), None
    with_alpha = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
    return with_alpha.convert(with_alpha.mode.removesuffix("A") or "L"), with_alpha.getchannel("A")


def _to_srgb(image: Image.Image, profile: object) -> Image.Image:
    if not isinstance(profile, bytes):
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # What is sRGB already keeps its exact values.
        if ImageCms.getProfileDescription(source).startswith("sRGB"):
            return image.convert("RGB")
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        # Damaged, or for another kind of pixels: the picture is shown without it everywhere.
        return image.convert("RGB")
    return converted or image.convert("RGB")


def _confine() -> None:
    """Nothing can be opened any more, no file and no socket, and no core is written."""
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))


def main(kind: Kind, max_side: int, max_pixels: int) -> None:
    """One picture."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    # Brings in the plugins that Pillow loads at first use; ours stand beside them.
    Image.preinit()
    # The sizes are checked here, more strictly.
    Image.MAX_IMAGE_PIXELS = None
    data = sys.stdin.buffer.read()
    _confine()
    try:
        image = decode(data, kind, max_side=max_side, max_pixels=max_pixels)
        answer = HEADER.pack(image.mode[:1].encode(), *image.size) + image.tobytes()
    except Refused as error:
        answer = HEADER.pack(b"!", 0, 0) + str(error).encode()
    except Exception:
        answer = HEADER.pack(b"!", 0, 0) + DAMAGED.encode()
    sys.stdout.buffer.write(answer)
    sys.stdout.flush()


if __name__ == "__main__":
    main(cast(Kind, sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
