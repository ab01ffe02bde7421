"""The bundled model does the main job: freshly drawn requests, real tools, no question known to the code."""

from __future__ import annotations

import pytest
import torch

from m1agent import Agent
from m1runtime import Engine
from m1tools.maths import calculate_math
from training.evaluate import evaluate

# What the model card publishes was measured on 500 requests a suite; 60 spread by about five points.
MARGIN = 12.0


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine.from_pretrained("m1-nano")


@pytest.mark.parametrize(("suite", "published"), [("own", 93.8), ("unseen", 73.8)])
def test_calls_are_exact(engine: Engine, suite: str, published: float) -> None:
    figures = evaluate(engine, suite, requests=60, seed=77, grammar=True)["all"]
    assert isinstance(figures, dict)
    assert figures["exact calls %"] >= published - MARGIN, figures


# Asked by a person. The call must bring the tool to this very result, and the answer must pass it on.
QUESTIONS = (
    ("What is the derivative of 3x^2 + 2x - 1?", "6x + 2"),
    ("Please differentiate x^3 - 4x.", "3x^2 - 4"),
    ("What is the integral of 2x + 3?", "x^2 + 3x + C"),
    ("Solve x^2 - 9 = 0.", "x = -3 or x = 3"),
    ("Factor x^2 - 5x + 6.", "(x - 3)(x - 2)"),
    ("What is 17 times 23?", "391"),
    ("Find the limit of sin(x)/x as x approaches 0.", "1"),
    ("How much is 144 divided by 12?", "12"),
)


def test_maths_questions_end_with_the_right_answer() -> None:
    right = 0
    with Agent("m1-nano", tools=[calculate_math]) as agent:
        for question, wanted in QUESTIONS:
            result = agent.run_sync(question)
            found = [record.result.content for record in result.calls]
            right += result.stop == "done" and found == [wanted] and str(result.output).endswith(f" {wanted}.")
    assert right >= 7, f"{right} of {len(QUESTIONS)}"
