"""Parts of the check that test whether results are right."""
