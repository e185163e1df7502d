"""Sources: layouts, hold-out, idx files, odd pixel formats, and what is said about bad input."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from convnextv2.data.collection import DataError, Split, UnreadableImage
from convnextv2.data.sources import FASHION_CLASSES, FolderSource, open_source

ORIENTATION, DESCRIPTION = 0x0112, 0x010E
Bytes = npt.NDArray[np.uint8]


def picture(height: int = 6, width: int = 8, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture()).save(root / name, format="png")
    return root


def files_of(root: Path, split: Split) -> list[str]:
    source = open_source(root, split)
    return [str(Path(source.name(index)).relative_to(root)) for index in range(len(source))]


def test_class_folders_are_listed_by_name_at_any_depth(tmp_path: Path) -> None:
    put(tmp_path / "train", "dog/2.png", "dog/far/below/1.JPG", "cat/9.webp", "cat/note.md")

    source = open_source(tmp_path, "train")

    assert source.classes == ("cat", "dog")
    assert [source.label(index) for index in range(len(source))] == [0, 1, 1]
    assert files_of(tmp_path, "train") == [
        "train/cat/9.webp",
        "train/dog/2.png",
        "train/dog/far/below/1.JPG",
    ]
    np.testing.assert_array_equal(source.image(0), picture())


@pytest.mark.parametrize("train", ["train", "training"])
@pytest.mark.parametrize("val", ["val", "validation", "valid", "test"])
def test_split_folders_are_recognised(tmp_path: Path, train: str, val: str) -> None:
    put(tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{val}/a/3.png", f"{val}/b/4.png")
    assert files_of(tmp_path, "train") == [f"{train}/a/1.png", f"{train}/b/2.png"]
    assert files_of(tmp_path, "val") == [f"{val}/a/3.png", f"{val}/b/4.png"]


def put_empty(root: Path, count: int) -> Path:
    """Many files that nobody will decode."""
    for name in (f"{label}/{number}.jpg" for label in "ab" for number in range(count)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_held_out_images_are_a_tenth_and_in_no_other_split(tmp_path: Path) -> None:
    root = put_empty(tmp_path, 200)
    train, val = files_of(root, "train"), files_of(root, "val")
    assert sorted(train + val) == sorted(f"{c}/{n}.jpg" for c in "ab" for n in range(200))
    assert 20 <= len(val) <= 60
    assert open_source(root, "val").classes == ("a", "b")


def test_held_out_images_stay_so_when_others_come_and_wherever_the_folder_is(
    tmp_path: Path,
) -> None:
    before = files_of(put_empty(tmp_path / "here", 200), "val")
    after = files_of(put_empty(tmp_path / "there", 300), "val")
    assert set(before) < set(after)
    assert not set(after) & set(files_of(tmp_path / "here", "train"))


def test_the_fingerprint_tells_names_labels_and_sizes(tmp_path: Path) -> None:
    root = put(tmp_path, "train/a/1.png", "train/b/2.png")
    before = open_source(root, "train").fingerprint()
    size = (root / "train/a/1.png").stat().st_size
    assert before == [["a/1.png", 0, size], ["b/2.png", 1, size]]
    with (root / "train/b/2.png").open("ab") as file:
        file.write(b"!")
    assert open_source(root, "train").fingerprint() == [before[0], ["b/2.png", 1, size + 1]]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda root: root / "nowhere", r"nowhere does not exist"),
        (lambda root: put(root, "photo.png") / "photo.png", r"is a file; give the folder"),
        (lambda root: root, r"is empty"),
        (lambda root: put(root, "1.png", "2.png"), r"no class folders; expected one folder per"),
        (lambda root: put(root, "a/note.md").parent / root.name, r"no images under .*\.webp in 1"),
        (lambda root: put(root, "val/a/1.png"), r"no folder for 'train'; one of .*training"),
        (lambda root: put(root, "train/1.png"), r"train has no class folders"),
    ],
)
def test_an_unusable_folder_is_refused_with_what_would_work(
    tmp_path: Path, made: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_source(made(tmp_path), "train")


def test_too_few_images_to_hold_any_out_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds 1 images, too few .*make folders train/ and val/"):
        open_source(put(tmp_path, "a/1.png"), "val")


# Decoding: every picture below must come out as (H, W, 3) uint8 with the colours a person sees.


def decoded(path: Path) -> Bytes:
    return FolderSource(path.parent.parent, ("a",), ((f"a/{path.name}", 0),)).image(0)


def stored(folder: Path, image: Image.Image, name: str, **options: Any) -> Path:
    (folder / "a").mkdir()
    image.save(folder / "a" / name, **options)
    return folder / "a" / name


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    image = Image.new("CMYK", (4, 3), (0, 255, 255, 0))
    rgb = decoded(stored(tmp_path, image, "x.tif"))
    assert (rgb.shape, rgb.dtype) == ((3, 4, 3), np.uint8)
    assert (rgb == (255, 0, 0)).all()


def test_palettes_become_their_colours(tmp_path: Path) -> None:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([9, 9, 9, 10, 200, 30])
    assert (decoded(stored(tmp_path, image, "x.png")) == (10, 200, 30)).all()


def test_grey_and_transparent_pictures_become_rgb(tmp_path: Path) -> None:
    grey = decoded(stored(tmp_path, Image.new("L", (4, 3), 77), "x.png"))
    assert (grey == 77).all()
    assert grey.shape == (3, 4, 3)
    image = Image.new("RGBA", (4, 3), (1, 2, 3, 0))
    image.save(tmp_path / "a" / "y.png")
    assert (decoded(tmp_path / "a" / "y.png") == (1, 2, 3)).all()


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_16_bit_greys_keep_their_range(tmp_path: Path, name: str) -> None:
    greys = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    rgb = decoded(stored(tmp_path, Image.fromarray(greys), name))
    assert (rgb.shape, rgb.dtype) == ((16, 16, 3), np.uint8)
    np.testing.assert_array_equal(rgb[..., 1].ravel(), np.arange(256))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (6, lambda x: np.rot90(x, -1)),
        (8, lambda x: np.rot90(x, 1)),
    ],
)
def test_the_cameras_rotation_is_undone(
    tmp_path: Path, orientation: int, upright: Callable[[Bytes], Bytes]
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = stored(tmp_path, Image.fromarray(picture(6, 8)), "x.png", exif=exif)
    np.testing.assert_array_equal(decoded(path), upright(picture(6, 8)))


def jpeg_with_exif(path: Path) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION], exif[DESCRIPTION] = 6, "a photograph"
    Image.fromarray(picture(64, 64)).save(path, format="jpeg", exif=exif)
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"<html>404</html>",
        lambda data: data[: len(data) // 2],
        # The description becomes a width that is a text: Pillow raises struct.error.
        lambda data: data.replace(b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02"),
    ],
    ids=["empty", "html", "cut short", "bad exif"],
)
def test_an_undecodable_image_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a" / "x.jpg"
    path.parent.mkdir()
    data = jpeg_with_exif(path)
    path.write_bytes(damage(data))
    assert path.read_bytes() != data
    with pytest.raises(UnreadableImage, match=r"a/x\.jpg: ."):
        decoded(path)


def test_a_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UnreadableImage, match=r"x\.png: .*decompression bomb"):
        decoded(stored(tmp_path, Image.fromarray(picture()), "x.png"))


# Idx files


def idx(values: Bytes) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 6), np.uint8)
LABELS = np.array([2, 0, 1, 2, 0], np.uint8)


def put_idx(
    root: Path, images: bytes, labels: bytes = idx(LABELS), *, stem: str = "train", end: str = ""
) -> Path:
    root.mkdir(exist_ok=True)
    pack: Callable[[bytes], bytes] = gzip.compress if end else bytes
    (root / f"{stem}-images-idx3-ubyte{end}").write_bytes(pack(images))
    (root / f"{stem}-labels-idx1-ubyte{end}").write_bytes(pack(labels))
    return root


@pytest.mark.parametrize(("split", "stem"), [("train", "train"), ("val", "t10k")])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files_are_read_plain_and_packed(
    tmp_path: Path, split: Split, stem: str, end: str
) -> None:
    source = open_source(put_idx(tmp_path / "data", idx(IMAGES), stem=stem, end=end), split)
    assert len(source) == 5
    assert source.classes == ("0", "1", "2")
    assert [source.label(index) for index in range(5)] == LABELS.tolist()
    for index in range(5):
        image = source.image(index)
        assert (image.shape, image.dtype) == ((4, 6, 3), np.uint8)
        assert (image == IMAGES[index][:, :, None]).all()
    assert source.name(3).endswith(f"{stem}-images-idx3-ubyte{end}[3]")


def test_fashion_mnist_has_its_names(tmp_path: Path) -> None:
    source = open_source(put_idx(tmp_path / "dataset-fashion-mnist", idx(IMAGES)), "train")
    assert source.classes == FASHION_CLASSES
    assert source.classes[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (b"", idx(LABELS), "images-idx3-ubyte is damaged"),
        (idx(IMAGES)[:9], idx(LABELS), "images-idx3-ubyte is damaged"),
        (idx(IMAGES)[:-1], idx(LABELS), r"cut short: 119 bytes for shape \(5, 4, 6\)"),
        (b"\x89PNG" + bytes(99), idx(LABELS), "no idx file of 3-dimensional bytes"),
        (idx(LABELS), idx(LABELS), "no idx file of 3-dimensional bytes"),
        (idx(IMAGES), idx(LABELS)[:-2], r"labels-idx1-ubyte is cut short"),
        (idx(IMAGES), idx(LABELS[:4]), "has 5 images but 4 labels"),
        (idx(IMAGES[:0]), idx(LABELS[:0]), "holds no images"),
    ],
)
def test_damaged_idx_files_are_named(
    tmp_path: Path, images: bytes, labels: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_source(put_idx(tmp_path, images, labels), "train")


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"no gzip" + data])
def test_damaged_gzip_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = put_idx(tmp_path, idx(IMAGES), end=".gz") / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"images-idx3-ubyte\.gz is damaged"):
        open_source(tmp_path, "train")


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    put_idx(tmp_path, idx(IMAGES))
    with pytest.raises(DataError, match=r"has no t10k-images-idx3-ubyte \(or \.gz\)"):
        open_source(tmp_path, "val")
