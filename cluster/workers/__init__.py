"""The processes of a worker: an agent, and the child process that it starts, which trains."""
