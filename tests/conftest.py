import pytest
import torch
from hypothesis import HealthCheck, settings

# Tiny models gain nothing from threads, and lose much to them on a busy machine.
torch.set_num_threads(1)
settings.register_profile(
    "avlens",
    deadline=None,
    max_examples=15,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("avlens")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
