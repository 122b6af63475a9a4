"""The pair trainers: losses, masks and checks against hand computations, on a tiny model."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, RewardConfig

from align.chat import CONTENT, END
from align.errors import StageFailed
from align.logprobs import scoring
from align.out import Out
from align.preference import PairCollator, PairTrainer, ScoreTrainer

ROWS = [
    {"prompt": [1, 4, 70, 71, 5], "chosen": [40, 41, 42, 43, 6], "rejected": [50, 6]},
    {"prompt": [1, 4, 72, 5], "chosen": [44, 6], "rejected": [51, 52, 53, 6]},
    {"prompt": [1, 4, 73, 5], "chosen": [45, 46, 6], "rejected": [54, 55, 6]},
    {"prompt": [1, 4, 74, 75, 76, 5], "chosen": [47, 48, 49, 6], "rejected": [56, 6]},
]


def row(prompt: list[int], chosen: list[int], rejected: list[int]) -> dict[str, Any]:
    """A tokenised pair; the answers' last token ends the turn."""
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "chosen_kinds": [CONTENT] * (len(chosen) - 1) + [END],
        "rejected_kinds": [CONTENT] * (len(rejected) - 1) + [END],
    }


PAIRS = [row(**each) for each in ROWS]


def dpo_config(tmp_path: Path, **options: Any) -> DPOConfig:
    return DPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        activation_checkpointing=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        **{"bf16": False, "per_device_train_batch_size": 4, "save_strategy": "no", **options},
    )


def pair_trainer(
    tiny_model: Path,
    tmp_path: Path,
    reference: Any = None,
    own_reference: bool = True,
    mask_format: bool = False,
    rows: list[dict[str, Any]] = PAIRS,
    **options: Any,
) -> PairTrainer:
    trainer = PairTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        ref_model=reference or AutoModelForCausalLM.from_pretrained(tiny_model),
        args=dpo_config(tmp_path, **options),
        data_collator=PairCollator(pad_token_id=0, mask_format=mask_format),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
        own_reference=own_reference,
    )
    trainer.model.train()
    trainer.out = Out(tmp_path, tmp_path)
    return trainer


def loss_of(trainer: PairTrainer, rows: list[dict[str, Any]] = PAIRS, fresh: bool = True) -> float:
    trainer.state.global_step = 0 if fresh else 1
    with torch.no_grad():
        return float(trainer._compute_loss(trainer.model, trainer.data_collator(rows), False))


def shaken(tiny_model: Path, scale: float = 0.1) -> Any:
    """Another model of the same shape: the reference somebody did not mean."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model


@torch.no_grad()
def token_logps(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """The log-probability of every token of an answer, by hand: one sequence, no padding."""
    ids = torch.tensor([prompt + answer])
    logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logps.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]


def numbered(rows: list[dict[str, Any]], model: Any) -> list[dict[str, Any]]:
    """The rows with the model's log-probabilities as the reference's, by hand."""
    return [
        each
        | {
            f"ref_{side}_logps": float(
                token_logps(model, each["prompt_ids"], each[f"{side}_ids"]).sum()
            )
            for side in ("chosen", "rejected")
        }
        for each in rows
    ]


# post-training facts 5.1; eps is exo_pair's label smoothing
EPSILON = 1e-3
STEP_0 = {
    "sigmoid": math.log(2),
    "sigmoid_norm": math.log(2),
    "robust": math.log(2),
    "aot": math.log(2),
    "hinge": 1.0,
    "ipo": 25.0,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "nca_pair": 2 * math.log(2),
    "bco_pair": 2 * math.log(2),
    "sppo_hard": 50.0,
    "exo_pair": -math.log(2) - 0.5 * math.log(EPSILON * (1 - EPSILON)),
    "discopop": 0.5 * math.log(2) + 0.5,
}


@pytest.mark.parametrize("loss_type", STEP_0)
def test_the_loss_of_a_policy_that_is_its_reference(
    loss_type: str, tiny_model: Path, tmp_path: Path
) -> None:
    options = {"label_smoothing": EPSILON} if loss_type == "exo_pair" else {}
    trainer = pair_trainer(tiny_model, tmp_path, loss_type=[loss_type], **options)
    assert loss_of(trainer) == pytest.approx(STEP_0[loss_type], abs=1e-4)
    metrics = trainer._metrics["train"]
    for name in ("chosen", "rejected", "margins"):
        assert metrics[f"rewards/{name}"] == [0.0]
    assert metrics["rewards/accuracies"] == [0.5], "a tie is one half"


def test_a_loss_with_a_log_ratio_is_the_closed_form(tiny_model: Path, tmp_path: Path) -> None:
    trainer = pair_trainer(tiny_model, tmp_path, shaken(tiny_model), own_reference=False)
    reference, total = shaken(tiny_model), 0.0
    for each in ROWS:
        chosen, rejected = (
            float(
                token_logps(trainer.model, each["prompt"], each[side]).sum()
                - token_logps(reference, each["prompt"], each[side]).sum()
            )
            for side in ("chosen", "rejected")
        )
        total += math.log1p(math.exp(-0.1 * (chosen - rejected)))
    assert loss_of(trainer) == pytest.approx(total / len(ROWS), abs=1e-5)


def test_swapping_the_labels_changes_the_loss_by_beta_d(tiny_model: Path, tmp_path: Path) -> None:
    trainer = pair_trainer(tiny_model, tmp_path, shaken(tiny_model), own_reference=False)
    swapped = [row(e["prompt"], e["rejected"], e["chosen"]) for e in ROWS]
    right, wrong = loss_of(trainer), loss_of(trainer, swapped)
    margins = trainer._metrics["train"]["rewards/margins"]
    assert margins[0] == pytest.approx(-margins[1], abs=1e-6)
    assert right - wrong == pytest.approx(-margins[0], abs=1e-5)


def test_nll_is_the_mean_over_tokens_then_over_pairs(tiny_model: Path, tmp_path: Path) -> None:
    trainer = pair_trainer(
        tiny_model, tmp_path, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2]
    )
    by_pair = [-token_logps(trainer.model, e["prompt"], e["chosen"]).mean() for e in ROWS]
    nll = float(torch.stack(by_pair).mean())
    assert loss_of(trainer) == pytest.approx(math.log(2) + 0.2 * nll, abs=1e-5)
    assert trainer._metrics["train"]["nll"] == [pytest.approx(nll, abs=1e-5)]


def test_the_loss_does_not_depend_on_how_a_batch_is_cut(tiny_model: Path, tmp_path: Path) -> None:
    trainer = pair_trainer(
        tiny_model, tmp_path, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0]
    )
    one_by_one = [loss_of(trainer, [each]) for each in PAIRS]
    assert loss_of(trainer) == pytest.approx(sum(one_by_one) / len(one_by_one), abs=1e-5)


def test_only_the_nll_term(tiny_model: Path, tmp_path: Path) -> None:
    trainer = pair_trainer(tiny_model, tmp_path, loss_type=["sft"])
    by_pair = [-token_logps(trainer.model, e["prompt"], e["chosen"]).mean() for e in ROWS]
    assert loss_of(trainer) == pytest.approx(float(torch.stack(by_pair).mean()), abs=1e-5)


def test_llama_3s_two_masks_are_the_hand_computation(tiny_model: Path, tmp_path: Path) -> None:
    """End-of-turn is out of the preference loss, in policy and reference, and stays in the NLL."""
    trainer = pair_trainer(
        tiny_model,
        tmp_path,
        shaken(tiny_model),
        own_reference=False,
        mask_format=True,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, 0.2],
    )
    reference, total = shaken(tiny_model), 0.0
    for each in ROWS:
        ratio = {
            side: float(
                token_logps(trainer.model, each["prompt"], each[side])[:-1].sum()
                - token_logps(reference, each["prompt"], each[side])[:-1].sum()
            )
            for side in ("chosen", "rejected")
        }
        nll = -float(token_logps(trainer.model, each["prompt"], each["chosen"]).mean())
        total += math.log1p(math.exp(-0.1 * (ratio["chosen"] - ratio["rejected"]))) + 0.2 * nll
    assert loss_of(trainer) == pytest.approx(total / len(ROWS), abs=1e-5)


def test_the_template_inside_an_answer_is_in_no_loss() -> None:
    """An answer of two turns with a tool's turn between: its kinds are CONTEXT there."""
    pair = row([1, 4], [40, 6, 9, 9, 41, 6], [50, 6])
    pair["chosen_kinds"] = [CONTENT, END, 0, 0, CONTENT, END]
    for mask_format, chosen in ((False, [1, 1, 0, 0, 1, 1]), (True, [1, 0, 0, 0, 1, 0])):
        batch = PairCollator(pad_token_id=0, mask_format=mask_format)([pair])
        assert batch["completion_mask"][0].tolist() == [0, 0, *chosen]
        assert batch["completion_mask"][1].tolist() == [0, 0, 1, int(not mask_format), 0, 0, 0, 0]
        assert batch["nll_mask"].tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]]


def test_a_wrong_reference_stops_before_the_first_update(tiny_model: Path, tmp_path: Path) -> None:
    trainer = pair_trainer(tiny_model, tmp_path, shaken(tiny_model, 0.02), max_steps=1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(StageFailed, match="not the model that came in.*Nothing was trained"):
        trainer.train()
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("ld_alpha", [0.0, 0.5])
def test_the_check_knows_trls_weights_of_tokens(
    ld_alpha: float, tiny_model: Path, tmp_path: Path
) -> None:
    trainer = pair_trainer(tiny_model, tmp_path, ld_alpha=ld_alpha)
    assert loss_of(trainer) == pytest.approx(math.log(2), abs=1e-5)
    assert trainer._metrics["train"]["rewards/accuracies"] == [0.5]
    with pytest.raises(StageFailed, match="not the model that came in"):
        loss_of(pair_trainer(tiny_model, tmp_path, shaken(tiny_model), ld_alpha=ld_alpha))


def test_rounding_is_no_wrong_reference(tiny_model: Path, tmp_path: Path) -> None:
    """In bf16, numbers computed one by one differ from those of a batch with padding."""
    rows = [row([1, 4, 5], [40 + j % 50 for j in range(20 * i)] + [6], [60, 6]) for i in (1, 5, 9)]
    network, args = AutoModelForCausalLM.from_pretrained(tiny_model), {"bf16": True, "beta": 1.0}
    with scoring(network, dpo_config(tmp_path, **args), PairCollator(0)) as scorer:
        numbers = scorer.numbers(Dataset.from_list(rows), [[0], [1], [2]])
    for each, (chosen, rejected) in zip(rows, numbers.tolist(), strict=True):
        each |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    trainer = pair_trainer(tiny_model, tmp_path, rows=rows, **args)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss_of(trainer, rows) == pytest.approx(0.693, abs=0.2)
        assert trainer._metrics["train"]["rewards/chosen"] != [0.0], "rounding there is"
        rows[0]["ref_chosen_logps"] += 2.0
        with pytest.raises(StageFailed, match="not the model that came in"):
            loss_of(trainer, rows)


def test_the_check_is_for_fresh_runs_only(tiny_model: Path, tmp_path: Path) -> None:
    trainer = pair_trainer(tiny_model, tmp_path, shaken(tiny_model, 0.02))
    assert loss_of(trainer, fresh=False) != pytest.approx(math.log(2), abs=1e-5)


def test_known_reference_log_probabilities_are_used_and_checked(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = numbered(PAIRS, AutoModelForCausalLM.from_pretrained(tiny_model))
    trainer = pair_trainer(tiny_model, tmp_path, rows=rows)
    assert not list(trainer.ref_model.parameters()), "there is no reference in memory"
    assert loss_of(trainer, rows) == pytest.approx(math.log(2), abs=1e-5)
    for each, other in zip(rows, rows[1:] + rows[:1], strict=True):  # the numbers of other pairs
        each["ref_chosen_logps"] = other["ref_chosen_logps"]
    with pytest.raises(StageFailed, match=r"not the model that came in.*Delete runs/\.cache"):
        loss_of(trainer, rows)


@pytest.mark.parametrize("known", [False, True])
def test_four_at_once_or_one_by_one_is_the_same_training(
    known: bool, tiny_model: Path, tmp_path: Path
) -> None:
    weights = []
    rows = numbered(PAIRS, AutoModelForCausalLM.from_pretrained(tiny_model)) if known else PAIRS
    for micro, steps in ((4, 1), (1, 4)):
        trainer = pair_trainer(
            tiny_model,
            tmp_path / str(micro),
            rows=rows,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=steps,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, 0.2],
            learning_rate=1e-2,
            max_steps=2,
            optim="sgd",
            train_sampling_strategy="sequential",
        )
        trainer.train()
        weights.append(trainer.model.state_dict())
    changed = 0.0
    start = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    for name in weights[0]:
        assert torch.allclose(weights[0][name], weights[1][name], atol=1e-6), name
        changed = max(changed, float((weights[0][name] - start[name]).abs().max()))
    assert changed > 1e-4


def test_dpo_reaches_the_closed_form_policy(tiny_model: Path, tmp_path: Path) -> None:
    """With Bradley-Terry preferences over all pairs, the optimum is pi_ref * exp(r / beta).

    Three answers of one token with rewards beta * ln(1, 2, 4): preferences of 1:2, 1:4 and 2:4 are
    whole numbers of pairs (15 each way together). Only the LM head is trained, so that the policy
    over the vocabulary is a free table. Rafailov et al., arXiv 2305.18290, eq. 4.
    """
    beta, strength = 0.5, {40: 1.0, 41: 2.0, 42: 4.0}
    trainer = pair_trainer(tiny_model, tmp_path, beta=beta)
    pairs = [
        pair
        for better in strength
        for worse in strength
        if better != worse
        for pair in [row([1, 4, 5], [better], [worse])]
        * round(15 * strength[better] / (strength[better] + strength[worse]))
    ]
    for pair in pairs:
        pair["chosen_kinds"], pair["rejected_kinds"] = [CONTENT], [CONTENT]
    batch = trainer.data_collator(pairs)
    head = trainer.model.lm_head.weight
    answers = list(strength)

    def policy(model: Any) -> torch.Tensor:
        logps = torch.stack([token_logps(model, [1, 4, 5], [answer])[0] for answer in answers])
        return logps.double().softmax(-1)

    target = policy(trainer.ref_model) * torch.tensor(
        [strength[answer] ** (1 / beta) for answer in answers]
    )
    target /= target.sum()
    # r = ln(strength), so exp(r / beta) = strength ** (1 / beta)
    assert 0.5 * (policy(trainer.model) - target).abs().sum() > 0.3, "there is something to learn"

    optimizer = torch.optim.LBFGS(
        [head], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        trainer.state.global_step = 1
        loss = trainer._compute_loss(trainer.model, batch, False)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert 0.5 * (policy(trainer.model) - target).abs().sum() < 1e-4


def score_trainer(
    tiny_model: Path, tmp_path: Path, rows: list[dict[str, Any]], **options: Any
) -> ScoreTrainer:
    torch.manual_seed(0)
    trainer = ScoreTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1),
        args=RewardConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            activation_checkpointing=False,
            disable_tqdm=True,
            save_strategy="no",
            **options,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    trainer.model.train()
    return trainer


SCORE_ROWS = [
    {"chosen_ids": e["prompt"] + e["chosen"], "rejected_ids": e["prompt"] + e["rejected"]}
    for e in ROWS
]


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(0, 0.69315), (1 / 3, 0.87364), (2 / 3, 1.08104), (1, 1.31326), (2, 2.12693), (3, 3.04859)],
)
def test_a_reward_model_that_knows_nothing_has_loss_ln_1_plus_e_margin(
    margin: float, expected: float, tiny_model: Path, tmp_path: Path
) -> None:
    """Llama 2 (arXiv 2307.09288), eq. 2, with a head of zeros."""
    rows = [{**each, "margin": float(margin)} for each in SCORE_ROWS]
    trainer = score_trainer(tiny_model, tmp_path, rows)
    torch.nn.init.zeros_(trainer.model.score.weight)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert trainer._metrics["train"]["accuracy"] == [0.5], "a tie is one half"


def test_the_reward_loss_does_not_see_a_shift(tiny_model: Path, tmp_path: Path) -> None:
    trainer = score_trainer(tiny_model, tmp_path, SCORE_ROWS)

    class Shifted(torch.nn.Module):
        def forward(self, **inputs: Any) -> Any:
            outputs = trainer.model(**inputs)
            per_prompt = torch.tensor([5.0, -3.0, 100.0, 0.25])
            outputs.logits = outputs.logits + torch.cat([per_prompt, per_prompt])[:, None]
            return outputs

    plain = trainer.compute_loss(trainer.model, trainer.data_collator(SCORE_ROWS))
    shifted = trainer.compute_loss(Shifted(), trainer.data_collator(SCORE_ROWS))
    assert shifted.item() == pytest.approx(plain.item(), abs=1e-4)
