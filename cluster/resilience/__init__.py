"""Recovery of worker groups: finding faults, starting again, incidents, goodput, test faults."""
