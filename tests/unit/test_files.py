"""A poor machine stops a run with a sentence and never passes for damage; the environment does not change numbers."""

import errno
import fcntl
import inspect
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import types
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import LoggerType, launch
from perceivelab_files import write_shards
from safetensors.torch import save_model

from neuroimagen import files
from neuroimagen.batches.decode import load_picture
from neuroimagen.batches.stream import eval_batches, train_batches
from neuroimagen.config import TrainConfig
from neuroimagen.run import processes, trackers
from neuroimagen.run.run import Run
from neuroimagen.shards.format import ShardSplit, load_index, read_manifest, scan_tar
from neuroimagen.shards.remote import cache_folder

MACHINES = ["EMFILE", "ENFILE", "ENOMEM", "EIO", "ESTALE", "ETIMEDOUT", "EINTR", "EACCES", "EPERM", "EAGAIN", "ENOSPC"]
MACHINES += ["EDQUOT", "EROFS", "ENODEV", "EHOSTDOWN", "EREMOTEIO", "EBUSY", "ENOLCK", "ENOTCONN", "EPROTO"]
FILES = ["ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG"]


class Model(torch.nn.Linear):
    def save_pretrained(self, directory):
        Path(directory).mkdir(parents=True)
        save_model(self, str(Path(directory) / "model.safetensors"))


def train(run_dir: Path, **options) -> torch.Tensor:
    """The weights after four steps whose gradients are clipped."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    run = Run(TrainConfig(run_dir=str(run_dir), max_steps=4, log_every=1, global_batch_size=4, **options))
    torch.manual_seed(0)
    model = Model(2, 1)
    model, optimizer = run.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    run.resume()
    while run.going():
        x = run.randn(4, 2)
        for part in run.parts({"x": x}):
            loss = 10 * (model(part["x"]) - 1).square().mean()
            run.backward(loss, [], loss=loss)
        run.update(optimizer, model, 1.0)
        run.advance()
        if run.validation_due():
            run.log({"loss": 0.0}, prefix="val/")
            run.image("picture", torch.zeros(3, 4, 4))
            run.class_table("guesses", torch.tensor([0, 1]), torch.tensor([0, 0]), {0: "panda"})
    assert run.finish(model=model) == 0
    return torch.cat([model.weight.detach().flatten(), model.bias.detach()])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("study"), shard_size=1)


# --- the environment


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return train(tmp_path_factory.mktemp("plain") / "run")


def step() -> torch.Tensor:
    """The weights after one step by accelerate's means alone, whose gradient is clipped."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = processes.make_accelerator("fp32")
    torch.manual_seed(0)
    model = Model(2, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    accelerator.backward(100 * model(torch.randn(4, 2)).square().mean())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert type(model) is Model and not accelerator.trackers
    return torch.cat([model.weight.detach().flatten(), model.bias.detach()])


def said_by_accelerate() -> list[str]:
    """Every variable of its own that the installed accelerate reads or its launcher sets."""
    folder = Path(inspect.getfile(accelerate)).parent
    text = "".join(file.read_text() for file in (*folder.glob("*.py"), *folder.glob("utils/*.py")))
    names = {*re.findall(r'"((?:ACCELERATE|FSDP|PARALLELISM)_[A-Z0-9_]+[A-Z0-9])"', text)}
    names |= {f"ACCELERATE_DYNAMO_{name}" for name in ("BACKEND", "MODE", "USE_FULLGRAPH", "USE_DYNAMIC")}
    return sorted(names - {"ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_CPU"})


def test_no_variable_of_accelerate_changes_the_weights(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")
    names, plain = said_by_accelerate(), step()
    assert {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP"} <= {*names}
    words = {"MIXED_PRECISION": "bf16", "DYNAMO_BACKEND": "inductor", "TORCH_DEVICE": "cpu"}
    for name in {*names} - {*processes.OTHER_WAYS}:
        number = name.endswith(("STEPS", "SIZE", "VERSION", "CLIPPING"))
        monkeypatch.setenv(name, words.get(name[11:], "64" if number else "true"))
    assert torch.equal(step(), plain)  # all at once
    assert {*names} - {*processes.variables()} == {*processes.OTHER_WAYS} - {*processes.variables()}


def test_a_default_config_of_accelerate_changes_nothing(tmp_path, plain, monkeypatch):
    """What its launcher makes of ~/.cache/huggingface/accelerate/default_config.yaml."""
    text = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: bf16\nuse_cpu: true\n"
    text += "dynamo_config: {dynamo_backend: INDUCTOR, dynamo_mode: max-autotune}\n"
    text += "num_processes: 1\nnum_machines: 1\nmachine_rank: 0\ndebug: false\ndowncast_bf16: 'yes'\n"
    (tmp_path / "default_config.yaml").write_text(text)
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    command = ["--config_file", str(tmp_path / "default_config.yaml"), "trainer.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    _, environment = launch.prepare_simple_launcher_cmd_env(arguments)
    changed = {name: value for name, value in environment.items() if os.environ.get(name) != value}
    assert changed["ACCELERATE_MIXED_PRECISION"] == "bf16" and changed["ACCELERATE_DYNAMO_BACKEND"] == "INDUCTOR"
    for name, value in {**changed, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "64"}.items():
        monkeypatch.setenv(name, value)
    assert torch.equal(train(tmp_path / "run"), plain)
    told = json.loads((tmp_path / "run/environment.json").read_text())["variables"]
    assert told["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "64" and {*changed} <= {*told}


@pytest.mark.parametrize("name", [*processes.OTHER_WAYS, *processes.FEWER_BITS, "NVIDIA_TF32_OVERRIDE"])
def test_what_computes_otherwise_is_refused(tmp_path, monkeypatch, name):
    harmless = {"NVIDIA_TF32_OVERRIDE": "0", **dict.fromkeys(processes.FEWER_BITS, "STRICT")}.get(name, "NO")
    monkeypatch.setenv(name, harmless)
    AcceleratorState._reset_state(reset_partial_state=True)
    processes.make_accelerator("fp32")
    for value in ("1", "true", "BF16", "any"):
        monkeypatch.setenv(name, value)
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(ValueError, match=f"the environment has {name}={value}, .*: unset it"):
            processes.make_accelerator("fp32")
    if name not in processes.OTHER_WAYS:  # nor do the commands that have no accelerator
        with pytest.raises(ValueError, match=name):
            processes.set_tf32(False)


@pytest.mark.parametrize("name", ["TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"])
def test_compile_that_is_switched_off_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match=f"{name}=1, and compile=true would do nothing"):
        train(tmp_path / "run", compile=True)
    train(tmp_path / "run")


RECORDED = """
    ATEN_CPU_CAPABILITY CUBLAS_WORKSPACE_CONFIG CUBLASLT_WORKSPACE_SIZE CUDA_VISIBLE_DEVICES CUDNN_LOGLEVEL_DBG
    DIFFUSERS_ATTN_BACKEND DNNL_MAX_CPU_ISA ONEDNN_MAX_CPU_ISA DS_SKIP_CUDA_CHECK FBGEMM_FORCE_AUTOVEC
    FSDP_VERSION FLASH_ATTENTION_DETERMINISTIC GOMP_CPU_AFFINITY HF_HOME HF_HUB_OFFLINE HIPBLASLT_ALLOW_TF32
    HUGGINGFACE_HUB_CACHE KMP_AFFINITY MKL_CBWR MKL_NUM_THREADS MKL_DISABLE_FAST_MM NCCL_ALGO
    NPY_DISABLE_CPU_FEATURES NPY_PROMOTION_STATE NUMPY_MADVISE_HUGEPAGE OMP_NUM_THREADS OPENBLAS_CORETYPE
    OPENBLAS_NUM_THREADS PYTHONHASHSEED PYTHONOPTIMIZE PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF
    SCIPY_ARRAY_API TORCHDYNAMO_DISABLE TORCHINDUCTOR_USE_FAST_MATH TORCHINDUCTOR_MAX_AUTOTUNE
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE TORCH_BLAS_PREFER_CUBLASLT TORCH_COMPILE_DISABLE
    TORCH_CUDNN_V8_API_DISABLED TORCH_LINALG_PREFER_CUSOLVER TORCH_MKLDNN_MATMUL_MIN_DIM
    TORCH_NCCL_USE_COMM_NONBLOCKING TRANSFORMERS_SDPA_FORCE_GQA TRANSFORMERS_OFFLINE USE_HUB_KERNELS WDS_CACHE
    WDS_SEED GOPEN_BUFFER XLA_USE_BF16 VECLIB_MAXIMUM_THREADS BLIS_NUM_THREADS NUMBA_NUM_THREADS
    NUMEXPR_NUM_THREADS MNE_USE_NUMBA LD_PRELOAD ACCELERATE_DOWNCAST_BF16 DEEPSPEED_TIMEOUT MIOPEN_FIND_MODE
    TRITON_CACHE_DIR
"""


def test_what_may_change_the_last_bits_is_recorded_without_secrets(tmp_path, monkeypatch):
    for name in (
        *RECORDED.split(),
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "EDITOR",
    ):
        monkeypatch.setenv(name, "hostile")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:hostile@mirror")
    found = processes.variables()
    assert {name for name in RECORDED.split() if found.get(name) != "hostile"} == set()
    assert found["HF_TOKEN"] == found["HF_ENDPOINT"] == "(set)" and "EDITOR" not in found
    assert [name for name in found if name not in RECORDED.split() and found[name] == "hostile"] == []


# --- what it lacks


def test_without_git_a_run_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    train(tmp_path / "run")
    assert json.loads((tmp_path / "run/environment.json").read_text())["commit"] is None


def test_without_a_home_the_cache_must_be_named(tmp_path, monkeypatch):
    monkeypatch.delenv("NEUROIMAGEN_CACHE", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(ValueError, match="no home for the cache: set NEUROIMAGEN_CACHE"):
        cache_folder()
    monkeypatch.setenv("NEUROIMAGEN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


@pytest.mark.parametrize("umask, rights", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
def test_weights_have_the_rights_of_other_files(tmp_path, umask, rights):
    before = os.umask(umask)
    try:
        train(tmp_path / "run", checkpoint_every=4)
    finally:
        os.umask(before)
    found = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"model", "step-00000004"} <= {path.parent.name for path in found if path.suffix == ".safetensors"}
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in found} == {oct(rights)}


def test_weights_have_the_rights_that_their_folder_gives(tmp_path):
    (tmp_path / "below").mkdir()
    for path in (tmp_path / "a.safetensors", tmp_path / "below/b.safetensors", tmp_path / "mine.txt"):
        path.touch(0o600)
        path.chmod(0o600)
    files.share_weights(tmp_path)
    mask = os.umask(0)
    os.umask(mask)
    rights = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert rights == {"a.safetensors": 0o666 & ~mask, "b.safetensors": 0o666 & ~mask, "mine.txt": 0o600}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_cannot_be_written_is_named_and_the_old_stays(tmp_path, monkeypatch, code):
    path = tmp_path / "stats.json"
    path.write_text("old")

    def full(self, data):
        self.touch()
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=re.escape(str(path))) as stopped:
        files.write_atomic(path, "new")
    assert stopped.value.errno == code and path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_replaced_is_the_old_or_the_new_whole(tmp_path, kind):
    """Also where a process that was killed has left half of it; and nothing of a failure stays."""
    path, left = tmp_path / "model", tmp_path / "model.partial"

    def write(partial: Path, text: str) -> None:
        if kind == "directory":
            partial.mkdir()
        (partial / "weights" if kind == "directory" else partial).write_text(text)

    write(left, "half")
    with files.replacing(path) as partial:
        write(partial, "whole")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as partial:
        write(partial, "new")
        raise KeyboardInterrupt
    assert [*tmp_path.iterdir()] == [path]
    assert (path / "weights" if kind == "directory" else path).read_text() == "whole"


def test_two_processes_may_write_the_same_file(tmp_path):
    with files.replacing(tmp_path / "a", own=True) as partial:
        assert str(os.getpid()) in partial.name
        partial.write_text("mine")
        files.write_atomic(tmp_path / "a", "theirs")
    assert (tmp_path / "a").read_text() == "mine"


CLAIM = """
import sys
from pathlib import Path
from neuroimagen import files
try:
    files.claim(Path(sys.argv[1]), "")
    print("mine")
except files.Taken as holder:
    print(holder)
"""


def test_what_is_claimed_is_refused_to_others_until_it_is_let_go(tmp_path):
    path = tmp_path / "lock"

    def another() -> str:
        return subprocess.run([sys.executable, "-c", CLAIM, str(path)], capture_output=True, text=True).stdout.strip()

    file = files.claim(path, "")
    assert another() == f"process {os.getpid()} on {platform.node()}"
    os.close(file)
    assert another() == "mine"


def test_a_lock_that_its_holder_has_just_removed_is_not_had(tmp_path, monkeypatch):
    lockf = fcntl.lockf
    monkeypatch.setattr("fcntl.lockf", lambda *how: (os.unlink(tmp_path / "lock"), lockf(*how)))
    with pytest.raises(files.Taken):
        files.claim(tmp_path / "lock", "")


def test_where_nothing_can_be_locked_the_user_is_told(tmp_path, monkeypatch, capsys):
    def unknown(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", unknown)
    os.close(files.claim(tmp_path / "lock", "start only one run there"))
    said = capsys.readouterr().err
    assert said == f"warning: {tmp_path}/lock cannot be locked here (No locks available): start only one run there\n"


def test_versions():
    found = files.versions("torch", "no-such-package")
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]  # one may leave out +cu130
    assert found["no-such-package"] == "not installed"


def test_a_full_disk_under_the_log_is_named(tmp_path, monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a buffered write fails when the file is closed

        def write(self, text):
            pass

    monkeypatch.setattr("neuroimagen.run.trackers.open", lambda *how, **more: Full(), raising=False)
    with pytest.raises(OSError, match=r"No space left on device: '.*run/stats.jsonl'"):
        train(tmp_path / "run")


# --- few files, no memory, a disk that does not answer: never damage


@pytest.mark.parametrize("name", MACHINES + FILES)
def test_the_machines_errors_are_told_from_the_files(name):
    code = getattr(errno, name)
    if name in FILES:
        return files.pass_on(OSError(code, os.strerror(code), "/a/file"))
    with pytest.raises(OSError) as passed:
        files.pass_on(OSError(code, os.strerror(code), "/a/file"))
    assert passed.value.errno == code and passed.value.filename == "/a/file"
    assert ("ulimit -n is" in str(passed.value)) == (name == "EMFILE")


def test_what_decoders_say_is_of_the_file_but_not_that_memory_ran_out():
    for error in (ValueError("no"), OSError("image file is truncated"), EOFError(), SyntaxError("not a TIFF file")):
        files.pass_on(error)
    for error in (MemoryError(), OSError("out of memory error when reading image file")):
        with pytest.raises(OSError, match="Cannot allocate memory"):
            files.pass_on(error)


@pytest.fixture
def failing(monkeypatch):
    """failing(code, times): reading from a tar raises it from now on, so many times."""

    def begin(code: int, times: int = 1 << 30, what: str = "preadv") -> None:
        left, real = [times], getattr(os, what)

        def fails(path, *more, **options):
            if left[0] and (what == "preadv" or str(path).endswith(".tar")):
                left[0] -= 1
                raise OSError(code, os.strerror(code))
            return real(path, *more, **options)

        monkeypatch.setattr(os, what, fails)

    return begin


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOMEM", "EIO", "ESTALE", "ETIMEDOUT", "EACCES"])
def test_a_machine_that_cannot_read_replaces_no_trial(made, failing, capsys, name, workers):
    code = getattr(errno, name)
    failing(code, what="open" if name in ("EMFILE", "ENFILE", "EACCES") else "preadv")
    for options in ({"max_bad_samples": 30}, {}):
        batches = train_batches(made, batch_size=8, image_size=16, workers=workers, **options)
        with pytest.raises(
            ValueError, match=rf"train-0000\d\d.tar: trial \S+ cannot be read \({os.strerror(code)}"
        ) as said:
            next(batches)
        assert "\n" not in str(said.value) and "Errno" not in str(said.value)
        assert "make the shards again" not in str(said.value) and ("ulimit -n" in str(said.value)) == (name == "EMFILE")
    with pytest.raises(ValueError, match="cannot be read"):
        next(eval_batches(made, "val", batch_size=8, workers=workers))
    with pytest.raises(OSError, match="cannot be read"):
        train_batches(made, batch_size=8, classes_per_batch=2, trials_per_class=4, max_bad_samples=30)
    assert "skipped" not in capsys.readouterr().err


def test_memory_that_runs_out_replaces_no_trial(made, monkeypatch, capsys):
    def no_memory(*what, **how):
        raise MemoryError

    monkeypatch.setattr("neuroimagen.batches.decode.simplejpeg.decode_jpeg_header", no_memory)
    with pytest.raises(ValueError, match=r"trial \S+ cannot be read \(Cannot allocate memory\)"):
        next(train_batches(made, batch_size=8, image_size=16, max_bad_samples=30))
    with pytest.raises(OSError, match="Cannot allocate memory"):
        load_picture(b"\xff\xd8\xff", 16)
    assert "skipped" not in capsys.readouterr().err


def test_a_file_server_that_restarts_is_asked_again(made, failing):
    split = ShardSplit(made, "train")
    sound = [split.picture(i) for i in range(len(split))]
    failing(errno.ESTALE, times=1)
    assert [split.picture(i) for i in range(len(split))] == sound


@pytest.mark.parametrize("limit", [64, 90, 256])
def test_few_open_files_are_enough_for_many_tars(made, monkeypatch, limit):
    sound = next(train_batches(made, batch_size=40))
    monkeypatch.setattr("resource.getrlimit", lambda what: (limit, limit))
    monkeypatch.setattr("resource.setrlimit", lambda what, limits: None)
    split = ShardSplit(made, "train")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for i in (*range(len(split)), *range(len(split))):
        split.picture(i)
    assert len(split.files) == min(limit // 8, 40)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before + len(split.files)
    found = next(train_batches(made, batch_size=40))
    assert found["key"] == sound["key"] and torch.equal(found["eeg"], sound["eeg"])


def test_the_manifest_and_the_index_are_not_damaged_where_no_file_can_be_opened(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "shards")
    tar, index = next((tmp_path / "shards").glob("train-*.tar")), tmp_path / "shards/train.index.npy"

    def none_left(*what, **how):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(what[0]))

    monkeypatch.setattr("builtins.open", none_left)
    monkeypatch.setattr("io.open", none_left)
    monkeypatch.setattr("neuroimagen.shards.format.np.load", none_left)
    for read in (lambda: read_manifest(tmp_path / "shards"), lambda: scan_tar(tar, 0), lambda: load_index(index, 40)):
        with pytest.raises(OSError, match="Too many open files, ulimit -n is"):
            read()


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC, errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_loader_processes_that_cannot_start_name_workers(made, monkeypatch, code):
    def refused(*what, **how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refused)
    with pytest.raises(ValueError, match=rf"workers=2: .*{os.strerror(code)}.*give workers=0"):
        next(train_batches(made, batch_size=8, workers=2))
    assert next(train_batches(made, batch_size=8))["skipped"] == []


# --- trackers


class Tracker:
    name = "wandb"

    def __init__(self, fails_at: str) -> None:
        self.fails_at, self.called = fails_at, []

    def __getattr__(self, name):
        if name not in ("log", "log_images", "log_table", "finish"):
            raise AttributeError(name)

        def called(*what, **how):
            self.called.append(name)
            if name == self.fails_at:
                raise RuntimeError("the service\nhas died")

        return called


@pytest.mark.parametrize("fails_at", ["log", "log_images", "log_table", "finish"])
def test_a_tracker_that_dies_takes_no_run_along(tmp_path, plain, monkeypatch, capsys, fails_at):
    tracker = Tracker(fails_at)

    def start(self, *what):
        self.trackers.append(tracker)

    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [LoggerType.WANDB])
    monkeypatch.setattr("accelerate.Accelerator.init_trackers", start)
    monkeypatch.setattr(trackers, "reach_wandb", lambda: True)
    assert torch.equal(train(tmp_path / "run", trackers="wandb"), plain)
    assert tracker.called.count(fails_at) == 1 and tracker.called[-1] == fails_at
    assert "warning: wandb fails (the service has died); the run goes on without it" in capsys.readouterr().err
    assert (tmp_path / "run/DONE").exists() and len((tmp_path / "run/stats.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(ValueError, match=rf'trackers={name} needs pip install "neuroimagen\[{name}\]"'):
        train(tmp_path / "run", trackers=name)


@pytest.fixture
def wandb(monkeypatch):
    """What stands for it: importing it takes seconds."""
    settings = types.SimpleNamespace(mode="online", base_url="https://api.wandb.ai")
    wandb = types.SimpleNamespace(setup=lambda: types.SimpleNamespace(settings=settings), settings=settings)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [LoggerType.WANDB])
    monkeypatch.setattr("urllib.request.getproxies", dict)
    return wandb


def test_wandb_without_a_network_is_one_sentence_at_once(tmp_path, monkeypatch, wandb):
    def unreachable(address, timeout):
        assert address == ("api.wandb.ai", 443) and timeout <= 10
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr("socket.create_connection", unreachable)
    wandb.init = lambda *what, **how: pytest.fail("wandb was asked to try for itself")
    with pytest.raises(
        ValueError, match="trackers=wandb cannot start .*Network is unreach.*WANDB_MODE=offline"
    ) as said:
        train(tmp_path / "run", trackers="wandb")
    assert "\n" not in str(said.value)
    for mode in ("offline", "disabled"):
        wandb.settings.mode = mode
        assert not trackers.reach_wandb()


def test_wandb_without_a_key_is_one_sentence(tmp_path, monkeypatch, wandb):
    class UsageError(Exception):  # as wandb's, which is no ValueError
        pass

    def unknown(*what, **how):
        raise UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(trackers, "reach_wandb", lambda: True)
    wandb.init = unknown
    with pytest.raises(ValueError, match="trackers=wandb cannot start .No API key .*`wandb login` or WANDB_API_KEY"):
        train(tmp_path / "run", trackers="wandb")
