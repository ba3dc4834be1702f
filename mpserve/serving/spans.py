"""The spans of a request's time, defined once for every format, scheduler and front end.

A request lasts from the moment its body is complete to the moment its answer is encoded. Within it are ``QUEUE`` (waiting for
a thread, a batch or a free place), ``INPUT`` (decoding, preprocessing), ``INFER`` (the model's own predict or explain, alone)
and ``OUTPUT`` (postprocessing, encoding), as Triton's statistics have them.

Source: Triton, docs/protocol/extension_statistics.md.
"""

QUEUE, INPUT, INFER, OUTPUT = range(4)

NANO = 1e-9
"""Seconds in a nanosecond: spans are measured in nanoseconds."""
