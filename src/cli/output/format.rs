//! Sizes, times and file names as text for people.

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::sys::clock;

/// A number of bytes, in units of 1024: `512 B`, `1.5 KiB`, `20.0 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (bytes as f64, "B");
    for larger in UNITS {
        // A value that would round to 1024.0 moves to the next unit.
        if value < 1023.95 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ => format!("{value:.1} {unit}"),
    }
}

/// A time in RFC 3339, local time, to the second; `unknown` if the clock was not set at that time.
pub(in crate::cli) fn local_time(time: Timestamp) -> String {
    if !clock::is_set(time.as_second()) {
        return "unknown".to_owned();
    }
    let local = time.to_zoned(TimeZone::system());
    local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// The name of a snapshot taken at that time: `auto-2026-11-22T04-30-00Z`.
pub(in crate::cli) fn dated_name(prefix: Option<&str>, time: Timestamp) -> String {
    let time = time.strftime("%Y-%m-%dT%H-%M-%SZ");
    prefix.map_or_else(|| time.to_string(), |prefix| format!("{prefix}-{time}"))
}

/// A number with its noun: `1 object`, `2 objects`.
pub(crate) fn count(number: u64, one: &str, several: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {several}"),
    }
}

/// A path on one line: each control character, backslash, and byte that is not UTF-8 becomes a
/// backslash and three octal digits, as in proc(5).
pub(crate) fn path(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let octal = |text: &mut String, bytes: &[u8]| {
        for byte in bytes {
            // Writing to a String does not fail.
            let _ = write!(text, "\\{byte:03o}");
        }
    };
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || character == '\\' {
                octal(&mut text, character.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                text.push(character);
            }
        }
        octal(&mut text, chunk.invalid());
    }
    text
}

/// Text with spaces for its control characters, which could control the terminal.
pub(crate) fn printable(text: &str) -> String {
    let kept = text.chars();
    kept.map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Formats rows in aligned columns. The columns with the indices `right_aligned` are aligned to the
/// right, the others to the left.
pub(crate) fn table(rows: &[Vec<String>], right_aligned: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if right_aligned.contains(&column) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The end of a message that lists processes: `: process 7 (sh), …`; empty if none is known.
pub(crate) fn processes(pids: &[u32]) -> String {
    let names = pids.iter().map(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name: String = name.chars().filter(|c| !c.is_control()).collect();
        format!("process {pid} ({name})")
    });
    match names.collect::<Vec<_>>() {
        none if none.is_empty() => String::new(),
        names => format!(": {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (20 << 30, "20.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn names_have_the_time_in_utc() {
        let time: Timestamp = "2026-11-22T05:30:00.9+01:00".parse().unwrap();
        assert_eq!(dated_name(Some("auto"), time), "auto-2026-11-22T04-30-00Z");
        assert_eq!(dated_name(None, time), "2026-11-22T04-30-00Z");
        let again: Timestamp = local_time(time).parse().unwrap();
        assert_eq!(again.as_second(), time.as_second());
        // A clock that was not set.
        let started = Timestamp::from_second(90).unwrap();
        assert_eq!(local_time(started), "unknown");
    }

    #[test]
    fn paths_stay_on_their_line() {
        assert_eq!(path(b"a b/\xc3\xa9"), "a b/\u{e9}");
        assert_eq!(path(b"a\nb\\\xff"), "a\\012b\\134\\377");
        assert_eq!(printable("a\x1b[1m"), "a [1m");
    }

    #[test]
    fn one_is_no_plural() {
        let counts = [0, 1, 2].map(|number| count(number, "directory", "directories"));
        assert_eq!(counts, ["0 directories", "1 directory", "2 directories"]);
    }

    #[test]
    fn columns() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [row(["NAME", "USED", "FROM"]), row(["\u{e9}", "12345", ""])];
        assert_eq!(table(&rows, &[1]), "NAME   USED  FROM\n\u{e9}     12345\n");
        assert_eq!(table(&[], &[]), "");
    }
}
