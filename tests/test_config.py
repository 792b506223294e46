import json

import ml_collections
import pytest

from tfstruct import config as config_lib
from tfstruct.evaluation import report
from tfstruct.models import presets
from tfstruct.training import settings


@pytest.fixture
def config():
    return ml_collections.ConfigDict(
        {
            "count": 3,
            "rate": 0.5,
            "flag": True,
            "name": "text",
            "units": (4, 5),
            "rows": (),
            "inner": {"count": 1, "deep": {"rate": 2.0}},
        }
    )


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        ("count=7", "count", 7),
        ("count=-7", "count", -7),
        ("rate=2", "rate", 2.0),
        ("rate=3e-4", "rate", 3e-4),
        ("flag=False", "flag", False),
        ("flag=false", "flag", False),
        ("name=other", "name", "other"),
        ("name='quoted'", "name", "quoted"),
        ("name=a=b", "name", "a=b"),
        ("name=", "name", ""),
        ("units=(1,)", "units", (1,)),
        ("units=[1, 2, 3]", "units", (1, 2, 3)),
        ("units=1,2", "units", (1, 2)),
        ("units=()", "units", ()),
        ("rows=[[0, 0], [1, 0]]", "rows", ((0, 0), (1, 0))),
        ("inner.count=9", "inner.count", 9),
        ("inner.deep.rate=9", "inner.deep.rate", 9.0),
    ],
)
def test_an_override_sets_one_value_with_the_type_of_the_default(config, override, name, expected):
    before = config_lib.from_json(config_lib.to_json(config))
    config_lib.apply_overrides(config, [override])
    node = config
    for part in name.split("."):
        node = node[part]
    assert node == expected
    assert type(node) is type(expected)
    assert [line.partition(":")[0] for line in config_lib.differences(before, config)] == [name]


# A file named 1e3 or 007 is not the file 1000.0: text that happens to be a Python literal stays that text.
@pytest.mark.parametrize("text", ["1e3", "0x10", "1_000", "None", "007", "1.50", "(1,2)"])
def test_a_text_setting_keeps_the_text_it_was_given(config, text):
    config_lib.apply_overrides(config, [f"name={text}"])
    assert config.name == text


@pytest.mark.parametrize(
    "override",
    [
        "count=1.5",
        "count=many",
        "count=True",
        "rate=fast",
        "rate=True",
        "flag=1",
        "flag=perhaps",
        "units=4",
        "units=wide",
    ],
)
def test_a_value_of_another_type_is_refused_by_name(config, override):
    name, _, text = override.partition("=")
    with pytest.raises(ValueError, match=f"^{name} takes a ") as caught:
        config_lib.apply_overrides(config, [override])
    assert text in str(caught.value)


@pytest.mark.parametrize("override", ["units=(1.5, 2)", "units=('a', 'b')"])
def test_a_tuple_with_elements_of_another_type_is_refused(config, override):
    with pytest.raises(ValueError, match="^units takes "):
        config_lib.apply_overrides(config, [override])


def test_an_override_without_an_equals_sign_is_refused(config):
    with pytest.raises(ValueError, match="key=value, found 'count'"):
        config_lib.apply_overrides(config, ["count"])


def test_an_unknown_name_lists_the_near_ones(config):
    with pytest.raises(ValueError, match="unknown setting 'inner.cuont'; near it: inner.count"):
        config_lib.apply_overrides(config, ["inner.cuont=1"])


def test_a_name_without_its_path_is_found_by_its_end(config):
    with pytest.raises(ValueError, match="near it: inner.deep.rate, rate"):
        config_lib.apply_overrides(config, ["somewhere.quite.else.rate=1"])


def test_a_group_of_settings_cannot_be_overridden_as_a_whole(config):
    with pytest.raises(ValueError, match="unknown setting 'inner'"):
        config_lib.apply_overrides(config, ["inner=3"])


def test_keys_are_all_dotted_names(config):
    expected = ["count", "flag", "inner.count", "inner.deep.rate", "name", "rate", "rows", "units"]
    assert sorted(config_lib.keys(config)) == expected


@pytest.mark.parametrize("name", presets.PRESETS)
def test_config_to_json_to_config_is_the_identity_for_every_preset(name):
    config = presets.get(name)
    text = config_lib.to_json(config)
    restored = config_lib.from_json(text)
    assert config_lib.differences(config, restored) == []
    assert restored == config
    assert config_lib.to_json(restored) == text
    json.loads(text)
    for key in config_lib.keys(config):
        first, second = config, restored
        for part in key.split("."):
            first, second = first[part], second[part]
        assert type(first) is type(second), key


def test_json_keeps_nested_tuples(config):
    config_lib.apply_overrides(config, ["rows=[[0, 0], [1, 0]]"])
    assert config_lib.from_json(config_lib.to_json(config)).rows == ((0, 0), (1, 0))


def test_json_of_a_frozen_config_is_that_of_the_config(config):
    assert config_lib.to_json(ml_collections.FrozenConfigDict(config)) == config_lib.to_json(config)


def test_differences_name_each_changed_missing_and_added_setting(config):
    other = config_lib.from_json(config_lib.to_json(config))
    other.inner.deep.rate = 3.0
    del other["flag"]
    other.inner.extra = 1
    assert config_lib.differences(config, other) == [
        "flag: True / '(absent)'",
        "inner.deep.rate: 2.0 / 3.0",
        "inner.extra: '(absent)' / 1",
    ]


def test_presets_are_fresh_objects():
    first = presets.get("graph_vae/tiny")
    first.model.num_latents = 99
    assert presets.get("graph_vae/tiny").model.num_latents != 99


def test_an_unknown_preset_lists_the_near_ones():
    with pytest.raises(ValueError, match="did you mean .*graph_vae/tiny"):
        presets.get("graph_vae/tinny")


def test_a_preset_takes_overrides_and_carries_its_name():
    config = presets.get("graph_vae/tiny", ["model.num_nodes=2"])
    assert config.model.num_nodes == 2
    assert config.preset == "graph_vae/tiny"


@pytest.mark.parametrize("node", ["training.validation_annealing", "evaluation"])
@pytest.mark.parametrize(
    ("key", "least"), [("prior_temperatures", 1), ("prior_chains", 2), ("posterior_temperatures", 1)]
)
def test_annealing_that_cannot_be_is_refused_before_training(node, key, least):
    for value in (least - 1, least):
        config = presets.get("boltzmann_vae/tiny", [f"{node}.{key}={value}"])
        if value == least:
            settings.check(config)
            continue
        with pytest.raises(ValueError, match=f"{node}.{key} must be at least {least}, found {value}"):
            settings.check(config)


def test_settings_of_an_evaluation_are_its_own_and_checked():
    config = presets.get("boltzmann_vae/tiny")
    changed = report.evaluation_settings(config, ["evaluation.posterior_temperatures=7"])
    assert changed.posterior_temperatures == 7 != config.evaluation.posterior_temperatures
    with pytest.raises(ValueError, match="evaluation.posterior_temperatures must be at least 1, found 0"):
        report.evaluation_settings(config, ["evaluation.posterior_temperatures=0"])
    with pytest.raises(ValueError, match="only evaluation.key=value can be set .* 'model.groups=2'"):
        report.evaluation_settings(config, ["model.groups=2"])
