"""Eq. 1 mined over two processes has the loss and the gradient of one process with the whole batch."""

import pytest
import torch

from neuroimagen.pixel import losses
from neuroimagen.run.processes import leave_process_group


def example_batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(12, 5, generator=generator), torch.randint(0, 3, (12,), generator=generator)


def one_process(mining):
    eeg, labels = example_batch()
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 4)
    loss, active = losses.triplet(model(eeg), labels, 0.5, mining)
    loss.backward()
    return loss.detach(), active, model.weight.grad


def compare_with_one_process():
    """Runs in each of the processes."""
    expected = {mining: one_process(mining) for mining in ("all", "semi-hard", "hard")}  # before there is a group
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    assert all(gradient.abs().max() > 0.1 for _, _, gradient in expected.values())
    for mining, (loss_one, active_one, gradient_one) in expected.items():
        eeg, labels = example_batch()
        torch.manual_seed(0)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(5, 4))
        mine = slice(len(eeg) // world * rank, len(eeg) // world * (rank + 1))
        loss, active = losses.triplet(model(eeg[mine]), labels[mine], 0.5, mining)
        loss.backward()
        torch.testing.assert_close(model.module.weight.grad, gradient_one)
        torch.distributed.all_reduce(loss.detach_())
        torch.testing.assert_close(loss / world, loss_one)
        torch.testing.assert_close(active, active_one)
        torch.testing.assert_close(losses.share_of_anchors(labels[mine]), losses.share_of_anchors(labels))
        if rank == 0:
            print(f"{mining} equal over {world}", flush=True)
    del model, loss
    leave_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_eq1_of_several_processes_is_that_of_one(start, world):
    processes = start([__file__], world)
    assert processes.wait() == [0] * world, processes.log.read_text()
    assert processes.log.read_text().count(f"equal over {world}") == 3


if __name__ == "__main__":
    compare_with_one_process()
