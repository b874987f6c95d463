import pytest

from sparsercnn.errors import InputError, check_choice, did_you_mean


def test_the_closest_choice_is_offered_if_any_is_close():
    assert did_you_mean("colour", ["shape", "color", "size"]) == "; did you mean color?"
    assert did_you_mean("colour", iter(["shape", "size"])) == ""


def test_a_wrong_choice_names_key_value_and_choices():
    check_choice("A.KEY", "one", iter(["one", "two"]))
    with pytest.raises(InputError) as raised:
        check_choice("A.KEY", "on", {"one": 1, "two": 2})
    assert str(raised.value) == "A.KEY is 'on'; choose one of one, two; did you mean one?"
