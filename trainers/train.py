"""Trains a preset: tfstruct-train --preset=graph_vae/mnist --workdir=runs/a [--set key=value ...]."""

from absl import flags

from tfstruct.trainers import entry

_PRESET = flags.DEFINE_string("preset", None, "Name of a preset; --list_presets shows them.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. The same command given again resumes it.")
_SET = flags.DEFINE_multi_string("set", [], "Changes a setting: key=value, such as optimizer.learning_rate=1e-3.")
_SEED = flags.DEFINE_integer("seed", None, "Seed of weights, order and noise; default the preset's.", lower_bound=0)
_REPLICAS = flags.DEFINE_integer("replicas", None, "Number of seeds trained at once.", lower_bound=1)
_STRATEGY = flags.DEFINE_enum(
    "strategy", "auto", ["auto", "none", "mirrored", "multi_worker"], "Use of several devices."
)
_PRECISION = flags.DEFINE_enum(
    "precision", None, ["float32", "bfloat16"], "Of matrix products in training; default the preset's."
)
_RESUME = flags.DEFINE_enum("resume", "auto", ["auto", "never", "must"], "What to do with an earlier run.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets prepared by TensorFlow Datasets.")
_DATA_FILE = flags.DEFINE_string(
    "data_file", None, "Train on a .npz, .npy, .csv or .parquet file, or a folder of images, instead."
)
_LIST_SETTINGS = flags.DEFINE_bool("list_settings", False, "Print all settings of the preset, and end.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print settings, parameters, memory and time after a few steps; write nothing."
)
_NEEDED = "--preset and --workdir are needed; --list_presets shows the presets"
_LIST = flags.DEFINE_flag(
    entry.list_flag("list_presets", "Print the presets as a table, and end; --list_presets=graph: those with `graph`.")
)


def main() -> None:
    """Trains and prints where the results lie."""
    from tfstruct.models import presets

    if _LIST.value is not None:
        from tfstruct.evaluation import preset_table
        from tfstruct.files import read_json
        from tfstruct.serving import client
        from tfstruct.serving.contents import CARD_NAME

        bundles = {read_json(client.find(name) / CARD_NAME)["preset"]: name for name in client.list_models()}
        print(*preset_table.lines(_LIST.value, bundles), sep="\n")
        return
    if _PRESET.value is None:
        raise ValueError(_NEEDED)
    overrides = list(_SET.value)
    if _SEED.value is not None:
        overrides.append(f"training.seed={_SEED.value}")
    if _REPLICAS.value is not None:
        overrides.append(f"training.replicas={_REPLICAS.value}")
    if _PRECISION.value is not None:
        overrides.append(f"training.precision={_PRECISION.value}")
    if _DATA_FILE.value is not None:
        file_overrides = ["data.name=file", f"data.file={_DATA_FILE.value!r}"]
        if not any(override.startswith("data.variant=") for override in overrides):
            file_overrides.append("data.variant=none")
        overrides = file_overrides + overrides
    config = presets.get(_PRESET.value, overrides)
    if _LIST_SETTINGS.value or _DRY_RUN.value:
        for name, value, about in config.help():
            print(f"{f'{name}={value!r}':60} {about}".rstrip())
    if _DRY_RUN.value:
        from tfstruct.training.dry_run import dry_run

        print("compiling, once", flush=True)
        estimate = dry_run(config, _DATA_DIR.value)
        print(f"{estimate.num_parameters:,} parameters, {estimate.megabytes:,.0f} MiB of memory")
        speed = f", then {estimate.steps_per_second:.1f} steps/s" if estimate.steps_per_second > 0 else ""
        print(
            f"{estimate.compile_seconds:.0f} s for the first call, which compiles{speed}: "
            f"{estimate.seconds / 60.0:.1f} min for {config.training.steps:,} steps, without validations"
        )
    if _LIST_SETTINGS.value or _DRY_RUN.value:
        return
    workdir = _WORKDIR.value
    if workdir is None:
        raise ValueError(_NEEDED)

    from tfstruct.training import run

    result = run.train(config, workdir, strategy=_STRATEGY.value, resume=_RESUME.value, data_dir=_DATA_DIR.value)
    bounds = ", ".join(f"{bound:.2f}" for bound in result.best.bounds)
    samples = config.training.validation_samples
    what = "best validation log-likelihood"
    if config.data.use_validation:
        what = "log-likelihood of validation rows, which were trained on,"
    print(f"{workdir}: step {result.step}, {what} {bounds} nats (K={samples})")
    if result.steps_per_second > 0:  # NaN when there was no call but the first, which compiles
        print(f"{result.steps_per_second:.1f} steps/s after compilation, {result.seconds:.0f} s in all")


def run() -> None:
    """The console script `tfstruct-train`."""
    entry.run(main)


if __name__ == "__main__":
    run()
