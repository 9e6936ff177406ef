"""A call of containerd's CRI with the standard library alone: as much of gRPC as that takes. A part of ``prove.py``.

Python 3.8 or later. Sources: RFC 9113 (HTTP/2), RFC 7541 (HPACK), gRPC over HTTP/2, protobuf's encoding.
"""

import os
import socket
from contextlib import closing

SOCKET = os.environ.get("PARBAKE_SOCKET", "/run/containerd/containerd.sock")
CALL_LIMIT = 300.0  # seconds for one answer of the runtime
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, PADDED, PRIORITY = 1, 4, 8, 32
# How long the Huffman code of each byte is, as chr(60 + bits): the code itself follows from that.
BITS = (
    "ISXXXXXXXTZXXZXXXXXXXXZXXXXXXXXXBFFHIBDGFFDGDBBBAAABBBBBBBCDKBHFIBCCCCCCCCCCCCCCCCCCCCCCDCDIOIJBKABABABBBACCBB"
    "BABCBAABCCCCCKGJIXPRPPRRRSRSSSSSTSTTRSTSSSSQRSRSSTRQPRRSSQSRRTQRSSQQRQSRSSPRRRSRSRVVPORSRUVVVWWVTUOQVWWVWTQQVV"
    "XWWWPTPQRQQSRRUUTTVSVWVVWWWWWXWWWWWVZ"
)


class Refused(Exception):
    """The runtime said no."""


# -- protobuf


def number(value):
    """Encode a varint."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def pack(*fields):
    """Encode a message from pairs of a field's number and its value: an integer, text, bytes, or a list of these."""
    out = b""
    for key, value in fields:
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int):
                out += number(key << 3) + number(each) if each else b""
            else:
                data = each.encode() if isinstance(each, str) else each
                out += number(key << 3 | 2) + number(len(data)) + data if data or isinstance(value, list) else b""
    return out


def unpack(data):
    """Decode a message: each field's number to the list of its values, integers or bytes."""
    fields, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            value = varint()
        else:
            size = {1: 8, 5: 4}.get(key & 7)
            size = varint() if size is None else size
            value, at = data[at : at + size], at + size
        fields.setdefault(key >> 3, []).append(value)
    return fields


def text(fields, key):
    """Return the last text of a field, which may be missing."""
    return fields.get(key, [b""])[-1].decode(errors="replace")


# -- HTTP/2


def huffman():
    """Return RFC 7541's code: (bits, code) to byte."""
    codes, code, before = {}, 0, 0
    for bits, byte in sorted((ord(char) - 60, byte) for byte, char in enumerate(BITS)):
        code <<= bits - before
        codes[bits, code], before = byte, bits
        code += 1
    return codes


def expand(data):
    """Decode a Huffman-coded string."""
    codes, out, code, bits = huffman(), bytearray(), 0, 0
    for byte in data:
        for shift in range(7, -1, -1):
            code, bits = code << 1 | byte >> shift & 1, bits + 1
            if (bits, code) in codes:
                out.append(codes[bits, code])
                code = bits = 0
    return bytes(out)


def header(block):
    """Return the fields of a header block that are spelled out in it; those that only point to a table are left out."""
    found, at = {}, 0

    def integer(prefix):
        nonlocal at
        mask, shift = (1 << prefix) - 1, 0
        value = block[at] & mask
        at += 1
        if value < mask:
            return value
        while True:
            byte = block[at]
            at += 1
            value += (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def string():
        nonlocal at
        coded = block[at] & 128
        size = integer(7)
        data = block[at : at + size]
        at += size
        return (expand(data) if coded else data).decode(errors="replace")

    while at < len(block):
        first = block[at]
        if first & 128:
            integer(7)
        elif first & 0xE0 == 0x20:
            integer(5)
        else:
            name = "" if integer(6 if first & 64 else 4) else string()
            found[name] = string()
    return found


def frame(kind, flags, stream, payload=b""):
    """Return an HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def call(method, request, timeout=CALL_LIMIT):
    """Ask the CRI one thing; return the fields of the answer. Raises Refused with the runtime's words."""
    asked = {
        ":method": "POST", ":scheme": "http", ":path": "/runtime.v1." + method, ":authority": "localhost",
        "content-type": "application/grpc", "te": "trailers",
    }  # fmt: skip
    block = b"".join(bytes([0, len(k)]) + k.encode() + bytes([len(v)]) + v.encode() for k, v in asked.items())
    body = b"\0" + len(request).to_bytes(4, "big") + request
    parts = [body[at : at + 16384] for at in range(0, len(body), 16384)]
    start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, bytes.fromhex("000100000000"))  # no table
    start += frame(HEADERS, END_HEADERS, 1, block)
    for part in parts:
        start += frame(DATA, END_STREAM if part is parts[-1] else 0, 1, part)
    answer, said = b"", {}
    try:
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(timeout)
            connection.connect(SOCKET)
            connection.sendall(start)
            with connection.makefile("rb") as stream:
                flags = 0
                while not flags & END_STREAM:
                    head = stream.read(9)
                    if len(head) < 9:
                        raise Refused("it ended the connection")
                    size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
                    payload = stream.read(size)
                    if kind in (DATA, HEADERS):
                        payload = payload[1 : len(payload) - payload[0]] if flags & PADDED else payload
                        answer += payload if kind == DATA else b""
                        if kind == HEADERS:
                            said.update(header(payload[5:] if flags & PRIORITY else payload))
                        continue
                    if kind in (RESET, GOAWAY):
                        raise Refused("it broke the call off")
                    if kind in (SETTINGS, PING) and not flags & 1:
                        connection.sendall(frame(kind, 1, 0, payload if kind == PING else b""))
                    flags = 0
    except OSError as error:
        raise Refused(f"the runtime does not answer: {error}") from error
    if said.get("grpc-status", "0") != "0" or len(answer) < 5:
        raise Refused(said.get("grpc-message") or "code {}".format(said.get("grpc-status")))
    return unpack(answer[5:])
