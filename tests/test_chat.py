"""Dialogs as tokens, and which tokens the assistant said."""

import os
from pathlib import Path
from typing import Any

import pytest

from align import chat, models
from align.errors import StageFailed

ASK = {"role": "user", "content": "What is 2+2?"}
SAY = {"role": "assistant", "content": "It is 4."}
TWO = [ASK, SAY, {"role": "user", "content": "And 3+3?"}, {"role": "assistant", "content": "Six."}]
DIALOGS = {"one": [ASK, SAY], "two": TWO, "system": [{"role": "system", "content": "Hm."}, *TWO]}

DATA = Path(os.environ.get("ALIGN_DATA", "/nowhere"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="ALIGN_DATA is not set")


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def said(tokenizer: Any, encoded: chat.Encoded) -> list[str]:
    """The assistant's turns as text, with their ends."""
    turns, before = [], chat.CONTEXT
    for token, kind in zip(encoded.ids, encoded.kinds, strict=True):
        if kind and not (before == chat.CONTENT or (before == kind == chat.END)):
            turns.append([])
        if kind:
            turns[-1].append(token)
        before = kind
    return [tokenizer.decode(turn) for turn in turns]


def test_the_mask_is_the_answers_and_the_ends_of_their_turns(tokenizer: Any) -> None:
    encoded = chat.encode_one(tokenizer, TWO)
    assert said(tokenizer, encoded) == ["It is 4.<|end|>", "Six.<|end|>"]
    whole = tokenizer.apply_chat_template(TWO, tokenize=True, return_dict=True)["input_ids"]
    assert encoded.ids == whole
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert [t for t, kind in zip(encoded.ids, encoded.kinds, strict=True) if kind == chat.END] == [
        end,
        end,
    ]
    assert chat.end_of_turn(tokenizer) == end


def test_begin_of_text_stands_once(tokenizer: Any) -> None:
    assert chat.encode_one(tokenizer, TWO).ids.count(tokenizer.bos_token_id) == 1
    assert chat.prompt(tokenizer, TWO[:1]).count(tokenizer.bos_token_id) == 1
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    with pytest.raises(StageFailed, match="begin-of-text token twice"):
        chat.encode_one(tokenizer, TWO)
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos", "\n {{ bos", 1)
    tokenizer.chat_template = tokenizer.chat_template.replace("}}{{ bos", "}}\n{{ bos", 1)
    with pytest.raises(StageFailed, match="begin-of-text token twice"):
        chat.encode_one(tokenizer, TWO)


def test_begin_of_text_that_somebody_wrote_is_no_fault_of_the_template(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    )
    wrote = {"role": "user", "content": "<s> is a token. What is 2+2?"}
    assert chat.encode_one(tokenizer, [wrote, SAY]).ids.count(tokenizer.bos_token_id) == 2


def test_what_comes_before_an_answer_is_the_prompt_of_generation(tokenizer: Any) -> None:
    prompt, answer = chat.answer(tokenizer, TWO[:3], TWO[3:])
    assert prompt == chat.prompt(tokenizer, TWO[:3])
    assert prompt + answer.ids == chat.encode_one(tokenizer, TWO).ids
    assert said(tokenizer, answer) == ["Six.<|end|>"]
    assert answer.kinds == [chat.CONTENT] * 4 + [chat.END, chat.CONTEXT]


def test_an_answer_that_spells_the_end_of_a_turn_is_content(tokenizer: Any) -> None:
    for content in ("d", "end", "|>", "<|end|>", "a <|end|> b"):
        encoded = chat.encode_one(tokenizer, [ASK, {"role": "assistant", "content": content}])
        assert encoded.kinds.count(chat.END) == 1
        assert encoded.kinds[-3:] == [chat.CONTENT, chat.END, chat.CONTEXT]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (
            "{% for m in messages %}<|{{m.role}}|>{{m.content}}{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}",
            "no special token ends",
        ),
        (
            "{% for m in messages %}<|{{m.role}}|>{{m.content}}<|end|>{% endfor %}",
            "is not in its generation prompt",
        ),
        (
            "{{messages|length}}{% for m in messages %}<|{{m.role}}|>{{m.content}}<|end|>"
            "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
            "not how an answer begins",
        ),
        (
            "{% for m in messages %}<|{{m.role}}|>{% if m.role=='assistant' and not loop.last %}"
            "old {% endif %}{{m.content}}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}",
            "writes turn 2 anew",
        ),
        (
            "{% for m in messages %}<|{{m.role}}|>{{m.content}}{% if not loop.last %}<|end|>"
            "{% else %}</s>{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}",
            "not how an answer begins",
        ),
        (
            "{% for m in messages %}<|{{m.role}}|>{{m.content}}"
            "{% if m.role=='user' or not loop.last %}<|end|>{% else %}</s>{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}",
            "'</s>' does not end an answer that is not the last",
        ),
        (
            "{% for m in messages %}<|{{m.role}}|>{{m.content}}<|end|>{% endfor %}"
            "{% if add_generation_prompt or messages|length > 1 %}<|assistant|>{% endif %}",
            "begins another turn after the last answer",
        ),
        (
            "{% for m in messages %}<|{{m.role}}|>"
            "{{m.content.split(' ')[-1] if m.role == 'assistant' else m.content}}<|end|>"
            "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
            "does not write what the assistant says as it is",
        ),
        (
            "{% for m in messages %}<|{{m.role}}|>"
            "{{m.content|upper if m.role == 'assistant' else m.content}}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}",
            "does not write what the assistant says as it is",
        ),
        (
            "{% for m in messages %}<|{{m.role}}|>{{m.content|upper}}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}",
            "leaves out or changes message 1, of the role user",
        ),
    ],
)
def test_a_template_that_cannot_be_proven_is_refused_by_name(
    tokenizer: Any, template: str, why: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(StageFailed, match=why) as error:
        chat.encode_one(tokenizer, TWO)
    assert tokenizer.name_or_path in str(error.value)
    assert "chat_template" in str(error.value)


LOST = [
    ([{"role": "user", "content": "What is 2+2? Say it in a word."}, SAY], "message 1, .* user"),
    ([{"role": "developer", "content": "Be brief."}, *TWO], "message 1, of the role developer"),
    ([*TWO[:3], {"role": "system", "content": "Be brief."}, TWO[3]], "message 4, .* role system"),
    ([ASK, SAY, {"role": "tool", "content": "It is 77."}, SAY], "message 3, of the role tool"),
]


@pytest.mark.parametrize(("dialog", "which"), LOST)
def test_what_others_say_is_not_left_out_in_silence(
    tokenizer: Any, dialog: list[dict[str, Any]], which: str
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages if m.role in ('user', 'assistant') %}<|{{m.role}}|>"
        "{{m.content[:16]}}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    with pytest.raises(chat.Refused, match=f"leaves out or changes {which}. Name one that writes"):
        chat.encode_one(tokenizer, dialog)


def test_a_message_stands_after_those_before_it_whatever_the_template_does_with_it(
    tokenizer: Any,
) -> None:
    """Spaces may go, a result be JSON, a system prompt stand in the last question."""
    tokenizer.chat_template = (
        "{% for m in messages if m.role != 'system' %}<|{{m.role}}|>"
        "{{messages[0].content if loop.last and messages[0].role == 'system'}}"
        "{{m.content|tojson if m.role == 'tool' else m.content|trim}}<|end|>{% endfor %}"
    )
    system, result = {"role": "system", "content": "Hm."}, {"role": "tool", "content": '{"a": "b"}'}
    dialog = [system, {"role": "user", "content": " What? "}, SAY, result, ASK]
    assert '<|tool|>"{\\' in chat.render(tokenizer, dialog)
    tokenizer.chat_template = tokenizer.chat_template.replace("in messages", "in messages[::-1]")
    with pytest.raises(chat.Refused, match="message 3"):
        chat.render(tokenizer, dialog)


def test_spaces_inside_an_answer_are_part_of_it(tokenizer: Any) -> None:
    code = {"role": "assistant", "content": "def f():\n    return 1\n\n"}
    assert said(tokenizer, chat.encode_one(tokenizer, [ASK, code]))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m['content']", "m['content'].split() | join(' ')"
    )
    with pytest.raises(chat.Refused, match="does not write what the assistant says as it is"):
        chat.encode_one(tokenizer, [ASK, code])


def test_what_is_said_beside_a_call_is_not_lost(tokenizer: Any) -> None:
    """Llama 3.1's template writes calls or content."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    both = {"role": "assistant", "content": "I add.", "tool_calls": [call]}
    template = tokenizer.chat_template
    writes = (
        "m['tool_calls'][0].function.name ~ m['tool_calls'][0].function.arguments.a ~ {} "
        "if m['tool_calls'] else m['content']"
    )
    tokenizer.chat_template = template.replace("m['content']", writes.format("m['content']"))
    assert said(tokenizer, chat.encode_one(tokenizer, [ASK, both])) == ["add1I add.<|end|>"]
    tokenizer.chat_template = template.replace("m['content']", writes.format("''"))
    with pytest.raises(chat.Refused, match="says beside its calls .* or leave that text out"):
        chat.encode_one(tokenizer, [ASK, both])
    assert chat.encode_one(tokenizer, [ASK, {**both, "content": None}])


@pytest.mark.parametrize("tool_calls", ['[{"name": "add"}]', [{"function": {}}], ["add"], 7])
def test_calls_that_are_none_are_a_sentence(tokenizer: Any, tool_calls: Any) -> None:
    odd = {"role": "assistant", "content": "4", "tool_calls": tool_calls}
    for messages in ([ASK, odd], [ASK, {**odd, "weight": 0}, *TWO]):
        with pytest.raises(chat.Refused, match="A message's `tool_calls` are .*should be a list"):
            chat.encode_one(tokenizer, messages)


def test_no_call_and_no_argument_is_left_out_in_silence(tokenizer: Any) -> None:
    """Neither of what is learnt nor of what is only read."""
    arguments = {"say": 'a "big"\nthing', "n": [1.5, True, None], "ä": "é"}
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    asked = {"role": "assistant", "tool_calls": [call]}
    own = tokenizer.chat_template
    writes = "{% for c in m.tool_calls %}{{ c.function.WHAT }}{% endfor %}{{ m['content'] }}"
    for what in ("name ~ c.function.arguments", "name ~ (c.function.arguments | tojson | tojson)"):
        tokenizer.chat_template = own.replace("{{ m['content'] }}", writes.replace("WHAT", what))
        assert chat.encode_one(tokenizer, [ASK, asked, SAY])
    for what, lost in (("name", "arguments of a tool's call"), ("arguments", "the tools that the")):
        tokenizer.chat_template = own.replace("{{ m['content'] }}", writes.replace("WHAT", what))
        for messages in ([ASK, asked, SAY], [ASK, {**asked, "weight": 0}, SAY]):
            with pytest.raises(chat.Refused, match=f"it does not write the {lost}|{lost}"):
                chat.encode_one(tokenizer, messages)


@pytest.mark.parametrize(
    "fault", ["m['content'].index('no')", "1 / 0", "'%d' % 'x'", "'text' | dictsort"]
)
def test_a_template_that_fails_is_a_sentence(tokenizer: Any, fault: str) -> None:
    tokenizer.chat_template = "{{ " + fault + " }}"
    if "m[" in fault:
        tokenizer.chat_template = (
            "{% for m in messages %}" + tokenizer.chat_template + "{% endfor %}"
        )
    with pytest.raises(chat.Refused, match="refuses a dialog of user: "):
        chat.prompt(tokenizer, [ASK])


def test_of_several_templates_one_must_be_the_default(tokenizer: Any) -> None:
    own = tokenizer.chat_template
    tokenizer.chat_template = {"rag": own, "tool_use": own}
    with pytest.raises(StageFailed, match=r"several chat templates \(rag, tool_use\), and none is"):
        chat.prompt(tokenizer, [ASK])
    tokenizer.chat_template = {"default": own, "tool_use": own}
    assert chat.prompt(tokenizer, [ASK])


def test_what_is_only_read_may_come_without_its_thought(tokenizer: Any) -> None:
    """A reward model's template may leave thoughts out; nobody learns from such an answer."""
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m['content']", "m['content'].split('</think>')[-1]"
    )
    thought = [{"role": "assistant", "content": "<think>Hm.</think>It is 4."}]
    with pytest.raises(chat.Refused, match="does not write what the assistant says as it is"):
        chat.answer(tokenizer, [ASK], thought)
    prompt, read = chat.answer(tokenizer, [ASK], thought, whole=False)
    assert said(tokenizer, read) == ["It is 4.<|end|>"]


def test_a_missing_template_is_a_sentence(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(StageFailed, match="has no chat template. Name one: base: "):
        chat.prompt(tokenizer, [ASK])


def test_tools_reach_the_template(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = models.template("chatml")
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    dialog = [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        SAY,
    ]
    encoded = chat.encode_one(tokenizer, dialog, tools)
    assert '"name": "add", "parameters"' in tokenizer.decode(encoded.ids)
    assert said(tokenizer, encoded) == [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>',
        "It is 4.<|im_end|>",
    ]
    assert encoded == chat.encode_one(
        tokenizer, dialog, '[{"type": "function", "function": {"name": "add", "parameters": {}}}]'
    )


def test_tools_that_a_template_leaves_out_are_refused(tokenizer: Any) -> None:
    """All of them, or where there is no system prompt."""
    tools = [{"type": "function", "function": {"name": "add"}}]
    with pytest.raises(StageFailed, match="writes no tools, and a dialog has some. Name one that"):
        chat.prompt(tokenizer, [ASK], tools)
    own = tokenizer.chat_template
    tokenizer.chat_template = own + "{% if messages[0].role == 'system' %}{{ tools }}{% endif %}"
    with pytest.raises(StageFailed, match="writes no tools"):
        chat.prompt(tokenizer, [ASK], tools)
    assert chat.prompt(tokenizer, [{"role": "system", "content": "Hm."}, ASK], tools)
    assert chat.prompt(tokenizer, [ASK], "[]") == chat.prompt(tokenizer, [ASK])


@pytest.mark.parametrize("name", sorted(path.stem for path in models.TEMPLATES.glob("*.jinja")))
def test_our_templates_are_proven(tokenizer: Any, name: str) -> None:
    words = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": words})
    tokenizer.chat_template = models.template(name)
    end = {"chatml": "<|im_end|>", "llama-3.1": "<|eot_id|>"}.get(name, tokenizer.eos_token)
    for dialog in DIALOGS.values():
        encoded = chat.encode_one(tokenizer, dialog)
        answers = [m["content"] + end for m in dialog if m["role"] == "assistant"]
        assert said(tokenizer, encoded) == answers
