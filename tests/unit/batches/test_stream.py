"""The stream: exact order, exact resume, and no change with workers or processes."""

import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st
from perceivelab_files import write_shards
from PIL import Image

from neuroimagen.batches.augment import averaged
from neuroimagen.batches.decode import load_picture
from neuroimagen.batches.order import BalancedOrder, EpochOrder, RepeatedOrder, eval_indices, train_indices
from neuroimagen.batches.stream import Batcher, eval_batches, train_batches
from neuroimagen.shards.format import ShardSplit, read_manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("study"), shard_size=16)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


@given(st.integers(1, 40), st.sampled_from([1, 2, 4]), st.integers(1, 12), st.integers(0, 5))
def test_every_trial_once_an_epoch(n, world, batch_size, seed):
    """The ranks' slices, laid end to end, are permutations of all trials, also when a global batch spans epochs."""
    epochs = 3
    steps = -(-epochs * n // (world * batch_size))
    ranks = [train_indices(EpochOrder(n, seed), batch_size, rank, world, 0) for rank in range(world)]
    endless = np.concatenate([next(rank) for _ in range(steps) for rank in ranks])
    for epoch in range(epochs):
        assert sorted(endless[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 12), st.integers(0, 60))
def test_resume_is_a_position(n, world, batch_size, step):
    rank = world - 1
    through = itertools.islice(train_indices(EpochOrder(n, 3), batch_size, rank, world, 0), step, step + 3)
    resumed = itertools.islice(train_indices(EpochOrder(n, 3), batch_size, rank, world, step), 3)
    assert [b.tolist() for b in through] == [b.tolist() for b in resumed]


def test_order_depends_on_seed_and_epoch():
    first = EpochOrder(50, 0)
    assert not np.array_equal(first(0, 50), first(50, 100))
    assert not np.array_equal(first(0, 50), EpochOrder(50, 1)(0, 50))
    np.testing.assert_array_equal(first(0, 50), EpochOrder(50, 0)(0, 50))


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 12))
def test_eval_takes_each_trial_once_in_order(n, world, batch_size):
    for rank in range(world):
        batches = list(eval_indices(n, batch_size, rank, world))
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
    ends = [list(eval_batches(made, "val", batch_size=3, image_size=16, workers=workers)) for workers in (0, 2)]
    assert [len(b["key"]) for b in ends[0]] == [3, 3, 3, 1] and all(map(same, *ends))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


def test_more_processes_than_trials(made):
    shares = [list(eval_batches(made, "val", batch_size=4, rank=rank, world=12)) for rank in range(12)]
    assert [sum(len(b["key"]) for b in share) for share in shares] == [1] * 10 + [0, 0]


SCRIPT = """
import os, signal, sys, threading
from neuroimagen.batches.stream import train_batches
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
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(made), "exit"], capture_output=True, text=True, timeout=900
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 went on\n", "")
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(made), "kill"], capture_output=True, text=True, timeout=900
    )  # returns once the workers too have let go of its output
    assert killed.returncode == -signal.SIGKILL and killed.stdout == "2 went on\n"


FAILING = """
import sys
from neuroimagen.batches import stream
stream.Batcher.read = lambda *arguments: 1 / 0
next(stream.train_batches(sys.argv[1], batch_size=4, workers=2))
"""


def test_a_fault_of_ours_in_a_worker_ends_the_process(made):
    """Its traceback keeps the loader alive until the interpreter ends, which must not wait for the workers."""
    done = subprocess.run([sys.executable, "-c", FAILING, str(made)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


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


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(1, 8),
    st.integers(1, 5),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 3),
)
def test_balanced_batches(sizes, classes, trials, world, seed):
    """P different classes x K trials; ranks share them; classes and trials come without replacement, as promised."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)) * 10, sizes))
    classes = min(classes, len(sizes))
    order = BalancedOrder(labels, classes, trials * world, seed)
    a_round = len(sizes) // classes
    whole = next(train_indices(order, classes * trials * world, 0, 1, 5))
    ranks = [next(train_indices(order, classes * trials, rank, world, 5)) for rank in range(world)]
    assert whole.tolist() == np.concatenate(ranks).tolist()
    seen: dict[int, list[int]] = {}
    for number in range(4):
        drawn = []
        for step in range(number * a_round, (number + 1) * a_round):
            for group in order.batch(step).reshape(classes, trials * world):
                (label,) = set(labels[group])
                n = sizes[label // 10]
                assert len(set(group)) == min(n, trials * world)  # none twice unless the class is too small
                drawn.append(label)
                seen.setdefault((label, number // max(1, n // (trials * world))), []).extend(set(group))
        assert len(set(drawn)) == len(drawn) == a_round * classes  # no class twice in a round
    assert all(len(set(group)) == len(group) for group in seen.values())  # no trial twice in a pass


def test_balanced_order_by_hand():
    """Two classes of 4 and 2 trials in batches of 1 x 2: a round is one batch of each; the small one repeats itself."""
    labels = np.array([7, 3, 7, 7, 3, 7])
    order = BalancedOrder(labels, 1, 2, seed=0)
    rounds = [[order.batch(2 * r), order.batch(2 * r + 1)] for r in range(2)]
    for pair in rounds:
        assert sorted(labels[group[0]] for group in pair) == [3, 7]
    of = {label: [group for pair in rounds for group in pair if labels[group[0]] == label] for label in (3, 7)}
    assert sorted(np.concatenate(of[7])) == [0, 2, 3, 5]  # two rounds are one pass of the class of four
    assert [sorted(group) for group in of[3]] == [[1, 4], [1, 4]]
    far = [BalancedOrder(labels, 1, 2, seed)(0, 200).tolist() for seed in (0, 0, 1)]
    assert far[0] == far[1] != far[2]


def test_balanced_stream(made):
    """On real shards: workers, ranks and resume change nothing, and what does not fit is refused."""
    size = {"classes_per_batch": 2, "trials_per_class": 4}
    whole = [next(train_batches(made, batch_size=8, step=step, **size)) for step in range(4)]
    for batch in whole:
        assert sorted(np.unique(batch["label"], return_counts=True)[1]) == [4, 4]
    worked = train_batches(made, batch_size=8, workers=2, **size)
    assert all(same(batch, next(worked)) for batch in whole)
    halves = [train_batches(made, batch_size=4, rank=rank, world=2, **size) for rank in (0, 1)]
    for batch in whole:
        assert batch["key"] == [key for half in halves for key in next(half)["key"]]
    with pytest.raises(ValueError, match="2 x trials_per_class=4 is not global_batch_size=9"):
        train_batches(made, batch_size=9, **size)
    with pytest.raises(ValueError, match="classes_per_batch=5, but the train split has trials of 3 classes"):
        train_batches(made, batch_size=10, classes_per_batch=5, trials_per_class=2)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(2, 4), st.integers(0, 3), st.sampled_from([1, 2])
)
def test_repeated_trials_are_of_one_group(groups, k, seed, world):
    if len(set(groups)) == len(groups):
        with pytest.raises(ValueError, match=f"average_k={k}: no picture was shown to anyone twice"):
            RepeatedOrder(EpochOrder(len(groups), seed), np.array(groups), k, seed)
        return
    n, whole = len(groups), EpochOrder(len(groups), seed)
    order = RepeatedOrder(whole, np.array(groups), k, seed)
    ranks = [train_indices(order, k * n, rank, world, 0) for rank in range(world)]
    rows = np.concatenate([next(rank) for rank in ranks]).reshape(-1, k)
    assert rows[:, 0].tolist() == whole(0, world * n).tolist()  # each trial once an epoch, with others
    for row in rows:
        group = [i for i in range(n) if groups[i] == groups[row[0]]]
        assert len(set(row.tolist())) == min(k, len(group)) and set(row.tolist()) <= set(group)
        assert len(group) < k or len(set(row.tolist())) == k
    assert np.array_equal(order(k, 3 * k), order(0, 3 * k)[k:])  # a position is all there is


def test_partners_are_drawn_anew_and_from_all():
    order = RepeatedOrder(EpochOrder(6, 0), np.zeros(6, int), 2, 0)
    pairs = {tuple(pair) for pair in order(0, 1200).reshape(-1, 2).tolist()}
    assert pairs == {(a, b) for a in range(6) for b in range(6) if a != b}


def test_the_mean_of_several_trials(made):
    """By hand, from single trials; the same with workers and on two processes; of the trials that are asked for."""
    split = ShardSplit(made, "train")
    groups = np.arange(len(split)) // 3
    order = RepeatedOrder(EpochOrder(np.arange(0, len(split), 2), 4), groups, 2, 4)

    def batches(**options):
        return (averaged(batch, 2) for batch in train_batches(made, order=order, **options))

    whole = next(batches(batch_size=16))
    single = Batcher(split, None)
    for row, pair in enumerate(order(0, 16).reshape(-1, 2)):
        trials = single(pair)
        torch.testing.assert_close(whole["eeg"][row], trials["eeg"].mean(0), rtol=0, atol=1e-6)
        assert whole["key"][row] == trials["key"][0] and whole["index"][row] == pair[0] and pair[0] % 2 == 0
        assert whole["subject"][row] == trials["subject"][0] and whole["image_name"][row] == trials["image_name"][0]
    halves = [next(batches(batch_size=8, rank=rank, world=2, workers=1)) for rank in (0, 1)]
    assert torch.equal(whole["eeg"], torch.cat([half["eeg"] for half in halves]))
    later = batches(batch_size=16)
    next(later)
    assert same(next(later), next(batches(batch_size=16, step=1)))


def damage(made, folder, wounds: dict[int, str]) -> ShardSplit:
    """A copy of the shards in which these train trials cannot be read; the sizes stay as they are."""
    shutil.copytree(made, folder)
    split = ShardSplit(folder, "train")
    for i, member in wounds.items():
        row = split.index[i]
        with open(split.paths[row["tar"]], "r+b") as file:
            file.seek(row[member][0])
            file.write(b"\xff" * min(400, row[member][1]))  # a float16 of ones only is NaN
    return split


WOUNDS = {3: "eeg", 17: "json", 30: "picture"}


def test_bad_trials_are_replaced_and_counted(made, tmp_path, capsys):
    """Each by the same readable one, whatever the workers, the processes, the step one starts at."""
    split = damage(made, tmp_path / "shards", WOUNDS)
    options = {"image_size": 16, "max_bad_samples": 3, "seed": 5}
    whole = train_batches(split.folder, batch_size=8, **options)
    sound = train_batches(made, batch_size=8, image_size=16, seed=5)
    batches, skipped = [], []
    for _ in range(10):  # two epochs
        batch, meant = next(whole), next(sound)
        batches.append(batch)
        skipped += batch["skipped"]
        for row, i in enumerate(meant["index"].tolist()):
            assert (batch["index"][row] != i) == (i in WOUNDS)
            if i not in WOUNDS:
                assert torch.equal(batch["eeg"][row], meant["eeg"][row])
        assert not set(batch["index"].tolist()) & set(WOUNDS)
        assert all(split.keys[i] == key for i, key in zip(batch["index"], batch["key"], strict=True))
    assert set(skipped) == {split.keys[i] for i in WOUNDS}
    said = capsys.readouterr().err
    assert said.count("skipped, bad trial") == 3 and "bad trial 3 of at most 3" in said
    for i in WOUNDS:
        assert split.keys[i] in said and split.paths[split.index[i]["tar"]].name in said
    worked = train_batches(split.folder, batch_size=8, workers=2, **options)
    assert all(same(batch, next(worked)) for batch in batches)
    resumed = train_batches(split.folder, batch_size=8, step=6, **options)
    assert same(batches[6], next(resumed))
    halves = [train_batches(split.folder, batch_size=4, rank=rank, world=2, **options) for rank in (0, 1)]
    for batch in batches:
        assert batch["key"] == [key for half in halves for key in next(half)["key"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_trials_stop_the_stream(made, tmp_path, workers):
    split = damage(made, tmp_path / "shards", WOUNDS)
    for allowed, said in ((0, "a bad trial with max_bad_samples=0"), (2, "3 bad trials with max_bad_samples=2")):
        batches = train_batches(
            split.folder, batch_size=8, image_size=16, max_bad_samples=allowed, workers=workers, seed=5
        )
        with pytest.raises(ValueError, match=said) as stopped:
            for _ in range(5):
                next(batches)
        assert "\n" not in str(stopped.value) and ".tar" in str(stopped.value)
        assert any(split.keys[i] in str(stopped.value) for i in WOUNDS)
    with pytest.raises(ValueError, match="cannot be read|damaged JSON"):  # evaluation never skips
        list(eval_batches(split.folder, "train", batch_size=8, image_size=16, workers=workers))


def test_a_vanished_tar_is_named_and_its_trials_get_different_substitutes(made, tmp_path):
    split = damage(made, tmp_path / "shards", {})
    lost = np.flatnonzero(split.index["tar"] == 1)  # 16 of 40 trials
    opened = [train_batches(split.folder, batch_size=40, max_bad_samples=allowed) for allowed in (0, 40)]
    split.paths[1].unlink()
    with pytest.raises(ValueError, match=split.paths[1].name):
        next(opened[0])
    batch = next(opened[1])
    assert not set(batch["index"].tolist()) & set(lost) and len(batch["skipped"]) == len(lost)
    assert np.bincount(batch["index"]).max() <= 3  # no trial stands for all of them
    for path in split.paths:
        path.unlink(missing_ok=True)
    batcher = Batcher(split, None, allowed=40)
    assert len(batcher.read(np.arange(3), *batcher.room(3, torch.empty))["bad"]) == 40


def test_a_balanced_substitute_is_of_the_same_class(made, tmp_path):
    split = damage(made, tmp_path / "shards", {17: "json"} | dict.fromkeys(range(5), "eeg"))
    size = {"classes_per_batch": 3, "trials_per_class": 4}
    with pytest.raises(ValueError, match=split.keys[17]):
        train_batches(split.folder, batch_size=12, **size)
    batches = train_batches(split.folder, batch_size=12, max_bad_samples=6, **size)
    skipped = []
    for _ in range(12):
        batch = next(batches)
        assert np.unique(batch["label"], return_counts=True)[1].tolist() == [4, 4, 4]
        assert not set(batch["index"].tolist()) & {0, 1, 2, 3, 4, 17}
        skipped += batch["skipped"]
    assert set(skipped) == set(split.keys[:5])  # 17 was left out at the start


def test_a_slow_consumer_sees_no_batch_overwritten(made):
    """Workers run ahead as far as they may while the consumer sleeps."""
    plain, worked = (train_batches(made, batch_size=5, image_size=16, workers=workers) for workers in (0, 2))
    for number in range(8):
        batch = next(worked)
        time.sleep(0.15 if number < 3 else 0)
        assert same(batch, next(plain))


def test_simplejpeg_and_pil_give_the_same_bits(monkeypatch):
    """So it does not matter which of the two decodes a JPEG (see decode)."""
    rng = np.random.default_rng(0)
    pixels = np.array(Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((301, 203)))
    pictures = []
    for mode, options in (("RGB", {}), ("L", {}), ("RGB", {"progressive": True}), ("RGB", {"subsampling": 0})):
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
        pictures.append(buffer.getvalue())
    fast = [load_picture(data, size) for data in pictures for size in (24, 40, 224)]
    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", lambda data: (_ for _ in ()).throw(ValueError))
    slow = [load_picture(data, size) for data in pictures for size in (24, 40, 224)]
    assert all(map(torch.equal, fast, slow))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xe0", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(ValueError, match="picture cannot be decoded"):
        load_picture(data, 16)


def test_truncated_and_gigantic_pictures_are_refused():
    whole = picture(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8), "JPEG")
    load_picture(whole, 16)
    with pytest.raises(ValueError, match="truncated"):
        load_picture(whole[: len(whole) // 2], 16)
    size = whole.index(b"\xff\xc0") + 5  # height and width in the frame header
    bomb = whole[:size] + (60000).to_bytes(2, "big") * 2 + whole[size + 4 :]
    with pytest.raises(ValueError, match="it claims more than 50,000,000 pixels in all"):
        load_picture(bomb, 16)


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_a_tar_that_is_not_there_when_the_stream_opens(made, tmp_path, damage):
    shutil.copytree(made, tmp_path / "shards")
    tar = tmp_path / "shards/train-000001.tar"  # trials 16 to 31 of 40
    tar.unlink() if damage == "gone" else os.truncate(tar, 100)
    with pytest.raises(ValueError, match=r"train-000001\.tar (is missing|has 100 bytes)"):
        train_batches(tmp_path / "shards", batch_size=40)
    batch = next(train_batches(tmp_path / "shards", batch_size=40, max_bad_samples=16))
    assert len(batch["skipped"]) == 16 and not set(batch["index"].tolist()) & set(range(16, 32))
    with pytest.raises(ValueError, match=r"train-000001\.tar: trial .*16 bad trials with max_bad_samples=15"):
        next(train_batches(tmp_path / "shards", batch_size=40, max_bad_samples=15))
    (tmp_path / "shards/train.index.npy").unlink()  # then nobody knows what it held
    with pytest.raises(ValueError, match=r"train-000001\.tar"):
        train_batches(tmp_path / "shards", batch_size=40, max_bad_samples=16)
