import numpy as np
import pytest

from hybrid_jax.data.bytes import ByteTokenizer

tokenizer = ByteTokenizer()


@pytest.mark.parametrize("text", ["", "plain", "naïve Ω 語 🙂", "tab\tand\r\nnewline\0"])
def test_text_round_trip(text):
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32
    assert tokenizer.decode(tokens) == text


def test_any_bytes_round_trip():
    data = bytes(range(256))
    np.testing.assert_array_equal(tokenizer.encode(data), np.arange(256))
    assert tokenizer.decode_bytes(tokenizer.encode(data)) == data


def test_special_tokens_are_distinct_and_are_not_text():
    special = [tokenizer.bos, tokenizer.eos, tokenizer.pad]
    assert sorted(special) == list(range(256, tokenizer.vocab_size))
    assert tokenizer.decode([*special, ord("x")]) == "x"


def test_broken_utf8_is_shown_rather_than_raised():
    assert tokenizer.decode([0xC3, ord("x")]) == "\N{REPLACEMENT CHARACTER}x"
