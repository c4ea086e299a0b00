"""A folder that cannot be read is never taken for an empty one."""

import os

import pytest

from features.errors import CacheError
from features.listing import is_there, listed


def refuse(*_arguments, **_options):
    raise PermissionError(13, "Permission denied")


def test_what_lies_there_is_listed_by_name(tmp_path):
    for name in ("b", ".a", "c"):
        (tmp_path / name).touch()
    assert [path.name for path in listed(tmp_path)] == [".a", "b", "c"]


def test_where_there_is_no_folder_nothing_lies(tmp_path):
    (tmp_path / "file").touch()
    assert listed(tmp_path / "nowhere") == listed(tmp_path / "file") == []


def test_a_name_is_there_or_not_or_nobody_may_tell(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert is_there(tmp_path / "file")
    assert not is_there(tmp_path / "nowhere")
    assert not is_there(tmp_path / "file" / "below")
    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(CacheError, match=f"{tmp_path} cannot be read: Permission denied"):
        is_there(tmp_path / "file")


@pytest.mark.parametrize(("call", "answer"), [("listdir", refuse), ("access", lambda *_: False)])
def test_a_folder_that_cannot_be_listed_or_entered_is_named(tmp_path, monkeypatch, call, answer):
    monkeypatch.setattr(os, call, answer)
    with pytest.raises(CacheError) as told:
        listed(tmp_path)
    assert str(told.value) == f"{tmp_path} cannot be read: Permission denied: let this user read {tmp_path}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("mode", [0o000, 0o400, 0o100])
def test_of_a_folder_a_user_needs_both_rights(tmp_path, mode):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(mode)
    try:
        with pytest.raises(CacheError, match="Permission denied"):
            listed(folder)
    finally:
        folder.chmod(0o700)
