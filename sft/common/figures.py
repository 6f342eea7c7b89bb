"""The figures of prepared data sets: pictures in figures.zip beside the rows, which name them in `images`."""

import io
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sft.common.command import UserError
from sft.common.hub import repo_file

ARCHIVE = "figures.zip"


class Figures:
    """Figures by name, out of the archives of one or several data sets; each process opens them for itself."""

    def __init__(self, data_sets: Iterable[str]):
        """`data_sets` are folders or Hub ids; those without figures are left out.

        Raises `UserError` for an archive that cannot be read, or for two different figures of one name.
        """
        self._files: dict[str, Path] = {}
        self._open: dict[tuple[int, Path], zipfile.ZipFile] = {}
        seen: dict[str, int] = {}
        for path in data_sets:
            if not (file := repo_file(path, ARCHIVE, "dataset")):
                continue
            try:
                with zipfile.ZipFile(file) as archive:
                    entries = archive.infolist()
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(f"{file} cannot be read ({error}): prepare the data set again") from error
            for entry in entries:
                if seen.setdefault(entry.filename, entry.CRC) != entry.CRC:
                    raise UserError(f"{entry.filename} is another figure in {file} than in an earlier data set")
                self._files[entry.filename] = Path(file)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def _picture(self, name: str) -> Any:
        from PIL import Image

        file = self._files[name]
        key = os.getpid(), file  # a worker must not share the place in the file with its parent
        if key not in self._open:
            self._open[key] = zipfile.ZipFile(file)
        return Image.open(io.BytesIO(self._open[key].read(name)))

    def size(self, name: str) -> tuple[int, int]:
        """(width, height) in pixels, from the picture's first bytes."""
        return self._picture(name).size

    def read(self, names: Sequence[str]) -> list[Any]:
        """The pictures of these names, in RGB."""
        return [self._picture(name).convert("RGB") for name in names]

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files, "_open": {}}
