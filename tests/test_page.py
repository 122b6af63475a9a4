"""report.html: what a person reads, for small and large recipes, whole and broken ones."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_world import COMPARED, EVIL, GATE, SCORES, Made, difference, made, score, words

from align import recipe
from align.artifacts import Conversations, Model, Text
from align.data import Source
from align.out import Out
from align.reporting import lengths, page, report, scores, summary
from align.stages.curate import Curate

__all__ = ["made"]


# -- what it says --------------------------------------------------------------------------------


def test_the_first_words_say_what_was_made_gained_and_lost_and_which_gate_failed(
    made: Made,
) -> None:
    made.evaluated(scores=SCORES, comparisons=COMPARED)
    said = words(made.page("stopped", gates=[GATE]))
    order = [
        "dpo was made from pretrain: sft → dpo.",
        "On gsm8k (right, 500 items) it reaches 0.500 [0.480, 0.520].",
        "dpo is better than sft, the step before: +0.100 [+0.080, +0.120].",
        "dpo is better than random, its control: +0.080 [+0.060, +0.100].",
        "What fell: ifeval from sft to dpo (-0.050, p < 0.0001).",
        "Gate failed: ifeval right of dpo minus that of sft",
        "What to distrust",
        "Tied, not equal: dpo with sft on arc (under 0.028 is not seen).",
        "Training again with another seed",
        "The chain",
    ]
    places = [said.index(sentence) for sentence in order]
    assert places == sorted(places)


def test_what_takes_belief_away_is_said_with_counts(made: Made) -> None:
    counts = {
        "items.gsm8k": {"n": 1500}, "cut.gsm8k": {"n": 300}, "cut.arc": {"n": 1},
        "items.arc": {"n": 1500}, "dropped.gsm8k_not_graded": {"n": 30},
        "dropped.gsm8k_no_room": {"n": 20}, "truncated.arc": {"n": 40},
        "thought.gsm8k": {"n": 60},
    }  # fmt: skip
    overlap = {"task": "gsm8k", "items": 500, "exact": 3, "partial": 9, "models": ["dpo"]}
    path = made.evaluated(
        scores=SCORES,
        comparisons=COMPARED,
        counts=counts,
        overlap=[{**overlap, "examples": [{"id": "q"}], "not_read": {"other/data": "is gated"}}],
        notes=["win_rate of dpo: the judge goes by place."],
    )
    for key, text in (("sft-1", "short"), ("dpo-1", "much longer than it was")):
        file = path / "items" / "gsm8k" / f"{key}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"id": "q", "prompt": "p", "texts": [text], "numbers": {}}))
    said = words(made.page())
    for sentence in (
        "300 of 1,500 answers of gsm8k were cut at the limit of tokens.",
        "30 of 1,500 items of gsm8k could not be graded.",
        "60 of 1,500 answers of gsm8k began with a thought, which is not graded.",
        "20 of 1,500 items of gsm8k had no room after the prompt.",
        "40 of 1,500 prompts of arc were longer than the model reads and lost their beginning.",
        "Overlap: 12 of 500 items of gsm8k are in what dpo learnt from, 3 of them word for word.",
        "Overlap with other/data is not known: it was not read.",
        "win_rate of dpo: the judge goes by place.",
        "other/data was not read: is gated",
        "Answers to gsm8k grew to 4.6 times their length from sft to dpo",
    ):
        assert sentence in said, sentence
    assert "answers of arc were cut" not in said  # one in 1,500 takes nothing away


def test_what_is_lost_is_said_of_the_items_that_a_model_was_asked() -> None:
    def said(**by: int) -> list[str]:
        items = {"n": 48, "by": {"sft": 16, "dpo": 16, "base": 16}}
        no_room = {"n": sum(by.values()), "by": by}
        return [*summary.lost({"counts": {"items.t": items, "dropped.t_no_room": no_room}})]

    what = "items of t had no room after the prompt, for"
    assert said(sft=5, dpo=5) == [f"5 of 16 {what} sft and dpo."]
    assert said(sft=5, dpo=6) == [f"5 of 16 {what} sft.", f"6 of 16 {what} dpo."]
    assert said(small=20) == [f"20 of 20 {what} small."]  # which was asked nothing


def test_what_a_training_left_out_is_said_of_all_its_rows_or_pairs_for_every_reason() -> None:
    def said(**counts: int) -> list[str]:
        stage = {"name": "s", "counts": {k.replace("__", "."): {"n": n} for k, n in counts.items()}}
        return [*summary.lost(stage)]

    assert said(dropped__too_long=1, pairs=119) == said(dropped__equal_answers=9, kept=9) == []
    assert said(dropped__too_long=3, rows=117) == [
        "3 of 120 rows of s were left out: they are too long."
    ]
    inside = "dropped__answer_begins_inside_a_token"
    assert said(**{inside: 958}, dropped__too_long=119, pairs=89) == [
        "958 of 1,166 pairs of s were left out: an answer begins inside a token.",
        "119 of 1,166 pairs of s were left out: they are too long.",
    ]
    assert said(dropped__no_answer=20, dropped__unranked=7, dropped__too_long=8, rows=12) == [
        "20 of 40 rows of s were left out: they have no answer.",
        "8 of 40 rows of s were left out: they are too long.",
    ]
    unscored = "170 of 456 rows of s could not be scored by quality.reward."
    assert said(unscored__quality__reward=170, read=456) == [unscored]


def test_what_is_not_seen_is_never_said_to_be_under_nothing() -> None:
    tie = {**difference("dpo", "sft", "t", 0.0, "step"), "detectable": 0.0002}
    [sentence] = summary.tied({"scores": [score("dpo", "t", 0.5)], "comparisons": [tie]})
    assert sentence == "Tied, not equal: dpo with sft on t (under 0.0002 is not seen)."


def fell(made: Made, *compared: dict[str, Any]) -> str:
    """What the summary says of losses in these comparisons."""
    made.evaluated(scores=[score(n, "t", 0.5) for n in ("sft", "dpo")], comparisons=compared)
    last = re.findall(r'<p class="lead">(.*?)</p>', made.page())[-1]
    return words(f"</style>{last}").removesuffix(" No gate watched over it.")


CONTROL = difference("dpo", "random", "t", 0.05, "control")


@pytest.mark.parametrize(
    ("compared", "said"),
    [
        (
            [CONTROL, difference("random", "sft", "t", -0.05, "step")],
            "Nothing fell that can be told from chance (1 comparison, Holm, without those of "
            "controls). What fell among the controls: t from sft to random (-0.050, p < 0.0001).",
        ),
        (
            [CONTROL, difference("random", "sft", "t", 0.0, "step")],
            "Nothing fell that can be told from chance (2 comparisons, Holm).",
        ),
        (
            [
                difference("dpo", "sft", "t", 0.05, "control"),
                difference("sft", "pretrain", "t", -0.05, "step"),
            ],
            "What fell: t from pretrain to sft (-0.050, p < 0.0001).",
        ),
        (
            [difference("dpo", "random", "t", -0.03, "control")],
            "Worse than its control: t of dpo than of random (-0.030, p < 0.0001).",
        ),
        (
            [difference("sft", "dpo", "t", -0.05, "asked")],
            "Worse: t of sft than of dpo (-0.050, p < 0.0001).",
        ),
        (
            [difference("dpo", "sft", "t", -0.05, "step") | {"p": 0.06}],
            "Nothing fell that can be told from chance (1 comparison, Holm).",
        ),
    ],
)
def test_what_fell_is_told_by_what_it_was_compared_with(
    compared: list[dict[str, Any]], said: str, made: Made
) -> None:
    assert fell(made, *compared) == said


def test_differences_are_told_from_the_last_model_back_and_its_control_last(made: Made) -> None:
    steps = [difference("sft", "pretrain", "gsm8k", 0.1, "step"), *reversed(COMPARED[:2])]
    made.evaluated(scores=SCORES, comparisons=steps)
    said = words(made.page())
    order = ["dpo is better than sft", "dpo is better than random", "sft is better than pretrain"]
    places = [said.index(sentence) for sentence in order]
    assert places == sorted(places)


def test_one_gate_of_two_that_passed_is_not_all(made: Made) -> None:
    made.evaluated(scores=SCORES, comparisons=COMPARED)
    said = words(made.page(gates=[GATE, {**GATE, "verdict": "passed"}]))
    assert "1 of 2 gates passed. Gate failed: ifeval" in said and "All 1" not in said


def test_answers_that_were_cut_are_counted_among_answers(made: Made) -> None:
    counts = {"items.caps": {"n": 4}, "answers.caps": {"n": 40}, "cut.caps": {"n": 40}}
    counts |= {"items.rare": {"n": 4}, "answers.rare": {"n": 400}, "cut.rare": {"n": 3}}
    made.evaluated(counts=counts)
    said = words(made.page())
    assert "40 of 40 answers of caps were cut" in said and "answers of rare" not in said


def test_the_length_of_an_answer_is_a_mean_of_all_samples(made: Made) -> None:
    path = made.evaluated()
    (path / "items" / "t").mkdir(parents=True)
    row = {"id": "q", "prompt": "p", "texts": ["a" * 10, "b" * 20], "numbers": {}}
    (path / "items" / "t" / "dpo-1.jsonl").write_text(json.dumps(row))
    assert lengths.answers(made.plan()) == {"t": {"dpo": 15.0}}


def test_what_a_reward_pays_for_is_told_when_it_is_length(made: Made) -> None:
    found = {"correlation_with_length": 0.6, "tokens": 10.0, "tokens_kept": 14.0}
    path = made.add("best", "reject", Conversations)
    (path / "metrics.json").write_text(json.dumps(found))
    assert "best kept longer answers (14.0 tokens of 10.0" in words(made.page())
    (path / "metrics.json").write_text(json.dumps({**found, "tokens_kept": 10.5}))
    assert "kept longer answers" not in words(made.page())


def test_without_an_evaluation_it_says_that_nothing_is_known(made: Made) -> None:
    said = words(made.page())
    assert "Nothing was evaluated, so nothing here says that anything got better" in said
    assert "Tasks and models" not in said and "Costs" in said


def test_a_stage_that_failed_or_is_half_done_is_told_first_and_drawn(made: Made) -> None:
    path = made.add("merge", "merge", Model, "dpo", done=False)
    made.add("last", "dpo", Model, "dpo", done=False)
    work = path.with_name(path.name + ".partial")
    work.mkdir()
    said = words(made.page("interrupted"))
    assert "half done" in said and "The run was interrupted with 2 of 7 stages not made." in said
    (work / "error.json").write_text(json.dumps({"error": f"There is no {EVIL}.\n  at line 3"}))
    html = made.page("failed")
    for sentence in ("merge failed: There is no <img", "The run failed with 2 of 7 stages not"):
        assert sentence in words(html)
    assert EVIL not in html and 'class="bad"' in html and "not made" in html


def test_a_recipe_of_which_nothing_is_made_has_a_page(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.add("sft", "sft", Model, done=False)
    assert "No model was made." in words(made.page())


def test_models_from_elsewhere_that_are_only_evaluated_are_told_apart(tmp_path: Path) -> None:
    made = Made(tmp_path)
    pair = [score("org/a", "gsm8k", 0.4), score("org/b", "gsm8k", 0.5)]
    made.evaluated(scores=pair, comparisons=[difference("org/b", "org/a", "gsm8k", 0.1, "step")])
    said = words(made.page())
    for sentence in (
        "Evaluated: org/a, org/b. On gsm8k (right, 500 items) they reach: org/a 0.400 [0.380, "
        "0.420], org/b 0.500 [0.480, 0.520]. org/b is better than org/a",
        "org/b is the best",
    ):
        assert sentence in said


# -- tables --------------------------------------------------------------------------------------


def best(html: str) -> list[str]:
    return re.findall(r'<span class="best">([^<]+)</span>', html)


def test_the_best_is_marked_only_where_it_is_better_than_every_other(made: Made) -> None:
    made.evaluated(scores=SCORES, comparisons=COMPARED)
    html = made.page()
    assert best(html) == ["0.500"]  # gsm8k; ifeval's sft is better than dpo, not than random
    said = words(html)
    for sentence in ("dpo is the best", "sft, random are tied", "all are tied"):
        assert sentence in said


def test_pairing_tells_apart_what_intervals_do_not(made: Made) -> None:
    near = [score("sft", "t", 0.5), score("dpo", "t", 0.52)]
    made.evaluated(scores=near, comparisons=[difference("dpo", "sft", "t", 0.021, "step")])
    assert best(made.page()) == ["0.520"]


def test_what_is_tied_is_named(made: Made) -> None:
    means = (("sft", 0.2), ("random", 0.5), ("dpo", 0.51))
    made.evaluated(scores=[score(name, "t", mean) for name, mean in means])
    html = made.page()
    assert best(html) == [] and "dpo, random are tied" in words(html)


def test_an_interval_that_is_not_known_is_no_reason_to_call_one_better(made: Made) -> None:
    lonely = {"ci_low": None, "ci_high": None, "n": 1}
    gone = {**difference("dpo", "sft", "t", 0.8, "step"), **lonely, "p": None}
    both = [score("sft", "t", 0.1, **lonely), score("dpo", "t", 0.9, **lonely)]
    made.evaluated(scores=both, comparisons=[gone])
    html = made.page()
    assert best(html) == [] and "0.900[?]" in words(html) and "dpo, sft are tied" in words(html)


def test_a_model_between_two_that_are_tied_is_told_of(made: Made) -> None:
    means = (("sft", 0.5), ("random", 0.51), ("dpo", 0.53))
    apart = difference("dpo", "random", "t", 0.021, "control")
    base = score("pretrain", "t", 0.1)
    made.evaluated(scores=[base, *(score(n, "t", m) for n, m in means)], comparisons=[apart])
    said = words(made.page())
    assert "dpo, sft are tied; random, though between them, can be told from the first" in said


def test_a_difference_that_holds_alone_is_said_to_in_the_drawing(made: Made) -> None:
    alone = difference("dpo", "sft", "t", 0.05, "step") | {"p": 0.04}
    scored = [score(n, t, 0.5) for t in ("t", "u") for n in ("sft", "dpo")]
    made.evaluated(scores=scored, comparisons=[alone, {**alone, "task": "u"}])
    html = made.page()
    assert html.count('<text class="soft" x="352.0"') == 2
    assert words(html).count("better alone, p = 0.08") == 4  # drawn, and in its title


def test_more_models_make_it_harder_to_be_the_best() -> None:
    few = [score("a", "t", 0.5), score("b", "t", 0.54)]  # z = 2.8
    many = few + [score(f"m{i}", "t", 0.3 + 0.001 * i) for i in range(20)]
    for found, marked in ((few, ["0.540"]), (many, [])):
        assert best(scores.table({"scores": found, "comparisons": []})) == marked


@pytest.mark.parametrize("n", [12, 57])
def test_subsets_are_folded_and_many_are_a_strip_and_not_charts(n: int, made: Made) -> None:
    subsets = [f"t/subject_{i}" for i in range(n)]
    every = [score(m, t, 0.4) for t in ("t", *subsets) for m in ("sft", "dpo")]
    lost = difference("dpo", "sft", "t/subject_3", -0.3, "step")
    tied = difference("dpo", "sft", "t/subject_4", 0.0, "step")
    alone = difference("dpo", "sft", "t/subject_5", -0.3, "step") | {"p": 0.03}
    made.evaluated(scores=every, comparisons=[lost, tied, alone])
    html = made.page()
    folded = html[html.index(f"<summary>t by subset ({n})") :].partition("</details>")[0]
    assert "dpo against sft (step): worse in subject_3 (-0.300)." in words("</style>" + folded)
    assert (folded.count("<rect"), folded.count('<td class="heat"')) == (
        (0, 2 * n) if n == 12 else (2 * n, 0)
    )
    assert "What fell: t/subject_3" in words(html)
    assert html.count("<figure") < 8


# -- gates ---------------------------------------------------------------------------------------


def test_a_flipped_item_is_shown_with_what_both_models_said(made: Made) -> None:
    path = made.evaluated(scores=SCORES, comparisons=COMPARED)
    for key, text in (("sft-1", "it was right"), ("dpo-1", f"now {EVIL}")):
        file = path / "items" / "ifeval" / f"{key}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"id": f"q{i}", "prompt": [{"role": "user", "content": f"Ask {i}"}], "texts": [text],
             "numbers": {"right": 1.0, "none": None}}
            for i in range(4)
        ]  # fmt: skip
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = made.page(gates=[GATE])
    said = words(html)
    assert "Items that flipped: 2 lost, 1 won" in said
    assert "sft: it was right (right 1)" in said and "Ask 1" in said and "Ask 0" not in said
    assert EVIL not in html and "now &lt;img" in html


CHOICE = {"prompt": "Ask", "choices": [" red", " blue"], "answer": 1, "numbers": {"right": 1.0}}
PAIR = {"prompt": "Ask", "chosen_text": "yes", "numbers": {"right": 1.0}}


@pytest.mark.parametrize(
    ("row", "old", "new", "said"),
    [
        (CHOICE, {"options": [-2.0, -1.0]}, {"options": [-1.0, -2.0]},
         "sft: chose blue (right 1)dpo: chose red (right 1)right: blue"),
        ({"prompt": "Ask", "numbers": {"right": 1.0}}, {"options": [-2.0, -1.0]}, {"loglik": -1.0},
         "sft: chose option 2 (right 1)dpo: (right 1)q1"),
        (CHOICE, {"options": [-2.0, -1.0]}, {"finish": "no room"},
         "sft: chose blue (right 1)dpo: (no room) (right 1)right: blue"),
        (PAIR | {"rejected_text": [{"role": "assistant", "content": "no"}]},
         {"chosen": 2.0, "rejected": 1.0}, {"chosen": 1.0, "rejected": 2.0},
         "sft: preferred yes (right 1)dpo: preferred no (right 1)right: yes"),
        (PAIR | {"rejected_text": ["no", "never"]},
         {"chosen": 2.0, "rejected": [1.0, 0.0]}, {"chosen": 1.0, "rejected": [0.0, 2.0]},
         "sft: preferred yes (right 1)dpo: preferred never (right 1)right: yes"),
    ],
)  # fmt: skip
def test_a_flipped_item_of_options_or_pairs_is_shown_with_what_was_chosen(
    row: dict[str, Any], old: dict[str, Any], new: dict[str, Any], said: str, made: Made
) -> None:
    path = made.evaluated(scores=SCORES, comparisons=COMPARED)
    (path / "items" / "ifeval").mkdir(parents=True)
    for key, found in (("sft-1", old), ("dpo-1", new)):
        file = path / "items" / "ifeval" / f"{key}.jsonl"
        file.write_text(json.dumps({"id": "q1", **row, **found}))
    assert said in words(made.page(gates=[GATE]))


def test_what_would_not_be_seen_in_an_answer_is_named_and_no_answer_is_empty(made: Made) -> None:
    path = made.evaluated(scores=SCORES, comparisons=COMPARED)
    (path / "items" / "ifeval").mkdir(parents=True)
    for key, text in (("sft-1", ""), ("dpo-1", "a\u202eb\x1b[1mc\0d\ne\u200df")):
        row = {"id": "q1", "prompt": "Ask", "texts": [text], "numbers": {"right": 1.0}}
        (path / "items" / "ifeval" / f"{key}.jsonl").write_text(json.dumps(row))
    html = made.page(gates=[GATE])
    assert "aU+202eb\\x1b[1mc\\x00d\ne\u200df" in html
    assert "sft: (empty) (right 1)" in words(html)


def test_flipped_items_whose_answers_are_gone_are_named(made: Made) -> None:
    made.evaluated(scores=SCORES, comparisons=COMPARED)
    assert "q1" in words(made.page(gates=[GATE]))


# -- costs and lineage ----------------------------------------------------------------------------


def test_costs_are_of_the_whole_and_a_device_is_named_where_there_are_several(made: Made) -> None:
    html = made.page()
    assert "Costs" in html and ">device</th>" not in html
    path = made.add(
        "long", "sft", Model, "dpo", seconds=226.5, device="GPU", world_size=4,
        files={"adapter/a": {"size": 3 * 2**20, "sha256": "0" * 64}},
    )  # fmt: skip
    numbers = {"tokens": 9000, "tokens_per_second": 123.4}
    (path / "metrics.json").write_text(json.dumps(numbers))
    said = words(made.page())
    assert "long3 min 46 s 38%4 × GPU9,0001233.0 MiB" in said
    assert "all10 min 4 s9,0003.0 MiB" in said


def test_of_curated_data_every_rule_says_what_it_removed_with_examples(made: Made) -> None:
    grams = {"id": "a", "task": "gsm8k", "gram": EVIL}
    counts = {
        "dropped.no_answer": {"n": 7, "examples": [{"row": 3}]},
        "dropped.contamination": {"n": 30, "examples": [grams]},
        "dropped.exact": {"n": 50},
        "changed.email": {"n": 4, "examples": [{"id": "b"}]},
    }
    path = made.add("clean", "curate", Conversations, counts=counts)
    (path / "removed.jsonl").write_text("")
    numbers = [
        {"source": "a.jsonl", "read": {"rows": 150, "words": 900}, "kept": {"rows": 90, "words": 9},
         "dropped": {"contamination": 30, "exact": 30}},
        {"source": "b.jsonl", "read": {"rows": 50, "words": 100}, "kept": {"rows": 30, "words": 9},
         "dropped": {"exact": 20}},
    ]  # fmt: skip
    both = {"read": {"rows": 200, "words": 1000}, "kept": {"rows": 120, "words": 600}}
    (path / "metrics.json").write_text(json.dumps({**both, "sources": numbers}))
    html = made.page()
    section, _, rest = html.partition('<h2 id="curated">')[2].partition('<h2 id="dropped">')
    said = words(f"</style>{section}")
    assert "Of 200 rows 120 (60.0%) are kept: 600 of 1,000 words." in said
    order = ["exact50\xa025.0%", "contamination30\xa015.0%", "a.jsonl15090 (60.0%)", "b.jsonl5030"]
    places = [said.index(sentence) for sentence in [*order, "email4"]]
    assert places == sorted(places)
    assert "task gsm8k, gram <img src=x" in said and EVIL not in section
    rest = words(f"</style>{rest}")
    assert "cleanno answer7" in rest and "cleanexact" not in rest


def test_what_the_stage_itself_writes_is_what_is_shown(made: Made, tmp_path: Path) -> None:
    for name, texts in (("a.jsonl", ["One", "Two", "One"]), ("b.jsonl", ["two", "Two"])):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / name).write_text(rows)
    path = made.add("clean", "curate", Text)
    sources = [Source(path=str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl")]
    out = Out(path, tmp_path / ".cache")
    Curate(data=sources, rows="text", decontaminate=[]).run(out)
    about = json.loads((path / "artifact.json").read_text())
    (path / "artifact.json").write_text(json.dumps({**about, "counts": out.counts}))
    said = words(made.page())
    assert "cleanOf 5 rows 3 (60.0%) are kept: 3 of 5 words." in said
    assert re.search(r"exact2\xa040\.0%examplesid (\w+), repeats \1-1id", said)
    assert "cleanexact" not in said


def test_how_it_was_made_says_what_runs_it_again_and_from_which_bytes(
    made: Made, tmp_path: Path
) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text("rows")
    path = made.add(
        "last", "sft", Model, "dpo", made_at="2026-01-01T00:00:00Z", versions={"torch": "0.1"},
        files={"adapter/chat_template.jinja": {"size": 9, "sha256": "abcdef" * 10}},
    )  # fmt: skip
    (path / "model.json").write_text(json.dumps({"base": {"path": "org/base", "revision": "r1"}}))
    source = {"path": "json", "data_files": str(data), "columns": {}, "split": "train"}
    made.stages["last"].record["settings"] = {"data": [source], "batch_size": 8}
    plan = made.plan()
    plan.overrides.append("seed=3")
    said = words(page.render(report.compose(plan), plan))
    for sentence in (
        "align run chain.yaml --set seed=3 --store",
        "--again last",
        "Seed 42.",
        "made by torch 0.1; now",
        f"sha256 {hashlib.sha256(b'rows').hexdigest()[:12]}…",
        '"revision": "r1"',
        "chat_template.jinja, sha256 abcdefabcdef…",
        "Some stages were made by other versions of torch than today's.",
    ):
        assert sentence in said, sentence


def test_a_shipped_recipe_is_called_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = recipe.read("quickstart", store=tmp_path)
    assert f"align run quickstart --store {tmp_path}" in words(
        page.render(report.compose(plan), plan)
    )
