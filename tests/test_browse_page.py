"""The page of `align view`: who may see it, and how it is used in Chromium."""

import dataclasses
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import cookie, get, items, make, plan, rated, reply, server, user, whole, write
from chrome import Page, chrome, needs_chromium

from align.artifacts import Conversations
from align.cli import main
from align.data import Source
from align.recipe import Plan
from align.reporting.browse import PAGE
from align.reporting.server import STATIC, Server
from align.settings import Stage

__all__ = ["plan", "server"]


# -- who may see it ------------------------------------------------------------------------------


def test_only_who_has_the_link_sees_the_page(server: Server) -> None:
    for path in ("/", "/view.js", "/api/chain", "/?token=guess", "/?token=%ff"):
        status, text, headers = get(server, path)
        assert status == 403 and "Open the link" in text and not headers["Set-Cookie"], path
    name = server.cookie
    for wrong in (f"{name}=guess", f"{name}=", "align-1=x", "=;=;", f"{name}=\xff"):
        assert get(server, "/api/chain", Cookie=wrong)[0] == 403
    mine = cookie(server)
    status, text, headers = get(server, "/api/chain", Cookie=mine)
    assert status == 200 and json.loads(text)["recipe"] == "chain"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")


def test_a_site_whose_name_means_this_machine_is_refused(server: Server) -> None:
    mine = cookie(server)
    for host in ("evil.example", f"evil.example:{server.server_port}", "", "[", "127.0.0.1.evil"):
        assert get(server, "/api/chain", Cookie=mine, Host=host)[0] == 403, host
    for host in ("localhost", "127.0.0.1:9000"):  # as through ssh -L 9000:…
        assert get(server, "/api/chain", Cookie=mine, Host=host)[0] == 200, host


def test_a_link_that_other_users_saw_is_good_no_more(server: Server) -> None:
    path = "/?" + server.once().partition("?")[2]
    assert [get(server, path)[0] for _ in range(2)] == [302, 403]
    assert cookie(server)


def test_nothing_else_is_served_and_nothing_can_be_changed(server: Server, plan: Plan) -> None:
    make(plan, "rated", [rated("a", (1.0, 1.0))])
    mine = cookie(server)
    for path in ("/etc/passwd", "/../server.py", "/static/view.js", "/api/", "//[", "/view.js/"):
        assert get(server, path, Cookie=mine)[0] == 404, path
    for method in ("POST", "PUT", "DELETE", "HEAD"):
        assert get(server, "/api/chain", method, Cookie=mine)[0] == 501
    for query in ("stage=../sft", "stage=rated&task=../..", "stage=evaluate", "stage=sft", ""):
        text = get(server, f"/api/rows?{query}", Cookie=mine)[1]
        assert "task" in query or "problem" in json.loads(text), query
    strange = "stage=rated&sort=1;DROP&filter={0}&start=-1&id=%00&subset='&metric=\"&ours=x"
    while "waiting" in (found := json.loads(get(server, f"/api/rows?{strange}", Cookie=mine)[1])):
        continue
    taken = {**dict.fromkeys(("filter", "sort", "subset", "ours", "theirs", "metric"), "")}
    assert (found["total"], found["taken"]) == (1, {"task": "", **taken})
    assert json.loads(get(server, "/api/row?stage=rated&n=x", Cookie=mine)[1])["problem"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_its_link_and_ends_with_ctrl_c(number: int, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hi"}\n')
    (tmp_path / "stage.py").write_text(
        "from align.artifacts import Text\nfrom align.settings import Stage\n\n"
        "class Words(Stage):\n    def run(self, out) -> Text: ...\n"
    )
    (tmp_path / "r.yaml").write_text("stages: {words: {use: ./stage.py}}\n")
    command = [sys.executable, "-m", "align.cli", "view", "r.yaml", "--no-browser"]
    command = ["bash", "-c", 'trap "" INT; exec "$@"', "-", *command]  # as a script's `&` does
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert re.fullmatch(r"r: http://127\.0\.0\.1:\d+/\?token=\S{32}\n", line), line
        assert process.stdout.readline().startswith("Only this machine and who has this link can")
        process.send_signal(number)
        try:
            assert process.communicate(timeout=30) == ("\n", "")
        finally:
            process.kill()
    assert process.returncode == 0


def test_a_port_that_is_taken_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["view", "quickstart", "--no-browser", "--port", port]) == 2
    assert f"--port {port}: This port cannot be had" in capsys.readouterr().err


def test_what_cannot_be_shown_is_said_and_the_server_goes_on(
    server: Server, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    row = rated("a", (1.0, 1.0))
    del row["completions"][0]["text"]
    make(plan, "rated", [row])
    found = whole(lambda: server.browser.rows({"stage": "rated"}))
    mine = cookie(server)
    query = f"/api/row?stage=rated&n={found['rows'][0]['n']}"
    status, text, _ = get(server, query, Cookie=mine)
    assert status == 500 and text.startswith("This cannot be shown (KeyError: 'text')")
    assert "Traceback" in capsys.readouterr().err
    assert get(server, "/api/chain", Cookie=mine)[0] == 200


# -- the page ------------------------------------------------------------------------------------


HOSTILE = (
    "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>\u202e\x1b["
)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chrome(tmp_path_factory.mktemp("chrome")) as page:
        yield page


@pytest.fixture
def page(tab: Page, server: Server, plan: Plan) -> Iterator[Page]:
    """The page of a recipe that ran, opened by its link."""
    rows = [rated(f"p{i}", (1.0, 9.0), (2.0 + i, 1.0)) for i in range(PAGE + 3)]
    rows[1]["completions"][1]["text"] = HOSTILE
    make(plan, "rated", rows)
    long = "word " * 30 + "x" * 300
    pair = {
        "id": "p1",
        "prompt": user(long),
        "chosen": reply("It is red."),
        "rejected": reply("It was red"),
    }
    make(plan, "pairs", [{**pair, "chosen_score": 2.0, "rejected_score": 1.0}])
    make(
        plan,
        "best",
        [{"id": "p1/1", "prompt_id": "p1", "messages": [*user(HOSTILE), *reply(long)]}],
    )
    items(plan, "sft", "world", {"a": 1.0, HOSTILE: 0.0, "c": 1.0}, answer=HOSTILE)
    items(
        plan, "dpo", "world", {"a": 1.0, HOSTILE: 1.0, "c": 0.0}, texts=[long], finishes=["length"]
    )
    more = {"options": [-1.5, -0.5], "choices": ["An oak", "A fir"], "answer": 1}
    items(plan, "dpo", "choice", {"a": 1.0}, texts=[], finishes=[], **more)
    sides = {"chosen_text": reply("It is red."), "rejected_text": "It was red"}
    items(plan, "dpo", "judge", {"a": 1.0}, texts=[], finishes=[], **sides)
    several = {"chosen_text": ["One", "Two"], "rejected_text": ["Three"]}
    items(plan, "dpo", "judges", {"a": 1.0}, texts=[], finishes=[], **several)
    tab.errors.clear()
    tab.look(1400, 900)
    tab.goto(server.link())
    settled(tab)
    yield tab
    tab.call("Page.navigate", url="about:blank")  # it must not ask a server that has ended


def settled(page: Page) -> None:
    page.wait("document.querySelector('#row h2, .problem') !== null")


def to(page: Page, choice: str, condition: str) -> None:
    page.run(f"location.hash = {choice!r}")
    page.wait(condition)


def text(page: Page, selector: str) -> str:
    return str(page.run(f"document.querySelector({selector!r}).innerText"))


@needs_chromium
def test_keys_go_through_rows_and_the_address_holds_the_place(page: Page) -> None:
    to(page, "stage=rated", "document.querySelector('#row h2')?.innerText === 'p0'")
    page.press("j")
    page.wait("document.querySelector('#row h2').innerText === 'p1'")
    assert "id=p1" in page.run("location.hash")
    page.press("j", "k", "k")
    page.wait("document.querySelector('#row h2').innerText === 'p0'")
    page.press("n")
    page.wait(f"document.querySelector('#row h2').innerText === 'p{PAGE}'")
    page.press("k")
    page.wait(f"document.querySelector('#row h2').innerText === 'p{PAGE - 1}'")
    page.press("/")
    page.call("Input.insertText", text="answer 0 to p12")
    page.press("Enter")
    page.wait("document.querySelector('#row h2').innerText === 'p12'")
    assert page.run("location.hash") == "#stage=rated&search=answer+0+to+p12&id=p12"
    page.goto(page.run("location.href"))
    settled(page)
    assert text(page, "#row h2") == "p12" and text(page, "#count") == "1 row"
    page.press("f")
    assert page.run("document.activeElement.id") == "pick-filter"
    page.press("Escape", "g")
    assert page.run("document.activeElement.getAttribute('aria-current')") == "true"
    page.press("?")
    assert page.run("document.getElementById('help').open")
    assert page.errors == []


@needs_chromium
def test_what_models_said_never_becomes_markup(page: Page) -> None:
    to(page, "stage=rated&id=p1", "document.querySelector('#row h2')?.innerText === 'p1'")
    shown = text(page, ".said .text")
    assert "<img src=x onerror=" in shown and "U+202e" in shown and r"\x1b" in shown
    to(page, "stage=best", "document.querySelector('#row h2')?.innerText === 'p1/1'")
    assert "<script>" in text(page, ".turn .text") and "<script>" in text(page, ".title")
    to(
        page,
        "stage=evaluate&task=world&filter=flipped",
        "document.querySelectorAll('.model').length === 2",
    )
    assert "<script>" in text(page, "#row h2") and "<script>" in text(page, ".right .text")
    assert page.run("document.querySelectorAll('img, main script').length") == 0
    assert "owned" not in page.run("document.title")
    assert page.errors == []


@needs_chromium
def test_pairs_mark_the_words_that_differ_and_items_their_verdicts(page: Page) -> None:
    to(page, "stage=pairs", "document.querySelector('.sides') !== null")
    marked = "[...document.querySelectorAll('{} mark')].map((one) => one.innerText)"
    assert page.run(marked.format(".chosen")) == ["is", "."]
    assert page.run(marked.format(".rejected")) == ["was"]
    to(page, "stage=evaluate&task=world&filter=lost&ours=dpo-1&theirs=sft-1",
       "document.querySelector('#row h2')?.innerText === 'c'")  # fmt: skip
    assert text(page, "#count") == "1 row"
    verdicts = "[...document.querySelectorAll('#rows .mark')].map((one) => one.className)"
    assert page.run(verdicts) == ["mark bad", "mark good"]
    verdicts = verdicts.replace("#rows .mark", ".model h3 + .marks .mark")
    assert page.run(verdicts) == ["mark bad", "mark good"]
    assert "cut" in text(page, ".model")
    to(page, "stage=evaluate&task=choice", "document.querySelector('.options') !== null")
    assert text(page, ".options li:last-child").split() == [
        "A", "fir", "-0.500", "most", "likely", "right",
    ]  # fmt: skip
    assert text(page, ".right .text") == "A fir"
    to(page, "stage=evaluate&task=judge", "document.querySelector('.sides') !== null")
    assert page.run(marked.format(".chosen")) == ["is", "."]
    assert page.run(marked.format(".rejected")) == ["was"]
    to(page, "stage=evaluate&task=judges", "document.querySelectorAll('.chosen .one').length === 2")
    assert text(page, ".rejected .one") == "Three"


class Learns(Stage):
    """A stage that trains, as far as its data is looked at."""

    data: list[Conversations | Source] = []


@needs_chromium
def test_tokens_are_marked_by_what_becomes_of_them(page: Page, plan: Plan) -> None:
    plan.stages["sft"] = dataclasses.replace(plan.stages["sft"], stage=Learns())
    tokens = [["<s>", [1], "", True], [f"Hi {HOSTILE}\n", [7], "", False]]
    tokens += [["Ho", [8, 9], "learnt", False], ["</s>", [2], "learnt", True]]
    read = {"tokens": 5, "learnt": 3, "parts": [["", tokens]], "note": "", "left_out": False}
    row = {"id": "t1", "messages": [*user("Hi"), *reply("Ho")]}
    long = {**read, "note": "It is left out: 9 tokens, and 5 fit.", "left_out": True}
    rows = [{**row, "read": read}, {**row, "id": "t2", "read": long}]
    write(plan.store / ".cache" / "view" / "sft-1" / "read.jsonl", rows)
    page.press("r")
    to(page, "stage=sft", "document.querySelector('#row h2')?.innerText === 't1'")
    assert text(page, ".legend").splitlines()[:2] == ["5 tokens", "learnt 3 (60 %)"]
    learnt = "[...document.querySelectorAll('.tokens .learnt')].map((one) => one.innerText)"
    assert page.run(learnt) == ["Ho", "</s>"]
    assert page.run("document.querySelector('.tokens .learnt').title") == "8 9: in the loss"
    assert page.run("document.querySelector('.tokens .token').title") == (
        "1, special: read, not learnt"
    )
    assert "<img src=x onerror=" in text(page, ".tokens") and "⏎" in text(page, ".tokens")
    page.press("t")
    page.wait("document.querySelector('.tokens.bounds') !== null")
    assert "Hi·<img·src=x" in text(page, ".tokens") and "tokens=1" in page.run("location.hash")
    to(page, "stage=sft&filter=left+out", "document.querySelector('#row h2')?.innerText === 't2'")
    assert text(page, ".note") == "It is left out: 9 tokens, and 5 fit."
    assert text(page, "#count").startswith("1 row") and page.errors == []


@needs_chromium
def test_a_removed_row_shows_why_and_leads_to_the_one_that_stays(page: Page, plan: Plan) -> None:
    said = [["user", f"Tell me: Janet's ducks lay 16 eggs. {HOSTILE}"], ["assistant", "18"]]
    grams = {"task": "gsm8k", "item": "0", "gram": "janet s ducks lay 16"}
    removed = [
        {"id": "x", "reason": "contamination", "facts": grams, "said": said},
        {
            "id": "y",
            "reason": "near",
            "facts": {"repeats": "p1/1", "similarity": 0.9},
            "said": said,
        },
    ]
    write(plan.stages["best"].artifact.path / "removed.jsonl", removed)
    page.press("r")
    to(page, "stage=best&task=removed", "document.querySelector('#row h2')?.innerText === 'x'")
    assert text(page, "#row mark") == "Janet's ducks lay 16"
    assert text(page, "#row .facts dd:last-child") == "janet s ducks lay 16"
    options = "[...document.querySelectorAll('#pick-subset option')].map((one) => one.innerText)"
    assert page.run(options) == ["all", "contamination (1)", "near (1)"]
    page.press("j")
    page.wait("document.querySelector('#row h2')?.innerText === 'y'")
    page.run("document.querySelector('#row a.link').click()")
    page.wait("document.querySelector('#row h2')?.innerText === 'p1/1'")
    assert text(page, "#where") == "best: kept" and page.errors == []


HOLD = """
const real = fetch, held = [];
window.fetch = (path) => path.includes("search=")
  ? new Promise((done) => held.push(() => done(real(path)))) : real(path);
window.release = async () => {
  await Promise.all(held.splice(0).map((go) => go()));
  await new Promise((done) => setTimeout(done, 200));
};
undefined
"""
"""Answers to searches come when they are released."""


def released(page: Page) -> None:
    page.call("Runtime.evaluate", expression="release()", awaitPromise=True)


@needs_chromium
def test_a_search_that_is_left_leaves_nothing_behind(page: Page) -> None:
    to(page, "stage=rated", "document.querySelector('#row h2')?.innerText === 'p0'")
    count = text(page, "#count")
    page.run(HOLD)
    page.run("document.querySelector('#search').value = 'nothing'; narrow({search: 'nothing'})")
    page.wait("document.body.classList.contains('loading')")
    page.run("history.back()")
    page.wait("!document.body.classList.contains('loading')")
    released(page)
    assert text(page, "#count") == count == f"{PAGE + 3} rows"
    assert page.run("document.querySelector('#search').value") == ""
    assert text(page, "#row h2") == "p0" and page.errors == []


@needs_chromium
def test_how_far_the_work_for_a_row_was_gives_way_to_how_many_there_are(page: Page) -> None:
    to(page, "stage=rated", "document.querySelector('#row h2')?.innerText === 'p0'")
    page.run("""
        const answers = fetch, waiting = JSON.stringify({ waiting: "reading", done: 1, total: 2 });
        let asked = 0;
        window.fetch = (path) => path.includes("row?") && !asked++
          ? Promise.resolve(new Response(waiting)) : answers(path);
        undefined
    """)
    page.press("j")
    page.wait("document.querySelector('#count').innerText === 'reading 50 % …'")
    page.wait("document.querySelector('#row h2').innerText === 'p1'")
    assert text(page, "#count") == f"{PAGE + 3} rows"


@needs_chromium
def test_the_next_page_during_a_search_is_one_that_there_is(page: Page) -> None:
    to(page, "stage=rated", "document.querySelector('#row h2')?.innerText === 'p0'")
    page.run(HOLD)
    page.run("narrow({search: 'answer 0 to p1'})")
    page.press("n")
    page.wait("location.hash.includes('start=50')")
    released(page)
    page.wait("document.querySelectorAll('#rows li').length === 11")
    assert text(page, "#count") == "11 rows"
    assert not page.run("document.body.classList.contains('loading')") and page.errors == []


@needs_chromium
def test_the_address_says_what_is_shown(page: Page) -> None:
    to(page, "stage=evaluate&task=nosuch&sort=disagreement&filter=flipped",
       "!location.hash.includes('nosuch')")  # fmt: skip
    assert text(page, "#where") == "evaluate: choice"
    assert "sort" not in page.run("location.hash") and "flipped" in page.run("location.hash")
    to(page, "stage=best&sort=turns", "document.querySelector('#rows .values') !== null")
    page.wait("document.querySelector('#rows .values').innerText === '2 turns'")
    assert "1 row" in text(page, "#chain").splitlines()


@needs_chromium
@pytest.mark.parametrize("width", [1400, 800, 400])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    page.look(width, 800, dark=width == 800)
    for stage in ("rated", "pairs", "best", "evaluate"):
        to(page, f"stage={stage}", f"document.title.startsWith('{stage} ')")
        settled(page)
        page.run("document.body.classList.add('reading')")
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), stage
        assert page.run("document.getElementById('row').scrollWidth <= innerWidth"), stage
    assert page.errors == []


def test_the_page_takes_nothing_from_elsewhere_and_sets_no_markup() -> None:
    for file in STATIC.iterdir():
        found = file.read_text(encoding="utf-8")
        assert not re.search(
            r"https?:|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", found
        )
        assert not re.search(r"<[^>]+\son\w+=|<style|style=", found), file


def test_numbers_that_are_none_reach_the_page(server: Server, plan: Plan) -> None:
    row = rated("a", (float("nan"), float("-inf")), (1.0, 2.0))
    make(plan, "rated", [row])
    browser = server.browser
    found = whole(lambda: browser.rows({"stage": "rated", "sort": "best"}))
    query = f"/api/row?stage=rated&n={found['rows'][0]['n']}"
    told = json.loads(get(server, query, Cookie=cookie(server))[1], parse_constant=pytest.fail)
    assert {a["index"]: a["scores"] for a in told["completions"]}[0] == {
        "model": "NaN", "length": "-Infinity",
    }  # fmt: skip
