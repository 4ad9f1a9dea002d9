"""Which class sample i shows: a function of i and of the reference's class counts."""

import numpy as np


def labels_by_frequency(class_counts: np.ndarray, count: int) -> np.ndarray:
    """Labels int64 (count,) in the relative frequencies of `class_counts` (K,).

    Sample i gets the class that lags most behind its share among samples 0…i (smooth weighted round robin). So label i
    does not depend on `count`, every beginning is as balanced as whole numbers allow, sum(class_counts) samples have
    exactly these counts, and equal counts give i mod K.
    """
    shares = class_counts.astype(np.int64)
    lags = np.zeros_like(shares)
    labels = np.empty(count, np.int64)
    for i in range(count):
        lags += shares
        labels[i] = chosen = lags.argmax()
        lags[chosen] -= shares.sum()
    return labels
