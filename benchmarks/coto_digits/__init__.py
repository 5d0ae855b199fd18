"""Parts of `benchmarks/coto.py`: network and data, training with a store of finished runs, measurements, questions."""
