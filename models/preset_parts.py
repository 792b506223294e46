"""What presets of several systems share."""

import ml_collections


def shorten(config: ml_collections.ConfigDict) -> None:
    """Makes training, evaluation and export those of a `tiny` preset: seconds, for tests."""
    config.training.update(
        steps=200,
        batch_size=32,
        steps_per_call=50,
        validate_every=100,
        validation_images=200,
        validation_samples=5,
    )
    config.evaluation.update(num_samples=20, images=200, batch_size=50, chunk=10)
    config.export.update(num_samples=10, chunk=5)
