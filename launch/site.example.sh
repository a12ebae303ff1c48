# What is particular to your cluster. Copy to launch/site.sh (git does not track it) and edit: every job sources it, and
# so does `launch/paper.sh slurm`. Before you call sbatch yourself: source launch/site.sh

# sbatch reads these for every job; more of them under "INPUT ENVIRONMENT VARIABLES" in `man sbatch`.
export SBATCH_ACCOUNT=my_account
export SBATCH_PARTITION=gpu
export SBATCH_TIMELIMIT=8:00:00

# What jobs of launch/paper.sh ask for: all of them, and those that train, caption or reconstruct.
export SBATCH_OPTIONS=""
export TRAIN_OPTIONS="--nodes=1 --gpus-per-node=4 --cpus-per-task=32 --mem=0"

# The software. A container goes in front of every command: export CONTAINER="apptainer exec --nv image.sif"
module load cuda
source .venv/bin/activate

# Nodes without internet access (docs/cluster.md).
export HF_HUB_OFFLINE=1 WANDB_MODE=offline

# Rarely needed, all read by launch/slurm_job.sh:
# export NPROC_PER_NODE=4              # processes a node, if SLURM does not count GPUs (or with ACCELERATE_USE_CPU=yes)
# export ACCELERATE_CONFIG=launch/...  # another accelerate file than launch/many_nodes.yaml
# export LAUNCH_OPTIONS="..."          # more options of accelerate launch
# export MAIN_PROCESS_IP=...           # if the first node's name is not its address on the fast network
