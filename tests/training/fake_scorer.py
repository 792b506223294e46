"""Validation bounds that are made up."""

from tfstruct.inference.held_out import Summary


class FakeScorer:
    """In place of a HeldOutScorer: gives the bounds of a list one after another, and remembers weights and rows."""

    def __init__(self, bounds):
        self.bounds, self.seen, self.rows = [float(bound) for bound in bounds], [], []

    def prepare(self, parameters, statistics, settings):
        return statistics, {}

    def __call__(self, parameters, statistics, rows, *, seed):
        self.seen.append((parameters.copy(), statistics.copy()))
        self.rows.append(rows)
        return self.bounds[len(self.seen) - 1]

    def summarise(self, bound):
        return Summary(bound, 0.1, bound - 1.0, 0.1, 1.0, 2.0, 3.0, 20, 3)
