"""Where directions can be compared on the way back, for the verdict and its pictures."""

from __future__ import annotations

import xarray as xr

from tfexplain import metrics

# Of the pairs of a layer, so many at least have to be comparable.
LEAST_SHARE = 0.1


def comparable(dataset: xr.Dataset) -> xr.Dataset:
    """Returns cosines without those of vectors in one channel, which are 1 whatever the method.

    Behind rectifiers and max pooling, often a single channel of a location is active.

    Args:
        dataset: Of `cosine_convergence`.

    Returns:
        The same with fewer pairs in `count`, and `quantile` of the others. Layers of which less
        than a tenth of the pairs is left have none.
    """
    count = dataset["count"].astype("int64")
    alone = dataset["one_channel"]
    # Distances of parallel vectors are in the first bin.
    left = count.where(count["bin"] != count["bin"][0], count - alone)
    enough = left.sum("bin") >= LEAST_SHARE * count.sum("bin")
    left = left.where(enough, 0).transpose(*count.dims)
    quantiles = metrics.histogram_quantiles(left.values, dataset["q"].values)
    return dataset.assign(
        count=left, quantile=(dataset["quantile"].dims, quantiles.astype("float64"))
    )


def first_layer(dataset: xr.Dataset, method: str) -> str | None:
    """Returns the layer nearest to the input at which directions can be compared.

    The input counts where there is no other one.

    Args:
        dataset: What `comparable` returned.
        method: Name of the analyzer.
    """
    count = dataset["count"].isel(start=0).sel(analyzer=method).sum("bin")
    start = str(dataset.start.values[0])
    *inside, last = [str(name) for name in dataset.layer.values]
    for name in (*reversed(inside), last):
        if name != start and int(count.sel(layer=name)) > 0:
            return name
    return None
