"""Loading and saving models."""

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import adapters, chat, models, recipe
from align.artifacts import Model, RewardModel
from align.errors import RecipeError, StageFailed
from align.out import Out
from align.stages.merge import Merge
from align.stages.sft import Sft

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


def base(path: Path | str, **keys: Any) -> Model:
    spec = {"base": {"path": str(path), **keys}, "quantization": None}
    return Model(Path(path), spec=spec)


@pytest.fixture
def new(tmp_path: Path) -> Callable[[str], Out]:
    def make(name: str) -> Out:
        (tmp_path / name).mkdir()
        return Out(tmp_path / name, tmp_path / "cache")

    return make


def logits(network: Any) -> Any:
    import torch

    with torch.no_grad():
        return network(input_ids=torch.arange(8, 40)[None]).logits


def disturb(network: Any) -> None:
    """Give all that can be trained other values."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.1)


# -- adapters ------------------------------------------------------------------------------------


def test_a_new_adapter_changes_nothing(tiny_model: Path) -> None:
    plain = models.load(base(tiny_model))
    adapted = models.load(base(tiny_model), train=True, lora=LORA).eval()
    assert (logits(plain) - logits(adapted)).abs().max() == 0.0


def test_only_the_second_half_of_a_new_adapter_has_gradients(tiny_model: Path) -> None:
    network = models.load(base(tiny_model), train=True, lora=LORA)
    import torch

    ids = torch.arange(8, 40)[None]
    network(input_ids=ids, labels=ids).loss.backward()
    norms = {n: float(w.grad.norm()) for n, w in network.named_parameters() if w.requires_grad}
    assert all((norm == 0) == ("lora_A" in name) for name, norm in norms.items()) and norms


@pytest.mark.parametrize("head", [False, True])
def test_what_is_trained_on_a_bfloat16_base_is_in_float32(
    head: bool, tiny_model: Path, new: Callable[[str], Out]
) -> None:
    """In bfloat16 an update below 1/256 of a weight is lost; PEFT leaves the head in it."""
    import torch

    short = base(tiny_model, dtype="bfloat16")
    network = models.load(short, train=True, lora=LORA, head=head)
    trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert any("score" in name for name in trained) == head
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert network.dtype == torch.bfloat16
    out = new("made")
    models.save(network, models.tokenizer(short), short, out, lora=LORA)
    made = RewardModel(out.path) if head else Model(out.path)
    further = models.load(made, train=True, head=head)
    assert {w.dtype for w in further.parameters() if w.requires_grad} == {torch.float32}


def test_the_size_of_an_adapter_is_r_times_the_sides_of_its_targets(tiny_model: Path) -> None:
    network = models.load(base(tiny_model), train=True, lora=LORA)
    sides = 2 * sum([32 + 32, 32 + 16, 32 + 16, 32 + 32, 32 + 64, 32 + 64, 64 + 32])
    assert sum(w.numel() for w in network.parameters() if w.requires_grad) == 4 * sides


@pytest.mark.parametrize(("lora", "quantization"), [(None, None), (LORA, None), (LORA, NF4)])
@pytest.mark.parametrize("head", [False, True])
def test_what_is_saved_is_what_is_loaded(
    tiny_model: Path,
    new: Callable[[str], Out],
    quantization: dict[str, Any] | None,
    lora: dict[str, Any] | None,
    head: bool,
) -> None:
    """With a head too: without task_type=SEQ_CLS it is not saved."""
    how: dict[str, Any] = {"lora": lora, "quantization": quantization}
    network = models.load(base(tiny_model), train=True, head=head, **how)
    disturb(network)
    out = new("made")
    models.save(network, models.tokenizer(base(tiny_model)), base(tiny_model), out, **how)
    made = (RewardModel if head else Model)(out.path)
    again = models.load(made, head=head)
    assert (logits(network.eval()) - logits(again)).abs().max() == 0.0
    assert logits(again).shape == ((1, 1) if head else (1, 32, 263))
    spec = json.loads((out.path / "model.json").read_text())
    assert spec["quantization"] == quantization and spec["adapter"] == bool(lora)
    assert spec["lora"] == lora
    more = models.load(made, train=True, head=head)
    count = sum(weight.requires_grad for weight in more.parameters())
    assert count == sum(weight.requires_grad for weight in network.parameters())
    if quantization:
        plain = models.load(made, head=head, quantization=None)
        assert (logits(plain) - logits(again)).abs().max() > 0


def test_a_new_head_and_adapter_come_from_the_seed(tiny_model: Path) -> None:
    first, same, other = (
        models.load(base(tiny_model), train=True, head=True, lora=LORA, seed=seed).state_dict()
        for seed in (1, 1, 2)
    )
    changed = {name for name in first if not first[name].equal(other[name])}
    assert all(first[name].equal(same[name]) for name in first)
    assert any("lora_A" in name for name in changed) and any("score" in name for name in changed)


def test_an_adapter_of_another_kind_is_not_put_on_top(
    tiny_model: Path, new: Callable[[str], Out]
) -> None:
    network = models.load(base(tiny_model), train=True, lora=LORA)
    models.save(
        network, models.tokenizer(base(tiny_model)), base(tiny_model), new("made"), lora=LORA
    )
    made = Model(new("x").path.parent / "made")
    assert models.load(made, train=True, lora=dict(LORA)).active_adapter == "default"
    with pytest.raises(StageFailed, match="carries an adapter already .* merge it first"):
        models.load(made, train=True, lora={"r": 8})
    with pytest.raises(StageFailed, match="which a reward model cannot go on from. Merge it"):
        models.load(made, train=True, head=True)


def test_another_adapter_is_seen_before_anything_runs(tiny_model: Path) -> None:
    first = Sft(model=base(tiny_model), data=[], lora=LORA)
    second = Sft(model=Model(Path("sft-1"), stage=first), data=[])
    third = Model(Path("sft-2"), stage=second)
    assert list(adapters.check_lora(third, LORA)) == list(adapters.check_lora(third, None)) == []
    assert [key for key, _ in adapters.check_lora(third, {"r": 8})] == ["lora"]
    merged = Model(Path("merge-1"), stage=Merge(model=third))
    assert list(adapters.check_lora(merged, {"r": 8})) == []


def test_quantized_weights_alone_cannot_be_trained(tiny_model: Path) -> None:
    with pytest.raises(StageFailed, match="Quantized weights cannot be trained. Train an adapter"):
        models.load(base(tiny_model), train=True, quantization=NF4)


def test_quantized_training_goes_on_after_an_evaluation(tiny_model: Path) -> None:
    """On a CPU, bitsandbytes repacks weights at a forward in eval mode: no gradient after that."""
    import torch

    gradients = []
    for evaluate in (False, True):
        network = models.load(base(tiny_model), train=True, lora=LORA, quantization=NF4)
        disturb(network)
        if evaluate:
            logits(network.eval())
            network.train()
        ids = torch.arange(8, 40)[None]
        network(input_ids=ids, labels=ids).loss.backward()
        gradients.append([w.grad for w in network.parameters() if w.requires_grad])
    assert all(a.equal(b) for a, b in zip(*gradients, strict=True))
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients[1])


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA])
def test_files_can_be_read_by_all_and_name_no_path_of_this_machine(
    tiny_model: Path, new: Callable[[str], Out], lora: dict[str, Any] | None
) -> None:
    """TRL and PEFT write local paths into cards and configs; safetensors writes mode 0600."""
    out = new("made")
    network = models.load(base(tiny_model), train=True, lora=lora)
    models.save(network, models.tokenizer(base(tiny_model)), base(tiny_model), out, lora=lora)
    files = [file for file in out.path.rglob("*") if file.is_file()]
    assert any(file.suffix == ".safetensors" for file in files)
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444, file
        assert str(tiny_model).encode() not in file.read_bytes(), file
        assert file.name not in ("README.md", "training_args.bin")


def test_a_store_can_be_moved(tiny_model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "pretrain-1").mkdir(parents=True)
    shutil.copytree(tiny_model, store / "pretrain-1" / "model")
    (store / "pretrain-1" / "model.json").write_text(
        '{"base": {"path": "model"}, "quantization": null, "adapter": false}'
    )
    pretrained = Model(store / "pretrain-1")
    (store / "sft-1.partial").mkdir()
    network = models.load(pretrained, train=True, lora=LORA)
    disturb(network)
    out = Out(store / "sft-1.partial", store)
    models.save(network, models.tokenizer(pretrained), pretrained, out, lora=LORA)
    (store / "sft-1.partial").rename(store / "sft-1")
    spec = json.loads((store / "sft-1" / "model.json").read_text())
    assert spec["base"]["path"] == "../pretrain-1/model"
    store.rename(tmp_path / "moved")
    moved = models.load(Model(tmp_path / "moved" / "sft-1"))
    assert (logits(network.eval()) - logits(moved)).abs().max() == 0.0
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "moved" / "sft-1")
    assert (logits(models.load(Model(link))) - logits(moved)).abs().max() == 0.0
    assert (logits(models.load(base(link))) - logits(moved)).abs().max() == 0.0


def test_an_adapter_opens_in_peft_from_its_own_directory(
    tiny_model: Path, new: Callable[[str], Out], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModelForCausalLM

    out = new("made")
    network = models.load(base(tiny_model), train=True, lora=LORA)
    disturb(network)
    models.save(network, models.tokenizer(base(tiny_model)), base(tiny_model), out, lora=LORA)
    monkeypatch.chdir(out.path / "adapter")
    theirs = AutoPeftModelForCausalLM.from_pretrained(".")
    assert (logits(network.eval()) - logits(theirs.eval())).abs().max() == 0.0


def test_generation_stops_where_the_template_ends_a_turn(
    tiny_model: Path, new: Callable[[str], Out]
) -> None:
    model = base(tiny_model, eos_token="</s>")
    out = new("made")
    models.save(models.load(model), models.tokenizer(model), model, out)
    config = json.loads((out.path / "model" / "generation_config.json").read_text())
    assert config["eos_token_id"] == [2, 6] and config["pad_token_id"] == 0


# -- bad input -----------------------------------------------------------------------------------


@pytest.fixture
def broken(tiny_model: Path, tmp_path: Path) -> Callable[..., Model]:
    """The tiny model with other values in its tokenizer's config."""

    def make(**changes: Any) -> Model:
        path = tmp_path / "broken"
        shutil.copytree(tiny_model, path)
        file = path / "tokenizer_config.json"
        config = json.loads(file.read_text())
        config |= changes
        file.write_text(json.dumps({key: v for key, v in config.items() if v is not None}))
        return base(path)

    return make


@pytest.mark.parametrize(
    ("key", "remedy"),
    [("pad_token", 'base: {pad_token: "<pad>"}'), ("eos_token", 'base: {eos_token: "</s>"}')],
)
def test_a_missing_token_is_a_sentence_with_a_remedy_that_works(
    broken: Callable[..., Model], key: str, remedy: str
) -> None:
    model = broken(**{key: None})
    with pytest.raises(StageFailed, match=f"has no {key.replace('_', ' ')}") as error:
        models.tokenizer(model)
    assert remedy in str(error.value)
    word = remedy.split('"')[1]
    assert getattr(models.tokenizer(base(model.path, **{key: word})), key) == word
    with pytest.raises(StageFailed, match=f'base.{key}: "<nope>" is not in the vocabulary'):
        models.tokenizer(base(model.path, **{key: "<nope>"}))


def planned(text: str) -> list[str]:
    """The problems of a recipe that is only read, and never loads a tokenizer."""
    Path("r.yaml").write_text(text)
    row = {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c", "text": "a b"}
    Path("d.jsonl").write_text(json.dumps(row) + "\n")
    try:
        recipe.read("r.yaml")
    except RecipeError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize("key", ["pad_token", "eos_token"])
def test_a_missing_or_unknown_token_is_found_by_the_plan_in_the_same_words(
    broken: Callable[..., Model], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = broken(**{key: None}).path
    stages = "\nstages: {sft: {model: base, data: d.jsonl}}\n"
    for given, place in (("", "1:7"), (f', {key}: "<nope>"', ""), (f', {key}: "<pad>"', None)):
        found = planned(f"base: {{path: {path}{given}}}{stages}")
        if place is None:
            assert found == []
            continue
        with pytest.raises(StageFailed) as error:
            models.tokenizer(base(path, **({key: "<nope>"} if given else {})))
        assert len(found) == 1 and found[0].startswith(f"r.yaml:{place or '1:'}")
        assert found[0].endswith(f": base: {error.value}")


def test_what_is_named_beside_the_path_of_a_model_that_a_stage_made_is_refused(
    tiny_model: Path, new: Callable[[str], Out], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = new("made")
    models.save(models.load(base(tiny_model)), models.tokenizer(base(tiny_model)), None, out)
    stages = "\nstages: {sft: {model: base, data: d.jsonl}}\n"
    (found,) = planned(f"base: {{path: ./made, chat_template: chatml}}{stages}")
    assert found.startswith("r.yaml:1:") and "made was made by a stage, with all that" in found
    assert planned(f"base: ./made{stages}") == []


def test_a_missing_template_is_found_by_the_plan_where_dialogs_are_rendered(
    broken: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = broken().path
    (path / "chat_template.jinja").unlink()
    needs = {"sft": "data", "dpo": "data", "reward_model": "data", "sample": "prompts"}
    for use, key in needs.items():
        stages = f"stages: {{one: {{use: {use}, model: base, {key}: d.jsonl}}}}\n"
        (found,) = planned(f"base: {path}\n{stages}")
        assert found.startswith("r.yaml:2:") and f"one.model: The tokenizer of {path}" in found
        assert "Name one: base: {chat_template: plain}" in found
        assert planned(f"base: {{path: {path}, chat_template: plain}}\n{stages}") == []
        (found,) = planned(f"base: {{path: {path}, chat_template: chatml}}\n{stages}")
        assert "one.model: The chat template chatml ends a turn with <|im_end|>, which" in found
        (found,) = planned(f"base: {{path: {path}, chat_template: plain, revision: abc}}\n{stages}")
        assert found.startswith("r.yaml:1:") and "is a path, which has no revisions." in found
    assert planned(f"base: {path}\nstages: {{pretrain: {{model: base, data: d.jsonl}}}}\n") == []
    (path / "tokenizer.json").write_text("{")
    (found,) = planned(f"base: {{path: {path}, pad_token: <pad>, chat_template: plain}}\n{stages}")
    assert "The tokenizer files of" in found and "cannot be read" in found


def test_a_reward_model_needs_a_pad_token_of_its_own(broken: Callable[..., Model]) -> None:
    model = broken(pad_token="<|end|>")
    assert models.tokenizer(model).pad_token == "<|end|>"
    with pytest.raises(StageFailed, match="is its end token.*would not see where an answer ends"):
        models.load(model, head=True)


def test_a_template_is_a_file_or_one_of_ours(tiny_model: Path, tmp_path: Path) -> None:
    dialog = [{"role": "user", "content": "Hi"}]
    ours = models.tokenizer(base(tiny_model, chat_template="plain"))
    assert chat.render(ours, dialog, prompt=True) == "User:\nHi\n\nAssistant:\n"
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}!\n")
    mine = models.tokenizer(base(tiny_model, chat_template=str(file)))
    assert chat.render(mine, dialog) == "Hi!"
    with pytest.raises(StageFailed, match='"chatlm" is neither a file nor a template of ours'):
        models.tokenizer(base(tiny_model, chat_template="chatlm"))


def test_a_template_of_ours_begins_as_the_tokenizer_does(tiny_model: Path, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    loaded = models.tokenizer(base(tiny_model))
    loaded.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    for name in ("plain", "chatml", "zephyr", "llama-3.1"):
        models.use_template(loaded, name)
        ids = chat.prompt(loaded, [{"role": "user", "content": "Hi"}])
        assert ids[0] == 1 and ids.count(1) == 1, name


def test_weights_that_can_run_code_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "pickled"
    shutil.copytree(tiny_model, path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(StageFailed, match="has no safetensors. Weights in .bin or .pt files can"):
        models.load(base(path))
    (path / "config.json").unlink()
    with pytest.raises(StageFailed, match="is no model: it has no config.json"):
        models.load(base(path))
    with pytest.raises(StageFailed, match="nowhere does not exist"):
        models.load(base(tmp_path / "nowhere"))


def test_a_hub_model_while_offline_is_a_sentence() -> None:
    model = base("nobody/nothing")
    for use in (models.load, models.tokenizer):
        with pytest.raises(StageFailed, match='"nobody/nothing" is not in the hub\'s cache here'):
            use(model)
