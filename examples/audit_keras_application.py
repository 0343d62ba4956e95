r"""Which explanations of a Keras application can be trusted on your photographs?

The same as one command, with the network at its own size:

    tfexplain audit keras.applications:MobileNet photos/ --weights imagenet \
        --preprocess mobilenet --quick --images 8 --methods gradient,lrp.epsilon,lrp.z_plus \
        --out audit

and from Python, where methods can have options and the network its input size:

    python audit_keras_application.py photos/
    python audit_keras_application.py photos/ --application ResNet50 \
        --methods gradient,lrp.epsilon,lrp.alpha_2_beta_1 --fail-on lrp.epsilon

PHOTOS is a folder of images, also in folders one level below. The imagenet weights are downloaded
once. `--weights none` needs no network and tries the way alone: the verdicts of random weights mean
nothing. Out comes the folder `audit`: report.html (open it in a browser), verdict.json, audit.json
and results/*.nc. An audit that was stopped is continued by the same command. The exit status is 3
unless the methods named by `--fail-on` are trustworthy.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import keras

import tfexplain
from tfexplain import report
from tfexplain.analyzers import resolve_name

# Application -> module of keras.applications whose preprocess_input it wants.
PREPROCESS = {
    "MobileNet": "mobilenet",
    "MobileNetV2": "mobilenet_v2",
    "ResNet50": "resnet50",
    "VGG16": "vgg16",
}
NOT_TRUSTED, STOPPED = 3, 130  # the exit statuses that the command has, too


def build(name: str, weights: str | None, size: int) -> keras.Model:
    """Builds a network of keras.applications with its 1000 classes.

    Args:
        name: Such as "MobileNet".
        weights: "imagenet", None for random ones, or a file.
        size: Height and width of the input; other sizes than its own need weights=None or a file.

    Raises:
        ValueError: If it cannot be built.
    """
    application = getattr(keras.applications, name, None)
    if application is None or not name[0].isupper():
        raise ValueError(f"keras.applications has no {name!r}. Expected one such as 'MobileNet'.")
    try:
        return application(weights=weights, input_shape=(size, size, 3))
    except Exception as error:  # no network, a damaged download, a size that does not fit
        raise ValueError(
            f"{name} with weights {weights!r} and inputs of size {size} cannot be built ({error}). "
            "Without a network give --weights none or a file."
        ) from error


def load(photos: str, model: keras.Model, preprocess: str, images: int) -> report.Data:
    """Loads photographs in the size of the network, the middle of each.

    Args:
        photos: A folder.
        model: The network.
        preprocess: Name of a module of keras.applications.
        images: How many; if there are more, they are drawn at random.
    """
    shape, outputs = model.input_shape[1:], model.output_shape[-1]
    # Without labels the prediction for each photograph is explained.
    return report.load_data(
        photos, shape, outputs, preprocess=preprocess, labels="none", count=images
    )


def announce(plan: report.Plan) -> None:
    """Says what is left out and how long the rest takes, before it starts."""
    for name, reason in plan.left_out.items():
        print(f"left out: {name}: {reason}")
    for note in plan.notes:
        print(f"note: {note}")
    print(f"methods: {len(plan.methods)}, audits: {len(plan.passes)}, about {plan.seconds:.0f} s")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("photos", metavar="PHOTOS", help="A folder of images.")
    add("--application", default="MobileNet", metavar="NAME", help="Of keras.applications.")
    add("--preprocess", metavar="NAME", help="A module of keras.applications, such as mobilenet.")
    add("--weights", default="imagenet", metavar="imagenet|none|FILE")
    add("--size", type=int, default=224, metavar="PIXELS", help="Other sizes: --weights none.")
    add("--methods", default="gradient,lrp.epsilon,lrp.z_plus", metavar="NAME,NAME,...")
    add("--audits", metavar="NAME,NAME,...", help="Default: all that make sense.")
    add("--images", type=int, default=8, metavar="N", help="At most; default: 8.")
    add("--out", default="audit", metavar="FOLDER", help="Default: audit.")
    add("--fail-on", action="append", default=[], metavar="METHOD", help="Can be repeated.")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> report.Outcome:
    """Runs the audit; ends with status 1 for mistakes, 3 if a method is not trusted."""
    given = parse(arguments)
    methods = [name.strip() for name in given.methods.split(",")]
    try:
        for name in (*methods, *given.fail_on):
            resolve_name(name)
        if strange := set(given.fail_on) - set(methods):
            raise ValueError(f"--fail-on {', '.join(strange)} is not among --methods.")
        preprocess = given.preprocess or PREPROCESS.get(given.application)
        if preprocess is None:
            raise ValueError(
                f"The preprocessing of {given.application} is not known. Give --preprocess."
            )
        weights = None if given.weights == "none" else given.weights
        model = build(given.application, weights, given.size)
        data = load(given.photos, model, preprocess, given.images)
        for note in data.notes:
            print(f"note: {note}")
        outcome = tfexplain.audit(
            model,
            data.x,
            methods=methods,
            audits=given.audits.split(",") if given.audits else None,
            preset="quick",
            images=given.images,
            thresholds=report.Thresholds(other_class=0.95, last_layers=0.95, directions=0.99),
            pixels=data.pixels,
            preprocess=data.preprocess,
            folder=given.out,
            # What the report says of the photographs.
            about={
                "data": given.photos,
                "notes": data.notes,
                "names": data.names,
                "given": data.given or len(data.x),
            },
            announce=announce,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        print(stop, file=sys.stderr)
        sys.exit(STOPPED)
    verdict = outcome.verdict()
    print(verdict)
    print(f"{pathlib.Path(given.out) / 'report.html'}: the report, with all maps and numbers.")
    trusted = {row.method for row in verdict.rows if row.trust == "trustworthy"}
    if distrusted := [name for name in given.fail_on if name not in trusted]:
        print(f"not trusted: {', '.join(distrusted)}", file=sys.stderr)
        sys.exit(NOT_TRUSTED)
    return outcome


if __name__ == "__main__":
    main()
