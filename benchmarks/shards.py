"""Shards: memory as prompts grow, and two workers against one process.

    python benchmarks/shards.py memory [--prompts 1000 10000 100000]
    python benchmarks/shards.py speed [--rounds 3] [--prompts 128]

* memory: a `sample` stage of two answers of 4 tokens, whose shards a worker makes; the peaks of the
  resident sets of the driver and of the worker. A Llama of 50 thousand parameters;
* speed: eight answers of up to 96 tokens, in one process with one thread and with a thread for
  every core, and by two workers of one thread each; tokens per second from the beginning of the
  first shard to the end of the last, so without imports. A Llama of 1.1M parameters, and the model
  stories260k where $ALIGN_DATA has it.

Other weights are random. Every case is a process of its own; the cases of `speed` run in turn.
Prints the tables of RESULTS.md: medians.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from run import WORDS, make_base

STORIES = Path(os.environ.get("ALIGN_DATA", "/nowhere")) / "stories260k"


TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


def prepare(folder: Path, prompts: int, words: int, **shape: int) -> None:
    """A base and prompts of uneven length."""
    make_base(folder / "base", **shape)
    chance = random.Random(0)
    with (folder / "prompts.jsonl").open("w") as file:
        for i in range(prompts):
            text = " ".join(chance.choices(WORDS, k=chance.randint(2, words)))
            file.write(json.dumps({"prompt": f"{i} {text}"}) + "\n")


def one(base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Make the stage here, as its process would; what it took."""
    from align import recipe, store
    from align.out import Out
    from align.parallel import shards

    written = {"base": base, "stages": {"sample": {"model": "base", **settings}}}
    Path("recipe.yaml").write_text(json.dumps(written))
    runs = Path(tempfile.mkdtemp(dir="."))
    planned = recipe.read("recipe.yaml", store=runs).stages["sample"]
    work = store.partial(planned.artifact.path)
    work.mkdir(parents=True)
    store.write_json(work / "stage.json", planned.record)
    out = Out(work, runs / ".cache")
    peaks: dict[str, int] = {}
    threading.Thread(target=watch, args=(peaks,), daemon=True).start()
    planned.stage.run(out)
    driver = peak(os.getpid())
    ends, begins, tokens = [], [], 0
    for file in sorted((work / shards.MADE).glob("*.json")):
        record = json.loads(file.read_text())
        ends.append(file.stat().st_mtime)
        begins.append(ends[-1] - record["seconds"])
        tokens += record["counts"]["tokens"]["n"]
    seconds = max(ends) - min(begins)
    return {
        "tokens/s": tokens / seconds,
        "driver": driver,
        "worker": max(peaks.values(), default=0),
    }


def watch(peaks: dict[str, int]) -> None:
    """Keep the peaks of our children's resident sets, in KiB."""
    ours = os.getpid()
    while True:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
                if parent == ours:
                    peaks[folder.name] = peak(int(folder.name))
            except (OSError, StopIteration):  # it has just ended
                continue
        time.sleep(0.2)


def peak(pid: int) -> int:
    """The peak of a process's resident set, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def case(
    folder: Path, base: dict[str, Any], threads: int | None = None, **settings: Any
) -> dict[str, Any]:
    """`one` in a process of its own."""
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "one", json.dumps([base, settings])],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory(counts: list[int]) -> None:
    """The table of peaks."""
    print("| prompts | driver, MiB | worker, MiB | tokens/s |\n|---|---|---|---|")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), count, 6, **TINY)
            found = case(
                Path(folder),
                {"path": "./base"},
                prompts="./prompts.jsonl",
                n=2,
                generation={"max_new_tokens": 4},
                workers={"count": 1},
            )
        row = f"{found['driver'] / 1024:.0f} | {found['worker'] / 1024:.0f}"
        print(f"| {count:,} | {row} | {found['tokens/s']:,.0f} |", flush=True)


def speed(rounds: int, prompts: int) -> None:
    """The table of tokens per second."""
    bases: dict[str, dict[str, Any]] = {"1.1M": {"path": "./base"}}
    if STORIES.is_dir():
        bases["stories260k"] = {"path": str(STORIES), "chat_template": "plain"}
    cores = os.cpu_count() or 1
    cases: dict[str, dict[str, Any]] = {
        "one process, 1 thread": {"threads": 1},
        f"one process, {cores} threads": {"threads": cores},
        "two workers": {"workers": {"count": 2}},
    }
    asked = {"prompts": "./prompts.jsonl", "generation": {"max_new_tokens": 96}, "shard": 16}
    print("| model | who | tokens/s | of the best process |\n|---|---|---|---|")
    for model, base in bases.items():
        found: dict[str, list[float]] = {name: [] for name in cases}
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), prompts, 30)
            for _ in range(rounds):
                for name, how in cases.items():
                    rate = case(Path(folder), base, **asked, **how)["tokens/s"]
                    found[name].append(rate)
                    print(f"  {model}, {name}: {rate:,.0f}", file=sys.stderr, flush=True)
        *alone, _ = found.values()
        best = [max(rates) for rates in zip(*alone, strict=True)]
        for name, rates in found.items():
            ratio = statistics.median(rate / most for rate, most in zip(rates, best, strict=True))
            print(f"| {model} | {name} | {statistics.median(rates):,.0f} | {ratio:.2f} |")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    of_memory = kinds.add_parser("memory")
    of_memory.add_argument("--prompts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    of_speed = kinds.add_parser("speed")
    of_speed.add_argument("--rounds", type=int, default=3)
    of_speed.add_argument("--prompts", type=int, default=128)
    kinds.add_parser("one").add_argument("settings")
    asked = parser.parse_args()
    if asked.kind == "one":
        print(json.dumps(one(*json.loads(asked.settings))))
    elif asked.kind == "memory":
        memory(asked.prompts)
    else:
        speed(asked.rounds, asked.prompts)


if __name__ == "__main__":
    main()
