"""What touches Ray itself: its start, who can use it, agents, tasks, metrics."""
