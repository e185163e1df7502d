"""Benchmarks: `make bench`. All contenders are measured on this machine, in turns."""
