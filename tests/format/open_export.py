#!/usr/bin/env python3
"""A second, read-only implementation of the stream of section 11 of docs/FORMAT.md.

Written from that document alone, on top of `open_volume.py`.

    open_export.py open < request.json

Request and answer are described at `open_export`.
"""

import hashlib
import hmac
import json
import struct
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from open_volume import (
    BOTH,
    CUSTOMER,
    INFRASTRUCTURE,
    META_STRIDE_BYTES,
    PAGE_BYTES,
    KeySet,
    Keystore,
    SealedFile,
    hkdf,
    info,
    oaep_of,
    open_strides,
    require,
    strict_json,
)

MAX_HEADER_BYTES = 256 * 1024


class Stream:
    """Reads forwards and remembers what it read."""

    def __init__(self, file):
        self.file, self.digest = file, hashlib.sha256()

    def take(self, length):
        data = self.file.read(length)
        require(len(data) == length, "the stream is truncated")
        self.digest.update(data)
        return data

    def line(self, most):
        data = self.file.readline(most + 1)
        require(data.endswith(b"\n"), "a line of the header")
        self.digest.update(data)
        return data

    def numbers(self, layout):
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))


def argon2id(passphrase, cost, salt):
    require(1 <= cost["lanes"] <= 16, "lanes")
    require(8 * cost["lanes"] <= cost["memory_kib"] <= 1 << 20, "memory")
    require(1 <= cost["passes"] and cost["memory_kib"] * cost["passes"] <= 1 << 22, "passes")
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    function = Argon2id(
        salt=salt,
        length=32,
        iterations=cost["passes"],
        lanes=cost["lanes"],
        memory_cost=cost["memory_kib"],
    )
    return function.derive(passphrase)


def label(role, export):
    return struct.pack("<24sB16s", b"bilayer transport 1", role, export)


def transport_keys(header, export, request):
    """The transport key of each role."""
    transport = header["transport"]
    if transport["kind"] == "keystore":
        keystore = Keystore(request["keystore"])
        require(keystore.id == transport["keystore"], "another keystore")
        infrastructure, customer = keystore.keys(transport["key_version"])
    else:
        require(transport["kind"] == "passphrase", "kind of transport")
        salt = bytes.fromhex(transport["salt"])
        infrastructure = customer = argon2id(
            request["passphrase"].encode(), transport["argon2id"], salt
        )
    return {
        1: hkdf(customer, label(1, export), 32),
        2: hkdf(infrastructure, label(2, export), 32),
    }


def dek_of(payload, role, export, entry, width):
    identifier = bytes.fromhex(entry["id"])
    prefix = struct.pack("<8sB16sI16s", b"bilayerX", role, identifier, entry["epoch"], export)
    require(payload[:45] == prefix, "a wrap holds another key")
    require(len(payload) == 45 + width, "width of a wrapped DEK")
    return payload[45:]


def unwrap(key, role, export, entry, wrapped, width):
    aad = label(role, export) + struct.pack("<16sI", bytes.fromhex(entry["id"]), entry["epoch"])
    require(len(aad) == 61, "additional data")
    try:
        payload = ChaCha20Poly1305(key).decrypt(wrapped[:12], wrapped[12:], aad)
    except InvalidTag:
        require(False, "a wrap for transport does not open")
    return dek_of(payload, role, export, entry, width)


def unwrap_set(header, request):
    export = bytes.fromhex(header["export"])
    keys = transport_keys(header, export, request)
    managed = {"platform-managed": False, "platform-and-customer": True}[header["key_mode"]]
    require(managed == (header["customer_key"] is not None), "customer key of the header")
    if managed:
        with open(request["customer_key"], "rb") as file:
            private = serialization.load_pem_private_key(file.read(), None)
    entry = header["key_set"]
    machine = unwrap(keys[2], 2, export, entry, bytes.fromhex(entry["infrastructure"]), 32)
    wrapped = bytes.fromhex(entry["customer"])
    if managed:
        oaep = oaep_of(header["customer_key"]["algorithm"])
        customer = dek_of(private.decrypt(wrapped, oaep), 1, export, entry, 64)
    else:
        customer = unwrap(keys[1], 1, export, entry, wrapped, 64)
    return export, KeySet(bytes.fromhex(entry["id"]), entry["epoch"], customer, machine)


def mac_keys(export, key_set):
    """Returns the MAC keys of the header and of the end."""
    name, joined = b"bilayer export", b""
    for layer, dek in (
        (CUSTOMER, key_set.customer),
        (INFRASTRUCTURE, key_set.infrastructure),
    ):
        joined += hkdf(dek, info(name, layer, key_set.id, key_set.epoch, export), 32)
    return [hkdf(joined, info(name, BOTH, bytes(16), 0, export, segment), 32) for segment in (1, 2)]


def check_mac(key, message, mac, what):
    require(hmac.compare_digest(hmac.digest(key, message, "sha256"), mac), what)


def open_object(stream, part, key_set):
    tag, folder, identifier, pages = stream.numbers("cQ16sI")
    require((tag, folder, identifier.hex()) == (b"O", part["folder"], part["object"]), "object")
    require(pages == len(part["pages"]), "pages of an object")
    require(part["epoch"] == key_set.epoch, "key set of an object")
    file = SealedFile(key_set, bytes.fromhex(part["crypto"]))
    for index in part["pages"]:
        file.open(stream.take(PAGE_BYTES), index)
    return pages


def open_export(request):
    """Request: {stream (a path), keystore, passphrase, customer_key (a path or null),
    parts: [{folder, object, crypto, epoch, pages: [index]}]} in the order of the stream.
    Answer: {provenance, transport, meta, objects, pages_opened}."""
    with open(request["stream"], "rb") as file:
        stream = Stream(file)
        first = stream.line(40)
        require(first == b"bilayer-export 2\n", "the first line")
        line = stream.line(MAX_HEADER_BYTES)
        mac = bytes.fromhex(stream.line(64).decode("ascii").rstrip("\n"))
        header = strict_json(line)
        require(header["features"] == [], "a feature that is not known")
        export, key_set = unwrap_set(header, request)
        of_header, of_end = mac_keys(export, key_set)
        check_mac(of_header, first + line, mac, "MAC of the header")

        counts = header["counts"]
        tag, strides = stream.numbers("cQ")
        require((tag, strides) == (b"M", counts["meta_strides"]), "metadata")
        data = stream.take(strides * META_STRIDE_BYTES)
        meta = open_strides(data, key_set, bytes.fromhex(header["meta"]))

        pages = sum(open_object(stream, part, key_set) for part in request["parts"])
        objects = len(request["parts"])
        counted = stream.numbers("cQQQ")
        digest = stream.digest.digest()
        check_mac(of_end, digest, stream.take(32), "MAC of the end")
        length = strides * META_STRIDE_BYTES + pages * PAGE_BYTES
        require(counted == (b"E", objects, pages, length), "counts of the end")
        require((objects, pages) == (counts["objects"], counts["pages"]), "counts of the header")
        require(file.read(1) == b"", "something follows the end")
    return {
        "provenance": header["provenance"],
        "transport": header["transport"]["kind"],
        "meta": meta,
        "objects": objects,
        "pages_opened": pages,
    }


def main():
    if sys.argv[1:] != ["open"]:
        sys.exit(__doc__)
    json.dump(open_export(json.load(sys.stdin)), sys.stdout)
    print()


if __name__ == "__main__":
    main()
