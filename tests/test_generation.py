import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hybrid_jax.config.model import preset
from hybrid_jax.data.bpe import train_bpe
from hybrid_jax.errors import UserError
from hybrid_jax.generation.sampling import LENGTH_STEP, generate
from hybrid_jax.models.decoder import Decoder

MAX_LENGTH = 80
PROMPT = np.array([[5, 1, 200], [7, 7, 0]])


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    sizes = {"num_layers": 2, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32, "vocab_size": 256}
    return Decoder(preset("nano", style=request.param, max_length=MAX_LENGTH, **sizes))


@pytest.fixture(scope="module")
def params(model):
    # Initial weights give nearly equal logits; larger ones make the choices distinct.
    return jax.tree.map(lambda p: p * 8, model.init(jax.random.key(0)))


def greedy_by_full_forward(model, params, tokens, steps):
    for _ in range(steps):
        logits = np.asarray(model.logits(params, {"tokens": jnp.asarray(tokens)}))
        tokens = np.concatenate([tokens, logits[:, -1].argmax(-1)[:, None]], axis=1)
    return tokens


def test_greedy_is_the_argmax_of_each_full_forward(model, params):
    result = generate(model, params, PROMPT, max_new_tokens=6, temperature=0)
    np.testing.assert_array_equal(result, greedy_by_full_forward(model, params, PROMPT, 6))
    assert len(np.unique(result[:, 3:])) > 2
    single = generate(model, params, PROMPT[0], max_new_tokens=6, temperature=0)
    np.testing.assert_array_equal(single, result[0])


def test_the_key_decides_the_sample(model, params):
    def sample(seed):
        return generate(model, params, PROMPT, max_new_tokens=12, key=jax.random.key(seed))

    np.testing.assert_array_equal(sample(0), sample(0))
    assert np.any(sample(0) != sample(1))


def test_sample_does_not_depend_on_the_buffer(model, params):
    key, longest = jax.random.key(0), MAX_LENGTH - PROMPT.shape[1]
    assert LENGTH_STEP < MAX_LENGTH
    short, long = (generate(model, params, PROMPT, max_new_tokens=n, key=key) for n in (9, longest))
    assert long.shape == (2, MAX_LENGTH)
    np.testing.assert_array_equal(short, long[:, : short.shape[1]])


def test_samples_follow_the_distribution(model, params):
    prompts, temperature = np.tile(PROMPT[:1], (1000, 1)), 1.7
    logits = np.asarray(model.logits(params, {"tokens": jnp.asarray(PROMPT[:1])}))[0, -1]
    probabilities = np.asarray(jax.nn.softmax(logits / temperature))
    samples = generate(
        model,
        params,
        prompts,
        max_new_tokens=1,
        temperature=temperature,
        key=jax.random.key(0),
    )
    frequencies = np.bincount(samples[:, -1], minlength=256) / len(prompts)
    np.testing.assert_allclose(frequencies, probabilities, atol=0.06)


def test_top_k(model, params):
    prompts = np.tile(PROMPT[:1], (200, 1))
    logits = np.asarray(model.logits(params, {"tokens": jnp.asarray(PROMPT[:1])}))[0, -1]
    samples = generate(
        model,
        params,
        prompts,
        max_new_tokens=1,
        temperature=100.0,
        top_k=3,
        key=jax.random.key(0),
    )
    assert set(samples[:, -1]) == set(np.argsort(logits)[-3:])


def test_sharded_parameters_give_the_same_text(model, params):
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))

    def split_last(p):
        names = (None,) * (p.ndim - 1) + ("model",)
        return jax.device_put(p, NamedSharding(mesh, PartitionSpec(*names)))

    sharded = jax.tree.map(split_last, params)
    np.testing.assert_array_equal(
        generate(model, sharded, PROMPT, max_new_tokens=6, temperature=0),
        generate(model, params, PROMPT, max_new_tokens=6, temperature=0),
    )


def test_text_in_text_out(model, params):
    tokens = generate(model, params, list(b"In the"), max_new_tokens=5, temperature=0)
    as_bytes = generate(model, params, b"In the", max_new_tokens=5, temperature=0)
    assert as_bytes == bytes(tokens.tolist())
    text = generate(model, params, "In the", max_new_tokens=5, temperature=0)
    assert text == as_bytes.decode("utf-8", errors="replace")


def test_text_in_text_out_with_a_trained_tokenizer(model, params, tmp_path):
    tokenizer = train_bpe(["In the beginning"], 256 + 1, tmp_path)
    prompt = tokenizer.encode("In the") - 1  # the bytes, of which this model knows 256

    class Shifted:
        name, vocab_size, eos = "shifted", 256, 0

        def encode(self, text):
            return tokenizer.encode(text) - 1

        def decode(self, tokens):
            return tokenizer.decode(np.asarray(tokens) + 1)

    arguments = {"max_new_tokens": 5, "temperature": 0}
    tokens = generate(model, params, prompt, **arguments)
    text = generate(model, params, "In the", tokenizer=Shifted(), **arguments)
    assert text == tokenizer.decode(np.asarray(tokens) + 1)
    with pytest.raises(UserError, match="bytes needs the byte tokenizer, not shifted"):
        generate(model, params, b"In the", tokenizer=Shifted(), **arguments)


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ("", {}, "the prompt is empty"),
        ("a" * 80, {}, "80 tokens and max_new_tokens=5 make 85, but the model's max_length=80"),
        ([3, 256], {}, "holds token 256, but the model's tokens are 0 to 255"),
        ([-1, 3], {}, "holds token -1"),
        ([0.5], {}, r"a prompt of float64 \[1\]: tokens are integers"),
        ("a", {"temperature": -1.0}, "temperature=-1.0: must be at least 0"),
        ("a", {"top_k": 0}, "top_k=0: must be at least 1"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ("a", {"temperature": 0.5, "key": None}, "needs a key"),
    ],
)
def test_bad_arguments(prompt, arguments, message):
    model = Decoder(preset("nano", max_length=MAX_LENGTH, vocab_size=256))
    defaults = {"max_new_tokens": 5, "key": jax.random.key(0)}
    with pytest.raises(UserError, match=message) as error:
        generate(model, {}, prompt, **(defaults | arguments))
    assert "\n" not in str(error.value)
