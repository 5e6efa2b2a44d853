import pytest

from avlens.datasets.synthetic import ball_and_bell
from avlens.inputs import AVInputs
from avlens.planting import planted_model


@pytest.fixture(scope="session")
def model():
    return planted_model()[0]


@pytest.fixture(scope="session")
def clip():
    return ball_and_bell(2.0, fps=2.0)


@pytest.fixture(scope="session")
def prompt(model, clip):
    return model.prepare(clip, "describe the clip .")


@pytest.fixture(scope="session")
def two(model, prompt):
    """Two prompts of different lengths."""
    return AVInputs.batch([prompt, model.prepare(ball_and_bell(1.0, fps=2.0, seed=3), "what do you hear ?")])
