# ---- the layout: one task for each rank. The ranks read it from SLURM's variables, and derive a
# port from the job's number.
if [ -n "${MASTER_ADDR:-}" ]; then export MASTER_ADDR; fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

# A signal must not kill a rank that does not listen to it yet.
train() {
    srun --wait=60 "${srun_options[@]}" bash -c 'trap "" USR2; exec "$@"' task \
        "${command[@]}" "$python" \
        -m launch.record.rank "$codes" --config="$run/launcher/config.yaml"@OVERRIDES@
}
