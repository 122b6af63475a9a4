"""Rows a second of `curate`, against pipelines of datatrove and of datasketch; and its memory.

    pip install datatrove orjson regex 'xxhash<4' datasketch
    python benchmarks/curation.py speed [--rows 100000] [--rounds 3]
    python benchmarks/curation.py memory

`speed`: exact duplicates, MinHash, personal data and benchmark questions together, from a JSON
lines file to another, on two processes. The rows have about 150 words, of which one in a hundred is
a copy, one in a hundred a near copy, one in two hundred a question, and one in fifty has an e-mail
address in it. datatrove is its own blocks (FineWeb's 14 bands of 8, runs of 8 words), with the
words of a regular expression instead of spaCy's, which are slower; datasketch is what one writes by
hand around `MinHashLSH`, with numpy as it comes. All sides run in turn, each in processes of its
own; what is timed begins after the imports, and CPU seconds are those of all its processes. A side
that is not installed is left out. Prints the table of RESULTS.md: medians, and the medians of the
ratios round by round.

`memory`: peaks of the stage's process with 10,000 and with 1,000,000 rows of 12 words.
"""

import argparse
import importlib.util
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import Any

CORES = 2
RUN = 8


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(SIDES[asked.side](asked.folder)))
    elif asked.what == "speed":
        speed(asked.rows, asked.rounds)
    else:
        memory()


def speed(count: int, rounds: int) -> None:
    """All sides, in turn."""
    sides = {"align": "align", "datatrove": "datatrove", "datasketch": "datasketch"}
    for side, module in sides.items():
        if importlib.util.find_spec(module) is None:
            print(f"{side} is not installed, and left out: pip install {module}.")
    sides = {side: module for side, module in sides.items() if importlib.util.find_spec(module)}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), count)
        for _ in range(rounds):
            for side in sides:
                found[side].append(one(side, Path(folder)))
    print("| side | rows/s | ratio | CPU s | ratio | exact | near | questions | kept |")
    print("|---|---|---|---|---|---|---|---|---|")
    for side, each in found.items():
        wall, cpu = (_ratio(found["align"], each, name) for name in ("seconds", "cpu"))
        rate = count / statistics.median(one["seconds"] for one in each)
        spent = statistics.median(one["cpu"] for one in each)
        numbers = " | ".join(f"{each[-1][n]:,}" for n in ("exact", "near", "questions", "kept"))
        print(f"| {side} | {rate:,.0f} | {wall:.1f} | {spent:.1f} | {cpu:.1f} | {numbers} |")


def _ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], name: str) -> float:
    return statistics.median(b[name] / a[name] for a, b in zip(ours, theirs, strict=True))


def one(side: str, folder: Path) -> dict[str, Any]:
    """What a side says, in a process of its own."""
    words = [sys.executable, __file__, "speed", "--side", side, "--folder", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


# -- rows ----------------------------------------------------------------------------------------


def write(folder: Path, count: int) -> None:
    """Rows in two files, as datatrove's two tasks want them, and 1,000 questions."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    known = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(30_000)]
    weights = [1 / (i + 10) for i in range(len(known))]

    def said(n: int) -> list[str]:
        return rng.choices(known, weights, k=n)

    questions = [" ".join(said(45)) for _ in range(1000)]
    (folder / "questions.json").write_text(json.dumps(questions))
    rows: list[str] = []
    for i in range(count):
        chance = rng.random()
        words = said(rng.randint(120, 180))
        if chance < 0.01 and rows:
            words = rng.choice(rows).split(" ")
        elif chance < 0.02 and rows:
            words = rng.choice(rows).split(" ")
            words[rng.randrange(len(words))] = "changed"
        elif chance < 0.025:
            words[10:10] = rng.choice(questions).split(" ")
        elif chance < 0.045:
            words.insert(20, f"{said(1)[0]}{i}@{said(1)[0]}.com")
        rows.append(" ".join(words))
    (folder / "rows").mkdir()
    for part in range(CORES):
        with (folder / "rows" / f"{part}.jsonl").open("w") as file:
            for i in range(part, count, CORES):
                file.write(json.dumps({"id": str(i), "text": rows[i]}) + "\n")


class Clock:
    """Seconds from now on, on the wall and of this process and those it has waited for."""

    def __init__(self) -> None:
        self.begun = self._now()

    def taken(self) -> dict[str, float]:
        """Both."""
        now = self._now()
        return {name: now[name] - self.begun[name] for name in now}

    def _now(self) -> dict[str, float]:
        used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return {
            "seconds": time.monotonic(),
            "cpu": sum(one.ru_utime + one.ru_stime for one in used),
        }


# -- sides ---------------------------------------------------------------------------------------


def align(folder: Path) -> dict[str, Any]:
    """The stage."""
    import os

    os.environ["OMP_NUM_THREADS"] = str(CORES)
    from align.curation import contamination, flow, looking, sifting  # noqa: F401
    from align.curation.near import Near
    from align.curation.pii import Pii
    from align.data import Source
    from align.out import Out
    from align.settings import Task
    from align.stages.curate import Curate

    class Questions(Task):
        """Those of the folder."""

        ask = "answer"

        def items(self) -> Iterator[dict[str, Any]]:
            for i, text in enumerate(json.loads((folder / "questions.json").read_text())):
                yield {"id": str(i), "prompt": text}

    files = [str(file) for file in sorted((folder / "rows").glob("*.jsonl"))]
    with tempfile.TemporaryDirectory() as made:
        clock = Clock()
        out = Out(Path(made), Path(made))
        Curate(
            data=[Source(path="json", data_files=files)],
            rows="text",
            near=Near(similarity=0.8),
            pii=Pii(),
            decontaminate=[Questions()],
        ).run(out)
        taken = clock.taken()
    n = {name: count["n"] for name, count in out.counts.items()}
    return {
        **taken,
        "exact": n.get("dropped.exact", 0),
        "near": n.get("dropped.near", 0),
        "questions": n.get("dropped.contamination", 0),
        "kept": n["kept"],
    }


def datatrove(folder: Path) -> dict[str, Any]:
    """Its blocks, one executor after the other."""
    import re

    import numpy as np
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
    from datatrove.pipeline.dedup import (
        ExactDedupFilter,
        ExactDedupSignature,
        ExactFindDedups,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.text import ngrams, simplify_text
    from datatrove.utils.word_tokenizers import WordTokenizer
    from loguru import logger

    logger.remove()

    class Words(WordTokenizer):
        """Faster than those of any language."""

        word_tokenize = staticmethod(re.compile(r"\w+").findall)
        sent_tokenize = span_tokenize = staticmethod(list)

    def text(doc: Any) -> str:
        return str(doc.text)

    words: Any = Words()
    with tempfile.TemporaryDirectory() as made:

        def at(name: str) -> str:
            return f"{made}/{name}"

        def run(pipeline: list[Any], tasks: int = CORES) -> None:
            LocalPipelineExecutor(
                pipeline, tasks, min(tasks, CORES), at(f"logs/{time.monotonic()}"),
                start_method="fork",
            ).run()  # fmt: skip

        def writer(name: str) -> Any:
            return JsonlWriter(at(name), compression=None)

        clock = Clock()
        decontaminate = NGramsDecontConfig(n_grams=RUN)
        index = Path(at("index"))
        index.mkdir()
        filter_ = NGramsDecontFilter(str(index), decontaminate, writer("questions"), words)
        hashes = {
            filter_.hash_func(" ".join(gram))
            for question in json.loads((folder / "questions.json").read_text())
            for gram in ngrams(
                words.word_tokenize(simplify_text(question, decontaminate.norm_config)), RUN
            )
        }
        np.array(list(hashes), np.uint64).tofile(index / "questions.index.hashes")
        exact, near = ExactDedupConfig(content_getter=text), MinhashConfig(n_grams=5)
        run(
            [
                JsonlReader(str(folder / "rows")),
                PIIFormatter(),
                filter_,
                writer("clean"),
                ExactDedupSignature(at("exact"), exact, CORES),
            ]
        )
        run([ExactFindDedups(at("exact"), at("copies"), config=exact)], CORES)
        run(
            [
                JsonlReader(at("clean")),
                ExactDedupFilter(at("copies"), exact, writer("exact-gone")),
                writer("once"),
                MinhashDedupSignature(at("near"), near, words),
            ]
        )
        run([MinhashDedupBuckets(at("near"), at("buckets"), config=near)], near.num_buckets)
        run([MinhashDedupCluster(at("buckets"), at("remove"), near)], 1)
        filter_near = MinhashDedupFilter(at("remove"), writer("near-gone"))
        run([JsonlReader(at("once")), filter_near, writer("kept")])
        taken = clock.taken()

        def lines(name: str) -> int:
            return sum(1 for file in Path(at(name)).rglob("*.jsonl") for _ in file.open())

        return {
            **taken,
            "exact": lines("exact-gone"),
            "near": lines("near-gone"),
            "questions": lines("questions"),
            "kept": lines("kept"),
        }


def datasketch(folder: Path) -> dict[str, Any]:
    """By hand: two processes for what is said of a row, an index in the parent."""
    import hashlib
    import re

    from datasketch import MinHash, MinHashLSH

    clock = Clock()
    asked = {
        gram
        for question in json.loads((folder / "questions.json").read_text())
        for gram in _runs(question.split(), RUN)
    }
    email = re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+")
    digits = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b|\+?\d[\d ()-]{7,}\d")

    def looked(line: str) -> tuple[Any, ...]:
        row = json.loads(line)
        row["text"] = digits.sub("<NUMBER>", email.sub("<EMAIL>", row["text"]))
        words = re.findall(r"\w+", row["text"].lower())
        sketch = MinHash(num_perm=128)
        sketch.update_batch([" ".join(gram).encode() for gram in _runs(words, 5)])
        held = any(gram in asked for gram in _runs(words, RUN))
        same = hashlib.sha1(row["text"].encode()).digest()
        return json.dumps(row), same, sketch, held

    global _looked
    _looked = looked
    n = {"exact": 0, "near": 0, "questions": 0, "kept": 0}
    index, seen = MinHashLSH(threshold=0.8, num_perm=128), set()
    files = sorted((folder / "rows").glob("*.jsonl"))
    with Pool(CORES) as pool, tempfile.TemporaryFile("w") as kept:
        lines = (line for file in files for line in file.open())
        for line, same, sketch, held in pool.imap(_look, lines, 200):
            if held:
                n["questions"] += 1
            elif same in seen:
                n["exact"] += 1
            elif any(sketch.jaccard(other) >= 0.8 for other in _others(index, sketch)):
                n["near"] += 1
            else:
                seen.add(same)
                index.insert(len(_sketches), sketch)
                _sketches.append(sketch)
                n["kept"] += 1
                kept.write(line + "\n")
        pool.close()
        pool.join()
    return {**clock.taken(), **n}


_looked: Callable[[str], tuple[Any, ...]]
_sketches: list[Any] = []


def _look(line: str) -> tuple[Any, ...]:
    return _looked(line)


def _others(index: Any, sketch: Any) -> Iterator[Any]:
    return (_sketches[key] for key in index.query(sketch))


def _runs(words: list[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(n)), strict=False)


SIDES = {"align": align, "datatrove": datatrove, "datasketch": datasketch}


# -- memory --------------------------------------------------------------------------------------


def memory() -> None:
    """Peaks of the stage's process, and what a row adds."""
    sizes = (10_000, 1_000_000)
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            rng, path = random.Random(0), Path(folder) / str(size) / "rows"
            path.mkdir(parents=True)
            with (path / "0.jsonl").open("w") as file:
                for i in range(size):
                    text = " ".join(str(rng.randrange(3000)) for _ in range(12))
                    file.write(json.dumps({"id": str(i), "text": text}) + "\n")
            (path.parent / "questions.json").write_text(json.dumps(["who are you"]))
            code = "import curation, resource, pathlib, sys; "
            code += "curation.align(pathlib.Path(sys.argv[1])); "
            code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
            done = subprocess.run(
                [sys.executable, "-c", code, str(path.parent)],
                cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
            )  # fmt: skip
            peaks.append(int(done.stdout.split()[-1]) * 1024)
            print(f"{size:,} rows: {peaks[-1] / 2**20:,.0f} MiB")
    print(f"{(peaks[1] - peaks[0]) / (sizes[1] - sizes[0]):.0f} bytes a row")


if __name__ == "__main__":
    main()
