"""Collections that a preset fetches by itself."""
