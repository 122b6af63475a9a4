"""What is found before a folder leaves this machine, and what is no secret at all."""

import base64
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from align import credentials
from align.publishing import secrets

TOKENS = {
    "a Hugging Face token": "hf_" + "aBcDeFgHiJ" * 3 + "kLmN",
    "an OpenAI or Anthropic key": "sk-ant-api03-" + "aB3_dE-f" * 6,
    "a GitHub token": "ghp_" + "A1b2C3" * 6,
    "a GitLab token": "glpat-" + "x9Y8" * 5,
    "an AWS key": "AKIA" + "Q7RW" * 4,
    "a Google key": "AIza" + "Sy_A1" * 7,
    "a Google token": "ya29." + "a0Af_H6S" * 3,
    "a SendGrid key": "SG." + "a1B2c3D4e5F" * 2 + "." + "a1B2c3D" * 6 + "x",
    "a Slack token": "xoxb-2138471-" + "aBc9" * 5,
    "a Stripe key": "sk_live_" + "a1B2c3" * 4,
    "a Weights & Biases key": "wandb_v1_" + "a1B2c3" * 5,
    "a package index's token": "npm_" + "a1B2c3" * 6,
    "a signed token (JWT)": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVPmB92K27u",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a signed address": "https://s3.example/model?X-Amz-Date=1&X-Amz-Signature=" + "0a1b" * 16,
    "a password": "https://me:hunter2@example.com/repo.git",
}
PLAIN = {"a private key", "a signed address", "a password"}


@pytest.fixture(autouse=True)
def no_secrets_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's own environment plays no part."""
    for name in credentials.values().values():
        monkeypatch.delenv(name)


@pytest.mark.parametrize("what", sorted({name for name, *_ in credentials.FORMS} | PLAIN))
def test_every_kind_of_key_is_found_and_never_repeated(tmp_path: Path, what: str) -> None:
    (tmp_path / "card.md").write_text(f"# A card\n\nUse `{TOKENS[what]}` to load it.\n")
    assert secrets.find(tmp_path) == [
        f"card.md:3: This looks like {what}. Remove it, and revoke it if it was shared."
    ]


def test_a_key_is_found_in_json_in_yaml_and_in_the_header_of_weights(tmp_path: Path) -> None:
    token = TOKENS["a Hugging Face token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auth": token}, indent=1))
    (tmp_path / "recipe.yaml").write_text(f"a: 1\nb: {token}\n")
    weights = {"a": np.zeros(2, dtype=np.float32)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"by": token})
    places = [sentence.partition(": ")[0] for sentence in secrets.find(tmp_path)]
    assert places == ["model.safetensors:1", "recipe.yaml:2", "tokenizer_config.json:2"]


@pytest.mark.parametrize("before", range(3))
def test_the_environments_secrets_are_found_as_they_are_and_in_base64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary/of+letters")
    monkeypatch.setenv("KEYBOARD_LAYOUT", "qwertz-de")
    monkeypatch.setenv("MAX_TOKENS", "16777216")
    monkeypatch.setenv("KEY_FILE", "/etc/key.pem")
    packed = base64.b64encode(b"x" * before + b"canary/of+letters" + b"yz").decode()
    (tmp_path / "a.txt").write_text("canary/of+letters qwertz-de /etc/key.pem 16777216")
    (tmp_path / "b.txt").write_text(f"Authorization: Basic {packed}")
    remedy = "Remove it, and revoke it if it was shared."
    assert secrets.find(tmp_path) == [
        f"{name}:1: This is the value of WANDB_API_KEY, a secret of this machine. {remedy}"
        for name in ("a.txt", "b.txt")
    ]


def test_pickles_are_found_by_name_and_by_content(tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(2)}, tmp_path / "weights")  # a zip with a pickle in it
    (tmp_path / "arguments").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "training_args.bin").write_bytes(b"anything")
    found = [sentence.partition(":")[0] for sentence in secrets.find(tmp_path)]
    assert found == ["arguments", "training_args.bin", "weights"]
    assert all("pickled objects" in sentence for sentence in secrets.find(tmp_path))


def test_weights_whose_length_looks_like_a_pickle_are_none(tmp_path: Path) -> None:
    path, note = tmp_path / "model.safetensors", ""
    while not path.exists() or path.read_bytes()[:2] != b"\x80\x02":
        note += "x"
        save_file({"a": np.zeros(1, dtype=np.float32)}, path, metadata={"note": note})
    assert secrets.find(tmp_path) == []


def test_damaged_weights_and_links_out_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "id_rsa").write_text("mine")
    (folder / "key").symlink_to(tmp_path / "id_rsa")
    (folder / "card.md").write_text("fine")
    (folder / "README.md").symlink_to(folder / "card.md")
    (folder / "model.safetensors").write_bytes(pickle.dumps([1]))
    assert secrets.find(folder) == [
        "key: This is a link out of the folder. Put the file itself there.",
        "model.safetensors: This is no safetensors file, or a damaged one. Make it anew.",
    ]


def test_paths_of_this_machine_are_found_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    lines = [
        '"base": "/home/someone/models/llama"',
        "file:///home/someone/x",
        f"{tmp_path}/runs/sft-1",
        "https://example.com/home/someone/x",
        "/home/other/x and /usr/share and ../runs/sft-1",
    ]
    (tmp_path / "config.txt").write_text("\n".join(lines))
    found = secrets.find(tmp_path, places=[tmp_path])
    assert [sentence.partition(": ")[0] for sentence in found] == [
        f"config.txt:{line}" for line in (1, 2, 3)
    ]
    assert found[0].endswith("This is a path of this machine. Name what others can reach.")


def test_paths_of_other_machines_are_found_where_programs_write_them(tmp_path: Path) -> None:
    base = {"text_config": {"_name_or_path": "/mnt/nfs/joe.smith/base"}}
    (tmp_path / "config.json").write_text(json.dumps(base))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"at": "C:\\Users\\joe\\base"}))
    (tmp_path / "params.json").write_text(json.dumps({"see": "https://example.com/data/x /data"}))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"/home/a": 1}))
    weights = {"a": np.zeros(2, dtype=np.float32)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"from": "/data/joe/base"})
    what = "This looks like a path of a machine. Name what others can reach."
    names = ("adapter_config.json", "config.json", "model.safetensors")
    assert secrets.find(tmp_path) == [f"{name}:1: {what}" for name in names]


def test_names_hashes_and_words_with_hyphens_are_no_secrets(tmp_path: Path) -> None:
    innocent = {
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>"],
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "commit": "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        "key": "sft-0f1e2d3c4b5a69788796a5b4c3d2e1f0",
        "text": "task-oriented risk-averse-decision-making-2 disk-based sk-learn hf_home HF_TOKEN=",
        "address": "https://huggingface.co/org/model?x=1 me@example.com",
    }
    (tmp_path / "config.json").write_text(json.dumps(innocent, indent=1))
    assert secrets.find(tmp_path) == []


def test_real_tokenizers_and_templates_hold_no_secrets() -> None:
    if not (data := os.environ.get("ALIGN_DATA")):
        pytest.skip("ALIGN_DATA names no folder with real tokenizers")
    for name in ("tokenizers/smollm2", "stories260k", "chat_templates"):
        assert secrets.find(Path(data, name)) == []


def test_what_is_said_aloud_holds_no_token_and_no_signature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "correct horse battery")
    said = "PUT https://s3.example/lfs/ab?X-Amz-Signature=5ecret with correct horse battery, "
    body = "\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----"
    for token in (*TOKENS.values(), TOKENS["a private key"] + body):
        shown = credentials.hidden(said + token)
        assert shown.startswith("PUT https://s3.example/lfs/ab with ***, ")
        assert token not in shown and "5ecret" not in shown and "b3Blbn" not in shown
