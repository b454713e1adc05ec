//! Wrapped keys: the author of a `volume.json` or an export can have them unwrapped before anything
//! is authenticated.

use std::rc::Rc;
use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use bilayer::keys::transport::TransportMethod;
use bilayer::keys::wrap::WrapRecord;
use bilayer::keys::{PassphraseSource, customer};
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::{self, HEADER_NAME, OpenOptions};
use serde_json::Value;

use super::sample::{self, Sample};

/// A change of one field of a wrap.
#[derive(Arbitrary, Debug)]
enum Change<'a> {
    /// Replaces the ciphertext.
    Replace(&'a [u8]),
    /// Changes a byte of the ciphertext.
    Flip(u16, u8),
    /// Truncates the ciphertext.
    Truncate(u16),
    /// Replaces a field by arbitrary text.
    Provider(&'a str),
    KeyVersion(&'a str),
    Algorithm(&'a str),
    /// A wrap of this kind is added.
    Again,
    /// The wraps of the customer DEK and the infrastructure DEK are exchanged.
    Exchange,
}

/// The first byte chooses the case: a volume of either kind, a ciphertext for the customer key, or
/// the wrapped keys of an export.
pub fn target(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    // A short or odd end means fewer changes.
    let _ = match kind % 4 {
        0 => in_volume(&sample::platform(), rest),
        1 => in_volume(&sample::customer(), rest),
        2 => {
            for_customer_key(rest);
            Ok(())
        }
        _ => {
            of_transport(rest);
            Ok(())
        }
    };
}

fn in_volume(sample: &Rc<Sample>, data: &[u8]) -> Result<()> {
    let mut input = Unstructured::new(data);
    let text = std::str::from_utf8(&sample.header).unwrap();
    let (line, mac) = text.split_once('\n').unwrap();
    let mut header: Value = serde_json::from_str(line).unwrap();
    let set = &mut header["key_sets"][0];
    while !input.is_empty() {
        let role = ["customer", "infrastructure"][usize::from(input.arbitrary::<bool>()?)];
        change(set, role, Change::arbitrary(&mut input)?);
    }
    let changed = format!("{header}\n{mac}");
    let original = format!("{}\n{mac}", serde_json::from_str::<Value>(line).unwrap());
    let store = sample.store.snapshot();
    let path = StorePath::new(HEADER_NAME);
    let file = store.open(&path, OpenMode::ReadWrite).unwrap();
    file.set_len(0).unwrap();
    file.write_at(changed.as_bytes(), 0).unwrap();
    let options = OpenOptions {
        keystore: sample.keystore(),
        customer_key: sample.customer.clone(),
        ..OpenOptions::default()
    };
    let opened = volume::open(Arc::new(store), &options);
    // The fields are encoded in another order, so even the right one does not verify.
    assert!(opened.is_err(), "changed: {}", changed != original);
    Ok(())
}

fn change(set: &mut Value, role: &str, change: Change<'_>) {
    if matches!(change, Change::Exchange) {
        let customer = set["customer"].take();
        set["customer"] = set["infrastructure"].take();
        set["infrastructure"] = customer;
        return;
    }
    let Some(wraps) = set[role].as_array_mut() else {
        return;
    };
    let Some(wrap) = wraps.last_mut() else {
        return;
    };
    if matches!(change, Change::Again) {
        let again = wrap.clone();
        wraps.push(again);
        return;
    }
    let mut record: WrapRecord = serde_json::from_value(wrap.clone()).unwrap();
    let len = record.ciphertext.len();
    match change {
        Change::Replace(bytes) => record.ciphertext = bytes.to_vec(),
        Change::Flip(at, by) if len > 0 => record.ciphertext[usize::from(at) % len] ^= by,
        Change::Truncate(at) => record.ciphertext.truncate(usize::from(at)),
        Change::Provider(text) => record.provider = text.to_owned(),
        Change::KeyVersion(text) => record.key_version = text.to_owned(),
        Change::Algorithm(text) => record.algorithm = text.to_owned(),
        _ => {}
    }
    *wrap = serde_json::to_value(record).unwrap();
}

/// The private key decrypts only what was encrypted for it.
fn for_customer_key(data: &[u8]) {
    let sample = sample::customer();
    let uri = sample.customer.as_ref().unwrap();
    let key = customer::open(uri, &PassphraseSource::None).unwrap();
    let version = key.current().unwrap();
    assert!(key.unwrap(&version, data).is_err());
    let plain = &data[..data.len().min(190)];
    let mut wrapped = version.key.wrap(plain).unwrap();
    assert_eq!(*key.unwrap(&version, &wrapped).unwrap(), plain);
    let at = data.len() % wrapped.len();
    wrapped[at] ^= data.first().map_or(1, |byte| byte | 1);
    assert!(key.unwrap(&version, &wrapped).is_err());
}

fn of_transport(data: &[u8]) {
    let Ok(method) = serde_json::from_slice::<TransportMethod>(data) else {
        return;
    };
    let again = serde_json::to_vec(&method).unwrap();
    assert_eq!(
        serde_json::from_slice::<TransportMethod>(&again).unwrap(),
        method
    );
}
