"""Looking into a model: reconstructions, feature collapse, k-nearest-neighbour accuracy."""
