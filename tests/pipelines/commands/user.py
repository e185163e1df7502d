"""What a user of the analysis commands has and sees: weight files, photographs, pages, pictures."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from convnextv2.encoder import ConvNeXtV2
from convnextv2.fcmae import FCMAE
from convnextv2.weights import Metadata
from pipelines import cli

Model = TypeVar("Model", bound=nn.Module)
POINTERS = ("src", "href", "xlink:href", "action")


def take_photos(root: Path) -> Path:
    """Five images of all shapes in two class folders, and a file that is none."""
    noise = np.random.default_rng(0)
    for number, (height, width) in enumerate([(40, 60), (90, 33), (32, 32), (20, 200), (64, 64)]):
        coarse = noise.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        path = root / f"class {number % 2}" / f"<{number}> & co.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    (root / "broken.jpg").write_bytes(b"no image")
    return root


def fcmae(seed: int = 0) -> FCMAE:
    torch.manual_seed(seed)
    model = FCMAE.from_size("pocket", image_size=32, patch_size=8, stem_stride=1, decoder_dim=16)
    return randomised(model)


def classifier() -> ConvNeXtV2:
    torch.manual_seed(9)
    return randomised(ConvNeXtV2.from_size("pocket", num_classes=4))


def randomised(model: Model) -> Model:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def saved(model: nn.Module, path: Path, metadata: Metadata | None = None) -> Path:
    save_file(model.state_dict(), path, metadata=metadata.as_entries() if metadata else None)
    return path


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def image_of(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


class Page(HTMLParser):
    """What a page shows and where it points."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.targets: list[str] = []
        self.text = ""
        content = path.read_text()
        self.feed(content)
        self.targets += re.findall(r"url\(([^)]*)|@import", content)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.targets += [values[name] or "" for name in POINTERS if name in values]
        if tag == "img":
            self.pictures.append(values["alt"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def self_contained(page: Page) -> bool:
    """Whether all it points to is inside it."""
    return all(target.startswith(("data:", "#")) for target in page.targets)
