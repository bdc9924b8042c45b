"""One pipeline in a process of its own, which takes a step whenever it is told to.

python contestant.py JOB.json

Runs in perfuse's environment and in the peers', so it imports nothing of either until it knows which
one it is. Each line on standard input asks for one more step; each line on standard output is an
answer: first that the pipeline is warm, then what each step took, at the end the memory.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

PROMPT = "a small red circle at the top left on a white background"
GUIDANCE, SEED = 7.5, 0


class Pace:
    """Holds a pipeline after each of its steps, until the next one is asked for."""

    def __init__(self, job):
        self.job = job
        # Libraries print what they like: they get standard error.
        self.answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.done = 0

    def begin(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def stepped(self, latents):
        """Called when a step has been done; the first one is the warm-up."""
        took = {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}
        self.done += 1
        if self.done == 1:
            import numpy as np

            np.save(self.job["latents"], np.array(latents, dtype=np.float32))
            took = {"warm": True}
        self._answer(took)
        if self.done == self.job["steps"]:
            self._answer(_memory())
            os._exit(0)  # with engines that are in the middle of a picture
        if not sys.stdin.readline():
            sys.exit("Nobody listens any more.")
        if self.done == self.job["steps"] - 1:
            Path("/proc/self/clear_refs").write_text("1")  # from here on pages say if they are used
        self.begin()

    def _answer(self, answer):
        print(json.dumps(answer), file=self.answers)


def _memory():
    """The most that was resident, and what a step needs, in bytes; Linux only.

    A step needs the memory that is the process's own, and those pages of mapped files that it has read:
    the system may take the others back.
    """
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    mapped = Path("/proc/self/smaps").read_text()
    own = sum(map(int, re.findall(r"^Anonymous:\s+(\d+) kB", mapped, re.MULTILINE)))
    read = 0
    for one in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", mapped, flags=re.MULTILINE)[1:]:
        sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", one, re.MULTILINE))
        if int(sizes["Anonymous"]) == 0:
            read += int(sizes["Referenced"])
    return {"peak": int(peak[1]) * 1024, "own": own * 1024, "needed": (own + read) * 1024}


# The contestants


def perfuse(job, pace):
    from perfuse import DiffusionPipeline

    options = {"cache": "false"} if job["backend"].startswith("openvino") else {}
    pipe = DiffusionPipeline.from_pretrained(
        job["model"], backend=job["backend"], precision=job["precision"], options=options
    )
    pace.begin()
    for event in pipe.stream(PROMPT, seed=SEED, output_type="latent", **_picture(job)):
        if event.step == "denoise":
            pace.stepped(event.state["samples"][0])


def diffusers(job, pace):
    import diffusers
    import torch

    pipe = diffusers.DiffusionPipeline.from_pretrained(
        job["model"],
        torch_dtype=getattr(torch, job["precision"]),
        safety_checker=None,
        requires_safety_checker=False,
    )
    _draw(pipe, job, pace)


def optimum_onnx(job, pace):
    import onnxruntime
    from optimum.onnxruntime import ORTDiffusionPipeline

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = job["threads"]
    pipe = ORTDiffusionPipeline.from_pretrained(job["model"], session_options=settings)
    _draw(pipe, job, pace)


def optimum_intel(job, pace):
    from optimum.intel import OVDiffusionPipeline

    pipe = OVDiffusionPipeline.from_pretrained(job["model"], ov_config=_openvino(job))
    _draw(pipe, job, pace)


def openvino_genai(job, pace):
    import openvino_genai as genai

    pipe = genai.Text2ImagePipeline(job["model"], "CPU", **_openvino(job))

    def stepped(step, steps, latents):
        pace.stepped(latents.data)
        return False

    pace.begin()
    pipe.generate(PROMPT, generator=genai.TorchGenerator(SEED), callback=stepped, **_picture(job))


def _draw(pipe, job, pace):
    """The loop of Diffusers, which Optimum's pipelines inherit."""
    import torch

    torch.set_num_threads(job["threads"])
    pipe.set_progress_bar_config(disable=True)

    def stepped(pipe, step, timestep, tensors):
        pace.stepped(tensors["latents"].float().numpy())
        return tensors

    pace.begin()
    pipe(
        PROMPT,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="latent",
        callback_on_step_end=stepped,
        **_picture(job),
    )


def _picture(job):
    return {
        "height": job["size"],
        "width": job["size"],
        # More than are taken: the process ends in the middle.
        "num_inference_steps": 50,
        "guidance_scale": GUIDANCE,
    }


def _openvino(job):
    hint = {"float32": "f32", "bfloat16": "bf16"}[job["precision"]]
    return {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": job["threads"]}


CONTESTANTS = {
    "perfuse": perfuse,
    "Diffusers": diffusers,
    "optimum-onnx": optimum_onnx,
    "optimum-intel": optimum_intel,
    "OpenVINO GenAI": openvino_genai,
}

if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    CONTESTANTS[given["kind"]](given, Pace(given))
