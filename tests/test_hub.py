"""Names of the hub in a recipe: which commit they mean, and why there is none."""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import OTHER, Hub
from huggingface_hub import snapshot_download

from align import adhoc, recipe, runner
from align.errors import RecipeError
from align.hub import Kind, Silent, cached, resolve, snapshot
from align.store import link, write_json

LOGIN = "Log in (`hf auth login`), or set HF_TOKEN."


def refusal(name: str, kind: Kind = "model", revision: str | None = None) -> str:
    with pytest.raises(LookupError) as refused:
        resolve(kind, name, revision)
    return str(refused.value)


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_name_means_the_commit_its_branch_or_tag_is_at(hub: Hub, kind: Kind) -> None:
    repository = hub.create(f"{kind}s/me/it")
    first = repository.at("main")
    repository.refs["refs/tags/v1"] = first
    second = hub.commit(repository, "refs/heads/main", "more", {"a": hub.keep(b"a")})
    assert resolve(kind, "me/it", None) == resolve(kind, "me/it", "main") == second.sha
    assert resolve(kind, "me/it", "v1") == resolve(kind, "me/it", first.sha) == first.sha
    snapshot_download("me/it", repo_type=kind)
    third = hub.commit(repository, "refs/heads/main", "newer", {"a": hub.keep(b"b")})
    assert resolve(kind, "me/it", None) == third.sha, "the cache knows the last download's"


def test_an_adapter_is_fetched_as_its_files_say_what_it_is_put_on(hub: Hub) -> None:
    names = "adapter_config.json", "adapter_model.safetensors"
    for name, more in (("adapter", ()), ("model", ("config.json",))):
        repository = hub.create(f"models/me/{name}")
        files = {path: hub.keep(b"{}") for path in (*names, *more)}
        hub.commit(repository, "refs/heads/main", "files", files)
        assert resolve("model", f"me/{name}", None) == repository.at("main").sha
    folder = snapshot("model", "me/adapter", hub.repositories["models/me/adapter"].at("main").sha)
    assert folder is not None and all((folder / name).is_file() for name in names)
    assert not hub.asked("models/me/model/resolve")


def test_what_is_not_there_or_is_for_others_is_a_sentence(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create("models/other/hidden", private=True)
    nothing = f"the hub has none of that name, or only for others. Look at the name. {LOGIN}"
    assert refusal("me/nothing") == refusal("other/hidden") == nothing
    assert refusal("other/hidden", "dataset") == nothing
    monkeypatch.delenv("HF_TOKEN")
    assert refusal("me/nothing") == refusal("other/hidden") == nothing


def test_a_revision_that_is_not_there_is_a_sentence(hub: Hub) -> None:
    hub.create("datasets/me/rows")
    assert refusal("me/rows", "dataset", "v9") == (
        "the hub has no such revision of it. Its page shows its branches and tags."
    )


def test_a_name_that_cannot_be_is_a_sentence(hub: Hub) -> None:
    assert refusal("${DATA}/tiny").startswith("the name cannot be one of the hub: Repo id must")
    assert not hub.log


def test_a_gated_model_is_a_sentence_until_access_is_given(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.create("models/me/gated", private=False)
    repository.gated = True
    assert resolve("model", "me/gated", None) == repository.at("main").sha
    gated = f"it is gated. Ask its owners for access, on its page. {LOGIN}"
    monkeypatch.setenv("HF_TOKEN", OTHER)
    assert refusal("me/gated") == gated
    monkeypatch.delenv("HF_TOKEN")
    assert refusal("me/gated") == gated


def test_a_wrong_token_and_a_hub_in_trouble_are_sentences(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create("models/me/it")
    hub.faults = {0: "503", 1: "drop"}
    assert refusal("me/it") == "the hub is busy (status 503). Try again later."
    assert refusal("me/it").startswith(f"{hub.url} cannot be reached: Server disconnected")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "n0pe" * 9)
    assert refusal("me/it") == f"the hub refuses the token of this machine. {LOGIN}"


def test_staying_offline_asks_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LookupError, match=r"says to stay offline \(HF_HUB_OFFLINE\)"):
        resolve("model", "me/it", None)
    assert not hub.log


def test_what_a_run_was_told_is_what_a_plan_goes_by(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("models/me/it", "datasets/me/rows"):
        files = {"config.json": hub.keep(b"{}")}
        hub.commit(hub.create(name), "refs/heads/main", "files", files)
    Path("mine.yaml").write_text("base: me/it\nstages: {sft: {model: base, data: me/rows}}\n")

    def key(strict: bool = False) -> str:
        return recipe.read("mine.yaml", strict=strict).stages["sft"].artifact.key

    before = key()
    told = key(strict=True)
    assert before != told == key()
    assert len(recipe.read("mine.yaml").not_checked) == 2
    for kind in ("model", "dataset"):
        repository = f"me/{'it' if kind == 'model' else 'rows'}"
        snapshot_download(repository, repo_type=kind, revision=resolve(kind, repository, None))
    assert recipe.read("mine.yaml").not_checked == []
    repository = hub.repositories["models/me/it"]
    hub.commit(repository, "refs/heads/main", "more", {"a": hub.keep(b"a")})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert key(strict=True) == told
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert key() == told != key(strict=True) == key()


def test_a_recipe_keeps_the_commits_that_it_began_with_and_says_where_the_hub_is_now(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    repository = hub.create("models/me/it")
    files = {"config.json": hub.keep(b"{}")}
    first = hub.commit(repository, "refs/heads/main", "files", files).sha
    snapshot_download("me/it")
    text = "base: me/it\nstages: {sft: {model: base, data: d.jsonl}}\n"
    Path("mine.yaml").write_text(text)
    Path("d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    begun = recipe.read("mine.yaml", strict=True)
    assert begun.told == [f"me/it is commit {first}, as the hub says."]
    runner.remember(begun)
    second = hub.commit(repository, "refs/heads/main", "more", {"a": hub.keep(b"a")}).sha
    kept = recipe.read("mine.yaml", strict=True)
    assert kept.stages["sft"].artifact.key == begun.stages["sft"].artifact.key
    (sentence,) = kept.told
    assert sentence.startswith(f"me/it is commit {second} on the hub by now.")
    assert f"began with {first} and keeps it" in sentence
    assert f"`revision: {second}`" in sentence
    Path("mine.yaml").write_text(text.replace("me/it", f"{{path: me/it, revision: {second}}}"))
    new = recipe.read("mine.yaml", strict=True)
    assert new.told == []
    assert new.stages["sft"].artifact.key != kept.stages["sft"].artifact.key


@pytest.fixture
def begun(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[str, str]]:
    """A recipe on `me/it` ran once, and the hub moved on: the commits then and now."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("base: me/it\nstages: {sft: {model: base, data: d.jsonl}}\n")
    Path("d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')

    def begin() -> tuple[str, str]:
        repository = hub.create("models/me/it")
        files = {"config.json": hub.keep(b"{}")}
        first = hub.commit(repository, "refs/heads/main", "files", files).sha
        plan = recipe.read("mine.yaml", strict=True)
        runner.remember(plan)
        stage = plan.stages["sft"]
        stage.artifact.path.mkdir(parents=True)
        write_json(stage.artifact.path / "stage.json", stage.record)
        link(Path("runs/mine/sft"), stage.artifact.path)
        more = {"a": hub.keep(b"a")}
        return first, hub.commit(repository, "refs/heads/main", "more", more).sha

    return begin


Begun = Callable[[], tuple[str, str]]


def test_a_commit_that_a_recipe_keeps_is_asked_for_where_it_is_not_here(
    hub: Hub, begun: Begun
) -> None:
    first, _ = begun()
    assert recipe.read("mine.yaml", strict=True).stages
    assert hub.asked(f"models/me/it/revision/{first}"), "an adapter is fetched with it"
    repository = hub.repositories["models/me/it"]
    repository.commits[:] = [one for one in repository.commits if one.sha != first]
    with pytest.raises(RecipeError, match=rf"commit {first}.* no such revision of it"):
        recipe.read("mine.yaml", strict=True)


def test_a_model_of_which_the_card_alone_was_read_is_not_in_the_cache(
    hub: Hub, begun: Begun
) -> None:
    first, _ = begun()
    folder = Path(snapshot_download("me/it", revision=first))
    assert cached("model", "me/it", first) == first
    (folder / "config.json").unlink()
    assert cached("model", "me/it", first) is None and snapshot("model", "me/it", first) == folder


def test_without_the_file_a_recipe_keeps_the_commits_of_its_stages(begun: Begun) -> None:
    first, _ = begun()
    Path("runs/mine/hub.json").unlink()
    shutil.rmtree("runs/.hub")
    assert recipe.read("mine.yaml").stages["sft"].artifact.path.is_dir()
    plan = recipe.read("mine.yaml", strict=True)
    assert plan.stages["sft"].artifact.path.is_dir()
    assert f"began with {first} and keeps it" in plan.told[0]


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1}'])
def test_a_damaged_file_of_commits_is_a_sentence(text: str, begun: Begun) -> None:
    begun()
    Path("runs/mine/hub.json").write_text(text)
    with pytest.raises(RecipeError, match=r"runs/mine/hub.json.*Delete it alone"):
        recipe.read("mine.yaml")


def test_a_recipe_that_align_eval_wrote_keeps_no_commits(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("runs/eval-it/recipe.yaml")
    file.parent.mkdir(parents=True)
    file.write_text("base: me/it\nstages: {sft: {model: base, data: d.jsonl}}\n")
    Path("d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    repository = hub.create("models/me/it")
    for content in (b"{}", b"{ }"):
        files = {"config.json": hub.keep(content)}
        now = hub.commit(repository, "refs/heads/main", "files", files).sha
        plan = recipe.read(file, strict=True)
        runner.remember(plan)
        assert plan.told == [f"me/it is commit {now}, as the hub says."]
    assert not (file.parent / "hub.json").exists()


def test_a_hub_that_does_not_answer_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(kind: Kind, name: str, *_: object) -> str:
        asked.append(name)
        raise Silent("the hub cannot be reached: timed out.")

    asked: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("align.hub.resolve", silent)
    Path("mine.yaml").write_text("base: me/it\nstages: {sft: {model: base, data: me/rows}}\n")
    with pytest.raises(RecipeError) as refused:
        recipe.read("mine.yaml", strict=True)
    assert len(asked) == 1 and str(refused.value).count("cannot be reached: timed out") == 2


def test_what_takes_too_long_is_told_from_what_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        with pytest.raises(Silent, match="cannot be reached"):
            resolve("model", "me/it", None, 0.2)


def test_a_model_is_what_the_hub_has_now_and_of_the_cache_where_it_cannot_be_asked(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    repository = hub.create("models/me/it")
    files = {"config.json": hub.keep(b"{}")}
    old = hub.commit(repository, "refs/heads/main", "files", files).sha
    snapshot_download("me/it")
    hub.faults = {len(hub.log): "503"}

    def written() -> str:
        path = adhoc.write(["me/it", "eval/mmlu.py"], [], None, Path("runs"), ["align", "eval"])
        return path.read_text()

    assert old in written()
    said = capsys.readouterr().err
    assert f"me/it is commit {old}, as last known here: the hub is busy (status 503)." in said
    now = hub.commit(repository, "refs/heads/main", "more", {"a": hub.keep(b"a")}).sha
    assert f'"revision": "{now}"' in written()
    assert capsys.readouterr().err == f"me/it is commit {now}, as the hub says.\n"
