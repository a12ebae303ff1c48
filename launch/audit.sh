#!/usr/bin/env bash
# Is it real? The caption encoder (stage 2) on every variant of a study that its files allow: the honest split, the wrong one
# (random trials), each person held out in turn, labels shuffled, surrogate EEG, ... (neuroimagen/audit/questions.yaml), with
# several seeds each; then `neuroimagen audit`, which reads these runs. What is done is skipped, what was cut off goes on.
#
#   bash launch/audit.sh [local | slurm] RUNS OVERLAY.yaml [OVERLAY.yaml ...]
#
# local     one after the other, here (the default)
# slurm     arrays of jobs: one packs the variants, and one for each seed trains, task by task, on what is packed.
#           Settings: launch/site.sh (see launch/site.example.sh); what the jobs print: RUNS/audit/jobs/
# RUNS      gets RUNS/audit/VARIANT/shards, RUNS/audit/VARIANT/seed-0, ..., and the page, RUNS/audit/audit.html
#
# Environment: VARIANTS those alone, e.g. "honest shuffled subject-2" (default: all that the study allows)
#              SEEDS    runs of each variant (default: 3)
#              MEASURE  s for real steps on random data, from which the cost is told before anything starts (default: 30)
#              DRY=1    print the commands, of local or slurm, and start nothing
#              LAUNCH   with local: how to start the trainer (default: accelerate launch --quiet --config_file
#                       launch/one_process.yaml)
set -euo pipefail
cd "$(dirname "$0")/.."
mode=local
case ${1:-} in local | slurm) mode=$1; shift ;; esac
[ $# -ge 2 ] || { sed -n '2,20p' "$0" | cut -c3-; exit 2; }

runs=$1 audit=$1/audit; shift
overlays=(); for file in "$@"; do overlays+=("config=$file"); done
launch=${LAUNCH:-accelerate launch --quiet --config_file launch/one_process.yaml}
read -ra names <<< "${VARIANTS:-}"
list=$(IFS=,; echo "${names[*]}")

planned=$(mktemp); trap 'rm -f "$planned"' EXIT
cost=(neuroimagen plan "$@" runs="$runs" mode=$mode audit="$planned" seeds="${SEEDS:-3}" variants="[$list]")
if [ "${DRY:-}" ]; then "${cost[@]}" > /dev/null; else "${cost[@]}" measure="${MEASURE:-30}"; fi
n=$(wc -l < "$planned")

dry() { printf '%q ' "$@"; echo; }
train() { # train VARIANT SEED: the command, in `command`
    command=(trainers/sample_semantics.py config=configs/sample_semantics.yaml "${overlays[@]}" captions=label
        shards="$audit/$1/shards" run_dir="$audit/$1/seed-$2" seed="$2")
}
page=(neuroimagen audit "${overlays[@]}" out="$audit")

if [ $mode = local ]; then
    while read -ra row <&3; do
        name=${row[0]}
        echo "== $name"
        ${DRY:+dry} neuroimagen shards "${overlays[@]}" "${row[@]:1}" out="$audit/$name/shards"
        for ((seed = 0; seed < ${SEEDS:-3}; seed++)); do
            train "$name" $seed
            # shellcheck disable=SC2086
            ${DRY:+dry} $launch "${command[@]}"
        done
    done 3< "$planned"
    echo "== audit"
    ${DRY:+dry} "${page[@]}"
    exit
fi

site=${SITE:-launch/site.sh}
if [ -e "$site" ]; then set +u; source "$site"; set -u; fi
rows=$audit/jobs/variants-$(cksum < "$planned" | cut -d' ' -f1)  # a waiting job reads those that it was submitted with
if [ -z "${DRY:-}" ]; then
    mkdir -p "$audit"/jobs
    cp "$planned" "$rows".txt
    cut -d' ' -f1 "$planned" > "$rows".names.txt
fi
submit() { # submit NAME "DEPENDENCIES,each with its comma" OPTIONS... COMMAND...: its number, in `id`
    local name=$1 after=$2; shift 2
    echo "== $name"
    # singleton: as in launch/paper.sh, the same command typed twice waits for itself
    # shellcheck disable=SC2086
    id=$(${DRY:+dry} sbatch --parsable --job-name="audit-$name:$(realpath -m "$runs")" \
        --output="$audit/jobs/$name-%A-%a.out" --dependency="${after}singleton" --kill-on-invalid-dep=yes \
        ${SBATCH_OPTIONS:-} "$@")
    if [ "${DRY:-}" ]; then echo "$id"; id=ARRAY_OF_$name; return; fi
    id=${id%%;*}
    echo "   job $id${after:+ after ${after%,}}"
}
submit shards "" --array="1-$n" launch/array.sbatch "$rows".txt \
    neuroimagen shards "${overlays[@]}" out="$audit/{}/shards"
packed=$id all=$id
for ((seed = 0; seed < ${SEEDS:-3}; seed++)); do
    train '{}' $seed
    # shellcheck disable=SC2086
    submit seed-$seed "aftercorr:$packed," --array="1-$n" ${TRAIN_OPTIONS:-} launch/array.sbatch "$rows".names.txt "${command[@]}"
    all+=:$id
done
submit page "afterany:$all," launch/train.sbatch "${page[@]}"  # of those that ended well, too
