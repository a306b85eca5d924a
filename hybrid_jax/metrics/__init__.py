"""Where the numbers of a run go: a log that never stalls the step, and its writers."""
