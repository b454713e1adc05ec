//! Cost of both layers per 4032-byte page on one core, sealing and opening: the implementation in
//! use, beside the independent second implementation and a plain copy.
//!
//! ```text
//! cd bench && cargo bench --bench codec
//! ```
//! The process is pinned to one core. Every figure is the fastest of many samples, since slower
//! ones were disturbed by other processes; the median is printed beside it.
//!
//! `xts-mode` works block by block through a generic call, and its speed depends on how the
//! compiler optimizes the rest of the program: 2.8 µs and 12.7 µs were measured on one machine for
//! benchmarks that differed in an unrelated line. The implementation in use did not vary.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aes::Aes256;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use bilayer::ids::{CryptoId, Epoch, Sequence};
use bilayer::layers::xts::Block;
use bilayer::layers::{CustomerKeys, InfrastructureKeys, KeySet, Segment, implementations};
use bilayer::sealed::{ContentsFile, PAYLOAD_BYTES};
use bilayer::store::{EntryInfo, EntryKind, StoreFile};
use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::AeadInOut;
use polyval::Polyval;
use polyval::universal_hash::UniversalHash;
use xts_mode::Xts128;

const SAMPLES: usize = 60;
const SAMPLE_TIME: Duration = Duration::from_millis(4);
const AAD: [u8; 64] = [0xAD; 64];
/// Pages of the run with which the whole path is measured: 1 MiB.
const RUN_PAGES: usize = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    pin_to_one_core();
    for layer in implementations() {
        println!(
            "{}: {}, {}{}",
            layer.layer,
            layer.algorithm,
            layer.implementation,
            if layer.accelerated == Some(false) {
                ", software"
            } else {
                ""
            }
        );
    }
    println!(
        "\n{:<44} {:>8} {:>8} {:>8}",
        "one page of 4032 bytes", "µs", "median", "GB/s"
    );
    copy();
    let set = Arc::new(KeySet::random(Epoch(1))?);
    used_path(&set)?;
    second_opinion()?;
    through_a_file(&set)?;
    self_test_once()?;
    Ok(())
}

fn pin_to_one_core() {
    let last = std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1);
    let mut cores = rustix::thread::CpuSet::new();
    cores.set(last);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &cores) {
        println!("not pinned to a core: {error}");
    }
}

/// Measures and prints one line; `pages` is how many pages one call works on.
fn measure(name: &str, pages: usize, mut call: impl FnMut()) {
    let start = Instant::now();
    let mut calls = 0u32;
    while start.elapsed() < SAMPLE_TIME {
        call();
        calls += 1;
    }
    let mut samples: Vec<f64> = (0..SAMPLES)
        .map(|_| {
            let start = Instant::now();
            (0..calls).for_each(|_| call());
            start.elapsed().as_secs_f64() * 1e6 / f64::from(calls) / pages as f64
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    let (best, median) = (samples[0], samples[SAMPLES / 2]);
    let rate = PAYLOAD_BYTES as f64 / best / 1000.0;
    println!("{name:<44} {best:>8.3} {median:>8.3} {rate:>8.2}");
}

fn copy() {
    let (from, mut to) = ([7u8; PAYLOAD_BYTES], [0u8; PAYLOAD_BYTES]);
    measure("copy", 1, || {
        black_box(&mut to).copy_from_slice(black_box(&from));
    });
}

fn used_path(set: &KeySet) -> Result<(), Box<dyn std::error::Error>> {
    let customer = CustomerKeys::derive(set, CryptoId([1; 16]), Segment(0))?;
    let machine = InfrastructureKeys::derive(set, CryptoId([1; 16]), Segment(0))?;
    let nonce = [9; 12];
    // Inner tag and payload, one after the other, as in a page.
    let mut message = [[0u8; 16]; 253];

    measure("seal: customer layer", 1, || {
        let tag = customer.seal(1, &AAD, message[1..].as_mut().into());
        black_box(tag);
    });
    measure("seal: infrastructure layer", 1, || {
        black_box(machine.seal(&nonce, &AAD, message.as_flattened_mut())).ok();
    });
    measure("seal: both layers", 1, || {
        message[0] = customer.seal(1, &AAD, message[1..].as_mut().into());
        black_box(machine.seal(&nonce, &AAD, message.as_flattened_mut())).ok();
    });

    let mut inner = [[0u8; 16]; 252];
    let inner_tag = customer.seal(1, &AAD, inner.as_mut_slice().into());
    let mut outer = [[0u8; 16]; 253];
    outer[0] = inner_tag;
    outer[1..].copy_from_slice(&inner);
    let outer_tag = machine.seal(&nonce, &AAD, outer.as_flattened_mut())?;

    // Opening in place overwrites its input, so each call works on a copy.
    measure("open: customer layer (and a copy)", 1, || {
        let mut blocks = inner;
        black_box(customer.open(1, &AAD, &inner_tag, blocks.as_mut_slice().into())).ok();
        black_box(&blocks);
    });
    measure("open: infrastructure layer (and a copy)", 1, || {
        let mut blocks = outer;
        black_box(machine.open(&nonce, &AAD, &outer_tag, blocks.as_flattened_mut())).ok();
        black_box(&blocks);
    });
    measure("open: both layers (and a copy)", 1, || {
        let mut blocks = outer;
        black_box(machine.open(&nonce, &AAD, &outer_tag, blocks.as_flattened_mut())).ok();
        let tag = blocks[0];
        black_box(customer.open(1, &AAD, &tag, blocks[1..].as_mut().into())).ok();
        black_box(&blocks);
    });
    Ok(())
}

fn second_opinion() -> Result<(), Box<dyn std::error::Error>> {
    let xts = Xts128::new(Aes256::new(&[1; 32].into()), Aes256::new(&[2; 32].into()));
    let tag_cipher = Aes256::new(&[3; 32].into());
    let hash = Polyval::new(&[4; 16].into());
    let machine = ChaCha20Poly1305::new(&[5; 32].into());
    let mut message: [Block; 253] = [[0; 16]; 253];

    let customer = |payload: &mut [Block]| {
        xts.encrypt_sector(payload.as_flattened_mut(), 1u128.to_le_bytes().into());
        let mut hash = hash.clone();
        hash.update_padded(&AAD);
        hash.update(Array::cast_slice_from_core(payload));
        hash.update(&[[0; 16].into()]);
        let mut tag = hash.finalize();
        tag_cipher.encrypt_block(&mut tag);
        tag.0
    };
    measure("seal: xts-mode, polyval", 1, || {
        message[0] = customer(black_box(&mut message[1..]));
    });
    measure("seal: chacha20poly1305", 1, || {
        let buffer = message.as_flattened_mut().into();
        black_box(machine.encrypt_inout_detached(&[9; 12].into(), &AAD, buffer)).ok();
    });
    measure("seal: both of these", 1, || {
        message[0] = customer(&mut message[1..]);
        let buffer = message.as_flattened_mut().into();
        black_box(machine.encrypt_inout_detached(&[9; 12].into(), &AAD, buffer)).ok();
    });
    Ok(())
}

/// Everything that happens to a page except the system call: locks, nonces, headers, buffers.
fn through_a_file(set: &Arc<KeySet>) -> Result<(), Box<dyn std::error::Error>> {
    let file = Arc::new(MemoryFile::default());
    let object = ContentsFile::new(file, set, CryptoId([1; 16]));
    let mut data = vec![7u8; RUN_PAGES * PAYLOAD_BYTES];
    let write = |data: &[u8]| -> Result<(), bilayer::sealed::SealedError> {
        let guard = object.lock_exclusive(ContentsFile::pages(0, data.len())?);
        object.write_at(&guard, 0, data, Sequence(1), &mut |_, _| Ok(()))
    };
    write(&data)?;
    measure(
        "write 1 MiB to a file in memory, per page",
        RUN_PAGES,
        || {
            black_box(write(&data)).ok();
        },
    );
    let one_page = data[..PAYLOAD_BYTES].to_vec();
    measure("write 1 page to a file in memory", 1, || {
        black_box(write(&one_page)).ok();
    });
    let read = |out: &mut [u8]| -> Result<(), bilayer::sealed::SealedError> {
        let guard = object.lock_shared(ContentsFile::pages(0, out.len())?);
        object.read_at(&guard, 0, out)
    };
    measure(
        "read 1 MiB of a file in memory, per page",
        RUN_PAGES,
        || {
            black_box(read(&mut data)).ok();
        },
    );
    measure("read 1 page of a file in memory", 1, || {
        black_box(read(&mut data[..PAYLOAD_BYTES])).ok();
    });
    Ok(())
}

/// What the start-up self-test adds to a mount.
fn self_test_once() -> Result<(), Box<dyn std::error::Error>> {
    let start = Instant::now();
    bilayer::layers::self_test()?;
    println!(
        "\nself-test at start-up: {} µs",
        start.elapsed().as_micros()
    );
    Ok(())
}

/// Holds one run of pages; costs a copy.
#[derive(Debug, Default)]
struct MemoryFile(std::sync::Mutex<Vec<u8>>);

impl MemoryFile {
    fn bytes(&self) -> io::Result<std::sync::MutexGuard<'_, Vec<u8>>> {
        self.0
            .lock()
            .map_err(|error| io::Error::other(error.to_string()))
    }
}

impl StoreFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes()?;
        let from = bytes.get(offset as usize..).unwrap_or_default();
        let count = from.len().min(buffer.len());
        buffer[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.bytes()?;
        let end = offset as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes()?.len() as u64)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.bytes()?.resize(len_bytes as usize, 0);
        Ok(())
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn info(&self) -> io::Result<EntryInfo> {
        let len_bytes = self.len()?;
        let kind = EntryKind::File;
        Ok(EntryInfo {
            kind,
            len_bytes,
            links: 1,
            number: 0,
            allocated_bytes: len_bytes,
        })
    }
}
