"""`align chat`: what it answers, on a terminal and in scripts."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from align import chat, models, talking, terminal
from align.artifacts import Model
from align.cli import main
from align.generation import generate
from align.generation.generate import Completion
from align.generation.streaming import pieces
from align.visible import visible

TYPED = "Name a colour."


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What `align chat` writes for a text on stdin: stdout, or stderr if it ends otherwise."""

    def run(*arguments: str, stdin: str = "", code: int = 0) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        assert main(["chat", *arguments]) == code
        shown = capsys.readouterr()
        return shown.err if code else shown.out

    return run


def sampled(path: Path, text: str, most: int) -> Completion:
    """The greedy answer as a `sample` stage draws it."""
    model = Model(path, spec={"base": {"path": str(path)}, "quantization": None, "adapter": False})
    tokenizer, network = models.tokenizer(model), models.load(model)
    prompt = chat.prompt(tokenizer, [{"role": "user", "content": text}])
    how = {"do_sample": False, "max_new_tokens": most}
    [(_, [answer])] = generate.generate(network, tokenizer, [prompt], ["a"], generation=how)
    return answer


def test_a_script_gets_the_answer_alone_and_it_is_that_of_a_sample_stage(
    said: Callable[..., str], tiny_model: Path
) -> None:
    words = [str(tiny_model), "--temperature", "0", "--max-new-tokens", "40"]
    answer = sampled(tiny_model, TYPED, 40)
    assert len(answer.token_ids) == 40 and "\ufffd" in answer.text  # bytes that are no text
    found = said(*words, stdin=f"{TYPED}\n")
    assert found == visible(answer.text) + "\n" == said(*words, "--prompt", TYPED)


def test_draws_follow_from_the_seed(said: Callable[..., str], tiny_model: Path) -> None:
    words = [str(tiny_model), "--max-new-tokens", "12", "--prompt", TYPED]
    first = said(*words, "--seed", "1")
    assert first == said(*words, "--seed", "1") != said(*words, "--seed", "2")


def test_two_models_answer_below_each_other(
    said: Callable[..., str], tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").symlink_to(tiny_model)
    words = [str(tiny_model), "--compare", str(tmp_path / "other"), "--temperature", "0"]
    shown = said(*words, "--max-new-tokens", "4", "--prompt", TYPED)
    answer = visible(sampled(tiny_model, TYPED, 4).text)
    assert shown == f"{tiny_model}:\n{answer}\n\n{tmp_path / 'other'}:\n{answer}\n"


def bytewise(*texts: str) -> Iterator[Completion]:
    for text in texts:
        yield Completion(0, text, [], None, "length")


def test_a_character_is_shown_when_it_is_whole() -> None:
    grown = bytewise("a", "a\ufffd", "a\ufffd\ufffd", "aé", "aé\ufffd")
    assert [piece for piece, _ in pieces(grown)] == ["a", "", "", "é", "", "\ufffd"]


def test_what_a_tokenizer_takes_back_is_not_shown_twice() -> None:
    # a run of byte tokens: all of it is no text as soon as one of them is none
    grown = bytewise("a", "aé", "a\ufffd\ufffd\ufffd", "a\ufffd\ufffd\ufffd b")
    shown = "".join(piece for piece, _ in pieces(grown))
    assert shown == "aé\ufffd\ufffd\ufffd b"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], '"nothing" is neither a directory nor a hub id (owner/name).'),
        (["--temperature", "-1"], "--temperature -1: It must be 0 (the likeliest token"),
        (["--temperature", "nan"], "--temperature nan: It must be 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0: An answer has at least one token."),
        (["--prompt", "a\udcff"], "--prompt: This is no UTF-8 text."),
        (["--system", "a\udcff"], "--system: This is no UTF-8 text."),
        (["--prompt", " "], "align chat: Nothing is asked. Write a question."),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(
    arguments: list[str],
    message: str,
    said: Callable[..., str],
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "load", lambda _: pytest.fail("a model is loaded"))
    named = [] if arguments == ["nothing"] else [str(tiny_model)]
    assert message in said(*named, *arguments, stdin="Hi", code=2)


def test_a_model_without_a_template_needs_one(
    said: Callable[..., str], tiny_model: Path, tmp_path: Path
) -> None:
    for file in tiny_model.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).symlink_to(file)
    assert "Name one: --chat-template chatml" in said(str(tmp_path), stdin="Hi", code=2)
    words = ["--chat-template", "plain", "--max-new-tokens", "3"]
    assert said(str(tmp_path), *words, stdin="Hi")


def test_a_reward_model_says_nothing(
    said: Callable[..., str], tiny_model: Path, tmp_path: Path
) -> None:
    config = (tiny_model / "config.json").read_text()
    kind = config.replace("LlamaForCausalLM", "LlamaForSequenceClassification")
    for file in tiny_model.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    labels = '{"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},'
    (tmp_path / "config.json").write_text(kind.replace("{", labels, 1))
    assert "scores answers and says none" in said(str(tmp_path), stdin="Hi", code=2)


# -- the dialog ----------------------------------------------------------------------------------


class Typed:
    """A person who types these lines, and what is shown to them; an exception is a key."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lines: list[Any]) -> None:
        self.lines, self.shown = lines, ""
        monkeypatch.setattr("builtins.input", self.read)

    def read(self, prompt: str) -> str:
        self.shown += prompt
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if not isinstance(line, str):
            raise line
        return line

    def show(self, text: str) -> None:
        self.shown += text


@pytest.fixture
def talker(tiny_model: Path) -> talking.Talker:
    asked = talking.Asked(temperature=0, max_new_tokens=8, seed=0, system="Be brief.")
    [made] = talking.load([str(tiny_model)], Path("runs"), None, asked)
    return made


def roles(talker: talking.Talker) -> str:
    return " ".join(message["role"][0] for message in talker.messages)


def test_the_dialog_is_kept_and_changed_by_commands(
    talker: talking.Talker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Looks(Typed):
        def read(self, prompt: str) -> str:
            seen.append(roles(talker))
            return super().read(prompt)

    lines = ["Hi", "More?", "/undo", "/again", "Last?", "/forget", "/clear", "/undo", "/again"]
    lines += ["/system Shout.", "/system", "/sytem", "", "/help", "/etc/passwd?"]
    person = Looks(monkeypatch, lines)
    terminal.converse([talker], person.show)
    dialog = ["s", "s u a", "s u a u a", "s u a", "s u a", "s u a u a", "s u a", "s", "s", "s", "s"]
    assert seen == [*dialog, "", "", "", "", "u a"]
    assert "(left out: More?)\n" in person.shown and "(left out: Hi)\n" in person.shown
    assert person.shown.count("(nothing was asked)") == 2
    assert 'There is no /sytem. Did you mean "/system"? See /help.' in person.shown
    assert "/forget   Leave out the oldest question and its answer.\n" in person.shown
    assert (
        "at most 8 tokens an answer" in person.shown and "(cut at --max-new-tokens)" in person.shown
    )


def test_the_model_reads_what_was_said_before(talker: talking.Talker) -> None:
    talker.ask("Hi")
    first = "".join(talker.answer())
    talker.ask("More?")
    prompt = talker.tokenizer.decode(talker.prompt())
    assert prompt == (
        f"<s><|system|>Be brief.<|end|>\n<|user|>Hi<|end|>\n<|assistant|>{first}<|end|>\n"
        "<|user|>More?<|end|>\n<|assistant|>"
    )


def test_another_draw_is_another_answer(talker: talking.Talker) -> None:
    talker.generation |= {"do_sample": True, "temperature": 1.0}
    talker.ask("Hi")
    first = "".join(talker.answer())
    assert talker.again() and "".join(talker.answer()) != first
    talker.begin()
    talker.ask("Hi")
    assert "".join(talker.answer()) == first


def test_ctrl_c_ends_an_answer_and_what_was_said_stays(
    talker: talking.Talker, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = Typed(monkeypatch, ["Hi", KeyboardInterrupt(), "/quit", "never"])
    pressed = iter([True])

    def show(text: str) -> None:
        person.show(text)
        if talker.messages[-1]["role"] == "assistant" and next(pressed, False):
            raise KeyboardInterrupt

    terminal.converse([talker], show)
    assert "\n(stopped)\n" in person.shown and "/quit or Ctrl-D ends." in person.shown
    assert person.lines == ["never"]
    said = talker.messages[-1]["content"]
    assert roles(talker) == "s u a" and f"{visible(said)}\n(stopped)" in person.shown


def test_a_full_context_is_said_and_nothing_is_left_out_unasked(
    talker: talking.Talker, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = Typed(monkeypatch, ["x" * 150, "y" * 150, "/forget", "y" * 150])
    terminal.converse([talker], person.show)
    assert "reads at most 256. Leave out its oldest question with /forget" in person.shown
    assert person.shown.count("(left out: xxx") == 1
    assert [m["content"][:1] for m in talker.messages if m["role"] == "user"] == ["y"]


def test_one_question_that_is_too_long_is_to_be_asked_shorter(
    talker: talking.Talker,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[..., str],
) -> None:
    person = Typed(monkeypatch, ["x" * 300])
    terminal.converse([talker], person.show)
    wrong = said(str(tiny_model), stdin="x" * 300, code=1)
    for shown in (person.shown, wrong):
        assert "The question has" in shown and "reads at most 256. Ask a shorter one." in shown
        assert "/forget" not in shown


def test_a_broken_byte_is_said_and_the_dialog_goes_on(
    talker: talking.Talker, monkeypatch: pytest.MonkeyPatch, said: Callable[..., str]
) -> None:
    person = Typed(monkeypatch, ["Hi", "a\udcff", "/system \udcff", "More?"])
    terminal.converse([talker], person.show)
    assert person.shown.count("This is no UTF-8 text.\n") == 2
    assert roles(talker) == "s u a u a"
    assert "stdin: This is no UTF-8 text." in said(talker.name, stdin="a\udcff", code=2)


def test_where_one_of_two_models_has_no_room_both_forget_the_question(
    talker: talking.Talker, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = talking.Asked(temperature=0, max_new_tokens=8, seed=0, system="Be brief.")
    [small] = talking.load([str(tiny_model)], Path("runs"), None, asked)
    small.context = 100
    person = Typed(monkeypatch, ["Hi", "x" * 150])
    terminal.converse([talker, small], person.show)
    assert "reads at most 100." in person.shown
    assert roles(talker) == roles(small) == "s u a"


def test_an_answer_that_ends_with_the_context_says_so(talker: talking.Talker) -> None:
    talker.ask("x" * 235)
    answer = "".join(talker.answer())
    assert talker.cut.endswith("reads at most 256 tokens)") and answer


def test_on_a_terminal_lines_are_read_answers_stream_and_ctrl_c_does_not_end_it(
    tiny_model: Path,
) -> None:
    command = [
        sys.executable,
        "-m",
        "align.cli",
        "chat",
        str(tiny_model),
        "--max-new-tokens",
        "200",
    ]
    here, there = pty.openpty()
    process = subprocess.Popen(
        command, stdin=there, stdout=there, stderr=there, close_fds=True, start_new_session=True
    )
    os.close(there)
    shown = ""

    def until(pattern: str) -> None:
        nonlocal shown
        end = time.monotonic() + 120
        while not re.search(pattern, shown):
            assert time.monotonic() < end, shown
            if select.select([here], [], [], 1)[0]:
                shown += os.read(here, 1 << 16).decode()

    try:
        until("> ")
        os.write(here, b"Hi\n")
        until(r"Hi\r\n[^\n]{3}")
        process.send_signal(signal.SIGINT)
        until(r"\(stopped\)|\(cut")
        until(r"\n> $")
        os.write(here, b"/quit\n")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        os.close(here)
