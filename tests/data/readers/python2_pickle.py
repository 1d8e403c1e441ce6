"""Writes pickles byte for byte as Python 2's cPickle does, in protocols 0 and 2; refer's files are of that kind.

A `str` becomes a byte string of Python 2, encoded as `encoding` says; `Unicode` marks the others.
"""

import struct


class Unicode(str):
    """A unicode string of Python 2."""


def dump(value, protocol=0, encoding="utf-8"):
    writer = _Protocol0(encoding) if protocol == 0 else _Protocol2(encoding)
    writer.write(value)
    return writer.head + b"".join(writer.parts) + b"."


class _Writer:
    head = b""

    def __init__(self, encoding):
        self.encoding, self.parts, self.memo = encoding, [], {}

    def write(self, value):
        if value is None:
            self.parts.append(b"N")
        elif isinstance(value, dict):
            self.write_dict(value)
        elif isinstance(value, list):
            self.write_list(value)
        elif isinstance(value, str):
            # cPickle refers back to a string it met: keys are one object in Python 2.
            key = (type(value), value)
            if key in self.memo:
                self.parts.append(self.get(self.memo[key]))
            else:
                self.parts.append(self.text(value))
                self.memo[key] = self.put()
        elif isinstance(value, bool | float | int):
            self.parts.append(self.number(value))
        else:
            raise TypeError(type(value))

    def put(self):
        # cPickle counts from 1.
        index = self.memo["count"] = self.memo.get("count", 0) + 1
        self.parts.append(self.put_code(index))
        return index


class _Protocol0(_Writer):
    def write_dict(self, value):
        self.parts.append(b"(d")
        self.put()
        for key, item in value.items():
            self.write(key)
            self.write(item)
            self.parts.append(b"s")

    def write_list(self, value):
        self.parts.append(b"(l")
        self.put()
        for item in value:
            self.write(item)
            self.parts.append(b"a")

    def text(self, value):
        if isinstance(value, Unicode):
            return b"V" + value.encode("raw_unicode_escape") + b"\n"
        # Python 2 escapes what is not ASCII in the repr of a byte string.
        return b"S" + repr(value.encode(self.encoding))[1:].encode("ascii") + b"\n"

    def number(self, value):
        if isinstance(value, bool):
            return b"I01\n" if value else b"I00\n"
        if isinstance(value, float):
            return b"F" + repr(value).encode() + b"\n"
        return (b"I%d\n" if abs(value) < 2**63 else b"L%dL\n") % value

    def put_code(self, index):
        return b"p%d\n" % index

    def get(self, index):
        return b"g%d\n" % index


class _Protocol2(_Writer):
    head = b"\x80\x02"

    def write_dict(self, value):
        self.parts.append(b"}")
        self.put()
        if value:
            self.parts.append(b"(")
            for key, item in value.items():
                self.write(key)
                self.write(item)
            self.parts.append(b"u")

    def write_list(self, value):
        self.parts.append(b"]")
        self.put()
        if value:
            self.parts.append(b"(")
            for item in value:
                self.write(item)
            self.parts.append(b"e")

    def text(self, value):
        if isinstance(value, Unicode):
            data = value.encode("utf-8")
            return b"X" + struct.pack("<I", len(data)) + data
        data = value.encode(self.encoding)
        return (b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))) + data

    def number(self, value):
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if 0 <= value < 256:
            return b"K" + bytes([value])
        if 0 <= value < 65536:
            return b"M" + struct.pack("<H", value)
        if abs(value) < 2**31:
            return b"J" + struct.pack("<i", value)
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def put_code(self, index):
        return b"q" + bytes([index]) if index < 256 else b"r" + struct.pack("<i", index)

    def get(self, index):
        return b"h" + bytes([index]) if index < 256 else b"j" + struct.pack("<i", index)
