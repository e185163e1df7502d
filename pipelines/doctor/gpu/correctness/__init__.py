"""Parts of the check that say whether results are right."""
