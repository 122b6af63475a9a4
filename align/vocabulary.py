"""Tokenizers for models that are made from nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import Field

from align import models
from align.errors import StageFailed
from align.settings import Settings


class Tokenizer(Settings):
    """A byte-level BPE, trained on the data of the stage that has it; digits are tokens each."""

    vocab_size: int = Field(4096, gt=0)
    """With the special tokens and the 256 bytes; fewer where the text has no more to merge."""

    chat_template: str = "chatml"
    """A jinja file or the name of a template of ours; its `<|markers|>` become special tokens."""

    special_tokens: list[str] = []

    def train(self, texts: Iterable[str]) -> Any:
        """The tokenizer, with its template. It begins texts with `<s>`; documents end in `</s>`.

        Raises:
            StageFailed: the vocabulary is too small for its bytes and special tokens.
        """
        from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
        from tokenizers.models import BPE
        from tokenizers.trainers import BpeTrainer
        from transformers import PreTrainedTokenizerFast

        markers = re.findall(r"<\|\w+\|>", models.template(self.chat_template))
        special = dict.fromkeys(["<pad>", "<s>", "</s>", *markers, *self.special_tokens])
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if self.vocab_size < len(special) + len(alphabet):
            raise StageFailed(
                f"tokenizer.vocab_size {self.vocab_size} is too small: {len(alphabet)} bytes and "
                f"{len(special)} special tokens are {len(alphabet) + len(special)}."
            )
        fast = Tokenizer(BPE())
        fast.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        fast.decoder = decoders.ByteLevel()
        fast.train_from_iterator(
            texts,
            BpeTrainer(
                vocab_size=self.vocab_size,
                special_tokens=list(special),
                initial_alphabet=alphabet,
                show_progress=False,
            ),
        )
        fast.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", fast.token_to_id("<s>"))]
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=fast, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
        )
        models.use_template(tokenizer, self.chat_template)
        return tokenizer
