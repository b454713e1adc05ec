//! Extracts objects that no record names, each to a file of its own.
//!
//! An object that is not a linked copy has its crypto id as its name, and each page says which key
//! set it is sealed under, so its pages open without any record. Which file a page belongs to, and
//! whether it is the newest version, is unknown.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::Source;
use super::contents::read;
use super::output::{self, OutputDir};
use super::report::{Loss, Report};
use crate::ids::{CryptoId, FolderNumber, ObjectId};
use crate::meta::keys::Table;
use crate::meta::page_set::{CHUNK_PAGES, PAYLOAD_BYTES};
use crate::meta::records::{ExtentRecord, ObjectName};
use crate::object::{folder_path, object_path, root_path};
use crate::sealed::{ContentsFile, PAGE_BYTES};
use crate::store::{EntryKind, OpenMode, StoreFile};

/// Number of names that are compared with the records at a time. They take 24 MiB.
const NAMES_AT_A_TIME: usize = 1 << 20;
/// The output directory of objects.
const OUTPUT_DIRECTORY: [&[u8]; 2] = [b"lost+found", b"objects"];

/// Extracts all objects that no record names.
pub(super) fn extract_unnamed(
    source: &Source<'_>,
    out: &OutputDir,
    report: &mut Report,
) -> io::Result<()> {
    let folders = match source.store.list(&root_path()) {
        Ok(entries) => entries,
        Err(error) => return report_loss(report, String::new(), format!("objects/: {error}")),
    };
    let mut folders: Vec<FolderNumber> = folders
        .iter()
        .filter(|(_, kind)| *kind == EntryKind::Directory)
        .filter_map(|(name, _)| {
            let number = u64::from_str_radix(name, 16).ok()?;
            (format!("{number:08x}") == *name).then_some(FolderNumber(number))
        })
        .collect();
    folders.sort_unstable();
    let mut names = BTreeSet::new();
    for folder in folders {
        match source.store.list(&folder_path(folder)) {
            Ok(entries) => names.extend(entries.iter().filter_map(|(name, _)| {
                let object = ObjectId::from_hex(name)?;
                Some(ObjectName { folder, object })
            })),
            Err(error) => report_loss(
                report,
                String::new(),
                format!("folder {:08x}: {error}", folder.0),
            )?,
        }
        if names.len() >= NAMES_AT_A_TIME {
            extract_batch(source, out, &mut names, report)?;
        }
    }
    extract_batch(source, out, &mut names, report)
}

/// Extracts those of the objects that no record names, and empties the set.
fn extract_batch(
    source: &Source<'_>,
    out: &OutputDir,
    names: &mut BTreeSet<ObjectName>,
    report: &mut Report,
) -> io::Result<()> {
    let all = Vec::new()..vec![0xFF; 9];
    source.records.visit(Table::Extent, &all, &mut |_, value| {
        let record = ExtentRecord::decode(value);
        for name in record.iter().flat_map(ExtentRecord::names) {
            names.remove(&name);
        }
        true
    });
    for name in std::mem::take(names) {
        extract_one(source, out, name, report)?;
    }
    Ok(())
}

fn extract_one(
    source: &Source<'_>,
    out: &OutputDir,
    name: ObjectName,
    report: &mut Report,
) -> io::Result<()> {
    let file_name = format!("{:08x}-{}", name.folder.0, name.object);
    let path = format!("lost+found/objects/{file_name}");
    let file = match source.store.open(&object_path(name), OpenMode::Read) {
        Ok(file) => file,
        Err(error) => return report_loss(report, path, error.to_string()),
    };
    let pages = file.len().unwrap_or(0).div_ceil(PAGE_BYTES as u64);
    let pages = u32::try_from(pages).unwrap_or(CHUNK_PAGES).min(CHUNK_PAGES);
    let opens =
        |object: &ContentsFile| (0..pages).any(|page| read(object, &(page..page + 1)).is_ok());
    let mut objects = source
        .keys
        .iter()
        .map(|keys| ContentsFile::new(Arc::clone(&file), keys, CryptoId(name.object.0)));
    let Some(object) = objects.find(opens) else {
        let reason =
            "no page of it opens with the crypto id in its name: it is a linked copy, or damaged";
        return report_loss(report, path, reason.to_owned());
    };
    let directory = out.directory(&OUTPUT_DIRECTORY)?;
    let to = output::create_file(directory.as_fd(), file_name.as_bytes())?;
    let mut written = 0;
    for page in 0..pages {
        let offset = u64::from(page) * PAYLOAD_BYTES;
        if let Ok(plain) = read(&object, &(page..page + 1)) {
            to.write_all_at(&plain, offset)?;
            written += 1;
        } else if !is_hole(&*file, page) {
            report.add_loss(&Loss {
                path: path.clone(),
                what: "contents",
                offset: Some(offset),
                length: Some(PAYLOAD_BYTES),
                reason: "a page that does not open".to_owned(),
            })?;
        }
    }
    out.complete(&to)?;
    out.complete(&directory)?;
    report.counts.objects += 1;
    report.counts.bytes += written * PAYLOAD_BYTES;
    source.progress.add(written * PAYLOAD_BYTES);
    Ok(())
}

/// True if the page is all zeros: nothing was written there, or it was punched.
fn is_hole(file: &dyn StoreFile, page: u32) -> bool {
    let mut bytes = [0; PAGE_BYTES];
    let read = file.read_at(&mut bytes, u64::from(page) * PAGE_BYTES as u64);
    read.is_ok_and(|count| bytes[..count].iter().all(|byte| *byte == 0))
}

fn report_loss(report: &mut Report, path: String, reason: String) -> io::Result<()> {
    report.add_loss(&Loss {
        path,
        what: "object",
        offset: None,
        length: None,
        reason,
    })
}
