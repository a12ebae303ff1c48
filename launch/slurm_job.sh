# What launch/train.sbatch and launch/array.sbatch share: run a command as one step of this job, and when it was stopped
# before its end, queue the job again. Sourced in the repository's root; settings: launch/site.example.sh.

# A task of an array has a number of its own, and the array's number means all of its tasks.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
asked= step= run_dir=
echo "== job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST"

# SIGTERM comes to this shell alone (--signal=B:TERM@...) before the time limit, and at pre-emption with a grace time where
# slurm.conf says preempt_send_user_signal (else it comes to the steps). It is passed on with scancel: srun itself would
# answer SIGTERM by killing its tasks.
stop() {
    asked=yes interrupted=yes
    [ "$step" ] || return 0
    while kill -0 "$step" 2>/dev/null && ! squeue -hs -j "$SLURM_JOB_ID" -o %i | grep '\.0$' >/dev/null; do sleep 1; done
    scancel --signal=TERM "$job" || true  # to the steps; not to this shell
}
trap stop TERM

site=${SITE:-launch/site.sh}
if [ -e "$site" ]; then set +u; source "$site"; set -u; fi # module and activate scripts read unset variables
# The launcher kills its processes so many seconds after SIGTERM (30 if not said); saving may take longer.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}

run_and_exit() { # run_and_exit COMMAND...: a trainer (*.py or -m MODULE) on all nodes, anything else once
    local nodes=1 command=("$@") argument
    for argument in "$@"; do
        case $argument in run_dir=* | --run_dir=*) run_dir=${argument#*=}; run_dir=${run_dir/#\~\//${HOME-}/} ;; esac
    done
    case $1 in *.py | -m) nodes=$SLURM_JOB_NUM_NODES; distribute "$@" ;; esac
    local done_before preempted_before rc=0
    done_before=$(stamp DONE) preempted_before=$(stamp PREEMPTED)
    if [ "$asked" ]; then settle 143; fi
    # A step does not inherit the job's CPUs by itself.
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" ${CONTAINER:-} "${command[@]}" &
    step=$!
    [ -z "$asked" ] || stop
    while :; do # a signal interrupts wait
        interrupted= rc=0
        wait "$step" || rc=$?
        [ "$interrupted" ] || break
    done
    settle "$rc"
}

distribute() { # set `command` to what each node starts
    local processes=${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}
    if [ -z "$processes" ]; then
        case ${ACCELERATE_USE_CPU:-no} in 1 | y | yes | true | True) processes=1 ;; *)
            echo "error: SLURM gave this job no GPUs: sbatch --gpus-per-node=N, or NPROC_PER_NODE=N where it counts" \
                "none, or ACCELERATE_USE_CPU=yes NPROC_PER_NODE=N for CPUs" >&2
            exit 2 ;;
        esac
    fi
    local world=$((nodes * processes)) port=0 # 0: a free one
    if [ "$world" = 1 ] && [ -z "${ACCELERATE_CONFIG:-}${LAUNCH_OPTIONS:-}" ]; then
        command=(python "$@") # the launcher for one process dies at SIGTERM and takes the trainer with it
        return
    fi
    if [ "$nodes" -gt 1 ]; then port=$((10000 + SLURM_JOB_ID % 20000)); fi
    # The default rendezvous (static) is the right one here: SLURM has fixed the nodes, and a lost node ends the job,
    # which SLURM queues again. LAUNCH_OPTIONS="--rdzv_backend c10d --max_restarts 3" restarts crashed processes in place.
    command=(bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' node
        --config_file "${ACCELERATE_CONFIG:-launch/many_nodes.yaml}" --num_machines "$nodes" --num_processes "$world"
        --main_process_ip "${MAIN_PROCESS_IP:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)}"
        --main_process_port "$port" ${LAUNCH_OPTIONS:-} "$@")
}

stamp() { # which writing of RUN_DIR/$1 is there, if any
    if [ "$run_dir" ] && [ -e "$run_dir/$1" ]; then stat -c '%i %y' "$run_dir/$1"; fi
}
is_new() { # is_new NAME STAMP: RUN_DIR/NAME is there, and is another than it was
    local now; now=$(stamp "$1")
    [ "$now" ] && [ "$now" != "$2" ]
}

settle() { # end the job after the step ended with code $1
    local state
    # The launchers exit with 1 whatever the trainer's code was, so the run directory says how it ended.
    if is_new DONE "$done_before"; then exit 0; fi
    if ! is_new PREEMPTED "$preempted_before" && { [ -z "$asked" ] || [ "$1" = 0 ]; }; then exit "$1"; fi
    # scancel, too, sends SIGTERM to this shell and to the steps, but the job's state tells: after scancel, at the time
    # limit itself, or when SLURM queues the job again by itself, it is no longer RUNNING.
    until state=$(squeue -h -t all -j "$job" -o %T); do sleep 5; done
    if [ "$state" = RUNNING ] && [ "${REQUEUE:-yes}" = yes ]; then
        trap '' TERM # the order to end, which follows
        echo "== job $job was stopped before its end; it is queued again"
        scontrol requeue "$job" || echo "error: this cluster does not queue it again: submit the same command" >&2
    else
        echo "== job $job was stopped before its end ($state); the same command continues it"
    fi
    exit 143
}
