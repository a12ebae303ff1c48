#!/usr/bin/env bash
# The whole paper: a study in, pictures, a score table and a page out. Each step is skipped when it is done, continued when
# it was cut off, so after any failure run the same command again.
#
#   bash launch/paper.sh [local | slurm] RUNS OVERLAY.yaml [OVERLAY.yaml ...]
#
# local     one step after the other, here (the default)
# slurm     each step as a job that starts when those it needs have ended well; a failing one takes those after it along.
#           Settings: launch/site.sh (see launch/site.example.sh); what the jobs print: RUNS/jobs/
# RUNS      directory that gets the shards and one run directory a stage
# OVERLAY   what differs from configs/<stage>.yaml: at least the study (`shards:` section) and the pipeline
#
# Environment: CAPTIONS captions file for the B rows (default: RUNS/captions.jsonl, made with BLIP if it is not there);
#                       "none": no B rows
#              BASELINES which of the paper's baselines to train and draw beside it (default: all three, "brain2image
#                       brain2image_vae neurovision"); "": none
#              AUDIT    "quick" (the default) or "whole": `neuroimagen audit` before the page; "": none
#              DRY=1    print the commands, of local or slurm, and start nothing (`neuroimagen plan OVERLAY.yaml`: what they take)
# and with local:
#              LAUNCH   how to start a trainer (default: accelerate launch --quiet --config_file launch/one_process.yaml)
#              SALIENCY_LAUNCH, RECONSTRUCT_LAUNCH  how to start the GANs (pixel_saliency.py, the baselines), and
#                       reconstruct.py and evaluate, if otherwise (they run without DeepSpeed: with
#                       LAUNCH="... launch/zero2.yaml" give both "... launch/one_node.yaml")
#              SIDE_BY_SIDE=1 trains the branches (1a -> 1b, 2, baselines) at the same time, for machines with room for all
# Which rows are drawn follows from what was trained, unless the overlay names them (`reconstruct: rows`).
set -euo pipefail
cd "$(dirname "$0")/.."
mode=local
case ${1:-} in local | slurm) mode=$1; shift ;; esac
[ $# -ge 2 ] || { sed -n '2,25p' "$0" | cut -c3-; exit 2; }

runs=$1; shift
overlays=(); for file in "$@"; do overlays+=("config=$file"); done
launch=${LAUNCH:-accelerate launch --quiet --config_file launch/one_process.yaml}  # quiet: of errors, the trainer says them
captions=${CAPTIONS:-$runs/captions.jsonl}
baselines=${BASELINES-brain2image brain2image_vae neurovision}
for name in $baselines; do
    case $name in
        brain2image | brain2image_vae | neurovision) ;;
        *) echo "error: BASELINES names $name; it may name brain2image, brain2image_vae, neurovision" >&2; exit 2 ;;
    esac
done
audit=${AUDIT-quick}
case $audit in quick) quick=true ;; whole) quick=false ;; "") ;;
    *) echo "error: AUDIT=$audit; it may be quick or whole, or empty for none" >&2; exit 2 ;;
esac
declare -A job # step -> its job, if this call submitted one

dry() { printf '%q ' "$@"; echo; }
step() { # step NAME "STEPS THAT IT NEEDS" COMMAND...; a COMMAND that starts with a trainer or -m needs a launcher
    local name=$1 needs=$2 launched= needed id after=; shift 2
    case $1 in *.py | -m) launched=yes ;; esac
    echo "== $name"
    if [ $mode = local ]; then
        ${DRY:+dry} ${launched:+$launch} "$@"
        return
    fi
    for needed in $needs; do after+=${job[$needed]:+afterok:${job[$needed]},}; done
    # singleton: while an older job of the same name is there, e.g. of the same command typed twice, it is waited for
    # shellcheck disable=SC2086
    id=$(${DRY:+dry} sbatch --parsable --job-name="$name:$(realpath -m "$runs")" --output="$runs/jobs/$name-%j.out" \
        --dependency="${after}singleton" --kill-on-invalid-dep=yes \
        ${SBATCH_OPTIONS:-} ${launched:+${TRAIN_OPTIONS:-}} launch/train.sbatch "$@")
    if [ "${DRY:-}" ]; then
        echo "$id"; job[$name]=JOB_OF_$name
        return
    fi
    job[$name]=${id%%;*}
    echo "   job ${job[$name]}${after:+ after ${after//afterok:/}}"
}
train() { # train RUN "STEPS THAT IT NEEDS" STAGE [key=value ...]
    step "$1" "$2" trainers/"$3".py config=configs/"$3".yaml "${overlays[@]}" \
        shards="$runs"/shards run_dir="$runs/$1" "${@:4}"
}
pixel_branch() {
    train pixel_features shards pixel_features                                              # f_theta, Eq. 1
    local launch=${SALIENCY_LAUNCH:-$launch}
    train pixel_saliency pixel_features pixel_saliency features="$runs"/pixel_features      # G, Eqs. 2-6
}
sample_branch() {
    train semantics_label shards sample_semantics captions=label                            # M_s, Eq. 7, label captions
    [ "$captions" = none ] ||
        train semantics_blip "shards captions" sample_semantics captions="$captions"      # M_s, Eq. 7, picture captions
}
baselines_branch() {
    local launch=${SALIENCY_LAUNCH:-$launch} name
    for name in $baselines; do
        case $name in
            brain2image) train brain2image shards brain2image variant=gan ;;                # Kavasidis et al. 2017
            brain2image_vae) train brain2image_vae shards brain2image variant=vae ;;        # "
            neurovision) train neurovision shards neurovision ;;                            # Khare et al. 2022
        esac
    done
}

if [ $mode = slurm ]; then
    site=${SITE:-launch/site.sh}
    if [ -e "$site" ]; then set +u; source "$site"; set -u; fi
    [ "${DRY:-}" ] || mkdir -p "$runs"/jobs
fi
step shards "" neuroimagen shards "${overlays[@]}" out="$runs"/shards
if [ "$captions" != none ] && { [ ! -e "$captions" ] || [ -e "$captions.inputs.json" ]; }; then  # its own it looks at again
    step captions shards -m neuroimagen.cli captions "${overlays[@]}" out="$captions"
fi
if [ $mode = local ] && [ "${SIDE_BY_SIDE:-}" ] && [ -z "${DRY:-}" ]; then  # a line each for their progress bars
    TQDM_POSITION=0 pixel_branch & pixel=$!
    TQDM_POSITION=1 sample_branch & sample=$!
    TQDM_POSITION=2 baselines_branch & others=$!
    wait $pixel; wait $sample; wait $others
else
    pixel_branch; sample_branch; baselines_branch
fi
trained=(); for name in $baselines; do trained+=("$name=$runs/$name"); done
[ "$captions" = none ] || trained+=(semantics_blip="$runs"/semantics_blip)
launch=${RECONSTRUCT_LAUNCH:-$launch}
train reconstruct "pixel_saliency semantics_label semantics_blip $baselines" reconstruct \
    saliency="$runs"/pixel_saliency semantics_label="$runs"/semantics_label "${trained[@]}"
scored() {
    step evaluate reconstruct -m neuroimagen.cli evaluate "${overlays[@]}" run="$runs"/reconstruct
}
audited() { # is it real?
    [ -z "$audit" ] || step audit reconstruct neuroimagen audit "${overlays[@]}" run="$runs"/reconstruct \
        quick=$quick out="$runs"/audit
}
if [ $mode = local ] && [ "${SIDE_BY_SIDE:-}" ] && [ -z "${DRY:-}" ]; then
    TQDM_POSITION=0 scored & scores=$!
    TQDM_POSITION=1 audited & others=$!
    wait $scores; wait $others
else
    scored; audited
fi
step report "evaluate audit" neuroimagen report "${overlays[@]}" run="$runs"/reconstruct
