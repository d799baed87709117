"""The featuriser of the served model version, imported from where it is served: there is one copy."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

VERSION_FOLDER = Path(__file__).parents[1] / "models" / "feedback" / "1"


def _served() -> ModuleType:
    spec = spec_from_file_location("features", VERSION_FOLDER / "features.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


served = _served()
BUCKETS: int = served.BUCKETS
CHAR_BUCKETS: int = served.CHAR_BUCKETS


def counts(texts: list[str]) -> Any:
    """Damped n-gram counts, 1 + ln(count), as a sparse matrix [texts, BUCKETS]."""
    ends, ids, values = served.sparse(texts)
    return csr_matrix((1 + np.log(values), ids, ends), shape=(len(texts), BUCKETS))


def inverse_document_frequency(matrix: Any, char_weight: float) -> NDArray[np.float32]:
    """Smoothed idf of each bucket, float32 [BUCKETS]; character buckets are scaled by `char_weight`."""
    documents = np.bincount(matrix.indices, minlength=BUCKETS)
    idf = np.log((1 + matrix.shape[0]) / (1 + documents)) + 1
    idf[:CHAR_BUCKETS] *= char_weight
    result: NDArray[np.float32] = idf.astype(np.float32)
    return result


def weighted(matrix: Any, idf: NDArray[np.float32]) -> Any:
    """tf·idf with rows of length 1, the input of the linear heads."""
    scaled = matrix.multiply(idf[None, :]).tocsr()
    lengths = np.sqrt(np.asarray(scaled.multiply(scaled).sum(axis=1)))
    return scaled.multiply(1 / np.maximum(lengths, 1e-12)).tocsr()
