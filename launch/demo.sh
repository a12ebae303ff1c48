#!/usr/bin/env bash
# The paper on a simulated study, small enough for a laptop: bash launch/demo.sh RUNS [key=value for the simulator, e.g. snr=0]
#
# WHOLE=1  everything, on top of what the demo left in RUNS: baselines, all controls, all scores, the whole audit (make
#          paper); otherwise the decoders and what one wants to see first (make demo)
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs/demo}; shift || true
export ACCELERATE_USE_CPU=${ACCELERATE_USE_CPU-yes} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} SIDE_BY_SIDE=1
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export LAUNCH=python  # one process a branch: a launcher would only cost its start
export RECONSTRUCT_LAUNCH="bash launch/processes.sh 2"
mkdir -p "$runs"
# What is imported for the first time is compiled: on the other core, while the study is made.
for part in trainers/pixel_features.py trainers/reconstruct.py "-m neuroimagen.cli evaluate"; do
    python $part --help
done > /dev/null 2>&1 &
neuroimagen simulate config=configs/demo.yaml out="$runs"/study "$@"
cat > "$runs"/study.yaml <<YAML
shards: {dataset: perceivelab, eeg: '$runs/study/eeg.pth', images: '$runs/study/images', splits: by_image}
YAML
overlays=(configs/demo.yaml "$runs"/study.yaml)
if [ "${WHOLE:-}" ]; then overlays+=(configs/demo_whole.yaml); export AUDIT=whole; else export BASELINES=; fi
CAPTIONS="$runs"/study/captions.jsonl bash launch/paper.sh "$runs" "${overlays[@]}"
