"""Parquet files of the Hugging Face hub: where they lie, which columns, what labels are."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from convnextv2.data.collection import DataError, Pixels, Split, UnreadableImage
from convnextv2.data.pixels import decode_bands
from convnextv2.data.sources import Columns, open_source
from tests.convnextv2.data.fixtures.archives import everything, jpeg, listed, put

TRAIN = "data/train-00000-of-00001.parquet"
BYTES = [jpeg(seed) for seed in range(4)]
IMAGES = [{"bytes": content, "path": f"{seed}.jpg"} for seed, content in enumerate(BYTES)]
IMAGE: Mapping[str, object] = {"_type": "Image"}


def class_label(*names: str) -> Mapping[str, object]:
    return {"_type": "ClassLabel", "names": list(names)}


def put_table(
    path: Path,
    columns: Mapping[str, Sequence[object] | pa.Array],
    features: Mapping[str, Mapping[str, object]] | None = None,
) -> Path:
    """As the library `datasets` writes it, in row groups of 3."""
    about = {"huggingface": json.dumps({"info": {"features": features}})} if features else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(dict(columns)).replace_schema_metadata(about)
    pq.write_table(table, path, row_group_size=3)
    return path


def labels_of(root: Path, split: Split = "train", columns: Columns | None = None) -> list[str]:
    """Class of each image; the images must be those of `IMAGES`, in their order."""
    source = open_source(root, split, columns=columns)
    found = everything(source)
    assert [stored.content for stored, _ in found] == BYTES * (len(found) // len(BYTES))
    return [source.classes[label] if label >= 0 else "-" for _, label in found]


LABELS = [0, 1, 1, 0]
ANIMALS = ["ant", "bee", "bee", "ant"]
FEATURES = {"image": IMAGE, "label": class_label("ant", "bee")}
TABLE: Mapping[str, Sequence[object]] = {"image": IMAGES, "label": LABELS}

NAMED = [
    ({"image": IMAGES, "label": LABELS}, FEATURES, ANIMALS, ()),
    (
        {"img": IMAGES, "label": LABELS}, {"img": IMAGE, "label": class_label("ant", "bee")},
        ANIMALS, ("img", "labels from label"),
    ),
    (
        {"image": IMAGES, "labels": LABELS}, {"image": IMAGE, "labels": class_label("ant", "bee")},
        ANIMALS, ("image", "labels from labels"),
    ),
    (
        {"scan": IMAGES, "depth": [b"1"] * 4, "kind": LABELS},
        {"scan": IMAGE, "kind": class_label("ant", "bee")}, ANIMALS, ("scan", "labels from kind"),
    ),
    ({"jpg": BYTES, "fine_label": ANIMALS}, None, ANIMALS, ("jpg", "labels from fine_label")),
    ({"photo": BYTES, "id": [1, 2, 3, 4]}, None, ["-"] * 4, ("photo", "no labels")),
    ({"image": IMAGES, "label": ANIMALS, "label_name": ANIMALS}, None, ANIMALS, ()),
    ({"image": IMAGES, "label": [False, True, True, False]}, None,
     ["False", "True", "True", "False"], ()),
    ({"image": IMAGES, "label": pa.array(ANIMALS).dictionary_encode()}, None, ANIMALS, ()),
    ({"image": IMAGES, "label": ["ant", None, "", "ant"]}, None, ["ant", "-", "-", "ant"], ()),
    ({"image": IMAGES, "label": pa.nulls(4)}, None, ["-"] * 4, ()),
    ({"image": [[image] for image in IMAGES], "label": ANIMALS}, None, ANIMALS, ()),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "features", "expected", "told"), NAMED)
def test_the_columns_that_fit_are_found_and_unusual_ones_are_said(
    tmp_path: Path,
    columns: Mapping[str, Sequence[object]],
    features: Mapping[str, Mapping[str, object]] | None,
    expected: list[str],
    told: tuple[str, ...],
) -> None:
    put_table(tmp_path / TRAIN, columns, features)
    assert labels_of(tmp_path) == expected
    notes = open_source(tmp_path, "train").notes
    assert notes == (
        (f"{tmp_path}: images are read from column {', '.join(told)}",) if told else ()
    )


CIFAR_100 = {"img": IMAGES, "fine_label": LABELS, "coarse_label": [0, 0, 0, 0]}
CIFAR_FEATURES = {"img": IMAGE, "fine_label": class_label("ant", "bee"),
                  "coarse_label": class_label("insect")}  # fmt: skip


def test_of_two_columns_of_labels_the_setting_chooses(tmp_path: Path) -> None:
    put_table(tmp_path / TRAIN, CIFAR_100, CIFAR_FEATURES)
    with pytest.raises(
        DataError,
        match=r"fine_label and coarse_label may be the labels, of its columns img: struct.*, "
        r"fine_label: int64, coarse_label: int64: choose one by --label-column \(data\.label_col",
    ):
        open_source(tmp_path, "train")
    assert labels_of(tmp_path, columns=Columns(label="fine_label")) == ANIMALS
    assert labels_of(tmp_path, columns=Columns(label="coarse_label")) == ["insect"] * 4
    chosen = [open_source(tmp_path, "train", columns=Columns(label=name)).fingerprint()
              for name in ("fine_label", "coarse_label")]  # fmt: skip
    assert chosen[0] != chosen[1]


def test_of_two_columns_of_images_the_setting_chooses(tmp_path: Path) -> None:
    put_table(tmp_path / TRAIN, {"before": [b"1"] * 4, "after": IMAGES})
    with pytest.raises(DataError, match=r"before and after may be the images.*--image-column"):
        open_source(tmp_path, "train")
    assert labels_of(tmp_path, columns=Columns(image="after")) == ["-"] * 4


@pytest.mark.parametrize(
    ("columns", "wanted", "message"),
    [
        ({"image": ["1.jpg"]}, Columns(), r"has columns image: string; expected image \(the bytes"),
        ({"image": [b"1"], "label": [0.5]}, Columns(), r"label: double; expected label to be numb"),
        ({"image": [b"1"], "label": [[1, 0]]}, Columns(), r"data\.label_column\) names another"),
        (
            {"image": [b"1"], "label": [1]}, Columns(label="class"),
            r"has no column class of labels, which --label-column .* asks for; its columns are ima",
        ),
        ({"image": [b"1"], "label": [1]}, Columns(image="label"), r"no column label of images"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_used_are_listed(
    tmp_path: Path, columns: Mapping[str, Sequence[object]], wanted: Columns, message: str
) -> None:
    put_table(tmp_path / TRAIN, columns)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path, "train", columns=wanted)


def test_columns_of_what_has_none_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "ant/1.jpg", jpeg())
    with pytest.raises(DataError, match=r"has no parquet files, of which image and label columns"):
        open_source(tmp_path, "train", columns=Columns(label="label"))


def test_paths_without_bytes_are_refused_with_the_columns(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": f"{n}.jpg"} for n in range(4)], kind)
    put_table(tmp_path / TRAIN, {"image": images, "label": LABELS}, FEATURES)
    with pytest.raises(
        DataError, match=r"has columns image: struct<.*label: int64, but no bytes in image: its im"
    ):
        listed(open_source(tmp_path, "train"))


def test_of_several_images_in_a_row_the_first_is_read_and_the_others_are_counted(
    tmp_path: Path,
) -> None:
    images = [[IMAGES[0], IMAGES[3]], [IMAGES[1]], IMAGES[2:] * 2, IMAGES[3:]]
    put_table(tmp_path / TRAIN, {"image": images})
    assert labels_of(tmp_path) == ["-"] * 4
    kinds: Counter[str] = Counter()
    open_source(tmp_path, "train").members(0, kinds)
    assert kinds == {"further images of a row": 4}


# Arrays of numbers

PIXELS = np.arange(3 * 6 * 7 * 5, dtype=np.uint16).reshape(3, 6, 7, 5) * np.uint16(90)
"""Three images of (H, W, C) = (6, 7, 5)."""
Table = Callable[[NDArray[Any]], pa.Array]


def lists(pixels: NDArray[Any]) -> pa.Array:
    """Lists of lists of lists, as nearly everything writes them."""
    kind = pa.from_numpy_dtype(pixels.dtype)
    for _ in pixels.shape[1:]:
        kind = pa.list_(kind)
    return pa.array(pixels.tolist(), kind)


def fixed_lists(pixels: NDArray[Any]) -> pa.Array:
    """Lists of fixed lengths, the outermost large."""
    *outer, channels = pixels.shape[2:]
    kind = pa.list_(pa.from_numpy_dtype(pixels.dtype), channels)
    for length in reversed(outer):
        kind = pa.list_(kind, length)
    return pa.array(pixels.tolist(), pa.large_list(kind))


def tensors(pixels: NDArray[Any], permutation: Sequence[int] | None = None) -> pa.Array:
    count, *shape = pixels.shape
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(pixels.dtype), shape, permutation=permutation)
    flat = pa.array(pixels.reshape(count, -1).tolist(), kind.storage_type)
    return pa.ExtensionArray.from_storage(kind, flat)


def turned_tensors(pixels: NDArray[Any]) -> pa.Array:
    """(H, W, C), kept as (C, H, W)."""
    return tensors(np.moveaxis(pixels, -1, 1), [1, 2, 0])


class Array3D(pa.ExtensionType):
    """As the library `datasets` keeps it; unknown to who reads the file, unless registered."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "datasets.features.features.Array3DExtensionType")

    def __arrow_ext_serialize__(self) -> bytes:
        return b'[[6, 7, 5], "uint16"]'

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Array3D":
        return cls(storage)


def of_datasets(pixels: NDArray[Any]) -> pa.Array:
    storage = lists(pixels)
    return pa.ExtensionArray.from_storage(Array3D(storage.type), storage)


@pytest.fixture
def _registered() -> Iterator[None]:
    """As when `datasets` is imported, too."""
    kind = Array3D(lists(PIXELS).type)
    pa.register_extension_type(kind)
    yield
    pa.unregister_extension_type(kind.extension_name)


def bands_of(root: Path, columns: Columns | None = None) -> list[Pixels]:
    source = open_source(root, "train", columns=columns)
    return [decode_bands(stored.content, stored.name) for stored, _ in everything(source)]


@pytest.mark.parametrize("table", [lists, fixed_lists, tensors, turned_tensors, of_datasets])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["image", "bands"])
def test_arrays_are_read_to_the_bit(
    tmp_path: Path, table: Table, dtype: type[np.uint8 | np.uint16], name: str
) -> None:
    pixels = PIXELS.astype(dtype)
    boxes = [[[0.5, 0.5], [1.0, 1.0]]] * 3
    put_table(tmp_path / TRAIN, {name: table(pixels), "boxes": boxes, "label": [0, 1, 1]})
    found = np.stack(bands_of(tmp_path))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)
    kinds: Counter[str] = Counter()
    assert open_source(tmp_path, "train").members(0, kinds)["label"].tolist() == [0, 1, 1]
    assert not kinds


@pytest.mark.usefixtures("_registered")
def test_a_type_that_is_registered_is_read_as_one_that_is_not(tmp_path: Path) -> None:
    put_table(tmp_path / TRAIN, {"image": of_datasets(PIXELS)})
    np.testing.assert_array_equal(np.stack(bands_of(tmp_path)), PIXELS)


def test_channels_may_come_first_or_be_left_out_as_in_npy_files(tmp_path: Path) -> None:
    put_table(tmp_path / "first" / TRAIN, {"image": lists(np.moveaxis(PIXELS, -1, 1))})
    np.testing.assert_array_equal(np.stack(bands_of(tmp_path / "first")), PIXELS)
    grey = {"scan": {"_type": "Array2D", "shape": [6, 7], "dtype": "uint16"}}
    put_table(tmp_path / "grey" / TRAIN, {"scan": lists(PIXELS[..., 0])}, grey)
    np.testing.assert_array_equal(np.stack(bands_of(tmp_path / "grey")), PIXELS[..., :1])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ([[[1, 2], [3]]], r"train-\S+:0: NPY: an array of shape \(3,\); \(height, width, channels"),
        ([[[0.5, 0.5]]], r":0: NPY: its values are float64, of no known range; write whole numb"),
        ([[[1, 99999]]], r":0: NPY: its values \(int64\) go from 1 to 99999; 0 to 65535 would be"),
        ([[[1, None]]], r":0: NPY: its values are float64, of no known range"),
        ([[[1], None]], r":0: NPY: an array of shape \(1,\)"),
        ([None, [[1]]], r":0: the file is empty"),
    ],
)  # fmt: skip
def test_an_array_that_is_no_image_is_told_by_its_row(
    tmp_path: Path, image: Sequence[object], words: str
) -> None:
    put_table(tmp_path / TRAIN, {"image": image})
    with pytest.raises(UnreadableImage, match=words):
        bands_of(tmp_path)


@pytest.mark.parametrize("columns", [Columns(), Columns(image="image")])
@pytest.mark.parametrize("image", [PIXELS.reshape(3, -1).tolist(), tensors(PIXELS.reshape(3, -1))])
def test_numbers_without_a_shape_are_refused_with_what_would_work(
    tmp_path: Path, image: Sequence[object], columns: Columns
) -> None:
    put_table(tmp_path / TRAIN, {"image": image, "label": [0, 1, 1]})
    words = r"The lists of numbers in image have no shape; lists of lists .*, Arrow's fixed_shape_t"
    with pytest.raises(DataError, match=words):
        open_source(tmp_path, "train", columns=columns)


def test_arrays_beside_images_are_left_alone_and_can_be_chosen(tmp_path: Path) -> None:
    put_table(tmp_path / TRAIN, {"photo": BYTES[:3], "depth": lists(PIXELS)})
    assert [stored.content for stored, _ in everything(open_source(tmp_path, "train"))] == BYTES[:3]
    np.testing.assert_array_equal(np.stack(bands_of(tmp_path, Columns(image="depth"))), PIXELS)


# Several files


def test_classes_are_matched_by_name_where_files_have_them_in_another_order(tmp_path: Path) -> None:
    put_table(tmp_path / "data/train-00000-of-00002.parquet", TABLE, FEATURES)
    swapped = {"image": IMAGE, "label": class_label("bee", "ant")}
    other = put_table(tmp_path / "data/train-00001-of-00002.parquet", TABLE, swapped)
    assert open_source(tmp_path, "train").classes == ("ant", "bee")
    assert labels_of(tmp_path) == [*ANIMALS, "bee", "ant", "ant", "bee"]
    put_table(other, TABLE, {"image": IMAGE, "label": class_label("ant", "cat")})
    with pytest.raises(
        DataError, match=r"00000-of-00002\.parquet and .* name other.*: bee against"
    ):
        open_source(tmp_path, "train")


def test_names_of_all_files_are_classes(tmp_path: Path) -> None:
    put_table(tmp_path / "data/train-0.parquet", {"image": IMAGES, "label": ["ant"] * 4})
    put_table(tmp_path / "data/train-1.parquet", {"image": IMAGES, "label": ANIMALS})
    assert labels_of(tmp_path) == ["ant"] * 4 + ANIMALS


def test_numbers_in_one_file_and_text_in_another_are_refused(tmp_path: Path) -> None:
    put_table(tmp_path / "data/train-0.parquet", TABLE, FEATURES)
    put_table(tmp_path / "data/train-1.parquet", {"image": IMAGES, "label": ANIMALS}, FEATURES)
    with pytest.raises(
        DataError, match=r"label has numbers in .*train-0\S+, but text in .*train-1"
    ):
        open_source(tmp_path, "train")
    # A file of hidden labels may know no type for them.
    put_table(tmp_path / "data/train-1.parquet", {"image": IMAGES, "label": pa.nulls(4)})
    assert labels_of(tmp_path) == [*ANIMALS, "-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (
            [0, 1, 1, 7],
            ("ant", "bee"),
            r"train-\S+: row 3 has label 7; expected 0 to 1, as it name",
        ),
        (
            [0, -2, 1, 0],
            ("ant", "bee"),
            r"row 1 has label -2; expected 0 to 1, .* or -1 where ther",
        ),
        ([0, -2, 1, 0], (), r"row 1 has label -2; expected 0 or more, or -1 where there is none"),
    ],
)
def test_a_label_beyond_the_names_is_told_with_its_file_and_row(
    tmp_path: Path, labels: list[int], names: tuple[str, ...], message: str
) -> None:
    features = {"image": IMAGE, "label": class_label(*names)} if names else None
    put_table(tmp_path / TRAIN, {"image": IMAGES, "label": labels}, features)
    with pytest.raises(DataError, match=message):
        listed(open_source(tmp_path, "train"))


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("default/partial-train/0000.parquet", "default/partial-validation/0000.parquet"),
        ("data/en/train-00000-of-00001.parquet", "data/en/test-00000-of-00001.parquet"),
        ("test_config/train/0000.parquet", "test_config/validation/0000.parquet"),
        ("train/0000.parquet", "validation/0000.parquet"),
    ],
)
def test_splits_are_found_where_the_hub_has_them(tmp_path: Path, train: str, val: str) -> None:
    put_table(tmp_path / train, TABLE, FEATURES)
    put_table(tmp_path / val, {"image": IMAGES, "label": [1] * 4}, FEATURES)
    put(tmp_path / "README.md", "a data set")
    assert open_source(tmp_path, "train").has_splits
    assert labels_of(tmp_path) == ANIMALS
    assert labels_of(tmp_path, "val") == ["bee"] * 4


@pytest.mark.parametrize("folder", ["{}/train/0000.parquet", "data/{}/train-0.parquet"])
def test_several_configurations_are_told_apart(tmp_path: Path, folder: str) -> None:
    for config in ("en", "fr"):
        put_table(tmp_path / folder.format(config), TABLE, FEATURES)
    with pytest.raises(DataError, match=r"files of 2 configurations, (data/)?en, (data/)?fr: give"):
        open_source(tmp_path, "train")
    root = tmp_path / ("data/fr" if folder.startswith("data") else "fr")
    assert labels_of(root) == ANIMALS
