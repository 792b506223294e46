"""What tests ask of a system's terms, by keyword."""

from tfstruct.inference.objectives import Draws


def draws(seed, num_samples, *, gate_temperature=None, **given):
    """A request; what is no field of it is an option of the system's own."""
    scheduled = {} if gate_temperature is None else {"gate_temperature": gate_temperature}
    fields = {name: value for name, value in given.items() if name in Draws._fields}
    options = {name: value for name, value in given.items() if name not in Draws._fields}
    return Draws(seed, num_samples, **{"scheduled": scheduled, "options": options, **fields})
