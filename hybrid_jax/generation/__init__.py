"""Text out of a model: sampling, token by token."""
