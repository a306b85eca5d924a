"""Checkpoints that restore on any layout: canonical order, digests, atomic and asynchronous."""
