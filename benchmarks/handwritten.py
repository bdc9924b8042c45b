"""Text to image with numpy and ONNX Runtime alone, as one writes it by hand for one model.

python handwritten.py FOLDER PROMPT NOISE.npy LATENT_SCALE STEPS GUIDANCE PICTURE.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

folder, prompt, noise, latent_scale, steps, guidance, picture = sys.argv[1:]
steps, guidance, latent_scale = int(steps), float(guidance), float(latent_scale)
length = 32


def session(name):
    return onnxruntime.InferenceSession(
        f"{folder}/{name}/model.onnx", providers=["CPUExecutionProvider"]
    )


# Words
with open(f"{folder}/tokenizer/vocab.json", encoding="utf-8") as file:
    vocab = json.load(file)
with open(f"{folder}/tokenizer/merges.txt", encoding="utf-8") as file:
    merges = [tuple(line.split()) for line in file.read().splitlines()[1:]]
tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>"))
tokenizer.normalizer = normalizers.Lowercase()
words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(False)]
)
begin, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
tokens = []
for text in ("", prompt):
    ids = [begin, *tokenizer.encode(text).ids][: length - 1]
    tokens.append(ids + [end] * (length - len(ids)))
text_encoder = session("text_encoder")
states = text_encoder.run(["last_hidden_state"], {"input_ids": np.array(tokens, np.int64)})[0]

# Steps: DDIM (Song et al. 2021) of a model that predicts the velocity
betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
alphas = np.cumprod(1 - betas)
times = np.arange(steps)[::-1] * (1000 // steps) + 1
x = np.load(noise)
unet = session("unet")
for t in times:
    previous = t - 1000 // steps
    a, b = alphas[t], alphas[previous] if previous >= 0 else alphas[0]
    feed = {
        "sample": np.concatenate([x, x]),
        "timestep": np.full(2, t, np.float32),
        "encoder_hidden_states": states,
    }
    without, conditional = np.split(unet.run(None, feed)[0], 2)
    v = without + guidance * (conditional - without)
    x0 = a**0.5 * x - (1 - a) ** 0.5 * v
    e = a**0.5 * v + (1 - a) ** 0.5 * x
    x = (b**0.5 * x0 + (1 - b) ** 0.5 * e).astype(np.float32)

# Picture
pixels = session("vae_decoder").run(None, {"latent_sample": x / np.float32(latent_scale)})[0][0]
pixels = (np.clip(pixels / 2 + 0.5, 0, 1) * 255).round().astype(np.uint8)
Image.fromarray(pixels.transpose(1, 2, 0)).save(picture)
