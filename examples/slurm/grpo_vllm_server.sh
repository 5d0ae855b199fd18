#!/usr/bin/env bash
# One node trains, one node generates with a vLLM server: VisualQuality-R1 with `vllm_mode: server`.
#
#   sbatch --account=... --partition=... examples/slurm/grpo_vllm_server.sh [section.key=value ...]
#
# Not run by us: we have no such machine. The pieces are tested one by one (docs/rollouts.md says which).
# Needs thurl[vllm,deepspeed] in the environment of both nodes and the model on a disk that both see.
#SBATCH --job-name=thurl-grpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

MODEL=${MODEL:-Qwen/Qwen2.5-VL-7B-Instruct}
RECIPE=${RECIPE:-recipes/visualquality_r1.yaml}
TENSOR_PARALLEL=${TENSOR_PARALLEL:-4} # has to divide the model's 28 heads
DATA_PARALLEL=${DATA_PARALLEL:-1}     # copies of the model; TENSOR_PARALLEL x DATA_PARALLEL GPUs
PORT=${PORT:-8000}

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
train_node=${nodes[0]}
server_node=${nodes[1]}

# The server's development endpoints take the weights; the network must not be open to others.
srun --nodes=1 --ntasks=1 --nodelist="$server_node" --export=ALL,VLLM_SERVER_DEV_MODE=1,VLLM_NO_USAGE_STATS=1 \
    vllm serve "$MODEL" --host 0.0.0.0 --port "$PORT" --tensor-parallel-size "$TENSOR_PARALLEL" --data-parallel-size "$DATA_PARALLEL" \
    --enable-scale-out --weight-transfer-config '{"backend": "nccl"}' \
    --logprobs-mode processed_logprobs --max-logprobs -1 --max-model-len 4096 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT

# The trainer waits for the server; a killed or lost run goes on where it was when this script is submitted again.
srun --nodes=1 --ntasks=1 --nodelist="$train_node" \
    accelerate launch --config_file accelerate_configs/zero3.yaml --num_processes 8 "$RECIPE" \
    model.name_or_path="$MODEL" training.use_vllm=true training.vllm_mode=server \
    training.vllm_enable_sleep_mode=false training.vllm_server_base_url="http://$server_node:$PORT" \
    training.vllm_server_timeout=1800 training.save_steps=50 training.resume_from_checkpoint=auto "$@"
