"""Generated code is judged by its tests."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coding import DATA, judged, needs_data, needs_sandbox, score, shelved

from align.errors import StageFailed
from align.verifiers import sandbox

# -- what is judged ------------------------------------------------------------------------------


VALUES = "(None, True, 2**5000, -0.5, float('inf'), 'ü\\n', b'a', [1, {2}], {(1, 'a'): [None]})"


@needs_sandbox
@pytest.mark.parametrize(
    "test",
    [
        f"assert same(*{VALUES}) == {VALUES}",
        "assert repr(same(0.1 + 0.2, 1j)) == repr((0.1 + 0.2, 1j))",
        "assert same(a=frozenset({1}), b=bytearray(b'a')) == {'a': frozenset({1}), 'b': b'a'}",
        "assert same(int, str) == (int, str)",
        "pair = Pair(1, b=2)\npair.a = 5\nassert pair.sum() == 7 and pair.b == 2",
        "pair = Pair(1, 2)\nassert pair == same(pair)[0] and pair != Pair(1, 2)",
        "assert list(count(3)) == [0, 1, 2] and next(count(1)) == 0 and sum(count(4)) == 6",
        "assert counts == {'a': 2, 'b': 1} and counts['a'] == 2",
        "items = many\nassert len(items) == 3 and items[1] == 2 and 3 in items and items",
        "assert (str(many), repr(many)) == ('deque([1, 2, 3])', 'deque([1, 2, 3])')",
        "try:\n    fails()\nexcept ValueError as error:\n    assert str(error) == 'no'",
        "try:\n    same(lambda: 0)\nexcept TypeError as what:\n    assert 'function' in str(what)",
    ],
)
def test_values_are_copied_and_objects_stay_with_the_answer(test: str) -> None:
    answer = """
        from collections import Counter, deque

        class Pair:
            def __init__(self, a, b):
                self.a, self.b = a, b

            def sum(self):
                return self.a + self.b

        def same(*values, **named):
            return values or named

        def count(n):
            yield from range(n)

        def fails():
            raise ValueError("no")

        counts = Counter("aab")
        many = deque([1, 2, 3])
    """
    assert judged(answer, test) == {"score": 1, "passed_share": 1, "timed_out": 0}


@needs_sandbox
@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I don't know.",
        "def f(:",
        "\ud800\x00",
        "(" * 100_000,
        "def f():\n    return f()",
        "def f():\n    x = []\n    x.append(x)\n    return x",
        "def f():\n    x = 42\n    for _ in range(100_000):\n        x = [x]\n    return x",
        "def f():\n    return '4' * 10**8",
        "def f():\n    return int(input())",
    ],
    ids=range(10),
)
def test_a_broken_answer_is_wrong_and_no_error(answer: str) -> None:
    assert judged(answer) == {"score": 0, "passed_share": 0, "timed_out": 0}


@needs_sandbox
def test_an_answer_that_ends_a_loop_of_the_tests_is_no_pass() -> None:
    stops = "def f(*x):\n    raise StopIteration"
    found = judged(stops, "assert all(map(f, [1, 2]))", "assert list(map(f, [1])) == []")
    assert found == {"score": 0, "passed_share": 0, "timed_out": 0}
    assert judged("def f():\n    return []", "for x in f():\n    assert x")["score"] == 0


@needs_sandbox
def test_the_share_counts_asserts_that_hold_and_every_one_is_asked() -> None:
    answer = "def f(x):\n    return [1, 2][x]"
    tests = ["assert f(0) == 1", "assert f(5) == 1", "assert f(1) == 3", "assert f(1) == 2"]
    assert judged(answer, *tests) == {"score": 0, "passed_share": 0.5, "timed_out": 0}
    loop = "for i in range(4):\n    assert f(i % 2) == i % 2 + 1"
    assert judged(answer, loop) == {"score": 1, "passed_share": 1, "timed_out": 0}


@needs_sandbox
@pytest.mark.parametrize(
    "tests",
    [
        None,
        [],
        "",
        "def check(:",
        "import a_package_nobody_has\nassert f() == 42",
        "f()",
        "def test_f():\n    assert f() == 42",
    ],
    ids=["none", "empty", "blank", "no Python", "no such package", "no assert", "not called"],
)
def test_it_does_not_apply_where_nothing_can_be_tested(tests: Any) -> None:
    assert score(shelved(), "def f():\n    return 42", test=[tests])[0]["score"] is None


PROMPT = 'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef f(x):\n    """f."""\n'
WHOLE = "def f(x):\n    return math.floor(half(x))\n"
BODY = "    return math.floor(half(x))\n"


@needs_sandbox
@pytest.mark.parametrize(
    "answer",
    [
        BODY,
        BODY + "\n\nprint(f(1))\nSo the answer is 42, isn't it?",
        WHOLE,
        f"Sure!\n```python\n{WHOLE}```\nTry it:\n```python\nprint(f(3))\n```\n",
        f"```\n{BODY}```",
        f"First `pip`:\n```bash\npip install f\n```\n```py\n{WHOLE}\n```",
        f"```python\n{WHOLE}",
    ],
    ids=["body", "body and more", "whole", "blocks", "body in a block", "bash", "cut"],
)
def test_an_answer_is_a_block_the_text_or_what_the_prompt_goes_on_with(answer: str) -> None:
    reward = shelved(entry_point="name", prompt_code="prompt")
    tests = "def check(candidate):\n    assert candidate(5) == 2 and half(1) == 0.5"
    found = score(reward, answer, prompt=[PROMPT], test=[tests], name=["f"])
    assert found == [{"score": 1, "passed_share": 1, "timed_out": 0}]


@needs_sandbox
def test_with_an_entry_point_the_tests_take_nothing_else_from_the_answer() -> None:
    answer = "def sum(x):\n    return x\n\n\ndef close(x, y):\n    return True"
    tests = ["assert sum(41) == 42", "assert close(sum(41), 42)", "assert sum(42) == 42"]
    found = score(shelved(entry_point="name"), answer, test=[tests], name=["sum"])
    assert found == [{"score": 0, "passed_share": 1 / 3, "timed_out": 0}]


@needs_sandbox
def test_what_is_missing_is_a_sentence() -> None:
    with pytest.raises(
        StageFailed, match=r'column "test", only gold\. Name the right one: tests: …'
    ):
        score(shelved(), "x", gold=["1"])
    with pytest.raises(StageFailed, match="nothing says which function is the candidate"):
        score(shelved(), "x", test=["def check(candidate):\n    assert candidate() == 1"])


@pytest.fixture
def probed_anew() -> Iterator[None]:
    sandbox._unable.cache_clear()
    yield
    sandbox._unable.cache_clear()


def test_without_bubblewrap_it_refuses_and_nothing_takes_its_place(
    probed_anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="there is no bwrap here: install the package"):
        shelved()


def test_a_bubblewrap_that_cannot_make_a_sandbox_is_refused_in_its_own_words(
    probed_anew: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ValueError, match="did not start: bwrap: No permissions to create"):
        shelved()


def test_without_a_sandbox_only_where_the_recipe_says_so() -> None:
    reward = shelved(sandbox="unsafe-subprocess", timeout=5.0)
    answers = ["def f():\n    return 42", "def f():\n    return 41", "import os\nos._exit(0)"]
    found = score(reward, *answers, test=["assert f() == 42"] * 3)
    assert [one["score"] for one in found] == [1, 0, 0]


# -- real problems -------------------------------------------------------------------------------


def humaneval() -> list[dict[str, Any]]:
    with gzip.open(DATA / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def of_humaneval(rows: list[dict[str, Any]], answers: list[str]) -> list[float | None]:
    reward = shelved(entry_point="entry_point", prompt_code="prompt", timeout=30.0)
    columns = {name: [row[name] for row in rows] for name in ("prompt", "test", "entry_point")}
    return [one["score"] for one in score(reward, *answers, **columns)]


@needs_sandbox
@needs_data
def test_humanevals_own_solutions_pass_and_mutants_of_them_fail() -> None:
    rows = humaneval()[::8]
    rows += [row for row in humaneval() if row["task_id"] in ("HumanEval/38", "HumanEval/50")]
    right = [row["canonical_solution"] for row in rows]
    mutants = [MUTATED.sub(lambda found: SWAPPED[found[0]], code) for code in right]
    changed = [i for i, code in enumerate(mutants) if code != right[i]]
    nothing = ["    return None\n"] * len(rows)
    found = of_humaneval(rows * 3, [*right, *mutants, *nothing])
    assert len(rows) == 23 and len(changed) >= 15
    assert found[: len(rows)] == [1] * len(rows)
    assert [found[len(rows) + i] for i in changed] == [0] * len(changed)
    assert found[2 * len(rows) :] == [0] * len(rows)


SWAPPED = {" + ": " - ", " - ": " + ", " * ": " // ", "==": "!=", "!=": "==", " < ": " >= "}
SWAPPED |= {" > ": " <= ", " <= ": " > ", " >= ": " < ", " % ": " * "}
MUTATED = re.compile("|".join(map(re.escape, SWAPPED)))


@needs_sandbox
@needs_data
def test_mbpps_reference_code_passes_its_tests() -> None:
    with (DATA / "mbpp" / "mbpp.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in list(lines)[6::40]]
    reward = shelved(tests="test_list", setup="test_setup_code", timeout=30.0)
    columns = {name: [row[name] for row in rows] for name in ("test_list", "test_setup_code")}
    found = score(reward, *(row["code"] for row in rows), **columns)
    assert len(rows) == 25 and [one["score"] for one in found] == [1] * len(rows)
