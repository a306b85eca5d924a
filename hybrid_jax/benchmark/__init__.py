"""Measures the train step of any layout beside a plain-JAX step of the same model."""
