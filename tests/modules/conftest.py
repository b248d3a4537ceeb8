from tests.modules.fixtures import one_thread, rng, seed

__all__ = ["one_thread", "rng", "seed"]
