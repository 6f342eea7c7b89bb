"""Questions with their figures: what is written, what is rejected and why, and that a stop costs nothing."""

import csv
import io
import json
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.figure_files import find_figures, read_figure
from data_prep.figures import encode
from data_prep.questions import RejectedRow
from sft.common.command import UserError
from sft.common.data import load_split
from sft.common.figures import Figures

ROOT = Path(__file__).parents[2]
HEADER = ["Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label"]


def picture(number: int, size=(96, 64), mode="RGB") -> Image.Image:
    """A smooth picture, another one for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (4, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, form="JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write_rows(folder: Path, figures: dict[str, list[str]]) -> None:
    """A CSV file for each split, a question for each figure."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in figures.items():
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            for number, name in enumerate(names):
                options = [
                    f" {letter}: {word} " for letter, word in zip("ABCD", ["red", "blue", "tan", "pink"], strict=True)
                ]
                writer.writerow([name, f"Which colour has cell {number}?", "blue", *options, "B"])


@pytest.fixture
def data(tmp_path):
    """60 training and 6 test questions with a figure each, in a ZIP file in the published form."""
    names = {"train": [f"PMC{i}_F1.jpg" for i in range(60)], "test": [f"PMC{i}_F1.jpg" for i in range(100, 106)]}
    write_rows(tmp_path / "data", names)
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, name in enumerate(names["train"] + names["test"]):
            archive.writestr(f"images/images/{name}", saved(picture(number)))
        archive.writestr("images/notes.txt", "not a picture")
    return tmp_path / "data"


@pytest.fixture
def prepare_with(here, data, tmp_path):
    """Prepare the data with options; returns the output folder and its report."""

    def run(*options, figures=tmp_path / "images.zip", name="out"):
        words = ("--dataset_path", data, "--figures", figures, "--output_dir", tmp_path / name, "--dev_size", 6)
        done = here("data_prep/prepare.py", *words, *options, "--overwrite")
        assert done.returncode == 0, done.stderr
        return tmp_path / name, json.loads((tmp_path / name / "report.json").read_text())

    return run


def test_rows_name_their_figure_and_the_helper_opens_it(prepare_with):
    folder, report = prepare_with()
    assert report["figures"]["written"] == 66
    assert report["figures"]["modes"] == {"RGB": 66}
    figures = Figures([str(folder)])
    for split in ("train", "dev", "test"):
        for row in load_split(str(folder), split):
            assert row["images"] == [row["figure"]]
            (image,) = figures.read(row["images"])
            assert (image.mode, image.size) == ("RGB", (96, 64))
    assert (
        "66 written" in (folder / "report.html").read_text()
        or "66 figures in figures.zip" in (folder / "report.html").read_text()
    )
    # The card names the rows' files, so that load_dataset does not take the archive for data.
    assert "figures.zip" in (folder / "README.md").read_text()


def test_the_same_figures_give_the_same_bytes(prepare_with, tmp_path):
    """In whatever order and place they lie, and with any number of processes."""
    first, _ = prepare_with("--num_proc", 1)
    unpacked = tmp_path / "unpacked/deep"
    unpacked.mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        for name in archive.namelist()[::-1]:
            (unpacked / Path(name).name).write_bytes(archive.read(name))
    second, _ = prepare_with("--num_proc", 2, figures=tmp_path / "unpacked", name="again")
    for file in ("figures.zip", *(str(file.relative_to(first)) for file in first.glob("*/*.parquet"))):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    with zipfile.ZipFile(first / "figures.zip") as archive:
        assert archive.namelist() == sorted(archive.namelist())
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def transparent() -> Image.Image:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 32, 64))
    return image


def oriented(orientation) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "Jane Doe"
    return saved(picture(1), exif=exif)


def deep_png() -> bytes:
    """A PNG of 64 x 64 pixels with 16 bits of red, green and blue, which PIL opens as if it had 8."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"".join(b"\0" + bytes(64 * 6) for _ in range(64)))
    head = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


ACCEPTED = {
    "grey": (saved(picture(1, mode="L")), "L", (96, 64)),
    "CMYK": (saved(picture(1, mode="CMYK")), "CMYK", (96, 64)),
    "palette": (saved(picture(1, mode="P"), "PNG"), "P", (96, 64)),
    "one bit": (saved(picture(1, mode="1"), "PNG"), "1", (96, 64)),
    "transparent": (saved(transparent(), "PNG"), "RGBA", (64, 64)),
    "turned by EXIF": (oriented(6), "RGB", (64, 96)),
    "an orientation that does not exist": (oriented(9), "RGB", (96, 64)),
    "large": (saved(picture(1, (900, 600))), "RGB", (627, 418)),
    "tall": (saved(picture(1, (300, 3000))), "RGB", (161, 1619)),
}
REJECTED = {
    "16 bits": (saved(Image.fromarray(np.full((64, 64), 40_000, np.uint16)), "PNG"), "16 bits or more a channel"),
    "16 bits of each colour": (deep_png(), "16 bits or more a channel"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "not a picture, or is damaged"),
    "floats": (saved(Image.new("F", (64, 64)), "TIFF"), "16 bits or more a channel"),
    "truncated": (saved(picture(1, (400, 400)))[:3000], "figure is damaged"),
    "not a picture": (b"<html>not found</html>", "not a picture, or is damaged"),
    "empty": (b"", "not a picture, or is damaged"),
    "a dot": (saved(picture(1, (8, 8))), "smaller than 28 pixels"),
    "a line": (saved(picture(1, (6000, 28))), "over 200 times as long as wide"),
    "a bomb": (saved(Image.new("1", (20_000, 20_000)), "PNG"), "over 100 million pixels"),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_every_kind_of_picture_becomes_a_small_rgb_jpeg_without_metadata(kind):
    data, mode, size = ACCEPTED[kind]
    jpeg, found, _, after = encode(data, 262_144)
    image = Image.open(io.BytesIO(jpeg))
    assert (found, after, image.size) == (mode, size, size)
    assert (image.format, image.mode, len(image.getexif())) == ("JPEG", "RGB", 0)
    assert b"Jane" not in jpeg
    if kind == "transparent":
        red, green, blue = image.getpixel((60, 32))
        assert min(red, green, blue) > 240


@pytest.mark.parametrize("kind", REJECTED)
def test_a_picture_that_would_harm_is_rejected(kind):
    data, reason = REJECTED[kind]
    with pytest.raises(RejectedRow, match=reason):
        encode(data, 262_144)


def test_a_figure_that_the_cap_would_make_too_thin_is_rejected():
    with pytest.raises(RejectedRow, match="smaller than 28 pixels"):
        encode(saved(picture(1, (300, 40))), 1024)


def test_a_question_without_its_figure_is_rejected_and_counted(prepare_with, data, tmp_path):
    write_rows(data, {"train": [f"images/PMC{i}_F1.jpg" for i in range(60)] + ["", "PMC7_F9.jpg", "dot.png"]})
    with zipfile.ZipFile(tmp_path / "images.zip", "a") as archive:
        archive.writestr("dot.png", saved(picture(1, (8, 8)), "PNG"))
    folder, report = prepare_with("--max_rejected", 0.1)
    assert report["rejected_by_reason"] == {
        "no figure is named": 1,
        "figure is missing": 1,
        "figure is smaller than 28 pixels on a side": 1,
    }
    assert report["read"] == report["kept"] + report["rejected"] + report["duplicates"] == 69
    rows = list(csv.DictReader((folder / "rejected.csv").open(newline="")))
    assert [row["row"] for row in rows] == ["61", "62", "63"]
    assert "PMC7_F9.jpg" in rows[1]["cells"]


def test_too_many_missing_figures_stop_in_one_line(refused, data, tmp_path):
    (tmp_path / "few").mkdir()
    (tmp_path / "few/PMC1_F1.jpg").write_bytes(saved(picture(1)))
    words = ("--dataset_path", data, "--output_dir", tmp_path / "out", "--figures", tmp_path / "few")
    line = refused("data_prep/prepare.py", *words)
    assert "65 of 66 rows were rejected" in line
    assert "figure is missing (65)" in line
    assert "name the folder or ZIP file that holds it" in line
    assert not (tmp_path / "out").exists()


def test_equal_pictures_of_two_splits_are_found_whatever_their_names(prepare_with, data, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for i in (*range(60), *range(100, 106)):
            archive.writestr(f"figures/PMC{i}_F1.jpg", saved(picture(3 if i in (5, 100) else i)))
    _, report = prepare_with("--dev_size", 0)
    shared = {entry["by"]: entry["shared"] for entry in report["overlap"] if entry["splits"] == ["train", "test"]}
    assert shared == {"article": 0, "figure": 0, "question and options": 0, "picture": 1}
    _, report = prepare_with("--dev_size", 0, "--drop_overlap")
    assert report["left_out"]["shared with another split"] == 2  # figures 3 and 5


def test_only_the_figures_of_drawn_questions_are_read(prepare_with):
    folder, report = prepare_with("--max_samples", 10, "--dev_size", 0)
    assert report["splits"] == {"train": 10, "test": 6}
    assert report["figures"]["written"] == 16
    with zipfile.ZipFile(folder / "figures.zip") as archive:
        assert len(archive.namelist()) == 16


def zip_with(file: Path, name: str, **info) -> Path:
    member = zipfile.ZipInfo(name)
    for key, value in info.items():
        setattr(member, key, value)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(member, saved(picture(1)))
    return file


@pytest.mark.parametrize(
    ("name", "info", "message"),
    [
        ("../../etc/PMC1_F1.jpg", {}, "holds a path outside of itself"),
        ("/etc/PMC1_F1.jpg", {}, "holds a path outside of itself"),
        ("C:\\PMC1_F1.jpg", {}, "holds a path outside of itself"),
        ("PMC1_F1.jpg", {"create_system": 3, "external_attr": (stat.S_IFLNK | 0o777) << 16}, "holds a symbolic link"),
        ("readme.txt", {}, "no picture is there"),
    ],
)
def test_a_hostile_archive_is_refused(name, info, message, tmp_path):
    with pytest.raises(UserError, match=message):
        find_figures([zip_with(tmp_path / "images.zip", name, **info)])


def test_archives_that_cannot_be_trusted_are_refused_or_their_figures_rejected(tmp_path):
    file = zip_with(tmp_path / "images.zip", "PMC1_F1.jpg")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is not a ZIP file, or a damaged one"):
        find_figures([file])
    file.write_bytes(content.replace(b"JFIF", b"JFIX", 1))
    with pytest.raises(RejectedRow, match="figure is damaged"):
        read_figure(find_figures([file])["PMC1_F1.jpg"])
    place = find_figures([zip_with(tmp_path / "other.zip", "PMC1_F1.jpg")])["PMC1_F1.jpg"]
    for change, reason in (
        ({"encrypted": True}, "figure is encrypted"),
        ({"method": zipfile.ZIP_LZMA}, "compressed in a way that is not read"),
        ({"size": 10**10}, "figure has over 200 MB"),
    ):
        with pytest.raises(RejectedRow, match=reason):
            read_figure(place._replace(**change))
    with pytest.raises(RejectedRow, match="figure is damaged"):
        read_figure(place._replace(start=10**6))
    (tmp_path / "folder/again").mkdir(parents=True)
    (tmp_path / "folder/PMC1_F1.jpg").write_bytes(saved(picture(2)))
    (tmp_path / "folder/again/PMC1_F1.jpg").write_bytes(saved(picture(2)))  # the same once more is no harm
    assert len(find_figures([tmp_path / "folder"])) == 1
    with pytest.raises(UserError, match=r"PMC1_F1.jpg is one figure in .*other.zip and another in"):
        find_figures([tmp_path / "other.zip", tmp_path / "folder"])


def test_a_large_archive_is_read(tmp_path):
    """As images.zip, which has more bytes and members than the old form of a ZIP file can count."""
    file = tmp_path / "images.zip"
    with zipfile.ZipFile(file, "w") as archive, archive.open("images/PMC1_F1.jpg", "w", force_zip64=True) as member:
        member.write(saved(picture(1)))
    assert read_figure(find_figures([file])["PMC1_F1.jpg"]) == saved(picture(1))


def test_a_preparation_that_was_killed_continues(prepare_with, data, tmp_path):
    names = [f"PMC{i}_F1.jpg" for i in range(1000)]
    write_rows(data, {"train": names})
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for number, name in enumerate(dict.fromkeys([*names, *(f"PMC{i}_F1.jpg" for i in range(100, 106))])):
            archive.writestr(name, saved(picture(number, (300, 200))))
    words = ["--dataset_path", data, "--figures", tmp_path / "images.zip", "--output_dir", tmp_path / "out"]
    command = [sys.executable, "data_prep/prepare.py", *map(str, words), "--dev_size", "6", "--num_proc", "1"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=-3, stderr=-3, start_new_session=True)
    while not list(tmp_path.glob(".out.figures/*.zip")):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    for left in tmp_path.glob(".out.*.tmp"):
        shutil.rmtree(left)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "of 1,000 figures are there" in done.stdout
    assert not list(tmp_path.glob(".out*"))
    other, _ = prepare_with(name="other")
    assert (other / "figures.zip").read_bytes() == (tmp_path / "out/figures.zip").read_bytes()


def test_real_radiology_figures_are_prepared(prepare_with, data, shared_rows, tmp_path):
    archive = shared_rows.parent / "vqa_rad/figures.zip"
    with zipfile.ZipFile(archive) as figures:
        names = sorted(Path(name).name for name in figures.namelist() if name.endswith(".jpg"))[:12]
    write_rows(data, {"train": names, "test": names[:2]})
    folder, report = prepare_with(figures=archive)
    assert report["figures"]["written"] == len(names)
    assert report["figures"]["pixels"]["after"]["largest"] <= 262_144
    for width, height in map(Figures([str(folder)]).size, names):
        assert width * height <= 262_144


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--figures", "nowhere.zip"], "--figures nowhere.zip: does not exist"),
        (["--figures", "README.md"], "README.md: is not a ZIP file"),
        (["--figures", "recipes"], "no picture is there"),
        (["--figure_pixels", "1000"], "--figure_pixels goes with --figures"),
        (["--figures", "recipes", "--figure_pixels", "100"], "give at least 784"),
        (["--figures", "recipes", "--pretokenize", "m"], "tokens are made in training"),
    ],
)
def test_wrong_options_are_refused(refused, data, tmp_path, options, message):
    line = refused("data_prep/prepare.py", "--dataset_path", data, "--output_dir", tmp_path / "out", *options)
    assert message in line
    assert not (tmp_path / "out").exists()
