"""Asking models: what is new, together, and whatever happens meanwhile, once."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shouting import prepare
from transformers import AutoModelForCausalLM, AutoTokenizer

from align import launch, shelf
from align import models as loading
from align.artifacts import Model
from align.asking import questions
from align.asking.asked import Asked
from align.asking.meter import Meter
from align.asking.said import Cache, key_of
from align.errors import StageFailed
from align.generation import generate
from align.out import Out
from align.parallel import pool, shards
from align.parallel.workers import Workers
from align.settings import Task
from align.stages.evaluate import Evaluate

TASK = '''
from typing import ClassVar, Literal
from align.settings import Task

class Words(Task):
    """Whether an answer holds a letter."""
    ask: ClassVar[Literal["answer"]] = "answer"
    n: int = 6
    chat: bool = True
    prefix: str = ""
    long: int = 0
    verb: str = "say"

    def decoding(self):
        return {"max_new_tokens": 8}

    def items(self):
        for i in range(self.n):
            text = f"{self.verb} {i} " + "x" * (self.long if i == 0 else 0)
            prompt = [{"role": "user", "content": text}] if self.chat else text
            yield {"id": f"i{i}", "prompt": prompt, "prefix": self.prefix, "answer": "a"}

    def grade(self, items, answers):
        return [{"has": float(item["answer"] in a)} for item, a in zip(items, answers)]
'''

CHOICE = '''
from typing import ClassVar, Literal
from align.settings import Task

class Choice(Task):
    """Which of two words comes next."""
    ask: ClassVar[Literal["choose"]] = "choose"
    n: int = 4
    long: tuple[int, ...] = ()

    def items(self):
        for i in range(self.n):
            prompt = f"pick {i}:" + " x" * (200 if i in self.long else 0)
            yield {"id": i, "prompt": prompt, "options": [" red", " blue!"], "answer": i % 2}
'''

Load = Callable[..., Task]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str = TASK, name: str = "words", **settings: Any) -> Task:
        (tmp_path / f"{name}.py").write_text(text)
        made = shelf.load(tmp_path / f"{name}.py", Task)(**settings)
        assert isinstance(made, Task)
        return made

    return load


def handle(path: Path) -> Model:
    return Model(path, spec={"base": {"path": str(path)}, "quantization": None, "adapter": False})


@pytest.fixture(scope="module")
def other(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second model, which says other things."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("other")
    network = AutoModelForCausalLM.from_pretrained(tiny_model)
    network.lm_head.weight.data.normal_()
    network.save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Out]]:
    def start(stage: Evaluate, name: str = "evaluate") -> tuple[dict[str, Any], Out]:
        out = Out(tmp_path / "runs" / name, tmp_path / "runs" / ".cache")
        out.path.mkdir(parents=True, exist_ok=True)
        made = stage.run(out)
        return json.loads((made.path / "report.json").read_text()), out

    return start


@pytest.fixture
def heard(tmp_path: Path) -> Callable[[], int]:
    """How many lines the cache has more than when it was asked last."""
    before = 0

    def count() -> int:
        nonlocal before
        files = (tmp_path / "runs" / ".cache" / "said").rglob("*.jsonl")
        found = sum(len(file.read_text().splitlines()) for file in files)
        new, before = found - before, found
        return new

    return count


def rows(out: Out, task: str) -> list[dict[str, Any]]:
    [file] = (out.path / "items" / task).iterdir()
    return [json.loads(line) for line in file.read_text().splitlines()]


def ask(path: Path, cache: Path, *tasks: tuple[str, Task]) -> list[list[dict[str, Any]]]:
    """What a model says to tasks, by the short way."""
    asked = Asked(handle(path), "model", cache, None, lambda *told: None)
    return asked.ask([(name, task, list(task.items())) for name, task in tasks], 0)


# -- what is asked -------------------------------------------------------------------------------


def test_another_item_task_or_model_asks_only_what_is_new(
    tiny_model: Path, other: Path, load: Load, run: Any, heard: Any
) -> None:
    one, two = handle(tiny_model), handle(other)
    first, _ = run(Evaluate(models=[one], tasks=[load()]), "first")
    assert heard() == 6
    run(Evaluate(models=[one], tasks=[load(n=8)]), "items")
    assert heard() == 2
    run(Evaluate(models=[one], tasks=[load(n=8), load(CHOICE, "choice")]), "task")
    assert heard() == 4
    both, _ = run(Evaluate(models=[one, two], tasks=[load(), load(CHOICE, "choice")]), "model")
    assert heard() == 6 + 4
    again, _ = run(Evaluate(models=[one], tasks=[load()]), "again")
    assert heard() == 0 and again["scores"] == first["scores"] == both["scores"][:1]


def test_a_kill_loses_only_what_is_under_way(
    tiny_model: Path, load: Load, run: Any, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = generate.generate

    def killed(*given: Any, **more: Any) -> Iterator[Any]:
        for i, pair in enumerate(original(*given, **more)):
            if i == 4:
                raise KeyboardInterrupt
            yield pair

    stage = Evaluate(models=[handle(tiny_model)], tasks=[load()])
    monkeypatch.setattr(generate, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        run(stage, "killed")
    assert heard() == 4
    monkeypatch.undo()
    after, _ = run(stage, "killed")
    assert heard() == 2
    monkeypatch.setattr(generate, "generate", None)
    assert run(stage, "again")[0]["scores"] == after["scores"]


def test_more_samples_keep_the_first_ones(tiny_model: Path, load: Load, tmp_path: Path) -> None:
    warm = {"generation": {"do_sample": True, "max_new_tokens": 6}}
    [two] = ask(tiny_model, tmp_path / "a", ("words", load(samples=2, **warm)))
    [five] = ask(tiny_model, tmp_path / "a", ("words", load(samples=5, **warm)))
    [fresh] = ask(tiny_model, tmp_path / "b", ("words", load(samples=5, **warm)))
    assert five == fresh and [one["texts"][:2] for one in five] == [one["texts"] for one in two]
    assert all(len(set(one["texts"])) == 5 == len(one["finishes"]) for one in five)
    again = ask(tiny_model, tmp_path / "a", *((f"{n}", load(samples=n, **warm)) for n in (3, 1)))
    assert again == [[{k: v[:n] for k, v in one.items()} for one in five] for n in (3, 1)]


def test_answers_of_all_tasks_that_are_drawn_alike_are_drawn_together(
    tiny_model: Path, load: Load, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    loaded: list[Model] = []
    original, load_model = generate.generate, loading.load

    def counting(network: Any, tokenizer: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        drawn.append(len(prompts))
        return original(network, tokenizer, prompts, *rest, **more)

    monkeypatch.setattr(generate, "generate", counting)
    monkeypatch.setattr(loading, "load", lambda one: loaded.append(one) or load_model(one))
    short = {"max_new_tokens": 4}
    tasks = [load(), load(verb="tell"), load(generation=short, n=3), load(CHOICE, "choice"), load()]
    report, _ = run(Evaluate(models=[handle(tiny_model)], tasks=tasks))
    assert drawn == [12, 3] and len(loaded) == 1  # the last task is the first one again
    assert {score["n"] for score in report["scores"]} == {6, 3, 4}


def test_what_is_said_does_not_depend_on_what_else_is_asked(
    tiny_model: Path, load: Load, tmp_path: Path
) -> None:
    warm = {"generation": {"do_sample": True, "max_new_tokens": 6}}
    tasks = [("one", load(**warm)), ("two", load(verb="tell", **warm)), ("c", load(CHOICE, "c"))]
    together = ask(tiny_model, tmp_path / "together", *tasks)
    alone = [ask(tiny_model, tmp_path / name, (name, task))[0] for name, task in tasks]
    assert together[:2] == alone[:2]
    for one, two in zip(together[2], alone[2], strict=True):
        assert one["options"] == pytest.approx(two["options"], abs=1e-4)


def test_progress_names_the_tasks_under_way() -> None:
    told: list[tuple[float, str, int]] = []
    meter = Meter("sft", lambda *one: told.append(one))
    meter.begin({"gsm8k": 1319, "math": 2, "ifeval": 2, "mmlu": 2})
    meter.draws(100)
    assert told[-1] == (0, "gsm8k of sft", 100)
    for task in ("gsm8k", "math", "ifeval"):
        meter.add([task], 1)
    meter.drew()
    meter.draws(50)
    assert told[-1] == (3, "gsm8k 1/1,319, math 1/2 and 1 more of sft", 150)
    meter.reads(1.5)
    assert told[-1][0] == 4.5
    for task, total in meter.totals.items():
        meter.add([task], total)
    assert told[-1][:2] == (1325, "sft")


# -- the cache -----------------------------------------------------------------------------------


def test_a_line_that_a_kill_cut_short_is_asked_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.add("a", {"text": "1"})
    cache.add("b", {"texts": {"of": "2"}})
    cache.close()
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    for cut in range(2, len('{"key": "b", "said": {"texts": {"of": "2"}}}\n') + 1):
        file.write_bytes(whole[:-cut])
        again = Cache(tmp_path)
        assert "a" in again and "b" not in again
        again.add("c", {"text": "3"})
        again.close()
        once_more = Cache(tmp_path)
        assert [key for key in "abc" if key in once_more] == ["a", "c"]
        assert once_more["c"] == {"text": "3"}


def test_processes_that_ask_one_model_keep_what_each_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = []
    for pid in (1, 2):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        caches.append(Cache(tmp_path))
        caches[-1].add(f"first of {pid}", {"text": "x" * 100_000})
    for pid, cache in enumerate(caches, 1):
        cache.add(f"second of {pid}", {"text": "y"})
        cache.close()
    found = Cache(tmp_path)
    assert all(f"{which} of {pid}" in found for which in ("first", "second") for pid in (1, 2))


def test_the_right_answer_is_no_part_of_the_key() -> None:
    item = {"id": 1, "prompt": "2+2=", "answer": "4", "subset": "sums"}
    how = {"ask": "answer"}
    assert key_of(item, how) == key_of({**item, "answer": "5", "subset": "x"}, how)
    changed = [{**item, "prefix": "It is"}, {**item, "prompt": "2+3="}, {**item, "id": 2}]
    assert len({key_of(one, how) for one in (item, *changed)}) == 4


# -- tokens --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def merging() -> Any:
    """A tokenizer whose tokens hold a space and what follows, and that begins texts itself."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    words = [*"abcxyz:.", "Ġ", "Ġa", "Ġx", "ab"]
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *words])}
    made = Tokenizer(BPE(vocab=vocabulary, merges=[("Ġ", "a"), ("Ġ", "x"), ("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("prompt", "option", "before", "after"),
    [
        ("a:", " x", "<s>|a|:", "Ġx"),
        ("a: ", "x", "<s>|a|:", "Ġx"),  # the space belongs to what follows
        ("a:", "x", "<s>|a|:", "x"),
        ("<s>a:", " a", "<s>|a|:", "Ġa"),  # it begins as texts begin already
        ("", "ab", "<s>", "ab"),
        ("", "<s>a", "<s>", "a"),
        (" ", "a", "<s>", "Ġa"),
    ],
)
def test_an_option_has_the_tokens_it_has_after_the_prompt(
    merging: Any, prompt: str, option: str, before: str, after: str
) -> None:
    """As lm-eval's `_encode_pair` splits them."""
    [[pair]] = questions.options(merging, [{"id": 0, "prompt": prompt, "options": [option]}])
    assert ["|".join(merging.convert_ids_to_tokens(ids)) for ids in pair] == [before, after]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_fork_encodes_without_the_threads_it_lacks(merging: Any) -> None:
    """With them it would wait for ever."""
    items = [{"id": i, "prompt": "ab " * 50, "options": [" a", " x"]} for i in range(20)]
    expected = questions.options(merging, items)
    if (pid := os.fork()) == 0:
        os._exit(questions.options(merging, items) != expected)
    assert os.waitpid(pid, 0)[1] == 0


def test_an_option_without_a_token_is_a_sentence(merging: Any) -> None:
    with pytest.raises(StageFailed, match="Item 7 has an option without a token"):
        questions.options(merging, [{"id": 7, "prompt": "a", "options": ["b", ""]}])


def test_a_prefix_stands_after_the_generation_prompt_and_is_no_part_of_the_answer(
    tokenizer: Any,
) -> None:
    dialog = [{"role": "user", "content": "pick"}]
    item = {"id": 0, "prompt": dialog, "prefix": "It is ", "options": ["A", "B"]}
    [asked] = questions.prompts(tokenizer, [item])
    assert tokenizer.decode(asked).endswith("<|user|>pick<|end|>\n<|assistant|>It is ")
    [pairs] = questions.options(tokenizer, [item])
    assert [tokenizer.decode(said) for _, said in pairs] == [" A", " B"]
    assert tokenizer.decode(pairs[0][0]).endswith("<|assistant|>It is")
    bare = {"id": 0, "prompt": dialog, "options": ["A"]}
    [[(before, said)]] = questions.options(tokenizer, [bare])
    assert tokenizer.decode(before).endswith("<|assistant|>") and tokenizer.decode(said) == "A"


def test_a_text_that_is_too_long_is_read_in_windows_each_token_once() -> None:
    """The example in lm-eval's `LM.loglikelihood_rolling`: ten tokens, a context of four."""
    assert list(questions.windows(([99], list(range(10))), 4)) == [
        ([99], [0, 1, 2, 3]),
        ([3], [4, 5, 6, 7]),
        ([5, 6, 7], [8, 9]),
    ]
    assert list(questions.windows(([99], [0, 1]), 4)) == [([99], [0, 1])]


# -- what is said --------------------------------------------------------------------------------


def by_hand(path: Path, before: list[int], said: list[int]) -> float:
    network = AutoModelForCausalLM.from_pretrained(path).eval()
    with torch.inference_mode():
        values = network(torch.tensor([before + said[:-1]])).logits[0].log_softmax(-1)
    return sum(float(values[len(before) - 1 + j, token]) for j, token in enumerate(said))


def test_options_have_the_likelihood_of_their_tokens(
    other: Path, tokenizer: Any, load: Load, tmp_path: Path
) -> None:
    [said] = ask(other, tmp_path, ("choice", load(CHOICE, "choice")))
    for i, one in enumerate(said):
        before = tokenizer(f"pick {i}:").input_ids
        after = [tokenizer(text, add_special_tokens=False).input_ids for text in (" red", " blue!")]
        expected = [by_hand(other, before, ids) for ids in after]
        assert one["options"] == pytest.approx(expected, abs=1e-3)


def test_an_answer_ends_before_its_stop_string(
    other: Path, load: Load, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [generate.Completion(0, "a b\n\nQuestion: c", [1], 0.0, "stop")]
    monkeypatch.setattr(generate, "generate", lambda *given, **more: iter([(0, told)]))
    stops = {"stop_strings": ["Question:", "\n\n"], "max_new_tokens": 8}
    _, out = run(Evaluate(models=[handle(other)], tasks=[load(n=1, generation=stops)]))
    assert rows(out, "words")[0]["texts"] == ["a b"]


class Documents(Task):
    """Texts, whole or after a question."""

    ask = "likelihood"

    def items(self) -> Iterator[dict[str, Any]]:
        yield {"id": 0, "prompt": "", "completion": "né " * 200}
        yield {"id": 1, "prompt": "after", "completion": " né"}
        asked = [{"role": "user", "content": "say"}]
        yield {"id": 2, "prompt": asked, "completion": [{"role": "assistant", "content": "né"}]}


def test_likelihoods_come_with_tokens_and_bytes(
    other: Path, tokenizer: Any, tmp_path: Path
) -> None:
    [[long, text, dialog]] = ask(other, tmp_path, ("documents", Documents()))
    assert (long["tokens"], long["bytes"]) == (800, 800)
    assert (text["tokens"], text["bytes"]) == (4, 4)
    assert (dialog["tokens"], dialog["bytes"]) == (4, 3)  # and the token that ends the turn
    ids = tokenizer("né " * 200, add_special_tokens=False).input_ids
    parts = [([1], ids[:256]), (ids[255:256], ids[256:512]), (ids[511:512], ids[512:768]),
             (ids[543:768], ids[768:])]  # fmt: skip
    total = sum(by_hand(other, *part) for part in parts)
    assert long["loglik"] == pytest.approx(total, abs=0.05)


def test_what_has_no_room_is_counted_and_in_no_mean(
    other: Path, load: Load, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [load(long=300), load(CHOICE, "choice", long=(1, 3))]
    report, out = run(Evaluate(models=[handle(other)], tasks=tasks))
    assert rows(out, "words")[0]["finishes"] == ["no room"]
    assert rows(out, "words")[0]["numbers"] == {"has": 0.0}  # graded as an empty answer
    assert out.counts["cut.words"]["n"] >= 1
    assert [row["numbers"]["accuracy"] is None for row in rows(out, "choice")] == [False, True] * 2
    assert out.counts["dropped.choice_no_room"]["by"] == {other.name: 2}
    said = capsys.readouterr().err
    assert "words: 1 of 6 prompts are longer than " in said and "Their answers are empty." in said
    assert "choice: 2 of 4 prompts are longer than " in said and "They are in no mean." in said
    of = {(score["task"], score["metric"]): score["n"] for score in report["scores"]}
    assert of["words", "has"] == 6 and of["choice", "accuracy"] == 2
    nothing = load(CHOICE, "choice", long=(0, 1, 2, 3))
    report, out = run(Evaluate(models=[handle(other)], tasks=[load(), nothing]), "left-out")
    assert "It is left out for this model." in capsys.readouterr().err
    assert {score["task"] for score in report["scores"]} == {"words"}
    assert out.counts["dropped.choice_no_room"]["n"] == 4
    with pytest.raises(StageFailed, match="Every item of choice is longer than what .* can read"):
        run(Evaluate(models=[handle(other)], tasks=[nothing]), "nothing")


def test_every_answer_that_was_cut_is_counted_and_said(
    other: Path, load: Load, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    warm = {"do_sample": True, "max_new_tokens": 1}
    _, out = run(Evaluate(models=[handle(other)], tasks=[load(samples=3, generation=warm)]))
    ends = [finish for row in rows(out, "words") for finish in row["finishes"]]
    cut = ends.count("length")
    assert len(ends) == 18 and out.counts["cut.words"]["n"] == cut > 0
    assert f"words: {cut} of 18 answers of " in capsys.readouterr().err


# -- bad input -----------------------------------------------------------------------------------


@pytest.fixture
def bare(tiny_model: Path, tmp_path: Path) -> Model:
    """A model without a chat template."""
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "bare")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    return handle(tmp_path / "bare")


def test_a_model_without_a_chat_template_is_refused_before_anything_runs(
    bare: Model, tiny_model: Path, load: Load, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Evaluate(models=[handle(tiny_model), bare], tasks=[load(), load(n=5)])
    [(key, message)] = stage.check()
    assert key == "models.1" and message.endswith("Or ask words as plain text: chat: false.")
    plain = Evaluate(models=[bare], tasks=[load(chat=False)])
    assert not list(plain.check()) and run(plain)[0]["scores"]
    unknown = TASK.replace("chat: bool", "chat: ClassVar[bool]")  # seen in its items only
    stage = Evaluate(models=[handle(tiny_model), bare], tasks=[load(unknown)])
    assert not list(stage.check())
    monkeypatch.setattr(loading, "load", None)
    with pytest.raises(
        StageFailed, match=r"words cannot be asked\. The tokenizer of .*: base: {chat_"
    ):
        run(stage, "unknown")


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"generation": {"num_beams": 2}}, '"num_beams" is not an option of our decoding'),
        (
            {"samples": 4},
            "words_2 draws 4 samples greedily, which are all the same. Say generation:",
        ),
    ],
)
def test_settings_of_a_task_that_cannot_be_are_problems_of_the_recipe(
    tiny_model: Path, load: Load, settings: dict[str, Any], fact: str
) -> None:
    stage = Evaluate(models=[handle(tiny_model)], tasks=[load(), load(**settings)])
    [(key, message)] = stage.check()
    assert key == "tasks.1" and message.startswith(fact)


# -- workers -------------------------------------------------------------------------------------


def said(out: Out) -> list[str]:
    """The keys of all that was said, in any process."""
    files = (out.cache / "said").rglob("*.jsonl")
    return [json.loads(line)["key"] for file in files for line in file.read_text().splitlines()]


@pytest.fixture
def stage(tiny_model: Path, other: Path, load: Load) -> Evaluate:
    """Two models, asked 12 and 4 items."""
    tasks = [load(n=12), load(CHOICE, "choice")]
    return Evaluate(models=[handle(tiny_model), handle(other)], tasks=tasks)


def test_any_number_of_workers_makes_the_same_report_and_a_kill_costs_nothing(
    stage: Evaluate, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that take turns in this process, each restored from `stage.json`."""
    alone, _ = run(stage, "alone")
    made: list[int] = []
    loaded: list[str] = []
    load_model = loading.load

    def take_turns(workers: Workers, out: Out, missing: list[int], watch: Any) -> None:
        each = [shards.join(out.path, f"turn-{i}") for i in range(workers.count)]
        for number in missing:
            if len(made) == 5:
                made.append(-1)
                raise KeyboardInterrupt
            each[number % workers.count](number)
            made.append(number)
            watch()

    monkeypatch.setattr(pool, "make", take_turns)
    monkeypatch.setattr(loading, "load", lambda one: loaded.append(one.key) or load_model(one))
    spread = stage.model_copy(update={"workers": Workers(count=2)})
    out = prepare(spread, tmp_path / "spread" / "evaluate.partial", "evaluate")
    with pytest.raises(KeyboardInterrupt):
        spread.run(out)
    assert made == [0, 1, 2, 3, 4, -1] and len(said(out)) == 10
    spread.model_copy(update={"workers": Workers(count=3)}).run(out)
    assert json.loads((out.path / "report.json").read_text()) == alone
    assert len(said(out)) == 2 * 16  # everything, and nothing twice
    assert len(loaded) == 2 * 1 + 3 * 2  # a worker loads each model it asks once
    assert not (out.path / "data").exists()
    monkeypatch.setattr(pool, "make", None)  # nothing is missing: nobody is started
    spread.run(out)


DYING = """
import os
import signal
import sys
from pathlib import Path

LIFE = Path("LIFE")
opened = []


def listen(event, arguments):
    if event == "open" and "/said/" in str(arguments[0]) and "a" in (arguments[1] or ""):
        opened.append(1)
        if len(opened) == 3 and LIFE.exists():
            LIFE.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


if "--shards" in sys.argv:
    sys.addaudithook(listen)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="orphans die on Linux only")
def test_processes_make_the_same_report_though_one_is_killed(
    stage: Evaluate,
    load: Load,
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(launch, "devices", lambda: 0)
    alone, _ = run(stage, "alone")
    life = tmp_path / "life"
    life.touch()
    dying = DYING.replace('"LIFE"', repr(str(life))) + TASK
    tasks = [load(dying, n=12), load(CHOICE, "choice")]
    spread = stage.model_copy(update={"tasks": tasks, "workers": Workers(count=2)})
    out = prepare(spread, tmp_path / "spread" / "evaluate.partial", "evaluate")
    spread.run(out)
    assert json.loads((out.path / "report.json").read_text()) == alone
    assert not life.exists()
    assert capsys.readouterr().err.count("A worker was killed by SIGKILL") == 1
    assert len(said(out)) == 2 * 16  # everything, and nothing twice
