"""Rows that mean the same: which stays, in any order, with real embeddings."""

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align import models
from align.artifacts import Model
from align.curation import clusters, embedding
from align.curation.semantic import Semantic
from align.out import Out

DATA = os.environ.get("ALIGN_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="ALIGN_DATA is not set")


def at_angles(*degrees: float) -> Any:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def gone(vectors: Any, similarity: float) -> dict[int, int]:
    found = clusters.repeats(vectors, np.arange(len(vectors)), similarity)
    return {place: like for place, like, _ in found}


def document(text: str, name: str, **columns: Any) -> dict[str, Any]:
    return {"id": name, "text": text, **columns}


def sifted(rule: Semantic, rows: list[dict[str, Any]], path: Path) -> list[Any]:
    path.mkdir(exist_ok=True)
    return list(rule.sift(lambda: iter(rows), Out(path, path)))


def kept(found: list[Any]) -> set[str]:
    return {row["id"] for row, why in found if why is None}


def model(path: Path) -> Model:
    return Model(path, spec={"base": {"path": str(path)}, "quantization": None, "adapter": False})


# -- what is like what ---------------------------------------------------------------------------


def test_of_a_chain_both_ends_stay() -> None:
    """20 degrees apart, and cos 20° > 0.9 > cos 40°: what went keeps nobody out."""
    assert gone(at_angles(0, 20, 40, 60, 80), 0.9) == {1: 0, 3: 2}


def test_of_several_that_are_kept_the_nearest_is_named() -> None:
    assert gone(at_angles(0, 50, 30), 0.9) == {2: 1}


def test_a_copy_goes_even_where_only_copies_may() -> None:
    draw = np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32)
    vectors = draw / np.linalg.norm(draw, axis=1, keepdims=True)
    assert gone(np.concatenate([vectors, vectors]), 1.0) == {50 + i: i for i in range(50)}


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_blocks_say_what_one_by_one_says(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(clusters, "BLOCK", block)
    draw = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    vectors = draw / np.linalg.norm(draw, axis=1, keepdims=True)
    stay: list[int] = []
    expected = {}
    for i, vector in enumerate(vectors):
        cosines = vectors[stay] @ vector
        if len(stay) and cosines.max() >= 0.8:
            expected[i] = stay[int(cosines.argmax())]
        else:
            stay.append(i)
    assert gone(vectors, 0.8) == expected
    assert 0 < len(expected) < 200


def test_clusters_are_those_that_lie_apart_and_hold_every_row_once() -> None:
    draw = np.random.default_rng(0)
    centres = np.eye(3, 16)
    raw = np.repeat(centres, 40, axis=0) + 0.05 * draw.normal(size=(120, 16))
    vectors = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    order = np.array([0, 50, 100, *[i for i in range(120) if i not in (0, 50, 100)]])
    found = [sorted(part.tolist()) for part in clusters.clusters(vectors, order, 3)]
    assert found == [[*range(40)], [*range(40, 80)], [*range(80, 120)]]
    many = [place for part in clusters.clusters(vectors, order, 17) for place in part.tolist()]
    assert sorted(many) == [*range(120)]


# -- which stays ---------------------------------------------------------------------------------


def test_of_copies_the_best_by_quality_times_difficulty_stays(
    tiny_model: Path, tmp_path: Path
) -> None:
    worth = [(0.9, 1.0), (0.5, 3.0), (1.0, 1.2)]
    rows = [
        document("the same text", str(i), quality=quality, difficulty=difficulty)
        for i, (quality, difficulty) in enumerate(worth)
    ]
    found = sifted(Semantic(model=model(tiny_model)), rows, tmp_path)
    assert kept(found) == {"1"}
    assert found[0][1].reason == "semantic"
    assert found[0][1].facts == {"like": "1", "similarity": 1.0}


def test_columns_of_its_own_that_hold_no_number_say_nothing_of_worth(
    tiny_model: Path, tmp_path: Path
) -> None:
    held = ["easy", None, float("nan"), 3]
    rows = [document("the same text", str(i), difficulty=one) for i, one in enumerate(held)]
    assert kept(sifted(Semantic(model=model(tiny_model)), rows, tmp_path)) == {"3"}


def test_no_rows_are_no_error(tiny_model: Path, tmp_path: Path) -> None:
    assert sifted(Semantic(model=model(tiny_model)), [], tmp_path) == []


@pytest.mark.parametrize("count", [1, 4])
def test_the_order_of_the_rows_changes_nothing(
    tiny_model: Path, tmp_path: Path, count: int
) -> None:
    draw = random.Random(0)
    rows = [
        document("".join(draw.choices("ab c", k=draw.randrange(1, 40))), str(i)) for i in range(80)
    ]
    rule = Semantic(model=model(tiny_model), clusters=count, similarity=0.99)
    first = sifted(rule, rows, tmp_path / "1")
    draw.shuffle(rows)
    second = sifted(rule, rows, tmp_path / "2")
    assert kept(first) == kept(second)
    assert 10 < len(kept(first)) < 75
    whys = {row["id"]: why.facts for row, why in first if why}
    assert whys == {row["id"]: why.facts for row, why in second if why}


def test_of_equal_rows_the_names_of_their_files_do_not_say_which_stays(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = [document("the same text", str(i), column=i) for i in range(8)]
    rule = Semantic(model=model(tiny_model))
    one = [{**row, "source": "one.jsonl"} for row in rows]
    two = [{**row, "source": f"{i % 2}.jsonl"} for i, row in enumerate(rows)]
    first = kept(sifted(rule, one, tmp_path / "1"))
    assert len(first) == 1 and kept(sifted(rule, two, tmp_path / "2")) == first


def test_rows_with_other_tools_do_not_mean_the_same_and_calls_are_read(
    tiny_model: Path, tmp_path: Path
) -> None:
    answer = {"role": "assistant", "content": "b", "reasoning_content": "a"}
    answer["tool_calls"] = [{"name": "f", "arguments": {"x": 1}}]
    row = {"messages": [{"role": "user", "content": "q"}, answer]}
    assert embedding.text(row) == 'q\n\na\n\nb\n\nf {"x": 1}'
    rows = [{**row, "id": str(i), "tools": [{"name": "fg"[i % 2]}]} for i in range(6)]
    assert len(kept(sifted(Semantic(model=model(tiny_model)), rows, tmp_path))) == 2


def test_of_preferences_the_rejected_answer_does_not_count() -> None:
    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    prompt = said("user", "q")
    pair = {"prompt": prompt, "chosen": said("assistant", "a"), "rejected": said("assistant", "b")}
    ranking = {"prompt": prompt, "ranked": [said("assistant", "a"), said("assistant", "b")]}
    assert embedding.text(pair) == embedding.text(ranking) == "q\n\na"
    assert embedding.text({"prompt": prompt}) == "q"


def test_a_row_has_the_same_vector_alone_and_in_any_batch(tiny_model: Path, tmp_path: Path) -> None:
    texts = ["a" * n for n in (1, 300, 40, 7, 0)]
    rows = [document(text, str(i)) for i, text in enumerate(texts)]
    ties = np.arange(5, dtype=np.uint64)
    out = Out(tmp_path, tmp_path)
    together = np.array(embedding.vectors(model(tiny_model), lambda: iter(rows), ties, out))
    for i, row in enumerate(rows):
        alone = embedding.vectors(model(tiny_model), lambda row=row: iter([row]), ties[:1], out)
        assert alone[0] == pytest.approx(together[i], abs=1e-5)
    assert np.linalg.norm(together[:4], axis=1) == pytest.approx(np.ones(4), abs=1e-6)


def test_an_encoder_embeds_too(tmp_path: Path, tiny_model: Path) -> None:
    import torch
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        pad_token_id=1,
    )
    RobertaModel(config).save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "encoder")
    rows = [document(text, str(i)) for i, text in enumerate(["so", "other" * 40, "so"])]
    found = sifted(Semantic(model=model(tmp_path / "encoder"), similarity=0.999), rows, tmp_path)
    assert len(kept(found)) == 2 and "1" in kept(found)


def test_an_adapter_changes_what_a_row_means(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(tiny_model)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(network, lora).save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "adapter")
    rows = [document("so it is", "a")]
    ties, out = np.zeros(1, np.uint64), Out(tmp_path, tmp_path)
    base = np.array(embedding.vectors(model(tiny_model), lambda: iter(rows), ties, out))
    adapted = embedding.vectors(model(tmp_path / "adapter"), lambda: iter(rows), ties, out)
    whole = models.load(model(tmp_path / "adapter"))
    ids = AutoTokenizer.from_pretrained(tiny_model)("so it is", return_tensors="pt")
    states = whole(**ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
    states = (states / states.norm()).detach().numpy()
    assert adapted[0] == pytest.approx(states, abs=1e-5)
    assert adapted[0] != pytest.approx(base[0], abs=1e-3)


@needs_data
def test_a_real_model_finds_stories_told_again_with_other_names(tmp_path: Path) -> None:
    """Two stories of those have a cosine of 0.94 in the middle and 0.985 at most, to this model."""
    assert DATA is not None
    lines = (Path(DATA) / "tinystories" / "valid.jsonl").read_text(encoding="utf-8").splitlines()
    stories = [json.loads(line)["text"] for line in lines[:20]]
    rows = [document(story, str(i)) for i, story in enumerate(stories)]
    swaps = [("Lily", "Anna"), ("Tim", "Sam"), (" big ", " large "), ("mom", "mum")]
    for i, story in enumerate(stories[:10]):
        for old, new in swaps:
            story = story.replace(old, new)
        rows.append(document(story, f"{i} again"))
    rule = Semantic(model=model(Path(DATA) / "stories260k"), similarity=0.99)
    found = sifted(rule, rows, tmp_path)
    pairs = {frozenset((row["id"], why.facts["like"])) for row, why in found if why}
    told = {i: frozenset((str(i), f"{i} again")) for i in range(10)}
    assert pairs == {pair for i, pair in told.items() if i != 2}  # there 17 words differ
