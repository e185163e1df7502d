"""Lists of images: every form, what their columns mean, and what is wrong with one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convnextv2.data.collection import DataError, Source, Split, Stored
from convnextv2.data.selection import Selection, open_selected
from convnextv2.data.sources import Columns, open_source
from convnextv2.data.sources.lists import ListSource
from convnextv2.data.sources.lists import source as lists
from tests.convnextv2.data.fixtures.archives import everything, jpegs, put

FILES = ("ant/0.jpg", "ant/1.jpg", "bee/2.jpg")
SINGLE = {"ant/0.jpg": ["ant"], "ant/1.jpg": ["ant"], "bee/2.jpg": ["bee"]}
SEVERAL = {"ant/0.jpg": ["ant", "tree"], "ant/1.jpg": [], "bee/2.jpg": ["bee"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images in two folders."""
    for name, content in jpegs(*FILES).items():
        put(tmp_path / name, content)
    return tmp_path


def opened(path: Path, split: Split = "train", **columns: Any) -> ListSource:
    source = open_source(path, split, columns=Columns(**columns))
    assert isinstance(source, ListSource)
    return source


def labelled(source: Source) -> dict[str, list[str]]:
    """The classes of each image, by its path below the list."""
    assert isinstance(source, ListSource)
    names = source.classes or tuple(map(str, range(99)))

    def of(label: int) -> list[str]:
        if source.label_sets is not None:
            return [names[each] for each in source.label_sets.classes_of(label)]
        return [] if label < 0 else [names[label]]

    def path_of(stored: Stored) -> str:
        return str(Path(stored.name).relative_to(source.path.parent))

    return {path_of(stored): of(label) for stored, label in everything(source)}


SINGLE_LISTS = {
    "header.csv": "file_name,label\nant/0.jpg,ant\nant/1.jpg,ant\nbee/2.jpg,bee\n",
    "bom.csv": "\ufeffImage Path;Class\nant/0.jpg;ant\nant/1.jpg;ant\nbee/2.jpg;bee\n",
    "no-header.csv": "ant/0.jpg,ant\nant/1.jpg,ant\nbee/2.jpg,bee\n",
    "tabs.tsv": "path\tboxes\tcategory\nant/0.jpg\t1,2\tant\nant/1.jpg\t\tant\nbee/2.jpg\t\tbee\n",
    "words.txt": "ant/0.jpg ant\nant/1.jpg\tant\n\nbee/2.jpg   bee\n",
    "rows.json": json.dumps([{"image": name, "label": name[:3]} for name in FILES]),
    "pairs.json": json.dumps({name: name[:3] for name in FILES}),
    "lines.jsonl": "\n".join(json.dumps({"file": name, "target": [name[:3]]}) for name in FILES),
}


@pytest.mark.parametrize("name", SINGLE_LISTS)
def test_one_label_an_image(name: str, root: Path) -> None:
    source = opened(put(root / name, SINGLE_LISTS[name]))
    assert source.classes == ("ant", "bee")
    assert source.label_sets is None
    assert not source.has_splits
    assert source.notes == ()
    assert labelled(source) == SINGLE


SEVERAL_LISTS = {
    "bars.csv": "path,labels\nant/0.jpg,ant|tree\nant/1.jpg,\nbee/2.jpg,bee\n",
    "commas.csv": 'path,labels\nant/0.jpg,"ant, tree"\nant/1.jpg,\nbee/2.jpg,bee\n',
    "blanks.csv": "image_name,tags\nant/0.jpg,tree ant\nant/1.jpg,\nbee/2.jpg,bee\n",
    "marks.csv": "id,path,ant,bee,tree\n7,ant/0.jpg,1,0,1\n8,ant/1.jpg,0,0,0\n9,bee/2.jpg,0,1,0\n",
    "signs.csv": "path,ant,bee,tree\nant/0.jpg,1,-1, 1\nant/1.jpg,-1,-1,-1\nbee/2.jpg,-1,1,-1\n",
    "rows.csv": "path,label\nant/0.jpg,tree\nant/0.jpg,ant\nant/1.jpg,\nbee/2.jpg,bee\n"
    "ant/0.jpg,ant\n",
    "lists.jsonl": "\n".join(
        json.dumps({"file_name": name, "labels": labels}) for name, labels in SEVERAL.items()
    ),
    "coco.json": json.dumps(
        {
            "images": [{"id": n, "file_name": name} for n, name in enumerate(FILES)],
            "categories": [{"id": 5, "name": "tree"}, {"id": 2, "name": "bee"},
                           {"id": 1, "name": "ant"}],
            "annotations": [{"image_id": image, "category_id": category}
                            for image, category in ((0, 5), (0, 1), (0, 1), (2, 2))],
        }
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL_LISTS)
def test_several_labels_an_image(name: str, root: Path) -> None:
    source = opened(put(root / name, SEVERAL_LISTS[name]), multi_label=True)
    assert source.classes == ("ant", "bee", "tree")
    assert labelled(source) == SEVERAL


def test_labels_that_are_numbers_stay_what_they_are(root: Path) -> None:
    source = opened(put(root / "list.txt", "ant/0.jpg 7\nant/1.jpg 0\nbee/2.jpg -1\n"))
    assert source.classes == ()
    assert labelled(source) == {"ant/0.jpg": ["7"], "ant/1.jpg": ["0"], "bee/2.jpg": []}
    # As pandas writes whole numbers of which some are missing.
    source = opened(put(root / "list.csv", "path,label\nant/0.jpg,2.0\nant/1.jpg,\n"))
    assert labelled(source) == {"ant/0.jpg": ["2"], "ant/1.jpg": []}
    source = opened(put(root / "several.csv", "path,label\nant/0.jpg,2 0\n"), multi_label=True)
    assert source.classes == ("0", "1", "2")


def test_a_path_of_several_words(root: Path) -> None:
    put(root / "my ants/no 1.jpg", next(iter(jpegs("x").values())))
    source = opened(put(root / "list.txt", "my ants/no 1.jpg tench, Tinca tinca\n"))
    assert labelled(source) == {"my ants/no 1.jpg": ["tench, Tinca tinca"]}


def test_columns_that_are_asked_for(root: Path) -> None:
    text = "path,where,label,breed\nx,ant/0.jpg,1,terrier\ny,bee/2.jpg,1,whippet\n"
    source = opened(put(root / "list.csv", text), image="where", label="breed")
    assert labelled(source) == {"ant/0.jpg": ["terrier"], "bee/2.jpg": ["whippet"]}


def test_a_column_tells_the_split(root: Path) -> None:
    text = "path,label,Split\nant/0.jpg,ant,train\nant/1.jpg,ant,test\nbee/2.jpg,bee,train\n"
    path = put(root / "list.csv", text)
    train, val = opened(path), opened(path, "val")
    assert set(labelled(train)) == {"ant/0.jpg", "bee/2.jpg"}
    assert labelled(val) == {"ant/1.jpg": ["ant"]}
    # Classes are those of the whole list.
    assert train.classes == val.classes == ("ant", "bee")
    assert train.has_splits
    assert val.has_splits
    assert train.fingerprint() != val.fingerprint()
    put(path, text.replace("test", "other"))
    with pytest.raises(
        DataError, match=r"of the split 'val': in its column Split none of val, val"
    ):
        open_source(path, "val")


def test_a_list_beside_it_is_the_other_split(root: Path) -> None:
    train = put(root / "my_train.csv", "path,label\nant/0.jpg,ant\n")
    assert not opened(train).has_splits
    put(root / "my_val.csv", "path,label\nbee/2.jpg,bee\n")
    for path in (train, root / "my_val.csv"):
        for split, expected in (("train", ["ant/0.jpg"]), ("val", ["bee/2.jpg"])):
            source, selection = open_selected(path, Selection(split))  # type: ignore[arg-type]
            assert list(labelled(source)) == expected
            assert selection.val_fraction is None


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_an_image_folder_with_metadata(name: str, root: Path) -> None:
    rows = [{"file_name": file, "label": file[:3]} for file in FILES]
    text = "\n".join(map(json.dumps, rows))
    if name.endswith("csv"):
        text = "file_name,label\n" + "".join(f"{file},{file[:3]}\n" for file in FILES)
    put(root / name, text)
    assert labelled(open_source(root, "train")) == SINGLE
    # One that tells no labels leaves the class folders what they are.
    put(root / name, text.replace("label", "caption"))
    assert not isinstance(open_source(root, "train"), ListSource)


def test_an_image_has_the_name_it_has_in_class_folders(root: Path) -> None:
    """So the same images are held out, however the collection is described."""
    source = opened(put(root / "list.csv", SINGLE_LISTS["header.csv"]))
    folders = open_source(root, "train")
    keys = {int(key) for part in range(len(folders.parts)) for key in folders.members(part)["key"]}
    assert set(source.members(0)["key"].tolist()) == keys


def test_parts_mix_a_list_that_is_sorted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{label}/{n}.jpg" for label in ("ant", "bee") for n in range(100)]
    for name in names:
        put(root / name, b"x")
    monkeypatch.setattr(lists, "_ROWS", 50)
    source = opened(put(root / "list.csv", "".join(f"{name},{name[:3]}\n" for name in names)))
    listings = [source.members(part) for part in range(len(source.parts))]
    assert [len(listing) for listing in listings] == [50] * 4
    together = np.concatenate(listings)
    assert sorted(together["offset"].tolist()) == list(range(200))
    assert all(10 < listing["label"].sum() < 40 for listing in listings)


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.csv", "path,label\nant/0.jpg,ant\nx.jpg,ant\ny.jpg,ant\n", {},
         r"2 of the 3 files it names are not there, such as x\.jpg, y\.jpg; paths are relative to"),
        ("a.csv", "path,label\nant/0.jpg,ant\nant/0.jpg,bee\n", {},
         r"names 1 images twice, such as ant/0\.jpg: leave one row of each; .*multi_label=true"),
        ("a.csv", "path,label\nant/0.jpg,ant|tree\n", {},
         r"several labels, such as ant\|tree: data\.multi_label=true trains on all"),
        ("a.jsonl", '{"path": "ant/0.jpg", "label": ["a", "b"]}', {},
         r"several labels, such as \[\"a\", \"b\"\]: data\.multi_label=true"),
        ("a.csv", "when,who\n1,2\n", {}, r"has columns when, who: none is .*image_column na"),
        ("a.csv", "path,label\nant/0.jpg,ant\n", {"label": "x"}, "no column x of labels; it has p"),
        ("a.csv", "", {}, r"a\.csv is empty"),
        ("a.csv", "path,label\nant/0.jpg\n", {}, r"cannot be read as csv: .*Expected 2 columns"),
        ("a.json", "{", {}, r"cannot be read as json"),
        ("a.json", "[1]", {}, r"entry 1: expected an object, as \{'file_name': …\}"),
        ("a.txt", "ant/0.jpg 1\nreadme\n", {}, r"line 2: 'readme' names no image, as `x\.jpg 3`"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_used_is_explained(
    name: str, content: str, columns: dict[str, Any], message: str, root: Path
) -> None:
    path = put(root / name, content)
    with pytest.raises(DataError, match=message):
        opened(path, **columns).fingerprint()


def test_images_without_labels_are_said_to_be(root: Path) -> None:
    source = opened(put(root / "list.csv", "path,breed\nant/0.jpg,terrier\n"))
    assert labelled(source) == {"ant/0.jpg": []}
    assert "no column is called labels (path, breed)" in source.notes[0]
    assert "data.label_column names one" in source.notes[0]


def test_several_labels_are_read_from_lists_only(root: Path) -> None:
    with pytest.raises(DataError, match=r"of several labels .* are read from a list"):
        open_source(root, "train", columns=Columns(multi_label=True))
    path = put(root / "list.csv", SEVERAL_LISTS["bars.csv"])
    with pytest.raises(DataError, match="labels_per_class chooses images by their one label"):
        open_selected(path, Selection(labels_per_class=1), columns=Columns(multi_label=True))
