"""The decoder written again, token by token, in float64 NumPy."""

import math

import numpy as np


def logits(config, params, tokens, positions=None, segment_ids=None):
    """Logits [T, V] of one sequence of tokens [T]."""
    params = _float64(params)
    length = len(tokens)
    positions = np.arange(length) if positions is None else positions
    segment_ids = np.zeros(length) if segment_ids is None else segment_ids
    x = params["embed"]["tokens"][tokens]
    if config.positions == "learned":
        x = x + params["embed"]["positions"][positions]
    for layer in range(config.num_layers):
        x = block(config, _layer(params["blocks"], layer), x, positions, segment_ids)
    head = params["head"]
    kernel = params["embed"]["tokens"].T if config.tied else head["kernel"]
    return norm(config, head["norm"], x) @ kernel


def loss(config, params, tokens, targets, weights, **packed):
    """Weighted sum of -log p(target) over one sequence."""
    scores = logits(config, params, tokens, **packed)
    total = 0.0
    for row, target, weight in zip(scores, targets, weights, strict=True):
        total += weight * (math.log(np.exp(row).sum()) - row[target])
    return total


def block(config, params, x, positions, segment_ids):
    """One layer over x [T, D]."""
    params = _float64(params)
    x = x + attention(
        config,
        params["attention"],
        norm(config, params["attention_norm"], x),
        positions,
        segment_ids,
    )
    return x + mlp(config, params["mlp"], norm(config, params["mlp_norm"], x))


def attention(config, params, x, positions, segment_ids):
    length, (heads, size) = len(x), (config.num_heads, config.head_dim)
    out = np.zeros((length, heads, size))
    for head in range(heads):
        kv_head = head // (heads // config.num_kv_heads)
        q = _project(params["q"], x, head)
        k = _project(params["k"], x, kv_head)
        v = _project(params["v"], x, kv_head)
        if config.positions == "rotary":
            q, k = (rotate(config, y, positions) for y in (q, k))
        for t in range(length):
            seen = [s for s in range(t + 1) if segment_ids[s] == segment_ids[t]]
            weights = np.exp([q[t] @ k[s] / math.sqrt(size) for s in seen])
            out[t, head] = weights @ v[seen] / weights.sum()
    result = np.einsum("tnh,nhd->td", out, params["o"]["kernel"])
    return result + params["o"]["bias"] if "bias" in params["o"] else result


def rotate(config, x, positions):
    """Turns the pair (x[i], x[i + H/2]) as one complex number."""
    half = config.head_dim // 2
    turned = np.empty_like(x)
    for t, position in enumerate(positions):
        for i in range(half):
            angle = position / config.rope_theta ** (2 * i / config.head_dim)
            pair = complex(x[t, i], x[t, i + half]) * complex(math.cos(angle), math.sin(angle))
            turned[t, i], turned[t, i + half] = pair.real, pair.imag
    return turned


def mlp(config, params, x):
    up = _dense(params["up"], x)
    if config.activation == "silu":
        gate = _dense(params["gate"], x)
        up = gate / (1 + np.exp(-gate)) * up
    else:
        up = 0.5 * up * (1 + np.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
    return _dense(params["down"], up)


def norm(config, params, x):
    if config.norm == "layernorm":
        x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + config.norm_eps) * params["scale"]
    return x + params["bias"] if "bias" in params else x


def _dense(params, x):
    y = x @ params["kernel"]
    return y + params["bias"] if "bias" in params else y


def _project(params, x, head):
    y = x @ params["kernel"][:, head]
    return y + params["bias"][head] if "bias" in params else y


def _float64(tree):
    if isinstance(tree, dict):
        return {name: _float64(leaf) for name, leaf in tree.items()}
    return np.asarray(tree, np.float64)


def _layer(tree, index):
    if isinstance(tree, dict):
        return {name: _layer(leaf, index) for name, leaf in tree.items()}
    return tree[index]
