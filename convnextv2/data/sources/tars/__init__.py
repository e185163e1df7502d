"""Tars read in place: a tar per class, a tar of class folders, a tar of images, ImageNet's own."""
