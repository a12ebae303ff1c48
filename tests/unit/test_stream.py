"""The stream: exact order, exact resume, and no change with workers or processes."""

import io
import itertools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from perceivelab_files import write_study
from PIL import Image

from neuroimagen.data.order import EpochOrder
from neuroimagen.data.shard_files import ShardSplit, read_manifest
from neuroimagen.data.shards import ShardsConfig, make_shards
from neuroimagen.data.stream import _eval_indices, _train_indices, eval_batches, load_picture, train_batches


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """40 train, 10 val, 10 test trials."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    paths = {"eeg": folder / "eeg.pth", "images": folder / "images", "splits_file": folder / "splits.pth"}
    out = folder / "shards"
    make_shards(ShardsConfig(out=str(out), n_chans=4, shard_size=16, **{k: str(p) for k, p in paths.items()}))
    return out


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


@settings(deadline=None)
@given(st.integers(1, 40), st.sampled_from([1, 2, 4]), st.integers(1, 12), st.integers(0, 5))
def test_every_trial_once_an_epoch(n, world, batch_size, seed):
    """The ranks' slices, laid end to end, are permutations of all trials, also when a global batch spans epochs."""
    epochs = 3
    steps = -(-epochs * n // (world * batch_size))
    ranks = [_train_indices(EpochOrder(n, seed), batch_size, rank, world, 0) for rank in range(world)]
    endless = np.concatenate([next(rank) for _ in range(steps) for rank in ranks])
    for epoch in range(epochs):
        assert sorted(endless[epoch * n : (epoch + 1) * n]) == list(range(n))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 12), st.integers(0, 60))
def test_resume_is_a_position(n, world, batch_size, step):
    rank = world - 1
    through = itertools.islice(_train_indices(EpochOrder(n, 3), batch_size, rank, world, 0), step, step + 3)
    resumed = itertools.islice(_train_indices(EpochOrder(n, 3), batch_size, rank, world, step), 3)
    assert [b.tolist() for b in through] == [b.tolist() for b in resumed]


def test_order_depends_on_seed_and_epoch():
    first = EpochOrder(50, 0)
    assert not np.array_equal(first(0, 50), first(50, 100))
    assert not np.array_equal(first(0, 50), EpochOrder(50, 1)(0, 50))
    np.testing.assert_array_equal(first(0, 50), EpochOrder(50, 0)(0, 50))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 12))
def test_eval_takes_each_trial_once_in_order(n, world, batch_size):
    for rank in range(world):
        batches = list(_eval_indices(n, batch_size, rank, world))
        assert [i for b in batches for i in b] == list(range(rank, n, world))
        assert all(len(b) == batch_size for b in batches[:-1])


def test_processes_share_one_global_batch(made):
    alone = train_batches(made, batch_size=12, seed=5)
    ranks = [train_batches(made, batch_size=3, rank=rank, world=4, seed=5) for rank in range(4)]
    for _ in range(5):
        whole, parts = next(alone), [next(rank) for rank in ranks]
        assert whole["key"] == [key for part in parts for key in part["key"]]
        assert torch.equal(whole["eeg"], torch.cat([part["eeg"] for part in parts]))


def test_batch_content(made):
    manifest, split = read_manifest(made), ShardSplit(made, "train")
    batch = next(train_batches(made, batch_size=7, image_size=16))
    assert batch["eeg"].shape == (7, 4, 440) and batch["eeg"].dtype == torch.float32
    assert batch["image"].shape == (7, 3, 16, 16) and batch["image"].dtype == torch.float32
    assert -1 <= batch["image"].min() < 0 < batch["image"].max() <= 1
    assert all(batch[key].dtype == torch.int64 and batch[key].shape == (7,) for key in ("label", "subject", "index"))
    for row, i in enumerate(batch["index"].tolist()):
        info = split.info(i)
        assert batch["key"][row] == info["trial"] and batch["image_name"][row] == info["image"]
        assert (batch["label"][row], batch["subject"][row]) == (info["label"], info["subject"])
        expected = (split.eeg(i) - np.array(manifest.channel_mean)[:, None]) / np.array(manifest.channel_std)[:, None]
        np.testing.assert_allclose(batch["eeg"][row], expected, atol=1e-5)
        assert torch.equal(batch["image"][row], load_picture(split.picture(i), 16).float() / 127.5 - 1)
    assert "image" not in next(train_batches(made, batch_size=7))


def test_batch_larger_than_the_split(made):
    batch = next(train_batches(made, batch_size=70))
    assert sorted(batch["index"][:40].tolist()) == list(range(40)) and len(batch["key"]) == 70


def test_workers_change_nothing_and_no_random_generator_is_drawn_from(made):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    plain = train_batches(made, batch_size=5, step=3, image_size=16)
    worked = train_batches(made, batch_size=5, step=3, image_size=16, workers=2)
    assert all(same(next(plain), next(worked)) for _ in range(12))
    ends = [list(eval_batches(made, "test", batch_size=3, image_size=16, workers=workers)) for workers in (0, 2)]
    assert [len(b["key"]) for b in ends[0]] == [3, 3, 3, 1] and all(map(same, *ends))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


def test_more_processes_than_trials(made):
    shares = [list(eval_batches(made, "val", batch_size=4, rank=rank, world=12)) for rank in range(12)]
    assert [sum(len(b["key"]) for b in share) for share in shares] == [1] * 10 + [0, 0]


SCRIPT = """
import os, signal, sys, threading
from neuroimagen.data.stream import train_batches
batches = train_batches(sys.argv[1], batch_size=4, workers=2)

def signalled():
    children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
    for child in children:
        os.kill(int(child), signal.SIGTERM)
    return children

done = threading.Event()
def hunt():  # from the moment a worker is forked
    while not done.is_set():
        signalled()
hunter = threading.Thread(target=hunt)
hunter.start()
next(batches), next(batches)  # one of each worker: both are up
done.set()
hunter.join()
children = signalled()
for _ in range(20):
    next(batches)
print(len(children), "went on", flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts processes through /proc")
def test_loader_workers_outlive_sigterm_and_end_with_their_process(made):
    """They never see the signal that stops a job, yet a process that leaves its endless batches open still exits."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(made), "exit"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 went on\n", "")
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(made), "kill"], capture_output=True, text=True, timeout=60
    )  # returns once the workers too have let go of its output
    assert killed.returncode == -signal.SIGKILL and killed.stdout == "2 went on\n"


def picture(colours: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, kind, quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_picture_is_its_centre(kind):
    """A 300 x 100 picture, red | green | blue: the centre crop is green."""
    colours = np.zeros((100, 300, 3), np.uint8)
    for third in range(3):
        colours[:, 100 * third : 100 * third + 100, third] = 255
    got = load_picture(picture(colours, kind), 10)
    assert got.shape == (3, 10, 10) and got.dtype == torch.uint8
    middle = got[:, 2:-2, 2:-2]
    assert middle[1].min() > 240 and middle[0].max() < 15 and middle[2].max() < 15
    turned = load_picture(picture(colours.transpose(1, 0, 2).copy(), kind), 10)
    assert turned[1, 2:-2, 2:-2].min() > 240


def test_scaled_decoding_is_close_to_whole_decoding():
    """Decoding at a fraction (see load_picture) and resizing the whole picture differ by less than one grey level."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    data = picture(np.array(smooth), "JPEG")
    with Image.open(io.BytesIO(data)) as whole:
        expected = np.array(whole.convert("RGB").crop((80, 0, 560, 480)).resize((64, 64), Image.Resampling.BICUBIC))
    got = load_picture(data, 64).permute(1, 2, 0).numpy()
    assert np.abs(got.astype(float) - expected).mean() < 1.0


def test_grey_palette_and_small_pictures():
    assert load_picture(picture(np.full((5, 7), 128, np.uint8), "PNG"), 16).unique().tolist() == [128]
    buffer = io.BytesIO()
    Image.new("CMYK", (40, 30)).save(buffer, "JPEG")
    assert load_picture(buffer.getvalue(), 8).shape == (3, 8, 8)
