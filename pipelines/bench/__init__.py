"""Benchmarks: `make bench`. Every figure is measured in pairs on this machine, none is stored."""
