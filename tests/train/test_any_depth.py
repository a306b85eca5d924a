"""Any depth on any number of stages: the empty places change nothing, and stay zero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import decoder, plain_batch, ragged_batch

import hybrid_jax as hj
from hybrid_jax import Strategy, UserError, make_mesh, make_train_step
from hybrid_jax.analysis.ledger import ledger
from hybrid_jax.analysis.parameters import parameter_table
from hybrid_jax.sharding.placement import path_name

F32 = {"precision": "f32"}
INTERLEAVED = Strategy(
    stage=2, data=2, microbatches=2, schedule="interleaved", chunks=2, remat="none", **F32
)
LAYOUTS = [
    pytest.param(5, Strategy(stage=3, data=2, microbatches=2), id="5 layers on 3 stages"),
    pytest.param(5, Strategy(stage=2, data=2, zero=3, microbatches=2), id="5 on 2 with zero 3"),
    pytest.param(5, INTERLEAVED, id="5 on 2 stages x 2 chunks"),
    pytest.param(6, INTERLEAVED, id="6 on 2 stages x 2 chunks"),
    pytest.param(
        7,
        Strategy(stage=4, model=2, microbatches=2, schedule="gpipe", remat="stage"),
        id="7 on 4 stages with gpipe",
    ),
]


def make(layers, strategy, style="llama", **options):
    mesh = make_mesh(strategy, jax.devices()[: strategy.num_devices])
    # A small `eps` would blow up the rounding of gradients that are nearly zero.
    tx = optax.adamw(1e-2, eps=1e-4, weight_decay=0.1)
    return make_train_step(decoder(style, num_layers=layers), tx, strategy, mesh, **options)


def padding(train, state):
    """Returns what the padded places of every stacked array of a state hold, by its path."""
    parts = train.strategy.stage * train.strategy.chunks
    layers = train.model.num_layers
    per_group = -(-layers // parts)
    slots = np.arange(parts).reshape(-1, train.strategy.stage).T.ravel()
    depth = (slots[:, None] * per_group + np.arange(per_group)).ravel()
    canonical = jax.tree.leaves(train.abstract_canonical_state())
    found = {}
    for (path, leaf), want in zip(
        jax.tree_util.tree_leaves_with_path(jax.device_get(state)), canonical, strict=True
    ):
        if leaf.shape != want.shape:
            found[path_name(path)] = leaf[depth >= layers]
    return found


@pytest.mark.parametrize(("layers", "strategy"), LAYOUTS)
def test_any_depth_equals_one_device(layers, strategy):
    model = decoder("gpt2" if layers == 7 else "llama", num_layers=layers, dropout=0.1)
    report = hj.check_parity(model, [strategy], batch=ragged_batch(), bubble_value=np.nan)
    report.raise_if_different()


@pytest.mark.parametrize(("layers", "strategy"), LAYOUTS)
@pytest.mark.slow
def test_updates_equal_those_of_one_device(layers, strategy):
    """With weight decay and clipping: padding adds nothing to either, nor to the norm."""
    states, norms = [], []
    for layout in (Strategy(**F32), hj.Strategy(**{**vars(strategy), **F32})):
        train = make(layers, layout, clip_norm=0.5)
        state = train.init(jax.random.key(0))
        for seed in range(2):
            state, metrics = train.step(state, plain_batch(seed=seed))
        norms.append(metrics["grad_norm"])
        states.append(jax.device_get(train.canonical_state(state)))
    np.testing.assert_allclose(*norms, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *states)


@pytest.mark.parametrize("style", ["gpt2", "llama"])
@pytest.mark.parametrize("remat", ["none", "dots", "layer", "stage"])
def test_padding_stays_zero(remat, style):
    strategy = Strategy(stage=3, microbatches=2, remat=remat)
    train = make(5, strategy, style=style)
    state = train.init(jax.random.key(0))
    for seed in range(2):
        state, _ = train.step(state, plain_batch(seed=seed))
    places = padding(train, state)
    assert sum(name.startswith("opt_state") for name in places) > 10
    for name, leaf in places.items():
        assert leaf.shape[0] == 1, name
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf), err_msg=name)


class Hostile(hj.models.Decoder):
    """Divides by a parameter and takes its logarithm: padding is 0/0 forward and backward."""

    def init(self, key):
        params = super().init(key)
        params["blocks"]["gain"] = jnp.ones((self.num_layers, 1))
        return params

    def axes(self):
        axes = super().axes()
        return {**axes, "blocks": {**axes["blocks"], "gain": ("layers", None)}}

    def layer(self, params, carry, batch, ctx=None):
        rest = {name: part for name, part in params.items() if name != "gain"}
        gain = params["gain"][0]
        return super().layer(rest, carry / gain * (1 + jnp.log(gain)), batch, ctx)


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_a_layer_that_cannot_bear_zeros_is_padded_all_the_same(zero):
    model = Hostile(decoder(num_layers=5).config)
    strategy = Strategy(stage=2, data=2, zero=zero, microbatches=2, **F32)
    report = hj.check_parity(model, [strategy], batch=plain_batch(), bubble_value=np.nan)
    report.raise_if_different()
    mesh = make_mesh(strategy, jax.devices()[:4])
    train = make_train_step(model, optax.adamw(1e-2), strategy, mesh)
    state, metrics = train.step(train.init(jax.random.key(0)), plain_batch())
    assert int(metrics["skipped"]) == 0
    for name, leaf in padding(train, state).items():
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf), err_msg=name)


@pytest.mark.parametrize(("layers", "strategy"), LAYOUTS[1:4])
def test_users_see_the_layers_alone(layers, strategy):
    train = make(layers, strategy)
    stacked = lambda tree: {leaf.shape[0] for leaf in jax.tree.leaves(tree["blocks"])}
    assert stacked(train.shapes) == {layers}
    state = train.init(jax.random.key(0))
    assert stacked(state.params) != {layers}
    assert stacked(train.canonical_params(state)) == {layers}
    assert stacked(train.gradients(state, plain_batch())[0]) == {layers}
    canonical = train.canonical_state(state)
    assert canonical.order == "depth"
    jax.tree.map(
        lambda array, want: (array.shape, array.sharding) == (want.shape, want.sharding) or 1 / 0,
        canonical,
        train.abstract_canonical_state(),
    )
    expected = make(layers, Strategy(**F32)).init(jax.random.key(0))
    compare = lambda a, b: np.testing.assert_array_equal(jax.device_get(a), jax.device_get(b))
    # jax 0.12 makes random numbers of other shardings a few ulp apart, see test_step.
    nearly = lambda a, b: np.testing.assert_allclose(*jax.device_get((a, b)), rtol=1e-6)
    jax.tree.map(nearly, canonical, expected)
    jax.tree.map(compare, train.from_canonical(canonical), state)
    params = jax.device_get(train.canonical_params(state))
    jax.tree.map(compare, train.init_from(params), state)


def test_a_padded_state_says_so_and_is_refused_elsewhere():
    train = make(5, Strategy(stage=3))
    state = train.init(jax.random.key(0))
    assert state.order == "5 layers in 6 places"
    rows = {row.path: row for row in parameter_table(train)}
    kernel = rows["blocks/mlp/up/kernel"]
    assert (kernel.shape[0], kernel.parts[0], kernel.device_bytes * 3) == (6, 3, kernel.bytes)
    order = make(5, INTERLEAVED).init(jax.random.key(0)).order
    assert order == "2 stages x 2 chunks, 5 layers in 8 places"
    with pytest.raises(UserError, match=r"'5 layers in 6 places', this step in that of 'depth'"):
        make(5, Strategy()).step(state, plain_batch())
    with pytest.raises(UserError, match=r"num_layers=2 leaves stages without a layer"):
        make(2, Strategy(stage=3))


def test_the_layer_that_is_not_finite_is_located():
    train = make(5, INTERLEAVED)
    params = train.canonical_params(train.init(jax.random.key(0)))
    params = jax.tree.map(np.array, params)
    params["blocks"]["mlp"]["up"]["kernel"][4, 0, 0] = np.inf
    found = hj.locate_nonfinite(train, train.init_from(params), plain_batch())
    assert found is not None
    assert (found.kind, found.layer) == ("parameter", 4)
    assert hj.locate_nonfinite(train, train.init(jax.random.key(0)), plain_batch()) is None


@pytest.mark.parametrize("chunks", [1, 2])
def test_no_stage_gathers_the_layers_of_the_others(chunks):
    """Canonical arrays whose layers do not divide are split along another dim."""
    schedule = {"schedule": "interleaved", "chunks": 2} if chunks > 1 else {}
    train = make(10, Strategy(stage=4, data=2, microbatches=4, **schedule))
    spec = train.canonical_shardings.params["blocks"]["mlp"]["up"]["kernel"].spec
    assert spec == jax.P(None, "stage", "data")
    kinds = set()
    for move, state in (
        (train._functions.to_depth, train.abstract_state()),
        (train._functions.to_stages, train.abstract_canonical_state()),
    ):
        rows = ledger(move.lower(state).compile().as_text(), train.mesh).rows
        kinds |= {row.kind for row in rows}
    assert kinds - {"collective-permute"} == {"all-to-all"}
