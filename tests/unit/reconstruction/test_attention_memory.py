"""What attention needs in memory at the largest size of Stable Diffusion 1.5 at 512 px: 4096 tokens, 8 heads of 40."""

import os

import pytest
import torch

TOKENS, HEADS = 4096, 8
SCORES = HEADS * TOKENS**2 * 4 / 2**20  # MB: the matrix of all pairs, which eager attention writes down; 512

# The resident set only grows, so the frugal one is measured first. A small case first: what each needs once.
ON_CPU = r"""
import re, torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
def peak():  # of this program; getrusage's begins with that of the process that started it
    return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
torch.set_num_threads(1)
layer = Attention(320, heads=8, dim_head=40).requires_grad_(False)
for processor in (AttnProcessor2_0(), AttnProcessor()):
    layer.set_processor(processor)
    layer(torch.zeros(1, 64, 320))
    tokens = torch.randn(1, 4096, 320)
    before = peak()
    layer(tokens)
    print((peak() - before) / 2**10)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak from /proc")
def test_sdpa_needs_a_fraction_of_the_memory_of_eager_attention(start, tmp_path):
    (tmp_path / "on_cpu.py").write_text(ON_CPU)
    process = start([str(tmp_path / "on_cpu.py")], 1)
    assert process.wait() == [0], process.log.read_text()
    sdpa, eager = map(float, process.log.read_text().splitlines()[-2:])
    assert eager > SCORES and sdpa < SCORES / 4, (sdpa, eager)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="xformers computes on a CUDA GPU only, and there is none here"
)
def test_xformers_needs_a_fraction_of_the_memory_of_eager_attention():
    pytest.importorskip("xformers.ops", reason="xformers is not installed", exc_type=ImportError)
    from diffusers.models.attention_processor import Attention, AttnProcessor, XFormersAttnProcessor

    layer = Attention(320, heads=HEADS, dim_head=40).to("cuda", torch.float16).requires_grad_(False)
    tokens, peaks = torch.randn(1, TOKENS, 320, device="cuda", dtype=torch.float16), []
    for processor in (XFormersAttnProcessor(), AttnProcessor()):
        layer.set_processor(processor)
        layer(tokens[:, :64])
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        layer(tokens)
        peaks.append((torch.cuda.max_memory_allocated() - before) / 2**20)
    assert peaks[1] > SCORES / 2 and peaks[0] < SCORES / 8, peaks
