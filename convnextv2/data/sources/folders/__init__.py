"""Folders of image files: class folders, and Tiny-ImageNet's validation images."""

from convnextv2.data.sources.folders.class_folders import FolderSource, has_images, open_folders
from convnextv2.data.sources.folders.tiny_imagenet import ANNOTATIONS, open_tiny_val

__all__ = ["ANNOTATIONS", "FolderSource", "has_images", "open_folders", "open_tiny_val"]
