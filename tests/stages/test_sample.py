"""Sampling: the same draw in any company, whole shards, and no hidden `top_k`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shouting import prepare

from align import launch, models
from align.artifacts import Model, Samples
from align.data import Source
from align.errors import StageFailed
from align.generation import generate
from align.generation.draws import Draw
from align.out import Out
from align.parallel.workers import Workers
from align.stages.sample import Sample

Write = Callable[[str, list[dict[str, Any]]], Path]


@pytest.fixture
def model(tiny_model: Path) -> Model:
    spec = {"base": {"path": str(tiny_model)}, "quantization": None, "adapter": False}
    return Model(tiny_model, spec=spec)


@pytest.fixture
def prompts(write_rows: Write) -> Source:
    rows = [{"prompt": "tell " * (i % 5) + f"me {i}", "answer": i} for i in range(10)]
    return Source(path=str(write_rows("prompts.jsonl", rows)))


@pytest.fixture
def sample(model: Model, prompts: Source, tmp_path: Path) -> Callable[..., tuple[Samples, Out]]:
    def run(name: str = "sample", **settings: Any) -> tuple[Samples, Out]:
        out = Out(tmp_path / name, tmp_path / "cache")
        out.path.mkdir(exist_ok=True)
        given = {"n": 3, "seed": 1, "generation": {"max_new_tokens": 16}, **settings}
        return Sample(**{"model": model, "prompts": [prompts], **given}).run(out), out

    return run


def tokens(samples: Samples) -> dict[str, list[list[int]]]:
    return {row["id"]: [a["token_ids"] for a in row["completions"]] for row in samples.rows()}


def content(samples: Samples) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in samples.files()}


def test_rows_have_the_prompt_its_columns_and_n_answers(sample: Any) -> None:
    samples, out = sample()
    rows = list(samples.rows())
    assert [row["columns"]["answer"] for row in rows] == list(range(10))
    assert rows[3]["prompt"][0]["content"].endswith("me 3")
    assert {len(row["completions"]) for row in rows} == {3}
    answer = rows[0]["completions"][2]
    assert answer.keys() == {"index", "text", "token_ids", "logprob", "finish"}
    assert answer["index"] == 2 and answer["logprob"] < 0 and 6 not in answer["token_ids"][:-1]
    assert out.counts["prompts"]["n"] == 10 and out.counts["answers"]["n"] == 30


def test_answers_do_not_depend_on_shards_batches_or_order(
    sample: Any, model: Model, prompts: Source, write_rows: Write
) -> None:
    expected = tokens(sample()[0])
    assert tokens(sample("a", shard=3, rows=4)[0]) == expected
    rows = [json.loads(line) for line in Path(str(prompts.path)).read_text().splitlines()]
    reversed_ = Source(path=str(write_rows("reversed.jsonl", rows[::-1])))
    assert tokens(sample("b", prompts=[reversed_])[0]) == expected
    alone = Source(path=str(write_rows("alone.jsonl", rows[4:5])))
    [(name, answers)] = tokens(sample("c", prompts=[alone])[0]).items()
    assert answers == expected[name]


def test_a_killed_sampling_goes_on_and_has_the_same_bytes(
    sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(sample("whole", shard=3)[0])
    drawn: list[int] = []
    original = generate.generate

    def counting(network: Any, tokenizer: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        drawn.append(len(prompts))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return original(network, tokenizer, prompts, *rest, **more)

    monkeypatch.setattr(generate, "generate", counting)
    with pytest.raises(KeyboardInterrupt):
        sample("killed", shard=3)
    drawn[:] = [0] * 5
    samples, out = sample("killed", shard=3)
    assert drawn[5:] == [3, 1]  # the first two shards were there
    assert content(samples) == whole
    assert out.counts["answers"]["n"] == 30


def test_a_lost_shard_and_one_of_another_size_are_made_again(sample: Any) -> None:
    samples, _ = sample(shard=3)
    before = content(samples)
    samples.files()[1].unlink()
    assert content(sample(shard=3)[0]) == before
    assert tokens(sample(shard=4)[0]) == tokens(sample("other", shard=4)[0])
    assert len(samples.files()) == 3


def test_options_of_decoding_are_checked_before_anything_runs(
    model: Model, prompts: Source
) -> None:
    stage = Sample(model=model, prompts=[prompts], generation={"num_beams": 2, "top_p": 2.0})
    [(key, unknown), (_, bound)] = stage.check()
    assert key == "generation" and '"num_beams"' in unknown and "at most 1" in bound


def test_one_greedy_answer_is_enough(model: Model, prompts: Source) -> None:
    greedy = {"model": model, "prompts": [prompts], "generation": {"do_sample": False}}
    [(key, message)] = Sample(**greedy, n=4).check()
    assert key == "n" and "4 times" in message and "n: 1" in message and "leave" in message
    assert list(Sample(**greedy, n=1).check()) == []
    warm = Draw(n=2, generation={"do_sample": True})
    [(key, message)] = Sample(**greedy, draws=[Draw(n=1), warm, Draw(n=3)]).check()
    assert key == "draws.2.n" and "3 times" in message


def test_a_where_of_a_column_that_no_prompt_has_is_refused_before_anything_runs(
    model: Model, prompts: Source, write_rows: Write
) -> None:
    def problems(where: dict[str, Any], *more: Any) -> list[tuple[str, str]]:
        draws = [Draw(), Draw(where=where)]
        return list(Sample(model=model, prompts=[prompts, *more], draws=draws).check())

    [(key, message)] = problems({"anwser": 1})
    assert key == "draws.1.where"
    assert 'no column "anwser"' in message and "Columns are: answer." in message
    assert problems({"answer": 99}) == []  # values are seen when it runs
    other = Source(path=str(write_rows("other.jsonl", [{"prompt": "x", "topic": "y"}])))
    assert problems({"topic": "y"}, other) == []
    assert problems({"anwser": 1}, Source(path="a/b")) == []  # not here: nothing is known


def test_a_prompt_longer_than_the_context_is_dropped_and_counted(
    sample: Any, write_rows: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "x" * 300}, {"prompt": "short"}]
    samples, out = sample(prompts=[Source(path=str(write_rows("long.jsonl", rows)))])
    assert len(list(samples.rows())) == 1
    said = capsys.readouterr().err
    assert "1 of 2 prompts were left out: 1 longer than the model can read.\n" in said
    assert f"{out.counts['cut']['n']} of 3 answers were cut at max_new_tokens.\n" in said
    [example] = out.counts["dropped.prompt_too_long"]["examples"]
    assert example.keys() == {"id", "draw", "tokens"} and example["tokens"] > 256
    only = [Source(path=str(write_rows("only.jsonl", rows[:1])))]
    with pytest.raises(StageFailed, match="longer than the 256 tokens"):
        sample("none", prompts=only)


def test_samples_come_from_all_tokens_unless_top_k_is_asked_for(sample: Any) -> None:
    """The installed default is `top_k=50`. A random model is nearly uniform over 263."""

    def kinds(samples: Samples) -> int:
        rows: Iterator[Any] = samples.rows()
        return len({t for row in rows for a in row["completions"] for t in a["token_ids"]})

    many = {"n": 40, "generation": {"max_new_tokens": 8}}
    assert kinds(sample("all", **many)[0]) > 240
    few = {"n": 40, "generation": {"max_new_tokens": 1, "top_k": 2}}
    assert kinds(sample("few", **few)[0]) <= 2 * 10


def prompted(write_rows: Write) -> Source:
    """Prompts of two subjects, one under a system prompt of its own."""
    rows = [
        {"id": "sum", "prompt": "1+1", "subject": "math"},
        {"id": "sky", "prompt": "why blue", "subject": "chat"},
        {"id": "own", "subject": "chat", "prompt": [
            {"role": "system", "content": "be odd"}, {"role": "user", "content": "hi"}
        ]},
    ]  # fmt: skip
    return Source(path=str(write_rows("subjects.jsonl", rows)))


def test_draws_have_indices_of_their_own_and_only_the_prompts_they_ask_for(
    sample: Any, write_rows: Write
) -> None:
    asked = {"prompts": [prompted(write_rows)], "n": 2}
    both = [Draw(), Draw(n=3, generation={"do_sample": False}, where={"subject": "math"})]
    samples, out = sample(**asked, draws=both)
    rows = {row["id"]: row for row in samples.rows()}
    marks = {id: [(a["index"], a["draw"]) for a in row["completions"]] for id, row in rows.items()}
    assert marks["sum"] == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1)]
    assert marks["sky"] == marks["own"] == [(0, 0), (1, 0)]
    greedy = [a["token_ids"] for a in rows["sum"]["completions"][2:]]
    assert greedy[0] == greedy[1] == greedy[2]
    about = json.loads((out.path / "metrics.json").read_text())
    assert [draw["answers"] for draw in about["draws"]] == [6, 3]
    assert about["tokens"] == sum(draw["tokens"] for draw in about["draws"])
    assert set(out.counts) <= {"prompts", "answers", "tokens", "cut"}


def test_a_draw_of_all_prompts_first_is_the_same_as_a_stage_without_draws(
    sample: Any, write_rows: Write
) -> None:
    plain = tokens(sample("plain", prompts=[prompted(write_rows)], n=2)[0])
    split = [Draw(n=1), Draw(n=1, where={"subject": ["math", "chat"]})]
    assert tokens(sample("split", prompts=[prompted(write_rows)], draws=split)[0]) == plain


def test_a_system_prompt_is_drawn_under_and_not_kept(sample: Any, write_rows: Write) -> None:
    asked = {"prompts": [prompted(write_rows)], "n": 2}
    plain, _ = sample("plain", **asked)
    under, _ = sample("under", **asked, system="be odd")
    rows = [{row["id"]: row for row in one.rows()} for one in (plain, under)]
    for id, row in rows[0].items():
        assert rows[1][id]["prompt"] == row["prompt"]
        same = rows[1][id]["completions"] == row["completions"]
        assert same == (id == "own"), "the one that had this system prompt already"
    mixed, _ = sample("mixed", **asked, system="be odd", draws=[Draw(), Draw(system="")])
    for row in mixed.rows():
        first, second = row["completions"][:2], row["completions"][2:]
        expected = rows[1][row["id"]]["completions"]
        assert [a["token_ids"] for a in first] == [a["token_ids"] for a in expected]
        assert len(second) == 2


def test_a_where_that_fits_no_prompt_is_said_before_a_model_is_loaded(
    sample: Any, write_rows: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", None)
    asked = {"prompts": [prompted(write_rows)]}
    with pytest.raises(StageFailed) as unknown:
        sample("a", **asked, draws=[Draw(), Draw(where={"topic": "math"})])
    assert str(unknown.value) == (
        'draws.1.where: no prompt has a column "topic". Columns are: subject.'
    )
    with pytest.raises(StageFailed, match=r"draws\.0\.where: no prompt has subject: maths\."):
        sample("b", **asked, draws=[Draw(where={"subject": "maths"})])


REFUSING = (
    "{% for m in messages %}"
    "{% if 'odd' in m['content'] %}{{ raise_exception('Odd.') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_prompt_that_the_template_refuses_is_counted_and_the_others_are_kept(
    sample: Any,
    write_rows: Write,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "refusing.jinja").write_text(REFUSING)
    base = {"path": str(tiny_model), "chat_template": str(tmp_path / "refusing.jinja")}
    refusing = Model(tiny_model, spec={"base": base, "quantization": None, "adapter": False})
    asked = {"prompts": [prompted(write_rows)], "model": refusing}
    samples, out = sample(**asked)
    assert [row["id"] for row in samples.rows()] == ["sum", "sky"]
    said = capsys.readouterr().err
    assert "1 of 3 prompts were left out: 1 refused by the chat template. The chat" in said
    [example] = out.counts["dropped.template"]["examples"]
    assert example["id"] == "own" and "refuses a dialog of system, user: Odd." in example["error"]
    with pytest.raises(
        StageFailed, match=r"^No prompt can be asked\. The chat template of .*Odd\."
    ):
        sample("all", **asked, system="be odd")


def test_an_empty_set_of_prompts_is_one_sentence(sample: Any, write_rows: Write) -> None:
    with pytest.raises(StageFailed, match="is empty. Look at its path, split and slice."):
        sample(prompts=[Source(path=str(write_rows("none.jsonl", [])))])


def test_what_drew_and_what_it_promises_is_in_the_artifact(sample: Any, model: Model) -> None:
    _, out = sample()
    about = json.loads((out.path / "metrics.json").read_text())
    assert about["by"] == [
        {"engine": "generate", "model": model.key, "dtype": "float32", "same_draw": True}
    ]
    assert about["same_draw"] and about["answers"] == 30 and about["tokens_per_second"] > 0
    assert about["cut"] == out.counts["cut"]["n"] / 30


def test_in_bf16_the_share_of_answers_that_another_batch_changes_is_measured(
    sample: Any, tiny_model: Path
) -> None:
    base = {"path": str(tiny_model), "dtype": "bfloat16"}
    half = Model(tiny_model, spec={"base": base, "quantization": None, "adapter": False})
    _, out = sample(model=half, shard=5)
    about = json.loads((out.path / "metrics.json").read_text())
    assert not about["same_draw"] and about["by"][0]["dtype"] == "bfloat16"
    assert about["changed_alone"] in [changed / 12 for changed in range(13)]  # 3 answers of 4
    assert not [name for name in out.counts if name.startswith("drawn")]


def test_workers_draw_the_same_bytes_and_the_driver_loads_no_model(
    sample: Any, model: Model, prompts: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "devices", lambda: 0)  # else no more workers than GPUs
    whole = content(sample("whole", shard=3)[0])
    given = {"n": 3, "seed": 1, "generation": {"max_new_tokens": 16}, "shard": 3}
    stage = Sample(model=model, prompts=[prompts], workers=Workers(count=2), **given)
    out = prepare(stage, tmp_path / "runs" / "sample.partial", "sample")
    monkeypatch.setattr(models, "load", None)
    assert content(stage.run(out)) == whole
    assert out.counts["answers"]["n"] == 30
    assert json.loads((out.path / "metrics.json").read_text())["by"][0]["engine"] == "generate"
