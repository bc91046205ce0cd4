#!/usr/bin/env python3
"""Makes console.font of two BDF files, the regular and the bold face: see README.md.

usage: make.py REGULAR.bdf BOLD.bdf > console.font

    magic       8 bytes     "OCVFONT1"
    count       u16         number of glyphs, little-endian as all that follows
    characters  count u16   code points of the Basic Multilingual Plane, ascending
    regular     count x 16  rows from the top, the leftmost pixel in the highest bit
    bold        count x 16  the same characters in the bold face
"""

import struct
import sys

WIDTH, HEIGHT, ASCENT = 8, 16, 12


def glyphs(path):
    found, code, rows = {}, None, None
    for line in open(path, encoding="ascii"):
        word, *values = line.split() or [""]
        if word == "ENCODING":
            code = int(values[0])
        elif word == "BBX":
            width, height, left, bottom = map(int, values)
            inside = width + left <= WIDTH and left >= 0
            assert inside and bottom >= ASCENT - HEIGHT and bottom + height <= ASCENT, (path, code)
        elif word == "BITMAP":
            rows = []
        elif word == "ENDCHAR":
            above = ASCENT - height - bottom
            table = [0] * above + rows + [0] * (HEIGHT - above - len(rows))
            # What is below U+0020 are pictures that this font has twice.
            if 0x20 <= code <= 0xFFFF:
                found[code] = bytes(table)
            rows = None
        elif rows is not None:
            rows.append(int(word, 16) >> left)
    return found


def main():
    regular, bold = (glyphs(path) for path in sys.argv[1:])
    assert regular.keys() == bold.keys(), "the faces have different characters"
    codes = sorted(regular)
    out = sys.stdout.buffer
    out.write(b"OCVFONT1" + struct.pack("<H", len(codes)))
    out.write(struct.pack(f"<{len(codes)}H", *codes))
    for face in (regular, bold):
        out.write(b"".join(face[code] for code in codes))


main()
