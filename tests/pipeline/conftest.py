"""Hypothesis draws a valid `Schedule` of any kind and size for `st.from_type(Schedule)`."""

from hypothesis import strategies as st

from hybrid_jax.pipeline.schedules import Schedule, forward_only, schedule


@st.composite
def schedules(draw) -> Schedule:
    """Any schedule with up to 6 stages, 16 microbatches and 4 chunks."""
    name = draw(st.sampled_from(["gpipe", "1f1b", "interleaved", "forward_only"]))
    stages = draw(st.integers(1, 6))
    if name == "interleaved":
        stages = max(stages, 2)
    fewest, most = {"interleaved": (2, 4), "forward_only": (1, 4)}.get(name, (1, 1))
    chunks = draw(st.integers(fewest, most))
    if chunks > 1:
        microbatches = stages * draw(st.integers(1, 16 // stages))
    else:
        microbatches = draw(st.integers(1, 16))
    if name == "forward_only":
        return forward_only(stages, microbatches, chunks)
    return schedule(name, stages, microbatches, chunks)


st.register_type_strategy(Schedule, schedules())
