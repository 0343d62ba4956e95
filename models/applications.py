"""Networks of `keras.applications` whose layers carry the names of a paper."""

import os
from collections.abc import Callable, Mapping

import keras

from models.weights import keras_names, load_weights


def renamed_application(
    application: Callable[..., keras.Model],
    names: Mapping[str, str],
    weights: str | os.PathLike | None = None,
    *,
    epsilon: float | None = None,
    **settings,
) -> keras.Model:
    """Builds a network of `keras.applications` and calls its layers otherwise.

    The result is a copy with weights of its own, in the same order. Its input is called "input".

    Args:
        application: Function of `keras.applications`, or one with the parameters `weights` and
            those of `settings`.
        names: New name -> name in `application`, for every layer except the input.
        weights: None for random weights; "imagenet" for those that `application` loads, which may
            download; or the path of a file. `.npz` and `.weights.h5` are matched by the names of
            the layers, the new ones or those of `application`, and have to fit perfectly. Other
            `.h5` files are in the older format of Keras, as the downloads of `keras.applications`
            are; Keras matches them by order.
        epsilon: Given to every batch normalisation; None leaves them as they are.
        **settings: Given to `application`.

    Returns:
        Model with the name of the one that `application` makes, not compiled.

    Raises:
        FileNotFoundError: If there is no such weight file.
        ValueError: If the weight file is damaged or does not fit, if the imagenet weights cannot be
            loaded, or if `names` leaves out layers or names unknown ones.
    """
    path = None if weights is None or weights == "imagenet" else os.fspath(weights)
    if path is not None and not os.path.isfile(path):
        raise FileNotFoundError(
            f"There is no weight file {path!r}. Expected a file, 'imagenet' or None."
        )
    by_order = path is not None and path.endswith(".h5") and not path.endswith(".weights.h5")
    if weights == "imagenet":
        original = _with_imagenet(application, settings)
    else:
        original = application(weights=None, **settings)
    if by_order:
        _load_by_order(original, path)
    model = _renamed(original, names, epsilon)
    if by_order or weights == "imagenet":
        model.set_weights(original.get_weights())
    elif path is not None:
        load_weights(
            model,
            path,
            [
                keras_names,
                lambda layer: [
                    f"{names[layer.name]}/{index}" for index in range(len(layer.weights))
                ],
            ],
        )
    return model


def _renamed(model: keras.Model, names: Mapping[str, str], epsilon: float | None) -> keras.Model:
    inputs, *rest = model.layers
    new = {old: name for name, old in names.items()}
    wrong = sorted({layer.name for layer in rest} ^ set(new))
    if wrong:
        raise ValueError(
            f"The names do not fit {model.name!r}: {', '.join(wrong)}. Expected each of its layers "
            "once, without the input; this version of Keras may build another network."
        )

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        config["name"] = new.get(layer.name, layer.name)
        if epsilon is not None and isinstance(layer, keras.layers.BatchNormalization):
            config["epsilon"] = epsilon
        return type(layer).from_config(config)

    return keras.models.clone_model(
        model, keras.Input(inputs.batch_shape[1:], name="input"), clone_function=copy
    )


def _with_imagenet(application: Callable[..., keras.Model], settings: dict) -> keras.Model:
    try:
        return application(weights="imagenet", **settings)
    except Exception as error:  # no network, a damaged download, settings of another network
        raise ValueError(
            f"The imagenet weights of {application.__name__} cannot be loaded "
            f"({type(error).__name__}: {error}). They exist for the default input shape only; "
            "without a network give the path of a weight file, or None for random weights."
        ) from error


def _load_by_order(model: keras.Model, path: str) -> None:
    try:
        model.load_weights(path)
    except Exception as error:  # h5py and Keras raise many classes
        raise ValueError(
            f"Weight file {path!r} does not fit model {model.name!r} or is damaged "
            f"({type(error).__name__}: {error}). Expected a file of this network in the older "
            "format of Keras; files of `save_weights` end in .weights.h5."
        ) from error
