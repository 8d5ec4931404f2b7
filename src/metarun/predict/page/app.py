"""The page as a WSGI application: its three files, and the five things that they ask for. Whatever comes in is checked and bounded."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, StringConstraints, ValidationError
from werkzeug.exceptions import Forbidden, HTTPException, RequestEntityTooLarge
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from metarun.data.picture import UnreadableError
from metarun.errors import RunError, UserError
from metarun.predict.page.learner import Learner
from metarun.predict.page.sessions import BYTES, CLASSES, PICTURES, GoneError, Sessions, view

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
# Nothing from anywhere else, no frame around the page, no name of it told to others.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
JSON_BYTES = 200_000  # of a request that names pictures
NAME = 60  # letters of a class

Names = Annotated[list[Annotated[str, StringConstraints(max_length=40)]], Field(min_length=1, max_length=PICTURES)]
Body = TypeVar("Body", bound=BaseModel)


class TooLargeError(UserError):
    """The body of a request is larger than it may be."""


class Class(BaseModel):
    """One class as the page sends it: names of its pictures."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=NAME)]
    pictures: Names


class Lesson(BaseModel):
    """What to learn."""

    classes: Annotated[list[Class], Field(max_length=CLASSES)]
    steps: Annotated[int, Field(ge=0, le=1000)] | None = None


class Questions(BaseModel):
    """What to ask about."""

    pictures: Names


class Page:
    """The application.

    Args:
        learner: who answers; it is asked by one request at a time.
        hosts: names under which the page may be asked for; None: any. Another site whose name was made to lead here is refused.
    """

    routes = Map(
        [
            Rule("/", endpoint="file", defaults={"name": "page.html"}, methods=["GET"]),
            Rule("/<any('page.css', 'page.js'):name>", endpoint="file", methods=["GET"]),
            Rule("/sessions", endpoint="begin", methods=["POST"]),
            Rule("/sessions/<session>/pictures", endpoint="add", methods=["POST"]),
            Rule("/sessions/<session>/pictures/<picture>", endpoint="remove", methods=["DELETE"]),
            Rule("/sessions/<session>/learn", endpoint="learn", methods=["POST"]),
            Rule("/sessions/<session>/ask", endpoint="ask", methods=["POST"]),
        ]
    )

    def __init__(self, learner: Learner, hosts: Collection[str] | None) -> None:
        self.learner, self.hosts = learner, hosts
        self.sessions = Sessions()
        self.learning = threading.Lock()  # held while the learner works
        self.reading = threading.Semaphore(2)  # pictures decoded at a time: each may take some hundred megabytes

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """As WSGI has it."""
        return self.answer(Request(environ))(environ, start_response)

    def answer(self, request: Request) -> Response:
        """The response to a request; what is wrong with it in one line of JSON."""
        try:
            if self.hosts is not None and urlsplit(f"//{request.host}").hostname not in self.hosts:
                raise Forbidden(f"the page is not called {request.host}")
            endpoint, values = self.routes.bind_to_environ(request.environ).match()
            if request.method not in ("GET", "HEAD"):
                self._refuse_others(request)
            response = getattr(self, endpoint)(request, **values)
        except GoneError as error:
            response = _json({"error": str(error)}, 404)
        except TooLargeError as error:
            response = _json({"error": str(error)}, 413)
        except UserError as error:
            response = _json({"error": str(error)}, 400)
        except HTTPException as error:
            response = _json({"error": f"{error.name.lower()}: {error.description}"}, error.code or 500)
        except RunError as error:
            response = _json({"error": str(error)}, 500)
        except Exception:
            log.exception("the page could not answer")
            response = _json({"error": "this failed inside metarun; the terminal says more"}, 500)
        for name, value in HEADERS.items():
            response.headers[name] = value
        return response

    @staticmethod
    def _refuse_others(request: Request) -> None:
        """Only the page itself may change anything, not another site that is open in the same browser.

        Raises:
            Forbidden: the request comes from elsewhere.
        """
        origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "same-origin")
        if site not in ("same-origin", "none") or (origin is not None and origin.partition("://")[2] != request.host):
            raise Forbidden("the request comes from another page")

    def file(self, request: Request, name: str) -> Response:
        """One of the page's own files."""
        return Response((Path(__file__).parent / name).read_bytes(), mimetype=FILES[name])

    def begin(self, request: Request) -> Response:
        """A new session, and all that the page has to know."""
        learner = self.learner
        facts = {
            "about": learner.about,
            "ways": learner.ways,
            "steps": learner.steps,
            "together": learner.together,
            "channels": learner.channels,
            "limits": {"pictures": PICTURES, "bytes": BYTES, "classes": CLASSES, "name": NAME},
        }
        return _json({"session": self.sessions.begin(), **facts})

    def add(self, request: Request, session: str) -> Response:
        """A picture, whose file is the body: its name from now on, and how the net sees it."""
        held = self.sessions.get(session)
        held.room()
        content = _content(request, BYTES)
        with self.reading, tempfile.TemporaryDirectory(prefix="metarun-") as folder:
            path = Path(folder, "picture")
            path.write_bytes(content)
            try:
                picture = self.learner.see(path)
            except UnreadableError as reason:
                raise UserError(str(reason)) from None
        return _json({"picture": held.add(picture), "view": view(picture)})

    def remove(self, request: Request, session: str, picture: str) -> Response:
        """Forget a picture."""
        self.sessions.get(session).remove(picture)
        return _json({})

    def learn(self, request: Request, session: str) -> Response:
        """Adapt to the classes."""
        held, lesson = self.sessions.get(session), _body(request, Lesson)
        if len({one.name for one in lesson.classes}) < len(lesson.classes):
            raise UserError("two classes have the same name: give each its own")
        pictures = held.get([name for one in lesson.classes for name in one.pictures])
        labels = [one.name for one in lesson.classes for _ in one.pictures]
        with self.learning:
            began = time.perf_counter()
            held.ask = self.learner.learn(pictures, labels, lesson.steps)
            seconds = time.perf_counter() - began
        return _json({"seconds": seconds})

    def ask(self, request: Request, session: str) -> Response:
        """What the adapted learner says of pictures."""
        held, questions = self.sessions.get(session), _body(request, Questions)
        if held.ask is None:
            raise UserError("adapt first: nothing has been learned yet")
        pictures = held.get(questions.pictures)
        with self.learning:
            answers = held.ask(pictures)
        return _json({"answers": [answer._asdict() for answer in answers]})


def _json(values: Any, status: int = 200) -> Response:
    return Response(json.dumps(values), status, mimetype="application/json")


def _content(request: Request, limit: int) -> bytes:
    """The body of a request, read no further than ``limit`` bytes and one.

    Raises:
        TooLargeError: it is larger.
    """
    request.max_content_length = limit + 1  # where a stream that does not tell its length is cut, without a word
    line = f"larger than {limit / 1e6:g} MB"
    try:
        content = request.get_data(cache=False)
    except RequestEntityTooLarge:
        raise TooLargeError(line) from None
    if len(content) > limit:
        raise TooLargeError(line)
    return content


def _body(request: Request, model: type[Body]) -> Body:
    """The body of a request.

    Raises:
        UserError: it is not what the page would send.
    """
    content = _content(request, JSON_BYTES)
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UserError(f"{'.'.join(map(str, first['loc'])) or 'the request'}: {first['msg']}") from None
