"""Where an image comes from, and how it is read, checked and decoded.

Images travel as the bytes of the file they came in (PNG, JPEG, WebP, ...): small on disk, and equal
bytes are the same image. Pixels exist only inside the loader. A video is the files of its frames in
one (a ZIP archive, for its index), and is read, checked and stored like an image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import struct
import zipfile
from typing import Any

import PIL.Image
import PIL.ImageOps

# What PIL raises on damaged files, format by format (a PNG with a bad chunk: SyntaxError).
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)
_ARCHIVE = b"PK"  # begins a video as `read` packs it
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


@dataclasses.dataclass(frozen=True)
class Ref:
    """One of: a path (absolute), the bytes of an image file, a PIL image, or a video's frames."""

    path: str = ""
    data: bytes | None = None
    image: Any = None
    frames: tuple[Ref, ...] = ()


def of(value: Any, *, root: str, confine: bool = False) -> Ref:
    """Makes a reference of what a row holds: a path, bytes, {"bytes": .., "path": ..} or PIL.

    Args:
      value: what the row holds. A relative path is resolved against `root`.
      root: directory of the data file.
      confine: refuse paths that lead out of `root`, symbolic links followed.
    """
    if isinstance(value, dict) and set(value) <= {"bytes", "path"}:
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, PIL.Image.Image):
        return Ref(image=value)
    if isinstance(value, bytes | bytearray | memoryview):
        return Ref(data=bytes(value))
    if not isinstance(value, str) or not value:
        raise ValueError(
            f"an image is {type(value).__name__}; it must be a path, the bytes of an image file, "
            '{"bytes": ..., "path": ...} or a PIL image.'
        )
    if "://" in value:
        raise ValueError(f"{value!r} is an address; download the image and give its path.")
    path = os.path.abspath(os.path.join(root, value))
    if confine:
        home = os.path.realpath(root)
        if os.path.commonpath([os.path.realpath(path), home]) != home:
            raise ValueError(
                f"{value!r} leaves the data directory, which config.data.confine_images forbids; "
                "move the image inside or allow it."
            )
    return Ref(path=path)


def read(ref: Ref) -> bytes:
    """The encoded bytes. A PIL image is encoded to PNG, which loses nothing.

    Raises:
      ValueError: the file cannot be read, or is an archive.
    """
    if ref.frames:
        return _packed([read(frame) for frame in ref.frames])
    data = _encoded(ref)
    if data.startswith(_ARCHIVE):  # else it would pass for a video
        raise ValueError("a ZIP archive, not an image; unpack it, and list the frames of a video.")
    return data


def _encoded(ref: Ref) -> bytes:
    if ref.data is not None:
        return ref.data
    if ref.image is not None:
        image = PIL.ImageOps.exif_transpose(ref.image)
        buffer = io.BytesIO()
        (image if image.mode in _PNG_MODES else image.convert("RGB")).save(buffer, "PNG")
        return buffer.getvalue()
    try:
        with open(ref.path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise ValueError(f"no image at {ref.path!r}; mend the path or remove the row.") from None
    except OSError as error:
        raise ValueError(f"cannot read {ref.path!r}: {error.strerror}.") from None


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Decodes the image once and returns its size (width, height) as `decode` gives it.

    The size is compared with `max_pixels` before anything is decoded: a small file may unfold into
    gigabytes.

    Raises:
      ValueError: not an image, a damaged one, or one beyond the limit.
    """
    if frames(data):
        sizes = {check(frame, max_pixels) for frame in _unpacked(data)}
        if len(sizes) > 1:
            raise ValueError(f"a video with frames of sizes {sorted(sizes)}; make them equal.")
        return sizes.pop()
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height <= max_pixels:
                image.load()
                return PIL.ImageOps.exif_transpose(image).size
    except PIL.Image.DecompressionBombError as error:  # PIL's own limit, 179 million pixels
        raise ValueError(f"{error} Shrink the image or remove the row.") from None
    except _BROKEN as error:
        raise ValueError(
            f"a broken image ({len(data)} bytes: {error}); replace it or remove the row."
        ) from None
    raise ValueError(
        f"an image of {width} x {height} = {width * height} pixels; config.data.max_image_pixels "
        f"is {max_pixels}. Shrink the image or raise the limit."
    )


def decode(data: bytes) -> PIL.Image.Image | list[PIL.Image.Image]:
    """The decoded image, turned upright by its EXIF orientation as `datasets` does; of a video a
    list of them."""
    if frames(data):
        return [decode(frame) for frame in _unpacked(data)]
    image = PIL.Image.open(io.BytesIO(data))
    return PIL.ImageOps.exif_transpose(image)


def frames(data: bytes) -> int:
    """The number of frames of a video; 0 of an image."""
    if not data.startswith(_ARCHIVE):
        return 0
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return len(archive.namelist())


def _packed(files: list[bytes]) -> bytes:
    """Equal files give equal bytes: entries have a number for a name, and no time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, file in enumerate(files):
            archive.writestr(zipfile.ZipInfo(f"{number:06d}"), file)
    return buffer.getvalue()


def _unpacked(data: bytes) -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [archive.read(name) for name in sorted(archive.namelist())]
