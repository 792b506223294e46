"""Orders of the dimensions of an autoregressive network or flow."""

from collections.abc import Sequence

import numpy as np

ORDERS = ("forward", "reversed")


def resolve_order(order: str | Sequence[int], dim: int) -> np.ndarray:
    """Returns the place of every dimension in an order, a permutation of 0..dim - 1.

    Args:
        order: `forward`, `reversed`, or the places themselves: order[i] is the place of dimension i.
        dim: number of dimensions.

    Raises:
        ValueError: an unknown name, or places that are no permutation.
    """
    if isinstance(order, str):
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)} or a permutation, found {order!r}")
        places = np.arange(dim)
        return places if order == "forward" else places[::-1].copy()
    places = np.asarray(order)
    if places.shape != (dim,) or not np.array_equal(np.sort(places), np.arange(dim)):
        raise ValueError(f"order must be a permutation of 0..{dim - 1}, found {np.asarray(order).tolist()}")
    return places.astype(np.int64)
