"""The page behind ``metarun serve``, asked without a browser: it answers as ``metarun predict`` does, and all that comes in is bounded."""

import base64
import csv
import io
import json

import numpy as np
import pytest
from helpers import small
from PIL import Image
from werkzeug.test import Client

from metarun import experiment
from metarun.cli import predict as predict_command
from metarun.data.picture import PIXELS
from metarun.errors import UserError
from metarun.predict.page import app, sessions
from metarun.predict.page.app import Page
from metarun.predict.page.learner import Answer, TrainedRun
from metarun.predict.trained import load

GLYPHS = ["data=glyphs", "data.train_classes=8", "data.val_classes=8", "data.test_classes=8", "data.size=16", "trainer.iterations=1"]
HOSTS = ("localhost", "127.0.0.1", "::1")


def drawing(row: int, size: int = 32) -> bytes:
    """A PNG with a black bar across white paper."""
    pixels = np.full((size, size), 255, np.uint8)
    pixels[row : row + 3, 4:28] = 0
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class Rows:
    """A learner that tells drawings by their darkest row; what lies far from all classes is unknown to it."""

    about, ways, steps, together, channels = "rows", None, 2, False, 1

    def see(self, path):
        with Image.open(path) as image:
            return np.asarray(image.convert("L"))[None]

    def learn(self, pictures, labels, steps):
        assert steps in (2, 5)
        rows = {name: float(picture[0].mean(1).argmin()) for name, picture in zip(labels, pictures)}

        def one(picture):
            far = {name: abs(row - float(picture[0].mean(1).argmin())) for name, row in rows.items()}
            nearest = min(far, key=far.get)
            return Answer(nearest if far[nearest] < 5 else None, 0.75, {name: 0.75 if name == nearest else 0.25 for name in rows})

        return lambda queries: [one(picture) for picture in queries]


class Window:
    """The page as its own JavaScript asks it; answers are (status, JSON)."""

    def __init__(self, page: Page) -> None:
        self.client = Client(page)
        _, facts = self.post("/sessions")
        self.facts, self.path = facts, f"/sessions/{facts['session']}"

    def post(self, path, body=None, **settings):
        content = body if isinstance(body, bytes) or body is None else json.dumps(body)
        response = self.client.post(path, data=content, base_url="http://127.0.0.1:8420", **settings)
        return response.status_code, response.json

    def add(self, content: bytes) -> str:
        status, result = self.post(f"{self.path}/pictures", content)
        assert status == 200, result
        return result["picture"]

    def teach(self, classes, steps=None):
        return self.post(f"{self.path}/learn", {"classes": [{"name": n, "pictures": p} for n, p in classes.items()], "steps": steps})

    def ask(self, pictures):
        return self.post(f"{self.path}/ask", {"pictures": pictures})


@pytest.fixture
def window():
    return Window(Page(Rows(), HOSTS))


@pytest.fixture
def taught(window):
    assert window.teach({"top": [window.add(drawing(4))], "bottom": [window.add(drawing(26))]}, 2)[0] == 200
    return window


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, algo in {"protonet": "protonet", "maml": "maml"}.items():
        experiment.train(small(f"algo={algo}", *GLYPHS, "net.norm=layer"), folder / name)
    return folder


@pytest.mark.parametrize(("name", "steps"), [("protonet", None), ("maml", 1)])
def test_it_answers_as_predict_does(runs, name, steps, tmp_path):
    window = Window(Page(TrainedRun(str(runs / name)), HOSTS))
    classes, asked = {}, {}
    for i, kind in enumerate(("high", "low", "middle")):
        for part, row in (("support", 3 + 9 * i), ("query", 4 + 9 * i)):
            path = tmp_path / part / kind / "one.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(drawing(row))
            (classes if part == "support" else asked)[kind] = [window.add(drawing(row))]
    status, told = window.teach(classes, steps)
    assert (status, set(told)) == (200, {"seconds"})
    _, said = window.ask([picture for pictures in asked.values() for picture in pictures])
    words = [*map(str, (runs / name, "--support", tmp_path / "support", "--query", tmp_path / "query", "--out", tmp_path / "out.csv"))]
    predict_command.run(predict_command.parser().read([*words, *(["--steps", str(steps)] if steps else [])]))
    with open(tmp_path / "out.csv", newline="") as handle:
        for answer, row in zip(said["answers"], csv.DictReader(handle), strict=True):
            assert answer["label"] == row["class"]
            assert answer["probability"] == pytest.approx(float(row["probability"]), abs=1e-6)
            assert answer["probabilities"] == pytest.approx({kind: float(row[f"p_{kind}"]) for kind in classes}, abs=1e-6)


def test_it_says_what_a_run_needs(runs):
    assert Window(Page(TrainedRun(str(runs / "protonet")), HOSTS)).facts | {"session": ""} == {
        "session": "", "about": "protonet trained on glyphs", "ways": None, "steps": None, "together": False, "channels": 1,
        "limits": {"pictures": sessions.PICTURES, "bytes": sessions.BYTES, "classes": sessions.CLASSES, "name": app.NAME},
    }  # fmt: skip
    window = Window(Page(TrainedRun(str(runs / "maml")), HOSTS))
    assert (window.facts["ways"], window.facts["steps"]) == (3, 3)
    status, said = window.teach({"a": [window.add(drawing(3))], "b": [window.add(drawing(20))]})
    assert status == 400
    assert "trained for 3 ways, but the support has 2 classes" in said["error"]


def test_the_view_is_what_the_net_sees(runs, tmp_path):
    window = Window(Page(TrainedRun(str(runs / "protonet")), HOSTS))
    _, said = window.post(f"{window.path}/pictures", drawing(10))
    with Image.open(io.BytesIO(base64.b64decode(said["view"].partition(",")[2]))) as image:
        seen = np.asarray(image)
    (tmp_path / "it.png").write_bytes(drawing(10))
    assert np.array_equal(seen, load(runs / "protonet").reader.read(tmp_path / "it.png")[0])


def test_whom_nothing_fits_is_unknown(taught):
    status, said = taught.ask([taught.add(drawing(row)) for row in (5, 15, 25)])
    assert status == 200
    assert [answer["label"] for answer in said["answers"]] == ["top", None, "bottom"]


def test_a_second_lesson_replaces_the_first(taught):
    assert taught.teach({"bottom": [taught.add(drawing(4))], "top": [taught.add(drawing(26))]}, 5)[0] == 200
    assert taught.ask([taught.add(drawing(4))])[1]["answers"][0]["label"] == "bottom"


def test_windows_know_nothing_of_each_other(taught):
    other = Window(taught.client.application)
    picture = taught.add(drawing(4))
    assert other.ask([picture]) == (400, {"error": "adapt first: nothing has been learned yet"})
    assert other.teach({"a": [picture], "b": [picture]}, 2)[0] == 404
    assert taught.ask([picture])[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ({"classes": [{"name": "a", "pictures": ["gone"]}, {"name": "b", "pictures": ["gone"]}]}, 404, "not there any more"),
        ({"classes": [{"name": "a", "pictures": []}]}, 400, "classes.0.pictures: List should have at least 1 item"),
        ({"classes": [{"name": " ", "pictures": ["x"]}]}, 400, "classes.0.name: String should have at least 1 character"),
        ({"classes": [{"name": "a", "pictures": ["x"]}, {"name": "a ", "pictures": ["x"]}]}, 400, "two classes have the same name"),
        ({"classes": [{"name": str(i), "pictures": ["x"]} for i in range(51)]}, 400, "classes: List should have at most 50 items"),
        ({"classes": [{"name": "a" * 61, "pictures": ["x"]}]}, 400, "classes.0.name: String should have at most 60 characters"),
        ({"classes": [], "steps": -1}, 400, "steps: Input should be greater than or equal to 0"),
        (b"{", 400, "the request: Invalid JSON"),
        (b"x" * (app.JSON_BYTES + 1), 413, "larger than"),
    ],
)
def test_a_lesson_that_is_none_is_refused_in_a_line(window, body, status, line):
    answered, said = window.post(f"{window.path}/learn", body)
    assert answered == status
    assert line in said["error"]
    assert "\n" not in said["error"]


def test_files_are_bounded(runs, monkeypatch):
    window = Window(Page(TrainedRun(str(runs / "protonet")), HOSTS))
    place = f"{window.path}/pictures"
    assert window.post(place, b"no picture") == (400, {"error": "not a picture, or damaged"})
    assert window.post(place, b"") == (400, {"error": "not a picture, or damaged"})
    assert window.post(place, drawing(4)[:-40])[0] == 400
    huge = io.BytesIO()
    Image.new("1", (PIXELS // 1000 + 1, 1000)).save(huge, "PNG")
    assert len(huge.getvalue()) < 100_000  # few bytes, many pixels
    assert window.post(place, huge.getvalue()) == (400, {"error": "67 megapixels, above the limit of 67"})
    monkeypatch.setattr(app, "BYTES", 1_000_000)
    assert window.post(place, b"x" * 1_000_001) == (413, {"error": "larger than 1 MB"})


def test_a_session_holds_so_many_pictures_and_no_more(window, monkeypatch):
    monkeypatch.setattr(sessions, "PICTURES", 2)
    first = window.add(drawing(1))
    window.add(drawing(2))
    status, said = window.post(f"{window.path}/pictures", drawing(3))
    assert status == 400
    assert "2 pictures at most: remove some" in said["error"]
    assert window.client.delete(f"{window.path}/pictures/{first}", base_url="http://127.0.0.1").status_code == 200
    window.add(drawing(3))
    assert window.ask([first])[0] == 400  # nothing learned; what it held is gone
    assert window.teach({"a": [first], "b": [first]}, 2)[0] == 404


def test_the_session_that_was_used_longest_ago_makes_room(window):
    picture = window.add(drawing(1))
    others = [Window(window.client.application) for _ in range(sessions.SESSIONS - 1)]
    window.add(drawing(2))  # used again
    Window(window.client.application)
    assert window.teach({"a": [picture], "b": [picture]}, 2)[0] == 200
    status, said = others[0].post(f"{others[0].path}/pictures", drawing(1))
    assert status == 404
    assert "reload the page" in said["error"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:9999"},
        {"Host": "elsewhere.example"},
        {"Host": "127.0.0.1.elsewhere.example:8420"},
    ],
)
def test_other_sites_may_not_ask(window, headers):
    assert window.post("/sessions", headers=headers)[0] == 403
    assert window.post(f"{window.path}/pictures", drawing(4), headers=headers)[0] == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8420", "localhost:1234", "[::1]:8420"])
def test_the_page_itself_may(window, host):
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert window.client.post("/sessions", headers=headers).status_code == 200


def test_open_to_a_network_the_page_has_any_name():
    client = Client(Page(Rows(), None))
    assert client.get("/", headers={"Host": "lab-computer:8420"}).status_code == 200
    assert client.post("/sessions", headers={"Host": "lab-computer:8420", "Origin": "http://elsewhere.example"}).status_code == 403


def test_the_files_of_the_page_name_nothing_elsewhere(window):
    for path, kind in {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}.items():
        response = window.client.get(path, base_url="http://127.0.0.1:8420")
        assert (response.status_code, response.mimetype) == (200, kind)
        assert "://" not in response.text
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["Cache-Control"] == "no-store"
    assert window.client.get("/app.py", base_url="http://127.0.0.1:8420").status_code == 404
    assert window.client.get("/sessions", base_url="http://127.0.0.1:8420").status_code == 405


def test_a_failure_of_ours_is_told_without_its_secrets(window, monkeypatch, caplog):
    monkeypatch.setattr(Rows, "learn", lambda *_: 1 / 0)
    picture = window.add(drawing(4))
    assert window.teach({"a": [picture], "b": [picture]}) == (500, {"error": "this failed inside metarun; the terminal says more"})
    assert "ZeroDivisionError" in caplog.text


def test_runs_without_pictures_of_classes_are_refused(tmp_path):
    experiment.train(small("algo=maml", "data=sinusoid", "net=mlp", "way=1", "trainer.iterations=1"), tmp_path / "waves")
    with pytest.raises(UserError, match="data=sinusoid, which does not say how pictures are read"):
        TrainedRun(str(tmp_path / "waves"))
    words = ["data.length=32", "net=textbag", "net.buckets=64", "net.size=8", "trainer.iterations=1"]
    experiment.train(small("algo=protonet", "data=text", *words), tmp_path / "texts")
    with pytest.raises(UserError, match="reads texts, and the page takes pictures: use metarun predict"):
        TrainedRun(str(tmp_path / "texts"))
