"""A reader of `.ddr` files that shares no code with the package: docs/ddr_format.md in Python's integers and lists.

Slow. It shows that the page is complete: whatever it does not say is missing here, too.
"""

from __future__ import annotations

import json
import zlib


CONTEXTS = {
    8: [13, 22, 30, 31, 32, 37, 38, 39],
    16: [13, 14, *range(20, 25), *range(28, 34), *range(37, 40)],
    24: [4, *range(11, 16), *range(19, 26), *range(28, 35), *range(36, 40)],
    32: [*range(2, 6), *range(10, 17), *range(19, 27), *range(27, 36), *range(36, 40)],
}
MASK = 2**64 - 1
HOLD = 2**24 - 1


class Coder:
    """The range decoder."""

    def __init__(self, data):
        self.words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        self.lower, self.range = 0, MASK
        self.point = (self.word() << 32) + self.word()

    def word(self):
        return self.words.pop(0) if self.words else 0

    def take(self, frequencies):
        step = self.range >> 24
        quantile = ((self.point - self.lower) & MASK) // step
        begin = symbol = 0
        while begin + frequencies[symbol] <= quantile:
            begin += frequencies[symbol]
            symbol += 1
        self.move(step, begin, frequencies[symbol])
        return symbol

    def bits(self, count):
        if count == 0:
            return 0
        step = self.range >> 24
        value = (((self.point - self.lower) & MASK) // step) >> (24 - count)
        self.move(step, value << (24 - count), 1 << (24 - count))
        return value

    def move(self, step, begin, frequency):
        self.lower = (self.lower + step * begin) & MASK
        self.range = step * frequency
        if self.range < 2**32:
            self.lower = (self.lower << 32) & MASK
            self.range <<= 32
            self.point = ((self.point << 32) & MASK) + self.word()

    def golomb(self, orders):
        prefixes = [self.take([2 ** (23 - i) for i in range(17)] + [2**7]) for _ in orders]
        return [2 ** (p + k) + self.bits(p + k) - 2**k for p, k in zip(prefixes, orders, strict=True)]


class Laplace:
    def __init__(self, factors):
        self.factors, self.known = factors, {}

    def frequencies(self, f, s):
        if (f, s) not in self.known:
            tails = [2**30]
            for _ in range(64 * 18):
                tails.append((tails[-1] * self.factors[s] + 2**31) >> 32)

            def below(d):
                x = 64 * d - 32 - f
                return tails[-x] if x < 0 else 2**31 - tails[x]

            free = 2**24 - 34 * 2**8
            starts = [((below(d) - below(-16)) * free) >> 31 for d in range(-16, 18)]
            found = [b - a + 2**8 for a, b in zip(starts, starts[1:], strict=False)]
            self.known[f, s] = [*found, free - starts[-1] + 2**8]
        return self.known[f, s]

    def differences(self, coder, distributions):
        symbols = [coder.take(self.frequencies(f, s)) for f, s in distributions]
        far = [i for i, symbol in enumerate(symbols) if symbol == 33]
        found = [symbol - 16 for symbol in symbols]
        orders = [max(0, (distributions[i][1] - 73) // 11) + 1 for i in far]
        for i, value in zip(far, coder.golomb(orders), strict=True):
            found[i] = (value // 2 + 17) * (-1 if value % 2 else 1)
        return found


def split(data, dictionary):
    """Header and payloads."""
    position = 5

    def section():
        nonlocal position
        length = shift = 0
        while True:
            byte = data[position]
            position += 1
            length += (byte % 128) << shift
            shift += 7
            if byte < 128:
                break
        position += length + 4
        return data[position - length - 4 : position - 4]

    header = json.loads(zlib.decompressobj(-15, dictionary).decompress(section()))
    payloads = [(section(), section()) for _ in header["slices"]]
    return header, payloads, section() if header["labels"] == "hard" else b""


def networks(payload, shapes, laplace):
    """Five groups: (exponent, values of each tensor)."""
    coder, groups = Coder(payload), []
    for tensors in shapes:
        count = sum(tensors)
        exponent, code = coder.bits(5), coder.bits(1)
        if code == 0:
            values = coder.golomb([coder.bits(4)] * count)
            values = [-v if v and coder.bits(1) else v for v in values]
        else:
            w = coder.bits(5)
            t = max(0, (w - 8) // 2 - 1)
            s = 73 + (5545 * (w - 8 - 2 * t) + 500) // 1000
            high = []
            while len(high) < count:
                high += laplace.differences(coder, [(0, s)] * min(4096, count - len(high)))
            values = [h * 2**t + coder.bits(t) - (2**t >> 1) for h in high]
        parts = []
        for size in tensors:
            parts.append(values[:size])
            values = values[size:]
        groups.append((exponent, parts))
    return groups


def rounded(total, bits):
    return (total + (1 << bits >> 1)) >> bits


def linear(inputs, weights, exponent, biases, bias_exponent, coarser=0, around=None):
    """round(W v + b), `coarser` by so many bits."""
    found = []
    for i, bias in enumerate(biases):
        row = weights[i * len(inputs) : (i + 1) * len(inputs)]
        total = sum(w * v for w, v in zip(row, inputs, strict=True)) << (16 - exponent)
        total += bias << (12 + 16 - bias_exponent)
        total += (0 if around is None else around[i]) << 16
        found.append(rounded(total, 16 + coarser))
    return found


def hold(value, low=-HOLD):
    return min(max(value, low), HOLD)


def latents(payload, config, sizes, samples, groups, laplace):
    coder, levels = Coder(payload), []
    (we, weights), (be, biases) = groups[0], groups[1]
    offsets = [(i // 9 - 4, i % 9 - 4) for i in CONTEXTS[config["context"]]]
    for height, width in reversed(sizes):
        grids = [[[0] * width for _ in range(height)] for _ in range(samples)]
        for y in range(height):
            for x in range(width):
                distributions, wholes = [], []
                for grid in grids:
                    v = [grid[y + a][x + b] * 4096 if y + a >= 0 and 0 <= x + b < width else 0 for a, b in offsets]
                    for i in range(config["depth"]):
                        v = [hold(n, 0) for n in linear(v, weights[i], we, biases[i], be, around=v)]
                    half = len(v)
                    (m,) = linear(v, weights[-1][:half], we, biases[-1][:1], be, coarser=6)
                    (s,) = linear(v, weights[-1][half:], we, biases[-1][1:], be, coarser=8)
                    m = min(max(m, -64 * 4095), 64 * 4095)
                    wholes.append((m + 32) >> 6)
                    distributions.append((m - 64 * wholes[-1], min(max(s - 64 + 73, 0), 153)))
                for grid, whole, d in zip(grids, wholes, laplace.differences(coder, distributions), strict=True):
                    grid[y][x] = whole + d
        levels.append(grids)
    return levels[::-1]


def picture(levels, header, groups):
    """Bytes of one sample, from its levels."""
    (ke, (kernel,)), (we, weights), (be, biases) = groups[2:]
    channels = [[[v * 4096 for v in row] for row in levels[-1]]]
    for level in levels[-2::-1]:
        bigger = []
        for grid in channels:
            h, w = len(grid), len(grid[0])

            def places(i, size):
                m, first = i // 2, 1 - i % 2
                return [(first + 2 * j, min(max(m + 1 + i % 2 - j, 0), size - 1)) for j in range(4)]

            out = [[0] * len(level[0]) for _ in level]
            for y in range(len(level)):
                for x in range(len(level[0])):
                    total = sum(kernel[8 * a + b] * grid[p][q] for a, p in places(y, h) for b, q in places(x, w))
                    out[y][x] = hold(rounded(total, ke))
            bigger.append(out)
        channels = [[[v * 4096 for v in row] for row in level], *bigger]
    height, width, plain = header["height"], header["width"], len(weights) - 2
    for i in range(plain):
        found = [[[0] * width for _ in range(height)] for _ in biases[i]]
        for y in range(height):
            for x in range(width):
                for o, v in enumerate(linear([c[y][x] for c in channels], weights[i], we, biases[i], be)):
                    found[o][y][x] = hold(v, -HOLD if i == plain - 1 else 0)
        channels = found
    for i in (plain, plain + 1):
        found = [[[0] * width for _ in range(height)] for _ in channels]
        for y in range(height):
            for x in range(width):
                window = [
                    c[min(max(y + a, 0), height - 1)][min(max(x + b, 0), width - 1)]
                    for c in channels for a in (-1, 0, 1) for b in (-1, 0, 1)
                ]  # fmt: skip
                here = [c[y][x] for c in channels]
                for o, v in enumerate(linear(window, weights[i], we, biases[i], be, around=here)):
                    found[o][y][x] = hold(v, 0 if i == plain else -HOLD)
        channels = found
    return bytes(min(max((255 * v + 2048) >> 12, 0), 255) for c in channels for row in c for v in row)


def hard_labels(payload, count, classes):
    coder, counts, found = Coder(payload), [1] * classes, []
    free = 2**24 - classes
    for _ in range(count):
        ends = [free * sum(counts[:c]) // sum(counts) + c for c in range(classes + 1)]
        found.append(coder.take([b - a for a, b in zip(ends, ends[1:], strict=False)]))
        counts[found[-1]] += 1
    return found


def read(data, dictionary, factors):
    """Pictures (bytes of each), labels, and whether the checksum of the pictures fits."""
    laplace = Laplace(factors)
    header, payloads, label_payload = split(data, dictionary)
    side = min(header["height"], header["width"])
    count = 6 if side >= 64 else len(bin(side)) - 2
    sizes = [(-(-header["height"] // 2**i), -(-header["width"] // 2**i)) for i in range(count)]
    pictures, labels = [], []
    for (number, *runs), (nets, stream) in zip(header["slices"], payloads, strict=True):
        config = header["configs"][number]
        c, ch, ends = config["context"], header["channels"], [count, *config["widths"], header["channels"]]
        shapes = [
            [c * c] * config["depth"] + [2 * c],
            [c] * config["depth"] + [2],
            [64],
            [a * b for a, b in zip(ends, ends[1:], strict=False)] + [9 * ch * ch] * 2,
            [*ends[1:], ch, ch],
        ]
        if header["labels"] == "hard":
            samples = runs[0]
        else:
            before = len(labels)
            for first, classes, many in zip(runs[::3], runs[1::3], runs[2::3], strict=True):
                labels += [label for label in range(first, first + classes) for _ in range(many)]
            samples = len(labels) - before
        groups = networks(nets, shapes, laplace)
        levels = latents(stream, config, sizes, samples, groups, laplace)
        pictures += [picture([level[i] for level in levels], header, groups) for i in range(samples)]
    if header["labels"] == "hard":
        classes = header["classes"] if isinstance(header["classes"], int) else len(header["classes"])
        labels = hard_labels(label_payload, len(pictures), classes)
    return pictures, labels, zlib.crc32(b"".join(pictures)) == int.from_bytes(data[-8:-4], "little")
