"""What all tests share: one thread per worker, a cache folder of their own, and the real Omniglot files where there are some."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, and by the programs that tests start

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def single_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def hangups_count():
    """Also where the tests run under nohup, which metarun and the programs that tests start would respect."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory):
    """The user's cache, data folder and debug switches neither help nor disturb a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(tmp_path_factory.mktemp("metarun-cache")))
        for name in ("METARUN_DATA", "METARUN_DEBUG", "METARUN_WITH", "HYDRA_FULL_ERROR"):
            patch.delenv(name, raising=False)
        yield


def pytest_runtest_setup(item):
    """A method whose library is not installed is not tested."""
    algo = item.callspec.params.get("algo") if hasattr(item, "callspec") else None
    if algo:
        from helpers import MISSING

        if algo in MISSING:
            pytest.skip(MISSING[algo])


@pytest.fixture(scope="session")
def omniglot_root():
    """The folder with the two small background sets of real Omniglot: $METARUN_TEST_OMNIGLOT, or shared/omniglot beside the checkout."""
    folder = Path(os.environ.get("METARUN_TEST_OMNIGLOT") or CHECKOUT.parent / "shared" / "omniglot")
    if not (folder / "images_background_small1.zip").is_file():
        pytest.skip(f"no real Omniglot: {folder} has no images_background_small1.zip (METARUN_TEST_OMNIGLOT may name another folder)")
    return folder
