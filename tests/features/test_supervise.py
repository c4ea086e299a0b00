"""Work is done exactly once, whatever its workers do: die, hang, raise, or lose their supervisor."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from features import supervise
from features.errors import StorageError, WorkersFailedError
from features.supervise import Done, Lost, Supervisor, Told
from tests.features.clerks import Clerk

ROOT = Path(__file__).parents[2]


@pytest.fixture
def office(tmp_path):
    """Has jobs done by clerks; returns their results by number, the lost ones, and what was warned of."""

    def run(jobs, devices=("a",), *, patience=60.0, again=lambda lost, workers: None, **clerk):
        warnings, results, lost = [], {}, []
        units = dict.fromkeys((job[0] for job in jobs), 0)
        setup = Clerk(tmp_path, **clerk)
        with Supervisor(setup, devices, patience_seconds=patience, warn=warnings.append) as workers:
            for event in workers.run(100, iter(jobs)):
                if isinstance(event, Done):
                    assert event.job[0] not in results
                    results[event.job[0]] = event.result
                elif isinstance(event, Told):
                    units[event.job[0]] += event.units
                elif isinstance(event, Lost):
                    lost.append(event)
                    again(event, workers)
        return results, lost, warnings, units

    return run


def plain(numbers):
    return [(number, "", 0) for number in numbers]


def values(results):
    return {number: value for number, (value, _, _) in results.items()}


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_job_is_done_once_by_one_of_several_processes_that_end_with_their_supervisor(office):
    results, lost, warnings, units = office(plain(range(30)), ("a", "b"))
    assert values(results) == {number: 2 * number + 100 for number in range(30)}
    assert (lost, warnings) == ([], [])
    assert set(units.values()) == {2}
    pids = {pid for _, pid, _ in results.values()}
    assert os.getpid() not in pids
    assert not any(alive(pid) for pid in pids)


def test_no_more_processes_are_started_than_there_are_jobs(office):
    results, *_ = office(plain([7]), ("a", "b", "c"))
    assert {device for _, _, device in results.values()} == {"a"}


def test_a_worker_gets_a_second_job_only_when_every_other_has_one(office):
    results, *_ = office(plain([1, 2]), ("a", "b"))
    assert {device for _, _, device in results.values()} == {"a", "b"}


def test_no_job_starts_no_process(office):
    started = time.monotonic()
    assert office([], ("a", "b"))[0] == {}
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize("what", ["exit", "kill", "raise"])
def test_the_jobs_of_a_dead_worker_are_done_by_its_successor(office, what):
    jobs = plain(range(6))
    jobs[2] = (2, what, 1)
    results, lost, warnings, units = office(jobs)
    assert values(results) == {number: 2 * number + 100 for number in range(6)}
    assert lost == []
    assert set(units.values()) == {2}
    told = {"exit": "ended with code 3", "kill": "died of SIGKILL", "raise": "ZeroDivisionError: this is a bug"}[what]
    assert len(warnings) == 1
    assert told in warnings[0]
    assert "worker " in warnings[0]
    assert "handed out again" in warnings[0]


def test_a_job_that_kills_three_workers_is_given_back_and_the_others_are_done(office):
    jobs = plain(range(6))
    jobs[1] = (1, "kill", 99)
    results, lost, warnings, units = office(jobs)
    assert sorted(results) == [0, 2, 3, 4, 5]
    assert [(event.job[0], event.reason) for event in lost] == [(1, "died of SIGKILL")]
    assert len(warnings) in (3, 4)  # a death that may have been the next job's is not counted against it
    assert units == {0: 2, 1: 0, 2: 2, 3: 2, 4: 2, 5: 2}


def test_a_job_that_kills_while_another_is_worked_on_is_found_all_the_same(office):
    """Reading ahead for it is what kills; the job before it must not be blamed for ever."""
    jobs = plain(range(4))
    jobs[2] = (2, "die when announced", 99)
    results, lost, *_ = office(jobs)
    assert sorted(results) == [0, 1, 3]
    assert [event.job[0] for event in lost] == [2]


def test_what_was_lost_can_be_had_done_in_parts_before_all_other_jobs(tmp_path):
    done = []
    with Supervisor(Clerk(tmp_path), ["a"], patience_seconds=60.0, warn=lambda text: None) as workers:
        for event in workers.run(0, iter([(0, "exit", 99), *plain(range(1, 9))])):
            if isinstance(event, Lost):
                workers.retry(event, [(10, "", 0), (11, "", 0)], 1)
            elif isinstance(event, Done):
                done.append(event.job[0])
    assert sorted(done) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11]
    assert max(done.index(10), done.index(11)) < done.index(8)


def test_processes_stay_for_the_next_run_and_learn_what_is_shared_then(tmp_path):
    results = []
    with Supervisor(Clerk(tmp_path), ["a"], patience_seconds=60.0, warn=pytest.fail) as workers:
        for shared in (0, 1000):
            results += [event.result for event in workers.run(shared, iter(plain([1]))) if isinstance(event, Done)]
    assert [value for value, *_ in results] == [2, 1002]
    assert results[0][1] == results[1][1]


@pytest.mark.slow
def test_a_worker_that_says_nothing_is_ended_and_its_job_done_again(office):
    jobs = [(0, "hang", 1), *plain([1, 2])]
    results, _, warnings, _ = office(jobs, patience=6.0)
    assert values(results) == {0: 100, 1: 102, 2: 104}
    assert "said nothing for 6 s" in warnings[0]


@pytest.mark.slow
def test_a_supervisor_that_was_stopped_itself_calls_nobody_silent(tmp_path):
    """Ctrl-Z stops it with its workers; here only whoever listens to it is slow."""
    warnings, done = [], []
    with Supervisor(Clerk(tmp_path), ["a"], patience_seconds=3.0, warn=warnings.append) as workers:
        for event in workers.run(0, iter([(0, "long", 0)])):
            if isinstance(event, Told) and not done:
                time.sleep(7)
            done.append(event)
    assert isinstance(done[-1], Done)
    assert warnings == []


def test_an_error_that_a_user_can_mend_arrives_as_it_was_raised(office):
    with pytest.raises(StorageError, match="No space left on device"):
        office([*plain(range(3)), (3, "disk full", 1)])


def test_workers_that_cannot_start_are_given_up_soon_with_their_last_words(office):
    started = time.monotonic()
    with pytest.raises(WorkersFailedError) as told:
        office(plain(range(3)), ("a", "b"), at_start="exit")
    assert time.monotonic() - started < 60
    assert "no worker is left" in str(told.value)
    assert "the last words of a dying worker" in str(told.value)
    assert "something about libcuda.so" in str(told.value)


def test_a_device_that_never_starts_leaves_its_work_to_the_others(office):
    results, lost, warnings, _ = office(plain(range(8)), ("a", "b"), at_start="exit", bad_device="a")
    assert sorted(results) == list(range(8))
    assert {device for _, _, device in results.values()} == {"b"}
    assert lost == []
    assert "the device is given up" in warnings[-1]


def test_a_device_where_no_encoder_loads_leaves_its_work_to_the_others(office):
    """Its failures come before any job reached it, so no job is blamed."""
    results, lost, warnings, _ = office(plain(range(8)), ("a", "b"), at_share="raise", bad_device="a")
    assert sorted(results) == list(range(8))
    assert {device for _, _, device in results.values()} == {"b"}
    assert lost == []
    assert len(warnings) == 3
    assert "the device is given up" in warnings[-1]


def test_a_device_on_which_every_job_dies_is_given_up_and_no_job_is_blamed(tmp_path):
    warnings, done = [], []

    def jobs():
        for number in range(2000):
            if "the device is given up" in "".join(warnings):
                return
            yield number, "slow", 1

    setup = Clerk(tmp_path, at_work="kill", bad_device="a")
    with Supervisor(setup, ["a", "b"], patience_seconds=60.0, warn=warnings.append) as workers:
        for event in workers.run(0, jobs()):
            assert not isinstance(event, Lost)
            if isinstance(event, Done):
                assert event.device == "b"
                done.append(event.job[0])
    assert sorted(done) == list(range(len(done)))
    assert 3 <= len(warnings) <= 5
    assert len(done) < 2000


def test_a_worker_that_no_signal_ends_is_left_behind_with_its_device(tmp_path, monkeypatch):
    """As one that waits inside a driver: here a stopped process whose killing does nothing."""
    monkeypatch.setattr(supervise, "GRACE_SECONDS", 0.2)
    warnings, done, immortal = [], [], []
    jobs = [(number, "freeze" if number == 0 else "", 1) for number in range(6)]
    with Supervisor(Clerk(tmp_path), ["a", "b"], patience_seconds=3.0, warn=warnings.append) as workers:
        for slot in workers._slots:
            slot.start()
            if slot.device == "a":
                immortal.append(slot.process)
                monkeypatch.setattr(slot.process, "kill", lambda: None)
        for event in workers.run(0, iter(jobs)):
            assert not isinstance(event, Lost)
            done += [event.job[0]] if isinstance(event, Done) else []
    assert sorted(done) == list(range(6))
    assert len(warnings) == 1
    assert warnings[0].endswith("; the device is given up")
    assert immortal[0].is_alive()
    assert immortal[0] not in multiprocessing.active_children()  # which Python waits for at its end
    monkeypatch.undo()
    immortal[0].kill()
    immortal[0].join()


def test_a_job_that_killed_its_worker_is_tried_on_another_device_next(office):
    jobs = [(number, "kill" if number == 3 else "slow", 1) for number in range(12)]
    results, lost, warnings, _ = office(jobs, ("a", "b"))
    assert (len(results), lost, len(warnings)) == (12, [], 1)
    died_on = re.search(r"worker \d+ on (\w) died of SIGKILL", warnings[0]).group(1)
    assert {results[3][2], died_on} == {"a", "b"}


@pytest.mark.slow
def test_a_long_job_whose_worker_died_does_not_wait_until_others_end(tmp_path):
    """With one job for each device, as in a fine-tuning, the device that is free tries it again."""
    order = []
    jobs = [(0, "long", 1), (1, "kill", 1)]
    with Supervisor(Clerk(tmp_path), ["a", "b"], patience_seconds=60.0, warn=order.append, jobs_each=1) as workers:
        order += [event.job[0] for event in workers.run(0, iter(jobs)) if isinstance(event, Done)]
    assert [type(step) for step in order] == [str, int, int]
    assert order[1:] == [1, 0]


@pytest.mark.slow
def test_a_worker_that_is_stopped_does_not_keep_the_others_from_their_work(office):
    """It does not read what it is sent, and the pipe to it is full."""
    jobs = [(number, "freeze" if number == 0 else "", 1, bytes(1 << 20)) for number in range(12)]
    results, lost, warnings, _ = office(jobs, ("a", "b"), patience=8.0)
    assert sorted(results) == list(range(12))
    assert lost == []
    assert "said nothing for 8 s" in warnings[0]
    assert len(warnings) == 1


@pytest.mark.slow
def test_a_worker_that_stops_in_the_middle_of_a_message_does_not_keep_the_others_from_their_work(office):
    jobs = [(0, "stop in the middle of a message", 1), *plain(range(1, 12))]
    results, lost, warnings, _ = office(jobs, ("a", "b"), patience=8.0)
    assert (sorted(results), lost) == (list(range(12)), [])
    assert [warning.partition(" on ")[2][:20] for warning in warnings] == ["a said nothing for 8"]


def test_the_death_of_a_worker_is_noticed_although_what_it_has_started_holds_its_pipes(office):
    """A compiler that a library has started writes to the same stderr, and lives on for a while."""
    start = time.monotonic()
    results, lost, warnings, _ = office([(0, "exit before a child", 1), *plain([1])])
    assert (sorted(results), lost, len(warnings)) == ([0, 1], [], 1)
    assert "ended with code 3" in warnings[0]
    assert time.monotonic() - start < 60


def test_workers_close_what_they_opened_when_there_are_no_more_jobs(office, tmp_path):
    results, *_ = office(plain(range(4)), ("a", "b"))
    for _, pid, _ in results.values():
        assert (tmp_path / f"closed-{pid}").exists()


def test_when_everything_dies_it_is_not_the_jobs(office, monkeypatch):
    def again(lost, workers):
        workers.retry(lost, [lost.job], 1)

    monkeypatch.setattr("features.supervise.DEATHS_IN_A_ROW", 7)
    with pytest.raises(WorkersFailedError, match="7 workers died and no job was done in between"):
        office([(0, "exit", 99)], again=again)


SUPERVISED = """
import sys
from pathlib import Path
from features.supervise import Done, Supervisor
from tests.features.clerks import Clerk

if __name__ == "__main__":
    with Supervisor(Clerk(Path(sys.argv[1])), ["a", "b"], patience_seconds=60.0, warn=print) as workers:
        jobs = [(number, "", 0) for number in range(4)] + [(4, "hang", 1), (5, "hang", 1)]
        for event in workers.run(0, iter(jobs)):
            if isinstance(event, Done):
                print(event.result[1], flush=True)
"""


def test_workers_end_when_their_supervisor_is_killed(tmp_path):
    script = tmp_path / "supervised.py"
    script.write_text(SUPERVISED)
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}
    ) as process:
        timer = threading.Timer(100, process.kill)
        timer.start()
        pids = {int(process.stdout.readline()) for _ in range(4)}
        process.send_signal(signal.SIGKILL)
        process.wait()
        timer.cancel()
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its supervisor by 5 seconds"
        time.sleep(0.05)
