"""Looking into a model: what it reconstructs."""
