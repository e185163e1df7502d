"""Tars read in place: one per class, of class folders, of images alone; ImageNet's own."""
