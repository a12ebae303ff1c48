"""Run's arithmetic, by hand; its behaviour in real processes is in tests/processes."""

import dataclasses
import json
import signal

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from torch import nn

from neuroimagen.config import TrainConfig
from neuroimagen.run.processes import STOPPED, make_accelerator
from neuroimagen.run.run import Run, warmup_cosine
from neuroimagen.run.seeds import seed_from


@dataclasses.dataclass
class Config(TrainConfig):
    width: int = 2


class Model(nn.Linear):
    def save_pretrained(self, directory):
        from pathlib import Path

        Path(directory).mkdir(parents=True)
        torch.save(self.state_dict(), Path(directory) / "weights.pt")


def train(config: Config, stop_after: int | None = None) -> tuple[int, Model]:
    torch.manual_seed(0)
    run = Run(config)
    model = Model(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    model, optimizer = run.prepare(model, optimizer)
    run.resume()
    while run.going():
        x = run.randn(4, 2)
        loss = (model(x) - torch.rand(4, 1)).square().mean()
        run.backward(loss, [], loss=loss)
        run.update(optimizer, model)
        run.advance()
        if stop_after == run.step:
            signal.raise_signal(signal.SIGTERM)
    return run.finish(model=model), model


@pytest.fixture
def config(tmp_path):
    return Config(run_dir=str(tmp_path / "run"), max_steps=6, checkpoint_every=2, log_every=2, global_batch_size=4)


def test_warmup_cosine_by_hand():
    assert warmup_cosine(0, 100, 4) == 0.25 and warmup_cosine(3, 100, 4) == 1.0
    assert warmup_cosine(4, 104, 4) == 1.0 and warmup_cosine(54, 104, 4) == pytest.approx(0.5)
    assert warmup_cosine(104, 104, 4) == pytest.approx(0)


def test_seed_from_is_stable_and_tells_parts_apart():
    assert seed_from(0, "a") == seed_from(0, "a") == 225321766190137866
    assert len({seed_from(0, "a"), seed_from(0, "b"), seed_from(1, "a"), seed_from("0a")}) == 4
    assert 0 <= seed_from("x") < 2**63


def test_every_rank_gets_its_rows_of_one_draw(config):
    run = Run(config)
    run.going()
    whole = run.randn(4, 3)
    slices = []
    for rank in range(2):
        run.world, run.rank, run._draws = 2, rank, 0
        slices.append(run.randn(2, 3))
    assert torch.equal(torch.cat(slices), whole)
    assert not torch.equal(run.randn(2, 3), slices[-1])  # the next draw of a step is another


def test_stopped_and_continued_run_ends_with_the_same_bits(config, tmp_path):
    code, whole = train(config)
    assert code == 0
    cut = dataclasses.replace(config, run_dir=str(tmp_path / "cut"))
    code, _ = train(cut, stop_after=3)
    assert code == STOPPED and (tmp_path / "cut/PREEMPTED").exists() and not (tmp_path / "cut/DONE").exists()
    code, continued = train(cut)
    assert code == 0 and not (tmp_path / "cut/PREEMPTED").exists()
    assert torch.equal(whole.weight, continued.weight) and torch.equal(whole.bias, continued.bias)
    logs = [[json.loads(x) for x in (tmp_path / d / "stats.jsonl").read_text().splitlines()] for d in ("run", "cut")]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]] == [2, 4, 6]
    assert logs[0][-1]["loss"] == logs[1][-1]["loss"]
    assert sorted(p.name for p in (tmp_path / "cut/checkpoints").iterdir()) == ["step-00000004", "step-00000006"]


def test_a_save_cut_in_the_middle_is_not_resumed_from(config, tmp_path):
    train(config, stop_after=3)
    half = tmp_path / "run/checkpoints/step-00000005.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert train(config)[0] == 0


def test_a_done_run_is_left_alone(config, capsys):
    train(config)
    assert Run(config).done and "already done" in capsys.readouterr().out


def test_another_config_is_refused_with_its_keys(config):
    train(config)
    with pytest.raises(ValueError, match="width: 2 there, 3 here"):
        Run(dataclasses.replace(config, width=3))
    assert Run(dataclasses.replace(config, log_every=5)).done  # how often it logs changes nothing


def test_a_field_that_is_newer_than_the_run_had_its_default(config, tmp_path):
    train(config)
    path = tmp_path / "run/config.yaml"
    path.write_text(path.read_text().replace("compile: false\n", ""))
    assert "compile" not in path.read_text()
    assert Run(config).done
    with pytest.raises(ValueError, match="compile: False there, True here"):
        Run(dataclasses.replace(config, compile=True))


def test_a_directory_that_is_no_run_is_refused(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="not a run"):
        Run(config)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"precision": "fp16"}, "fp16 does nothing on a CPU"),
        ({"precision": "fp8"}, "not one of"),
        ({"tf32": True}, "NVIDIA GPUs"),
        ({"trackers": "mlflow"}, "not one of"),
        ({"global_batch_size": 0}, "must be at least 1"),
        ({"accumulate": 3}, "1 processes x accumulate=3"),
        ({"accumulate": 0}, "must be at least 1"),
    ],
)
def test_what_cannot_be_honoured_is_refused(config, change, said):
    if torch.cuda.is_available():
        pytest.skip("says what a CPU cannot do")
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match=said):
        Run(dataclasses.replace(config, **change))


def test_fp32_is_fp32_unless_tf32_is_asked_for(config, fp32_is_fp32):
    make_accelerator("fp32", tf32=True)
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    Run(config)


def test_a_run_directory_that_cannot_be_written_is_one_sentence(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").mkdir()  # no file can be opened there
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    with pytest.raises(ValueError, match="cannot write to run_dir"):
        Run(config)


def test_compiled_is_the_same_to_rounding(config, tmp_path):
    _, plain = train(config)
    compiled_config = dataclasses.replace(config, run_dir=str(tmp_path / "compiled"), compile=True)
    _, compiled = train(compiled_config)
    assert compiled._compiled_call_impl is not None and plain._compiled_call_impl is None
    assert torch.allclose(plain.weight, compiled.weight, atol=1e-5)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_a_step_whose_loss_is_not_finite_changes_nothing(config):
    run = Run(dataclasses.replace(config, nonfinite="skip"))
    model = Model(2, 1)
    model, optimizer = run.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    before = model.weight.detach().clone()
    for _ in range(2):
        assert run.going()
        x = torch.ones(4, 2) if run.step else torch.full((4, 2), float("inf"))
        run.backward(model(x).sum(), ["a", "b"], loss=model(x).sum())
        run.update(optimizer, model)
        run.advance()
        assert torch.equal(model.weight, before) == (run.step == 1)
    found = json.loads((run.dir / "nonfinite-00000000-rank0.json").read_text())
    assert found["keys"] == ["a", "b"] and found["step"] == 0
    (line,) = [json.loads(text) for text in (run.dir / "stats.jsonl").read_text().splitlines()]
    assert line["skipped"] == 1 and line["grad_norm"] == pytest.approx((2 * 4**2 + 4**2) ** 0.5)


def test_log_means_are_over_parts_and_steps(config):
    run = Run(dataclasses.replace(config, accumulate=2))
    for first, second in ((1.0, 2.0), (3.0, 6.0)):
        run.note(loss=first)
        run.note(loss=second)
        run.advance(lr=first)
    (line,) = [json.loads(text) for text in (run.dir / "stats.jsonl").read_text().splitlines()]
    assert line["loss"] == 3.0 and line["lr"] == 2.0
    assert line["samples_per_second"] == pytest.approx(4 / line["step_seconds"])


def test_parts_cut_everything_alike(config):
    run = Run(dataclasses.replace(config, accumulate=2))
    parts = list(run.parts({"x": torch.arange(4), "key": ["a", "b", "c", "d"]}))
    assert [part["x"].tolist() for part in parts] == [[0, 1], [2, 3]]
    assert [part["key"] for part in parts] == [["a", "b"], ["c", "d"]]


def test_class_table_by_hand(config):
    run = Run(config)
    guesses, labels = torch.tensor([5, 5, 7, 5]), torch.tensor([5, 5, 5, 7])
    run.class_table("val", guesses, labels, {5: "panda", 7: "pizza, sliced"})
    lines = (run.dir / "tables/val-00000000.csv").read_text().splitlines()
    assert lines == ["class,trials,accuracy", f"panda,3,{2 / 3}", '"pizza, sliced",1,0.0']
