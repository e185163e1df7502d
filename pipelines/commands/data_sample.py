"""Command `data sample`: a picture of what a training batch looks like."""

import argparse
import json
from pathlib import Path

from pipelines.commands import Commands, command
from pipelines.commands.recipe import add_recipe_options, chosen_config
from pipelines.graph.kinds import training_sections


def add_sample_command(verbs: Commands) -> None:
    """Add the verb `sample`."""
    sample = command(
        verbs,
        "sample",
        "a contact sheet (PNG) of augmented training images",
        "convnextv2 data sample shards/train --output sheet.png --preset imagenet1k",
        _act_sample,
    )
    sample.add_argument("folder", type=Path, help="a folder of shards")
    sample.add_argument(
        "--output", type=Path, default=Path("sheet.png"), help="PNG file (default: sheet.png)"
    )
    add_recipe_options(sample, default="imagenet1k")
    sample.add_argument(
        "--stage",
        choices=training_sections(),
        default="finetune",
        help="whose augmentation is shown (default: finetune)",
    )
    sample.add_argument("--count", type=int, default=64, help="images (default: 64)")
    sample.add_argument("--epoch", type=int, default=0, help="whose first batch (default: 0)")


def _act_sample(options: argparse.Namespace) -> int:
    from convnextv2.data.collection import RGB
    from convnextv2.data.loading.contact_sheet import contact_sheet
    from convnextv2.data.loading.loader import BetonLoader
    from convnextv2.data.order.global_order import GlobalOrder
    from convnextv2.data.shards.manifest import read_manifest
    from pipelines.config.recipe_checks import changes_of_colours
    from pipelines.config.resolve import refuse
    from pipelines.training.data.transforms import augmentation, image_size_of, training_view

    config = chosen_config(options, options.set)
    recipes = config.recipes()
    if options.stage not in recipes:
        raise ValueError(
            f"{config.name} has no {options.stage}; --stage {' or '.join(recipes)} would work"
        )
    recipe = recipes[options.stage]
    augment = recipe.augment
    manifest = read_manifest(options.folder)
    if manifest.pixel_format != RGB:
        images = f"the images have {manifest.pixel_format}"
        refuse(
            [f"{options.stage}.{problem}" for problem in changes_of_colours(recipe, images)],
            f"the settings, for the images of {options.folder} (--set changes them)",
        )
    count = min(options.count, manifest.samples)
    # Mixing takes pairs.
    count -= count % 2 if augment.mixup or augment.cutmix else 0
    if count < 1:
        raise ValueError(f"--count {options.count}: no image is left to show")
    loader = BetonLoader(
        options.folder,
        batch_size=count,
        view=training_view(image_size_of(recipe, config.model), augment),
        augment=augmentation(augment),
        seed=config.seed,
        num_workers=config.data.num_workers,
        batches_ahead=1,
    )
    order = GlobalOrder(manifest.samples, count, config.seed)
    batches = loader.batches(order.batch(options.epoch, 0), options.epoch)
    sheet = contact_sheet(next(batches), manifest.classes, manifest.normalization)
    sheet.save(options.output, format="PNG")
    batches.close()
    if options.json:
        drawn = {
            "file": str(options.output),
            "folder": str(options.folder),
            "images": count,
            "epoch": options.epoch,
            "stage": options.stage,
        }
        print(json.dumps(drawn, indent=1))
    else:
        print(f"{options.output}: {count} images of {options.folder}, epoch {options.epoch}")
    return 0
