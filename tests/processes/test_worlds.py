"""The number of processes, and of parts that a batch is cut into, is a matter of time and memory only."""

import json

import pytest
from test_trainers import NEEDS, command, earlier, weights  # noqa: F401 (earlier is a fixture)

STEPS = 3
TIMINGS = {"samples_per_second", "samples_per_second_per_device", "step_seconds", "data_seconds", "memory_gb"}


@pytest.mark.parametrize(
    "stage", ["pixel_features", "pixel_saliency", "sample_semantics", "latent_diffusion", "denoiser"]
)
def test_the_same_losses_gradients_and_weights(stage, start, study, earlier, tmp_path):  # noqa: F811
    """Losses and gradient norms to 1e-4 at the first step. Then Adam has divided by gradients that are nearly zero,
    where float rounding decides: to 1e-3, and what the weights have learnt to 2 % in the Euclidean norm."""
    finished = earlier(NEEDS[stage], start) if stage in NEEDS else None

    def run(name, world=1, steps=STEPS, **options):
        options |= {"max_steps": steps}
        arguments = [*command(stage, study, tmp_path / name, finished), *(f"{k}={v}" for k, v in options.items())]
        processes = start(arguments, world)
        assert processes.wait() == [0] * world, processes.log.read_text()[-3000:]
        if not steps:
            return [], weights(tmp_path / name)
        lines = [json.loads(line) for line in (tmp_path / name / "stats.jsonl").read_text().splitlines()]
        return lines, weights(tmp_path / name)

    _, initial = run("initial", steps=0)
    expected_lines, expected = run("one")
    others = {"two": run("two", world=2)}
    if stage == "pixel_features":  # the loss that looks beyond its rank
        others["four"] = run("four", world=4)
    if stage != "latent_diffusion":  # the autoencoder takes its batch whole
        others["one in four parts"] = run("parts", accumulate=4)
    if stage == "pixel_saliency":  # two models, three optimizers
        others["two in two parts"] = run("both", world=2, accumulate=2)
    for name, (lines, tensors) in others.items():
        assert [line["step"] for line in lines] == [line["step"] for line in expected_lines], name
        for line, expected_line in zip(lines, expected_lines, strict=True):
            assert line.keys() == expected_line.keys()
            near = 1e-4 if line["step"] == 1 else 1e-3
            for key in line.keys() - TIMINGS:
                assert line[key] == pytest.approx(expected_line[key], rel=near, abs=near / 10), (
                    name,
                    line["step"],
                    key,
                )
        moved = sum((expected[key].float() - initial[key].float()).square().sum() for key in expected) ** 0.5
        apart = sum((expected[key].float() - tensors[key].float()).square().sum() for key in expected) ** 0.5
        assert moved > 0 and apart / moved < 0.02, (name, (apart / moved).item())
