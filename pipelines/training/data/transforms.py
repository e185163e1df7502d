"""Views and augmentation of images, from the settings."""

from convnextv2.data.augment import Augment, ColorJitter, Mixing, RandAugment, RandomErasing
from convnextv2.data.loading.views import CenterView, RandomView, SquashView, View
from pipelines.config import (
    AugmentConfig,
    EvaluateConfig,
    FinetuneConfig,
    ModelConfig,
    TrainConfig,
)

SQUASH_FROM = 384


def image_size_of(recipe: TrainConfig | None, model: ModelConfig) -> int:
    """Side in pixels that a recipe trains at, and is evaluated at."""
    own = recipe.image_size if isinstance(recipe, FinetuneConfig) else None
    return own or model.image_size


def training_view(image_size: int, augment: AugmentConfig) -> RandomView:
    """The random crop and flip of a training image."""
    return RandomView(
        size=(image_size, image_size),
        scale=augment.crop_scale,
        ratio=augment.crop_ratio,
        flip=augment.flip,
        interpolation=augment.interpolation,
        decode=augment.decode,
    )


def augmentation(augment: AugmentConfig) -> Augment:
    """The augmentations of a training view; those whose setting is zero are left out."""
    strength = augment.color_jitter
    return Augment(
        color_jitter=ColorJitter(strength, strength, strength) if strength else None,
        rand_augment=RandAugment(augment.rand_augment, augment.rand_augment_std)
        if augment.rand_augment
        else None,
        random_erasing=RandomErasing(augment.random_erasing) if augment.random_erasing else None,
        mixing=Mixing(augment.mixup, augment.cutmix) if augment.mixup or augment.cutmix else None,
    )


def evaluation_view(image_size: int, evaluate: EvaluateConfig) -> View:
    """The view of a validation image, as the official code has it: a centre crop below 384 px, the
    whole image squashed to a square from 384 px on.
    """
    size = (image_size, image_size)
    squash = evaluate.crop_mode == "squash" or (
        evaluate.crop_mode == "auto" and image_size >= SQUASH_FROM
    )
    if squash:
        return SquashView(size=size, interpolation=evaluate.interpolation)
    return CenterView(size=size, crop=evaluate.crop, interpolation=evaluate.interpolation)
