"""The same classifier behind LitServe or Ray Serve, with their dynamic batching: run by `encoder_peers.py` in an
environment of its own. `python encoder_peer.py litserve|ray ARTIFACT PORT THREADS`.
"""

import os
import sys

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import json
from pathlib import Path

import numpy as np

BATCH, WAIT_S = 32, 0.005


class Model:
    """What llmos does for a batch of texts: tokenise, pad, run, softmax."""

    def __init__(self, root: str, threads: int) -> None:
        import onnxruntime as ort
        from tokenizers import Tokenizer

        self.contract = json.loads((Path(root) / "llmos.json").read_text())
        self.tokenizer = Tokenizer.from_file(f"{root}/tokenizer.json")
        self.tokenizer.enable_truncation(max_length=self.contract["max_length"])
        self.tokenizer.enable_padding(pad_id=0)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(f"{root}/model.onnx", options, providers=["CPUExecutionProvider"])

    def __call__(self, texts):
        encoded = self.tokenizer.encode_batch(texts)
        feeds = {
            "input_ids": np.array([each.ids for each in encoded], np.int64),
            "attention_mask": np.array([each.attention_mask for each in encoded], np.int64),
            "token_type_ids": np.array([each.type_ids for each in encoded], np.int64),
        }
        (logits,) = self.session.run(["logits"], feeds)
        scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = scaled / scaled.sum(axis=1, keepdims=True)
        labels = self.contract["labels"]
        return [{"label": labels[row.argmax()], "score": float(row.max())} for row in scores]


KIND, ROOT, PORT, THREADS = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

if KIND == "litserve":  # its workers import this module again: the class has to be found at the top
    import litserve as ls

    class Api(ls.LitAPI):
        def setup(self, device):
            self.model = Model(ROOT, THREADS)

        def decode_request(self, request):
            return request["text"]

        def batch(self, inputs):
            return list(inputs)

        def predict(self, texts):
            return self.model(texts)

        def unbatch(self, output):
            return output

        def encode_response(self, output):
            return output


def litserve() -> None:
    server = ls.LitServer(Api(max_batch_size=BATCH, batch_timeout=WAIT_S), accelerator="cpu")
    server.run(port=PORT, host="127.0.0.1", log_level="warning", generate_client_file=False)


def ray() -> None:
    import signal

    import ray
    from ray import serve

    @serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
    class Classifier:
        def __init__(self):
            self.model = Model(ROOT, THREADS)

        @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_S)
        async def classify(self, texts):
            return self.model(texts)

        async def __call__(self, request):
            return await self.classify((await request.json())["text"])

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Classifier.bind(), route_prefix="/predict")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that Ray ends what it started
    signal.pause()


if __name__ == "__main__":
    {"litserve": litserve, "ray": ray}[KIND]()
