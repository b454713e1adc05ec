#!/usr/bin/env python3
"""A second, read-only implementation of the sealed formats of docs/FORMAT.md.

Written from that document alone, over OpenSSL (the Python package `cryptography`), with a POLYVAL
of its own. It shares no code, no cipher and no habits with the program that it checks.

    open_volume.py open     < request.json   opens a volume's superblock, keys, `meta` and objects
    open_volume.py vectors                   recomputes the vectors of docs/FORMAT.md, section 10

The request and the answer of `open` are described at `open_volume`.
"""

import hashlib
import hmac
import json
import os
import struct
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

FORMAT = 1
SEGMENT_PAGES = 2048
HEADER_BYTES = 64
PAGE_BYTES, PAYLOAD_BYTES = 4096, 4032
META_STRIDE_BYTES, META_PAYLOAD_BYTES = 4608, 4096
CHUNK_BYTES = 4 << 20
CUSTOMER, INFRASTRUCTURE, BOTH = 1, 2, 3


class Refused(Exception):
    """The volume differs from what was written."""


def require(condition, why):
    if not condition:
        raise Refused(why)


# ---- section 3: key derivation ------------------------------------------------------------------


def hkdf(key, info, length):
    return HKDF(hashes.SHA256(), length, None, info).derive(key)


def info(purpose, layer, key_set, epoch, crypto=bytes(16), segment=0):
    packed = struct.pack(
        "<16sII16sI16sQ", purpose, layer, FORMAT, key_set, epoch, crypto, segment
    )
    assert len(packed) == 68
    return packed


class KeySet:
    """A pair of DEKs: id, epoch, 64 bytes, 32 bytes."""

    def __init__(self, identifier, epoch, customer, infrastructure):
        require(len(identifier) == 16 and epoch >= 1, "key set")
        require(len(customer) == 64 and len(infrastructure) == 32, "width of a DEK")
        self.id, self.epoch = identifier, epoch
        self.customer, self.infrastructure = customer, infrastructure

    def verification_key(self):
        return joint_key([self], b"bilayer succeed")

    def fingerprint(self):
        digits = hkdf(self.customer, info(b"bilayer print", CUSTOMER, self.id, 0), 16).hex()
        return "-".join(digits[i : i + 4] for i in range(0, 32, 4))


def joint_key(key_sets, purpose):
    """A key that takes both DEKs of all key sets, in their order."""
    parts = b""
    for keys in key_sets:
        parts += hkdf(keys.customer, info(purpose, CUSTOMER, keys.id, keys.epoch), 32)
        parts += hkdf(keys.infrastructure, info(purpose, INFRASTRUCTURE, keys.id, keys.epoch), 32)
    return hkdf(parts, info(purpose, BOTH, bytes(16), 0), 32)


def header_mac(key_sets, line):
    return hmac.new(joint_key(key_sets, b"bilayer header"), line, hashlib.sha256).digest()


def succession_mac(volume, before, incarnation_before, commit, after, incarnation_after):
    label = b"bilayer succession 1".ljust(24, b"\0")
    digest = hashlib.sha256(label + after.verification_key()).digest()
    message = struct.pack(
        "<24s16s16sI16sQ16sI16s32s",
        label,
        volume,
        before.id,
        before.epoch,
        incarnation_before,
        commit,
        after.id,
        after.epoch,
        incarnation_after,
        digest,
    )
    assert len(message) == 152
    return hmac.new(before.verification_key(), message, hashlib.sha256).digest()


# ---- section 4: the page ------------------------------------------------------------------------


class Polyval:
    """POLYVAL (RFC 8452, section 3): little-endian, modulo x^128 + x^127 + x^126 + x^121 + 1."""

    MODULUS = (1 << 128) | (1 << 127) | (1 << 126) | (1 << 121) | 1

    def __init__(self, key):
        # dot(a, h) = a * h * x^-128. Bit 127 of `a` contributes h * x^-1, bit 126 h * x^-2, ...
        power, bits = int.from_bytes(key, "little"), [0] * 128
        for bit in reversed(range(128)):
            power = (power ^ self.MODULUS if power & 1 else power) >> 1
            bits[bit] = power
        # One table for each byte of `a`, so that a block costs 16 look-ups.
        self.tables = []
        for byte in range(16):
            table = [0] * 256
            for value in range(1, 256):
                low = value & -value
                table[value] = table[value ^ low] ^ bits[8 * byte + low.bit_length() - 1]
            self.tables.append(table)

    def hash(self, message):
        assert len(message) % 16 == 0
        state = 0
        for at in range(0, len(message), 16):
            state ^= int.from_bytes(message[at : at + 16], "little")
            mixed = 0
            for table, byte in zip(self.tables, state.to_bytes(16, "little")):
                mixed ^= table[byte]
            state = mixed
        return state.to_bytes(16, "little")


class SegmentKeys:
    """Keys of up to 2048 pages of one sealed file."""

    def __init__(self, key_set, crypto, segment):
        page = b"bilayer page"
        inner = hkdf(
            key_set.customer, info(page, CUSTOMER, key_set.id, key_set.epoch, crypto, segment), 112
        )
        outer = hkdf(
            key_set.infrastructure,
            info(page, INFRASTRUCTURE, key_set.id, key_set.epoch, crypto, segment),
            32,
        )
        require(inner[:32] != inner[32:64] and any(inner[96:]), "degenerate keys")
        self.material, self.outer_key = inner, outer
        self.xts_key, self.hash = inner[:64], Polyval(inner[96:])
        self.tag_cipher = Cipher(algorithms.AES(inner[64:96]), modes.ECB())
        self.outer = ChaCha20Poly1305(outer)

    def xts(self, index):
        return Cipher(algorithms.AES(self.xts_key), modes.XTS(index.to_bytes(16, "little")))

    def inner_tag(self, aad, ciphertext):
        lengths = struct.pack("<QQ", 8 * len(aad), 8 * len(ciphertext))
        encryptor = self.tag_cipher.encryptor()
        return encryptor.update(self.hash.hash(aad + ciphertext + lengths)) + encryptor.finalize()


def additional_data(key_set, crypto, index, slot, fields):
    aad = struct.pack("<H16s16sQH", FORMAT, key_set.id, crypto, index, slot) + fields
    assert len(aad) == 64
    return aad


class SealedFile:
    """Opens pages of one sealed file."""

    def __init__(self, key_set, crypto):
        self.key_set, self.crypto, self.segments = key_set, crypto, {}

    def keys(self, epoch, index):
        require(epoch == self.key_set.epoch, "a page names another key set than the file's")
        segment = index // SEGMENT_PAGES
        if segment not in self.segments:
            self.segments[segment] = SegmentKeys(self.key_set, self.crypto, segment)
        return self.segments[segment]

    def open(self, page, index, slot=0):
        """Returns plaintext and sequence."""
        nonce, outer_tag, inner_tag = page[:12], page[12:28], page[28:44]
        fields, ciphertext = page[44:64], page[64:]
        epoch, sequence, reserved = struct.unpack("<IQQ", fields)
        require(reserved == 0, "reserved bytes of a page")
        keys = self.keys(epoch, index)
        aad = additional_data(self.key_set, self.crypto, index, slot, fields)
        try:
            message = keys.outer.decrypt(nonce, inner_tag + ciphertext + outer_tag, aad)
        except InvalidTag:
            raise Refused(f"page {index}: outer tag") from None
        tag, inner = message[:16], message[16:]
        require(hmac.compare_digest(tag, keys.inner_tag(aad, inner)), f"page {index}: inner tag")
        decryptor = keys.xts(index).decryptor()
        return decryptor.update(inner) + decryptor.finalize(), sequence

    def seal(self, plain, index, slot, epoch, sequence, nonce):
        """Seals a page, for the vectors."""
        keys, fields = self.keys(epoch, index), struct.pack("<IQQ", epoch, sequence, 0)
        aad = additional_data(self.key_set, self.crypto, index, slot, fields)
        encryptor = keys.xts(index).encryptor()
        inner = encryptor.update(plain) + encryptor.finalize()
        message = keys.outer.encrypt(nonce, keys.inner_tag(aad, inner) + inner, aad)
        body, outer_tag = message[:-16], message[-16:]
        return nonce + outer_tag + body[:16] + fields + body[16:]


# ---- sections 5 and 6: superblock, keystore, wraps ----------------------------------------------


def strict_json(text):
    """JSON without repeated names."""

    def once(pairs):
        names = [name for name, _ in pairs]
        require(len(names) == len(set(names)), "a repeated name")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def read_superblock(path):
    """Returns the authenticated line as bytes, its parsed contents, and the MAC."""
    with open(path, "rb") as file:
        data = file.read(1024 * 1024 + 1)
    require(len(data) <= 1024 * 1024, "the superblock is too long")
    line, mac, rest = data.split(b"\n")
    require(rest == b"" and len(mac) == 64, "shape of the superblock")
    header = strict_json(line)
    require(header["format"] == "bilayer" and header["version"] == FORMAT, "format")
    require(header["features"] == [], "a feature that is not known")
    return line, header, bytes.fromhex(mac.decode("ascii"))


class Keystore:
    def __init__(self, directory):
        self.directory = directory
        with open(os.path.join(directory, "keystore.json"), "rb") as file:
            identity = strict_json(file.read())
        require(identity["format"] == "bilayer-platform-keystore", "format of the keystore")
        self.id = identity["id"]

    def keys(self, version):
        name = os.path.join(self.directory, "versions", f"{version:08}.json")
        with open(name, "rb") as file:
            keys = strict_json(file.read())
        require(keys["format"] == "bilayer-platform-key", "format of a platform key")
        require(keys["keystore"] == self.id and keys["number"] == version, "a foreign platform key")
        return bytes.fromhex(keys["infrastructure"]), bytes.fromhex(keys["customer"])


def dek_of(payload, role, volume, key_set, epoch, width):
    prefix = struct.pack("<8sB16s16sI", b"bilayerK", role, volume, key_set, epoch)
    require(payload[:45] == prefix, "a wrap holds another key")
    require(len(payload) == 45 + width, "width of a wrapped DEK")
    return payload[45:]


def unwrap_platform(keystore, wrap, role, volume, key_set, epoch, width):
    require(wrap["algorithm"] == "ChaCha20-Poly1305", "algorithm of a platform wrap")
    require(wrap["provider"] == "platform:" + keystore.id, "a foreign platform wrap")
    version = int(wrap["key_version"])
    infrastructure, customer = keystore.keys(version)
    key = {1: customer, 2: infrastructure}[role]
    aad = struct.pack(
        "<24sB16s16s16sII",
        b"bilayer platform wrap 1",
        role,
        volume,
        bytes.fromhex(keystore.id),
        key_set,
        epoch,
        version,
    )
    assert len(aad) == 81
    sealed = bytes.fromhex(wrap["ciphertext"])
    payload = ChaCha20Poly1305(key).decrypt(sealed[:12], sealed[12:], aad)
    return dek_of(payload, role, volume, key_set, epoch, width)


def slot_keys(header):
    """All keys of all slots, each with its slot's number, in the order of every set's wraps."""
    numbers = [slot["number"] for slot in header["slots"]]
    require(numbers == sorted(set(numbers)) and set(numbers) <= set(range(1, 9)), "slot numbers")
    keys = [(slot["number"], key) for slot in header["slots"] for key in slot["keys"]]
    require(len({key["public_key"] for _, key in keys}) == len(keys), "one key in two slots")
    return keys


def check_customer_wraps(keys, wraps):
    require(len(keys) == len(wraps), "one wrap for each key of each slot")
    for (number, key), wrap in zip(keys, wraps):
        fingerprint = hashlib.sha256(bytes.fromhex(key["public_key"])).hexdigest()
        require(wrap["provider"] == "slot:%d" % number, "slot of a customer wrap")
        require(wrap["key_version"] == fingerprint, "key of a customer wrap")
        require(wrap["algorithm"] == key["algorithm"], "algorithm of a customer wrap")


def oaep_of(algorithm):
    digest = {"RSA-OAEP-256": hashes.SHA256, "RSA-OAEP": hashes.SHA1}[algorithm]
    return padding.OAEP(padding.MGF1(digest()), digest(), None)


def unwrap_customer(private, keys, wraps, volume, key_set, epoch):
    check_customer_wraps(keys, wraps)
    public = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    own = [place for place, (_, key) in enumerate(keys) if key["public_key"] == public.hex()]
    require(len(own) == 1, "another customer key")
    wrap = wraps[own[0]]
    payload = private.decrypt(bytes.fromhex(wrap["ciphertext"]), oaep_of(wrap["algorithm"]))
    return dek_of(payload, 1, volume, key_set, epoch, 64)


def unwrap_all(header, keystore, private):
    volume, key_sets = bytes.fromhex(header["volume"]), {}
    managed = {"platform-managed": False, "platform-and-customer": True}[header["key_mode"]]
    require(managed == (private is not None), "key mode")
    require(managed == bool(header["slots"]), "slots of the key mode")
    keys = slot_keys(header)
    for entry in header["key_sets"]:
        identifier, epoch = bytes.fromhex(entry["id"]), entry["epoch"]
        machine = unwrap_platform(
            keystore, entry["infrastructure"][0], 2, volume, identifier, epoch, 32
        )
        if managed:
            wraps = entry["customer"]
            customer = unwrap_customer(private, keys, wraps, volume, identifier, epoch)
        else:
            wrap = entry["customer"][0]
            customer = unwrap_platform(keystore, wrap, 1, volume, identifier, epoch, 64)
        key_sets[epoch] = KeySet(identifier, epoch, customer, machine)
    active = [entry["epoch"] for entry in header["key_sets"] if entry["state"] == "active"]
    require(active == [max(key_sets)], "exactly the newest key set is active")
    return key_sets, key_sets[active[0]]


def check_successions(header, key_sets):
    """Verifies every statement that one key set follows another; returns how many there are."""
    volume, incarnation = bytes.fromhex(header["volume"]), bytes.fromhex(header["incarnation"])
    by_id = {keys.id: keys for keys in key_sets.values()}
    stated = 0
    entries = {entry["id"]: entry for entry in header["key_sets"]}
    entry = max(header["key_sets"], key=lambda entry: entry["epoch"])
    while entry["succeeds"] is not None:
        statement = entry["succeeds"]
        before, after = by_id[bytes.fromhex(statement["key_set"])], key_sets[entry["epoch"]]
        require(before.epoch < after.epoch, "a key set follows a newer one")
        earlier = bytes.fromhex(statement["incarnation"])
        mac = succession_mac(volume, before, earlier, statement["commit"], after, incarnation)
        require(hmac.compare_digest(mac.hex(), statement["mac"]), "MAC of a succession")
        stated, incarnation, entry = stated + 1, earlier, entries[statement["key_set"]]
    return stated


# ---- sections 7 and 9: `meta` and objects -------------------------------------------------------


def open_meta(path, key_set, crypto):
    with open(path, "rb") as opened:
        return open_strides(opened.read(), key_set, crypto)


def open_strides(data, key_set, crypto, is_copy=False):
    """Page 0 from its newest authentic slot, then every page that was ever written.

    In a checkpoint the bytes between these pages have no meaning."""
    file = SealedFile(key_set, crypto)

    def stride(number):
        return data[number * META_STRIDE_BYTES : (number + 1) * META_STRIDE_BYTES]

    slots = []
    for slot in (0, 1):
        try:
            page = stride(slot)[: HEADER_BYTES + META_PAYLOAD_BYTES]
            slots.append((*file.open(page, 0, slot), slot))
        except Refused:
            slots.append(None)
    authentic = [slot for slot in slots if slot is not None]
    require(authentic, "no slot of page 0 opens")
    plain, sequence, slot = max(authentic, key=lambda opened: opened[1])

    opened = 0
    for number in range(2, len(data) // META_STRIDE_BYTES):
        bytes_of_page = stride(number)
        if is_copy:
            try:
                file.open(bytes_of_page[: HEADER_BYTES + META_PAYLOAD_BYTES], number - 1)
                opened += 1
            except Refused:
                pass
            continue
        require(not any(bytes_of_page[HEADER_BYTES + META_PAYLOAD_BYTES :]), "padding of `meta`")
        if any(bytes_of_page):
            file.open(bytes_of_page[: HEADER_BYTES + META_PAYLOAD_BYTES], number - 1)
            opened += 1
    return {
        "slot": slot,
        "sequence": sequence,
        "authentic_slots": len(authentic),
        "begins_with": plain[:9].hex(),
        "pages_opened": opened,
    }


def open_checkpoints(directory, key_set):
    """Sequence and time of each finished checkpoint (section 12), in the order of their names."""
    found = []
    for name in sorted(os.listdir(directory) if os.path.isdir(directory) else []):
        if len(name) != 32:
            continue
        with open(os.path.join(directory, name), "rb") as opened:
            data = opened.read()
        require(data[:META_STRIDE_BYTES], "a checkpoint has a page 0")
        require(open_strides(data, key_set, bytes.fromhex(name), True)["pages_opened"], "its pages")
        file = SealedFile(key_set, bytes.fromhex(name))
        page_bytes = HEADER_BYTES + META_PAYLOAD_BYTES
        plain, sequence = file.open(data[:page_bytes], 0, 0)
        mark, _ = file.open(data[META_STRIDE_BYTES : META_STRIDE_BYTES + page_bytes], 0, 1)
        require(not any(mark), "the mark of a checkpoint")
        require(plain[512:521] == b"bilayerC\x01", "the note of a checkpoint")
        found.append({"sequence": sequence, "created": struct.unpack_from("<qI", plain, 521)})
    return found


def read_file(volume, key_sets, request):
    """The SHA-256 of a file's contents, read part by part as section 9 says."""
    objects, digest, pages_opened = {}, hashlib.sha256(), 0
    size = request["size"]
    for number in range((size + CHUNK_BYTES - 1) // CHUNK_BYTES):
        length = min(CHUNK_BYTES, size - number * CHUNK_BYTES)
        chunk = bytearray(length)
        for index in range((length + PAYLOAD_BYTES - 1) // PAYLOAD_BYTES):
            for part in request["chunks"].get(str(number), []):
                if index not in part["pages"]:
                    continue
                path = os.path.join(volume, "objects", f"{part['folder']:08x}", part["object"])
                if path not in objects:
                    crypto = bytes.fromhex(part["crypto"])
                    sealed = SealedFile(key_sets[part["epoch"]], crypto)
                    with open(path, "rb") as opened:
                        objects[path] = (sealed, opened.read())
                sealed, data = objects[path]
                page = data[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]
                require(len(page) == PAGE_BYTES, "an object is too short")
                plain, _ = sealed.open(page, index)
                start = index * PAYLOAD_BYTES
                chunk[start : start + PAYLOAD_BYTES] = plain[: length - start]
                pages_opened += 1
                break
        digest.update(chunk)
    return {"sha256": digest.hexdigest(), "pages_opened": pages_opened}


def open_volume(request):
    """Request: {volume, keystore, customer_key (path of a PEM file, or null),
    files: [{size, chunks: {"0": [{folder, object, crypto, epoch, pages: [index]}]}}]}, parts newest
    first. Answer: {fingerprint, successions, meta, checkpoints: [{sequence, created}], files:
    [{sha256, pages_opened}]}."""
    private = None
    if request["customer_key"] is not None:
        with open(request["customer_key"], "rb") as file:
            private = serialization.load_pem_private_key(file.read(), None)
    volume = request["volume"]
    line, header, mac = read_superblock(os.path.join(volume, "volume.json"))
    key_sets, active = unwrap_all(header, Keystore(request["keystore"]), private)
    listed = [key_sets[entry["epoch"]] for entry in header["key_sets"]]
    require(hmac.compare_digest(header_mac(listed, line), mac), "MAC of the superblock")
    require(header_mac(listed, line + b" ") != mac, "the MAC covers the line")
    return {
        "fingerprint": active.fingerprint(),
        "successions": check_successions(header, key_sets),
        "meta": open_meta(os.path.join(volume, "meta"), active, bytes.fromhex(header["meta"])),
        "checkpoints": open_checkpoints(os.path.join(volume, "checkpoints"), active),
        "files": [read_file(volume, key_sets, file) for file in request["files"]],
    }


# ---- section 10: vectors ------------------------------------------------------------------------


def vectors():
    """Name and hexadecimal digits (or text) of everything that section 10 lists."""
    polyval = Polyval(bytes.fromhex("25629347589242761d31f826ba4b757b")).hash(
        bytes.fromhex("4f4f95668c83dfb6401762bb2d01a262d1a24ddd2721d006bbe45f20d3c9f362")
    )
    assert polyval.hex() == "f7a3b47b846119fae5b7866cf5e5b77e", "RFC 8452, appendix A"
    keys = KeySet(b"\x03" * 16, 1, b"\x01" * 64, b"\x02" * 32)
    after = KeySet(b"\x09" * 16, 2, b"\x0a" * 64, b"\x0b" * 32)
    crypto, sequence, nonce = b"\xc0" * 16, 0x0102030405060708, b"\x4e" * 12

    def page(index, slot, length):
        plain = bytes((i * 31 + i // 251 + 21 * 97) % 251 for i in range(length))
        file = SealedFile(keys, crypto)
        sealed = file.seal(plain, index, slot, 1, sequence, nonce)
        assert file.open(sealed, index, slot) == (plain, sequence)
        return sealed

    segment_1 = SegmentKeys(keys, crypto, 1)
    contents, meta = page(2049, 0, PAYLOAD_BYTES), page(0, 1, META_PAYLOAD_BYTES)
    line = b'{"format":"bilayer"}'
    return {
        "info-inner": info(b"bilayer page", CUSTOMER, keys.id, 1, crypto, 1).hex(),
        "inner-keys": segment_1.material.hex(),
        "outer-key": segment_1.outer_key.hex(),
        "aad": additional_data(keys, crypto, 2049, 0, struct.pack("<IQQ", 1, sequence, 0)).hex(),
        "contents-page": contents.hex(),
        "contents-page-header": contents[:64].hex(),
        "contents-page-sha256": hashlib.sha256(contents).hexdigest(),
        "meta-page": meta.hex(),
        "meta-page-header": meta[:64].hex(),
        "meta-page-sha256": hashlib.sha256(meta).hexdigest(),
        "header-key": joint_key([keys], b"bilayer header").hex(),
        "header-mac": header_mac([keys], line).hex(),
        "verification-key": keys.verification_key().hex(),
        "succession-mac": succession_mac(
            b"\x05" * 16, keys, b"\x06" * 16, 7, after, b"\x08" * 16
        ).hex(),
        "fingerprint": keys.fingerprint(),
    }


def main():
    command = sys.argv[1] if len(sys.argv) == 2 else ""
    if command == "open":
        answer = open_volume(json.load(sys.stdin))
    elif command == "vectors":
        answer = vectors()
    else:
        sys.exit(__doc__)
    json.dump(answer, sys.stdout)
    print()


if __name__ == "__main__":
    main()
