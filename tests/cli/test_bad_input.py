"""Bad input ends in exactly one line that says what is wrong and how to mend it, status 2 (1 where the user is not to blame),
and nothing on the disk that was not there before."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from cli_support import TINY, assert_one_line, everything

FILE = "/dev/null"  # as an output folder: what even root cannot write into

# Words, and what the one line must say (a regular expression).
BAD = [
    # names
    ("algo=mamll", "algo=mamll does not exist; did you mean 'maml'"),
    ("data=omnigot", "did you mean 'omniglot'"),
    ("wayy=5", "unknown key 'wayy'; did you mean 'way'"),
    ("algo.inner_lrr=1", "unknown key 'algo.inner_lrr'; did you mean 'algo.inner_lr'"),
    ("inner_lr=1", "unknown key 'inner_lr'; did you mean 'algo.inner_lr'"),
    ("algo=protonet algo.inner_lr=1", r"unknown key 'algo.inner_lr' \("),
    ("data.root=here", r"unknown key 'data.root' \(known here: data.train_classes"),
    ("dat=omniglot", "did you mean 'data'"),
    ("experiment=x", "experiment=x does not exist"),
    ("+experiment=x", "experiment=x does not exist"),
    ("experiment=paper/omniglot_protnet", "experiment=paper/omniglot_protnet does not exist; did you mean 'paper/omniglot_protonet'"),
    ("experiment=paper/omniglot_maml algo.inner_lrr=1", "unknown key 'algo.inner_lrr'; did you mean 'algo.inner_lr'"),
    ("experiment=a experiment=b", "experiment is chosen twice, experiment=a and experiment=b"),
    ("algo=maml algo=protonet", "algo is chosen twice"),
    ("hydra/launcher=foo", "hydra/launcher=foo does not exist"),
    ("hydra.run.dr=x", "unknown key 'hydra.run.dr'"),
    # types and ranges
    ("way=abc", "way=abc is not possible: it should be an integer"),
    ("way=5.0", "it should be an integer; did you mean 5"),
    ("way=null", "way=null .* an integer"),
    ("way=true", "way=true .* an integer"),
    ("way=1", "way=1 .* way >= 2"),
    ("episode.eval.way=1", "episode.eval.way=1 .* way >= 2"),
    ("shot=0", "shot=0 is not possible: it should be 1 or more, unless algo is a zero-shot method"),
    ("query=-3", "query=-3 .* 1 or more"),
    ("seed=-1", "seed=-1 .* 0 or more"),
    ("seed=99999999999999999999", "seed=9+ .* below 2.63"),
    ("init_from=nowhere", "init_from=nowhere is not possible: there is no run folder nowhere"),
    ("init_from=5", "init_from=5 .* a text"),
    ("name=5", "name=5 .* a text"),
    ("name=a/b", "no slash"),
    ("name=", "1 to 150 characters"),
    ("algo.inner_lr=abc", "algo.inner_lr=abc is not possible: it should be a number"),
    ("algo.inner_lr=-1", "algo.inner_lr=-1 is not possible: it should be greater than 0"),
    ("algo.inner_lr=nan", "algo.inner_lr=nan .* finite"),
    ("algo.inner_lr=inf", "algo.inner_lr=inf .* finite"),
    ("optim.lr=nan", "optim.lr=nan .* finite"),
    ("trainer.max_minutes=inf", "trainer.max_minutes=inf .* finite"),
    ("data=sinusoid net=mlp data.amplitude=[nan,2]", r"data.amplitude\[0\]=nan .* finite"),
    ("data=sinusoid net=mlp data.amplitude=[1]", "data.amplitude=.* a list of at least 2"),
    ("data=csv net=mlp", "data=csv needs data.root; give data.root=FILE.csv, or a folder"),
    ("data=csv_regression net=mlp way=1", "data=csv_regression needs data.root"),
    ("data=csv net=mlp data.root=absent.csv", "data.root=absent.csv does not exist"),
    ("episode.unknown=-1", r"episode.unknown=-1 .* 0 or more"),
    ("logger=wandb logger.wandb=onlin", "logger.wandb=onlin .* 'offline' or 'online'; did you mean 'online'"),
    ("logger=[wandb,mlflo]", "logger=mlflo does not exist; did you mean 'mlflow'"),
    ("net=mlp net.sizes=[8,a]", r"net.sizes\[1\]=a .* an integer"),
    ("net.norm=btach", "net.norm=btach .* 'batch', 'support', .*; did you mean 'batch'"),
    ("net.hidden=0", "net.hidden=0 .* 1 or more"),
    ("net.hidden=9 net.norm=group", "9 channels"),
    ("trainer.patience=0", "trainer.patience=0 .* 1 or more"),
    ("trainer.iterations=1e3", "trainer.iterations=1000.0 .* did you mean 1000"),
    ("engine.chunk=0", "engine.chunk=0 .* 1 or more or 'auto'"),
    ("engine.chunk=aut", "engine.chunk=aut .* an integer or 'auto'; did you mean 'auto'"),
    ("engine=vmap", "engine=vmap .* a group of keys"),
    ("optim.schedule=cosin", "optim.schedule=cosin .* did you mean 'cosine'"),
    ("algo.first_order=1", "algo.first_order=1 .* true or false"),
    ("precision=fp16", "precision=fp16 .* 'fp32' or 'bf16'"),
    ("device=gpu", "device=gpu is not a device"),
    ("algo._target_=os.system", "algo._target_=os.system is refused"),
    ("algo._target_=metarun.algos.gradient.reptile.Annotated", "is refused"),
    ("algo._target_=metarun.algos.gradient.maml.Mamll", "does not exist in this version"),
    # combinations
    ("way=10000", r"way=10000 is larger than the \d classes of the \w+ split; choose way <= \d"),
    ("episode.distractors=2", "distractors=2 are classes of unlabelled images, but unlabelled=0; choose unlabelled >= 1"),
    ("episode.unlabelled=19", "shot=1 [+] query=2 [+] unlabelled=19 = 22 images per class, .* has 5; choose shot [+] query [+] unlabelled"),
    ("shot=19 query=19", "shot=19 [+] query=19 = 38 images per class, .* has 5"),
    ("algo=maml episode.eval.way=4", "trained for 3 ways, so episode.eval.way=4 must be 3"),
    ("data=sinusoid", "needs images.*net=mlp"),
    ("data=sinusoid net=mlp algo=protonet", "protonet is for classification"),
    ("data=folder", "data=folder needs data.root"),
    ("data=folder data.root=/nonexistent", "data.root=/nonexistent does not exist"),
    ("data=omniglot data.root=/nonexistent", "data.root=/nonexistent is not a folder"),
    # malformed words
    ("way=[", r"cannot read 'way=\['"),
    ("=5", "cannot read '=5'"),
    ("way=", "way= is not possible"),
    ("way=5,20", "way=5,20 .* add -m"),
    ("algo=maml,protonet", "algo=maml,protonet .* add -m"),
    ("algo=", "algo= does not exist"),
    ("algo=null", "a group takes the name"),
    ("+way=5", "'way' exists already"),
    ("+foo=5", "unknown key foo"),
    ("experiment=tutorial net=mlp", "experiment=tutorial sets net.hidden and net.down, which .* leave out: ~net.hidden ~net.down"),
    ("~way", "needs the key 'way'"),
    ("~algo.inner_lr", "algo.inner_lr is missing"),
    ("way=${oops}", "needs the key 'oops'"),
    ("algo={a:1}", "algo cannot be set"),
    # commands and options
    ("evla", "no command 'evla'; did you mean 'eval'"),
    ("evla RUN", "no command 'evla'; did you mean 'eval'"),
    ("help", "no command 'help'; did you mean `metarun --help`"),
    ("test RUN", "no command 'test'; did you mean `metarun eval RUN`"),
    ("way=3 check", "the command comes first: metarun check"),
    ("--json evla", "no command 'evla'; did you mean 'eval'"),
    ("--json=1", "--json takes no value"),
    ("-m=1", "-m takes no value"),
    ("check -m way=2,3", "no option '-m'"),
    ("eval --chekpoint last", "no option '--chekpoint'; did you mean '--checkpoint'"),
    ("show nothing", "no run folder nothing"),
    ("show way=3 nothing", "show takes KEY=VALUE …, not 'nothing'"),
    ("--jsn", "no option '--jsn'; did you mean '--json'"),
    ("--jsn=1", "no option '--jsn=1'; did you mean '--json'"),
    ("-x", "no option '-x'"),
    ("--cfg", "--cfg takes one of job, hydra, all"),
    ("--cfg jb", "--cfg takes one of .* did you mean 'job'"),
    ("--cfg job wayy=5", "unknown key 'wayy'; did you mean 'way'"),
    ("-sc", "-sc takes install=SHELL"),
    ("-sc query=bash", "-sc takes install=SHELL"),
    ("--resolve", "--resolve flag can only be used"),
    ("hydra.run.dir=", "hydra.run.dir is empty"),
    ("eval", "name the run's folder: metarun eval RUN"),
    ("eval nothing", "no run folder nothing"),
    ("resume", "name the run's folder: metarun resume RUN"),
    ("resume nothing", "no run folder nothing"),
    ("resume .", "is not a run folder"),
    ("list algoo", "no group 'algoo'; did you mean 'algo'"),
    ("list --wat", "no option '--wat'"),
    ("check wayy=5", "did you mean 'way'"),
    ("check foo", "check takes KEY=VALUE"),
    ("check --wat", "no option '--wat'"),
    ("check data=omniglot data.root=/nonexistent", "data.root=/nonexistent"),
    ("show --index x", "--index x is not possible"),
    ("show --split vall", "--split takes one of .* did you mean 'val'"),
    ("show --out", "--out takes a value"),
    ("show --what augmentation", "augment=none changes no image; choose one"),
    ("show --what augmentation augment=photos --split val", "--split val is not augmented"),
    ("augment=photo", "augment=photo does not exist; did you mean 'photos'"),
    ("augment.rotat=3", "unknown key 'augment.rotat'; did you mean 'augment.rotate'"),
    # sweeps: refused as a whole, before the first run
    ("-m way=3,1", "way=1 .* way >= 2"),
    ("-m way=3,x", "way=x .* an integer"),
    ("-m algo=maml,mamll", "algo=mamll does not exist"),
    ("-m algo=maml,protonet algo.inner_lr=0.1", "unknown key 'algo.inner_lr'"),
    ("-m wayy=3,4", "did you mean 'way'"),
    # where a run would go
    (f"hydra.run.dir={FILE}/run", "cannot be made .*/dev/null.*hydra.run.dir=FOLDER"),
    (f"-m seed=1,2 hydra.sweep.dir={FILE}/sweep", "cannot be made"),
    (f"show --out {FILE}/x.png", "cannot read or write /dev/null"),
]


def tiny_for(words: list[str]) -> list[str]:
    """The words of a tiny run that a case leaves open, so that one which is accepted by mistake ends soon."""
    given = {word.lstrip("~+").split("=")[0] for word in words}
    if words[0] in ("eval", "resume", "list", "evla", "-sc", "show") or given & {"data", "--resolve", "--cfg"}:
        return []
    skip = {"net.hidden"} if "net" in given else set()
    return [word for word in TINY if word.split("=")[0] not in given | skip]


@pytest.mark.parametrize(("line", "pattern"), BAD, ids=[line for line, _ in BAD])
def test_one_line_and_nothing_left(metarun, tmp_path, line, pattern):
    words = line.split()
    assert_one_line(metarun(*words, *tiny_for(words)) if words[0] not in ("eval", "resume", "check") else metarun(*words), 2, pattern)
    assert not everything(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(metarun, tmp_path):
    assert_one_line(metarun(*[w for w in TINY if w != "device=cpu"], "device=cuda"), 2, "device=cuda is not here: torch sees 0 GPUs")
    assert not everything(tmp_path)


def test_configuration_is_checked_before_data_are_loaded(metarun):
    """Otherwise a typo costs a download: the folder does not exist, but the typo is what is told."""
    assert_one_line(metarun("data=omniglot data.root=/nonexistent trainer.patience=0"), 2, "trainer.patience=0")


def test_a_sweep_whose_data_are_missing_says_so(metarun):
    result = metarun("-m", "data=omniglot", "data.root=/nonexistent", "seed=0,1")
    assert result.status == 1
    assert sum("data.root=/nonexistent is not a folder" in line for line in result.err) >= 1
    assert not any("Traceback" in line for line in result.err)


def test_outputs_is_a_file(metarun, tmp_path):
    (tmp_path / "outputs").write_text("precious")
    assert_one_line(metarun(*TINY), 2, "outputs")
    assert_one_line(metarun(*TINY, "-m", "seed=1,2"), 2, "outputs")
    assert everything(tmp_path) == {"outputs": b"precious"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_outputs_is_read_only(metarun, tmp_path):
    (tmp_path / "outputs").mkdir(mode=0o555)
    assert_one_line(metarun(*TINY), 2, "cannot be made .Permission denied")
    assert list(everything(tmp_path)) == ["outputs"]


def test_an_empty_folder_of_the_user_stays(metarun, tmp_path):
    (tmp_path / "mine").mkdir()
    assert_one_line(metarun(*TINY, "hydra.run.dir=mine", "shot=9"), 2, "shot=9")
    assert everything(tmp_path) == {"mine": None}


def test_a_folder_that_holds_a_run_is_not_written_into(metarun, run_folder):
    before = everything(run_folder)
    assert_one_line(metarun(*TINY, f"hydra.run.dir={run_folder}"), 2, "is there already")
    assert everything(run_folder) == before


def omniglot_root(tmp_path: Path, content: bytes | None) -> str:
    """A data.root with such a zip in it, or nothing."""
    root = tmp_path / "data"
    root.mkdir()
    if content is not None:
        (root / "images_background_small1.zip").write_bytes(content)
        (root / "images_background_small2.zip").write_bytes(content)
    return f"data.root={root}"


def half_a_zip(tmp_path: Path) -> bytes:
    path = tmp_path / "whole.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images_background_small1/Latin/character01/0001_01.png", os.urandom(4000))
    content = path.read_bytes()
    path.unlink()
    return content[: len(content) // 2]


@pytest.mark.parametrize("kind", ["truncated", "no zip", "empty folder"])
def test_damaged_data(metarun, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("metarun.data.archive.user_cache", lambda: tmp_path / "nowhere")
    content = {"truncated": half_a_zip(tmp_path), "no zip": b"<html>404</html>", "empty folder": None}[kind]
    words = ["data=omniglot", "data.split=small", "data.download=false", omniglot_root(tmp_path, content), "trainer.iterations=1"]
    before = everything(tmp_path)
    pattern = "is not on this machine.*data=glyphs" if content is None else "images_background_small1.zip is damaged"
    assert_one_line(metarun(*words), 2, pattern)
    assert_one_line(metarun("check", *words), 2, pattern)
    assert everything(tmp_path) == before


def test_an_empty_folder_of_pictures(metarun, tmp_path):
    (tmp_path / "pictures").mkdir()
    assert_one_line(metarun(f"data=folder data.root={tmp_path / 'pictures'}"), 2, "has no class folders")
    assert list(everything(tmp_path)) == ["pictures"]


# What happened to a run's folder, the command, its status and what the line says.
def cut_checkpoints(run: Path) -> None:
    (run / "summary.json").unlink()
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_last(run: Path) -> None:
    (run / "summary.json").unlink()
    path = run / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:1000])


def foreign_checkpoint(run: Path) -> None:
    torch.save({"epoch": 3}, run / "checkpoints" / "best.pt")


def no_checkpoint(run: Path) -> None:
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints")


def stored(run: Path, **changes) -> None:
    values = yaml.safe_load((run / "config.yaml").read_text())
    for section, change in changes.items():
        values[section] = {**values[section], **change} if isinstance(change, dict) else change
    (run / "config.yaml").write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))


BROKEN = [
    ("resume finished", lambda run: None, "resume", 2, "is finished.*metarun eval"),
    ("eval without checkpoint", no_checkpoint, "eval", 2, "no checkpoint at"),
    ("resume half checkpoint", cut_checkpoints, "resume", 1, "last.pt is damaged"),
    ("eval half checkpoint", cut_checkpoints, "eval", 1, "best.pt is damaged"),
    ("resume last damaged, best intact", cut_last, "resume", 1, "last.pt is damaged.*--checkpoint best"),
    ("eval foreign checkpoint", foreign_checkpoint, "eval", 1, "best.pt is damaged"),
    ("no config", lambda run: (run / "config.yaml").unlink(), "eval", 2, "is not a run folder"),
    ("not YAML", lambda run: (run / "config.yaml").write_text("a: [1, "), "eval", 2, "config.yaml cannot be read"),
    ("not text", lambda run: (run / "config.yaml").write_bytes(b"\x00\xff\xfe"), "eval", 2, "config.yaml cannot be read"),
    ("empty config", lambda run: (run / "config.yaml").write_text(""), "eval", 2, "config.yaml is empty"),
    ("a list", lambda run: (run / "config.yaml").write_text("- 1\n"), "eval", 2, "holds no configuration"),
    ("code", lambda run: stored(run, algo={"_target_": "os.system"}), "eval", 2, "_target_=os.system is refused"),
    ("code, resumed", lambda run: (run / "summary.json").unlink() or stored(run, data={"_target_": "os.system"}), "resume", 2, "refused"),
    ("a section is missing", lambda run: stored(run, optim=None), "eval", 2, "lacks the section optim"),
    ("a section is a word", lambda run: stored(run, net="conv4"), "eval", 2, "net=conv4 is not possible"),
    ("a key is missing", lambda run: stored(run, algo={"inner_lr": "x"}), "eval", 2, "algo.inner_lr=x is not possible"),
    ("another net", lambda run: stored(run, net={"hidden": 16}), "eval", 2, "checkpoint does not fit"),
]


@pytest.mark.parametrize(("damage", "command", "status", "pattern"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_broken_run_folders(metarun, run_folder, damage, command, status, pattern):
    damage(run_folder)
    before = everything(run_folder)
    assert_one_line(metarun(command, str(run_folder)), status, pattern)
    assert everything(run_folder) == before


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ("wayy=3", "unknown key 'wayy'; did you mean 'way'"),
        ("shot=0", "shot=0 is not possible"),
        ("way=4", "episode.eval.way=4 must be 3"),
        ("shot=9", "has 5; choose shot"),
        ("shot=1,2", "KEY=VALUE with one value"),
        ("~way", "not KEY=VALUE"),
        ("+foo=1", "not KEY=VALUE"),
        ("way=[", r"cannot read 'way=\['"),
        ("data=omnigot", "did you mean 'omniglot'"),
        ("data=sinusoid", "needs images"),
        ("experiment=quickstart", "whole new run"),
        ("--checkpoint bst", "--checkpoint takes one of best, last; did you mean 'best'"),
        ("--wat", "no option '--wat'"),
        ("foo", "cannot read 'foo'"),
    ],
)
def test_eval_of_bad_words(metarun, run_folder, words, pattern):
    before = everything(run_folder)
    assert_one_line(metarun("eval", str(run_folder), *words.split()), 2, pattern)
    assert everything(run_folder) == before


def test_resume_takes_no_values(metarun, run_folder):
    assert_one_line(metarun("resume", str(run_folder), "way=3"), 2, "resume takes no 'way=3'")


def test_the_nearest_run_folder_is_named(metarun, run_folder):
    assert_one_line(metarun("eval", str(run_folder) + "n"), 2, rf"did you mean '{run_folder}'")


def test_debug_shows_the_traceback(metarun, monkeypatch):
    monkeypatch.setenv("METARUN_DEBUG", "1")
    result = metarun("way=1")
    assert result.status == 2
    assert result.err[0].startswith("Traceback")
    assert result.err[-1].startswith("metarun: way=1")
