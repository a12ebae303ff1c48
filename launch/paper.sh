#!/usr/bin/env bash
# The whole paper: a study in, pictures, a score table and a page out. Each step is skipped when it is done, continued when
# it was cut off, so after any failure run the same command again.
#
#   bash launch/paper.sh RUNS OVERLAY.yaml [OVERLAY.yaml ...]
#
# RUNS      directory that gets the shards and one run directory a stage
# OVERLAY   what differs from configs/<stage>.yaml: at least the study (`shards:` section) and the pipeline
#
# Environment: LAUNCH   how to start a trainer (default: accelerate launch --config_file launch/one_process.yaml)
#              CAPTIONS captions file for the B rows (default: RUNS/captions.jsonl, made with BLIP if it is not there); "none"
#                       if the overlay's `reconstruct: rows` name no B
#              RECONSTRUCT_LAUNCH  how to start reconstruct.py, if otherwise
#              SIDE_BY_SIDE=1 trains the two branches (1a -> 1b, 2) at the same time, for machines with room for both
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n '2,17p' "$0" | cut -c3-; exit 2; }

runs=$1; shift
overlays=(); for file in "$@"; do overlays+=("config=$file"); done
launch=${LAUNCH:-accelerate launch --config_file launch/one_process.yaml}
captions=${CAPTIONS:-$runs/captions.jsonl}

train() { # train STAGE RUN [key=value ...]
    local stage=$1 run=$2; shift 2
    echo "== $stage -> $runs/$run"
    $launch trainers/"$stage".py config=configs/"$stage".yaml "${overlays[@]}" shards="$runs"/shards run_dir="$runs/$run" "$@"
}
pixel_branch() {
    train pixel_features pixel_features                                          # f_theta, Eq. 1
    train pixel_saliency pixel_saliency features="$runs"/pixel_features          # G, Eqs. 2-6
}
sample_branch() {
    train sample_semantics semantics_label captions=label                        # M_s, Eq. 7, label captions
    [ "$captions" = none ] ||
        train sample_semantics semantics_blip captions="$captions"               # M_s, Eq. 7, picture captions
}

echo "== shards -> $runs/shards"
neuroimagen shards "${overlays[@]}" out="$runs"/shards
if [ "$captions" != none ] && [ ! -e "$captions" ]; then
    echo "== captions -> $captions"
    $launch -m neuroimagen.cli captions "${overlays[@]}" out="$captions"
fi
if [ "${SIDE_BY_SIDE:-}" ]; then
    pixel_branch & pixel=$!
    sample_branch & sample=$!
    wait $pixel; wait $sample
else
    pixel_branch; sample_branch
fi
blip=(); [ "$captions" = none ] || blip=(semantics_blip="$runs"/semantics_blip)
launch=${RECONSTRUCT_LAUNCH:-$launch}
train reconstruct reconstruct saliency="$runs"/pixel_saliency semantics_label="$runs"/semantics_label "${blip[@]}"
neuroimagen evaluate "${overlays[@]}" run="$runs"/reconstruct
neuroimagen report "${overlays[@]}" run="$runs"/reconstruct
