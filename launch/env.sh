# Prepares a job. Every batch script of rebias-launch reads this file with bash's 'source', on the
# first node. Edit it, or keep a copy and give that as --env FILE.
#
# Set here as you need:
#   python            the interpreter [the one that submitted the job]
#   command=(…)       words before the interpreter, for a container or a profiler [none]
#   srun_options=(…)  further options of srun [none]
#   MASTER_ADDR       host where the ranks meet, for another network interface [the first node]
# All exported variables reach the ranks.

# ---- modules
# module purge
# module load cuda/12.8 python/3.11

# ---- a virtual environment
# python=$HOME/rebias/.venv/bin/python

# ---- Apptainer: one image file, see launch/apptainer.def
# python=python3
# command=(apptainer exec --nv --bind "$PWD" --bind /data "$HOME/rebias.sif")

# ---- Pyxis and Enroot: srun itself starts the container. The last step of a job runs outside of
# the container, so the virtual environment must be there as well.
# srun_options=(--container-image="$HOME/rebias.sqsh" --container-mounts="$PWD:$PWD,/data:/data")

# ---- the network interface, if 'hostname' leads to a slow or closed one
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# MASTER_ADDR=$(hostname)-ib0
# export NCCL_DEBUG=INFO

# ---- data on the node's own disk
# export REBIAS_CACHE=/local/$USER/rebias
