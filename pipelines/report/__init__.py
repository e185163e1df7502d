"""The pages people look at: what came out, how it came about, what it took."""
