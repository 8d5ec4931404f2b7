"""Attacks by input: files of somebody else's, command lines nobody would write, changed configurations, folders as disks have them."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from attack_process import MEGABYTES, TINY, Count, call, uncut
from PIL import Image

from metarun.config.options import groups


class Payload:
    """Unpickling it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hacked",)


def hostile(rng: random.Random, folder: Path, minutes: float) -> list[Count]:
    """run folders and sweeps from somebody else: refused in one line within 10 s and 1 GB, nothing run, nothing written elsewhere"""
    _, run, _ = uncut("maml", folder)

    def write(name: str, data: bytes | str) -> Callable[[Path], Any]:
        return lambda r: (r / name).unlink(missing_ok=True) or (r / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    def link(name: str) -> Callable[[Path], Any]:
        def make(r: Path) -> None:
            (r.parent / "victim").mkdir()
            (r.parent / "victim" / "file").write_text("precious")
            path = r / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            path.symlink_to(r.parent / "victim" / ("file" if "." in name else ""))

        return make

    def pipe(name: str) -> Callable[[Path], Any]:
        return lambda r: (r / name).unlink() or os.mkfifo(r / name)

    def state(**changes: Any) -> Callable[[Path], Any]:
        def make(r: Path) -> None:
            for path in (r / "checkpoints").glob("*.pt"):
                torch.save({**torch.load(path, weights_only=True), **changes}, path)

        return make

    def packed(r: Path) -> None:
        for path in (r / "checkpoints").glob("*.pt"):
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x/data/0", "w", force_zip64=True) as member:
                for _ in range(150):
                    member.write(bytes(10**7))

    def flipped(r: Path) -> None:
        for path in (r / "checkpoints").glob("*.pt"):
            data = bytearray(path.read_bytes())
            with zipfile.ZipFile(path) as archive:
                largest = max(archive.infolist(), key=lambda member: member.file_size)  # weights, not what describes them
            begins = largest.header_offset + 30 + sum(struct.unpack_from("<HH", data, largest.header_offset + 26))
            data[begins + largest.file_size // 2] ^= 64
            path.write_bytes(data)

    def sweep(*words: str) -> Callable[[Path], Any]:
        pickled = pickle.dumps(Payload())
        return lambda r: ((r / "x.pkl").write_bytes(pickled), write("sweep.json", json.dumps({"words": list(words), "started": 1}))(r))

    config = (run / "config.yaml").read_text()
    bomb = "a0: &a0 [x]\n" + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
    load = ["+hydra.callbacks.x._target_=joblib.load", "+hydra.callbacks.x.filename=x.pkl"]
    huge = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"
    cases: list[tuple[str, Callable[[Path], Any], str]] = [
        ("aliases", write("config.yaml", bomb), "eval"),
        ("aliases, compared", write("config.yaml", bomb), "compare"),
        ("brackets", write("config.yaml", "[" * 10**5), "eval"),
        ("brackets, compared", write("config.yaml", "[" * 10**5), "compare"),
        ("braces", write("summary.json", '{"a":' * 10**5), "compare"),
        ("digits", write("summary.json", '{"a": ' + "9" * 5000 + "}"), "compare"),
        ("code in YAML", write("config.yaml", "a: !!python/object/apply:os.mkdir [hacked]"), "eval"),
        ("environment", write("config.yaml", config.replace("name: maml-", "name: ${oc.env:PATH}-")), "eval"),
        ("another class", write("config.yaml", config.replace("metarun.algos.gradient.maml.MAML", "joblib.load")), "eval"),
        ("a wide net", write("config.yaml", config.replace("hidden: 8", "hidden: 100000")), "eval"),
        ("a long episode", write("config.yaml", config.replace("way: 3", "way: 99999999")), "eval"),
        ("no text", write("config.yaml", os.urandom(5000)), "eval"),
        ("a list", write("config.yaml", "- 1"), "eval"),
        ("pipe", pipe("config.yaml"), "eval"),
        ("pipe, compared", pipe("config.yaml"), "compare"),
        ("pipe as summary", pipe("summary.json"), "compare"),
        ("pipe as checkpoint", pipe("checkpoints/best.pt"), "eval"),
        ("link metrics.jsonl", link("metrics.jsonl"), "resume"),
        ("link metarun.log", link("metarun.log"), "resume"),
        ("link tb", link("tb"), "resume"),
        ("link eval", link("eval"), "eval"),
        ("link checkpoints", link("checkpoints"), "eval"),
        ("packed checkpoint", packed, "eval"),
        ("flipped bit", flipped, "eval"),
        ("code in a checkpoint", state(outer=Payload()), "eval"),
        ("outputs", state(problem={"classes": 6, "outputs": 10**9, "attributes": 0}), "eval"),
        ("no numbers", state(algorithm={"w": torch.tensor(float("nan"))}), "eval"),
        ("progress", state(progress={"iteration": "x"}), "eval"),
        ("scores", write("test_scores.npy", huge), "paired"),
        ("pickled scores", write("test_scores.npy", pickle.dumps(Payload())), "paired"),
        ("pickle in a sweep", sweep("seed=0,1", *load, "trainer.iterations=0"), "resume"),
        ("output_subdir", sweep("seed=0,1", "hydra.output_subdir=/tmp/hacked"), "resume"),
        ("subdir", sweep("seed=0,1", "hydra.sweep.subdir=../../up"), "resume"),
        ("searchpath", sweep("seed=0", "hydra.searchpath=[file:///tmp]"), "resume"),
        ("setup", sweep("seed=0", "hydra.launcher.setup=[reboot]"), "resume"),
        ("log file", sweep("seed=0", "+hydra.job_logging.handlers.x.class=logging.FileHandler"), "resume"),
    ]
    count = Count("files", minutes)
    for number, (name, make, how) in enumerate(cases):
        place = folder / f"hostile-{number}"
        shutil.copytree(run, place / "run")
        shutil.copytree(run, place / "other")
        if how == "resume" and name.startswith("link"):
            (place / "run" / "summary.json").unlink()
        make(place / "run")
        words = {"paired": ["compare", "--paired", "run", "other"]}.get(how, [how, "run"])
        end = call(words, place, seconds=10)
        told = len(end.said) == 1 and end.said[0].isprintable()
        victim = place / "victim" / "file"
        safe = not list(place.rglob("hacked")) and (not victim.exists() or victim.read_text() == "precious")
        count.add(end.status in (1, 2) and told and end.clean and safe and end.megabytes < MEGABYTES, (name, end))
        shutil.rmtree(place)
    return [count]


VALUES = [
    *("0", "1", "-1", "3", "1e9", "1e-9", "nan", "inf", "null", "true", "x", "''", "[1,2]", "{a:1}", "1,2", "${seed}", "${oops}", "~"),
    *("2**64", "18446744073709551616", "9" * 5000, "é猫", "../..", "/dev/null", "\x1b[2J", "a b", "'", '"', "[", "\\", "%s", "range(3)"),
]


def flat(values: dict[str, Any], prefix: str = "") -> list[str]:
    return [name for k, v in values.items() for name in (flat(v, f"{prefix}{k}.") if isinstance(v, dict) else [f"{prefix}{k}"])]


def words(rng: random.Random, folder: Path, minutes: float) -> list[Count]:
    """generated command lines: status 0, 1, 2 or 130, no traceback, one line where it did not work"""
    _, run, _ = uncut("maml", folder)
    keys = flat(yaml.safe_load((run / "config.yaml").read_text()))
    commands = [*["check"] * 4, "list", "eval", "resume", "compare", "show", "predict", "evla", "", "--json", "-m", "--cfg job"]
    options = ["--json", "--help", "-x", "--split", "--checkpoint", "--out", "--index", "--metric", "--where", "--wat", "--", "-m"]
    options += ["--paired", "run", ""]
    count = Count("command lines", minutes)
    for number in range(320):
        if count.late:
            break
        place = folder / f"words-{number}"
        place.mkdir()
        line = rng.choice(commands).split()
        for _ in range(rng.randint(0, 3)):
            key = rng.choice(
                [rng.choice(keys), rng.choice(keys), rng.choice(list(groups())), "hydra.run.dir", "wayy", "", "hydra/launcher"]
            )
            value = rng.choice([*VALUES, *rng.choice(list(groups().values()))])
            line.append(f"{rng.choice(['', '', '', '+', '~', '++'])}{key}{rng.choice(['=', '=', '=', '', '.x='])}{value}")
        line += rng.choice([[], [rng.choice(options)], [rng.choice(options), str(rng.choice([0, -1, "val", "x", run]))]])
        given = {word.lstrip("~+").partition("=")[0] for word in line}
        if not line or line[0] in ("check", "-m", "--json") or "=" in line[0]:
            line += [word for word in [*TINY, "trainer.iterations=1", "trainer.test_episodes=2", "trainer.val_episodes=2"]
                     if word.partition("=")[0] not in given and "data" not in given]  # fmt: skip
        end = call(line, place, seconds=20)
        several = "-m" in line and end.status == 1 and "Traceback" not in end.err  # a line for each run that failed
        count.judge(end.clean or several, end, line)
        shutil.rmtree(place)
    return [count]


def configs(rng: random.Random, folder: Path, minutes: float) -> list[Count]:
    """stored configurations, changed at random, then evaluated: the same"""
    _, run, _ = uncut("maml", folder)
    count = Count("configurations", minutes)
    for number in range(100):
        if count.late:
            break
        place = folder / f"configs-{number}"
        shutil.copytree(run, place / "run")
        values = yaml.safe_load((run / "config.yaml").read_text())
        for key in rng.sample(flat(values), rng.randint(1, 3)):
            *sections, leaf = key.split(".")
            section = values
            for name in sections:
                section = section.get(name) if isinstance(section, dict) and isinstance(section.get(name), dict) else {}
            value = rng.choice(VALUES)
            section[leaf] = rng.choice([value, yaml.safe_load("3"), -1, 0.5, None, [1], {"a": 1}, 2**70, float("nan"), True])
            if rng.random() < 0.2:
                section.pop(leaf, None)
        text = yaml.safe_dump(values, allow_unicode=True)
        if rng.random() < 0.2:
            at_byte = rng.randrange(len(text))
            text = text[:at_byte] + rng.choice("[{:&*!\x07\n") + text[at_byte:]
        (place / "run" / "config.yaml").write_text(text)
        end = call(["eval", "run"], place, seconds=20)
        count.judge(end.clean, end, text[:300])
        shutil.rmtree(place)
    return [count]


def folders(rng: random.Random, folder: Path, minutes: float) -> list[Count]:
    """folders of pictures with pipes, links, damaged and foreign files, then checked: the same"""
    count = Count("folders", minutes)
    names = ["cat", "Cat", "猫", "a b", ".hidden", "@eaDir", "x" * 200, "train", "val", "test", "valid", "-x", "'", "caf\udce9"]
    for number in range(100):
        if count.late:
            break
        place = folder / f"folders-{number}"
        place.mkdir()
        for _ in range(rng.randint(0, 9)):
            base = place / "data" / rng.choice(names) / (rng.choice(names) if rng.random() < 0.4 else "")
            base.mkdir(parents=True, exist_ok=True)
            for k in range(rng.randint(0, 6)):
                kind, path = rng.random(), base / f"{rng.choice('abcdef')}{k}{rng.choice(['.png', '.jpg', '.PNG', '.tif', '.txt', ''])}"
                if kind < 0.7:
                    image = Image.fromarray(np.random.default_rng(rng.randrange(9)).integers(0, 255, (20, 20, 3), dtype=np.uint8))
                    image.save(path, format="PNG")
                elif kind < 0.8:
                    path.write_bytes(os.urandom(50))
                elif kind < 0.85:
                    path.exists() or os.mkfifo(path)
                elif kind < 0.9:
                    path.exists() or path.symlink_to(rng.choice([place / "data", Path("/dev/zero"), Path("nowhere")]))
                else:
                    path.write_bytes(b"")
        (place / "data").mkdir(exist_ok=True)
        line = ["check", "data=folder", f"data.root={place}/data", "way=2", "query=1", "device=cpu", "data.min_images=2", "data.size=16"]
        end = call(line, place, seconds=20)
        count.add(end.clean, (sorted(str(p.relative_to(place)).encode(errors="replace") for p in place.rglob("*"))[:30], end))
        shutil.rmtree(place)
    return [count]
