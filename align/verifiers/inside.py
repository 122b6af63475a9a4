"""What runs inside the two sandboxes of one check: the answer in one, its tests in the other.

Started by sandbox.py as a program of its own (`python -c`); standard library only. The tests
call the answer through two pipes, and judge what comes back here, where no code of the answer
runs. Values of built-in types are copied, both ways. Any other object stays with the answer, and
the tests get a `Remote` of it: it can be called, iterated, indexed, and asked for attributes, but
never decides whether it equals something.

What the tests' side writes to stdout is the verdict: a line with the number of asserts there are (0
where they are no Python); `1` or `0` for each assert reached; and `.` at the end of the tests, or
`!` where they import what is not there, or come to their end without an assert or a call: functions
that nobody calls.
"""

from __future__ import annotations

import builtins
import importlib
import json
import operator
import os
import resource
import sys
import types

TYPE_CHECKING = False  # a program that is started twice for every answer imports only what it needs
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO, Any

MOST = 1 << 24
"""Characters of one message."""

COPIED = {
    kind.__name__: kind
    for kind in (
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        bytearray,
        list,
        tuple,
        set,
        frozenset,
        dict,
    )
}
"""The types whose values are copied, and which may themselves be handed over."""


class FromAnswer(Exception):
    """Marks what the answer raised."""


class Gone(BaseException):
    """The answer's process is not there any more, or does not say what it should."""


def limit(job: dict[str, Any]) -> None:
    """Give up what a check does not need, for good."""
    hard = {
        resource.RLIMIT_AS: job["memory"],
        resource.RLIMIT_CPU: job["seconds"] + 1,
        resource.RLIMIT_FSIZE: job["disk"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,  # no further process, and no thread
    }
    for kind, most in hard.items():
        above = resource.getrlimit(kind)[1]
        most = most if above == resource.RLIM_INFINITY else min(most, above)
        # a second before it is killed, a signal of its own tells that it is the time
        resource.setrlimit(kind, (most - (kind == resource.RLIMIT_CPU), most))
    if job["user"]:  # root is above the limit of processes
        os.setgroups([])
        os.setresgid(job["user"], job["user"], job["user"])
        os.setresuid(job["user"], job["user"], job["user"])


# Messages: JSON, where a value that is not JSON's own stands under the name of its type


def encode(value: Any, other: Callable[[Any], Any]) -> Any:
    """A value as JSON; `other` encodes what is of no built-in type."""
    if value is None or type(value) in (bool, float, str):
        return value
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [encode(item, other) for item in value]
    if isinstance(value, dict):
        pairs = dict.items(value)
        return {"dict": [[encode(key, other), encode(item, other)] for key, item in pairs]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item, other) for item in value]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
    for name, copied in COPIED.items():
        if value is copied:
            return {"type": name}
    return other(value)


def decode(value: Any, objects: Callable[[int], Any]) -> Any:
    """The value of what `encode` made; `objects` finds an object of the answer."""
    if isinstance(value, list):
        return [decode(item, objects) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "object":
        return objects(content)
    if kind == "dict":
        return {decode(key, objects): decode(item, objects) for key, item in content}
    if kind == "complex":
        return complex(*content)
    if kind == "type":
        return COPIED[content]
    if kind in ("bytes", "bytearray"):
        return bytes.fromhex(content) if kind == "bytes" else bytearray.fromhex(content)
    several = {"tuple": tuple, "set": set, "frozenset": frozenset}
    return several[kind](decode(item, objects) for item in content)


# The answer's side


def attribute(owner: Any, name: str, *value: Any) -> Any:
    """Get or set an attribute."""
    return setattr(owner, name, *value) if value else getattr(owner, name)


def answer(job: dict[str, Any], requests: IO[str], replies: IO[str]) -> None:
    """Run the answer, then do what the tests ask."""
    module = sys.modules["answer"] = types.ModuleType("answer")  # dataclasses look there
    names = vars(module)
    held: list[Any] = []
    numbers: dict[int, int] = {}
    failed: BaseException | None = None
    operations: dict[str, Callable[..., Any]] = {
        "name": names.__getitem__,
        "call": lambda called, args, named: called(*args, **named),
        "attribute": attribute,
        "item": operator.getitem,
        "iterate": iter,
        "next": next,
        "length": len,
        "true": bool,
        "text": str,
        "form": repr,
    }

    def reference(value: Any) -> Any:
        number = numbers.setdefault(id(value), len(held))
        if number == len(held):
            held.append(value)
        return {"object": number}

    print("ready", file=replies, flush=True)
    try:
        exec(compile(job["code"], "answer", "exec"), names)
    except BaseException as error:
        failed = error
    for line in requests:
        try:
            if failed is not None:
                raise failed
            name, arguments = decode(json.loads(line), held.__getitem__)
            result = {"value": encode(operations[name](*arguments), reference)}
        except BaseException as error:
            result = {"error": [type(error).__name__, str(error)[:1000]]}
        print(json.dumps(result), file=replies, flush=True)


# The tests' side


class Peer:
    """The answer, seen from the tests."""

    def __init__(self, requests: IO[str], replies: IO[str]) -> None:
        self.requests, self.replies = requests, replies
        self.used = False  # asked for more than a name

    def ask(self, operation: str, *arguments: Any) -> Any:
        """Have the answer do something; its result, or what it raised."""
        request = encode([operation, list(arguments)], self.reference)
        self.used |= operation != "name"
        try:
            print(json.dumps(request), file=self.requests, flush=True)
            line = self.replies.readline(MOST)
            reply = json.loads(line)
            if "value" in reply:
                return decode(reply["value"], lambda number: Remote(self, number))
            name, message = map(str, reply["error"])
        except Exception:
            raise Gone from None
        kind = getattr(builtins, name, None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind = Exception
        if kind is StopIteration and operation != "next":
            kind = RuntimeError  # else `all(map(f, …))` in the tests ends with what held so far
        both = type(name, (kind, FromAnswer), {})
        raise both.__new__(both, message)

    def reference(self, value: Any) -> Any:
        """How an object of the answer is named to it. Others cannot be given to it."""
        if not isinstance(value, Remote):
            raise TypeError(f"The answer cannot be given a {type(value).__name__}.")
        return {"object": object.__getattribute__(value, "_number")}


class Remote:
    """An object of the answer. Equal to itself only: the answer has no say in a comparison."""

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_ask", lambda name, *args: peer.ask(name, self, *args))
        object.__setattr__(self, "_number", int(number))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._number == other._number

    def __hash__(self) -> int:
        return hash(self._number)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Have the answer call it."""
        return self._ask("call", list(args), named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("attribute", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("attribute", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __iter__(self) -> Iterator[Any]:
        iterator: Iterator[Any] = self._ask("iterate")
        return iterator

    def __next__(self) -> Any:
        return self._ask("next")

    def __len__(self) -> int:
        return int(self._ask("length"))

    def __bool__(self) -> bool:
        return bool(self._ask("true"))

    def __str__(self) -> str:
        return str(self._ask("text"))

    def __repr__(self) -> str:
        return str(self._ask("form"))


class Names(dict):  # type: ignore[type-arg]
    """The tests' names. Those they lack are Python's, its library's, and then the answer's.

    In this order, so that no answer can bring an `abs` or a `math` that finds it right.
    """

    def __init__(self, peer: Peer, entry_point: str | None) -> None:
        super().__init__({"__name__": "tests", "__builtins__": builtins})
        self.peer, self.entry_point = peer, entry_point

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        if name in sys.stdlib_module_names:
            return importlib.import_module(name)
        if self.entry_point:
            raise NameError(f"Neither the tests nor Python has {name!r}.")
        try:
            return self.peer.ask("name", name)
        except KeyError:
            raise NameError(f"The answer has no {name!r}.") from None


def counted(code: str) -> tuple[types.CodeType, int]:
    """Tests whose asserts are counted, each going on to the next; and how many asserts there are.

    An assert becomes `try: assert … except Exception: __count__(False) else: __count__(True)`.

    Raises:
        SyntaxError, ValueError, RecursionError: it is no Python.
    """
    import ast

    found = 0

    class Asserts(ast.NodeTransformer):
        def visit_Assert(self, node: ast.Assert) -> ast.AST:
            nonlocal found
            found += 1
            shell = "try:\n pass\nexcept Exception:\n __count__(False)\nelse:\n __count__(True)"
            guarded = ast.parse(shell).body[0]
            assert isinstance(guarded, ast.Try)
            guarded.body = [node]
            return ast.copy_location(guarded, node)

    tree = ast.fix_missing_locations(Asserts().visit(ast.parse(code)))
    return compile(tree, "tests", "exec"), found


def tests(job: dict[str, Any], requests: IO[str], replies: IO[str]) -> None:
    """Run the tests, and write the verdict."""
    verdict = os.dup(1)
    os.dup2(0, 1)
    if replies.readline(MOST) != "ready\n":
        return
    try:
        programs = [counted(code) for code in [*job["before"], *job["tests"]]]
        asserts = sum(number for _, number in programs)
    except (SyntaxError, ValueError, RecursionError):
        asserts = 0
    os.write(verdict, f"{asserts}\n".encode())
    if not asserts:
        return

    entry_point = job["entry_point"]
    names = Names(Peer(requests, replies), entry_point)
    reached = []

    def count(passed: bool) -> None:
        reached.append(passed)
        os.write(verdict, b"1" if passed else b"0")

    names["__count__"] = count
    try:
        for number, (program, _) in enumerate(programs):
            if entry_point and number == len(job["before"]):
                names[entry_point] = names.peer.ask("name", entry_point)
            exec(program, names)
        if entry_point and "check" in names:
            names["check"](names[entry_point])
    except ImportError as error:
        if isinstance(error, FromAnswer):
            raise
        os.write(verdict, b"!")  # no answer could pass
        return
    os.write(verdict, b"." if reached or names.peer.used else b"!")


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    sys.set_int_max_str_digits(0)
    reading, writing = map(int, sys.argv[2:])
    limit(asked)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 2) if sys.argv[1] == "tests" else (0, 1, 2):
        os.dup2(nothing, stream)
    with (
        os.fdopen(reading, encoding="utf-8") as incoming,
        os.fdopen(writing, "w", encoding="utf-8") as outgoing,
    ):
        if sys.argv[1] == "answer":
            answer(asked, incoming, outgoing)
        else:
            tests(asked, outgoing, incoming)
