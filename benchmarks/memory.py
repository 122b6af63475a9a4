"""Peaks of training against the estimate (docs/estimate.md).

    python benchmarks/memory.py          anywhere: one step of a real shape, on tensors without
                                         memory, by the operators a GPU would run; bytes are counted
    python benchmarks/memory.py --gpu    where a GPU is: whole stages on random weights of that
                                         shape, `torch.cuda.max_memory_allocated`

Every case runs in a process of its own.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from align import launch, shapes
from align.estimate import steps, totals

SHAPES = {"1B": "meta-llama/Llama-3.2-1B", "8B": "meta-llama/Llama-3.1-8B"}
LORA = {"r": 16, "target_modules": "all-linear"}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"lora": LORA},
    "QLoRA": {"lora": LORA, "quantization": NF4},
}
CASES = [
    {"shape": shape, "kind": kind, "way": way, "rows": 1, "length": 2048, "checkpointing": kept}
    for shape, ways, both in (("1B", ("LoRA",), (True, False)), ("8B", WAYS, (True,)))
    for way in ways
    for kind in ("sft", "reward_model", "dpo")
    for kept in both
]
"""`rows` on the device: conversations, or pairs of answers."""


def step_of(case: dict[str, Any]) -> steps.Step:
    """The step of a case, as the estimate sees it."""
    shape = shapes.shape(shapes.table()[SHAPES[case["shape"]]])
    pairs = case["kind"] != "sft"
    return steps.Step(
        shape,
        sequences=case["rows"] * (1 + pairs),
        length=case["length"],
        head=case["kind"] == "reward_model",
        stored=4 if case["way"] == "full" else 2,
        checkpointing=case["checkpointing"],
        masked=pairs or case["rows"] > 1,
        **WAYS[case["way"]],
    )


# -- on tensors without memory -------------------------------------------------------------------


def counter() -> Any:
    """A mode that counts the bytes of living storages; `now` and `most`."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    class Living(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: dict[int, int] = {}
            self.now = self.most = 0

        def __torch_dispatch__(
            self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            import torch

            out = operator(*args, **(kwargs or {}))
            for found in tree_iter(out):
                if isinstance(found, torch.Tensor):
                    self.see(found.untyped_storage())
            return out

        def see(self, storage: Any) -> None:
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.drop, storage._cdata)

        def drop(self, name: int) -> None:
            self.now -= self.sizes.pop(name)

    return Living()


def attention(module: Any, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
    """What scaled_dot_product_attention runs on a GPU: flash, or memory-efficient with a mask."""
    import torch
    from transformers.integrations.sdpa_attention import repeat_kv

    q, k, v = (x.bfloat16() for x in (q, k, v))  # as autocast does
    scale, aten = options["scaling"], torch.ops.aten
    if not module.config.masked:
        out = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, False, scale=scale)[0]
        return out.transpose(1, 2).contiguous(), None
    k, v = (repeat_kv(x, module.num_key_value_groups) for x in (k, v))
    rows, heads, length, _ = q.shape
    bias = q.new_zeros(rows, 1, length, length).expand(rows, heads, length, length)
    op = aten._scaled_dot_product_efficient_attention
    out = op(q, k, v, bias, True, 0.0, False, scale=scale)[0]
    return out.transpose(1, 2).contiguous(), None


@contextlib.contextmanager
def gpu_operators() -> Iterator[None]:
    """Our attention under the name "gpu", and TRL's kernels in place of their stand-ins for CPUs.

    A module of tensors without memory cannot be moved, and need not be.
    """
    import torch
    import trl.kernels.chunked_logprob as fused
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, **kwargs: None

    ALL_ATTENTION_FUNCTIONS.register("gpu", attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register("gpu", lambda *args, **kwargs: None)
    triton = SimpleNamespace(cdiv=lambda a, b: -(-a // b))
    with contextlib.ExitStack() as patches:
        for place, name, value in (
            (fused, "_use_triton", lambda device: True),
            (fused, "_forward_kernel", Kernel()),
            (fused, "_backward_kernel", Kernel()),
            (fused, "_addmm_fp32", lambda *args: None),  # the GPU's needs no float32 copies
            (fused, "triton", triton),
            (torch.nn.Module, "to", lambda self, *args, **kwargs: self),
            (BaseTunerLayer, "_move_adapter_to_device_of_base_layer", lambda *args, **kwargs: None),
        ):
            patches.enter_context(mock.patch.object(place, name, value, create=True))
        yield


def count(case: dict[str, Any]) -> tuple[float, float]:
    """(counted, estimated) bytes of one step, beside the weights and the optimizer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch._subclasses import FakeTensorMode
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.trainer.utils import add_fused_lm_head

    step = step_of(case)
    given = shapes.table()[SHAPES[case["shape"]]]
    config = AutoConfig.for_model(**given, attn_implementation="gpu", num_labels=1, pad_token_id=0)
    config.masked = step.masked
    auto = AutoModelForSequenceClassification if step.head else AutoModelForCausalLM
    living = counter()
    with gpu_operators(), FakeTensorMode(allow_non_fake_inputs=True), living:
        short = torch.bfloat16 if step.stored == 2 else torch.float32
        model = auto.from_config(config, dtype=short)
        if not step.head:
            add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        if step.lora is not None:
            task = "SEQ_CLS" if step.head else "CAUSAL_LM"
            lora = LoraConfig(task_type=task, **step.lora)
            model = get_peft_model(model, lora, autocast_adapter_dtype=False)
            dtype = torch.bfloat16 if step.precision == 2 else torch.float32
            for module in model.modules():
                for name, weight in list(module._parameters.items()):
                    if weight is not None and weight.requires_grad:
                        new = torch.nn.Parameter(weight.detach().to(dtype))
                        module._parameters[name] = new
        model.train()
        if step.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            if step.lora is not None:
                model.enable_input_require_grads()
        ids = torch.ones(step.sequences, step.length, dtype=torch.long)
        before = living.now
        living.most = before
        with torch.autocast("cpu", torch.bfloat16):
            if step.head:
                loss = model(input_ids=ids, use_cache=False).logits.float().sum()
            else:
                loss = model(input_ids=ids, labels=ids, fused_lm_head=True).loss
        loss.backward()
    estimated = max(sum(parts.values()) for parts in steps.moments(step))
    # quantized weights are bfloat16 here, which bitsandbytes' kernels are not there to unpack
    return living.most - before, estimated - steps.unpacked(step)


# -- on a GPU ------------------------------------------------------------------------------------


def measure(case: dict[str, Any]) -> tuple[float, float]:
    """(measured, estimated) bytes of a whole stage on random weights, the reserve left out."""
    with tempfile.TemporaryDirectory() as folder:
        return run(case, Path(folder))


def run(case: dict[str, Any], folder: Path) -> tuple[float, float]:
    """The stage of a case on a new model, with all its files in a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from align import shelf
    from align.artifacts import Model
    from align.out import Out
    from align.settings import Stage

    config = AutoConfig.for_model(**shapes.table()[SHAPES[case["shape"]]])
    network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(folder / "base")
    del network
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    words = {word: i for i, word in enumerate([*special, *letters])}
    plain = Tokenizer(models.BPE(vocab=words, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>{% endif %}"
    )
    tokenizer.save_pretrained(folder / "base")
    asked = [{"role": "user", "content": "q" * 100}]
    texts = ["a" * (case["length"] - 104), "b" * (case["length"] - 105)]
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in texts)
    row: dict[str, Any] = {"prompt": asked, "chosen": chosen, "rejected": rejected}
    if case["kind"] == "sft":
        row = {"messages": [*asked, *chosen]}
    (folder / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4 * case["rows"])
    spec = {"base": {"path": str(folder / "base")}, "quantization": None, "adapter": False}
    given = {
        "model": Model(folder / "base", spec=spec),
        "data": [{"path": str(folder / "rows.jsonl")}],
        "batch_size": case["rows"],
        "trainer": {
            "per_device_train_batch_size": case["rows"],
            "max_steps": 3,
            "max_length": case["length"],
            "gradient_checkpointing": case["checkpointing"],
        },
        **WAYS[case["way"]],
        **({"holdout": 0, "gate": None} if case["kind"] == "reward_model" else {}),
    }
    stage = shelf.load(shelf.STAGES / f"{case['kind']}.py", Stage).model_validate(
        given, strict=False
    )
    for name in ("out", "cache"):
        (folder / name).mkdir()
    torch.cuda.reset_peak_memory_stats()
    stage.run(Out(folder / "out", folder / "cache"))
    parts = steps.peak(totals.step(stage, case["kind"]))
    return float(torch.cuda.max_memory_allocated()), sum(parts.values())


def main() -> None:
    """Print a table; `--case` is for the processes that this starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", action="store_true", help="measure on the GPU of this machine")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.gpu and not launch.devices():
        sys.exit("There is no GPU here. Leave --gpu out to count instead of measuring.")
    if asked.case is not None:
        print(json.dumps((measure if asked.gpu else count)(asked.case)), flush=True)
        os._exit(0)  # finalizers of tensors without memory may crash at the end
    print(f"| case | {'measured' if asked.gpu else 'counted'}, GiB | estimated, GiB | |")
    print("|---|---|---|---|")
    for case in CASES:
        command = [sys.executable, __file__, "--case", json.dumps(case)]
        command += ["--gpu"] if asked.gpu else []
        done = subprocess.run(command, capture_output=True, text=True)
        kept = "checkpointing" if case["checkpointing"] else "no checkpointing"
        name = f"{case['shape']} {case['kind']}, {case['way']}, {kept}"
        if done.returncode:
            print(f"| {name} | failed: {done.stderr.strip()[-200:]} | | |")
            continue
        real, ours = json.loads(done.stdout.splitlines()[-1])
        print(f"| {name} | {real / 2**30:.2f} | {ours / 2**30:.2f} | {ours / real - 1:+.1%} |")


if __name__ == "__main__":
    main()
