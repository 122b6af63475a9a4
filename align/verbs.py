"""The verbs of `align`: one function each; its docstring is its help."""

from __future__ import annotations

import gc
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from align import shelf, store
from align.arguments import add_store, parser_of, recipe_parser
from align.errors import Problem, RecipeError
from align.estimate import costs
from align.options import nearest
from align.recipe import read


def plan(arguments: list[str]) -> int:
    """Check a recipe and show what it will do. Nothing runs.

    What every stage will take is an estimate: the most memory of each GPU, with bf16 and the
    longest rows; disk, checkpoints included; tokens ("~": by the size of files); time, where a
    stage of the same shape has run.

    examples:
      align plan quickstart
      align plan mine.yaml --set stages.dpo.trainer.beta=0.2
      align plan mine.yaml --memory 24GiB
    """
    parser = recipe_parser(plan)
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="of each GPU, as 24GiB (2**30 bytes) or 80GB (10**9): say what fits, and for what "
        "does not the smallest change that makes it fit",
    )
    asked = parser.parse_args(arguments)
    try:
        memory = None if asked.memory is None else costs.size(asked.memory)
    except ValueError:
        message = f'"{asked.memory}" is no size. Write it as 24GiB or 80GB.'
        raise RecipeError([Problem("--memory", "", message)]) from None
    from align.reporting import overview

    planned = read(asked.recipe, asked.set, asked.store)
    for line in overview.show(planned, asked.recipe, memory):
        print(line)
    return 0


def run(arguments: list[str]) -> int:
    """Run what is missing of a recipe; after a kill it goes on where it was.

    STAGE is a stage's name, else every stage of that kind: they and what they need are made.

    examples:
      align run mine
      align run mine dpo
      align run mine --set stages.dpo.trainer.beta=0.2
      align run mine --again dpo
    """
    parser = recipe_parser(run)
    parser.add_argument(
        "stages", metavar="STAGE", nargs="*", default=[], help="a stage's name, or a kind"
    )
    parser.add_argument(
        "--again",
        metavar="STAGE",
        action="append",
        default=[],
        help="make this stage once more, and what follows from it",
    )
    asked = parser.parse_intermixed_args(arguments)
    planned = read(asked.recipe, asked.set, asked.store, asked.again, strict=True)
    from align import runner

    gc.enable()
    return runner.run(planned, asked.stages)


def eval(arguments: list[str]) -> int:
    """Ask models the questions of tasks, without a recipe.

    MODEL is a stage's directory, the path of a model or an adapter, or a hub id; TASK the path of a
    task, which ends in .py. Of several models each is compared with the one before, on the same
    items. What was said is kept: another task or model asks only what is new. The recipe that is
    run is written to runs/eval-<models>-<tasks>-<hash>/recipe.yaml, the report beside it; align
    view, report and status take that folder. The hash is of models, tasks and settings: the same
    call writes to the same folder, another to its own.

    examples:
      align eval runs/mine/dpo eval/gsm8k.py
      align eval runs/mine/sft runs/mine/dpo eval/gsm8k.py eval/ifeval.py
      align eval HuggingFaceTB/SmolLM2-1.7B eval/mmlu.py --set mmlu.chat=false
      align eval runs/mine/dpo eval/gsm8k.py --set gsm8k.data=my/test.jsonl --set rows=64
    """
    parser = parser_of(eval)
    parser.usage = "align eval MODEL [MODEL ...] TASK [TASK ...] [options]"
    parser.add_argument("words", metavar="MODEL, TASK", nargs="+", help="models, then tasks")
    parser.add_argument(
        "--set",
        metavar="TASK.KEY=VALUE",
        action="append",
        default=[],
        help="a setting of a task, or (KEY=VALUE) of the evaluation; VALUE is YAML",
    )
    parser.add_argument(
        "--chat-template", metavar="NAME", help="for models without one: a jinja file or chatml …"
    )
    add_store(parser)
    asked = parser.parse_intermixed_args(arguments)
    from align import adhoc

    command = ["align", "eval", *arguments]
    path = adhoc.write(asked.words, asked.set, asked.chat_template, asked.store, command)
    planned = read(path, (), asked.store, strict=True)
    from align import runner

    for sentence in adhoc.unlike(planned):
        print(sentence)
    gc.enable()
    code = runner.run(planned)
    where = [] if asked.store == store.RUNS else ["--store", str(asked.store)]
    print("Look at it with:", shlex.join(["align", "view", str(path.parent), *where]))
    return code


def status(arguments: list[str]) -> int:
    """Show what is done, running and half done.

    examples:
      align status mine
    """
    asked = recipe_parser(status).parse_args(arguments)
    planned = read(asked.recipe, asked.set, asked.store)
    from align import runner

    return runner.status(planned)


def report(arguments: list[str]) -> int:
    """Write a recipe's report anew from what is made: report.json and report.html.

    examples:
      align report mine
    """
    asked = recipe_parser(report).parse_args(arguments)
    planned = read(asked.recipe, asked.set, asked.store)
    from align.reporting import report as page

    print(page.write(planned))
    return 0


def view(arguments: list[str]) -> int:
    """Look through what stages have made: candidates, scores, pairs, evaluations.

    Without --text, on a page in your browser, which only this machine and who has the link can
    see: every prompt with its answers and which were kept, pairs with the words that differ, what a
    stage learns to say, and every item of an evaluation with what each model answered; filters
    (flipped, disagree, longest ...), search, keys (?), and links that hold all that is chosen.

    With --text, on the terminal. Of `sample` and `score` every prompt with its answers, best first;
    of `reject` what was kept; of `pair` what was chosen and rejected; of `curate` what was kept and
    what was removed, with the reason; of a stage that trains the rows it is trained on, as its
    model reads them, `>` before what it learns to say.

    Both also while a stage runs: what is finished.

    examples:
      align view mine
      align view mine --port 9000 --no-browser     # there: ssh -L 9000:127.0.0.1:9000 MACHINE
      align view mine --text score
      align view mine --text score -n 50 | less -S
      align view mine --text pairs --search "sorry"
      align view mine --text score --id 0821a6df594fa736
    """
    parser = recipe_parser(view)
    parser.add_argument(
        "--port",
        type=int,
        help="of the page (default: 8420, or any where that is taken)",
    )
    parser.add_argument("--no-browser", action="store_true", help="print the link, open nothing")
    parser.add_argument("--text", metavar="STAGE", help="print this stage's rows instead")
    parser.add_argument("-n", metavar="ROWS", type=int, default=5, help="how many (default: 5)")
    parser.add_argument("--id", metavar="ID", help="the row of this id, its texts whole")
    parser.add_argument("--search", metavar="WORDS", help="rows that say this, whatever the case")
    parser.add_argument(
        "--tokens", action="store_true", help="show where the tokens begin that a model reads"
    )
    asked = parser.parse_args(arguments)
    planned = read(asked.recipe, asked.set, asked.store)
    if asked.text is None:
        from align.reporting import server

        gc.enable()
        server.serve(planned, asked.port, not asked.no_browser, partial(print, flush=True))
        return 0
    from align.reporting import view as page

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    looked = (asked.n, asked.id, asked.search, asked.tokens, colour)
    for line in page.show(planned, asked.text, *looked):
        print(line)
    return 0


def chat(arguments: list[str]) -> int:
    """Talk to a model in the terminal.

    MODEL is a stage's directory, a recipe that was run (its last model), the path of a model or an
    adapter, or a hub id. It answers with its own chat template and ends where a `sample` stage
    would. /help there says what can be done besides asking.

    With --prompt, or with a text on stdin, it answers this and ends; stdout has the answer alone.

    examples:
      align chat runs/mine/dpo
      align chat runs/mine/dpo --compare runs/mine/sft --temperature 0
      align chat runs/mine/dpo --prompt "Name three rivers."
      align chat runs/mine/dpo < question.txt > answer.txt
    """
    parser = parser_of(chat)
    parser.add_argument("model", metavar="MODEL", help="what answers")
    parser.add_argument("--compare", metavar="MODEL", help="another model answers, too")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and end")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before all else")
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=float,
        help="0: the likeliest token at every place (default: as its generation_config.json says, "
        "else 0.7)",
    )
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=int,
        default=1024,
        help="the most tokens of an answer (default: 1024)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of the draws (default: 0)"
    )
    parser.add_argument(
        "--chat-template", metavar="NAME", help="instead of its own: a jinja file or chatml …"
    )
    add_store(parser)
    asked = parser.parse_args(arguments)
    text = asked.prompt
    if text is None and not sys.stdin.isatty():
        text = _stdin()
    if text is not None and not text.strip():
        raise RecipeError([Problem("align chat", "", "Nothing is asked. Write a question.")])
    from align import talking, terminal

    if not talking.is_text(text or ""):
        where = "stdin" if asked.prompt is None else "--prompt"
        raise RecipeError([Problem(where, "", talking.NO_TEXT)])
    words = [asked.model, *filter(None, [asked.compare])]
    how = talking.Asked(asked.temperature, asked.max_new_tokens, asked.seed, asked.system)
    talkers = talking.load(words, asked.store, asked.chat_template, how)
    gc.enable()
    shown = partial(print, end="", flush=True)
    if text is None:
        terminal.converse(talkers, shown)
    else:
        terminal.once(talkers, text, shown, partial(shown, file=sys.stderr))
    return 0


def push(arguments: list[str]) -> int:
    """Push a model to the hub, with a card that says how it came to be.

    MODEL is a stage's directory, the path of a model or an adapter, or a recipe: then the last
    model that it made. The adapter is pushed, on a base that everyone can load, or all weights;
    with it tokenizer, chat template, and a card from the store: base, stages with their settings,
    data with hashes, scores with intervals, costs, limits. Everything is checked before the first
    byte leaves; a model that failed a gate is refused. Each push has a tag. The token is that of
    `hf auth login`, or HF_TOKEN.

    examples:
      align push runs/mine/dpo me/my-adapter --dry-run
      align push runs/mine/dpo me/my-adapter
      align push mine me/my-adapter --with-base me/my-base
      align push runs/mine/dpo me/my-model --merged --public --license apache-2.0
      align push runs/mine/dpo team/shared --pull-request
    """
    parser = parser_of(push)
    parser.add_argument("model", metavar="MODEL", help="a stage's directory, a path, or a recipe")
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME; made where there is none")
    for flag, text in (
        ("--merged", "fold the adapter into its base, and push all weights"),
        ("--pull-request", "propose it to a repository of others"),
        ("--public", "a repository that is made is private unless this is said"),
        ("--dry-run", "make the folder and the card, and send nothing"),
        ("--even-failed", "push a model that failed a gate; its card says so first"),
    ):
        parser.add_argument(flag, action="store_true", help=text)
    for flag, name, text in (
        ("--with-base", "REPO", "push the base, which is on this machine alone, here before it"),
        ("--branch", "NAME", "instead of main"),
        ("--tag", "NAME", "of this push (default: recipe, stage, and a hash of the card)"),
        ("--license", "ID", "of the model, as the hub has it (default: its base's)"),
    ):
        parser.add_argument(flag, metavar=name, help=text)
    add_store(parser)
    asked = vars(parser.parse_args(arguments))
    from align.publishing import checks
    from align.publishing import push as publishing

    word, repo, runs = (asked.pop(key) for key in ("model", "repo", "store"))
    publishing.push(word, repo, checks.Wish(**asked), runs, partial(print, flush=True))
    return 0


def new(arguments: list[str]) -> int:
    """Copy a shipped recipe into a folder of your own, to start from.

    examples:
      align new mine
      align new mine --from tiny-real
    """
    parser = parser_of(new)
    parser.add_argument("name", metavar="NAME", help="the folder to make")
    parser.add_argument(
        "--from",
        dest="origin",
        metavar="RECIPE",
        default="quickstart",
        help=f"a shipped recipe: {', '.join(shelf.recipes())} (default: quickstart)",
    )
    asked = parser.parse_args(arguments)
    target = Path(asked.name)
    if asked.origin not in shelf.recipes():
        hint = nearest(asked.origin, shelf.recipes())
        message = f"There is no such shipped recipe.{hint} Shipped are: {listed(shelf.recipes())}."
        message += " One of your own is copied as a folder: cp -r."
        raise RecipeError([Problem(f"--from {asked.origin}", "", message)])
    if target.exists():
        raise RecipeError([Problem(asked.name, "", "This exists already. Choose another name.")])
    origin = shelf.SHELF / "recipes" / asked.origin
    shutil.copytree(origin, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for file in (*target.rglob("*.yaml"), *target.rglob("*.md")):
        text = file.read_text(encoding="utf-8")
        text = text.replace(f"recipes/{asked.origin}/", f"{target.as_posix()}/")
        text = text.replace("$schema=../recipe.schema.json", f"$schema={shelf.SCHEMA}")
        for verb in ("run", "plan"):
            text = text.replace(f"align {verb} {asked.origin}", f"align {verb} {asked.name}")
        text = text.replace(f"runs/{asked.origin}", f"runs/{target.name}")
        file.write_text(text, encoding="utf-8")
    more = sorted(file.name for file in target.glob("*.yaml") if file.name != "recipe.yaml")
    beside = f", with {listed(more)} beside it" if more else ""
    print(f"{target}/recipe.yaml is yours{beside}. Check it with: align plan {asked.name}")
    return 0


def clean(arguments: list[str]) -> int:
    """Show what no recipe here still needs, and remove it if told so.

    Needed is what was made last of each stage of each recipe, what it was made from, and what the
    recipes named here plan. Nothing is removed without --yes.

    examples:
      align clean
      align clean --yes
    """
    parser = parser_of(clean)
    parser.add_argument("recipes", metavar="RECIPE", nargs="*", help="keep what these need, too")
    parser.add_argument("--yes", action="store_true", help="remove what is shown")
    add_store(parser)
    asked = parser.parse_args(arguments)
    plans = [read(recipe, (), asked.store) for recipe in asked.recipes]
    from align import space

    for line in space.clean(asked.store, plans, asked.yes):
        print(line)
    return 0


def schema(arguments: list[str]) -> int:
    """Print the JSON schema of recipes, for editors, of what is installed here.

    examples:
      align schema > recipe.schema.json
    """
    parser_of(schema).parse_args(arguments)
    from align import schema as page

    print(json.dumps(page.schema(), indent=1, ensure_ascii=False))
    return 0


COMMANDS: tuple[Callable[[list[str]], int], ...] = (
    plan,
    run,
    eval,
    status,
    report,
    view,
    chat,
    push,
    new,
    clean,
    schema,
)


def _stdin() -> str:
    try:
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as error:
        raise RecipeError([Problem("stdin", "", f"This is no UTF-8 text: {error}.")]) from None


def listed(words: Sequence[str]) -> str:
    """Words in a sentence."""
    return ", ".join(words) or "none"


# -- help -----------------------------------------------------------------------------------------
