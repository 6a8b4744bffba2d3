# ---- the layout: one task for each node, which is a torchrun with one rank for each GPU
ranks=@RANKS@
: "${MASTER_ADDR:=$(hostname)}"
port=$((10000 + SLURM_JOB_ID % 20000))
threads=$((${SLURM_CPUS_PER_TASK:-1} / ranks))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
# Options of torchrun in the environment would override the layout: PET_STANDALONE would start a
# run on each node.
unset "${!PET_@}" "${!TORCHELASTIC_@}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120  # seconds to save in, before torchrun kills

# The signal goes to all processes of a task, and would kill torchrun itself.
train() {
    srun --wait=60 "${srun_options[@]}" bash -c '
        if [ "${SLURM_GPUS_ON_NODE:-0}" != "$1" ]; then
            echo "unequal nodes: $(hostname) has ${SLURM_GPUS_ON_NODE:-0} GPUs, the first $1" >&2
            exit 2
        fi
        shift
        trap "" USR2
        export PET_NODE_RANK=$SLURM_NODEID
        exec "$@"
    ' task "${SLURM_GPUS_ON_NODE:-0}" "${command[@]}" "$python" -m torch.distributed.run \
        --nnodes="$SLURM_NNODES" --nproc-per-node="$ranks" --max-restarts=0 --log-dir=/dev/null \
        --master-addr="$MASTER_ADDR" --master-port="$port" \
        -m launch.record.rank "$codes" --config="$run/launcher/config.yaml"@OVERRIDES@
}
