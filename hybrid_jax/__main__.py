"""`python -m hybrid_jax`, the same as the command `hybrid-jax`."""

import sys

from hybrid_jax.cli import main

sys.exit(main())
