"""Which sample comes when: a pure function of (seed, epoch), for every world size the same."""
