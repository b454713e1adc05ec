//! Data forged by an attacker who holds some keys and not others: wraps, superblocks, sealed pages.
//!
//! Written from `docs/FORMAT.md` over the ciphers themselves where the library has no such
//! function, because it must not have one.

use std::path::Path;
use std::sync::Arc;

use bilayer::ids::{CryptoId, Ino, PageIndex, Sequence, VolumeId};
use bilayer::keys::WrappingKey;
use bilayer::layers::{KeySet, header_mac};
use bilayer::meta::Meta;
use bilayer::meta::records::{FileKind, InodeRecord, Timespec};
use bilayer::sealed::{
    ContentsFile, META_PAYLOAD_BYTES, META_STRIDE_BYTES, MetaFile, PAGE_BYTES, PAYLOAD_BYTES,
};
use bilayer::store::memory::MemoryStore;
use bilayer::store::{OpenMode, Store, StoreFile, StorePath};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
use serde_json::{Value, json};

const CUSTOMER: u8 = 1;
const INFRASTRUCTURE: u8 = 2;

/// Somebody who can wrap keys so that the victim's machine unwraps them.
pub struct Forger<'a> {
    /// The victim's platform keystore.
    pub keystore: &'a Path,
    /// The public half of the victim's customer key, which is in slot 1; `None` for a
    /// platform-managed volume.
    pub customer: Option<&'a WrappingKey>,
}

impl Forger<'_> {
    /// An entry of `key_sets` for a set of the forger's own.
    pub fn key_set(&self, volume: VolumeId, set: &KeySet, state: &str) -> Value {
        let customer = match self.customer {
            None => self.platform_wrap(CUSTOMER, volume, set),
            Some(key) => {
                let wrapped = key.wrap(&payload(CUSTOMER, volume, set)).unwrap();
                json!({
                    "provider": "slot:1",
                    "key_version": key.fingerprint(),
                    "algorithm": key.algorithm().name(),
                    "ciphertext": hex::encode(wrapped),
                })
            }
        };
        json!({
            "id": set.id.to_string(),
            "epoch": set.epoch.0,
            "state": state,
            "succeeds": null,
            "customer": [customer],
            "infrastructure": [self.platform_wrap(INFRASTRUCTURE, volume, set)],
        })
    }

    fn platform_wrap(&self, role: u8, volume: VolumeId, set: &KeySet) -> Value {
        let read = |name: &str| -> Value {
            serde_json::from_slice(&std::fs::read(self.keystore.join(name)).unwrap()).unwrap()
        };
        let (identity, version) = (read("keystore.json"), read("versions/00000001.json"));
        let name = if role == CUSTOMER {
            "customer"
        } else {
            "infrastructure"
        };
        let key: [u8; 32] = bytes_of(&version[name]).try_into().unwrap();
        let mut aad = b"bilayer platform wrap 1\0".to_vec();
        aad.push(role);
        aad.extend(volume.0);
        aad.extend(bytes_of(&identity["id"]));
        aad.extend(set.id.0);
        aad.extend(set.epoch.0.to_le_bytes());
        aad.extend(1u32.to_le_bytes());
        let nonce = [role; 12];
        let mut text = payload(role, volume, set);
        let tag = ChaCha20Poly1305::new(&key.into())
            .encrypt_inout_detached((&nonce).into(), &aad, text.as_mut_slice().into())
            .unwrap();
        json!({
            "provider": format!("platform:{}", identity["id"].as_str().unwrap()),
            "key_version": "1",
            "algorithm": "ChaCha20-Poly1305",
            "ciphertext": hex::encode([&nonce[..], &text, &tag].concat()),
        })
    }
}

fn bytes_of(digits: &Value) -> Vec<u8> {
    hex::decode(digits.as_str().unwrap()).unwrap()
}

/// The payload that is wrapped (section 6 of the format).
fn payload(role: u8, volume: VolumeId, set: &KeySet) -> Vec<u8> {
    let mut bytes = b"bilayerK".to_vec();
    bytes.push(role);
    bytes.extend(volume.0);
    bytes.extend(set.id.0);
    bytes.extend(set.epoch.0.to_le_bytes());
    match role {
        CUSTOMER => bytes.extend(set.customer.expose()),
        _ => bytes.extend(set.infrastructure.expose()),
    }
    bytes
}

/// The contents of a superblock, without its MAC.
pub fn contents_of(superblock: &[u8]) -> Value {
    let line = superblock.split(|byte| *byte == b'\n').next().unwrap();
    serde_json::from_slice(line).unwrap()
}

/// All bytes of a superblock with these contents, and the MAC of these key sets.
pub fn superblock(contents: &Value, sets: &[&KeySet]) -> Vec<u8> {
    let line = serde_json::to_vec(contents).unwrap();
    let mac = header_mac(sets, &line).unwrap();
    let mut bytes = line;
    bytes.extend(format!("\n{}\n", hex::encode(mac)).into_bytes());
    bytes
}

/// Puts a key set into the superblock as the active one; the former ones become read-only.
pub fn take_over(contents: &Value, entry: Value) -> Value {
    let mut contents = contents.clone();
    let sets = contents["key_sets"].as_array_mut().unwrap();
    for set in sets.iter_mut() {
        set["state"] = json!("read-only");
    }
    sets.push(entry);
    contents["sequence"] = json!(contents["sequence"].as_u64().unwrap() + 1);
    contents
}

fn scratch() -> Arc<dyn StoreFile> {
    let path = StorePath::new("scratch");
    MemoryStore::new().open(&path, OpenMode::CreateNew).unwrap()
}

fn all_of(file: &dyn StoreFile) -> Vec<u8> {
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// A stride of `meta` (or of a checkpoint), numbered by its position in the file: 0 and 1 are the
/// slots of page 0.
pub fn meta_stride(
    set: &Arc<KeySet>,
    crypto: CryptoId,
    stride: usize,
    sequence: Sequence,
    plain: u8,
) -> Vec<u8> {
    let file = scratch();
    let meta = MetaFile::create_at(Arc::clone(&file), set, crypto, sequence).unwrap();
    let page = stride.saturating_sub(1);
    for _ in 0..=usize::from(stride == 1) {
        let offset = (page * META_PAYLOAD_BYTES) as u64;
        meta.write(offset, &[plain; META_PAYLOAD_BYTES]).unwrap();
        // So that the next write uses the other slot.
        meta.sync().unwrap();
    }
    all_of(&*file)[stride * META_STRIDE_BYTES..][..META_STRIDE_BYTES].to_vec()
}

/// A page of an object.
pub fn contents_page(
    set: &Arc<KeySet>,
    crypto: CryptoId,
    page: PageIndex,
    sequence: Sequence,
    plain: u8,
) -> Vec<u8> {
    let file = scratch();
    let object = ContentsFile::new(Arc::clone(&file), set, crypto);
    let guard = object.lock_exclusive(page..PageIndex(page.0 + 1));
    let offset = page.0 * PAYLOAD_BYTES as u64;
    object
        .write_at(
            &guard,
            offset,
            &[plain; PAYLOAD_BYTES],
            sequence,
            &mut |_, _| Ok(()),
        )
        .unwrap();
    all_of(&*file)[page.0 as usize * PAGE_BYTES..].to_vec()
}

/// All bytes of a `meta` with an empty tree, whose root directory anybody may write to.
pub fn meta_of_an_empty_tree(set: &Arc<KeySet>, crypto: CryptoId, sequence: Sequence) -> Vec<u8> {
    let file = scratch();
    let meta = MetaFile::create_at(Arc::clone(&file), set, crypto, sequence).unwrap();
    let now = Timespec::now();
    let root = InodeRecord {
        kind: FileKind::Directory,
        perm: 0o777,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        pages: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        parent: Ino::ROOT,
        target: Vec::new(),
    };
    Meta::format(meta, 0, &root).unwrap();
    all_of(&*file)
}
