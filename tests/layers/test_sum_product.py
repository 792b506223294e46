"""How the weights of a circuit start."""

import numpy as np
from scipy import stats

from tfstruct.distributions.region_graph import poon_domingos
from tfstruct.layers.sum_product import SumProduct


def test_the_logits_of_sums_start_as_standard_normal_numbers():
    layer = SumProduct(poon_domingos((8, 8), 2), num_leaves=2, num_sums=2)
    layer.build()
    logits = np.asarray(layer.logits)
    assert len(logits) == layer.layout.num_weights > 1_000
    # At a level of 1e-6, with 1,000 numbers, a largest deviation of the distribution functions above 0.08 is seen.
    assert stats.kstest(logits, "norm").pvalue > 1e-6
    # A sum's weights then differ by a factor of e, so that its products do not all learn the same.
    assert 0.9 < logits.std() < 1.1
