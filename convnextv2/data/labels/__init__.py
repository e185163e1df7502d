"""Labels: classes by name, images with several labels, and how many images each class has."""
