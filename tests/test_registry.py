import pytest

from tfstruct.registry import Registry, did_you_mean, require_known


def test_values_stand_by_name_in_order():
    found = Registry("data set")
    assert found.register("b", 2) == 2
    found.register("a", 1)
    assert list(found.items()) == [("a", 1), ("b", 2)]
    assert "a" in found
    assert "c" not in found
    assert len(found) == 2


def test_a_name_is_taken_once():
    found = Registry("preset")
    found.register("a", 1)
    with pytest.raises(ValueError, match="preset 'a' exists already"):
        found.register("a", 2)
    assert found["a"] == 1


def test_an_unknown_name_is_refused_with_the_near_ones_and_all():
    found = Registry("table")
    for name in ("graph_vae/table1", "spvae/table1", "spvae/figure2"):
        found.register(name, name)
    message = r"unknown table 'spvae/table2'; did you mean spvae/table1.*\? There are graph_vae/table1, .*table1"
    with pytest.raises(ValueError, match=message):
        found["spvae/table2"]
    with pytest.raises(ValueError, match=r"unknown row 'x'\. There are none\."):
        require_known("x", [], "row")
    assert did_you_mean("quite else", ["a"]) == ". There are a."
