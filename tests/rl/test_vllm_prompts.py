import inspect

from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

from thurl.rl.vllm_prompts import collapse_image_tokens, wrap_colocate_generation


PAD, START, END = 9, 7, 8


def test_every_picture_keeps_one_placeholder():
    one = [1, START, PAD, PAD, PAD, PAD, END, 2]
    two = [START, PAD, PAD, END, START, PAD, END, 3]
    assert collapse_image_tokens(one, PAD) == [1, START, PAD, END, 2]
    assert collapse_image_tokens(two, PAD) == [START, PAD, END, START, PAD, END, 3]
    assert collapse_image_tokens([PAD, PAD, 1], PAD) == [PAD, 1]
    assert collapse_image_tokens([1, 1, 2], PAD) == [1, 1, 2]
    assert collapse_image_tokens(collapse_image_tokens(two, PAD), PAD) == collapse_image_tokens(two, PAD)


def test_generation_sees_collapsed_prompts_and_the_trainer_keeps_its_own():
    class Generation:
        def generate(self, prompts, images, num_generations, profiler=None):
            self.seen = prompts, images, num_generations
            return "generated"

    generation = Generation()
    wrap_colocate_generation(generation, PAD)
    prompts = [[START, PAD, PAD, END]]
    assert generation.generate(prompts=prompts, images=["picture"], num_generations=4) == "generated"
    assert generation.seen == ([[START, PAD, END]], ["picture"], 4)
    assert prompts == [[START, PAD, PAD, END]]


def test_trl_still_calls_what_is_wrapped():
    assert list(inspect.signature(VLLMGeneration.generate).parameters)[:4] == [
        "self",
        "prompts",
        "images",
        "num_generations",
    ]
    source = inspect.getsource(GRPOTrainer._generate_single_turn)
    assert "self.vllm_generation.generate(\n                prompts=prompt_ids," in source
