"""Tars read in place: their headers, one tar per class, tars in tars, ImageNet's validation tar."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from convnextv2.data.collection import DataError
from convnextv2.data.sources import open_source
from convnextv2.data.sources.tars.archive import Archive, Entry
from tests.convnextv2.data.fixtures.archives import (
    everything,
    jpegs,
    labels_by_file,
    listed,
    put,
    tar,
)

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
SYNSETS = ("n01440764", "n01443537", "n02084071")

# Headers


def walked(path: Path) -> list[Entry]:
    archive = Archive(path, str(path))
    with archive.open() as file:
        return list(archive.entries(file))


@pytest.mark.parametrize(
    "kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str
)
def test_the_walk_finds_what_tarfile_finds(tmp_path: Path, kind: int) -> None:
    names = ["a.jpg", "b/c.jpg", "d" * 99, "e" * 60 + "/" + "f" * 90]
    names += ["g" * 300, "h" * 101 + "/é.jpg"] if kind != tarfile.USTAR_FORMAT else []
    files = {name: bytes([number]) * (number * 400) for number, name in enumerate(names)}
    path = put(tmp_path / "x.tar", tar(files, kind))

    entries = walked(path)

    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset, m.offset_data, m.size) for m in archive]
    assert [tuple(entry) for entry in entries] == expected
    content = path.read_bytes()
    assert {e.name: content[e.offset : e.offset + e.size] for e in entries} == files


def test_a_walk_may_begin_at_any_member(tmp_path: Path) -> None:
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = put(tmp_path / "x.tar", tar({"a" * 200: b"1", "b": b"22", "c" * 150: b"333"}, kind))
        entries = walked(path)
        archive = Archive(path, "x")
        with archive.open() as file:
            for number, entry in enumerate(entries):
                assert list(archive.entries(file, entry.start)) == entries[number:]


def test_only_regular_files_are_found_whatever_else_is_there(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"}
    ) as archive:
        for name, kind in (
            ("folder", tarfile.DIRTYPE),
            ("link", tarfile.SYMTYPE),
            ("hard", tarfile.LNKTYPE),
            ("pipe", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "l" * 200
            archive.addfile(member)
        member = tarfile.TarInfo("file")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    assert [entry.name for entry in walked(put(tmp_path / "x.tar", file.getvalue()))] == ["file"]


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    raw = bytearray(512)
    raw[: len(name)], raw[124 : 124 + len(size)], raw[156:157] = name, size, kind
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


END = bytes(1024)


def test_sizes_may_be_binary_or_in_a_pax_record(tmp_path: Path) -> None:
    binary = header(b"binary", b"\x80" + (3).to_bytes(11, "big")) + b"abc".ljust(512, b"\0")
    record = b"10 size=4\n"
    pax = header(b"pax", b"%011o\0" % len(record), b"x") + record.ljust(512, b"\0")
    pax += header(b"long", b"%011o\0" % 0) + b"defg".ljust(512, b"\0")
    entries = walked(put(tmp_path / "x.tar", binary + pax + END))
    assert [(entry.name, entry.size) for entry in entries] == [("binary", 3), ("long", 4)]


GOOD = header(b"a.jpg", b"%011o\0" % 3) + b"abc".ljust(512, b"\0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x\.tar is no tar: byte 0: cut short"),
        (b"\xff\xd8\xff" + bytes(range(256)) * 9, r"x\.tar is no tar: byte 0: no header"),
        (b"<html>" * 300, r"x\.tar is no tar: byte 0: no header"),
        (GOOD, r"a damaged tar: byte 1,024: cut short, there is no end mark"),
        (GOOD + GOOD[:514], r"a damaged tar: byte 1,024: cut short, 3 bytes should follow"),
        (GOOD + b"\1" * 512 + END, r"a damaged tar: byte 1,024: no header is there"),
        (GOOD[:512] + b"abc" + GOOD + END, r"a damaged tar: byte 1,024: no header is there"),
        (header(b"a", b"12x4567\0") + END, r"no tar: byte 0: no header is there"),
        (header(b"a", b"%011o\0" % (2 << 20), b"L") + bytes(3 << 20), r"a name of 2,097,152 bytes"),
        (header(b"a", b"%011o\0" % 9, b"x") + b"0 size=4\n".ljust(512, b"\0") + END, "a record of"),
        (header(b"a", b"%011o\0" % 9, b"x") + b"size=4567".ljust(512, b"\0") + END, "no tar"),
    ],
    ids=["empty", "jpeg", "html", "no end", "short", "no header", "shifted", "size", "name", "zero",
         "record"],
)  # fmt: skip
def test_a_damaged_tar_is_named_with_the_place(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        walked(put(tmp_path / "x.tar", content))


def test_every_truncation_is_found(tmp_path: Path) -> None:
    whole = tar(jpegs("a.jpg", "b" * 150 + ".jpg"))
    end = walked(put(tmp_path / "x.tar", whole))[-1]
    last = end.offset + -(-end.size // 512) * 512
    for length in [*range(0, last, 97), last, last + 511]:
        path = put(tmp_path / "x.tar", whole[:length])
        with pytest.raises(
            DataError, match=r"x\.tar is (no|a damaged) tar: byte [\d,]+: cut short"
        ):
            walked(path)


# One tar per class


def put_class_tars(root: Path, per_class: int = 2, prefix: str = "") -> Path:
    for synset in SYNSETS:
        names = [f"{prefix}{synset}_{number}.JPEG" for number in range(per_class)]
        put(root / f"{synset}.tar", tar({**jpegs(*names), "readme.txt": b"no image"}))
    return root


def test_a_folder_of_synset_tars_has_a_class_for_each(tmp_path: Path) -> None:
    source = open_source(put_class_tars(tmp_path), "train")
    assert source.classes == SYNSETS
    assert source.parts == [f"{tmp_path}/{synset}.tar" for synset in SYNSETS]
    assert not source.has_splits
    found = everything(source)
    assert [(stored.name, label) for stored, label in found] == [
        (f"{tmp_path}/{synset}.tar:{synset}_{number}.JPEG", label)
        for label, synset in enumerate(SYNSETS)
        for number in range(2)
    ]
    assert [stored.content for stored, _ in found[:2]] == list(jpegs("0", "1").values())
    members = source.members(0)
    assert members.itemsize == 24
    assert members["size"].tolist() == [len(content) for content in jpegs("0", "1").values()]


def test_class_tars_may_have_any_names_and_lie_in_split_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("dog", "cat"):
            put(tmp_path / split / f"{name}.tar", tar(jpegs(f"{split}.jpg")))
    for split in ("train", "val"):
        source = open_source(tmp_path, "train" if split == "train" else "val")
        assert source.classes == ("cat", "dog")
        assert source.has_splits
        assert [stored.name for stored, _ in everything(source)] == [
            f"{tmp_path}/{split}/{name}.tar:{split}.jpg" for name in ("cat", "dog")
        ]


def test_a_tar_of_tars_is_read_where_it_lies(tmp_path: Path) -> None:
    loose = put_class_tars(tmp_path / "loose")
    # Not in the order of the names, and in a folder.
    inner = {f"whole/{name}.tar": (loose / f"{name}.tar").read_bytes() for name in SYNSETS[::-1]}
    path = put(tmp_path / "fall11_whole.tar", tar(inner))

    source = open_source(path, "train")

    assert source.classes == SYNSETS
    assert source.parts == [f"{path}:{synset}.tar" for synset in SYNSETS]
    apart = everything(open_source(loose, "train"))
    assert [(s.content, label) for s, label in everything(source)] == [
        (s.content, label) for s, label in apart
    ]
    assert everything(source)[0][0].name == f"{path}:n01440764.tar:n01440764_0.JPEG"
    # The offsets are those of the outer file, so the listing of a part is all that is needed.
    members = source.members(1)[1:]
    assert [stored.name for stored in source.read(1, members)] == [
        f"{path}:n01443537.tar:n01443537_1.JPEG"
    ]
    assert sorted(tmp_path.iterdir()) == [path, loose]


def test_a_class_tar_cut_short_inside_its_tar_is_named(tmp_path: Path) -> None:
    short = tar(jpegs("a.jpg"))[:700]
    whole = tar(jpegs("b.jpg"))
    path = put(tmp_path / "all.tar", tar({"n01440764.tar": short, "n01443537.tar": whole}))
    source = open_source(path, "train")
    with pytest.raises(DataError, match=r"all\.tar:n01440764\.tar is no tar: byte 512: cut short"):
        source.members(0)
    assert len(source.members(1)) == 1


def test_the_same_class_twice_in_a_tar_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "all.tar", tar({"a/x.tar": tar({}), "b/x.tar": tar({})}))
    with pytest.raises(DataError, match=r"all\.tar holds x\.tar twice"):
        open_source(path, "train")


def test_a_source_is_small_and_travels(tmp_path: Path) -> None:
    source = open_source(put_class_tars(tmp_path, per_class=50), "train")
    packed = pickle.dumps(source)
    assert pickle.loads(packed) == source
    assert len(packed) < 1000


def test_images_that_are_no_longer_where_they_were_are_noticed(tmp_path: Path) -> None:
    source = open_source(put_class_tars(tmp_path), "train")
    members = source.members(0)
    put(tmp_path / "n01440764.tar", tar(jpegs("n01440764_7.JPEG", "n01440764_8.JPEG")))
    with pytest.raises(DataError, match=r"n01440764_7\.JPEG was not there when"):
        list(source.read(0, members))
    (tmp_path / "n01440764.tar").unlink()
    with pytest.raises(DataError, match=r"n01440764\.tar cannot be opened"):
        list(source.read(0, members))


def test_the_fingerprint_tells_names_and_sizes(tmp_path: Path) -> None:
    def fingerprint() -> str:
        return open_source(tmp_path, "train").fingerprint()

    before = put_class_tars(tmp_path) and fingerprint()
    assert fingerprint() == before
    put_class_tars(tmp_path, per_class=30)
    assert fingerprint() != before
    put_class_tars(tmp_path)
    assert fingerprint() == before
    (tmp_path / f"{SYNSETS[0]}.tar").rename(tmp_path / "n09999999.tar")
    assert fingerprint() != before


@pytest.mark.parametrize("prefix", ["", "./", "n01440764/", "./train/n01440764/"])
def test_keys_are_those_of_class_folders_however_a_tar_was_made(
    tmp_path: Path, prefix: str
) -> None:
    names = [f"n01440764_{number}.JPEG" for number in range(20)] + ["deep/1.jpg"]
    put(tmp_path / "tars/n01440764.tar", tar(jpegs(*(prefix + name for name in names))))
    for name, content in jpegs(*names).items():
        put(tmp_path / "folders/n01440764" / name, content)
    put(tmp_path / "whole.tar", tar({"n01440764.tar": tar(jpegs(*names))}))

    folder, *tars = (
        listed(open_source(tmp_path / name, "train"))[0]
        for name in ("folders", "tars", "whole.tar")
    )

    assert len(folder) == 21
    for packed in tars:
        assert sorted(packed["key"]) == sorted(folder["key"])


# ImageNet-1K as distributed

VAL_NAMES = [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 7)]
VAL_CLASSES = [SYNSETS[number] for number in (2, 0, 1, 1, 0, 2)]
EXPECTED = dict(zip(VAL_NAMES, VAL_CLASSES, strict=True))


def put_imagenet(root: Path, train: bool = True) -> Path:
    loose = put_class_tars(root / "unpacked")
    if train:
        inner = {f"{name}.tar": (loose / f"{name}.tar").read_bytes() for name in SYNSETS}
        put(root / "ilsvrc" / TRAIN, tar(inner))
    # The images do not lie in the order of their names.
    put(root / "ilsvrc" / VAL, tar(jpegs(*VAL_NAMES[3:], *VAL_NAMES[:3])))
    return root / "ilsvrc"


def meta_mat() -> bytes:
    """As in the devkit: IDs are not in the order of the synsets, and inner nodes come after."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.array(
        [
            (3, SYNSETS[0], "tench", 0),
            (1, SYNSETS[1], "goldfish", 0),
            (2, SYNSETS[2], "dog", 0),
            (4, "n00001740", "entity", 3),
        ],
        dtype=kinds,
    ).reshape(-1, 1)
    file = io.BytesIO()
    savemat(file, {"synsets": synsets})
    return file.getvalue()


IDS = "".join(f"{(3, 1, 2)[SYNSETS.index(synset)]}\n" for synset in VAL_CLASSES)
DEVKIT = "ILSVRC2012_devkit_t12/data"
TRUTH = f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt"


def devkit() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as kit:
        for name, content in ((TRUTH, IDS.encode()), (f"{DEVKIT}/meta.mat", meta_mat())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            kit.addfile(member, io.BytesIO(content))
    return packed.getvalue()


NUMBERED = "".join(f"{name} {SYNSETS.index(synset)}\n" for name, synset in EXPECTED.items())
KAGGLE = "ImageId,PredictionString\n" + "".join(
    f"{name.removesuffix('.JPEG')},{synset} 1 2 30 40 {synset} 5 6 70 80 \n"
    for name, synset in reversed(EXPECTED.items())
)
LABEL_FILES: list[dict[str, bytes | str]] = [
    {"imagenet_2012_validation_synset_labels.txt": "\n".join(VAL_CLASSES) + "\n"},
    {"LOC_val_solution.csv": KAGGLE},
    {"val.txt": NUMBERED},
    {"ILSVRC2012_devkit_t12.tar.gz": devkit()},
    {TRUTH: IDS, f"{DEVKIT}/meta.mat": meta_mat()},
]


@pytest.mark.parametrize("files", LABEL_FILES, ids=lambda files: next(iter(files)))
@pytest.mark.parametrize("given", [False, True], ids=["beside", "given"])
def test_each_label_file_gives_the_classes_of_the_validation_images(
    tmp_path: Path, files: dict[str, bytes | str], given: bool
) -> None:
    root = put_imagenet(tmp_path)
    places = [put((tmp_path / "labels" if given else root) / n, c) for n, c in files.items()]
    train = open_source(root, "train", labels=places[0] if given else None)
    val = open_source(root, "val", labels=places[0] if given else None)
    assert train.classes == val.classes == SYNSETS
    assert train.has_splits
    assert val.has_splits
    assert labels_by_file(val) == EXPECTED
    assert [stored.content for stored, _ in everything(val)] == list(jpegs(*"123456").values())
    assert len(everything(train)) == 6


def test_class_numbers_need_the_synsets_from_somewhere(tmp_path: Path) -> None:
    root = put_imagenet(tmp_path, train=False)
    put(root / "val.txt", NUMBERED)
    with pytest.raises(DataError, match=r"which synsets they are is read from one of synsets\.txt"):
        open_source(root, "val")
    put(root / "synset_words.txt", "".join(f"{synset} a word\n" for synset in SYNSETS))
    assert labels_by_file(open_source(root, "val")) == EXPECTED


def test_a_validation_tar_without_labels_says_which_would_do(tmp_path: Path) -> None:
    root = put_imagenet(tmp_path)
    with pytest.raises(DataError, match=r"given as --labels: one of imagenet_2012_val.*devkit_t12"):
        open_source(root, "val")
    with pytest.raises(DataError, match=r"needs its label file"):
        open_source(root / VAL, "val")
    assert open_source(root, "train").classes == SYNSETS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("val.txt", "", "label file .* is empty"),
        ("val.txt", "once upon a time", r"is no label file of ImageNet's .*; understood are"),
        ("val.txt", NUMBERED.replace(" 2", " 3"), "has class 3, but there are only 3 synsets"),
        (
            "val.txt",
            NUMBERED[:-31],
            r"lacks 1 labels, such as that of ILSVRC2012_val_00000006\.JPEG",
        ),
        ("val.txt", "n01440764\n" * 5, "has 5 labels, the tar 6 images"),
        ("val.txt", "n01440764\n" * 5 + "n99999999", "has class n99999999, which .* has not"),
        ("val.txt", IDS, r"put the devkit's data/meta\.mat beside it"),
        ("gone.txt", None, "cannot be read"),
        ("kit.tar.gz", b"no tar", "cannot be read"),
        ("kit.tar", tar({"a": b""}), "has no ILSVRC2012_validation_ground_truth.txt"),
    ],
)
def test_label_files_that_do_not_do_are_explained(
    tmp_path: Path, name: str, content: bytes | str | None, message: str
) -> None:
    root = put_imagenet(tmp_path)
    if content is not None:
        put(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        open_source(root, "val", labels=tmp_path / name)


def test_a_tar_of_images_is_unlabelled(tmp_path: Path) -> None:
    path = put(tmp_path / "photos.tar", tar(jpegs("./one.jpg", "two.png", "._two.png")))
    source = open_source(path, "train")
    assert source.classes == ()
    assert [(stored.name, label) for stored, label in everything(source)] == [
        (f"{path}:./one.jpg", -1),
        (f"{path}:two.png", -1),
    ]
