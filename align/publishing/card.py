"""The model card: README.md, written from what the store knows of a model.

It has facts only: what is not known is said to be unknown. Settings and texts are without this
machine's paths (plain.py), and what is pushed is searched for secrets after it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from align.artifacts import Model, RewardModel, read_json
from align.publishing import evidence, lineage, provenance, usage
from align.publishing.folder import CONFIG
from align.publishing.licences import Terms
from align.publishing.lineage import Lineage, Step
from align.publishing.markdown import code, plain
from align.publishing.places import TAG, Place
from align.reporting.wording import counted, interval, main_metrics, than, verdict

Entry = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What a card is about."""

    model: Model
    name: str
    repo: str
    base: Place | None
    """What an adapter is for, or full weights were made from; None: from nothing, or not known."""

    folder: Path
    """What is pushed."""

    lineage: Lineage
    measured: Entry
    """See results.measured."""

    merged: bool = False
    """Whether an adapter was folded in for this push."""

    terms: Terms = field(default_factory=dict)
    """Its licence, as a card's head has it."""

    notes: tuple[str, ...] = ()
    """Sentences for the first lines: a gate that failed, a base that not everyone may load."""

    @property
    def adapter(self) -> Entry | None:
        """The configuration of the adapter that is pushed, if it is one."""
        file = self.folder / CONFIG
        return read_json(file) if file.is_file() else None

    @property
    def reward(self) -> bool:
        """Whether it scores dialogs instead of writing."""
        return isinstance(self.model, RewardModel)


def write(about: Subject) -> Path:
    """Write `README.md` into the folder that is pushed; its path."""
    file = about.folder / "README.md"
    body = "\n\n".join(part for part in _parts(about) if part)
    card = ModelCard(f"---\n{metadata(about).to_yaml()}\n---\n\n{body}\n")
    file.write_text(str(card), encoding="utf-8")
    return file


def metadata(about: Subject) -> ModelCardData:
    """The card's head, which the hub reads."""
    adapter = about.adapter is not None
    hub = dict.fromkeys(one.name for one in lineage.data(about.lineage) if one.hub and not one.only)
    return ModelCardData(
        base_model=about.base.repo if about.base else None,
        base_model_relation=("adapter" if adapter else "finetune") if about.base else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-classification" if about.reward else "text-generation",
        datasets=[*hub] or None,
        **about.terms,
        tags=list(
            dict.fromkeys(
                [
                    TAG,
                    *(["lora"] if adapter else []),
                    *(["reward-model"] if about.reward else []),
                    *(step.kind.replace("_", "-") for step in about.lineage.line),
                ]
            )
        ),
    )


def _parts(about: Subject) -> Iterator[str]:
    yield f"# {about.repo.partition('/')[2]}"
    yield "\n>\n".join(f"> **{plain(note)}**" for note in about.notes)
    yield f"{_what(about)} {_chain(about)} {_result(about)}"
    yield f"## Use\n\n{usage.section(about)}"
    yield f"## Evaluation\n\n{evidence.section(about)}"
    yield f"## How it was made\n\n{provenance.section(about)}"
    yield f"## Licence\n\n{_license(about)}"
    yield f"## Limits\n\n{evidence.limits(about)}"


def _what(about: Subject) -> str:
    config = about.adapter
    what = "A reward model, which scores whole dialogs" if about.reward else "A language model"
    if config is not None:
        what += f", as a LoRA adapter of rank {config['r']}"
    if about.base is None:
        return f"{what}, with all its weights, {_origin(about)}."
    at = f" at commit {code(about.base.commit)}" if about.base.commit else ""
    whole = "" if config is not None else ", with all its weights, made from"
    return f"{what}{whole}{' for' if config is not None else ''} {code(about.base.repo)}{at}."


def _origin(about: Subject) -> str:
    """Where weights come from that no model of the hub was made into."""
    if not about.lineage.line:
        return "whose origin is not known"
    first = about.lineage.line[0].record["settings"]
    outside = first.get("model") or first.get("models")
    return "made from a model that is not on the hub" if outside else "made from nothing"


def _chain(about: Subject) -> str:
    """The steps of the model in words, with what each learnt from."""
    line = about.lineage.line
    if not line:
        return "How it was made is not known here: no stage of the store made it."
    steps = " → ".join(_step(step) for step in line)
    if start := about.lineage.adapter:
        at = f" at commit {code(start.commit)}" if start.commit else ""
        steps = f"the adapter {code(start.repo)}{at} → {steps}"
    folded = " → folded into the base" if about.merged else ""
    recipe = code(line[-1].record["recipe"])
    return f"It was made with align-recipes, recipe {recipe}: {steps}{folded}."


def _step(step: Step) -> str:
    asked = step.record["settings"]
    sources = asked.get("data") or asked.get("text") or []
    sources = sources if isinstance(sources, list) else [sources]
    on = ", ".join(_source(source) for source in sources)
    kind = "" if step.kind == step.name else f" ({step.kind})"
    if models := asked.get("models"):
        names = [_model(model) for model in models]
        kind = f" ({step.kind} of {', '.join(names[:-1])} and {names[-1]})"
    return f"{code(step.name)}{kind}{f' on {on}' if on else ''}"


def _model(model: Entry) -> str:
    if "artifact" in model:
        return code(model["name"] or model["artifact"])
    return code(next(lineage.names(model["model"]["path"])))


def _source(source: Entry) -> str:
    inner = source.get("stage") or source
    if "artifact" in inner:
        return f"what {code(inner.get('name') or inner['artifact'])} made"
    return code(", ".join(lineage.names(source.get("data_files") or source["path"])))


def _result(about: Subject) -> str:
    """The first task, and how the model stands beside the one before it."""
    report = about.measured
    metrics = main_metrics(report)
    mine = [one for one in report["scores"] if one["model"] == about.name]
    first = next((one for one in mine if one["metric"] == metrics[one["task"]]), None)
    if first is None:
        return "Nothing was measured."
    at = (first["task"], first["metric"])
    asked = f"{plain(first['metric'])}, {counted(first['n'], 'item')}"
    said = f"On {plain(first['task'])} ({asked}) it reaches {interval(first, 'mean')}"
    beside = [one for one in report["comparisons"] if (one["task"], one["metric"]) == at]
    for one in beside:
        role = f", {evidence.ROLES[one['role']]}" if one["role"] in evidence.ROLES else ""
        said += f"; it is {verdict(one)} {than(one)} {code(one['against'])}{role}: "
        said += interval(one, "delta", sign="+")
    return f"{said}."


def _license(about: Subject) -> str:
    if about.terms:
        said = about.terms["license"]
        words = ", ".join(map(code, [said] if isinstance(said, str) else said))
        more = [about.terms[key] for key in ("license_name", "license_link") if key in about.terms]
        words += f" ({', '.join(map(plain, more))})" if more else ""
        return f"{words}. Data sets have licences of their own."
    origin = f"its base, {code(about.base.repo)}," if about.base else "what it was made from"
    return f"No licence is stated for this model. Look at those of {origin} and of its data."
