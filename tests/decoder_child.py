"""Decode mutants in a process that may die: `python -m tests.decoder_child SAVED_MODEL FIRST LAST`.

It prints the number of the first mutant of each batch before it decodes it, and at the end how many were read and how
much its memory grew, in megabytes.
"""

import os
import resource
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

from tests.mutants import mutant, sources

BATCH = 50


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(model, first, last):
    # kept, or the signatures lose what they run on
    saved = tf.saved_model.load(model)
    answer = saved.signatures["serving_bytes"]
    good = list(sources().values())
    before = answer(inputs=tf.constant(good))
    start, read = memory(), 0
    for number in range(first, last, BATCH):
        print(number, flush=True)
        mutants = [mutant(n) for n in range(number, min(number + BATCH, last))]
        answers = answer(inputs=tf.constant([*mutants, *good]))
        read += int(np.sum(answers["errors"].numpy()[: len(mutants)] == b""))
        for name, value in answers.items():  # whoever shares the batch gets what they would get alone
            np.testing.assert_array_equal(value[len(mutants) :], before[name], name)
    print(f"read {read} of {last - first}, {memory() - start:.0f} MB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
