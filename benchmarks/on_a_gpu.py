"""Everything that is measured on a GPU, one after the other, each within its time; results go to stdout as they come.

    .venv/bin/python benchmarks/on_a_gpu.py --model FOLDER --data DATASET [--seconds 180] [--only forward_rate,tests]

FOLDER holds a CLIP checkpoint, ViT-L-14 for the numbers in the README; DATASET real thumbnails of 480x360. What takes
longer than `--seconds`, or fails, is told and left behind: a GPU that is lent for minutes is not waited for.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    options = read_options()
    failed = []
    for name, arguments in steps(options.model.resolve(), options.data.resolve()).items():
        if options.only and not name.startswith(tuple(options.only)):
            continue
        print(f"\n=== {name}: {' '.join(arguments)}", flush=True)
        start = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=HERE.parent, env=environment, start_new_session=True
        )
        try:
            code = process.wait(options.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the commands it has started, which would go on
            code = process.wait()
        if code:
            failed.append(name)
        print(f"--- {name}: {time.perf_counter() - start:.0f} s, exit code {code}", flush=True)
    print(f"\nnot finished: {', '.join(failed) or 'none'}")


def steps(model: Path, data: Path) -> dict[str, list[str]]:
    """Name -> arguments of python, what tells most first."""
    cores = str(max(1, len(os.sched_getaffinity(0)) - 1))
    extraction = [f"{HERE}/extraction.py", "--model", str(model), "--data", str(data), "--device", "cuda"]
    extraction += ["--precision", "bf16", "--batch", "256", "--repeats", "1", "--only", "forward,vp"]
    tune = [f"{HERE}/finetune_step.py", "--model", str(model), "--device", "cuda:0", "--peak-tflops", "989"]
    rate = [f"{HERE}/forward_rate.py", "--model", str(model), "--device", "cuda"]
    return {
        "tests": ["-m", "pytest", "-q", "-m", "gpu", "tests"],
        "forward_rate bf16": [*rate, "--precision", "bf16", "--batch", "64,256,512", "--compile"],
        "extraction 480x360": [*extraction, "--rows", "16384", "--threads", cores],
        "extraction compiled": [*extraction, "--rows", "16384", "--threads", cores, "--compile"],
        "extraction 1280x720": [*extraction, "--rows", "12288", "--threads", cores, "--size", "1280x720"],
        "finetune batch 16, real": [*tune, "--data", str(data), "--memory-limit-gb", "24"],
        "finetune batch 16, checkpoints": [*tune, "--memory-limit-gb", "24", "--gradient-checkpointing"],
        "finetune batch 64": [*tune, "--batch", "64"],
        "finetune batch 128": [*tune, "--batch", "128"],
        "extraction by threads": [*extraction, "--rows", "8192", "--threads", "1,2,4,8"],
        "forward_rate others": [*rate, "--precision", "fp16,fp32", "--batch", "256"],
    }


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="steps whose names begin so")
    return parser.parse_args()


if __name__ == "__main__":
    main()
