"""What requests to a bundle take, loaded as a user would."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

UNIT = "rows"


def score_requests(
    model: Any, rows: np.ndarray, *, batches: Sequence[int], requests: int, say: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """Times `log_prob` of requests of each size, in turn; returns rows a second and latencies in milliseconds.

    Args:
        model: a loaded bundle.
        rows: [n, *event_shape], of which requests take some at a time, again from the beginning where they end.
        batches: rows of a request, for each kind of request.
        requests: of each kind.
        say: is told of each kind that has answered once.
    """
    seconds: dict[int, list[float]] = {size: [] for size in batches}
    for size in batches:
        start = time.perf_counter()
        model.log_prob(np.resize(rows, (size, *rows.shape[1:])))
        say(f"requests of {size} rows: the first took {time.perf_counter() - start:.2f} s")
    for place in range(requests):
        for size in batches:
            request = np.take(rows, np.arange(place * size, (place + 1) * size), axis=0, mode="wrap")
            start = time.perf_counter()
            model.log_prob(request)
            seconds[size].append(time.perf_counter() - start)
    return {
        f"requests of {size} rows": {
            "per_second": size / float(np.median(taken)),
            **{f"p{level}_ms": 1_000.0 * float(np.percentile(taken, level)) for level in (50, 90, 99)},
            "requests": requests,
        }
        for size, taken in seconds.items()
    }
