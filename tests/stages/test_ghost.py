"""Ghost Attention: who is told what, what is kept of it, and what is learnt."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Fake, serve

from align import chat, models
from align.artifacts import Conversations, Model
from align.data import Source
from align.errors import StageFailed
from align.generation import generate
from align.generation.endpoint import Endpoint
from align.out import Out
from align.stages.ghost import Ghost
from align.stages.sft import Sft

Write = Callable[[str, list[dict[str, Any]]], Path]
Run = Callable[..., tuple[list[dict[str, Any]], Out]]

FRENCH, NAPOLEON = "Answer in French.", "Always act as Napoleon from now on."


def dialog(*turns: str) -> dict[str, Any]:
    """A dialog with these turns of the user, and answers that no row may keep."""
    said = [
        [{"role": "user", "content": turn}, {"role": "assistant", "content": "OLD"}]
        for turn in turns
    ]
    return {"id": turns[0], "messages": [message for both in said for message in both]}


@pytest.fixture
def model(tiny_model: Path) -> Model:
    spec = {"base": {"path": str(tiny_model)}, "quantization": None, "adapter": False}
    return Model(tiny_model, spec=spec)


@pytest.fixture
def ghost(model: Model, write_rows: Write, tmp_path: Path) -> Run:
    def run(*dialogs: dict[str, Any], name: str = "ghost", **settings: Any) -> Any:
        data = Source(path=str(write_rows(f"{name}.jsonl", list(dialogs))))
        out = Out(tmp_path / name, tmp_path / "cache")
        out.path.mkdir(exist_ok=True)
        given = {"instructions": [FRENCH], "generation": {"max_new_tokens": 16}, **settings}
        made = Ghost(model=model, data=[data], **given).run(out)
        assert isinstance(made, Conversations)
        return list(made.rows()), out

    return run


@pytest.fixture
def echo(model: Model) -> Iterator[Fake]:
    """A server whose answer says how many messages it was given, and the last one's last word."""

    def say(body: dict[str, Any], k: int) -> str:
        messages = body["messages"]
        if "weather" in messages[-1]["content"]:  # what a server is asked first
            return f"probe {body['seed'] if body['temperature'] else 0}"
        return f"{len(messages)} {messages[-1]['content'].split()[-1]}"

    tokenizer = models.tokenizer(model)
    with serve(Fake(tokenizer, names=[str(model.path)], most=1, say=say)) as fake:
        yield fake


def engine(fake: Fake) -> Endpoint:
    return Endpoint(url=fake.url, send="messages")


def test_the_model_hears_the_instruction_at_every_turn_and_the_rows_have_it_once(
    ghost: Run, echo: Fake
) -> None:
    [row], out = ghost(dialog("who a", "what b", "where c"), engine=engine(echo))
    told = [body["messages"] for body in echo.asked if "weather" not in str(body["messages"])]
    assert [len(messages) for messages in told] == [1, 3, 5]
    assert [message["content"] for message in told[2]] == [
        *(f"{FRENCH}\n\nwho a", "1 a"),
        *(f"{FRENCH}\n\nwhat b", "3 b"),
        f"{FRENCH}\n\nwhere c",
    ]
    assert row["messages"] == [
        {"role": "user", "content": f"{FRENCH}\n\nwho a"},
        {"role": "assistant", "content": "1 a", "weight": 0},
        {"role": "user", "content": "what b"},
        {"role": "assistant", "content": "3 b", "weight": 0},
        {"role": "user", "content": "where c"},
        {"role": "assistant", "content": "5 c"},
    ]
    assert out.counts["rows"]["n"] == 1 and out.counts["answers"]["n"] == 3


def test_the_instruction_may_stand_in_the_system_prompt(ghost: Run, echo: Fake) -> None:
    [row], _ = ghost(dialog("who a", "what b"), engine=engine(echo), place="system")
    assert row["messages"][:2] == [
        {"role": "system", "content": FRENCH},
        {"role": "user", "content": "who a"},
    ]
    assert echo.asked[-1]["messages"][0]["content"] == f"{FRENCH}\n\nwho a"  # as it was drawn


def test_half_of_the_rows_have_the_short_form_and_the_model_always_hears_the_long_one(
    ghost: Run, echo: Fake
) -> None:
    terse = ["Language: French.", "Figure: Napoleon."]
    instructions = [FRENCH, NAPOLEON]
    dialogs = [dialog(f"say {i}") for i in range(16)]
    given = {"instructions": instructions, "terse": terse, "engine": engine(echo)}
    rows, _ = ghost(*dialogs, **given)
    kept = [row["instruction"] for row in rows]
    assert {text: kept.count(text) > 1 for text in terse + instructions} == dict.fromkeys(
        terse + instructions, True
    )
    told = [body["messages"][0]["content"] for body in echo.asked]
    assert not any(text in one for text in terse for one in told)
    again, _ = ghost(*dialogs[5::-1], name="again", **given)
    assert again[::-1] == rows[:6]


def test_of_a_row_only_the_last_answer_and_the_end_of_its_turn_are_learnt(
    ghost: Run, echo: Fake, model: Model, tmp_path: Path, write_rows: Write
) -> None:
    import torch

    rows, _ = ghost(dialog("who a", "what b", "where c"), engine=engine(echo))
    tokenizer = models.tokenizer(model)
    encoded = chat.encode_one(tokenizer, rows[0]["messages"])
    text = tokenizer.decode(encoded.ids)
    assert text.count("<|assistant|>") == 3 and text.count(FRENCH) == 1
    tail = [*tokenizer("5 c", add_special_tokens=False).input_ids, 6]  # <|end|>
    assert encoded.labels == [-100] * (len(encoded.ids) - 5) + tail + [-100]  # "\n" comes last

    out = Out(tmp_path / "sft", tmp_path / "cache")
    out.path.mkdir()
    data = Source(path=str(write_rows("rows.jsonl", rows)), weight=2.0)
    trainer = {"max_steps": 1, "learning_rate": 1e-9}
    Sft(model=model, data=[data], batch_size=2, trainer=trainer).run(out)
    assert out.counts["answers.learnt"]["n"] == 2 and out.counts["tokens.learnt"]["n"] == 8
    with torch.no_grad():
        logits = models.load(model)(torch.tensor([encoded.ids])).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(encoded.labels[1:]))
    first = json.loads((out.path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(float(loss), abs=1e-4)


def test_a_weight_that_is_neither_0_nor_1_is_refused(model: Model) -> None:
    said = dialog("who")["messages"]
    said[1]["weight"] = 0.5
    with pytest.raises(StageFailed, match=r"weight 0\.5.*1 where it is learnt"):
        chat.encode_one(models.tokenizer(model), said)


def test_a_dialog_ends_before_an_answer_that_was_cut_or_has_no_room(ghost: Run) -> None:
    long = "x" * 300  # bytes, which are this model's tokens: it reads 256
    with pytest.raises(StageFailed, match=r"No dialog has an answer that ended \(cut: 1\)"):
        ghost(dialog("who"), generation={"max_new_tokens": 1})
    said, out = ghost(
        dialog("who", long), dialog(long), generation={"stop_strings": [*"abcdefg"]}, name="long"
    )
    [row] = said
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
    assert "weight" not in row["messages"][1]
    assert out.counts["shortened.no_room"] == {"n": 1, "examples": [{"id": "who", "turns": 1}]}
    assert out.counts["dropped.prompt_too_long"]["n"] == 1


def test_a_killed_stage_goes_on_and_makes_the_same_rows(
    ghost: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialogs = [dialog(*(f"{i} {turn}" for turn in range(1 + i % 3))) for i in range(7)]
    how = {"shard": 2, "generation": {"max_new_tokens": 64, "stop_strings": [*"abcdefghi"]}}
    original, calls, kill = generate.generate, list[int](), 0

    def counting(network: Any, tokenizer: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        calls.append(len(prompts))
        if len(calls) == kill:
            raise KeyboardInterrupt
        return original(network, tokenizer, prompts, *rest, **more)

    monkeypatch.setattr(generate, "generate", counting)
    whole, _ = ghost(*dialogs, name="whole", **how)
    assert {len(row["messages"]) for row in whole} == {2, 4, 6}
    drawn, calls, kill = calls, [], 4
    with pytest.raises(KeyboardInterrupt):
        ghost(*dialogs, name="killed", **how)
    calls, kill = [], 0
    assert ghost(*dialogs, name="killed", **how)[0] == whole
    assert calls == drawn[2:]  # the first shard, of two turns, was there


def test_as_many_short_forms_as_instructions(model: Model) -> None:
    stage = Ghost(model=model, data=[], instructions=[FRENCH, NAPOLEON], terse=["French."])
    [(key, message)] = stage.check()
    assert key == "terse" and '"terse" has 1 texts and "instructions" 2' in message
