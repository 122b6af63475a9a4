"""Rows before training: what is learnt of them, what is looked at, and which are too long."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from align import chat, models
from align.artifacts import Model
from align.chat import CONTENT, END
from align.data import Source
from align.errors import StageFailed
from align.learnable import TooLong, conversations, shorter
from align.out import Out
from align.preference import pairs
from align.stages.sft import Sft

Write = Callable[[str, list[dict[str, Any]]], Path]


def ask(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def say(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
LONG = [SYSTEM, ask("One?"), say("1"), ask("Two?"), say("2"), ask("Three?"), say("3")]


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return models.tokenizer(_base(tiny_model))


@pytest.fixture
def out(tmp_path: Path) -> Out:
    return Out(tmp_path, tmp_path / "cache")


def learn(
    dialogs: list[Any], tokenizer: Any, out: Out, limit: int = 99, too_long: TooLong = "drop"
) -> list[str]:
    """The texts of the rows that are left, with what is learnt of them in ⟦⟧."""
    rows = [{"id": f"row{i}", "messages": dialog} for i, dialog in enumerate(dialogs)]
    texts = []
    for encoded in conversations(rows, tokenizer, limit, out, "", too_long):
        parts = [
            f"⟦{tokenizer.decode([token])}⟧" if kind else tokenizer.decode([token])
            for token, kind in zip(encoded.ids, encoded.kinds, strict=True)
        ]
        texts.append("".join(parts).replace("⟧⟦", ""))
    return texts


def test_what_is_learnt_of_a_row_is_said_before_the_model_is_loaded(
    tokenizer: Any, out: Out, capsys: pytest.CaptureFixture[str]
) -> None:
    dialogs = [LONG, [ask("a <|end|>"), say("b")]]
    assert learn(dialogs, tokenizer, out) == [
        "<s><|system|>Be brief.<|end|>\n<|user|>One?<|end|>\n<|assistant|>⟦1<|end|>⟧\n"
        "<|user|>Two?<|end|>\n<|assistant|>⟦2<|end|>⟧\n"
        "<|user|>Three?<|end|>\n<|assistant|>⟦3<|end|>⟧\n",
        "<s><|user|>a <|end|><|end|>\n<|assistant|>⟦b<|end|>⟧\n",
    ]
    said = capsys.readouterr().err
    assert "data: 4 answers are learnt, each with the end of its turn, nothing of the" in said
    assert "Every row begins with <s> once. 1 system prompts are kept. 1 rows have special" in said
    assert f"Chat template {str(models.template_hash(tokenizer))[:12]}." in said
    assert {name: count["n"] for name, count in out.counts.items()} == {
        "answers.learnt": 4,
        "system_prompts": 1,
        "markers_in_text": 1,
    }
    assert out.counts["markers_in_text"]["examples"] == [{"id": "row1"}]


def test_how_often_begin_of_text_stands_in_a_row_is_said(
    tokenizer: Any, out: Out, capsys: pytest.CaptureFixture[str]
) -> None:
    """What people wrote is not counted."""
    own = tokenizer.chat_template
    learn([[ask("<s> a <s>"), say("b")]], tokenizer, out)
    assert "Every row begins with <s> once. " in capsys.readouterr().err
    tokenizer.chat_template = own.replace("{{ bos_token }}", "").replace(
        "<|{{", "{{ bos_token if m.role in ('user', 'system') }}<|{{", 1
    )
    learn([[ask("<s> a"), say("b")], LONG], tokenizer, Out(out.path, out.path))
    told = "Every row begins with <s>, and the chat template writes it up to 4 times in one. "
    assert told in capsys.readouterr().err


def test_calls_of_tools_are_learnt_and_their_results_are_not(
    tokenizer: Any, out: Out, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = models.template("chatml")
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    result = {"role": "tool", "content": "77"}
    dialog = [ask("1?"), {"role": "assistant", "tool_calls": [call]}, result, say("So 77.")]
    [text] = learn([dialog], tokenizer, out, limit=999)
    assert text.count("⟦") == 2 and '⟦<tool_call>\n{"name": "add"' in text
    assert "tool\n77<|im_end|>" in text and "⟦So 77.<|im_end|>⟧" in text
    assert "1 calls of tools are learnt, 1 results of tools are not." in capsys.readouterr().err
    rows = [{"id": "row", "messages": dialog}]
    assert list(conversations(rows, tokenizer, 999, out, "", "drop", whole=True))
    told = capsys.readouterr().err
    assert "answers are learnt, each with the end of its turn, and the prompts. " in told
    assert "2 calls of tools are learnt, 2 results of tools are too." in told
    assert list(conversations(rows, tokenizer, 999, out, "eval.", "drop"))
    said = "eval_data: 2 answers are read, each with the end of its turn, and not learnt. "
    assert f"{said}1 calls of tools are read in them." in capsys.readouterr().err
    own = tokenizer.chat_template
    tokenizer.chat_template = own.replace("call.arguments | tojson", "'{}'")
    with pytest.raises(StageFailed, match="row0: .* does not write the arguments of a tool's call"):
        learn([dialog], tokenizer, out, limit=999)
    tokenizer.chat_template = own.replace("message.tool_calls or []", "[]")
    with pytest.raises(StageFailed, match="row0: .* it does not write the tools that the assist"):
        learn([dialog], tokenizer, out, limit=999)


def test_a_row_without_an_answer_is_dropped_and_counted(tokenizer: Any, out: Out) -> None:
    assert len(learn([[ask("Hi")], [ask("Hi"), say("")]], tokenizer, out)) == 1
    assert out.counts["dropped.nothing_to_learn"] == {"n": 1, "examples": [{"id": "row0"}]}


def test_an_answer_of_weight_0_is_a_prompt_to_the_checks_too(tokenizer: Any, out: Out) -> None:
    first = {**say("1"), "weight": 0}
    [text] = learn([[ask("One?"), first, ask("Two?"), say("2")]], tokenizer, out)
    assert "<|assistant|>1<|end|>" in text and "⟦2<|end|>⟧" in text
    assert out.counts["answers.learnt"]["n"] == 1
    with pytest.raises(StageFailed, match="none can be learnt from .nothing to learn: 1"):
        learn([[ask("One?"), first]], tokenizer, out)
    assert out.counts["dropped.nothing_to_learn"]["n"] == 1


def test_dialogs_that_a_template_refuses_are_named_and_counted(tokenizer: Any, out: Out) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if not loop.first and m.role == loop.previtem.role %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}"
        + tokenizer.chat_template
    )
    twice = [ask("Hi"), ask("Well?"), say("Yes.")]
    refusal = (
        "^Row row1: The chat template of .* refuses a dialog of user, user, assistant: Roles must "
        "alternate. Change those rows, .* So it is with 2 more.$"
    )
    with pytest.raises(StageFailed, match=refusal):
        learn([LONG, twice, LONG, twice, twice], tokenizer, out)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("begin", "Row row1 begins otherwise than the rows before it. The chat template and the"),
        ("end", "Row row0 has 3 answers, and 0 ends of answers in the loss. So it is with 1 more."),
        ("lost", "Row row0 has 3 answers, and 2 ends of answers in the loss."),
        ("early", r"Row row0 would teach '<\|assistant\|>1', which nobody says in it."),
        ("late", "Row row0 would teach '', which nobody says in it."),
        ("prompt", "Row row0 has another prompt in training than the model is given when it gen"),
    ],
)
def test_a_mask_or_a_prompt_that_is_wrong_stops_the_stage(
    tokenizer: Any, out: Out, monkeypatch: pytest.MonkeyPatch, fault: str, why: str
) -> None:
    """Nothing makes these faults today: they are put in, to see that they would be seen."""
    real = chat._kinds

    def kinds(*args: Any) -> list[int]:
        found = real(*args)
        if END not in found:
            return found
        at = found.index(END)
        if fault == "end":
            return [CONTENT if kind == END else kind for kind in found]
        if fault == "late":
            found[at - 1] = 0
        if fault == "lost" and "3" in tokenizer.decode(args[1].ids):
            return [0] * len(found)
        return found

    monkeypatch.setattr(chat, "_kinds", kinds)
    if fault == "begin":
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "{{ bos_token }}", "{% if messages[0].role == 'system' %}{{ bos_token }}{% endif %}"
        )
    if fault == "early":
        spans = chat._spans

        def earlier(*args: Any, **options: Any) -> Any:
            text, turns = spans(*args, **options)
            return text, [(begin - len("<|assistant|>"), *rest) for begin, *rest in turns]

        monkeypatch.setattr(chat, "_spans", earlier)
    if fault == "prompt":
        monkeypatch.setattr(chat, "prompt", lambda *_: [7])
    with pytest.raises(StageFailed, match=why):
        learn([LONG, [ask("Hi"), say("Yes.")]], tokenizer, out)


def test_an_answer_that_begins_inside_a_token_keeps_the_prompt_of_generation(
    tmp_path: Path, tiny_model: Path
) -> None:
    """With "\\n\\n" as one token, and a header that ends in a newline."""
    from transformers import PreTrainedTokenizerFast

    file = tmp_path / "tokenizer.json"
    written = json.loads((tiny_model / "tokenizer.json").read_text())
    written["model"]["vocab"]["ĊĊ"] = len(written["model"]["vocab"])
    written["model"]["merges"] = [["Ċ", "Ċ"]]
    file.write_text(json.dumps(written))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{m.role}}|>\n{{m.content}}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    dialog = [ask("a"), say("\n\nb"), ask("c"), say("\n\nd")]
    whole = tokenizer.apply_chat_template(dialog, tokenize=True)["input_ids"]
    encoded = chat.encode_one(tokenizer, dialog)
    assert len(encoded.ids) == len(whole) + 2
    assert tokenizer.decode(encoded.ids) == tokenizer.decode(whole)
    prompt, answer = chat.answer(tokenizer, dialog[:3], dialog[3:])
    assert prompt == chat.prompt(tokenizer, dialog[:3])
    assert tokenizer.decode(answer.ids) == "\n\nd<|end|>"
    assert answer.kinds == [CONTENT, CONTENT, CONTENT, END]


def test_the_oldest_exchanges_are_left_out_and_the_system_prompt_stays() -> None:
    call = {"role": "assistant", "tool_calls": []}
    result = {"role": "tool", "content": "4"}
    assert list(shorter(LONG)) == [[SYSTEM, *LONG[3:]], [SYSTEM, *LONG[5:]]]
    used = [ask("a"), call, result, say("b"), ask("c"), ask("d"), say("e")]
    assert list(shorter(used)) == [used[4:]], "a call stays with its result, two questions together"
    assert list(shorter([say("Hello!"), *used])) == [used, used[4:]]
    assert list(shorter(LONG[:3])) == list(shorter([ask("a")])) == []
    developer = {"role": "developer", "content": "Speak French."}
    both = [SYSTEM, developer]
    assert list(shorter([*both, *LONG[1:]])) == [[*both, *LONG[3:]], [*both, *LONG[5:]]]
    amid = [ask("a"), say("b"), developer, ask("c"), say("d")]
    assert list(shorter(amid)) == [amid[2:]]


def test_an_instruction_that_only_the_first_turn_has_stays(tokenizer: Any, out: Out) -> None:
    """As `ghost` writes dialogs: all answers but the last are only read."""
    read = [{**message, "weight": 0} for message in (say("1"), say("2"))]
    dialog = [ask("Be Ann. One?"), read[0], ask("Two?"), read[1], ask("Three?"), say("3")]
    assert list(shorter(dialog)) == [dialog[:2] + dialog[4:]]
    limit = len(chat.encode_one(tokenizer, dialog).ids) - 1
    [text] = learn([dialog], tokenizer, out, limit=limit, too_long="turns")
    assert "Be Ann" in text and "Two?" not in text and "⟦3<|end|>⟧" in text
    assert list(shorter(dialog[:2])) == list(shorter(dialog[:4])) == []


def test_a_row_of_which_nothing_would_be_left_to_learn_is_too_long(
    tokenizer: Any, out: Out
) -> None:
    dialog = [ask("x" * 50), say("1"), ask("Two?"), {**say("2"), "weight": 0}]
    assert len(learn([dialog, LONG[5:]], tokenizer, out, limit=50, too_long="turns")) == 1
    assert out.counts["dropped.too_long"]["n"] == 1
    assert not {"shortened.turns", "dropped.nothing_to_learn"} & set(out.counts)


def test_thoughts_that_the_template_does_not_write_are_counted_and_said(
    tokenizer: Any, out: Out, capsys: pytest.CaptureFixture[str]
) -> None:
    dialogs = [
        [ask("Hi"), {**say("Yes."), "reasoning_content": "Hm.", "thinking": None}],
        [ask("Hi"), {**say("Yes."), "thinking": ""}],
    ]
    assert len(learn(dialogs, tokenizer, out)) == 2
    count = {"n": 1, "examples": [{"id": "row0"}]}
    assert out.counts["answers.thoughts_not_written"] == count
    assert "1 answers are learnt WITHOUT what was thought before" in capsys.readouterr().err
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m['content'] }}", "{{ m.reasoning_content }}{{ m['content'] }}"
    )
    again = Out(out.path, out.path)
    assert "⟦Hm.Yes.<|end|>⟧" in learn(dialogs, tokenizer, again)[0]
    assert "answers.thoughts_not_written" not in again.counts


def test_why_rows_are_left_out_is_said(
    tokenizer: Any, out: Out, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = chat._kinds

    def kinds(*args: Any) -> list[int]:
        if "no" in tokenizer.decode(args[1].ids):
            raise chat.Refused("a", drop="answer_begins_inside_a_token")
        return real(*args)

    monkeypatch.setattr(chat, "_kinds", kinds)
    dialogs = [[ask("Hi"), say("no")], [ask("Hi")], [ask("Hi"), say("Yes.")]]
    assert len(learn(dialogs, tokenizer, out)) == 1
    why = "answer begins inside a token: 1, nothing to learn: 1"
    shown = capsys.readouterr().err
    loud = "data: 1 of 3 rows (33.3%) are LEFT OUT: "
    assert f"{loud}an answer begins inside a token. Let the chat template write no space" in shown
    assert f"{loud}nothing in them is learnt. Look at them" in shown
    assert len(learn([*dialogs, *dialogs[2:] * 100], tokenizer, Out(out.path, out.path))) == 101
    assert f"data: 2 of 103 rows are left out ({why})." in capsys.readouterr().err
    with pytest.raises(StageFailed, match=f"^Of 2 rows of `data:` none .*{why}"):
        learn(dialogs[:2], tokenizer, Out(out.path, out.path))


def test_a_long_row_loses_its_oldest_turns_or_is_dropped_or_stops_the_stage(
    tokenizer: Any, out: Out, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = len(chat.encode_one(tokenizer, LONG).ids)
    one = len(chat.encode_one(tokenizer, [SYSTEM, *LONG[5:]]).ids)
    dialogs = [LONG, LONG[5:], [ask("x" * 99), say("no")]]
    kept = learn(dialogs, tokenizer, out, limit=whole - 1, too_long="turns")
    assert [text.count("⟦") for text in kept] == [2, 1]
    assert kept[0].startswith("<s><|system|>Be brief.<|end|>\n<|user|>Two?")
    example = {"id": "row0", "tokens": whole, "limit": whole - 1, "messages_left_out": 2}
    assert out.counts["shortened.turns"] == {"n": 1, "examples": [example]}
    assert out.counts["dropped.too_long"]["n"] == 1, "its last exchange does not fit, either"
    assert "Of 1 long rows the oldest turns are left out." in capsys.readouterr().err
    [text] = learn([LONG], tokenizer, out, limit=one, too_long="turns")
    assert text.endswith("<|assistant|>⟦3<|end|>⟧\n") and "Two?" not in text
    with pytest.raises(StageFailed, match="none can be learnt from .too long: 1"):
        learn([LONG], tokenizer, out, limit=one - 1, too_long="turns")
    shown = capsys.readouterr().err
    assert f"longer than {one - 1} tokens, without their older turns, too. Raise" in shown
    assert "leave out old turns" not in shown, "it does"

    again = Out(tmp_path, tmp_path)
    assert len(learn(dialogs, tokenizer, again, limit=whole - 1)) == 1
    assert again.counts["dropped.too_long"]["n"] == 2 and "shortened.turns" not in again.counts
    assert "data: 2 of 3 rows (66.7%) are LEFT OUT: they are longer" in capsys.readouterr().err
    many = [LONG[5:]] * 200 + [LONG]
    assert len(learn(many, tokenizer, Out(tmp_path, tmp_path), limit=whole - 1)) == 200
    assert "LEFT OUT" not in capsys.readouterr().err, "one in 200"
    stopped = rf"^Row row0 has {whole} tokens, and {whole - 1} fit. So it is with 1 more. `too_long"
    with pytest.raises(StageFailed, match=stopped):
        learn(dialogs, tokenizer, out, limit=whole - 1, too_long="stop")


def test_the_prompt_of_a_long_pair_loses_its_oldest_turns_and_no_answer_does(
    tokenizer: Any, out: Out, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": "a", "prompt": LONG[:6], "chosen": [say("y" * 9)], "rejected": [say("n")]}
    limit = sum(map(len, chat.answer(tokenizer, LONG[:6], [say("y" * 9)])[:1])) + 10
    [pair] = pairs([row], tokenizer, limit, out, too_long="turns")
    said = "data: 2 answers are read, each with the end of its turn, and compared in pairs. "
    assert said in capsys.readouterr().err
    assert tokenizer.decode(pair["prompt_ids"]).startswith(
        "<s><|system|>Be brief.<|end|>\n<|user|>"
    )
    assert "One?" not in tokenizer.decode(pair["prompt_ids"])
    assert tokenizer.decode(pair["chosen_ids"]) == "y" * 9 + "<|end|>\n"
    assert tokenizer.decode(pair["rejected_ids"]) == "n<|end|>\n"
    assert out.counts["shortened.turns"]["examples"][0]["messages_left_out"] == 2
    long = {**row, "chosen": [say("y" * limit)]}
    with pytest.raises(StageFailed, match=r"None of 1 pairs can be used \(too long: 1; "):
        list(pairs([long], tokenizer, limit, out, too_long="turns"))
    with pytest.raises(StageFailed, match="Row a has .* So it is with 1 more"):
        list(pairs([row, row], tokenizer, limit, out, too_long="stop"))


def test_what_becomes_of_a_pair_is_said_once(
    tokenizer: Any, out: Out, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": "a", "prompt": [ask("Hi")], "chosen": [say("y")], "rejected": [say("n")]}
    long = {**row, "chosen": [say("y" * 99)]}
    assert len(list(pairs([row, long], tokenizer, 60, out))) == 1
    shown = capsys.readouterr().err
    assert "data: 1 of 2 pairs (50.0%) are LEFT OUT" in shown and shown.count("1 of 2") == 1
    unlearnt = {**row, "rejected": [{**say("n"), "weight": 0}]}
    rows = [row, unlearnt, {**row, "rejected": [say("y")]}]
    again = Out(out.path, out.path)
    assert len(list(pairs(rows, tokenizer, 60, again))) == 1
    shown = capsys.readouterr().err
    for why in ("nothing in them is learnt", "both answers are equal"):
        assert shown.count(f"data: 1 of 3 pairs (33.3%) are LEFT OUT: {why}. Look") == 1
    assert again.counts["dropped.nothing_to_learn"]["n"] == 1
    assert again.counts["dropped.equal_answers"]["n"] == 1


def test_what_is_left_out_is_said_of_all_rows_with_what_the_reader_left_out(
    tokenizer: Any, out: Out, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"id": "a", "prompt": [ask("Hi")], "chosen": [say("y")], "rejected": [say("n")]}
    long = {**pair, "chosen": [say("y " * 60)]}

    def read() -> Iterator[dict[str, Any]]:
        out.count("dropped.no_answer", 2)
        yield from (pair, long)

    for prefix, key in (("", "data"), ("eval.", "eval_data")):
        assert len(list(pairs(read(), tokenizer, 60, out, prefix))) == 1
        shown = capsys.readouterr().err
        assert f"{key}: 1 of 4 pairs (25.0%) are LEFT OUT: they are longer" in shown
        assert f"{key}: 2 of 4 pairs (50.0%) are LEFT OUT: they have no answer." in shown


def test_an_answer_of_which_nothing_is_learnt_is_a_sentence(tokenizer: Any) -> None:
    with pytest.raises(StageFailed, match="or none but with the weight 0"):
        chat.answer(tokenizer, [ask("Hi")], [{**say("n"), "weight": 0}])


def test_a_stage_reads_its_rows_before_it_loads_its_model(
    tmp_path: Path, tiny_model: Path, write_rows: Write
) -> None:
    """The weights are damaged; what stops it is its data."""
    import shutil

    shutil.copytree(tiny_model, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"no weights")
    rows = write_rows("rows.jsonl", [{"messages": LONG}, {"messages": LONG[3:]}])
    (tmp_path / "sft").mkdir()
    stage = Sft(
        model=_base(tmp_path / "base"),
        data=[Source(path=str(rows))],
        trainer={"max_length": 40},
        too_long="stop",
    )
    with pytest.raises(StageFailed, match="tokens, and 40 fit. `too_long: drop` leaves them out"):
        stage.run(Out(tmp_path / "sft", tmp_path / "cache"))


def _base(path: Path) -> Model:
    return Model(path, spec={"base": {"path": str(path)}, "quantization": None})
