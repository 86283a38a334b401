"""Reads character vectors out of an R package's data (Rdata.rdx and .rdb) and writes each as a text file.

    python3 scripts/studies/austen.py PATH/TO/Rdata OUT NAME...

Of R's serialization format only what this needs is read: strings, pairlists, integers and lists. The lines of a paragraph
are joined with spaces and paragraphs are separated by blank lines, so that a model learns sentences rather than line ends.
"""

import bz2
import lzma
import pathlib
import struct
import sys
import zlib


class Reader:
    def __init__(self, data):
        assert data[:2] == b"X\n", "not R's binary serialization"
        self.data, self.at, self.refs = data, 2, []
        version = self.int()
        self.at += 8
        if version == 3:
            self.at += 4 + struct.unpack_from(">i", self.data, self.at)[0]

    def int(self):
        (value,) = struct.unpack_from(">i", self.data, self.at)
        self.at += 4
        return value

    def item(self):
        flags = self.int()
        kind, has_attributes, has_tag = flags & 255, flags & 512, flags & 1024
        if kind == 254:  # NULL
            return None
        if kind == 255:  # a reference to an earlier symbol
            return self.refs[(flags >> 8) - 1]
        if kind == 1:  # symbol
            self.refs.append(self.item())
            return self.refs[-1]
        if kind == 2:  # pairlist
            if has_attributes:
                self.item()
            tag = self.item() if has_tag else None
            value = self.item()
            rest = self.item()
            return {tag: value, **(rest or {})}
        if kind == 9:  # one string
            n = self.int()
            if n < 0:
                return ""
            self.at += n
            return self.data[self.at - n : self.at].decode("utf-8")
        if kind in (10, 13):
            value = [self.int() for _ in range(self.int())]
        elif kind == 16:
            value = [self.item() for _ in range(self.int())]
        elif kind == 19:
            value = [self.item() for _ in range(self.int())]
        else:
            raise ValueError(f"R type {kind} is not read")
        if has_attributes:
            attributes = self.item()
            if kind == 19 and "names" in attributes:
                return dict(zip(attributes["names"], value))
        return value


def unpack(packed):
    """R compresses an object as gzip, bzip2 (marked 2) or xz (marked Z), after its length in four bytes."""
    data = packed[4:]
    if data[:1] == b"2":
        return bz2.decompress(data[1:])
    if data[:1] == b"Z":
        return lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}]).decompress(data[1:])
    return zlib.decompress(data)


def paragraphs(lines):
    text, paragraph = [], []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line.strip())
        elif paragraph:
            text.append(" ".join(paragraph))
            paragraph = []
    return "\n\n".join(text) + "\n"


def main():
    base, out, names = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
    index = Reader(zlib.decompress(base.with_suffix(".rdx").read_bytes(), wbits=47)).item()["variables"]
    blob = base.with_suffix(".rdb").read_bytes()
    for name in names:
        start, length = index[name]
        packed = blob[start : start + length]
        lines = Reader(unpack(packed)).item()
        target = out / f"{name}.txt"
        target.write_text(paragraphs(lines), encoding="utf-8")
        print(target, target.stat().st_size)


main()
