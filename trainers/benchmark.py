"""Times what this project does beside other ways of doing it: tfstruct-benchmark --preset=graph_vae/mnist.

All ways do the same work on the same data in one process. After a round of each that compiles they take turns for
`--rounds` rounds; medians and ranges are told, and ratios are of the same round, so that they mean something on a noisy
machine. "Of the most" is the share of what the device could do if it did nothing but the matrix products and one
reading and writing of the weights, at the speeds that are measured before and after (the better counts).

--measure=training     steps of training: the loop, one call a step, Keras fit, replicas, and rivals of `--import`
--measure=evaluation   importance samples, beside a call for every sample
--measure=log_partition  annealing of a Boltzmann VAE's prior, beside a loop in NumPy
--measure=circuit      log densities and gradients of the circuit of a sum-product preset, and rivals of `--import`
--measure=scoring      requests to a bundle, --model=graph_vae/mnist

With `--against` it is the same way of training for other settings of the preset,
--against="model.posterior=directed model.groups=4", or for another preset on the same data,
--against=dense_vae/mnist_continuous. With `--scaling` it is the cost of a step for several values of a setting, or of
`replicas`, and the exponent by which it grows: --scaling=training.batch_size=64,128,256 --scaling=replicas=1,2,4.
"""

from typing import TYPE_CHECKING, Any

from absl import flags

from tfstruct.trainers import entry

if TYPE_CHECKING:
    from tfstruct.benchmarks.floor import Machine
    from tfstruct.benchmarks.timing import Timing, Way
    from tfstruct.models.config import Config

_MEASURE = flags.DEFINE_enum(
    "measure", "training", ["training", "evaluation", "log_partition", "circuit", "scoring"], "What is timed."
)
_PRESET = flags.DEFINE_string("preset", "graph_vae/mnist", "Name of a preset.")
_SET = flags.DEFINE_multi_string("set", [], "Changes a setting: key=value.")
_AGAINST = flags.DEFINE_multi_string(
    "against", [], "Times the preset with these settings, separated by spaces, or another preset."
)
_SCALING = flags.DEFINE_multi_string(
    "scaling", [], "Times a step for each value of a setting, or of `replicas`: key=value,value,..."
)
_STEPS = flags.DEFINE_integer("steps", 200, "Training steps of one round.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds.", lower_bound=1)
_REPLICAS = flags.DEFINE_integer(
    "replicas", 3, "Seeds trained at once in the row of replicas; 1: no row.", lower_bound=1
)
_ROWS = flags.DEFINE_integer("rows", 100, "Test rows that are scored.", lower_bound=1)
_MODEL = flags.DEFINE_string("model", "graph_vae/mnist", "Bundle whose requests are timed: a name or a folder.")
_BATCHES = flags.DEFINE_list("batches", ["1", "32", "128"], "Rows of a request.")
_REQUESTS = flags.DEFINE_integer("requests", 50, "Requests of each size.", lower_bound=1)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets prepared by TensorFlow Datasets.")
_OUTPUT = flags.DEFINE_string("output", None, "A .json file to write.")
_FIGURE = flags.DEFINE_string("figure", None, "A .png or .svg file: cost against each setting of --scaling.")


def main() -> None:
    """Measures, prints a table, and writes what was measured."""
    from tfstruct.files import write_json
    from tfstruct.training.workdir import environment

    if _FIGURE.value and not _SCALING.value:
        raise ValueError("--figure draws what --scaling measures; give --scaling=key=value,value,...")
    measured = _time_requests() if _MEASURE.value == "scoring" else _time_ways()
    if _OUTPUT.value:
        write_json(_OUTPUT.value, {**measured, "environment": environment()})


def _time_requests() -> dict[str, Any]:
    import tfstruct
    from tfstruct.benchmarks import scoring
    from tfstruct.models import presets
    from tfstruct.training.data import load_data

    try:
        batches = [int(size) for size in _BATCHES.value]
    except ValueError:
        raise ValueError(f"--batches must be integers, found {','.join(_BATCHES.value)}") from None
    if min(batches, default=0) < 1:
        raise ValueError(f"--batches must be at least 1, found {','.join(_BATCHES.value)}")
    model = tfstruct.load(_MODEL.value)
    rows = load_data(presets.get(model.card["preset"]), _DATA_DIR.value).test
    found = scoring.score_requests(model, rows, batches=batches, requests=_REQUESTS.value, say=_say)
    for name, row in found.items():
        _say(
            f"{name:46} {row['per_second']:9.1f} rows/s   "
            f"p50 {row['p50_ms']:.1f} ms, p90 {row['p90_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms"
        )
    return {"measure": "scoring", "model": _MODEL.value, "num_samples": model.card["num_samples"], "rows": found}


def _time_ways() -> dict[str, Any]:
    from tfstruct.benchmarks import floor, timing
    from tfstruct.models import presets

    config = presets.get(_PRESET.value, _SET.value)
    before = floor.measure()
    if _SCALING.value:
        curves = _time_scaling(config)
    else:
        ways, unit = _ways(config)
        timings = timing.take_turns(ways, rounds=_ROUNDS.value, say=_say)
    machine = floor.measure().better(before)
    _say(
        f"\nthis device: {machine.operations_per_second / 1e9:,.0f} GFLOP/s in matrix products, "
        f"{machine.bytes_per_second / 1e9:,.0f} GB/s"
    )
    about = {"measure": _MEASURE.value, "preset": config.preset, "batch_size": config.training.batch_size}
    about["device"] = machine._asdict()
    if _SCALING.value:
        return about | {"steps_of_a_round": _STEPS.value, "scaling": _scaling(curves, machine)}
    first = next(iter(timings.values()))
    rows = {name: found.row(first, machine) for name, found in timings.items()}
    _say(f"{config.preset}, batch {config.training.batch_size}; ratios to the first row, of the same round:")
    _say("\n".join(timing.table(rows, unit)))
    return about | {
        "unit": unit,
        "rows": rows,
        "rounds": {name: found.rates.tolist() for name, found in timings.items()},
        "work_of_a_round": {name: found.work for name, found in timings.items()},
    }


def _ways(config: "Config") -> tuple[dict[str, "Way"], str]:
    """The ways by name, and what a unit of their work is."""
    from tfstruct.benchmarks import circuits, inference, training
    from tfstruct.models.boltzmann_vae.config import Config as BoltzmannConfig
    from tfstruct.models.sum_product_vae.config import Config as SumProductConfig
    from tfstruct.training.data import load_data

    if _MEASURE.value == "log_partition":
        if not isinstance(config, BoltzmannConfig):
            raise ValueError(f"--measure=log_partition is for Boltzmann VAEs, found --preset={config.preset}")
        units, settings = (config.model.num_units_1, config.model.num_units_2), config.evaluation
        return (
            inference.partition_ways(units, settings.prior_temperatures, settings.prior_chains),
            inference.PARTITION_UNIT,
        )
    if _MEASURE.value == "circuit":
        if not isinstance(config, SumProductConfig):
            raise ValueError(f"--measure=circuit is for sum-product VAEs, found --preset={config.preset}")
        return circuits.ways_of(config, _STEPS.value), circuits.UNIT
    data = load_data(config, _DATA_DIR.value)
    if _MEASURE.value == "evaluation":
        return inference.evaluation_ways(config, data, _ROWS.value), inference.EVALUATION_UNIT
    if _AGAINST.value:
        return training.ways_against(config, data, _STEPS.value, _AGAINST.value, _SET.value), "steps"
    return training.training_ways(config, data, _STEPS.value, _REPLICAS.value), "steps"


def _time_scaling(config: "Config") -> "dict[str, tuple[list[float], list[Timing]]]":
    """The values of each setting of `--scaling`, and the timing of a step at each."""
    from tfstruct.benchmarks import timing, training

    asked = {}
    for text in _SCALING.value:
        key, _, listed = text.partition("=")
        values = listed.split(",")
        try:
            numbers = [float(value) for value in values]
        except ValueError:
            numbers = []
        if len(set(numbers)) < 2 or min(numbers) <= 0.0:
            raise ValueError(f"--scaling must be key=value,value,... of two or more positive numbers, found {text!r}")
        asked[key] = values, numbers
    found = {}
    for key, (values, numbers) in asked.items():
        ways = training.scaling_ways(config, _DATA_DIR.value, _STEPS.value, key, values)
        found[key] = numbers, list(timing.take_turns(ways, rounds=_ROUNDS.value, say=_say).values())
    return found


def _scaling(timed: "dict[str, tuple[list[float], list[Timing]]]", machine: "Machine") -> dict[str, Any]:
    """What timings of steps say, printed and returned; drawn where `--figure` says so."""
    from tfstruct.benchmarks import timing
    from tfstruct.plotting import figures
    from tfstruct.plotting.scaling import ScalingCurve, draw_scaling

    curves, found = {}, {}
    for key, (numbers, timings) in timed.items():
        slope, error = timing.exponent(numbers, timings)
        rows = [row.row(timings[0], machine) | {"value": number} for number, row in zip(numbers, timings, strict=True)]
        _say("\n".join(timing.table({f"{key}={row['value']:g}": row for row in rows}, "steps")))
        _say(f"seconds of a step grow as {key}^{slope:.2f} (standard error of the fit {error:.2f})\n")
        found[key] = {"rows": rows, "exponent": slope, "exponent_std_err": error}
        seconds, least = ([1.0 / row[name] for row in rows] for name in ("per_second", "most_per_second"))
        curves[key] = ScalingCurve(numbers, seconds, least, slope)
    if _FIGURE.value:
        figures.save(draw_scaling(curves), _FIGURE.value)
    return found


def _say(text: str) -> None:
    print(text, flush=True)


def run() -> None:
    """The console script `tfstruct-benchmark`."""
    entry.run(main)


if __name__ == "__main__":
    run()
