"""A trainer like those in trainers/, small enough to be started many times, that fails when it is told to."""

import dataclasses
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_model

sys.path.append(str(Path(__file__).parents[1]))
from forked import hold_where_told

from neuroimagen.config import TrainConfig, option, run_trainer
from neuroimagen.run.run import Run, set_learning_rate, warmup_cosine


@dataclasses.dataclass
class SmallConfig(TrainConfig):
    width: int = option(8, "units")
    hang_at: int = option(-1, "step at which rank 1 waits for ever")
    nan_at: list[int] = option([], "steps at which rank 1 (or the only one) has a loss that is not a number")


class Small(torch.nn.Sequential):
    def save_pretrained(self, directory):
        Path(directory).mkdir(parents=True)
        save_model(self, str(Path(directory) / "model.safetensors"))


def main(config: SmallConfig) -> int:
    run = Run(config)
    if run.done:
        return 0
    model = Small(torch.nn.Linear(4, config.width), torch.nn.Tanh(), torch.nn.Linear(config.width, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model, optimizer = run.prepare(model, optimizer)
    run.resume()
    while run.going():
        x = run.randn(run.batch_size, 4)
        lr = 0.01 * warmup_cosine(run.step, config.max_steps)
        set_learning_rate(optimizer, lr)
        batch = {"x": x, "key": [f"sample-{run.step}-{run.rank}-{i}" for i in range(len(x))]}
        if run.rank == 1 and run.step == config.hang_at:
            time.sleep(3600)
        for part in run.parts(batch):
            loss = (model(part["x"])[:, 0] - part["x"].sin().sum(1)).square().mean()
            if run.step in config.nan_at and run.rank == run.world - 1:
                loss = loss * float("nan")
            run.backward(loss, part["key"], loss=loss)
        run.update(optimizer, model, 1.0)
        run.advance(lr=lr)
        if run.validation_due():
            run.log({"loss": loss.item()}, prefix="val/")
            run.image("squares", torch.rand(3, 8, 16))
            run.class_table("guesses", torch.tensor([0, 1]), torch.tensor([0, 0]), {0: "panda"})
    return run.finish(model=model)


if __name__ == "__main__":
    hold_where_told()
    run_trainer(main, SmallConfig)
