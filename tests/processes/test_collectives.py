"""What rank 0 decides and what all must be able to do, over processes whose file system answers differently."""

import pytest
import torch
from safetensors import SafetensorError
from torch import distributed as dist

from neuroimagen.run import collectives
from neuroimagen.run.collectives import decided_by_main, on_every_rank
from neuroimagen.run.processes import leave_process_group
from neuroimagen.scores import measure
from neuroimagen.scores.networks import NotAvailable


def fails_on(ranks, calls=10**9, kind=ValueError):
    """Work that fails on these ranks, the first so many times."""

    def work():
        work.tried.append(None)
        if dist.get_rank() in ranks and len(work.tried) <= calls:
            raise kind(f"rank {dist.get_rank()} fails")
        return dist.get_rank(), len(work.tried)

    work.tried = []
    return work


def on_each_rank():
    """Runs in each of the processes."""
    dist.init_process_group("gloo")
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    assert decided_by_main(lambda: ["what", rank, "sees"]) == ["what", 0, "sees"]
    assert decided_by_main(fails_on([last])) == (0, 1)  # nobody else looks
    with pytest.raises(ValueError, match="^rank 0 fails$"):
        decided_by_main(fails_on([0]))
    with pytest.raises(OSError, match="^rank 0 fails$"):
        decided_by_main(fails_on([0], kind=OSError))
    with pytest.raises(ValueError, match="^rank 0 fails$"):  # half a file of weights
        decided_by_main(fails_on([0], kind=SafetensorError))

    collectives.PATIENCE = 20.0
    assert on_every_rank(fails_on([])) == (rank, 1)
    assert on_every_rank(fails_on([last], calls=2)) == (rank, 3 if rank == last else 1)
    assert on_every_rank(fails_on([last], calls=1, kind=SafetensorError)) == (rank, 2 if rank == last else 1)
    mistake = fails_on([0, last])  # of the user: no use in trying again
    with pytest.raises(ValueError, match=f"^rank {0 if rank < last else last} fails$"):
        on_every_rank(mistake)
    assert len(mistake.tried) == 1
    collectives.PATIENCE = 0.3
    with pytest.raises(ValueError, match=f"^rank {last} on .* cannot do what rank 0 can: rank {last} fails$"):
        on_every_rank(fails_on([last], kind=FileNotFoundError))

    # A network that one machine has in its cache and another has not
    def load_network(name, *_):
        if rank == last:
            raise NotAvailable(f"{name} is not available: get it")
        return torch.nn.Identity()

    measure.load_network = load_network
    with pytest.raises(ValueError, match=f"ranks 0 and {last} do not find the same networks .alex2.: "):
        measure.load_judges(lambda *names: "alex2" in names, torch.device("cpu"), "weights", False, 64)
    print("as it should be", flush=True)
    leave_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_all_ranks_end_alike(start, world):
    processes = start([__file__], world)
    assert processes.wait() == [0] * world, processes.log.read_text()
    assert processes.log.read_text().count("as it should be") == world


if __name__ == "__main__":
    on_each_rank()
