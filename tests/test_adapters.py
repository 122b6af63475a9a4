"""Adapters of every kind: what is saved is what was trained, on the base as everyone has it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapting import (
    DORA,
    LORA,
    NF4,
    OLORA,
    PISSA,
    PISSA_RS,
    adapted,
    base,
    edit,
    foreign,
    logits,
    new,
    planned,
    sft,
    train,
)
from safetensors.torch import load_file

from align import adapters, chat, models, shelf
from align.artifacts import Model, RewardModel, Samples
from align.errors import StageFailed
from align.out import Out
from align.scoring import scores
from align.settings import Reward
from align.stages.score import Score
from align.stages.sft import Sft

__all__ = ["new", "sft", "foreign", "planned"]


# -- what is saved is what was trained ------------------------------------------------------------


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


# -- one base in memory ---------------------------------------------------------------------------


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


# -- an adapter that no stage made ----------------------------------------------------------------


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


# -- a whole chain --------------------------------------------------------------------------------

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
