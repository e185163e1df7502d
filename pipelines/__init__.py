"""What we run: recipes, stages, tracking and the command line."""
