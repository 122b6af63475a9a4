"""Learning from pairs: what TRL's DPO and reward trainers do not do, and nothing they do.

Rows reach the trainers tokenised (`pairs`), with one kind per token of an answer (chat.py), so that
no row is cut silently and Llama 3's two masks can be drawn from it:

    kind      is                                         preference loss        NLL
    CONTEXT   the template's own tokens, other roles     no                     no
    CONTENT   what the assistant says                    yes                    yes
    END       what ends its turn                         unless `mask_format`   yes
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from trl import DPOTrainer, RewardTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from align import chat
from align.chat import CONTENT, CONTEXT, Encoded
from align.errors import StageFailed
from align.learnable import Learnable, TooLong
from align.logprobs import in_float32, tolerance
from align.out import Out
from align.scoring.scores import accuracy
from align.settings import Dialog
from align.training import Ordered

HELD_OUT = 1000
"""The most pairs a reward model is measured on where no `eval_data` is given."""

Row = dict[str, Any]
Batch = dict[str, Any]


def comparisons(row: Row) -> Iterator[tuple[Dialog, Dialog]]:
    """(chosen, rejected): the row's pair, or all K (K - 1) / 2 pairs of a ranking of K answers.

    Of a set of one good and several bad answers: the good one with each of them.

    Every pair counts once, as if a person had been asked about it: a ranking of three is the three
    Bradley-Terry terms of Llama 3's edited > chosen > rejected (arXiv 2407.21783, 4.1.2).
    """
    if "ranked" in row:
        yield from combinations(row["ranked"], 2)
    else:
        for rejected in (row["rejected"], *row.get("also_rejected", ())):
            yield row["chosen"], rejected


def pairs(
    rows: Iterable[Row],
    tokenizer: Any,
    limit: int,
    out: Out,
    prefix: str = "",
    too_long: TooLong = "drop",
) -> Iterator[Row]:
    """Tokenised pairs of Preferences rows; what cannot be used whole is dropped and counted.

    A pair has `prompt_ids`, `chosen_ids`, `rejected_ids` (what follows the prompt, to the end of
    the rendered dialog), `chosen_kinds`, `rejected_kinds`, `margin` (0.0 where there is none) and
    `prompt`, a number by which equal prompts are known.

    Args:
        rows: Preferences in their normal form.
        tokenizer: with a chat template.
        limit: the most tokens of a prompt with either answer.
        out: counts `pairs` and `dropped...`, with examples.
        prefix: of these counts: "eval." for held-out rows.
        too_long: what becomes of longer ones; only their prompts can be made shorter.

    Raises:
        StageFailed: no pair is left, a margin is not a finite number, or see `Learnable`.
    """
    learnable = Learnable(tokenizer, limit, too_long, out, prefix, pairs=True)
    kept = 0
    for row in rows:
        margin = row.get("margin") or 0.0
        if not math.isfinite(margin):
            raise StageFailed(f"Row {row['id']}: margin is {margin}. Correct it or leave it out.")
        digest = hashlib.sha256(json.dumps([row["prompt"], row.get("tools")]).encode()).digest()
        for answers in comparisons(row):
            pair = _pair(row, answers, learnable)
            if pair is None:
                continue
            kept += 1
            yield {**pair, "margin": margin, "prompt": int.from_bytes(digest[:6], "big")}
    out.count(f"{prefix}pairs", kept)
    learnable.finish()
    if not kept:
        raise StageFailed(
            f"None of {learnable.rows} pairs can be used ({learnable.left_out()}; {limit} tokens "
            "fit). Raise trainer.max_length as far as the model's context allows where they are "
            "too long, or look at the data."
        )


def _pair(row: Row, answers: tuple[Dialog, Dialog], learnable: Learnable) -> Row | None:
    """Two answers to a row's prompt, or to as much of it as fits; None: dropped, and counted."""
    tokenizer, tools = learnable.tokenizer, row.get("tools")

    def encode(prompt: Dialog) -> tuple[Dialog, list[list[int]], list[Encoded]]:
        both = [chat.answer(tokenizer, prompt, answer, tools) for answer in answers]
        return prompt, [ids for ids, _ in both], [encoded for _, encoded in both]

    made = learnable.fit(
        row, row["prompt"], encode, lambda made: len(made[1][0]) + max(len(e.ids) for e in made[2])
    )
    if made is None:
        return None
    prompt, (ids, again), (chosen, rejected) = made
    differ, equal = ids != again, chosen.ids == rejected.ids  # a template may look ahead
    if differ or equal:
        learnable.drop("prompts_differ" if differ else "equal_answers", {"id": row["id"]})
        return None
    for said, encoded in zip(answers, (chosen, rejected), strict=True):
        whole = Encoded(ids + encoded.ids, [CONTEXT] * len(ids) + encoded.kinds)
        if not learnable.check(row, prompt, said, whole):
            return None
    learnable.tell(row, prompt, [*answers[0], *answers[1]])
    return {
        "prompt_ids": ids,
        "chosen_ids": chosen.ids,
        "rejected_ids": rejected.ids,
        "chosen_kinds": chosen.kinds,
        "rejected_kinds": rejected.kinds,
    }


def dialogs(pair: Row) -> Row:
    """A pair of `pairs` as the reward trainer reads it: whole dialogs, rendered as when scored.

    `chosen_tokens` and `rejected_tokens` are the lengths of the assistant's part of the answers.
    """
    row: Row = {key: pair[key] for key in ("margin", "prompt")}
    for side in ("chosen", "rejected"):
        row[f"{side}_ids"] = pair["prompt_ids"] + pair[f"{side}_ids"]
        row[f"{side}_tokens"] = sum(kind != CONTEXT for kind in pair[f"{side}_kinds"])
    return row


def hold_out(rows: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """Rows to train on, and rows held out: the share, at most 1000, all rows of a prompt together.

    Which prompts is drawn from the seed and the prompt. At least one stays on either side.

    Raises:
        StageFailed: there is only one prompt.
    """
    if not share:
        return rows, None
    prompts = rows["prompt"]
    counts = Counter(prompts)
    if len(counts) < 2:
        raise StageFailed(
            "All pairs have the same prompt, so none can be held out. Give `eval_data:`, or set "
            "`holdout: 0` and `gate: null`."
        )
    order = sorted(counts, key=lambda p: hashlib.sha256(f"{seed}\n{p:.0f}".encode()).digest())
    wanted, chosen = min(share * len(prompts), HELD_OUT), set[float]()
    for prompt in order[:-1]:
        if wanted <= 0:
            break
        chosen.add(prompt)
        wanted -= counts[prompt]
    inside = [i for i, prompt in enumerate(prompts) if prompt in chosen]
    outside = [i for i, prompt in enumerate(prompts) if prompt not in chosen]
    return rows.select(outside), rows.select(inside)


@dataclass
class PairCollator(DataCollatorForPreference):  # type: ignore[misc]
    """TRL's collator, with the two masks of Llama 3 (arXiv 2407.21783, §4.1.4) from the kinds.

    Rows are those of `pairs`. A batch of n rows has 2n sequences, the chosen ones first:
    `completion_mask` (2n, length) is the preference loss's mask, for policy and reference alike;
    `nll_mask` (n, length) is the chosen answers' mask of the NLL term.
    """

    mask_format: bool = False

    def torch_call(self, examples: list[Batch]) -> Batch:
        """Pad to the longest sequence; see the class."""
        batch: Batch = super().torch_call(examples)
        kinds = torch.zeros_like(batch["input_ids"])
        answers = [(row, row["chosen_kinds"]) for row in examples]
        answers += [(row, row["rejected_kinds"]) for row in examples]
        for line, (row, of_answer) in zip(kinds, answers, strict=True):
            start = len(row["prompt_ids"])
            line[start : start + len(of_answer)] = torch.tensor(of_answer)
        preference = kinds == CONTENT if self.mask_format else kinds != CONTEXT
        batch["completion_mask"] = preference.long()
        batch["nll_mask"] = (kinds[: len(examples)] != CONTEXT).long()
        return batch


class PairTrainer(Ordered, DPOTrainer):  # type: ignore[misc]
    """`trl.DPOTrainer` on tokenised pairs, with an NLL term per pair and a first-batch check.

    * `loss_type: [sigmoid, sft]`: TRL's "sft" is the mean over all tokens of a micro-batch, so that
      its weight depends on how a batch is cut. Here it is the mean over the chosen answer's tokens,
      then over pairs, as in Iterative RPO (arXiv 2404.19733, eq. 1); and it has its own mask.
    * Rows have the reference's log-probabilities (`ref_chosen_logps`, `ref_rejected_logps`), and no
      reference is in memory. Where they have not, TRL's own reference computes them at every step.
    * `own_reference` says that the reference is the model as it came in: then every reward of a
      fresh run must be zero before the first update. This catches a reference that is not the model
      one thinks it is.

    Raises:
        StageFailed: from the first batch, if the reference is not what it should be.
    """

    loss_types: list[str]
    loss_weights: list[float]

    def __init__(self, *args: Any, own_reference: bool, **options: Any) -> None:
        """As `trl.DPOTrainer`, and whether the reference is the model as it comes in."""
        self._own_reference = own_reference
        self._known = "ref_chosen_logps" in options["train_dataset"].column_names
        if self._known:  # without a reference, TRL would copy the adapter or load a model
            options["ref_model"] = torch.nn.Identity()
            options["ref_model"].config = options["model"].config
        super().__init__(*args, **options)
        self.precompute_ref_logps = True
        weights = list(zip(self.loss_types, self.loss_weights, strict=True))
        self._nll_weight = sum(weight for name, weight in weights if name == "sft")
        self.loss_types = [name for name, _ in weights if name != "sft"]
        self.loss_weights = [weight for name, weight in weights if name != "sft"]

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # tokenised already; TRL's would tokenise again and cut at max_length

    def compute_ref_log_probs(self, model: Any, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The reference's summed log-probabilities, (n,) and (n,): chosen, rejected."""
        ours = {key: value for key, value in inputs.items() if key != "nll_mask"}
        chosen, rejected = super().compute_ref_log_probs(model, ours)
        return chosen, rejected

    def _compute_loss(self, model: Any, inputs: Batch, return_outputs: bool) -> torch.Tensor:
        assert not return_outputs, "nothing here asks for logits"
        inputs = dict(inputs)
        nll_mask = inputs.pop("nll_mask")[:, 1:]
        n = len(nll_mask)
        preference_mask = inputs["completion_mask"][:, 1:]
        if not self._known:
            inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = self.compute_ref_log_probs(
                self.ref_model or self.model, inputs
            )

        trained = inputs["completion_mask"].bool()
        trained[:n, 1:] |= nll_mask.bool()
        labels = inputs["input_ids"].masked_fill(~trained, -100)
        logps = torch.empty(0)

        def policy(**kwargs: Any) -> Any:
            nonlocal logps
            outputs = model(**{**kwargs, "labels": labels})
            logps = outputs.log_probs
            outputs.log_probs = logps * preference_mask
            return outputs

        loss: torch.Tensor = super()._compute_loss(policy, inputs, False)
        mode = "train" if self.model.training else "eval"
        metrics = self._metrics[mode]
        if self._nll_weight:
            nll = -(logps[:n] * nll_mask).sum(dim=1) / nll_mask.sum(dim=1)
            loss = loss + self._nll_weight * nll.mean()
            metrics["nll"].append(self.accelerator.gather(nll.detach()).mean())
        # TRL's sums of these numbers, whatever its options make of a token
        given = SimpleNamespace(log_probs=logps.detach() * preference_mask)
        sums = torch.stack(self.compute_ref_log_probs(lambda **_: given, inputs))
        ratios = sums - torch.stack([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        margins = self.accelerator.gather(ratios[0] - ratios[1])
        metrics["rewards/accuracies"][-1] = accuracy(margins)
        if mode == "train" and self.state.global_step == 0 and self._own_reference:
            self._check_reference(inputs, sums, ratios)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Our numbers stay on the device until here: fetching one waits for the device."""
        for metrics in self._metrics.values():
            for name in metrics.keys() & {"nll", "rewards/accuracies"}:
                metrics[name] = [float(number) for number in metrics[name]]
        super().log(logs, start_time)

    def _check_reference(self, inputs: Batch, sums: torch.Tensor, ratios: torch.Tensor) -> None:
        """Before the first update: see the class. All processes see the same numbers.

        The reference's numbers were computed in batches of other shapes, which bf16 shows: there
        the tolerance grows with the square root of the tokens, and the 1e-2 are for this batch
        computed again.

        Args:
            inputs: the batch, with the reference's log-probabilities.
            sums: the policy's log-probabilities, (2, n): chosen and rejected.
            ratios: `sums` minus the reference's.
        """
        worst = self._worst(self.beta * ratios)
        if in_float32(self.model, self.args):
            # float32 has steps of 1e-4 at a sum of 1000 nats, which is more where beta is 1
            rounding = 4 * torch.finfo(torch.float32).eps * sums.abs()
            wrong = self._worst(self.beta * (ratios.abs() - rounding).clamp(min=0)) > 1e-4
        elif not self._known:
            wrong = worst > 1e-2
        else:
            tokens = inputs["completion_mask"].sum(dim=1).view(2, -1).clamp(min=1)
            again = torch.stack(self.compute_ref_log_probs(self.model, inputs))
            wrong = self._worst(self.beta * (sums - again)) > 1e-2
            wrong = wrong or self._worst(ratios / tokens.sqrt()) > tolerance(self.model, self.args)
        if wrong:
            raise StageFailed(
                "The reference is not the model that came in: before the first update all rewards "
                f"must be 0, and one is {worst:.3g}. Nothing was trained. Delete runs/.cache and "
                "run again. If another reference is meant, name it with `reference:`; if not, make "
                "the stage's model again (`align run RECIPE --again STAGE`)."
            )

    def _worst(self, differences: torch.Tensor) -> float:
        return float(self.accelerator.gather(differences.abs().flatten()).max())


class ScoreTrainer(Ordered, RewardTrainer):  # type: ignore[misc]
    """`trl.RewardTrainer`, whose accuracy counts a tie as one half."""

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss: -log sigmoid(chosen - rejected - margin), averaged over pairs."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        chosen, rejected = outputs.logits.detach().squeeze(-1).chunk(2)
        margins = self.accelerator.gather(chosen - rejected)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["accuracy"][-1] = accuracy(margins).item()
        return (loss, outputs) if return_outputs else loss
