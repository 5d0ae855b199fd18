"""Two processes compute the losses and the gradient of one: pairs are formed of all rows."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file


pytestmark = pytest.mark.distributed

ROWS = {0: slice(0, 5), 1: slice(5, 8)}  # unequal shares


def gradient(model, pictures, labels):
    output = model(pictures, labels=labels)
    output.loss.backward()
    # Buffers of the prompts have no gradient on a five-headed model; every parameter has one.
    return {name: weight.grad for name, weight in model.named_parameters()} | {
        f"term.{task}": term.detach() for task, term in output.terms.items()
    }


def one_process(rank, folder, build, batch):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    pictures, labels = batch()
    rows = ROWS[rank]
    found = gradient(build().eval(), pictures[rows], {task: label[rows] for task, label in labels.items()})
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, f"{folder}/{rank}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ordinal", "blades"])
def test_two_processes_have_the_losses_and_gradient_of_one(kind, tmp_path, tiny_ordinal, tiny_blades, random_batch):
    def batch():
        pictures, labels = random_batch()
        labels["iso"][1:5] = float("nan")  # the first process has no pair of its own
        labels["make"][5:] = -1
        return pictures, labels

    build = tiny_ordinal if kind == "ordinal" else tiny_blades
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=one_process, args=(rank, tmp_path, build, batch)) for rank in ROWS]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    expected = gradient(build().eval(), *batch())
    assert expected["term.iso"] > 0
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in ROWS]
    for name, tensor in expected.items():
        if name.startswith("term."):
            for part in found:
                torch.testing.assert_close(part[name], tensor, rtol=1e-5, atol=1e-6)
        else:  # data parallel training averages over processes
            mean = (found[0][name] + found[1][name]) / 2
            torch.testing.assert_close(mean, tensor, rtol=1e-4, atol=1e-5)
