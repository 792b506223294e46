import json
from typing import Literal, get_args

import pydantic
import pytest
from pydantic import Field

from tfstruct.distributions import adjacency
from tfstruct.distributions.relaxed_bernoulli import RELAXATIONS
from tfstruct.evaluation import report
from tfstruct.inference import objectives
from tfstruct.models import presets, registry
from tfstruct.models.boltzmann_vae.prior import SAMPLERS
from tfstruct.models.config import SCHEMA_VERSION
from tfstruct.models.sum_product_vae.scopes import STRUCTURES
from tfstruct.schedules import Interpolation
from tfstruct.settings import (
    Count,
    ProperFraction,
    Settings,
    apply_overrides,
    differences,
    overrides,
    unknown_setting,
)
from tfstruct.training.loop import COMPILERS


class Deep(Settings):
    rate: float = 2.0


class Inner(Settings):
    count: Count = 1
    deep: Deep = Deep()


class Some(Settings):
    count: int = 3
    rate: float = 0.5
    fraction: ProperFraction = 0.25
    flag: bool = True
    name: str = "text"
    kind: Literal["one", "two", "three"] = Field(default="one", description="what it is")
    units: tuple[int, ...] = (4, 5)
    rows: tuple[tuple[int, ...], ...] = ()
    either: Count | tuple[Count, Count] = 3
    inner: Inner = Inner()

    @pydantic.model_validator(mode="after")
    def _check(self):
        if self.count == 13:
            raise ValueError("count must be lucky, found 13")
        return self


@pytest.fixture
def config():
    return Some()


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        ("count=7", "count", 7),
        ("count=-7", "count", -7),
        ("either=(2, 3)", "either", (2, 3)),
        ("kind=two", "kind", "two"),
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
    changed = apply_overrides(config, [override])
    value = dict(changed.items())[name]
    assert value == expected
    assert type(value) is type(expected)
    assert [line.partition(":")[0] for line in differences(config, changed)] == [name]
    assert overrides(changed, config) == [f"{name}={expected!r}"]
    assert config == Some()


# A file named 1e3 or 007 is not the file 1000.0: text that happens to be a Python literal stays that text.
@pytest.mark.parametrize("text", ["1e3", "0x10", "1_000", "None", "007", "1.50", "(1,2)"])
def test_a_text_setting_keeps_the_text_it_was_given(config, text):
    assert apply_overrides(config, [f"name={text}"]).name == text


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
    with pytest.raises(ValueError, match=f"^{name} takes an? ") as caught:
        apply_overrides(config, [override])
    assert text in str(caught.value)


@pytest.mark.parametrize("override", ["units=(1.5, 2)", "units=('a', 'b')"])
def test_a_tuple_with_elements_of_another_type_is_refused(config, override):
    with pytest.raises(ValueError, match="^units takes "):
        apply_overrides(config, [override])


def test_an_override_without_an_equals_sign_is_refused(config):
    with pytest.raises(ValueError, match="key=value, found 'count'"):
        apply_overrides(config, ["count"])


def test_an_unknown_name_lists_the_near_ones(config):
    with pytest.raises(ValueError, match="unknown setting 'inner.cuont'; near it: inner.count"):
        apply_overrides(config, ["inner.cuont=1"])


def test_a_name_without_its_path_is_found_by_its_end(config):
    with pytest.raises(ValueError, match="near it: rate, inner.deep.rate"):
        apply_overrides(config, ["somewhere.quite.else.rate=1"])


def test_a_group_of_settings_cannot_be_overridden_as_a_whole(config):
    with pytest.raises(ValueError, match="unknown setting 'inner'"):
        apply_overrides(config, ["inner=3"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inner.count": 0}, "inner.count must be at least 1, found 0"),
        ({"fraction": -0.5}, "fraction must be at least 0, found -0.5"),
        ({"fraction": 1.0}, "fraction must be below 1, found 1.0"),
        ({"fraction": float("nan")}, "fraction must be a finite number, found nan"),
        ({"rate": float("inf")}, "rate must be a finite number, found inf"),
        ({"kind": "four"}, "kind must be one of one, two, three, found 'four'"),
        ({"count": 13}, "count must be lucky, found 13"),
        ({"either": 0}, "either must be at least 1, found 0"),
        ({"inner.deep.rat": 1.0}, "unknown setting 'inner.deep.rat'; near it: inner.deep.rate"),
        ({"inner": 3}, "inner takes an? "),
        ({"inner.deep.rate": None}, "inner.deep.rate takes a float such as 2.0, found None"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name_with_what_may_be(config, changes, message):
    with pytest.raises(ValueError, match="^" + message.replace(".", r"\.")) as caught:
        config.replace(changes)
    assert not isinstance(caught.value, pydantic.ValidationError)  # whose text speaks of pydantic


def test_a_setting_of_one_choice_says_which():
    with pytest.raises(ValueError, match="^optimizer.name must be adam, found 'sgd'$"):
        presets.get("vae/tiny", ["optimizer.name=sgd"])


def test_help_gives_every_setting_with_value_choices_and_what_it_is(config):
    found = {name: (value, about) for name, value, about in config.help()}
    assert list(found) == list(config.names())
    assert found["kind"] == ("one", "one or two or three; what it is")
    assert found["inner.deep.rate"] == (2.0, "")


def test_settings_that_go_together_only_so_are_changed_at_once(config):
    changed = apply_overrides(config, ["count=13", "rate=1", "count=14"])
    assert (changed.count, changed.rate) == (14, 1.0)


@pytest.mark.parametrize("first", ["rate=fast", "count=1.5", "inner.count=0", "kind=four"])
def test_a_value_that_cannot_be_is_refused_though_a_later_one_counts(config, first):
    name = first.partition("=")[0]
    with pytest.raises(ValueError, match=f"^{name} (takes a|must be)"):
        apply_overrides(config, [first, f"{name}={dict(config.items())[name]}"])


def test_a_part_of_a_group_given_as_a_whole_is_changed(config):
    changes = {"inner": Inner(count=5, deep=Deep(rate=4.0)), "inner.deep.rate": 6.0}
    assert config.replace(changes).inner == Inner(count=5, deep=Deep(rate=6.0))


def test_settings_do_not_change(config):
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.count = 4


def test_names_are_dotted_and_in_the_order_of_their_declaration(config):
    names = "count rate fraction flag name kind units rows either inner.count inner.deep.rate"
    assert list(config.names()) == names.split()


def test_what_is_lacking_has_its_default_and_lists_will_do_for_tuples():
    assert Some.parse({"inner": {"deep": {"rate": 3}}, "units": [1, 2]}) == Some().replace(
        {"inner.deep.rate": 3.0, "units": (1, 2)}
    )


def test_differences_name_each_changed_missing_and_added_setting(config):
    class Other(Settings):
        count: int = 3
        extra: int = 1

    assert differences(Inner(deep=Deep(rate=3.0)), Inner()) == ["deep.rate: 3.0 / 2.0"]
    assert differences(Inner(), Other()) == [
        "count: 1 / 3",
        "deep.rate: 2.0 / '(absent)'",
        "extra: '(absent)' / 1",
    ]


# Configs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets.PRESETS)
def test_config_to_json_to_config_is_the_identity_for_every_preset(name):
    config = presets.get(name)
    restored = registry.parse_config(config.to_json())
    assert restored == config
    assert [type(value) for _, value in restored.items()] == [type(value) for _, value in config.items()]
    assert json.loads(config.to_json())["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize("system", registry.SYSTEMS)
def test_every_setting_of_a_system_says_what_it_is(system):
    """By its description, or by a name that needs none."""
    clear = {
        "seed", "batch_size", "steps", "hidden_units", "activation", "encoder_units", "decoder_units", "name",
        "encoder_activation", "learning_rate", "checkpoint_minutes", "compiler", "posterior", "posterior_temperatures",
        "prior_chains", "prior_temperatures", "conv_filters", "conv_stride", "conv_units", "leaf_network", "preset",
        "system", "piecewise_linear", "concrete", "gumbolt", "power",
    }  # fmt: skip

    def fields(group):
        for name, field in group.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                assert field.annotation.__doc__
                yield from fields(field.annotation)
            else:
                yield name, field.description

    silent = {name for name, description in fields(registry.SYSTEMS[system].config) if not description}
    assert silent <= clear


@pytest.mark.parametrize(
    ("system", "name", "known"),
    [
        ("graph_vae", "model.structure", adjacency.STRUCTURES),
        ("graph_vae", "objective.name", objectives.OBJECTIVES),
        ("graph_vae", "training.compiler", ("auto", *COMPILERS)),
        ("boltzmann_vae", "model.prior_sampler", SAMPLERS),
        ("boltzmann_vae", "model.relaxation", (*RELAXATIONS, "gumbolt")),
        ("sum_product_vae", "model.structure", STRUCTURES),
        ("sum_product_vae", "schedules.kl_weight.interpolation", get_args(Interpolation)),
    ],
)
def test_the_choices_of_a_setting_are_what_the_code_knows(system, name, known):
    about = {key: text for key, _, text in registry.SYSTEMS[system].config.parse({}).help()}
    assert set(about[name].partition(";")[0].split(" or ")) == set(known)


def test_a_config_of_a_newer_schema_and_what_is_no_config_are_refused():
    text = presets.get("vae/tiny").to_json()
    newer = text.replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99')
    with pytest.raises(ValueError, match=f"schema_version must be at most {SCHEMA_VERSION} for this version, found 99"):
        registry.parse_config(newer)
    for broken in ("{", "[]", "{}"):
        with pytest.raises(ValueError, match="a config is a JSON object with a system"):
            registry.parse_config(broken)


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
def test_annealing_that_cannot_be_is_refused(node, key, least):
    presets.get("boltzmann_vae/tiny", [f"{node}.{key}={least}"])
    with pytest.raises(ValueError, match=f"{node}.{key} must be at least {least}, found {least - 1}"):
        presets.get("boltzmann_vae/tiny", [f"{node}.{key}={least - 1}"])


def test_settings_of_an_evaluation_are_its_own_and_checked():
    config = presets.get("boltzmann_vae/tiny")
    changed = report.evaluation_settings(config, ["evaluation.posterior_temperatures=7"])
    assert changed.posterior_temperatures == 7 != config.evaluation.posterior_temperatures
    with pytest.raises(ValueError, match="evaluation.posterior_temperatures must be at least 1, found 0"):
        report.evaluation_settings(config, ["evaluation.posterior_temperatures=0"])
    with pytest.raises(ValueError, match="only evaluation.key=value can be set .* 'model.groups=2'"):
        report.evaluation_settings(config, ["model.groups=2"])


def test_at_most_five_near_settings_are_named():
    known = [f"group_{number}.rate" for number in range(9)]
    assert unknown_setting("rate", known).endswith(f"near it: {', '.join(known[:5])}")
    assert unknown_setting("%", known).endswith(f"near it: none of 9, such as {', '.join(known[:5])}")
