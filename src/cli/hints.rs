//! Tests that every error has a hint, and that hints can be typed: the command line has each
//! command and option that a text of this program names.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind as ClapError;
use clap::{CommandFactory, Parser};

use super::Cli;
use crate::check::CheckError;
use crate::daemon::options::RequestedOptions;
use crate::diagnostics::UserError;
use crate::fs::FsError;
use crate::fs::snapshots::{ReadOnlyBecause, ViewError};
use crate::ids::VolumeId;
use crate::image::ImageError;
use crate::image::stream::StreamError;
use crate::keys::{ErrorKind, KeyError};
use crate::meta::MetaError;
use crate::meta::records::{ObjectName, ViewKind};
use crate::sealed::SealedError;
use crate::volume::{Rollback, VolumeError};

/// True for a word that stands for a value, such as `VOLUME`.
fn is_placeholder(word: &str) -> bool {
    !word.is_empty()
        && word
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte == b'-')
}

/// A value that parses in the place of the placeholder.
fn sample_value(placeholder: &str) -> &str {
    match placeholder {
        "URI" => "file:/k",
        "N" | "SLOT" => "1",
        "BYTES" => "1G",
        _ => "/p",
    }
}

/// The command lines in a text: from each `bilayer` up to the first word that cannot belong to one.
fn command_lines(text: &str) -> Vec<Vec<String>> {
    // Replaces the arguments of a format string.
    let mut plain = String::new();
    let mut depth = 0;
    for character in text.chars() {
        match character {
            '{' => depth += 1,
            '}' if depth > 0 => {
                depth -= 1;
                plain.push_str("FILLED");
            }
            _ if depth > 0 => {}
            character => plain.push(character),
        }
    }
    let words: Vec<&str> = plain.split_whitespace().collect();
    let mut lines = Vec::new();
    for (at, _) in words
        .iter()
        .enumerate()
        .filter(|(_, word)| **word == "bilayer")
    {
        let mut line = vec!["bilayer".to_owned()];
        for word in &words[at + 1..] {
            let bare = word.trim_end_matches([',', ';', '.', ')', ':', '`']);
            let is_name = bare.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
            // A command has at most two names; options and their values follow.
            let named =
                command_names(&line) < 2 && is_name && line.len() == 1 + command_names(&line);
            let is_argument = bare.starts_with(|c: char| c.is_ascii_digit() || c == '/');
            let is_value = line
                .last()
                .is_some_and(|last| last == "-o" || last.starts_with("--") && is_argument);
            if bare.starts_with('-') && bare.len() > 1 || is_placeholder(bare) || is_value || named
            {
                line.push(bare.to_owned());
            } else {
                break;
            }
            if bare.len() < word.len() {
                break;
            }
        }
        lines.push(line);
    }
    lines
}

/// The number of command names at the beginning of a line, after the program's name.
fn command_names(line: &[String]) -> usize {
    let is_name = |word: &&String| word.bytes().all(|b| b.is_ascii_lowercase());
    line[1..].iter().take_while(is_name).count()
}

/// Fails unless the program accepts the line, or the line is the beginning of one.
#[track_caller]
fn assert_parses(line: &[String], text: &str) {
    let mut line = line.to_vec();
    // The words after a command may belong to the sentence around it.
    while line.len() > 2 && command_names(&line) == line.len() - 1 && !is_command(&line[1..]) {
        line.pop();
    }
    let words = line.iter().map(|word| match word.split_once('=') {
        Some((name, value)) if is_placeholder(value) => format!("{name}={}", sample_value(value)),
        _ if is_placeholder(word) => sample_value(word).to_owned(),
        _ => word.clone(),
    });
    let words: Vec<String> = words.collect();
    if let Some(at) = words.iter().position(|word| word == "-o")
        && let Some(options) = words.get(at + 1)
    {
        let parsed = RequestedOptions::parse([options.as_str()], Path::new("/"));
        assert!(parsed.is_ok(), "{options} in {text:?}");
    }
    if let Err(error) = Cli::try_parse_from(words.iter().map(OsString::from)) {
        // A text may name a command without its arguments.
        let is_part = matches!(
            error.kind(),
            ClapError::MissingRequiredArgument
                | ClapError::DisplayHelp
                | ClapError::DisplayHelpOnMissingArgumentOrSubcommand
                | ClapError::MissingSubcommand
        );
        assert!(is_part, "{words:?} in {text:?}: {error}");
    }
}

fn is_command(names: &[String]) -> bool {
    let mut command = Cli::command();
    names.iter().all(|name| {
        let subcommand = command.find_subcommand(name).cloned();
        subcommand.is_some_and(|subcommand| {
            command = subcommand;
            true
        })
    })
}

/// Every option of every command, such as `--size`.
fn options() -> BTreeSet<String> {
    fn collect(command: &clap::Command, options: &mut BTreeSet<String>) {
        let long = command.get_arguments().filter_map(clap::Arg::get_long);
        options.extend(long.map(|name| format!("--{name}")));
        for command in command.get_subcommands() {
            collect(command, options);
        }
    }
    let mut all = BTreeSet::from(["--help".to_owned()]);
    collect(&Cli::command(), &mut all);
    all
}

/// Fails if the text names an option that no command has.
#[track_caller]
fn assert_options_exist(text: &str, options: &BTreeSet<String>) {
    for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) {
        let is_option = word.starts_with("--") && word.len() > 2;
        // An option, or the common beginning of several, such as `--keep`.
        let known = options.iter().any(|option| option.starts_with(word));
        assert!(!is_option || known, "{word} in {text:?}");
    }
}

/// At least one sample of every variant of an error. A new variant does not compile until it has a
/// sample.
macro_rules! each {
    ($($pattern:pat => $($sample:expr),+;)+) => {{
        let samples = vec![$($($sample),+),+];
        for sample in &samples {
            match sample {
                $($pattern => {})+
            }
        }
        samples
    }};
}

fn io_error() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

fn full() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}

fn key_error() -> KeyError {
    KeyError::new(ErrorKind::Io, "a key failed")
}

const OBJECT: ObjectName = ObjectName {
    folder: crate::ids::FolderNumber(1),
    object: crate::ids::ObjectId([7; 16]),
};

fn volume_errors() -> Vec<VolumeError> {
    let original = PathBuf::from("/srv/volume");
    each! {
        VolumeError::NotAVolume => VolumeError::NotAVolume;
        VolumeError::Occupied(_) => VolumeError::Occupied("a file in it".to_owned());
        VolumeError::InUse { .. } =>
            VolumeError::InUse { shared: false }, VolumeError::InUse { shared: true };
        VolumeError::WriterElsewhere { .. } => VolumeError::WriterElsewhere { by: None };
        VolumeError::ReadOnlyMedium => VolumeError::ReadOnlyMedium;
        VolumeError::IsCopy { .. } => VolumeError::IsCopy {
            original: original.clone(), written: None, accepting: false,
        };
        VolumeError::MayBeCopy { .. } => VolumeError::MayBeCopy {
            original: original.clone(), written: None,
        };
        VolumeError::NotACopy => VolumeError::NotACopy;
        VolumeError::SharesFiles { .. } => VolumeError::SharesFiles { by: None };
        VolumeError::HeaderInvalid(_) => VolumeError::HeaderInvalid("no JSON".to_owned());
        VolumeError::NewerFormat { .. } => VolumeError::NewerFormat { found: 9, supported: 1 };
        VolumeError::UnknownFeatures(_) => VolumeError::UnknownFeatures("x".to_owned());
        VolumeError::Tampered => VolumeError::Tampered;
        VolumeError::Downgraded { .. } => VolumeError::Downgraded { found: "a", known: "b" };
        VolumeError::RolledBack(_) => VolumeError::RolledBack(Rollback::OtherKeySet {
            last: Default::default(),
        });
        VolumeError::AnotherVolume { .. } => VolumeError::AnotherVolume {
            known: VolumeId([1; 16]), path: original.clone(), written: None,
            found: VolumeId([2; 16]), fingerprint: String::new(),
        };
        VolumeError::Vanished { .. } => VolumeError::Vanished {
            known: VolumeId([1; 16]), path: original.clone(), written: None,
        };
        VolumeError::UnknownKeySet { .. } => VolumeError::UnknownKeySet { record: original };
        VolumeError::HalfRenewed => VolumeError::HalfRenewed;
        VolumeError::CustomerKeyNeeded { .. } => VolumeError::CustomerKeyNeeded {
            claimed: "file:/k".to_owned(),
        };
        VolumeError::RememberedKeyGone { .. } => VolumeError::RememberedKeyGone {
            path: "/k".into(),
        };
        VolumeError::WrongCustomerKey { .. } => VolumeError::WrongCustomerKey {
            given: String::new(), found: String::new(), wanted: String::new(),
        };
        VolumeError::FingerprintMismatch { .. } => VolumeError::FingerprintMismatch {
            found: String::new(), pinned: String::new(),
        };
        VolumeError::WouldDowngrade => VolumeError::WouldDowngrade;
        VolumeError::TooManyKeySets { .. } => VolumeError::TooManyKeySets { found: 9, most: 8 };
        VolumeError::CannotRemember(_) => VolumeError::CannotRemember(key_error());
        VolumeError::Key(_) => VolumeError::Key(key_error());
        VolumeError::Format(_) =>
            VolumeError::Format(io_error().into()), VolumeError::Format(full().into());
        VolumeError::Io { .. } =>
            VolumeError::io("cannot read")(io_error()), VolumeError::io("cannot read")(full());
    }
}

fn stream_errors() -> Vec<StreamError> {
    each! {
        StreamError::NotAnExport => StreamError::NotAnExport;
        StreamError::NewerFormat { .. } => StreamError::NewerFormat { format: 9, supported: 2 };
        StreamError::OlderFormat { .. } => StreamError::OlderFormat { format: 1, supported: 2 };
        StreamError::UnknownFeatures(_) => StreamError::UnknownFeatures("x".to_owned());
        StreamError::HeaderInvalid(_) => StreamError::HeaderInvalid("x".to_owned());
        StreamError::HeaderTampered => StreamError::HeaderTampered;
        StreamError::Truncated { .. } => StreamError::Truncated { within: "x" };
        StreamError::OutOfOrder { .. } => StreamError::OutOfOrder {
            wanted: String::new(), actual: String::new(),
        };
        StreamError::Tampered { .. } => StreamError::Tampered { what: "x" };
        StreamError::Trailing => StreamError::Trailing;
        StreamError::Key(_) => StreamError::Key(key_error());
        StreamError::CustomerKeyNeeded { .. } => StreamError::CustomerKeyNeeded {
            claimed: String::new(),
        };
        StreamError::Downgraded => StreamError::Downgraded;
        StreamError::WrongCustomerKey { .. } => StreamError::WrongCustomerKey {
            given: String::new(), fingerprint: String::new(), wanted: String::new(),
        };
        StreamError::Io { .. } =>
            StreamError::Io { doing: "x", source: io_error() },
            StreamError::Io { doing: "x", source: full() };
    }
}

fn image_errors() -> Vec<ImageError> {
    let mut errors = each! {
        ImageError::Volume(_) => ImageError::Volume(VolumeError::NotAVolume);
        ImageError::Meta(_) => ImageError::Meta(MetaError::Corrupt("key"));
        ImageError::Stream(_) => ImageError::Stream(StreamError::NotAnExport);
        ImageError::Transported(_) => ImageError::Transported(MetaError::Corrupt("key"));
        ImageError::Inconsistent { .. } => ImageError::Inconsistent {
            first: String::new(), others: 0,
        };
        ImageError::Page { .. } =>
            ImageError::Page { object: OBJECT, source: SealedError::Io(io_error()) };
        ImageError::NoKeySet { .. } => ImageError::NoKeySet { object: OBJECT };
        ImageError::MissingObject { .. } => ImageError::MissingObject { object: OBJECT };
        ImageError::Object { .. } => ImageError::Object { object: OBJECT, source: io_error() };
        ImageError::NewObject { .. } =>
            ImageError::NewObject { object: OBJECT, source: SealedError::Io(io_error()) };
        ImageError::Cancelled => ImageError::Cancelled;
        ImageError::TooSmall { .. } => ImageError::TooSmall { needed_bytes: 2, size_bytes: 1 };
        ImageError::Io { .. } =>
            ImageError::io("x")(io_error()), ImageError::io("x")(full());
    };
    errors.extend(volume_errors().into_iter().map(ImageError::Volume));
    errors.extend(stream_errors().into_iter().map(ImageError::Stream));
    errors
}

fn view_errors() -> Vec<ViewError> {
    let (kind, name) = (ViewKind::Snapshot, || "monday".to_owned());
    let read_only = each! {
        ReadOnlyBecause::Copy => ReadOnlyBecause::Copy;
        ReadOnlyBecause::Opened => ReadOnlyBecause::Opened;
        ReadOnlyBecause::Remounted => ReadOnlyBecause::Remounted;
        ReadOnlyBecause::Failed => ReadOnlyBecause::Failed;
        ReadOnlyBecause::Unknown => ReadOnlyBecause::Unknown;
    };
    let mut errors = each! {
        ViewError::NotFound { .. } =>
            ViewError::NotFound { kind, name: name() },
            ViewError::NotFound { kind: ViewKind::Image, name: name() };
        ViewError::Exists { .. } => ViewError::Exists { kind, name: name() };
        ViewError::BadName { .. } => ViewError::BadName { name: name(), why: "it is" };
        ViewError::Busy { .. } => ViewError::Busy { kind, name: name() };
        ViewError::TooMany => ViewError::TooMany;
        ViewError::ReadOnly(_) => ViewError::ReadOnly(ReadOnlyBecause::Copy);
        ViewError::NoSuchPath { .. } => ViewError::NoSuchPath { kind, name: name(), path: name() };
        ViewError::NoDirectory { .. } => ViewError::NoDirectory { path: name() };
        ViewError::Image(_) => ViewError::Image(ImageError::Cancelled);
        ViewError::Fs(_) => ViewError::Fs(FsError::HalfRestored);
    };
    errors.extend(read_only.into_iter().map(ViewError::ReadOnly));
    errors.extend(image_errors().into_iter().map(ViewError::Image));
    errors
}

fn key_errors() -> Vec<KeyError> {
    let kinds = each! {
        ErrorKind::Usage => ErrorKind::Usage;
        ErrorKind::NotAVolume => ErrorKind::NotAVolume;
        ErrorKind::InUse => ErrorKind::InUse;
        ErrorKind::KeyUnavailable => ErrorKind::KeyUnavailable;
        ErrorKind::KeyDisabled => ErrorKind::KeyDisabled;
        ErrorKind::KeyExpired => ErrorKind::KeyExpired;
        ErrorKind::KeyDeleted => ErrorKind::KeyDeleted;
        ErrorKind::KeyForbidden => ErrorKind::KeyForbidden;
        ErrorKind::KeyUnreachable => ErrorKind::KeyUnreachable;
        ErrorKind::WrongKey => ErrorKind::WrongKey;
        ErrorKind::KeystoreMissing => ErrorKind::KeystoreMissing;
        ErrorKind::KeystoreInvalid => ErrorKind::KeystoreInvalid;
        ErrorKind::HeaderInvalid => ErrorKind::HeaderInvalid;
        ErrorKind::Tampered => ErrorKind::Tampered;
        ErrorKind::NewerFormat => ErrorKind::NewerFormat;
        ErrorKind::NoSpace => ErrorKind::NoSpace;
        ErrorKind::Io => ErrorKind::Io;
    };
    let of_kind = |kind| KeyError::new(kind, "a key failed");
    kinds.into_iter().map(of_kind).collect()
}

/// Error numbers of the operating system, each with a text that its hint contains.
const SYSTEM_ERRORS: [(i32, &str); 27] = [
    (libc::ENOENT, "namei -l"),
    (libc::ENOTDIR, "namei -l"),
    (libc::EACCES, "namei -l"),
    (libc::EPERM, "namei -l"),
    (libc::ELOOP, "namei -l"),
    (libc::EEXIST, "another name"),
    (libc::ENOTEMPTY, "empty"),
    (libc::EISDIR, "a file"),
    (libc::ENAMETOOLONG, "shorter"),
    (libc::ENOSPC, "df -h"),
    (libc::EDQUOT, "df -h"),
    (libc::EFBIG, "ulimit -f"),
    (libc::EROFS, "findmnt -T"),
    (libc::EBUSY, "fuser -vm"),
    (libc::ETXTBSY, "fuser -vm"),
    (libc::EMFILE, "ulimit -n"),
    (libc::ENFILE, "fs.file-max"),
    (libc::ENOMEM, "ulimit -v"),
    (libc::EAGAIN, "ulimit -a"),
    (libc::EIO, "dmesg"),
    (libc::ENXIO, "dmesg"),
    (libc::ENOTCONN, "bilayer unmount"),
    (libc::ESTALE, "mount"),
    (libc::EOPNOTSUPP, "another place"),
    (libc::ECONNREFUSED, "bilayer status"),
    (libc::ECONNRESET, "bilayer status"),
    (libc::EPIPE, "bilayer status"),
];

fn check_errors() -> Vec<CheckError> {
    each! {
        CheckError::Cancelled => CheckError::Cancelled;
        CheckError::Meta(_) => CheckError::Meta(MetaError::Corrupt("key"));
        CheckError::Object(_) => CheckError::Object(MetaError::Corrupt("key").into());
        CheckError::Io(_) => CheckError::Io(io_error()), CheckError::Io(full());
        CheckError::NotRemembered(_) => CheckError::NotRemembered(key_error());
        CheckError::Fault => CheckError::Fault;
    }
}

#[test]
fn errors_of_the_operating_system_have_advice() {
    for (number, says) in SYSTEM_ERRORS {
        let error = UserError::io("x", &io::Error::from_raw_os_error(number));
        let hint = error
            .hint
            .unwrap_or_else(|| panic!("no advice: {}", error.message));
        assert!(hint.contains(says), "{}: {hint}", error.message);
        for line in command_lines(&hint) {
            assert_parses(&line, &hint);
        }
    }
    // An error of this program with a kind of the operating system.
    let refused = io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to user 7");
    assert!(UserError::io("x", &refused).hint.is_some());
    // There is no step to take.
    for error in [io::Error::other("x"), io::ErrorKind::Interrupted.into()] {
        assert_eq!(UserError::io("x", &error).hint, None);
    }
}

#[test]
fn every_failure_has_advice_that_can_be_followed() {
    let mut errors: Vec<UserError> = Vec::new();
    errors.extend(
        volume_errors()
            .iter()
            .map(|error| UserError::volume("x", error)),
    );
    errors.extend(
        image_errors()
            .iter()
            .map(|error| UserError::image("x", error)),
    );
    errors.extend(
        view_errors()
            .iter()
            .map(|error| UserError::view("x", error)),
    );
    errors.extend(key_errors().iter().map(|error| UserError::key("x", error)));
    let of_check = |error: &CheckError| UserError::check("x", error);
    errors.extend(check_errors().iter().map(of_check));
    let options = options();
    for error in errors {
        let hint = error.hint.clone();
        let hint = hint.unwrap_or_else(|| panic!("no advice: {}", error.message));
        assert_options_exist(&hint, &options);
        for line in command_lines(&hint) {
            assert_parses(&line, &hint);
        }
    }
}

/// Checks the hints that are written elsewhere too: all string literals of the program.
#[test]
fn every_command_that_a_text_names_can_be_typed() {
    let options = options();
    let mut seen = 0;
    for text in texts() {
        for line in command_lines(&text) {
            if line.len() > 1 && is_command(&line[1..2]) {
                assert_parses(&line, &text);
                assert_options_exist(&line.join(" "), &options);
                seen += 1;
            }
        }
    }
    assert!(seen > 40, "{seen}");
}

/// The string literals of the whole program, except those in tests and comments.
fn texts() -> Vec<String> {
    fn collect(dir: &Path, texts: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if name != "tests" {
                    collect(&path, texts);
                }
            } else if !["tests.rs", "hints.rs"].contains(&name) && name.ends_with(".rs") {
                let source = fs::read_to_string(&path).unwrap();
                let code = source.split("#[cfg(test)]\nmod").next().unwrap();
                literals(code, texts);
            }
        }
    }
    let mut texts = Vec::new();
    collect(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut texts,
    );
    texts
}

/// Collects the string literals of a source file, with escapes resolved.
fn literals(code: &str, texts: &mut Vec<String>) {
    let mut rest = code.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '/' if rest.peek() == Some(&'/') => {
                rest.by_ref().find(|c| *c == '\n');
            }
            '\'' => {
                // A character literal, possibly a quotation mark, or a lifetime.
                let next = rest.peek().copied();
                if matches!(next, Some('"' | '\\')) {
                    rest.next();
                    rest.next();
                }
            }
            '"' => {
                let mut text = String::new();
                while let Some(character) = rest.next().filter(|c| *c != '"') {
                    if character != '\\' {
                        text.push(character);
                        continue;
                    }
                    match rest.next() {
                        Some('\n') => while rest.next_if(|c| c.is_whitespace()).is_some() {},
                        Some('n') => text.push('\n'),
                        Some(other) => text.push(other),
                        None => {}
                    }
                }
                texts.push(text);
            }
            _ => {}
        }
    }
}

#[test]
fn command_lines_are_found_in_texts() {
    let lines = command_lines(
        "to look at it: bilayer mount -o ro VOLUME DIR; or see bilayer {} list VOLUME, and bilayer \
         check. Not bilayers",
    );
    let lines: Vec<String> = lines.iter().map(|line| line.join(" ")).collect();
    assert_eq!(
        lines,
        [
            "bilayer mount -o ro VOLUME DIR",
            "bilayer FILLED",
            "bilayer check"
        ]
    );
    let error = std::panic::catch_unwind(|| {
        let text = "see: bilayer mount --frob VOLUME DIR";
        assert_parses(&command_lines(text)[0], text);
    });
    assert!(error.is_err());
    let mut texts = Vec::new();
    literals(
        "let a = \"one \\\n   two\"; // \"no\"\nlet q = '\"'; f(\"three\")",
        &mut texts,
    );
    assert_eq!(texts, ["one two", "three"]);
}
