"""The processes that train: an agent at every worker's place, and the child it keeps there."""
