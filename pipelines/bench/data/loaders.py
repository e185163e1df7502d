"""The contenders: each yields random crops (0.2 to 1 of the area, 224 px, half of them flipped).

All but the bare loops yield uint8 batches of 64. Each contender imports its own libraries, because
it runs in a process of its own.
"""

import io
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.bench.data import BATCH, CROP, SCALE, WORKERS
from pipelines.bench.data.epochs import Epoch
from pipelines.bench.data.photographs import Photographs
from pipelines.config import AugmentConfig

if TYPE_CHECKING:
    from convnextv2.data.loading.views import Decode

DEFAULT = AugmentConfig(crop_scale=SCALE)
AREA = AugmentConfig(crop_scale=SCALE, interpolation="area")
FINE_TUNING = AugmentConfig(
    crop_scale=SCALE, rand_augment=9.0, random_erasing=0.25, mixup=0.8, cutmix=1.0
)


def decoding(decode: "Decode") -> AugmentConfig:
    """The default augmentation with this decoding mode."""
    return AugmentConfig(crop_scale=SCALE, decode=decode)


def ours(photographs: Photographs, crop: int = CROP, augment: AugmentConfig = DEFAULT) -> Epoch:
    """Our loader."""
    from convnextv2.data.loading.loader import BetonLoader
    from pipelines.training.data.transforms import augmentation, training_view

    loader = BetonLoader(
        photographs.shards,
        batch_size=BATCH,
        view=training_view(crop, augment),
        augment=augmentation(augment),
        num_workers=WORKERS,
    )
    return lambda number: sum(
        len(batch.labels) for batch in loader.batches(photographs.order(number), number)
    )


def bare_area(photographs: Photographs) -> Epoch:
    """Decode, crop and resize by FFCV's own C functions: libjpeg-turbo and OpenCV's INTER_AREA."""
    from ffcv.libffcv import ctypes_imdecode, ctypes_resize

    contents = [np.frombuffer(content, np.uint8) for content in photographs.contents()]
    sizes = _sizes(photographs)
    largest = max(height * width for height, width in sizes)

    def view(sample: int, box: tuple[int, int, int, int], pixels: Any, out: Any) -> None:
        content, (height, width) = contents[sample], sizes[sample]
        top, left, tall, wide = box
        ctypes_imdecode(
            *(content.ctypes.data, content.size, height, width, pixels.ctypes.data),
            *(height, width, 0, 0, 1, 1, False, False),
        )
        ctypes_resize(
            *(0, pixels.ctypes.data, height, width),
            *(top, top + tall, left, left + wide, out.ctypes.data, CROP, CROP),
        )

    def run(part: list[tuple[int, tuple[int, int, int, int]]]) -> int:
        pixels, out = np.empty(largest * 3, np.uint8), np.empty((CROP, CROP, 3), np.uint8)
        for sample, box in part:
            view(sample, box, pixels, out)
        return len(part)

    return _in_threads(photographs, run)


def bare_bicubic(photographs: Photographs) -> Epoch:
    """Decode, crop and resize by Pillow, which uses libjpeg-turbo."""
    from PIL import Image

    contents = photographs.contents()

    def run(part: list[tuple[int, tuple[int, int, int, int]]]) -> int:
        for sample, (top, left, tall, wide) in part:
            image = Image.open(io.BytesIO(contents[sample]))
            cut = image.crop((left, top, left + wide, top + tall))
            cut.resize((CROP, CROP), Image.Resampling.BICUBIC)
        return len(part)

    return _in_threads(photographs, run)


def _sizes(photographs: Photographs) -> list[tuple[int, int]]:
    from PIL import Image

    images = [Image.open(io.BytesIO(content)) for content in photographs.contents()]
    return [(image.height, image.width) for image in images]


def _in_threads(
    photographs: Photographs, run: Callable[[list[tuple[int, tuple[int, int, int, int]]]], int]
) -> Epoch:
    """Draw the crops once, before timing; an epoch is to `run` them in threads, one per worker."""
    from convnextv2.data.loading.views import RandomView, random_crop

    numbers = RandomView(size=(CROP, CROP), scale=SCALE).parameters[1]
    sizes = _sizes(photographs)
    order = photographs.order(0)
    boxes = [
        random_crop(numbers, np.uint64(0), np.uint64(copy), sample, *sizes[int(sample)])[:4]
        for copy, sample in enumerate(order)
    ]
    crops = list(zip(map(int, order), boxes, strict=True))
    threads = ThreadPoolExecutor(WORKERS)
    return lambda _: sum(threads.map(run, [crops[n::WORKERS] for n in range(WORKERS)]))


def ffcv(photographs: Photographs) -> Epoch:
    """FFCV's own loader on the same .beton file."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor

    (path,) = photographs.shards.glob("*.beton")
    crop = RandomResizedCropRGBImageDecoder((CROP, CROP), scale=SCALE)
    loader = Loader(
        str(path),
        batch_size=BATCH,
        num_workers=WORKERS,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=False,
        indices=photographs.order(0),
        pipelines={
            "image": [crop, RandomHorizontalFlip(), ToTensor()],
            "label": [IntDecoder(), ToTensor()],
        },
    )
    return lambda _: _count(loader)


def torchvision(photographs: Photographs) -> Epoch:
    """ImageFolder and PyTorch's DataLoader."""
    from torch.utils.data import DataLoader

    dataset = _image_folder(photographs)
    dataset.transform = _torchvision_transform()
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    return lambda _: _count(loader)


def timm(photographs: Photographs) -> Epoch:
    """Timm's create_loader, without the prefetcher, which needs a GPU."""
    import torch
    from timm.data import create_loader, create_transform

    dataset = _image_folder(photographs)
    loader = create_loader(
        dataset,
        CROP,
        BATCH,
        is_training=True,
        num_workers=WORKERS,
        use_prefetcher=False,
        device=torch.device("cpu"),
    )
    # The default of create_loader would normalise here, to float32: four times the bytes.
    dataset.transform = create_transform(
        CROP,
        is_training=True,
        scale=SCALE,
        color_jitter=None,
        interpolation="bicubic",
        normalize=False,
    )
    return lambda _: _count(loader)


def webdataset(photographs: Photographs) -> Epoch:
    """WebDataset on tars of the same files, in PyTorch's DataLoader."""
    import webdataset as wds

    transform = _torchvision_transform()
    dataset = (
        wds.WebDataset(photographs.tars * photographs.passes, shardshuffle=100)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(transform, int)
        .batched(BATCH)
    )
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=WORKERS, persistent_workers=True)
    return lambda _: _count(loader)


def _image_folder(photographs: Photographs) -> Any:
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(photographs.files))
    dataset.samples = dataset.samples * photographs.passes
    return dataset


def _torchvision_transform() -> Any:
    from torchvision import transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(CROP, SCALE, interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )


def _count(batches: Iterable[Any]) -> int:
    return sum(len(labels) for _, labels in batches)


BARE, REFERENCE = "bare loop, area", "ours, bicubic"
CONTENDERS: dict[str, Callable[[Photographs], Epoch]] = {
    BARE: bare_area,
    "bare loop, bicubic (Pillow)": bare_bicubic,
    REFERENCE: ours,
    "ours, area": partial(ours, augment=AREA),
    "ours, bicubic, decode=exact": partial(ours, augment=decoding("exact")),
    "ours, bicubic, decode=full": partial(ours, augment=decoding("full")),
    "ours, bicubic, fine-tuning recipe": partial(ours, augment=FINE_TUNING),
    "FFCV's own loader (area)": ffcv,
    "torchvision ImageFolder + DataLoader": torchvision,
    "timm create_loader": timm,
    "WebDataset": webdataset,
}
