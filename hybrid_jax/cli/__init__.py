"""The command line: `hybrid-jax train CONFIG [section.field=value ...]` and its siblings."""

from hybrid_jax.cli.main import main

__all__ = ["main"]
