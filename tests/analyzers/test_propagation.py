"""Relevance sent by hand: reversed models, free starts, read-outs, chunks of vectors, sharing."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers.layers import dense
from tests.helpers.networks import assert_same, set_random_weights
from tfexplain import create_analyzer
from tfexplain.compilation import Compiled

METHODS = {
    "gradient": {},
    "lrp.epsilon": {"epsilon": 0.01},
    "lrp.alpha_2_beta_1": {},
    "lrp.z_plus": {},
    "deep_taylor": {},
}
# One linear in the activation, one that takes positive and negative contributions apart.
TWO = ("gradient", "lrp.alpha_2_beta_1")
HIDDEN = ("conv", "norm", "relu", "outer/inner", "outer", "pool", "flat", "scores")


def create(name, model, **options):
    return create_analyzer(name, model, **METHODS.get(name, {}), **options)


def tensors(x):
    return [tf.constant(part) for part in (x if isinstance(x, list) else [x])]


def send(analyzer, x, relevance, start=None, layers=()):
    """`propagate` without compiling, which takes longest in networks of this size."""
    network = analyzer.network(start, tuple(layers))
    results = network.propagate(tensors(x), tf.constant(relevance))
    names = list(network.readouts)
    if not isinstance(x, list):
        names[0] = "input"
    return {name: result.numpy() for name, result in zip(names, results, strict=True)}


def explain(analyzer, x, targets):
    """Logits and relevance of each input for flat targets (vectors,), without compiling."""
    count = len(x[0]) if isinstance(x, list) else len(x)
    targets = tf.constant(np.tile(targets, (count, 1)), tf.int32)
    return [part.numpy() for part in analyzer.explain(tensors(x), targets)]


@pytest.fixture(scope="module")
def chain():
    """A network in which every path leads through every layer, samples, and vectors."""
    options = {"dtype": "float64"}
    inside = keras.Input((4, 4, 3), **options)
    inner = layers.Conv2D(4, 2, activation="relu", name="inner", **options)
    inputs = keras.Input((6, 6, 2), name="pixels", **options)
    h = layers.Conv2D(3, 3, name="conv", **options)(inputs)
    h = layers.BatchNormalization(name="norm", **options)(h)
    h = layers.ReLU(name="relu", **options)(h)
    h = keras.Model(inside, inner(inside), name="outer")(h)
    h = layers.MaxPooling2D(2, 1, name="pool", **options)(h)
    h = layers.Flatten(name="flat", **options)(h)
    model = keras.Model(inputs, dense(3, activation="softmax", name="scores")(h))
    generator = np.random.default_rng(0)
    set_random_weights(model, generator)
    return model, generator.normal(size=(3, 6, 6, 2)), generator.normal(size=(3, 2, 3))


def forward(model, x):
    """The tensor of each layer, the logits for the last."""
    found = {"input": x}
    for layer in model.layers[1:-1]:
        found[layer.name] = x = layer(x)
    last = model.layers[-1]
    found[last.name] = x @ last.kernel + last.bias
    # What a name means: the pair's output, and the only layer of the nested model.
    found["conv"], found["outer/inner"] = found["norm"], found["outer"]
    return found


@pytest.fixture(scope="module")
def two_inputs():
    left = keras.Input((4,), dtype="float64", name="left")
    right = keras.Input((3, 2), dtype="float64", name="right")
    h = layers.Concatenate(dtype="float64")(
        [dense(3, activation="relu")(left), layers.Flatten(dtype="float64")(right)]
    )
    model = keras.Model([left, right], dense(3)(dense(4, activation="relu")(h)))
    generator = np.random.default_rng(1)
    set_random_weights(model, generator)
    return model, [generator.normal(size=(3, 4)), generator.normal(size=(3, 3, 2))]


# --- the reversed model --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gradient", "lrp.alpha_2_beta_1", "deep_taylor"])
def test_the_model_gives_the_numbers_of_analyze(chain, name):
    model, x, _ = chain
    analyzer = create(name, model)
    logits = forward(model, tf.constant(x))["scores"].numpy()
    assert_same(analyzer.outputs(x), logits)
    start = np.eye(3) * (1 if name == "gradient" else logits[:, None])
    start = np.broadcast_to(start, (3, 3, 3))
    found = analyzer.model([x, start])
    assert_same(found.numpy(), analyzer.analyze(x, target="all"))


@pytest.mark.parametrize("name", TWO)
def test_the_model_of_several_inputs(two_inputs, name):
    model, x = two_inputs
    analyzer = create(name, model, head="logit")
    logits = model(x).numpy()
    chosen = np.eye(3)[[2, 0, 1]] * logits
    found = analyzer.model([*x, chosen[:, None]])
    expected = analyzer.analyze(x, target=[2, 0, 1])
    assert set(found) == {"left", "right"}
    for key, part in zip(("left", "right"), expected, strict=True):
        assert np.abs(part).max() > 0
        assert_same(found[key].numpy()[:, 0], part)


# --- read-outs and starts ------------------------------------------------------------------------


def test_gradient_at_hidden_layers_is_that_of_tensorflow(chain):
    model, x, vectors = chain
    found = send(create("gradient", model), x, vectors, layers=HIDDEN)
    x = tf.constant(x)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        expected = forward(model, x)
        values = [tf.reduce_sum(expected["scores"] * vectors[:, k]) for k in range(2)]
    assert set(found) == {"input", *HIDDEN}
    for name, relevance in found.items():
        for k, value in enumerate(values):
            assert_same(relevance[:, k], tape.gradient(value, expected[name]).numpy())


@pytest.mark.compiled
def test_compiled_propagation_is_the_eager_one(chain):
    model, x, vectors = chain
    analyzer = create("lrp.epsilon", model)
    for start, given in ((None, vectors), ("flat", np.ones((3, 2, 16)))):
        expected = send(analyzer, x, given, start, ("relu", "outer/inner"))
        found = analyzer.propagate(x, given, start=start, layers=("relu", "outer/inner"))
        assert set(found) == set(expected) == {"input", "relu", "outer/inner"}
        for name, relevance in found.items():
            assert_same(relevance, expected[name])


@pytest.mark.parametrize("name", METHODS)
def test_relevance_may_start_at_any_layer(chain, name):
    model, x, vectors = chain
    analyzer = create(name, model)
    straight = send(analyzer, x, vectors, layers=("norm", "outer/inner", "flat"))
    assert np.abs(straight["input"]).max() > 0
    for start, read in (("flat", ("outer/inner",)), ("outer/inner", ("norm",)), ("norm", ())):
        found = send(analyzer, x, straight[start], start, read)
        for place in ("input", *read):
            assert_same(found[place], straight[place])


def test_input_times_gradient_at_a_layer_is_activation_times_gradient(chain):
    model, x, vectors = chain
    gradient = send(create("gradient", model), x, vectors, layers=HIDDEN)
    product = send(create("input_t_gradient", model), x, vectors, layers=HIDDEN)
    for name, activation in forward(model, tf.constant(x)).items():
        assert_same(product[name], activation.numpy()[:, None] * gradient[name])


@pytest.mark.parametrize("name", TWO)
def test_an_input_that_the_output_does_not_read_gets_zeros(name):
    left, right = (keras.Input((3,), dtype="float64", name=n) for n in ("left", "right"))
    first = dense(2, name="first")(left)
    second = dense(2, name="second")(layers.Concatenate(dtype="float64")([first, right]))
    model = keras.Model([left, right], [first, second])
    generator = np.random.default_rng(8)
    set_random_weights(model, generator)
    x = [generator.normal(size=(2, 3)) for _ in range(2)]
    for output, reads in (("first", False), ("second", True)):
        _, *found = explain(create(name, model, output=output), x, [0])
        assert np.abs(found[0]).max() > 0
        assert found[1].shape == (2, 1, 3) and found[1].any() == reads


def test_gradient_with_the_logit_as_head(chain):
    model, x, _ = chain
    _, one = explain(create("gradient", model), x, [0, 1, 2])
    logits, relevance = explain(create("gradient", model, head="logit"), x, [0, 1, 2])
    assert_same(relevance, logits.reshape(3, 3, 1, 1, 1) * one)


SAMPLED = {"integrated_gradients": {"steps": 5, "baseline": 0.2}, "smoothgrad": {"samples": 3}}


@pytest.mark.parametrize("head", ["one", "logit"])
@pytest.mark.parametrize("name", SAMPLED)
def test_propagation_of_averages_is_the_weighted_sum_of_all_outputs(two_inputs, name, head):
    # Relevance that is given has no head: only `analyze` chooses its own start.
    model, x = two_inputs
    weights = np.random.default_rng(2).normal(size=(3, 2, 3))
    single = create_analyzer(name, model, **SAMPLED[name]).analyze(x, target="all")
    found = create_analyzer(name, model, head=head, **SAMPLED[name]).propagate(x, weights)
    assert set(found) == {"left", "right"}
    for key, part in zip(("left", "right"), single, strict=True):
        assert_same(found[key], np.einsum("nko,no...->nk...", weights, part))


@pytest.mark.parametrize("name", SAMPLED)
def test_head_of_averages_is_the_logit_of_the_sample(two_inputs, name):
    model, x = two_inputs
    logits = model(x).numpy()
    one, value = (
        create_analyzer(name, model, head=head, **SAMPLED[name]).analyze(x, target="all")
        for head in ("one", "logit")
    )
    for first, second in zip(one, value, strict=True):
        assert_same(second, logits.reshape(3, 3, *[1] * (first.ndim - 2)) * first)


# --- chunks of vectors ---------------------------------------------------------------------------


def largest(model, x):
    """Bytes of one vector of one sample at the largest tensor."""
    return 8 * max(int(np.prod(t.shape[1:])) for t in forward(model, tf.constant(x)).values())


@pytest.mark.parametrize("verb", ["propagate", "analyze"])
def test_one_forward_pass_serves_all_vectors(chain, monkeypatch, verb):
    model, x, _ = chain
    analyzer = create("lrp.epsilon", model)
    network = analyzer.network()
    vectors = np.random.default_rng(3).normal(size=(3, 7, 3))
    if verb == "propagate":
        expected = send(analyzer, x, vectors)["input"]
        bound = 2 * 3 * largest(model, x)  # 3 vectors of 2 samples
        chunks = [(2, 3), (2, 3), (2, 1), (1, 6), (1, 1)]
    else:
        expected = explain(analyzer, x, [0, 1, 2])[1]
        bound = 2 * 1 * largest(model, x)
        chunks = [(2, 1), (2, 1), (2, 1), (1, 2), (1, 1)]
    forwards, backwards = [], []
    records, backward = network.run_records, network.run_backward

    def run_records(inputs):
        forwards.append(len(inputs[0]))
        return records(inputs)

    def run_backward(tensors, relevance):
        backwards.append(tuple(relevance.shape[:2]))
        return backward(tensors, relevance)

    monkeypatch.setattr(network, "run_records", run_records)
    monkeypatch.setattr(network, "run_backward", run_backward)
    # These run forward and backward at once, for all vectors.
    monkeypatch.setattr(network, "run_explain", None)
    monkeypatch.setattr(network, "run_propagate", None)
    monkeypatch.setattr("tfexplain.analyzers.reversed.CHUNK_BYTES", bound)
    if verb == "propagate":
        found = analyzer.propagate(x, vectors, batch_size=2)["input"]
    else:
        found = analyzer.analyze(x, target="all", batch_size=2)
    assert_same(found, expected)
    assert forwards == [2, 1]
    assert backwards == chunks


@pytest.mark.parametrize(
    "name",
    ["gradient", "integrated_gradients", "smoothgrad", "lrp.contrastive", "grad_cam"],
)
def test_memory_of_all_outputs_is_bounded(chain, monkeypatch, name):
    model, x, _ = chain
    analyzer = create_analyzer(name, model, **SAMPLED.get(name, {}))
    expected = analyzer.analyze(x, target="all")
    seen, call = [], Compiled.__call__

    def spy(self, *arguments):
        if len(arguments) > 1:  # the second one is the targets, or the relevance
            seen.append(arguments[1].shape[0] * arguments[1].shape[1])
        return call(self, *arguments)

    monkeypatch.setattr(Compiled, "__call__", spy)
    monkeypatch.setattr("tfexplain.analyzers.reversed.CHUNK_BYTES", 3 * largest(model, x))
    assert_same(analyzer.analyze(x, target="all"), expected)
    assert seen and max(seen) <= 3


# --- calls with names, shared layers, nested models ----------------------------------------------


def initialized(cls, *arguments, seed, **options):
    """A layer whose weights follow from the seed, so that layers with one seed are copies."""
    normal = keras.initializers.RandomNormal
    return cls(
        *arguments,
        kernel_initializer=normal(stddev=0.7, seed=seed),
        bias_initializer=normal(stddev=0.3, seed=seed + 100),
        dtype="float64",
        **options,
    )


def looped(unrolled):
    """A network that uses a layer and a nested model twice each, or copies of them.

    Returns the model and the calls: functions of a tensor, by the name of the call.
    """

    def encoder(number):
        inputs = keras.Input((4,), dtype="float64")
        layer = initialized(layers.Dense, 4, seed=2, activation="relu", name="inner")
        return keras.Model(inputs, layer(inputs), name=f"outer_{number}")

    numbers = range(2) if unrolled else [0, 0]
    shared = {
        n: initialized(layers.Dense, 4, seed=1, activation="relu", name=f"shared_{n}")
        for n in set(numbers)
    }
    nested = {n: encoder(n) for n in set(numbers)}
    inputs = keras.Input((4,), dtype="float64")
    a = shared[numbers[0]](inputs)
    b = shared[numbers[1]](a)
    c = nested[numbers[0]](b)
    d = nested[numbers[1]](layers.Add(dtype="float64")([a, c]))
    scores = initialized(layers.Dense, 3, seed=3, name="scores")
    return keras.Model(inputs, scores(layers.Concatenate(dtype="float64")([b, d])))


SHARED_CALLS = ("shared_0", "shared_0@1", "outer_0/inner", "outer_0/inner@1", "outer_0@1")
UNROLLED_CALLS = ("shared_0", "shared_1", "outer_0/inner", "outer_1/inner", "outer_1")


def test_names_of_calls():
    model = looped(unrolled=False)
    generator = np.random.default_rng(4)
    x, vectors = generator.normal(size=(3, 4)), generator.normal(size=(3, 1, 3))
    found = send(create("gradient", model), x, vectors, layers=SHARED_CALLS)
    shared, outer, scores = (model.get_layer(n) for n in ("shared_0", "outer_0", "scores"))
    x = tf.constant(x)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        a = shared(x)
        b = shared(a)
        c = outer(b)
        d = outer(a + c)
        value = tf.reduce_sum(scores(tf.concat([b, d], -1)) * vectors[:, 0])
    expected = dict(zip(("input", *SHARED_CALLS), (x, a, b, c, d, d), strict=True))
    for name, relevance in found.items():
        assert_same(relevance[:, 0], tape.gradient(value, expected[name]).numpy())


@pytest.mark.parametrize("name", TWO)
def test_a_shared_layer_is_one_layer_for_each_use(name):
    shared, unrolled = looped(unrolled=False), looped(unrolled=True)
    generator = np.random.default_rng(5)
    x, vectors = generator.normal(size=(3, 4)), generator.normal(size=(3, 2, 3))
    assert_same(shared(x).numpy(), unrolled(x).numpy(), 1e-14)
    found = send(create(name, shared), x, vectors, layers=SHARED_CALLS)
    expected = send(create(name, unrolled), x, vectors, layers=UNROLLED_CALLS)
    for first, second in zip(found.values(), expected.values(), strict=True):
        assert np.abs(second).max() > 0
        assert_same(first, second)
    start = SHARED_CALLS[3], UNROLLED_CALLS[3]
    given = generator.normal(size=(3, 2, 4))
    first = send(create(name, shared), x, given, start[0])["input"]
    assert_same(first, send(create(name, unrolled), x, given, start[1])["input"])


def siamese(copies):
    """Compares two sequences by one encoder, or by two copies of it."""

    def encoder(number):
        inputs = keras.Input((6, 2), dtype="float64")
        h = initialized(layers.Conv1D, 3, 2, seed=1, activation="relu")(inputs)
        h = layers.MaxPooling1D(2, dtype="float64")(h)
        h = initialized(layers.Dense, 4, seed=2)(layers.Flatten(dtype="float64")(h))
        return keras.Model(inputs, h, name=f"encoder_{number}")

    first = encoder(0)
    second = encoder(1) if copies else first
    left, right = (keras.Input((6, 2), dtype="float64", name=n) for n in ("left", "right"))
    h = layers.Subtract(dtype="float64")([first(left), second(right)])
    scores = initialized(layers.Dense, 2, seed=3)(layers.ReLU(dtype="float64")(h))
    return keras.Model([left, right], scores)


@pytest.mark.parametrize("name", TWO)
def test_siamese_networks(name):
    generator = np.random.default_rng(6)
    x = [generator.normal(size=(3, 6, 2)) for _ in range(2)]
    found = explain(create(name, siamese(copies=False)), x, [0, 1])
    expected = explain(create(name, siamese(copies=True)), x, [0, 1])
    for first, second in zip(found, expected, strict=True):
        assert np.abs(second).max() > 0
        assert_same(first, second)
    assert np.abs(found[1] - found[2]).max() > 0.01  # left is not right


def cells(form):
    """A function of two tensors to two tensors, used twice: "flat", or nested as a model."""
    linear = initialized(layers.Dense, 3, seed=1, activation="relu")
    other = initialized(layers.Dense, 3, seed=2)

    def step(first, second):
        total = layers.Add(dtype="float64")([linear(first), second])
        return total, layers.Concatenate(dtype="float64")([other(total), first])

    apply = step
    if form != "flat":
        a, b = (keras.Input((3,), dtype="float64", name=name) for name in ("z", "y"))
        total, joined = step(a, b)
        if form == "dict":
            # Keras sorts by name, so that neither order is that of the definition.
            inner = keras.Model({"z": a, "y": b}, {"total": total, "joined": joined})

            def apply(first, second):
                results = inner({"z": first, "y": second})
                return results["total"], results["joined"]
        else:
            inner = keras.Model([a, b], [total, joined])

            def apply(first, second):
                return inner([first, second])

    x, y = (keras.Input((3,), dtype="float64", name=n) for n in ("x", "y"))
    first, second = apply(x, y)
    narrow = initialized(layers.Dense, 3, seed=4, activation="relu")
    _, last = apply(narrow(second), first)  # only one of its results is used
    return keras.Model([x, y], initialized(layers.Dense, 2, seed=5)(last))


@pytest.mark.parametrize("form", ["list", "dict"])
@pytest.mark.parametrize("name", TWO)
def test_nested_models_with_several_inputs_and_outputs(name, form):
    generator = np.random.default_rng(7)
    x = [generator.normal(size=(3, 3)) for _ in range(2)]
    nested, flat = cells(form), cells("flat")
    assert_same(nested(x).numpy(), flat(x).numpy(), 1e-14)
    found, expected = (explain(create(name, model), x, [0, 1]) for model in (nested, flat))
    for first, second in zip(found, expected, strict=True):
        assert np.abs(second).max() > 0
        assert_same(first, second)
