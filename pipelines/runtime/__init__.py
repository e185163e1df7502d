"""One invocation of a pipeline: its folder, lock, workers, events, console and tracking."""
