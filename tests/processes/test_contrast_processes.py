"""The contrast over several processes has the loss and the gradients of one process with the whole batch."""

import pytest
import torch
from torch.nn import functional as F

from neuroimagen.contrastive import losses
from neuroimagen.run.collectives import gather_rows
from neuroimagen.run.processes import leave_process_group

KINDS = "infonce", "siglip"


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(5, 4)
        self.scale, self.bias = torch.nn.Parameter(torch.tensor(9.0)), torch.nn.Parameter(torch.tensor(-2.0))

    def forward(self, eeg):
        return F.normalize(self.layer(eeg), dim=1), self.scale, self.bias


def example_batch():
    generator = torch.Generator().manual_seed(3)
    pictures = torch.randint(0, 7, (12,), generator=generator)
    features = F.normalize(torch.randn(7, 4, generator=generator), dim=1)
    return torch.randn(12, 5, generator=generator), pictures, features


def step(kind, model, eeg, pictures, features, chunk):
    """Loss and gradients."""
    z, scale, bias = model(eeg)
    ids = gather_rows(pictures)
    if kind == "infonce":
        loss = losses.info_nce(z, features[ids], ids, scale, chunk) + 0 * bias
    else:
        loss = losses.siglip(z, features[ids], ids, scale, bias, chunk)
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]


def made():
    torch.manual_seed(0)
    return Model()


def compare_with_one_process():
    """Runs in each of the processes."""
    expected = {kind: step(kind, made(), *example_batch(), 100) for kind in KINDS}  # before there is a group
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for kind, (loss_one, gradients_one) in expected.items():
        eeg, pictures, features = example_batch()
        mine = slice(len(eeg) // world * rank, len(eeg) // world * (rank + 1))
        model = torch.nn.parallel.DistributedDataParallel(made())
        loss, gradients = step(kind, model, eeg[mine], pictures[mine], features, 3)
        assert sum(gradient.abs().max() > 1e-3 for gradient in gradients_one) == (3 if kind == "infonce" else 4)
        torch.testing.assert_close(gradients, gradients_one)
        torch.distributed.all_reduce(loss)
        torch.testing.assert_close(loss / world, loss_one)
        if rank == 0:
            print(f"{kind} equal over {world}", flush=True)
        del model
    leave_process_group()


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_contrast_of_several_processes_is_that_of_one(start, world):
    processes = start([__file__], world)
    assert processes.wait() == [0] * world, processes.log.read_text()
    assert processes.log.read_text().count(f"equal over {world}") == len(KINDS)


if __name__ == "__main__":
    compare_with_one_process()
