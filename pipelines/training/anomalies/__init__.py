"""Losses and gradients that are not finite or spike: noted, left out, gone back from, replayed."""
