"""The page of `align view`: served to this machine and to who has the link, and to nobody else.

It listens on 127.0.0.1. That other users of the machine can reach, so the link carries a token,
which becomes a cookie. A site whose name is made to mean 127.0.0.1 (DNS rebinding) is refused by
the `Host` it says. Nothing can be changed through it, and what models said never becomes markup:
the page sets it as text, and `Content-Security-Policy` allows no script but the page's own.
"""

from __future__ import annotations

import errno
import hmac
import json
import math
import os
import secrets
import signal
import sqlite3
import sys
import traceback
import webbrowser
from collections.abc import Callable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from align.errors import Problem, RecipeError, StageFailed
from align.reporting.browse import Browser
from align.reporting.jobs import Waiting

if TYPE_CHECKING:
    from align.recipe import Plan

PORT = 8420
"""Where it listens unless told or taken: a link is good for everyone who views the recipe there."""

STATIC = Path(__file__).with_name("static")
PAGES = {
    "/": ("view.html", "text/html"),
    "/rows.js": ("rows.js", "text/javascript"),
    "/view.js": ("view.js", "text/javascript"),
    "/view.css": ("view.css", "text/css"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
NO_TOKEN = (
    "This page shows one person's models. Open the link that `align view` printed, with its token, "
    "once in this browser; then this address works, too.\n"
)


class Server(ThreadingHTTPServer):
    """Serves one recipe."""

    daemon_threads = True

    def __init__(self, plan: Plan, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.browser = Browser(plan)
        self.secret = secrets.token_urlsafe(24)
        self.tokens = {secrets.token_urlsafe(24)}
        self.cookie = f"align-{self.server_port}"  # cookies do not know ports

    def link(self) -> str:
        """What a person opens."""
        return self._link(min(self.tokens))

    def once(self) -> str:
        """The same, good for one time: a browser's command line is seen by every user."""
        token = secrets.token_urlsafe(24)
        self.tokens.add(token + "-once")
        return self._link(token + "-once")

    def admits(self, token: str) -> bool:
        """Whether a link has a token of ours; one for one time is good no more."""
        known = [one for one in self.tokens if hmac.compare_digest(one.encode(), token.encode())]
        self.tokens -= {one for one in known if one.endswith("-once")}
        return bool(known)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone away is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def _link(self, token: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/?token={token}"


class Handler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "align"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        """The page, its files, and what it asks for."""
        path, _, query = self.path.partition("?")
        asked = dict(parse_qsl(query))
        if self.headers.get("Host", "").partition(":")[0] not in ("127.0.0.1", "localhost"):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", "Ask for 127.0.0.1.\n")
        elif path == "/" and self.server.admits(asked.get("token", "")):
            cookie = f"{self.server.cookie}={self.server.secret}; Path=/; HttpOnly; SameSite=Lax"
            self._send(HTTPStatus.FOUND, "text/plain", "", {"Location": "/", "Set-Cookie": cookie})
        elif not self._known():
            self._send(HTTPStatus.FORBIDDEN, "text/plain", NO_TOKEN)
        elif path in PAGES:
            name, kind = PAGES[path]
            self._send(HTTPStatus.OK, kind, (STATIC / name).read_text(encoding="utf-8"))
        elif ask := self._asks(asked).get(path):
            self._send(*_told(ask))
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "There is nothing here.\n")

    def log_message(self, *_: Any) -> None:
        """Nothing: the terminal shows the link."""

    def _asks(self, asked: dict[str, str]) -> dict[str, Callable[[], Any]]:
        """What can be asked, by address."""
        browser = self.server.browser
        return {
            "/api/chain": browser.chain,
            "/api/rows": lambda: browser.rows(asked),
            "/api/row": lambda: browser.row(asked),
        }

    def _known(self) -> bool:
        try:
            found = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(
            found.value.encode(), self.server.secret.encode()
        )

    def _send(
        self, status: HTTPStatus, kind: str, text: str, more: dict[str, str] | None = None
    ) -> None:
        body = text.encode()
        self.send_response(status)
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        for name, value in {**headers, **HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _told(ask: Callable[[], Any]) -> tuple[HTTPStatus, str, str]:
    """An answer as it is sent.

    A defect must not look as if the server had ended, which is what the page says when nothing
    comes: it is told there, and its traceback is for who mends it.
    """
    try:
        return HTTPStatus.OK, "application/json", json.dumps(_finite(_answer(ask)))
    except Exception as error:
        traceback.print_exc()
        text = f"This cannot be shown ({type(error).__name__}: {error}): a row has another form "
        text += "than its stage writes, or align view has a defect. Its terminal says where."
        return HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", text


def _answer(ask: Callable[[], Any]) -> Any:
    """What was asked for, or a sentence: how far the work for it is, or why there is nothing."""
    try:
        return ask()
    except Waiting as waiting:
        return {"waiting": waiting.what, "done": waiting.done, "total": waiting.total}
    except (StageFailed, RecipeError) as error:
        return {"problem": str(error)}
    except FileNotFoundError:  # the stage ended meanwhile, and its directory has another name
        return {"problem": "The files have just changed. Look again: r."}
    except (sqlite3.DatabaseError, OSError) as error:
        text = f"The index in runs/.cache/view cannot be used ({error}). Delete that directory: "
        return {"problem": text + "it is made again."}


def _finite(value: Any) -> Any:
    """What JSON can say: NaN and the infinities as their names."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return json.dumps(value) if isinstance(value, float) and not math.isfinite(value) else value


def serve(plan: Plan, port: int | None, opened: bool, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; `opened`: show it in the person's browser.

    Raises:
        RecipeError: the port that was asked for is taken.
    """
    try:
        server = Server(plan, PORT if port is None else port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        if port is not None:
            message = (
                f"This port cannot be had ({error.strerror}). Leave --port out, or name another."
            )
            raise RecipeError([Problem(f"--port {port}", "", message)]) from None
        server = Server(plan, 0)
    for number in (signal.SIGINT, signal.SIGTERM):  # a script's `&` has Ctrl-C ignored
        signal.signal(number, signal.default_int_handler)
    with server:
        try:
            say(f"{plan.name}: {server.link()}")
            say("Only this machine and who has this link can see it. Ctrl-C ends it.")
            if opened and _has_screen():
                webbrowser.open(server.once())
            server.serve_forever()
        except KeyboardInterrupt:
            say("")
        finally:
            server.browser.places.jobs.close()


def _has_screen() -> bool:
    """Not over ssh, where a browser of the terminal would take the place of the link."""
    return sys.platform != "linux" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
