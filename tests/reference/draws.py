"""What tests ask of a system's terms, by keyword."""

import tensorflow as tf

from tfstruct.inference.objectives import Draws


def draws(seed, num_samples, *, gate_temperature=None, **given):
    """A request; what is no field of it is an option of the system's own."""
    scheduled = {} if gate_temperature is None else {"gate_temperature": gate_temperature}
    fields = {name: value for name, value in given.items() if name in Draws._fields}
    options = {name: value for name, value in given.items() if name not in Draws._fields}
    return Draws(seed, num_samples, **{"scheduled": scheduled, "options": options, **fields})


def training_draws(system, seed, shared_seed, scheduled=0.7):
    """What training asks a system for, at one value of all that is scheduled."""
    values = {name: tf.cast(scheduled, system.compute_dtype) for name in system.needs.schedules}
    samples = system.config.objective.num_samples
    return Draws(seed, samples, training=True, shared_seed=shared_seed, scheduled=values)
