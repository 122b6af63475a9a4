"""Best-of-n against closed forms, through a recipe that is run: sample, score, reject, pair.

The policy is a stage by path whose answers are numbers from a known distribution; a reward by path
reads them, with noise where it is told to. Tolerances are four standard errors.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from align import recipe, runner
from align.artifacts import Rows

PROMPTS, N = 2000, 8

STAGE = """
from typing import Literal
import numpy as np
from align.artifacts import Samples
from align.out import Out
from align.settings import Stage

class Numbers(Stage):
    '''Answers that are draws from a known distribution.'''
    prompts: int
    n: int
    law: Literal["normal", "uniform", "coin", "words"]

    def run(self, out: Out) -> Samples:
        random = np.random.default_rng(self.seed)
        shape = self.prompts, self.n
        if self.law == "coin":  # a right answer, more or less likely by prompt
            drawn = random.random(shape) < random.beta(0.5, 1.5, size=(self.prompts, 1))
        elif self.law == "words":
            drawn = random.choice(6, shape, p=[0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
        else:
            drawn = getattr(random, self.law)(size=shape)
        out.write_rows(
            {"id": f"{i}", "prompt": [{"role": "user", "content": f"{i}?"}], "columns": {},
             "completions": [
                 {"index": k, "text": f"{float(x)!r} {k}" if self.law == "coin" else repr(float(x)),
                  "token_ids": [1], "logprob": -1.0, "finish": "stop"}
                 for k, x in enumerate(row)]}
            for i, row in enumerate(drawn))
        return Samples(out.path)
"""
REWARD = """
import hashlib
from statistics import NormalDist
from align.settings import Reward

class Reads(Reward):
    '''The number that the answer is, and a noise of its own per answer.'''
    noise: float = 0.0
    by: list[float] = []

    def __call__(self, *, prompts, completions, **columns):
        scores = []
        for prompt, completion in zip(prompts, completions, strict=True):
            text = completion[0]["content"]
            digest = hashlib.sha256(f"{prompt}{text}".encode()).digest()
            u = (int.from_bytes(digest[:6], "big") + 0.5) / 2**48
            value = float(text.split()[0])
            value = self.by[int(value)] if self.by else value
            scores.append(value + self.noise * NormalDist().inv_cdf(u))
        return scores
"""
WORTH = [5.0, 1.0, 3.0, 3.0, 2.0, 8.0]
"""What the reward says of the six words: two are equal."""

RECIPE = f"""
seed: 5
defaults:
  numbers: {{prompts: {PROMPTS}, n: {N}}}
stages:
  normal: {{use: my/numbers.py, law: normal}}
  by_truth: {{use: score, samples: normal, rewards: [my/reads.py]}}
  best: {{use: reject, scores: by_truth}}
  random: {{use: reject, scores: by_truth, keep: random, like: best}}
  pairs: {{use: pair, scores: by_truth}}
  by_noise: {{use: score, samples: normal, rewards: [{{use: my/reads.py, noise: 1.0}}]}}
  best_by_noise: {{use: reject, scores: by_noise}}
  uniform: {{use: my/numbers.py, law: uniform}}
  uniform_scored: {{use: score, samples: uniform, rewards: [my/reads.py]}}
  uniform_best: {{use: reject, scores: uniform_scored}}
  coin: {{use: my/numbers.py, law: coin}}
  coin_scored: {{use: score, samples: coin, rewards: [my/reads.py]}}
  solved: {{use: reject, scores: coin_scored, solved: 1.0, drop: [always, never]}}
  words: {{use: my/numbers.py, law: words}}
  words_scored: {{use: score, samples: words, rewards: [{{use: my/reads.py, by: {WORTH}}}]}}
  words_best: {{use: reject, scores: words_scored}}
"""

NORMAL = [0.0, 0.56419, 0.84628, 1.02938, 1.16296, 1.26721, 1.35218, 1.42360]
"""E[max of k standard normals], k = 1..8 (Teichroew 1956)."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[recipe.Plan]:
    """The recipe, made."""
    folder = tmp_path_factory.mktemp("best-of-n")
    (folder / "my").mkdir()
    (folder / "my" / "numbers.py").write_text(STAGE)
    (folder / "my" / "reads.py").write_text(REWARD)
    (folder / "r.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = recipe.read("r.yaml", store=folder / "runs", strict=True)
        assert runner.run(plan) == 0
        yield plan


def metrics(run: recipe.Plan, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (run.stages[stage].artifact.path / "metrics.json").read_text()
    )
    return found


def rows(run: recipe.Plan, stage: str) -> list[dict[str, Any]]:
    artifact = run.stages[stage].artifact
    assert isinstance(artifact, Rows)
    return list(artifact.rows())


def kept(run: recipe.Plan, stage: str) -> list[float]:
    return [float(row["messages"][-1]["content"].split()[0]) for row in rows(run, stage)]


def test_the_curve_of_normal_scores_is_the_expected_maximum(run: recipe.Plan) -> None:
    found = metrics(run, "best")
    assert found["prompts"] == PROMPTS and found["n"] == N
    for k, expected in enumerate(NORMAL):
        half = (found["best_of_high"][k] - found["best_of_low"][k]) / 2
        assert found["best_of"][k] == pytest.approx(expected, abs=half * 4 / 1.96), k
        assert half < 4 / math.sqrt(PROMPTS)
    half = (found["gain_high"] - found["gain_low"]) / 2
    assert found["gain"] == pytest.approx(NORMAL[-1], abs=half * 4 / 1.96)
    assert found["kept"] == pytest.approx(found["best_of"][-1])


def test_a_random_pick_is_one_answer_of_the_model(run: recipe.Plan) -> None:
    picked = kept(run, "random")
    assert len(picked) == PROMPTS
    assert np.mean(picked) == pytest.approx(0, abs=4 / math.sqrt(PROMPTS))
    assert np.std(picked) == pytest.approx(1, abs=4 / math.sqrt(2 * PROMPTS))


def test_pairs_of_best_and_worst_are_the_range_of_eight_normals(run: recipe.Plan) -> None:
    found = metrics(run, "pairs")
    assert found["pairs"] == PROMPTS
    assert found["mean_margin"] == pytest.approx(2 * NORMAL[-1], abs=4 * 0.82 / math.sqrt(PROMPTS))


def test_a_noisy_judge_gains_the_expected_maximum_over_the_root_of_one_plus_its_variance(
    run: recipe.Plan,
) -> None:
    truth = np.array(kept(run, "best_by_noise"))
    error = truth.std(ddof=1) / math.sqrt(PROMPTS)
    assert truth.mean() == pytest.approx(NORMAL[-1] / math.sqrt(2), abs=4 * error)
    found = metrics(run, "best_by_noise")
    half = (found["best_of_high"][-1] - found["best_of_low"][-1]) / 2
    assert found["best_of"][-1] == pytest.approx(NORMAL[-1] * math.sqrt(2), abs=half * 4 / 1.96)


def test_the_best_of_k_uniform_scores_is_k_over_k_plus_one(run: recipe.Plan) -> None:
    found = metrics(run, "uniform_best")
    for k in range(1, N + 1):
        spread = math.sqrt(k / ((k + 1) ** 2 * (k + 2)))  # of the maximum of k
        tolerance = 4 * spread / math.sqrt(PROMPTS)
        assert found["best_of"][k - 1] == pytest.approx(k / (k + 1), abs=tolerance)
    # how often the best of n beats another answer of the model: the bound, as scores do not tie
    wins = np.array(kept(run, "uniform_best")) > np.random.default_rng(9).random(PROMPTS)
    bound = found["win_rate_bound"]
    assert wins.mean() == pytest.approx(bound, abs=4 * math.sqrt(bound * (1 - bound) / PROMPTS))


def test_with_scores_of_zero_and_one_the_curve_is_pass_at_k(run: recipe.Plan) -> None:
    found = metrics(run, "solved")
    right = [int(sum(a["score"] for a in row["completions"])) for row in rows(run, "coin_scored")]
    assert found["zero_or_one"]
    for k in range(1, N + 1):  # 1 - C(n-c, k) / C(n, k): Chen et al. 2021, arXiv 2107.03374
        expected = np.mean([1 - math.comb(N - c, k) / math.comb(N, k) for c in right])
        assert found["best_of"][k - 1] == pytest.approx(expected, abs=1e-6)
    counts = run.stages["solved"].artifact.manifest()["counts"]
    assert counts["dropped.always_solved"]["n"] == right.count(N) > 0
    assert counts["dropped.never_solved"]["n"] == right.count(0) > 0
    assert len(rows(run, "solved")) == PROMPTS - right.count(N) - right.count(0)


def test_the_best_of_n_of_a_finite_vocabulary_has_its_law_and_stays_below_the_kl_bound(
    run: recipe.Plan,
) -> None:
    p = np.array([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    worth = np.array(WORTH)
    below = np.array([p[worth < w].sum() for w in worth])
    upto = np.array([p[worth <= w].sum() for w in worth])
    law = upto**N - below**N  # of the score; equal words share it as they share the first draws
    law *= np.array([p[i] / p[worth == worth[i]].sum() for i in range(6)])
    counts = Counter(int(x) for x in kept(run, "words_best"))
    for i in range(6):
        tolerance = 4 * math.sqrt(law[i] * (1 - law[i]) / PROMPTS) + 1 / PROMPTS
        assert counts[i] / PROMPTS == pytest.approx(law[i], abs=tolerance)
    q = np.array([counts[i] / PROMPTS for i in range(6)])
    seen = q > 0
    measured = float((q[seen] * np.log(q[seen] / p[seen])).sum())
    bound = metrics(run, "words_best")["kl_bound"]
    exact = float((law[law > 0] * np.log(law[law > 0] / p[law > 0])).sum())
    assert 0 < exact < bound == pytest.approx(math.log(N) - (N - 1) / N)
    assert measured == pytest.approx(exact, abs=0.1) and measured < bound
