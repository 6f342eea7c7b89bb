"""Where figures are read from: folders and ZIP files as they are published, by the names that rows give them."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_prep.questions import RejectedRow
from sft.common.command import UserError

PICTURES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp")
MOST_BYTES = 200_000_000  # of a figure, unpacked
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # its mark, and the lengths of the name and of the extra field


class Place(NamedTuple):
    """Where one figure lies: a file, or a member of a ZIP file (`start` is then that of its local header)."""

    path: str
    start: int = -1
    stored: int = 0  # bytes in the ZIP file
    size: int = 0
    checksum: int = 0  # CRC-32, or of a file its time of change
    method: int = zipfile.ZIP_STORED
    encrypted: bool = False


def base_name(name: str) -> str:
    """The last part of a path, whichever slash it has."""
    return name.replace("\\", "/").rpartition("/")[2]


def find_figures(paths: Iterable[Path]) -> dict[str, Place]:
    """Every picture in these folders and ZIP files, however deep, by its file name.

    Raises `UserError` for a path that is neither, a damaged ZIP file, one with a path outside of itself or a symbolic
    link, or two different pictures of one name.
    """
    found: dict[str, Place] = {}
    for path in paths:
        for name, place in _in_folder(path) if path.is_dir() else _in_zip(path):
            earlier = found.setdefault(name, place)
            if earlier != place and _content(earlier) != _content(place):
                raise UserError(f"--figures: {name} is one figure in {earlier.path} and another in {place.path}")
    if not found:
        raise UserError(f"--figures {' '.join(map(str, paths))}: no picture is there ({', '.join(PICTURES)})")
    return found


def _content(place: Place) -> tuple[int, int]:
    """Size and CRC-32 of a figure."""
    return place.size, place.checksum if place.start >= 0 else zlib.crc32(Path(place.path).read_bytes())


def _in_folder(folder: Path) -> Iterable[tuple[str, Place]]:
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in PICTURES and file.is_file() and not file.is_symlink():
            facts = file.stat()
            yield file.name, Place(str(file), size=facts.st_size, checksum=facts.st_mtime_ns)


def _in_zip(file: Path) -> Iterable[tuple[str, Place]]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except OSError as error:
        raise UserError(f"--figures {file}: cannot be read: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        advice = "download it again, or unpack it and name the folder"
        raise UserError(f"--figures {file}: is not a ZIP file, or a damaged one ({error}): {advice}") from error
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in member.filename.partition("/")[0]:
            raise UserError(f"--figures {file}: holds a path outside of itself, {member.filename!r}: it is not read")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(f"--figures {file}: holds a symbolic link, {member.filename!r}: it is not read")
        if parts.suffix.lower() in PICTURES and not member.is_dir():
            sizes = (member.header_offset, member.compress_size, member.file_size, member.CRC)
            yield parts.name, Place(str(file), *sizes, member.compress_type, bool(member.flag_bits & 1))


def read_figure(place: Place) -> bytes:
    """The bytes of a figure; raises `RejectedRow` if they cannot be had.

    A member of a ZIP file is read at its place: `zipfile` would read the directory of the file in every process, which
    takes 150 MB for 150,000 figures.
    """
    if max(place.size, place.stored) > MOST_BYTES:
        raise RejectedRow(f"figure has over {MOST_BYTES // 1_000_000} MB")
    if place.encrypted:
        raise RejectedRow("figure is encrypted")
    with open(place.path, "rb") as file:
        if place.start < 0:
            return file.read()
        file.seek(place.start)
        header = file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise RejectedRow("figure is damaged")
        _, name, extra = _LOCAL_HEADER.unpack(header)
        file.seek(name + extra, 1)
        data = file.read(place.stored)
    if place.method == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, MOST_BYTES)
        except zlib.error:
            data = b""
    elif place.method != zipfile.ZIP_STORED:
        raise RejectedRow("figure is compressed in a way that is not read")
    if zlib.crc32(data) != place.checksum:
        raise RejectedRow("figure is damaged")
    return data
