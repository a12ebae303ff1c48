#!/usr/bin/env bash
# Real EEG of people looking at faces and houses, through all stages; single trials and averages of ten.
#
#   bash launch/n170.sh RUNS [SEED [key=value for the shards, e.g. control_labels=shuffled hold_out=[2]]]
#
# The diffusion model and the picture classifier learn from the stimuli alone and are shared by all seeds in RUNS.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=$1; seed=${2:-0}; shift $(( $# > 2 ? 2 : $# ))
export ACCELERATE_USE_CPU=${ACCELERATE_USE_CPU-yes} TOKENIZERS_PARALLELISM=false
launch="accelerate launch --quiet --config_file launch/one_process.yaml"
stimuli=../shared/real/stimuli/face_house
overlay=config=configs/n170.yaml

$launch trainers/latent_diffusion.py config=configs/latent_diffusion.yaml $overlay part=autoencoder \
    init=neuroimagen/embedded/diffusion run_dir="$runs"/autoencoder max_steps=200
$launch trainers/latent_diffusion.py config=configs/latent_diffusion.yaml $overlay part=denoiser \
    autoencoder="$runs"/autoencoder run_dir="$runs"/diffusion max_steps=600
[ -e "$runs"/classifier ] || neuroimagen probe images=$stimuli out="$runs"/classifier

study=$runs/seed$seed${1:+-$(echo "$*" | tr ' =' '--' | tr -dc 'a-z0-9_-')}
mkdir -p "$study"
cat > "$study"/study.yaml <<YAML
shards: {seed: $seed$(for option in "$@"; do echo -n ", ${option%%=*}: ${option#*=}"; done)}
pixel_features: {seed: $seed}
pixel_saliency: {seed: $seed}
sample_semantics: {seed: $seed, pipeline: '$runs/diffusion/model'}
reconstruct: {seed: $seed, pipeline: '$runs/diffusion/model'}
evaluate: {classifier: '$runs/classifier'}
YAML
CAPTIONS=none BASELINES= bash launch/paper.sh "$study" configs/n170.yaml "$study"/study.yaml

# Averages of ten test trials of one category, through the decoders trained on single trials.
neuroimagen shards $overlay config="$study"/study.yaml average=10 out="$study"/shards10
$launch trainers/reconstruct.py config=configs/reconstruct.yaml $overlay config="$study"/study.yaml \
    shards="$study"/shards10 saliency="$study"/pixel_saliency semantics_label="$study"/semantics_label \
    run_dir="$study"/reconstruct10
neuroimagen evaluate $overlay config="$study"/study.yaml run="$study"/reconstruct10
