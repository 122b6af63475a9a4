"""Adapters of every kind: what is saved is what was trained, on the base as everyone has it."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from safetensors.torch import load_file

from align import adapters, chat, models, precision, recipe, shelf
from align.artifacts import Model, RewardModel, Samples
from align.data import Source
from align.errors import RecipeError, StageFailed
from align.out import Out
from align.scoring import scores
from align.settings import Reward
from align.stages.reward_model import TrainRewardModel
from align.stages.score import Score
from align.stages.sft import Sft

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
DORA = {**LORA, "use_dora": True}
PISSA = {**LORA, "init_lora_weights": "pissa"}
PISSA_RS = {**LORA, "init_lora_weights": "pissa_niter_4", "use_rslora": True}
OLORA = {**LORA, "init_lora_weights": "olora", "rank_pattern": {"q_proj": 8}}


def base(path: Path | str, **keys: Any) -> Model:
    spec = {"base": {"path": str(path), **keys}, "quantization": None}
    return Model(Path(path), spec=spec)


@pytest.fixture
def new(tmp_path: Path) -> Callable[[str], Out]:
    def make(name: str) -> Out:
        (tmp_path / name).mkdir(exist_ok=True)
        return Out(tmp_path / name, tmp_path / "cache")

    return make


def logits(network: Any) -> Any:
    import torch

    with torch.no_grad():
        return network(input_ids=torch.arange(8, 40)[None]).logits


def train(network: Any) -> Any:
    """Move all that is trained a little."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.05)
    return network.eval()


def adapted(source: Model, out: Out, head: bool = False, **how: Any) -> tuple[Any, Model]:
    """A network whose new adapter was moved, and the model that was saved of it."""
    network = train(models.load(source, train=True, head=head, **how))
    models.save(network, models.tokenizer(source), source, out, **how)
    return network, (RewardModel if head else Model)(out.path)


@pytest.fixture
def sft(
    tiny_model: Path, write_rows: Callable[[str, list[dict[str, Any]]], Path]
) -> Callable[..., Sft]:
    rows = [{"prompt": f"Say {i}", "response": "red green blue"[: 3 + i % 9]} for i in range(16)]
    data = [Source(path=str(write_rows("rows.jsonl", rows)))]

    def stage(**settings: Any) -> Sft:
        trainer = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-2}
        given = {"model": base(tiny_model), "data": data, "batch_size": 8, "trainer": trainer}
        return Sft(**{**given, **settings})

    return stage


# -- what is saved is what was trained -----------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"lora": LORA},
        {"lora": {**LORA, "use_rslora": True}},
        {"lora": DORA},
        {"lora": PISSA},
        {"lora": {**LORA, "modules_to_save": ["embed_tokens", "lm_head"]}},
        {"lora": LORA, "quantization": NF4},
        {"lora": DORA, "quantization": NF4},
    ],
    ids=["full", "lora", "rslora", "dora", "pissa", "modules_to_save", "qlora", "qdora"],
)
def test_a_stage_is_read_back_as_it_was_trained(
    sft: Callable[..., Sft],
    new: Callable[[str], Out],
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, Any],
) -> None:
    from accelerate.utils import extract_model_from_parallel

    trained, save = [], models.save

    def keep(network: Any, *args: Any, **options: Any) -> None:
        save(network, *args, **options)
        network = extract_model_from_parallel(network, keep_fp32_wrapper=False)  # no autocast
        for weight in network.parameters():  # TRL trains bfloat16 on 4 bits; loaded is float32
            weight.data = weight.data.float() if weight.requires_grad else weight.data
        trained.append(logits(network.eval()))

    monkeypatch.setattr(models, "save", keep)
    made = sft(**how).run(new("made"))
    assert (trained[0] - logits(models.load(made))).abs().max() < 1e-6
    untrained = models.load(base(tiny_model), quantization=how.get("quantization"))
    assert (trained[0] - logits(untrained)).abs().max() > 1e-2


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("lora", [PISSA, PISSA_RS, OLORA], ids=["pissa", "niter rslora", "olora"])
def test_an_adapter_that_began_in_the_base_is_saved_for_the_base_as_it_is(
    tiny_model: Path, new: Callable[[str], Out], lora: dict[str, Any], head: bool
) -> None:
    """Opened with peft alone, on the base that everyone has; a score head is saved with it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    network, made = adapted(base(tiny_model), new("made"), head, lora=lora)
    kind = AutoModelForSequenceClassification if head else AutoModelForCausalLM
    options = {"num_labels": 1, "pad_token_id": 0} if head else {}
    public = kind.from_pretrained(tiny_model, **options)
    theirs = PeftModel.from_pretrained(public, made.path / "adapter").eval()
    assert (logits(network) - logits(theirs)).abs().max() < 1e-6
    config = json.loads((made.path / "adapter" / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True and config["r"] == 2 * lora["r"]
    network = models.load(made, train=True, head=head, lora=lora)  # it goes on as plain LoRA
    assert (logits(network.eval()) - logits(theirs)).abs().max() < 1e-6


def test_pissa_begins_as_the_base_and_goes_on_after_a_kill(
    sft: Callable[..., Sft], new: Callable[[str], Out], tiny_model: Path
) -> None:
    plain = logits(models.load(base(tiny_model)))
    fresh = models.load(base(tiny_model), train=True, lora=PISSA)
    assert (logits(fresh.eval()) - plain).abs().max() < 1e-6
    with fresh.disable_adapter():
        assert (logits(fresh) - plain).abs().max() > 1e-3, "the adapter holds a part of the base"
    whole = sft(lora=PISSA_RS).run(new("whole"))
    halves = new("halves")
    sft(lora=PISSA_RS).run(halves)
    shutil.rmtree(halves.path / "adapter")
    shutil.rmtree(halves.path / "checkpoints" / "checkpoint-4")
    again = sft(lora=PISSA_RS).run(halves)
    files = [path.path / "adapter" / "adapter_model.safetensors" for path in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "lora",
    [DORA, {**LORA, "target_modules": ["q_proj", "score"], "modules_to_save": ["embed_tokens"]}],
    ids=["dora", "own modules_to_save"],
)
@pytest.mark.parametrize("quantization", [None, NF4], ids=["float32", "nf4"])
def test_the_score_head_is_saved_whatever_the_adapter(
    tiny_model: Path,
    new: Callable[[str], Out],
    lora: dict[str, Any],
    quantization: dict[str, Any] | None,
) -> None:
    asked = json.dumps(lora)
    how = {"lora": lora, "quantization": quantization}
    network, made = adapted(base(tiny_model), new("made"), True, **how)
    assert (logits(network) - logits(models.load(made, head=True))).abs().max() == 0.0
    assert json.dumps(lora) == asked, "PEFT writes into the list it is given"
    assert models.describe(made).lora == lora
    assert not any("score.lora" in name for name, _ in network.named_parameters())


def test_all_linear_leaves_the_heads_alone(tiny_model: Path) -> None:
    for head in (False, True):
        network = models.load(base(tiny_model), train=True, head=head, lora=LORA)
        names = {name.split(".lora_A")[0] for name, _ in network.named_parameters()}
        assert not any(name.endswith(("lm_head", "score")) for name in names if "lora" in name)
        assert sum("lora_A" in name for name, _ in network.named_parameters()) == 14


def test_an_empty_block_is_an_adapter_too(tiny_model: Path, new: Callable[[str], Out]) -> None:
    how = {"lora": dict[str, Any](), "quantization": NF4}
    network, made = adapted(base(tiny_model), new("made"), **how)
    assert network.peft_config["default"].r == 8, "peft's default"
    assert models.describe(made).lora == {}
    assert adapters.carried(made) == ({}, NF4)
    assert not list(adapters.check_lora(made, {})) and list(adapters.check_lora(made, {"r": 4}))
    file = made.path / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora": None}))
    assert not list(adapters.check_lora(made, {"r": 8})), "then its own config says what it is"
    assert [key for key, _ in adapters.check_lora(made, {"r": 4})] == ["lora.r"]


def test_tied_weights_are_trained_once_and_stay_tied(
    tiny_model: Path, tmp_path: Path, new: Callable[[str], Out]
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(tiny_model, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tied")
    models.tokenizer(base(tiny_model)).save_pretrained(tmp_path / "tied")
    for name in ("embed_tokens", "lm_head"):
        lora = {**LORA, "modules_to_save": [name]}
        network, made = adapted(base(tmp_path / "tied"), new(name), lora=lora)
        again = models.load(made)
        assert (logits(network) - logits(again)).abs().max() == 0.0
        merged = again.merge_and_unload()
        assert merged.lm_head.weight is merged.model.embed_tokens.weight
        assert torch.allclose(logits(network), logits(merged), atol=1e-6)


# -- one base in memory --------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", [None, NF4], ids=["float32", "nf4"])
def test_reward_adapters_on_one_base_share_it_and_score_as_they_do_alone(
    tiny_model: Path, new: Callable[[str], Out], quantization: dict[str, Any] | None
) -> None:
    rows = [[1, 4, 70 + i, *range(80, 80 + i * 3), 6] for i in range(12)]
    loras = [LORA, {**DORA, "r": 8}, {**LORA, "modules_to_save": ["embed_tokens"]}]
    made = [
        adapted(base(tiny_model), new(f"rm{i}"), True, lora=lora, quantization=quantization)[1]
        for i, lora in enumerate(loras)
    ]
    alone = []
    for model in made:
        judge, _ = scores.load(model)
        alone.append(scores.scores(judge, rows))
    del judge
    together = [scores.load(model)[0] for model in made]
    assert len({id(judge.network) for judge in together}) == 1
    for _ in range(2):
        assert [scores.scores(judge, rows) for judge in together] == alone
    weights = dict(together[0].network.named_parameters())
    layers = [name for name in weights if "q_proj" in name and ".lora" not in name]
    assert len(layers) == 2, "the base is there once"
    del together
    other, _ = scores.load(made[1])
    assert other.adapter == "default", "whoever comes after all have gone loads it again"


def test_a_score_stage_loads_the_base_of_two_reward_adapters_once(
    tiny_model: Path, new: Callable[[str], Out], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, load = [], models.load

    def count(model: Model, **how: Any) -> Any:
        loaded.append(model.path.name)
        return load(model, **how)

    answers = [{"index": i, "text": f"yes {i}", "token_ids": [1] * (1 + i)} for i in range(3)]
    prompt = [{"role": "user", "content": "Say"}]
    rows = [{"id": str(i), "prompt": prompt, "columns": {}, "completions": answers} for i in (1, 2)]
    samples = Samples(new("samples").path)
    (samples.path / "data").mkdir()
    (samples.path / "data" / "0.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shutil.copytree(tiny_model, samples.path / "other")
    made = [
        adapted(base(path), new(name), True, lora=lora)[1]
        for name, path, lora in (
            ("a", tiny_model, LORA),
            ("b", tiny_model, DORA),
            ("c", samples.path / "other", LORA),
        )
    ]
    monkeypatch.setattr(models, "load", count)

    def score(*judges: int) -> list[dict[str, float]]:
        loaded.clear()
        kind = shelf.load(shelf.SHELF / "reward" / "model.py", Reward)
        rewards = [kind(model=made[i]) for i in judges]
        names = ["model", "model_2"][: len(judges)]
        stage = Score(samples=samples, rewards=rewards, combine=dict.fromkeys(names, 1), shard=1)
        out = new("scored" + "".join(map(str, judges)))
        return [one["scores"] for row in stage.run(out).rows() for one in row["completions"]]

    alone = [score(i) for i in (0, 1, 2)]
    for pair, times in (((0, 1), ["a"]), ((0, 2), ["a", "c"])):
        together = score(*pair)
        assert loaded == times, "one base is loaded once, two give way to each other"
        for both, *ones in zip(together, *(alone[i] for i in pair), strict=True):
            assert both == {"model": ones[0]["model"], "model_2": ones[1]["model"]}


# -- an adapter that no stage made ---------------------------------------------------------------


@pytest.fixture
def foreign(tiny_model: Path, tmp_path: Path) -> Path:
    """An adapter as peft alone writes it: no tokenizer, no model.json."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(tiny_model)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    network = train(get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", **lora)))
    network.save_pretrained(tmp_path / "foreign")
    return tmp_path / "foreign"


def test_a_reward_adapter_from_elsewhere_scores(
    tiny_model: Path, tmp_path: Path, planned: Callable[..., list[str]]
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    network = AutoModelForSequenceClassification.from_pretrained(
        tiny_model, num_labels=1, pad_token_id=0
    )
    network = train(get_peft_model(network, LoraConfig(task_type="SEQ_CLS", r=4)))
    network.save_pretrained(tmp_path / "judge")
    model = RewardModel(tmp_path / "judge", spec=base(tmp_path / "judge").spec())
    assert (logits(network) - logits(models.load(model, head=True))).abs().max() == 0.0
    (found,) = planned("seed: 1", named="./judge")
    assert "is not a language model" in found


def test_an_adapter_in_the_hubs_cache_is_put_on_its_base(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--me--tuned"
    shutil.copytree(foreign, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    found = models.describe(base("me/tuned"))
    assert found.adapter == folder / "snapshots" / commit
    expected = logits(models.load(base(foreign)))
    assert (logits(models.load(base("me/tuned"))) - expected).abs().max() == 0.0


def edit(path: Path, **changes: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_directory_that_holds_an_adapter_is_a_model(
    foreign: Path, tiny_model: Path, sft: Callable[..., Sft], new: Callable[[str], Out]
) -> None:
    from peft import AutoPeftModelForCausalLM

    theirs = logits(AutoPeftModelForCausalLM.from_pretrained(foreign).eval())
    assert (logits(models.load(base(foreign))) - theirs).abs().max() == 0.0
    assert models.tokenizer(base(foreign)).name_or_path == str(tiny_model)
    made = sft(model=base(foreign)).run(new("made"))
    assert models.describe(made).base.path == str(tiny_model)
    assert str(tiny_model) not in (made.path / "model.json").read_text()
    assert models.describe(made).adapter == made.path.resolve() / "adapter"
    assert (logits(models.load(made)) - theirs).abs().max() > 1e-2
    shutil.copytree(tiny_model, foreign.parent / "beside")
    edit(foreign, base_model_name_or_path="../beside")
    assert (logits(models.load(base(foreign))) - theirs).abs().max() == 0.0


def test_lora_of_a_stage_must_be_the_adapter_that_is_there(
    foreign: Path, sft: Callable[..., Sft]
) -> None:
    same = {"r": 4, "target_modules": ["v_proj", "q_proj"]}
    assert list(sft(model=base(foreign), lora=same).check()) == []
    models.load(base(foreign), train=True, lora=same)
    for key, value in {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}.items():
        ((place, message),) = sft(model=base(foreign), lora={**same, key: value}).check()
        assert place == f"lora.{key}" and "carries an adapter already" in message
        with pytest.raises(StageFailed, match=f"carries an adapter already .{key}: "):
            models.load(base(foreign), train=True, lora={**same, key: value})


# -- said before a model is loaded ---------------------------------------------------------------


@pytest.fixture
def planned(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """The problems of a recipe with one stage, which is only read."""
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c", "text": "a b"}
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")

    def plan(
        stage: str, use: str = "sft", model: str | Path = tiny_model, named: str = "base"
    ) -> list[str]:
        block = f"{{use: {use}, model: {named}, data: d.jsonl, {stage}}}"
        (tmp_path / "r.yaml").write_text(f"base: {model}\nstages:\n  one: {block}\n")
        try:
            recipe.read("r.yaml")
        except RecipeError as error:
            return [str(problem).partition(": ")[2] for problem in error.problems]
        return []

    return plan


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        ("target_modules: [q_proj, v_porj]", 'no linear layer "v_porj". Did you mean "v_proj"?'),
        ("target_modules: [attention]", "There are: down_proj, gate_proj, k_proj, o_proj, q_proj,"),
        ("target_modules: [norm]", 'no linear layer "norm".'),
        ("target_modules: [self_attn]", 'no linear layer "self_attn".'),
        ("target_modules: q_proj", "Write a list: [q_proj]."),
        ('target_modules: ".*[qv]_pro"', "as a whole, as model.layers.0.mlp.down_proj. There"),
        ('target_modules: "(q_proj"', "is no regular expression (missing )"),
        ("target_modules: [q_proj, lm_head]", "TRL reads lm_head's own weights, so an adapter on"),
        ('target_modules: ".*(head|q_proj)"', "TRL reads lm_head's own weights, so an adapter on"),
        ("layers_to_transform: [0, 2]", "no layer 2: they go from 0 to 1."),
        ("modules_to_save: [embed_token]", 'no module "embed_token". Did you mean "embed_tokens"'),
        ("init_lora_weights: false", '"false" begins with noise on the model'),
        ("target_modules: [q_proj], exclude_modules: [self_attn.q_proj]", "It leaves no module"),
        ('target_modules: [q_proj], exclude_modules: ".*"', "It leaves no module"),
        ("init_lora_weights: eva", '"eva" needs data or a quantization of its own first.'),
        (
            "init_lora_weights: pissa, target_modules: [k_proj], r: 20",
            "pissa takes 20 directions out of model.layers.0.self_",
        ),
        ("init_lora_weights: pissa, use_dora: true", '"pissa" with DoRA cannot be saved for'),
    ],
)
def test_an_adapter_that_fits_nothing_is_found_by_the_plan_and_by_the_stage(
    planned: Callable[..., list[str]], tiny_model: Path, lora: str, expected: str
) -> None:
    found = planned(f"lora: {{{lora}}}")
    assert len(found) == 1 and found[0].startswith("stages.one.lora.")
    assert expected in found[0]
    if "init" not in lora:
        block = YAML(typ="safe").load(f"{{{lora}}}")
        with pytest.raises(StageFailed, match=re.escape(expected)):
            models.load(base(tiny_model), train=True, lora=block)


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        ("target_modules: []", "It names no module."),
        ('target_modules: ""', "It names no module."),
        ("r: 0", "at least 1, and r is 0."),
        ("rank_pattern: {q_proj: -4}", "at least 1, and q_proj is -4."),
        ("lora_alpha: 0", "With lora_alpha 0 the adapter adds nothing."),
        ("alpha_pattern: {q_proj: 0}", "With q_proj 0 the adapter adds nothing."),
        ("lora_dropout: 1.5", "from 0 to below 1 is dropped, and this is 1.5."),
        ("init_lora_weights: pissax", 'no first weights "pissax". Did you mean "pissa"?'),
    ],
)
def test_values_that_no_adapter_can_have_are_found_by_the_plan(
    planned: Callable[..., list[str]], lora: str, expected: str
) -> None:
    (found,) = planned(f"lora: {{{lora}}}")
    assert found.startswith("stages.one.lora.") and expected in found


def test_what_fits_is_not_refused(planned: Callable[..., list[str]]) -> None:
    for lora in (
        "r: 64, target_modules: all-linear, modules_to_save: [embed_tokens, lm_head, norm]",
        'target_modules: ".*[.]1[.].*_proj"',
        "target_modules: [self_attn.q_proj, embed_tokens], layers_to_transform: 1",
        "target_modules: all-linear, exclude_modules: [q_proj]",
        "r: 4",
        "",
    ):
        assert planned(f"lora: {{{lora}}}") == [], lora
        assert planned(f"lora: {{{lora}}}, quantization: {{load_in_4bit: true}}") == [], lora
    assert planned("lora: {init_lora_weights: pissa_niter_4, target_modules: [q_proj]}") == []
    assert planned("lora: {target_modules: [q_proj, score]}", "reward_model") == []


def test_the_modules_of_a_known_model_are_known_without_its_files(
    planned: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    known = "meta-llama/Llama-3.1-8B"
    (found,) = planned("lora: {target_modules: [q_porj]}", model=known)
    assert 'no linear layer "q_porj". Did you mean "q_proj"?' in found
    assert planned("lora: {r: 16, modules_to_save: [embed_tokens, norm]}", model=known) == []
    (found,) = planned("lora: {layers_to_transform: [31, 32]}", model=known)
    assert "no layer 32: they go from 0 to 31." in found
    assert planned("lora: {target_modules: [q_porj]}", model="nobody/knows") == []


def test_a_reward_model_on_a_language_models_adapter_is_found_by_the_plan(
    planned: Callable[..., list[str]], foreign: Path, sft: Callable[..., Sft]
) -> None:
    (found,) = planned("seed: 1", "reward_model", foreign)
    assert found.startswith("stages.one.model: It carries an adapter of a language model, which")
    for lora, problems in ((LORA, 1), (None, 0)):
        tuned = Model(Path("sft-1"), stage=sft(lora=lora))
        stage = TrainRewardModel(model=tuned, data=[], lora=lora)
        assert len(list(models.check_adapter(stage, head=True))) == problems


@pytest.mark.parametrize("use", ["sft", "dpo", "reward_model"])
@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (
            "lora: {r: 4}, quantization: {load_in_4bit: true}, trainer: {bf16: false}",
            "trainer.bf16: TRL trains bfloat16 weights on a quantized model, which needs bf16.",
        ),
        (
            "lora: {r: 4}, quantization: {load_in_4bit: true}, trainer: {fp16: true}",
            "trainer.fp16: TRL trains bfloat16 weights on a quantized model, which needs bf16.",
        ),
        (
            "lora: {r: 4}, quantization: {load_in_4bit: true, load_in_8bit: true}",
            "quantization: load_in_4bit and load_in_8bit exclude each other. Keep one.",
        ),
        (
            "lora: {r: 4}, quantization: {bnb_4bit_quant_type: nf4}",
            "quantization: It quantizes nothing. Say `load_in_4bit: true` or `load_in_8bit: true`.",
        ),
        (
            "lora: {r: 4}, quantization: {}",
            "quantization: It quantizes nothing. Say `load_in_4bit: true` or `load_in_8bit: true`.",
        ),
        (
            "lora: {r: 4}, quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf5}",
            "quantization.bnb_4bit_quant_type: bitsandbytes has no nf5. Take one of: nf4, fp4.",
        ),
        (
            "lora: {r: 4}, quantization: {load_in_4bit: true, bnb_4bit_compute_dtype: float99}",
            "quantization.bnb_4bit_compute_dtype: bitsandbytes has no float99. Take one of: bfl",
        ),
        (
            "quantization: {load_in_4bit: true}",
            "quantization: Quantized weights cannot be trained. Train an adapter on them",
        ),
        (
            "lora: {r: 4, use_dora: true}, quantization: {load_in_8bit: true}",
            "lora.use_dora: bitsandbytes 0.50 loses the scale of 8-bit weights once DoRA has",
        ),
        (
            "lora: {r: 4, init_lora_weights: pissa}, quantization: {load_in_4bit: true}",
            'lora.init_lora_weights: "pissa" is made of the base\'s own weights. Leave it out, or',
        ),
    ],
)
def test_a_quantization_that_cannot_be_trained_on_is_found_by_the_plan(
    planned: Callable[..., list[str]], use: str, stage: str, expected: str
) -> None:
    (found,) = planned(stage, use)
    assert found.startswith(f"stages.one.{expected}")


def test_short_weights_are_not_all_trained(
    planned: Callable[..., list[str]], tiny_model: Path
) -> None:
    """In bfloat16 an update below 1/256 of a weight is lost."""
    short = f"{{path: {tiny_model}, dtype: bfloat16}}"
    (found,) = planned("seed: 1", model=short)
    assert found.startswith("stages.one.model: All weights are trained, and base.dtype holds them")
    assert planned("lora: {r: 4}", model=short) == []
    assert len(planned("seed: 1", "pretrain", short)) == 1


@pytest.mark.parametrize("method", ["gptq", "fp8", "bitsandbytes"])
def test_a_base_that_is_quantized_already_is_not_quantized_again(
    planned: Callable[..., list[str]], tiny_model: Path, tmp_path: Path, method: str
) -> None:
    path = tmp_path / "packed"
    shutil.copytree(tiny_model, path)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method}
    (path / "config.json").write_text(json.dumps(config))
    (found,) = planned("lora: {r: 4}, quantization: {load_in_4bit: true}", model=path)
    fact = f"stages.one.quantization: {path} is quantized already ({method}). Leave `quantization:`"
    assert found.startswith(fact)
    (found,) = planned("seed: 1", model=path)
    assert found.startswith("stages.one.model: Quantized weights cannot be trained.")
    assert planned("lora: {r: 4, target_modules: all-linear}", model=path) == []
    (found,) = planned("lora: {target_modules: [q_porj]}", model=path)
    assert 'Did you mean "q_proj"?' in found


def test_a_base_saved_in_4_bits_is_scored_sampled_and_trained_on(
    tiny_model: Path, tmp_path: Path, sft: Callable[..., Sft], new: Callable[[str], Out]
) -> None:
    import bitsandbytes

    models.load(base(tiny_model), quantization=NF4).save_pretrained(tmp_path / "packed")
    models.tokenizer(base(tiny_model)).save_pretrained(tmp_path / "packed")
    packed = base(tmp_path / "packed")
    network = models.load(packed)
    assert sum(isinstance(m, bitsandbytes.nn.Linear4bit) for m in network.modules()) == 14
    quantized = models.load(base(tiny_model), quantization=NF4)
    assert (logits(network) - logits(quantized)).abs().max() < 0.05
    stage = sft(model=packed, lora=LORA)
    assert list(stage.check()) == []
    assert models.half(packed, LORA)
    made = stage.run(new("made"))
    assert (logits(models.load(made)) - logits(network)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"base_model_name_or_path": None},
            "does not say whose adapter it is. Write its",
        ),
        (
            {"base_model_name_or_path": "./gone"},
            "an adapter of ./gone, which does not exist. ",
        ),
        ({"base_model_name_or_path": "."}, "an adapter of "),
        ({"peft_type": "IA3"}, '"peft_type" is IA3 and must be "LORA"'),
    ],
)
def test_an_adapter_without_its_base_is_a_sentence(
    foreign: Path, planned: Callable[..., list[str]], changes: dict[str, Any], expected: str
) -> None:
    edit(foreign, **changes)
    (found,) = planned("seed: 1", model=foreign)
    assert expected in found and str(foreign) in found
    with pytest.raises(StageFailed, match=re.escape(expected)):
        models.load(base(foreign))


def test_an_adapter_of_another_model_is_found_by_the_plan(
    foreign: Path, tiny_model: Path, planned: Callable[..., list[str]], tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    assert planned("seed: 1", model=foreign) == []
    remedy = f"Write the model it was trained on into {foreign}/adapter_config.json."
    for changes, fact in (
        ({"num_hidden_layers": 1}, "has weights for model.layers.1.self_attn.q_proj, which its"),
        ({"num_attention_heads": 2}, "for a model.layers.0.self_attn.q_proj of (32, 32), and its"),
    ):
        other = tmp_path / "other"
        LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_model, **changes)).save_pretrained(other)
        models.tokenizer(base(tiny_model)).save_pretrained(other)
        edit(foreign, base_model_name_or_path=str(other))
        (found,) = planned("seed: 1", model=foreign)
        assert fact in found and found.endswith(remedy)
    edit(foreign, base_model_name_or_path=str(tiny_model))
    tokenizer = models.tokenizer(base(tiny_model))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(foreign)
    (found,) = planned("seed: 1", model=foreign)
    assert f"tokenizer in {foreign} has 264 tokens, and the base {tiny_model} 263" in found


def test_an_adapter_on_a_base_saved_without_its_head_is_not_refused(
    foreign: Path, tmp_path: Path, tiny_model: Path, planned: Callable[..., list[str]]
) -> None:
    """Its weights are `layers.0…`, which transformers puts below `model.` as it loads them."""
    from transformers import AutoModel

    AutoModel.from_pretrained(tiny_model).save_pretrained(tmp_path / "bare")
    models.tokenizer(base(tiny_model)).save_pretrained(tmp_path / "bare")
    assert not any(
        name.startswith("model.") for name in load_file(tmp_path / "bare/model.safetensors")
    )
    edit(foreign, base_model_name_or_path=str(tmp_path / "bare"))
    assert planned("seed: 1", model=foreign) == []


def test_an_adapter_that_is_damaged_or_in_a_bin_file_is_refused(
    foreign: Path, planned: Callable[..., list[str]]
) -> None:
    weights = foreign / "adapter_model.safetensors"
    for damage in (weights.read_bytes()[:-1], b"", b"\xff" * 64):
        weights.write_bytes(damage)
        (found,) = planned("seed: 1", model=foreign)
        assert f"The weights in {foreign} cannot be read" in found
    weights.rename(foreign / "adapter_model.bin")
    (found,) = planned("seed: 1", model=foreign)
    assert "has no adapter_model.safetensors. Weights in .bin files can run code" in found


def test_an_adapter_of_another_rank_than_its_weights_is_found_by_the_plan(
    foreign: Path, planned: Callable[..., list[str]]
) -> None:
    for rank in (2, "4"):
        edit(foreign, r=rank)
        (found,) = planned("seed: 1", model=foreign)
        assert f"says rank {rank!r} of model.layers.0.self_attn." in found
    edit(foreign, r=2, rank_pattern={"[qv]_proj": 4})
    assert planned("seed: 1", model=foreign) == []


def test_another_base_under_an_adapter_is_another_key(
    foreign: Path, tiny_model: Path, planned: Callable[..., list[str]], tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "base")
    edit(foreign, base_model_name_or_path="../base")
    keys = []
    for text in ("", " "):
        file = tmp_path / "base" / "config.json"
        file.write_text(file.read_text() + text)
        assert planned("seed: 1", model=foreign) == []
        keys.append(recipe.read("r.yaml").stages["one"].artifact.key)
    assert keys[0] != keys[1]


# -- hardware ------------------------------------------------------------------------------------


def test_what_a_gpu_lacks_is_said_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    bits = {"load_in_4bit": True}
    asked = {**bits, "bnb_4bit_compute_dtype": "bfloat16"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla")
    for capability, quantization, fact in (
        ((5, 2), bits, "Tesla has compute capability 5.2, and bitsandbytes needs 6.0."),
        ((7, 5), asked, "Tesla has compute capability 7.5, and bfloat16 needs 8.0."),
        ((7, 5), bits, None),
        ((8, 0), asked, None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        if fact is None:
            precision.check(quantization, "cuda:0")
        else:
            with pytest.raises(StageFailed, match=re.escape(fact)):
                precision.check(quantization, "cuda:0")
        precision.check(quantization, "cpu")


def test_the_type_follows_the_hardware_and_quantized_weights_compute_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    for native, short in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=native: native or including_emulation,
        )
        assert precision.dtype("auto", "cuda:0", full=False) == short
        assert precision.dtype("auto", "cuda:0", full=True) == "float32"
        assert precision.dtype("auto", "cpu", full=False) == "float32"
        assert precision.autocast(half=False) == {"bf16": False}, "on a CPU"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert precision.autocast(half=False) == {"bf16" if native else "fp16": True}
        assert precision.autocast(half=True) == {"bf16": True}, "TRL trains bfloat16 on 4 bits"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        config = precision.bits({"load_in_4bit": True}, short)
        assert config.bnb_4bit_compute_dtype == getattr(torch, short)
        assert config.bnb_4bit_quant_storage == torch.uint8
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert (
        precision.bits({"load_in_4bit": True}, "bfloat16").bnb_4bit_quant_storage == torch.bfloat16
    )


# -- a whole chain -------------------------------------------------------------------------------

CHAIN = """
base: BASE
seed: 3
defaults:
  sft: &tuned
    lora: {r: 4, lora_alpha: 8, target_modules: all-linear}
    quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_use_double_quant: true}
    batch_size: 8
    trainer: {max_steps: 3, learning_rate: 1e-2}
  reward_model: {<<: *tuned, gate: null}
  dpo: {batch_size: 8, trainer: {max_steps: 3, learning_rate: 1e-2}}
stages:
  sft: {model: base, data: conversations.jsonl}
  reward: {use: reward_model, model: base, data: preferences.jsonl}
  sample: {model: sft, prompts: conversations.jsonl, n: 4, generation: {max_new_tokens: 6}}
  score: {samples: sample, rewards: [{use: reward/model.py, model: reward}]}
  pairs: {use: pair, scores: score, margin: 0.0, allow_cut: true}
  dpo: {model: sft, data: pairs}
  evaluate: {models: [sft, dpo], tasks: [{use: eval/perplexity.py, data: conversations.jsonl}]}
"""


def test_a_chain_on_a_4_bit_base(
    tiny_model: Path,
    tmp_path: Path,
    write_rows: Callable[[str, list[dict[str, Any]]], Path],
) -> None:
    import bitsandbytes
    import torch

    from align.generation.generate import folded

    write_rows("conversations.jsonl", [{"prompt": f"Say {i}", "response": "red"} for i in range(8)])
    pairs = [{"prompt": f"Ask {i}", "chosen": "Yes.", "rejected": "no"} for i in range(16)]
    write_rows("preferences.jsonl", pairs)
    (tmp_path / "chain.yaml").write_text(CHAIN.replace("BASE", str(tiny_model)))
    command = [sys.executable, "-m", "align.cli", "run", "chain.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = tmp_path / "runs" / "chain"
    assert json.loads((stages / "report.json").read_text())["status"] == "done"

    for name in ("sft", "reward", "dpo"):
        made = json.loads((stages / name / "model.json").read_text())
        assert made["quantization"] == NF4 and made["lora"] == LORA, name
        assert (stages / name).resolve().joinpath(made["base"]["path"]).samefile(tiny_model)
        assert not (stages / name / "model").exists()
        assert not (stages / name / "adapter" / "ref").exists()
    tuned, better = Model((stages / "sft").resolve()), Model((stages / "dpo").resolve())
    files = [model.path / "adapter" / "adapter_model.safetensors" for model in (tuned, better)]
    before, after = (load_file(file) for file in files)
    assert before.keys() == after.keys(), "one adapter goes through"
    assert any(not before[name].equal(after[name]) for name in before)
    assert any("score" in name for name in load_file(stages / "reward/adapter" / files[0].name))

    network = models.load(tuned)
    packed = [n for n, m in network.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(packed) == 14 and not any("lm_head" in name for name in packed)
    assert folded(network) is network, "an adapter is not folded into 4 bits"
    off = {}
    for quantization, one in (("nf4", network), (None, models.load(tuned, quantization=None))):
        differences = []
        for row in Samples((stages / "sample").resolve()).rows():
            prompt = chat.prompt(models.tokenizer(tuned), row["prompt"])
            for answer in row["completions"]:
                ids = torch.tensor([prompt + answer["token_ids"]])
                with torch.no_grad():
                    logps = one(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                logprob = float(logps.gather(1, ids[0, len(prompt) :, None]).sum())
                differences.append(abs(logprob - answer["logprob"]))
        off[quantization] = max(differences)
    assert off["nf4"] < 1e-3 < 1e-2 < off[None], "drawn from the 4-bit model, and no other"
