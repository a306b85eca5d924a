"""The planner: which strategy suits a model, a cluster and a batch, and why."""
