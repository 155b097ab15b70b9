"""A second implementation of the codec in NumPy, from its definition: float64, int64, floor.

Written from the papers and the docstrings, not from the kernels, so that the two can disagree.
Where a number lies so close to a boundary that float32 may fall on either side, `unsure` says so.
"""

import numpy as np

BLOCK = 1024
MOD = 2**32
LATTICE_BITS = (2, 3, 4, 5, 6, 7, 8, 16)


def rows(vector):
    """[length] -> [blocks, BLOCK], padded with zeros."""
    blocks = -(-len(vector) // BLOCK)
    padded = np.zeros(blocks * BLOCK, np.asarray(vector).dtype)
    padded[: len(vector)] = vector
    return padded.reshape(blocks, BLOCK)


def key_words(seed, blocks):
    """The words a, b of the hash (a k + b) mod 2^32 of each block: uint64 [blocks, 1] each."""
    words = [word for at in range(1, blocks // 4 + 2) for word in philox(at, seed)][:blocks]
    a, b = ([word >> shift & (MOD - 1) for word in words] for shift in (0, 32))
    return np.array(a, np.uint64)[:, None], np.array(b, np.uint64)[:, None]


def philox(counter, key):
    """Philox4x64-10 of Salmon et al. 2011: the four 64-bit words of a counter below 2^64."""
    one, two = [counter, 0, 0, 0], [key, 0]
    for _ in range(10):
        a, b = one[0] * 0xD2E7470EE14C6C93, one[2] * 0xCA5A826395121157
        one = [b >> 64 ^ one[1] ^ two[0], b % 2**64, a >> 64 ^ one[3] ^ two[1], a % 2**64]
        two = [(two[0] + 0x9E3779B97F4A7C15) % 2**64, (two[1] + 0xBB67AE8584CAA73B) % 2**64]
    return one


def dither(seed, blocks, digits):
    """u in [0, 1) of `digits` bits for each position: float64 [blocks, BLOCK]."""
    a, b = key_words(seed, blocks)
    hashed = (a * np.arange(BLOCK, dtype=np.uint64) + b) % MOD
    return (hashed >> np.uint64(32 - digits)) / 2.0**digits


def lattice_points(vector, scales, seed, tolerance=2.0**-20):
    """floor(x/s + u), int64 [blocks, BLOCK], and where float32 may be a step off."""
    x = rows(vector).astype(np.float64) / scales.astype(np.float64)[:, None]
    exact = x + dither(seed, len(scales), 23)
    points = np.floor(exact)
    # float32 rounds x/s three times, by a part in 2^24 each, before the floor.
    margin = tolerance + 3 * 2.0**-24 * np.abs(x)
    unsure = (exact - points < margin) | (points + 1 - exact < margin)
    return points.astype(np.int64), unsure


def checksum_weights(seed, blocks, word):
    """The odd weights of a checksum word: uint64 [blocks, BLOCK]."""
    random = np.random.Generator(np.random.Philox(key=0xC0DEC))
    high = random.integers(2**21, size=(2, BLOCK), dtype=np.uint32).astype(np.uint64)
    low = np.array([random.permutation(BLOCK), random.permutation(BLOCK)], np.uint64)
    weights = high * np.uint64(2048) + low * np.uint64(2) + np.uint64(1)
    _, b = key_words(seed, blocks)
    return weights[word][None] ^ (b - b % np.uint64(2))


def checksums(integers, seed, words=1):
    """sum of w_k n_k mod 2^32, uint32 [words, blocks]."""
    modular = (integers % MOD).astype(np.uint64)
    blocks = len(integers)
    sums = [
        (modular * checksum_weights(seed, blocks, w) % MOD).sum(axis=1) % MOD for w in range(words)
    ]
    return np.stack(sums).astype(np.uint32)


def centred(difference, bits):
    """The only number in [-2^(b-1), 2^(b-1)) that is `difference` mod 2^b."""
    half = 2 ** (bits - 1)
    return (difference + half) % 2**bits - half


def pack(values, bits):
    """uint8 [blocks, BLOCK] -> bytes: pieces of 8, 4, 2, 1 bits; stretches side by side."""
    blocks, low, packed = len(values), 0, []
    little = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1, bitorder="little")
    for width in (8, 4, 2, 1):
        if bits & width:
            piece = little[..., low : low + width]
            stretches = piece.reshape(blocks, 8 // width, BLOCK * width // 8, width)
            in_byte = stretches.transpose(0, 2, 1, 3).reshape(blocks, -1, 8)
            packed.append(np.packbits(in_byte, axis=-1, bitorder="little")[..., 0])
            low += width
    return np.concatenate(packed, axis=1)


def float_grid(vector, fraction, min_exponent):
    """The spacing of a format's numbers around each weight: float64 [blocks, BLOCK]."""
    x = np.abs(rows(vector).astype(np.float64))
    _, exponent = np.frexp(np.where(x > 0, x, 2.0**min_exponent))
    return np.exp2(np.maximum(exponent - 1, min_exponent) - fraction)


def float_points(vector, seed, fraction, min_exponent):
    """x rounded down to the grid after the dither, float64, and where float32 may be a step off."""
    x = rows(vector).astype(np.float64)
    grid = float_grid(vector, fraction, min_exponent)
    exact = x / grid + dither(seed, len(x), 24)
    points = np.floor(exact)
    margin = 2.0 ** (fraction - 22)
    unsure = (exact - points < margin) | (points + 1 - exact < margin)
    return points * grid, unsure


def mixed(bits):
    """The bits of each number, mixed as by a hash: uint64 below 2^32."""
    wide = bits.astype(np.uint64)
    wide = (wide ^ (wide >> np.uint64(16))) * np.uint64(0x7FEB352D) % np.uint64(MOD)
    return wide ^ (wide >> np.uint64(15))


def magnitude(vector):
    """Largest |weight| of each block."""
    return np.abs(rows(vector)).max(axis=1) if len(vector) else np.zeros(0, np.float32)


def vector_of(integers, fractions, scales, seed):
    """float32 weights whose lattice points are `integers`: x/s + u = k + fraction."""
    steps = integers + fractions - dither(seed, len(integers), 23)
    return (steps * scales.astype(np.float64)[:, None]).astype(np.float32).reshape(-1)
