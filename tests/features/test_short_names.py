import re

from features.short_names import SHORT_NAMES, short_name


def test_every_short_name_finds_itself_however_it_is_typed():
    for name in SHORT_NAMES:
        assert short_name(name) == short_name(name.lower()) == short_name(name.upper()) == name


def test_every_short_name_is_safe_as_a_folder_and_unlike_the_others():
    assert len({name.lower() for name in SHORT_NAMES}) == len(SHORT_NAMES) == len(set(SHORT_NAMES.values()))
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*[A-Za-z0-9]", name) for name in SHORT_NAMES)


def test_a_hub_id_is_no_short_name():
    assert not any(short_name(hub_id) for hub_id in SHORT_NAMES.values())
