"""A work folder with a finished cache and a run, made once and copied for every test that spoils it."""

import errno
import io
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from features.progress import Silent
from pipeline.config import TrainHeadsConfig
from pipeline.train_heads import train_heads


@dataclass
class Told(Silent):
    """Progress that remembers what was told."""

    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def told():
    return Told()


@pytest.fixture(scope="session")
def finished_work(tmp_path_factory, make_world, fake_encoder):
    """A folder with `dataset/`, and `work/` that holds the cache `fake` and the run `lines` trained on it."""
    root = tmp_path_factory.mktemp("finished")
    world = make_world(root)
    world.folder = root / "work" / "embeddings" / "fake" / "train_val"
    world.make(fake_encoder())
    options = {"model": ("fake",), "head": "linear", "diagnostics": False, "search": False, "name": "lines"}
    train_heads(TrainHeadsConfig(data=root / "dataset", work=root / "work", **options), Silent())
    return root


@pytest.fixture
def forbid(monkeypatch):
    """Make a folder one that this user may neither list nor enter, also where the user is root."""

    def forbid(folder: Path) -> None:
        forbidden = Path.cwd() / folder
        patched = {os: ("stat", "lstat", "listdir", "scandir"), io: ("open",)}
        for module, names in patched.items():
            for name in names:
                call = getattr(module, name)
                monkeypatch.setattr(module, name, _refusing(call, forbidden, itself=name in ("listdir", "scandir")))
        access = os.access
        monkeypatch.setattr(os, "access", lambda path, mode: forbidden != Path.cwd() / path and access(path, mode))

    return forbid


def _refusing(call, forbidden, *, itself):
    def refuse(path=".", *arguments, **options):
        place = Path.cwd() / path if isinstance(path, str | os.PathLike) else Path()
        if forbidden in place.parents or (itself and place == forbidden):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return call(path, *arguments, **options)

    return refuse


@dataclass
class Job:
    """A dataset, a work folder, and the parts of it that tests spoil; paths are relative to the current folder."""

    world: object
    work: Path = Path("work")
    cache: Path = Path("work/embeddings/fake/train_val")
    run: Path = Path("work/runs/lines")

    def shards(self, kind: str) -> list[Path]:
        return sorted(self.cache.glob(f"{kind}-*.h5"))


@pytest.fixture
def job(finished_work, tmp_path, monkeypatch, make_world):
    """A copy of it, which is the current folder."""
    root = tmp_path / "job"
    shutil.copytree(finished_work, root, copy_function=shutil.copy2)
    monkeypatch.chdir(root)
    world = make_world(tmp_path / "unused")
    world.data, world.folder = Path("dataset"), Path("work/embeddings/fake/train_val")
    return Job(world)
