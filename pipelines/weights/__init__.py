"""Weight files in pipelines: any that there is as what a stage starts from."""
