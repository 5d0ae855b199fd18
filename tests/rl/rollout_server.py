"""A stand-in for `vllm serve`: the endpoints TRL's client uses, answered by the transformers model on the CPU.

usage: rollout_server.py MODEL_FOLDER PORT LOG

Weights come as a file (`update_info: {"path": ...}`): vLLM's own transfer needs NCCL. Each request is written to LOG.
"""

import base64
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor


FOLDER, PORT, LOG = sys.argv[1], int(sys.argv[2]), sys.argv[3]
MODEL = AutoModelForImageTextToText.from_pretrained(FOLDER).eval()
PROCESSOR = AutoProcessor.from_pretrained(FOLDER)
LOCK = threading.Lock()
torch.manual_seed(0)


def render(body):
    """Features of the pictures of one prompt; the server keeps nothing, they travel with the request."""
    parts = [part for message in body["messages"] for part in message["content"] if part["type"] == "image_url"]
    urls = [part["image_url"]["url"] for part in parts]
    places = [{"offset": 0, "length": 0} for _ in urls]  # the client puts its own
    return {"features": {"mm_placeholders": {"image": places}, "pictures": urls}}


def complete(body):
    settings = body["sampling_params"]
    urls = body["features"]["pictures"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))) for url in urls]
    inputs = dict(PROCESSOR.image_processor(images=pictures, return_tensors="pt"))
    ids = torch.tensor([body["token_ids"]])
    # The ids come with every placeholder repeated, as the trainer sees them.
    expected = int(inputs["image_grid_thw"].prod(-1).sum()) // PROCESSOR.image_processor.merge_size**2
    assert int((ids == MODEL.config.image_token_id).sum()) == expected
    drawn = MODEL.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == MODEL.config.image_token_id).long(),
        **inputs,
        do_sample=True,
        top_k=0,
        temperature=settings["temperature"],
        max_new_tokens=settings["max_tokens"],
        num_return_sequences=settings["n"],
        suppress_tokens=[int(token) for token in settings["logit_bias"]],
        eos_token_id=PROCESSOR.tokenizer.eos_token_id,
        pad_token_id=PROCESSOR.tokenizer.pad_token_id,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = MODEL.compute_transition_scores(drawn.sequences, drawn.scores, normalize_logits=True)
    choices = []
    for row, values in zip(drawn.sequences[:, ids.shape[1] :].tolist(), scores.tolist(), strict=True):
        end = PROCESSOR.tokenizer.eos_token_id
        length = row.index(end) + 1 if end in row else len(row)
        content = [
            {"token": f"token_id:{token}", "logprob": value, "top_logprobs": []}
            for token, value in zip(row[:length], values[:length], strict=True)
        ]
        choices.append({"token_ids": row[:length], "logprobs": {"content": content}})
    return {"choices": choices}


def load(body):
    missing, unexpected = MODEL.load_state_dict(load_file(body["update_info"]["path"]), strict=False)
    assert not unexpected and not missing, (missing, unexpected)
    return {}


ANSWERS = {
    "/health": lambda body: {},
    "/v1/models": lambda body: {"data": [{"id": FOLDER}]},
    "/server_info": lambda body: {
        "vllm_config": {
            "weight_transfer_config": {"backend": "file"},
            "model_config": {"logprobs_mode": "processed_logprobs"},
        }
    },
    "/v1/chat/completions/render": render,
    "/inference/v1/generate": complete,
    "/update_weights": load,
    "/start_weight_update": lambda body: {},
    "/finish_weight_update": lambda body: {},
    "/reset_prefix_cache": lambda body: {"success": True},
    "/reset_encoder_cache": lambda body: {},
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def answer(self):
        path = self.path.split("?")[0]
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        with LOCK, torch.no_grad():
            with open(LOG, "a", encoding="utf-8") as file:
                file.write(path + "\n")
            data = json.dumps(ANSWERS[path](body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
