"""Labels: their classes by name, images with several labels, how many there are of each."""
