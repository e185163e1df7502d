"""Weight files of a pipeline: those a stage starts from, and those made of its checkpoints."""
