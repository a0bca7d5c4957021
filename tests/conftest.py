"""Sets up the device count before jax loads: every test sees eight simulated CPU devices."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import hypothesis

# Compilation makes first examples slow, and a shared CI machine makes any deadline flaky.
hypothesis.settings.register_profile(
    "lmx",
    deadline=None,
    max_examples=25,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("lmx")
