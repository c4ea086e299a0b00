"""`vp verify` says that nothing is wrong only where nothing is, and reports every fault with what repairs it."""

import json
import shutil

from features.lock import writer_lock
from pipeline.config import VerifyConfig
from pipeline.verify import verify
from tests.command_line import vp


def faults(*arguments):
    return json.loads(vp("verify", "--json", *arguments).stdout.strip().splitlines()[-1])["faults"]


def test_a_healthy_work_folder_has_no_fault(job):
    result = vp("verify", "--quiet", "--json")
    line, last = result.stdout.splitlines()
    assert line.startswith("1 cache (6 shards, ")
    assert line.endswith(" s: nothing is wrong")
    told = json.loads(last)
    assert (result.exit_code, told["faults"], told["compared_with_dataset"]) == (0, [], True)
    assert (told["caches"], told["shards"], told["runs"]) == (1, 6, 1)


def test_a_broken_work_folder_is_told_fault_by_fault(job):
    first, second, third = job.shards("image")
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    third.unlink()
    third.mkdir()
    (job.run / "folds.csv").write_text("id,fold\n")
    result = vp("verify", "--quiet")
    *lines, last = result.stdout.splitlines()
    assert lines == [
        f"{first}: is damaged (its bytes do not match its name)",
        f"{second}: is missing",
        f"{third}: cannot be read (Is a directory)",
        "work/runs/lines/folds.csv: is not the file that the run was saved with",
    ]
    assert last.startswith("1 cache (6 shards, ")
    assert result.stderr == (
        "error: 4 faults; to repair: `vp extract --model PATH/TO/fake`; "
        "`vp train-heads --name lines --model fake --no-diagnostics --head linear --no-search`\n"
    )
    assert result.exit_code == 7


def test_a_cache_that_is_stale_is_at_fault_and_sources_can_be_left_out(job):
    job.world.paint("id-004", 99)
    assert [fault["what"] for fault in faults()] == ["1 row with another thumbnail now ('id-004')"]
    assert faults("--no-sources") == []


def test_a_work_folder_that_was_copied_verifies(job):
    shutil.copytree(job.work, "copied/work")
    assert faults("--work", "copied/work") == []


def test_nothing_to_verify_is_said(job):
    result = vp("verify", "--work", "elsewhere")
    assert (result.exit_code, result.stdout) == (0, "elsewhere holds no embeddings and no runs to verify\n")


def test_of_a_cache_that_is_being_written_it_is_warned(job, told):
    with writer_lock(job.cache / ".part-1-of-1.lock"):
        verify(VerifyConfig(), told)
    assert any("is being written by process" in warning for warning in told.warnings)


def test_without_a_dataset_the_rest_is_verified(job):
    job.shards("image")[0].unlink()
    assert len(faults("--data", "nowhere")) == 1
