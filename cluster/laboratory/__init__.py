"""Ray clusters of several nodes on one machine, to try out what happens when parts of them fail."""
