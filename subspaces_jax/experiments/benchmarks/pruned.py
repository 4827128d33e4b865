"""The usual way to a p-variation: point after point, blocks of earlier points skipped by the triangle inequality.

Points lie in dyadic blocks, and each block knows how far its points are from its centre. A point looks back for a
better predecessor; a block of which none can be one is passed over as a whole. One core, float64, in C++ where the
system has a compiler, by NumPy elsewhere.

Reference: the algorithm is that of the library p-var by Korepanov, Lyons and Zorin-Kranich; this is written anew.
"""

import ctypes
import functools
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np

COMPILER, FLAGS = "g++", ("-O3", "-march=native", "-ffast-math", "-shared", "-fPIC")
SOURCE = r"""
#include <algorithm>
#include <cmath>
#include <vector>

extern "C" double variation(const double* x, long count, long dim, double p) {
    auto distance = [&](long a, long b) {
        const double *u = x + a * dim, *v = x + b * dim;
        double sum = 0;
        for (long i = 0; i < dim; ++i) sum += (u[i] - v[i]) * (u[i] - v[i]);
        return std::sqrt(sum);
    };
    int levels = 0;
    while ((1L << levels) < count) ++levels;
    std::vector<std::vector<double>> radius(levels + 1);
    for (int l = 1; l <= levels; ++l) radius[l].assign((count >> l) + 1, 0.0);
    auto centre = [](long block, int l) { return (block << l) + (1L << (l - 1)); };
    auto widen = [&](long j) {
        for (int l = 1; l <= levels; ++l) {
            long block = j >> l, c = centre(block, l);
            if (c < count) radius[l][block] = std::max(radius[l][block], distance(c, j));
        }
    };
    std::vector<double> best(count, 0.0);
    widen(0);
    for (long j = 1; j < count; ++j) {
        double found = best[j - 1] + std::pow(distance(j - 1, j), p);
        int level = 0;
        for (long m = j - 2; m >= 0;) {
            while (level < levels && ((m + 1) & ((2L << level) - 1)) == 0) ++level;
            bool skipped = false;
            if (level > 0) {
                double needed = std::pow(found - best[m], 1.0 / p);
                for (; level > 0 && !skipped; --level) {
                    long block = m >> level;
                    if (radius[level][block] + distance(centre(block, level), j) <= needed) {
                        m -= 1L << level;
                        skipped = true;
                        break;
                    }
                }
            }
            if (skipped) continue;
            found = std::max(found, best[m] + std::pow(distance(m, j), p));
            --m;
        }
        best[j] = found;
        widen(j);
    }
    return best[count - 1];
}
"""


def variation(points: np.ndarray, p: float) -> float:
    """The p-variation of a path [L, D] of at least one point."""
    points = np.ascontiguousarray(points, np.float64)
    if (compiled := _compiled()) is None:
        return _by_numpy(points, p)
    pointer = points.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
    return compiled(pointer, *points.shape, float(p))


def is_compiled() -> bool:
    """Whether there is a compiler."""
    return _compiled() is not None


@functools.cache
def _compiled():
    if shutil.which(COMPILER) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = pathlib.Path(folder, "variation.cpp"), pathlib.Path(folder, "variation.so")
        source.write_text(SOURCE)
        subprocess.run([COMPILER, *FLAGS, str(source), "-o", str(library)], check=True)
        function = ctypes.CDLL(str(library)).variation
    function.restype = ctypes.c_double
    function.argtypes = (ctypes.POINTER(ctypes.c_double), ctypes.c_long, ctypes.c_long, ctypes.c_double)
    return function


def _by_numpy(points: np.ndarray, p: float) -> float:
    best = np.zeros(len(points))
    for j in range(1, len(points)):
        best[j] = np.max(best[:j] + np.linalg.norm(points[:j] - points[j], axis=1) ** p)
    return float(best[-1])
