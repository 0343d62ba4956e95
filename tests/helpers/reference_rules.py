"""Dense reference formulas of all propagation rules, in float64 NumPy, for one sample.

They are written from the papers and the contract alone and share no code with the library.
A layer is the affine map z = x W + b with W of shape (inputs, outputs), both sides flattened in
row-major order; R is the relevance of its outputs, and a rule returns that of its inputs.
`REFERENCE_RULES[name](x, W, b, R, **options)` holds the rules of linear layers,
`REFERENCE_RELU_RULES[name](x, R, **options)` those of a ReLU,
`REFERENCE_POOL_RULES[name](x, windows, R)` those of pooling.

Conventions: v^+ = max(v, 0), v^- = min(v, 0); sign(0) = +1; a ratio with the denominator 0 is 0.
With bias="ignore" the formulas read b = 0 throughout, in the signs and the standard deviation of
z too.
"""

import itertools

import numpy as np
import tensorflow as tf

# Dense forms of layers ---------------------------------------------------------------------------


def dense_form(function, x):
    """Returns `(W, b)` with `function(x) = x W + b`, for an affine function of one tensor.

    Args:
        function: Maps a float64 tensor `(batch, *input_shape)` to one `(batch, *output_shape)`.
        x: One sample, of shape `input_shape`; `function` is checked to be affine there.
    Raises: ValueError: If `function(x)` differs from `x W + b`.
    """
    x = np.asarray(x, np.float64)
    batch = np.concatenate([np.zeros((1, x.size)), np.eye(x.size), x.reshape(1, -1)])
    outputs = function(tf.convert_to_tensor(batch.reshape(-1, *x.shape)))
    outputs = np.asarray(outputs, np.float64).reshape(len(batch), -1)
    b = outputs[0]
    W = outputs[1:-1] - b
    if not np.allclose(x.ravel() @ W + b, outputs[-1], rtol=1e-10, atol=1e-10):
        raise ValueError("The function is not affine: function(x) differs from x W + b.")
    return W, b


def ones_copy(layer):
    """Returns a new linear layer like `layer`, with kernels of ones and no bias."""
    config = layer.get_config()
    if "activation" in config:
        config["activation"] = "linear"
    copy = type(layer).from_config(config)
    copy.build_from_config(layer.get_build_config())
    for weight in copy.weights:
        if weight.name == "bias":
            weight.assign(np.zeros(weight.shape))
        elif "kernel" in weight.name:
            weight.assign(np.ones(weight.shape))
        else:
            raise ValueError(f"{type(layer).__name__} has a weight {weight.name!r}, no kernel.")
    return copy


def connectivity(layer, x, wrap=None):
    """Returns which inputs are connected to which outputs: boolean (inputs, outputs).

    Zeros that a convolution pads itself are no inputs. `wrap` maps the layer to the callable that
    is run (for instance to its XLA-compiled form).
    """
    copy = ones_copy(layer)
    return dense_form(copy if wrap is None else wrap(copy), x)[0] > 0.5


def addition_matrix(num_inputs, size, signs=None):
    """Returns W of y = sum_m s_m x_m, for the summands x_m of `size` elements laid end to end."""
    signs = np.ones(num_inputs) if signs is None else np.asarray(signs, np.float64)
    return np.concatenate([sign * np.eye(size) for sign in signs])


# Rules of linear layers --------------------------------------------------------------------------


def _positive(v):
    return np.maximum(v, 0.0)


def _negative(v):
    return np.minimum(v, 0.0)


def _ratio(numerator, denominator):
    safe = np.where(denominator == 0, 1.0, denominator)
    return np.where(denominator == 0, 0.0, numerator / safe)


def _without_ignored(b, bias):
    if bias not in ("split", "ignore", "full"):
        raise ValueError(f"bias is {bias!r}; expected 'split', 'ignore' or 'full'.")
    return np.zeros_like(b) if bias == "ignore" else b


def gradient(x, W, b, R):
    """R_i = sum_j w_ij R_j."""
    return W @ R


def z(x, W, b, R, bias="split"):
    """R_i = x_i sum_j w_ij R_j / z_j; split and full are the same."""
    b = _without_ignored(b, bias)
    z = x @ W + b
    return x * (W @ _ratio(R, z))


def epsilon(x, W, b, R, epsilon=1e-7, relative=False, bias="split"):
    """R_i = x_i sum_j w_ij R_j / (z_j + epsilon sign(z_j)); relative: epsilon std(z)."""
    b = _without_ignored(b, bias)
    z = x @ W + b
    e = epsilon * np.std(z) if relative else epsilon
    return x * (W @ _ratio(R, z + e * np.where(z >= 0, 1.0, -1.0)))


def gamma(x, W, b, R, gamma=0.25, bias="split"):
    """R_i = sum_j (c_ij + gamma c_ij^s) R_j / sum_i (c_ij + gamma c_ij^s), c_ij = x_i w_ij.

    s is the sign of z_j. The denominator has b_j + gamma b_j^s (split), or (1 + gamma) b_j (full).
    """
    b = _without_ignored(b, bias)
    z = x @ W + b
    c = x[:, None] * W
    c = c + gamma * np.where(z >= 0, _positive(c), _negative(c))
    b_s = b if bias == "full" else np.where(z >= 0, _positive(b), _negative(b))
    return c @ _ratio(R, c.sum(axis=0) + b + gamma * b_s)


def alpha_beta(x, W, b, R, alpha=None, beta=None, bias="split"):
    """R_i = sum_j (alpha c_ij^+ / (sum c_ij^+ + b_j^+) - beta c_ij^- / (sum c_ij^- + b_j^-)) R_j.

    c_ij = x_i w_ij; with bias="full" both denominators have b_j; `beta` is `alpha - 1` by default.
    """
    beta = alpha - 1 if beta is None else beta
    b = _without_ignored(b, bias)
    p, n = _positive(x[:, None] * W), _negative(x[:, None] * W)
    b_p, b_n = (b, b) if bias == "full" else (_positive(b), _negative(b))
    activating = p @ _ratio(R, p.sum(axis=0) + b_p)
    inhibiting = n @ _ratio(R, n.sum(axis=0) + b_n)
    return alpha * activating - beta * inhibiting


def z_plus(x, W, b, R):
    """R_i = sum_j (x_i w_ij)^+ R_j / sum_i (x_i w_ij)^+."""
    p = _positive(x[:, None] * W)
    return p @ _ratio(R, p.sum(axis=0))


def w_square(x, W, b, R):
    """R_i = sum_j w_ij^2 R_j / sum_i w_ij^2."""
    return W**2 @ _ratio(R, (W**2).sum(axis=0))


def flat(x, W, b, R, *, connected):
    """R_i = sum_j R_j / n_j over the outputs j connected to i; j has n_j inputs."""
    connected = np.asarray(connected, np.float64)
    return connected @ _ratio(R, connected.sum(axis=0))


def z_box(x, W, b, R, *, low, high):
    """R_i = sum_j q_ij R_j / sum_i q_ij with q_ij = x_i w_ij - low_i w_ij^+ - high_i w_ij^-."""
    low, high = np.broadcast_to(low, x.shape), np.broadcast_to(high, x.shape)
    q = x[:, None] * W - low[:, None] * _positive(W) - high[:, None] * _negative(W)
    return q @ _ratio(R, q.sum(axis=0))


REFERENCE_RULES = {
    "gradient": gradient,
    "z": z,
    "epsilon": epsilon,
    "gamma": gamma,
    "alpha_beta": alpha_beta,
    "z_plus": z_plus,
    "w_square": w_square,
    "flat": flat,
    "z_box": z_box,
}


def addition(rule, summands, R, signs=None, **options):
    """Applies a rule of linear layers to y = sum_m s_m x_m; returns one vector per summand."""
    x = np.concatenate([np.ravel(summand) for summand in summands]).astype(np.float64)
    W = addition_matrix(len(summands), np.size(R), signs)
    if rule == "flat":
        options = {"connected": W != 0, **options}
    b = np.zeros(np.size(R))
    return np.split(REFERENCE_RULES[rule](x, W, b, np.ravel(R), **options), len(summands))


def relevance_of_batch(rule, function, x, R, **options):
    """Applies a rule of linear layers to every sample and vector of a batch.

    Args:
        rule: Name in `REFERENCE_RULES`.
        function: Affine, as `dense_form` takes it; or the `(W, b)` that it returned.
        x: Shape (batch, *input_shape).
        R: Shape (batch, num_vectors, *output_shape).
        **options: Of the rule; `low` and `high` broadcast to `input_shape`.
    Returns: Shape (batch, num_vectors, *input_shape).
    """
    x, R = np.asarray(x, np.float64), np.asarray(R, np.float64)
    W, b = dense_form(function, x[0]) if callable(function) else function
    for bound in {"low", "high"} & set(options):
        options[bound] = np.broadcast_to(options[bound], x.shape[1:]).ravel()
    result = np.empty((*R.shape[:2], *x.shape[1:]))
    for n, k in np.ndindex(*R.shape[:2]):
        r = REFERENCE_RULES[rule](x[n].ravel(), W, b, R[n, k].ravel(), **options)
        result[n, k] = r.reshape(x.shape[1:])
    return result


# Rules of a ReLU: pre-activation x, output a = x^+ -----------------------------------------------


def relu_gradient(x, R):
    """R_i where x_i > 0, else 0."""
    return np.where(x > 0, R, 0.0)


def guided(x, R):
    """R_i^+ where x_i > 0, else 0."""
    return np.where(x > 0, _positive(R), 0.0)


def deconvnet(x, R):
    """R_i^+, whatever x_i."""
    return _positive(R)


def rect_grad(x, R, percentile=98):
    """R_i where x_i > 0 and a_i R_i > tau, else 0; over all units of the one sample.

    tau is the nearest-rank percentile of s = a R: with s sorted in ascending order, the element at
    the 0-based index q/100 (n - 1), rounded half to even, as numpy.percentile(method="nearest").
    """
    s = _positive(x) * R
    index = int(np.rint(percentile / 100 * (s.size - 1)))
    tau = np.sort(s, axis=None)[index]
    return np.where((s > tau) & (x > 0), R, 0.0)


REFERENCE_RELU_RULES = {
    "gradient": relu_gradient,
    "guided": guided,
    "deconvnet": deconvnet,
    "rect_grad": rect_grad,
}


# Rules of pooling --------------------------------------------------------------------------------


def pool_windows(input_shape, pool_size, strides=None, padding="valid"):
    """Returns which inputs each pooled output sees: boolean (inputs, outputs), channels last.

    Positions that padding="same" adds belong to no window.
    """
    *spatial, channels = input_shape
    strides = pool_size if strides is None else strides
    ranges = []  # per axis, the positions of each output
    for n, k, s in zip(spatial, pool_size, strides, strict=True):
        if padding == "same":
            outputs = -(-n // s)
            before = max((outputs - 1) * s + k - n, 0) // 2
        else:
            outputs, before = (n - k) // s + 1, 0
        starts = [o * s - before for o in range(outputs)]
        ranges.append([range(max(start, 0), min(start + k, n)) for start in starts])
    columns = []
    for window in itertools.product(*ranges):
        for channel in range(channels):
            column = np.zeros(input_shape, bool)
            column[(*np.ix_(*window), channel)] = True
            columns.append(column.ravel())
    return np.stack(columns, axis=1)


def average_pool(x, windows, R):
    """R_i = sum_j x_i R_j / sum of x over the window j, for j whose window holds i."""
    c = np.where(windows, x[:, None], 0.0)
    return c @ _ratio(R, c.sum(axis=0))


def max_pool_winner(x, windows, R):
    """All of R_j to the first maximum of window j, in row-major order."""
    winners = np.where(windows, x[:, None], -np.inf).argmax(axis=0)
    result = np.zeros(x.shape)
    np.add.at(result, winners, R)
    return result


REFERENCE_POOL_RULES = {"average_pool": average_pool, "max_pool_winner": max_pool_winner}
