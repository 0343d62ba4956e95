"""Makes the network that comes with the library: `python -m docs.network`.

It writes `tfexplain/trained/digits.npz`, the weights by their names, and `digits.json`
beside it: how they were made, and the accuracy. The numbers of an audit follow from these weights:
who makes them again runs `tfexplain demo` and looks at what the pages say of it.
"""

import hashlib
import json

import numpy as np

from tfexplain import demo, results


def accuracy(model, part: tuple[np.ndarray, np.ndarray]) -> float:
    """Returns which share of digits the network recognises."""
    x, y = part
    return round(float(np.mean(model.predict(x, verbose=0).argmax(axis=1) == y)), 4)


def main() -> None:
    """Trains the network, and writes both files."""
    model = demo.train()
    train, test = demo.load_digits()
    halves = [weight.astype("float16") for weight in model.get_weights()]
    demo.WEIGHTS.parent.mkdir(exist_ok=True)
    np.savez_compressed(demo.WEIGHTS, **dict(zip(demo.weight_names(model), halves, strict=True)))
    about = {
        "made_by": "python -m docs.network, which calls tfexplain.demo.train",
        "config": demo.CONFIG,
        "data": "scikit-learn's digits, split by tfexplain.demo.load_digits",
        "train_images": len(train[0]),
        "test_images": len(test[0]),
        "accuracy": {"test": accuracy(model, test), "train": accuracy(model, train)},
        "parameters": model.count_params(),
        "precision": "float16",
        "sha256": hashlib.sha256(demo.WEIGHTS.read_bytes()).hexdigest(),
        "versions": results.versions(),
    }
    text = json.dumps(about, indent=1) + "\n"
    demo.WEIGHTS.with_suffix(".json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
