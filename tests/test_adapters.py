"""Adapters of every kind: what is saved is what was trained, on the base as everyone has it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align import models, scores
from align.artifacts import Model, RewardModel
from align.data import Source
from align.errors import StageFailed
from align.out import Out
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
