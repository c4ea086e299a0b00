"""Hours of kills: extractions are killed at random, resumed and killed again; every cache must come out undisturbed.

    python tests/soak.py --minutes 60 --workers 2 --seed 0

One dataset is drawn and extracted once, undisturbed. Then, over and over, one to three `vp extract` share a new work
folder, whole or by disjoint parts, and after a random time one of their processes, a parent or a worker, gets SIGKILL,
SIGINT or SIGTERM. After a few rounds a last `vp extract` is left alone: it must end with 0, the shards must have the
names (which hold their digests) of the undisturbed ones, and no temporary file and no process may be left. pytest does
not collect this file; it needs Linux.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
LOCKED, INTERRUPTED, TERMINATED = 6, 130, 143
MOST_ROUNDS, PATIENCE_SECONDS, ORPHAN_SECONDS = 4, 300.0, 20.0
TRAIN, TEST = 1400, 300  # a shard on a CPU has 256 rows: six and two of each kind


@dataclass
class Tally:
    """What was done, and what came of it."""

    caches: int = 0
    processes: int = 0
    signals: Counter = field(default_factory=Counter)
    exits: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def line(self, seconds: float) -> str:
        sent = ", ".join(f"{count} {name}" for name, count in sorted(self.signals.items()))
        exits = ", ".join(f"{count} x {code}" for code, count in sorted(self.exits.items()))
        verdict = f"{len(self.faults)} FAULTS" if self.faults else "every cache equal to the undisturbed one"
        return (
            f"{seconds:.0f} s: {self.caches} caches, {self.processes} processes; sent {sent}; exits {exits}; {verdict}"
        )


@dataclass(frozen=True)
class Soak:
    """The folder everything happens in, how many workers each extraction has, and the undisturbed cache."""

    root: Path
    workers: int
    rng: random.Random
    tally: Tally

    def start(self, work: Path, *more: str) -> subprocess.Popen:
        """An extraction in a process group of its own; what it says goes to a file that the next one overwrites."""
        self.tally.processes += 1
        command = [sys.executable, str(ROOT / "cli.py"), "extract", "--model", "tiny", "--device", "cpu", "--quiet"]
        command += ["--data", str(self.root / "dataset"), "--work", str(work), "--workers", str(self.workers), *more]
        log = self.root / f"log-{self.tally.processes % 8}"
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        process.log = log
        return process

    def finish(self, process: subprocess.Popen, allowed: set[int], what: str) -> None:
        """Wait for the end, which has to come, with a code that is allowed."""
        try:
            code = process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            self.fault(f"{what} did not end within {PATIENCE_SECONDS:.0f} s", process.log)
            return
        self.tally.exits[code] += 1
        said = process.log.read_text(errors="replace")
        if code not in allowed or "Traceback" in said:
            self.fault(f"{what} ended with {code}, allowed are {sorted(allowed)}", process.log)

    def fault(self, what: str, log: Path | None = None) -> None:
        self.tally.faults.append(what)
        print(f"FAULT in cache {self.tally.caches}: {what}", flush=True)
        if log is not None:
            print(log.read_text(errors="replace")[-3000:], flush=True)

    def round(self, work: Path, parts: int, typical_seconds: float) -> None:
        """Extractions side by side; one of their processes gets a signal after a while."""
        shares = [("--shard-index", str(part), "--num-shards", str(parts)) for part in range(parts)]
        processes = [self.start(work, *(share if parts > 1 else ())) for share in shares]
        if overlaps := self.rng.random() < 0.2:
            processes.append(self.start(work))
        victim, number = self.rng.choice(processes), self.rng.choice(SIGNALS)
        self.wait(victim, work, typical_seconds)
        workers = descendants(victim.pid)
        at_worker = bool(workers) and self.rng.random() < 0.4
        with contextlib.suppress(ProcessLookupError):
            if victim.poll() is None:
                os.kill(self.rng.choice(workers) if at_worker else victim.pid, number)
                self.tally.signals[f"{number.name} to {'a worker' if at_worker else 'a parent'}"] += 1
        for process in processes:
            hit = process is victim and not at_worker
            allowed = {0, *((-number, 128 + number) if hit else ()), *((LOCKED,) if overlaps else ())}
            self.finish(process, allowed, f"an extraction that {'got' if hit else 'got no'} {number.name}")
        self.no_orphans()

    def wait(self, victim: subprocess.Popen, work: Path, typical_seconds: float) -> None:
        """Any time from the start on, or a moment after a shard appeared: most of the time nothing is published."""
        for_a_shard, before = self.rng.random() < 0.6, len(shard_names(work))
        end = time.monotonic() + (1.5 if for_a_shard else self.rng.uniform(0.0, 0.8)) * typical_seconds
        while victim.poll() is None and time.monotonic() < end:
            if for_a_shard and len(shard_names(work)) > before:
                time.sleep(self.rng.choice((0.0, self.rng.uniform(0.0, 0.1), self.rng.uniform(0.0, 1.5))))
                return
            time.sleep(0.002)

    def no_orphans(self) -> None:
        """Workers notice that their parent is gone."""
        end = time.monotonic() + ORPHAN_SECONDS
        while left := [pid for pid in running() if self.is_ours(pid)]:
            if time.monotonic() > end:
                self.fault(f"processes {left} outlived their parent by {ORPHAN_SECONDS:.0f} s")
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.1)

    def is_ours(self, pid: int) -> bool:
        """Whether a process that is alive was started by an extraction of this soak."""
        try:
            is_zombie = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
            return not is_zombie and f"VP_SOAK={self.root}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def one_cache(self, undisturbed: set[str], typical_seconds: float) -> None:
        work = self.root / "work"
        shutil.rmtree(work, ignore_errors=True)
        if self.rng.random() < 0.5:  # otherwise the encoder is built anew, and may be killed at that
            shutil.copytree(self.root / "undisturbed" / "models", work / "models")
        parts = self.rng.choice((1, 1, 2, 3))
        for _ in range(self.rng.randint(1, MOST_ROUNDS)):
            self.round(work, parts, typical_seconds)
        self.finish(self.start(work), {0}, "the last extraction")
        self.tally.caches += 1
        if (found := shard_names(work)) != undisturbed:
            self.fault(
                f"only disturbed: {sorted(found - undisturbed)}; only undisturbed: {sorted(undisturbed - found)}"
            )
        if left := [path.name for path in work.rglob(".tmp-*")] + [path.name for path in work.rglob("quarantine/*")]:
            self.fault(f"left behind: {left}")


def shard_names(work: Path) -> set[str]:
    return {path.relative_to(work).as_posix() for path in (work / "embeddings").rglob("*.h5")}


def running() -> list[int]:
    """Every process of this machine."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def descendants(pid: int) -> list[int]:
    """All processes below one, Python's own helper of `multiprocessing` among them."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return children + [below for child in children for below in descendants(child)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from pipeline.drawn_dataset import draw_dataset

    with tempfile.TemporaryDirectory(prefix="vp-soak-") as folder:
        soak = Soak(Path(folder), options.workers, random.Random(options.seed), Tally())
        os.environ |= {"VP_SOAK": folder, "PYTHONPATH": str(ROOT)}
        draw_dataset(soak.root / "dataset", n_train=TRAIN, n_test=TEST)
        start = time.monotonic()
        soak.finish(soak.start(soak.root / "undisturbed"), {0}, "the undisturbed extraction")
        typical, undisturbed = time.monotonic() - start, shard_names(soak.root / "undisturbed")
        print(f"undisturbed: {len(undisturbed)} shards in {typical:.1f} s", flush=True)
        start = time.monotonic()
        while time.monotonic() - start < 60 * options.minutes:
            soak.one_cache(undisturbed, typical)
        print(soak.tally.line(time.monotonic() - start), flush=True)
    return 1 if soak.tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
