"""A program over several ranks, for tests: `python parallel_driver.py FOLDER SIZE [wait]`, also under torchrun.

Rank 0 prints its greedy tokens as JSON. With "wait" it prints "ready" and goes on generating until it is ended.
"""

from __future__ import annotations

import json
import sys

from m1runtime import Engine, SamplingParams

if __name__ == "__main__":
    folder, size, *wait = sys.argv[1:]
    with Engine.from_pretrained(folder, device="cpu", progress=False, tensor_parallel=int(size)) as engine:
        greedy = SamplingParams(max_new_tokens=12, temperature=0)
        (completion,) = engine.generate([[5, 9, 1, 44]], greedy)
        print(json.dumps(completion.ids), flush=True)
        while wait:
            print("ready", flush=True)
            engine.score(list(range(90)))
