"""Tables of benchmarks hold the numbers of the files, rounded, and say where they come from."""

import json

import pytest

from tfstruct.evaluation import benchmark_tables, sections

ENVIRONMENT = {
    "command": ["tfstruct-benchmark", "--preset=a/b", "--output=/tmp/x.json"],
    "commit": "0123456789abcdef",
    "cpu_count": 1,
    "gpus": [],
}
ROW = {
    "per_second": 12.34, "slowest": 11.0, "fastest": 1234.5, "ratio": 0.5, "least_ratio": 0.25, "greatest_ratio": 1.0,
    "share_of_most": 0.417, "compile_seconds": 20.4, "value": 32.0,
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def written(name, **found):
        folder = tmp_path / "results/benchmarks"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps({"environment": ENVIRONMENT, **found}))
        return sections.section(f"benchmarks/{name}", {}, tmp_path)

    return written


def test_ways_stand_with_their_ranges_ratios_and_share_of_the_most(write):
    device = {"operations_per_second": 91.6e9, "bytes_per_second": 31.2e9}
    rows = {"loop": ROW, "fit": ROW | {"share_of_most": None}}
    text = write("x", measure="training", preset="a/b", batch_size=128, unit="steps", rows=rows, device=device)
    assert "| way | steps/s (range) |" in text
    assert "| loop | 12.3 (11.0 to 1,234) | 0.50 (0.25 to 1.00) | 42% | 20 |" in text
    assert "| fit | 12.3 (11.0 to 1,234) | 0.50 (0.25 to 1.00) | - | 20 |" in text
    assert "`a/b`, batch 128; 1 CPU core; commit 0123456; `results/benchmarks/x.json`" in text
    assert "by `tfstruct-benchmark --preset=a/b`" in text
    assert "92 GFLOP/s in matrix products, 31 GB/s" in text


def test_scaling_stands_with_exponents_and_requests_with_percentiles(write):
    curve = {"rows": [ROW, ROW | {"per_second": 5.0, "value": 2048.0}], "exponent": 0.876, "exponent_std_err": 0.041}
    text = write("y", measure="training", preset="a/b", batch_size=128, scaling={"training.batch_size": curve})
    assert "| `training.batch_size` | 32, 2,048 | 81.0, 200.0 | 0.88 (0.04) |" in text
    row = {"per_second": 314.2, "p50_ms": 3.2, "p90_ms": 4.7, "p99_ms": 1200.4}
    text = write("z", measure="scoring", model="a/b", num_samples=100, rows={"requests of 1 rows": row})
    assert "| requests of 1 rows | 314 | 3 | 5 | 1,200 |" in text
    assert "`a/b`, K=100; 1 CPU core" in text


def test_a_comparison_stands_as_the_program_prints_it(write):
    setting = {"name": "mnist", "variant": "dynamic", "split": "test", "images": 20, "num_samples": 5}
    models = [
        {"name": name, "num_parameters": 1234, "num_seeds": 2, "log_likelihood": value, "std_over_seeds": 0.5,
         "std_err_over_images": 0.25, "elbo": -92.0, "flags": []}
        for name, value in (("one", -90.0), ("two", -91.5))
    ]  # fmt: skip
    difference = {"first": "one", "other": "two", "log_likelihood": 1.5, "std_err_over_seeds": None,
                  "std_err_over_images": 0.125, "elbo": 1.0}  # fmt: skip
    text = write("c", setting=setting, models=models, differences=[difference])
    assert "mnist (dynamic), test split, 20 images, K=5; nats" in text
    assert "| two | 1,234 | 2 | -91.50 | 0.50 | 0.25 | -92.00 |" in text
    assert "| one - two | 1.50 | - | 0.12 | 1.00 |" in text
    assert "`one`, `two`; 1 CPU core; commit 0123456; `results/benchmarks/c.json`" in text


def test_the_names_are_those_of_the_files(write, tmp_path):
    write("b", measure="scoring", model="m", rows={})
    write("a", measure="scoring", model="m", rows={})
    assert benchmark_tables.names(tmp_path / "results") == ["benchmarks/a", "benchmarks/b"]
    with pytest.raises(ValueError, match="unknown section 'benchmarks/c'"):
        sections.section("benchmarks/c", {}, tmp_path)
