"""`align chat` on a terminal: what a person types and what is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from align.errors import StageFailed
from align.options import nearest
from align.talking import NO_TEXT, Talker, is_text
from align.visible import visible

Show = Callable[[str], None]
"""Writes a text as it is: with a line's end only where it has one."""


def once(talkers: Sequence[Talker], text: str, show: Show, note: Show) -> None:
    """One question: `show` gets what is answered and nothing else, `note` where it was cut."""
    for number, talker in enumerate(talkers):
        talker.ask(text)
        show(_head(talkers, number))
        for piece in talker.answer():
            show(visible(piece))
        show("\n")
        if talker.cut:
            note(f"{talker.cut}\n")


def converse(talkers: Sequence[Talker], show: Show) -> None:
    """Ask and answer until the person ends it. A line's first word may be one of COMMANDS."""
    import readline  # noqa: F401  # with it `input` knows what was typed before

    for talker in talkers:
        show(f"{talker.about()}\n")
    show("/help says what can be done besides asking.\n")
    commands = {f"/{command.__name__}": command for command in COMMANDS}
    while True:
        try:
            line = input("\n> ")
        except KeyboardInterrupt:
            show("\n/quit or Ctrl-D ends.\n")
            continue
        except UnicodeDecodeError:
            show(f"{NO_TEXT}\n")
            continue
        except EOFError:
            show("\n")
            return
        if not is_text(line):
            show(f"{NO_TEXT}\n")
            continue
        name, _, rest = line.strip().partition(" ")
        if name == f"/{quit.__name__}":
            return
        if name in commands:
            commands[name](talkers, rest.strip(), show)
        elif name.startswith("/") and name[1:].isalpha():  # and not a path
            show(f"There is no {visible(name)}.{nearest(name, commands)} See /help.\n")
        elif line.strip():
            for talker in talkers:
                talker.ask(line)
            _answers(talkers, show)


# -- commands ------------------------------------------------------------------------------------


def clear(talkers: Sequence[Talker], _: str, show: Show) -> None:
    """Begin anew."""
    for talker in talkers:
        talker.begin()
    show("(a new dialog)\n")


def system(talkers: Sequence[Talker], text: str, show: Show) -> None:
    """Begin anew; what follows is what the model is told before all else."""
    for talker in talkers:
        talker.begin(text)
    show("(a new dialog)\n")


def undo(talkers: Sequence[Talker], _: str, show: Show) -> None:
    """Take back the last question and its answer."""
    show(_left_out([talker.leave_out(-1) for talker in talkers]))


def forget(talkers: Sequence[Talker], _: str, show: Show) -> None:
    """Leave out the oldest question and its answer."""
    show(_left_out([talker.leave_out(0) for talker in talkers]))


def again(talkers: Sequence[Talker], _: str, show: Show) -> None:
    """Answer the last question once more, with another draw."""
    if all([talker.again() for talker in talkers]):
        _answers(talkers, show)
    else:
        show("(nothing was asked)\n")


def help(_: Sequence[Talker], __: str, show: Show) -> None:
    """Show this."""
    for command in COMMANDS:
        show(f"/{command.__name__:8} {command.__doc__}\n")


def quit(_: Sequence[Talker], __: str, show: Show) -> None:
    """End; Ctrl-D, too. Ctrl-C ends an answer."""


COMMANDS: tuple[Callable[[Sequence[Talker], str, Show], None], ...] = (
    clear,
    system,
    undo,
    forget,
    again,
    help,
    quit,
)
"""Called with the models, what follows the word, and what shows; the docstring is its help."""


# -- answers -------------------------------------------------------------------------------------


def _answers(talkers: Sequence[Talker], show: Show) -> None:
    """Every model's answer, as it is drawn. Ctrl-C ends one of them.

    Where one model cannot answer none does, and all forget the question: their dialogs stay alike.
    """
    try:
        for talker in talkers:
            talker.prompt()
    except (StageFailed, KeyboardInterrupt) as failure:
        for talker in talkers:
            talker.leave_out(-1)
        show(f"\n{failure}\n")
        return
    for number, talker in enumerate(talkers):
        show(_head(talkers, number))
        try:
            for piece in talker.answer():
                show(visible(piece))
            note = talker.cut
        except KeyboardInterrupt:
            note = "(stopped)"
        show(f"\n{note}\n" if note else "\n")


def _head(talkers: Sequence[Talker], number: int) -> str:
    """Which model answers, where there are several."""
    space = "\n" if number else ""
    return f"{space}{talkers[number].name}:\n" if len(talkers) > 1 else ""


def _left_out(questions: Sequence[str | None]) -> str:
    if questions[0] is None:
        return "(nothing was asked)\n"
    return f"(left out: {visible(questions[0][:60])})\n"
