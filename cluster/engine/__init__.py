"""Sharded training: DeepSpeed's ZeRO behind the few calls that a loop needs."""
