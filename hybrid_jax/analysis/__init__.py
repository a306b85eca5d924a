"""Explains a compiled train step: collectives per mesh axis, memory, parameters, bubble."""
