//! Lines of sources and of Markdown: none is too wide, and none has a word of a private language.

use std::fs;
use std::path::{Path, PathBuf};

use super::{blank_comments_and_literals, words};

const MAX_COLUMNS: usize = 100;

/// Words that an engineer would have to guess at, in names and comments alike. Use create, handle,
/// location, maintain, range, repair, stall, unexpected.
const NOT_USED: &[&str] = &[
    "founding",
    "holdup",
    "mend",
    "mended",
    "mending",
    "mends",
    "obey",
    "obeys",
    "strange",
    "stretch",
    "stretches",
    "tend",
    "tends",
    "whereabouts",
];

/// Ordinary words that are no names.
const NO_NAMES: &[&str] = &["Lived", "Told"];

/// Complaints about all sources and all pages of the repository.
pub(crate) fn check(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    collect(root, false, &mut files);
    for dir in ["src", "mount-helper", "tests", "bench", "docs"] {
        collect(&root.join(dir), true, &mut files);
    }
    files.sort();
    assert!(files.len() > 10, "found too few files: {files:?}");
    let complaints = files.iter().flat_map(|file| {
        let path = file.strip_prefix(root).unwrap().to_str().unwrap();
        check_lines(path, &fs::read_to_string(file).unwrap())
    });
    complaints.collect()
}

fn collect(dir: &Path, deeper: bool, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if deeper {
                collect(&path, deeper, files);
            }
        } else if path.extension().is_some_and(|it| it == "rs" || it == "md") {
            files.push(path);
        }
    }
}

/// Complaints about one file. A line with an address may be wide: it cannot be broken.
fn check_lines(path: &str, text: &str) -> Vec<String> {
    let is_page = path.ends_with(".md");
    let code = blank_comments_and_literals(text);
    let mut complaints = Vec::new();
    for (number, (line, code)) in text.lines().zip(code.lines()).enumerate() {
        let mut complain = |what| complaints.push(format!("{path}:{}: {what}", number + 1));
        let columns = line.chars().count();
        if columns > MAX_COLUMNS && !line.contains("://") {
            complain(format!("{columns} columns"));
        }
        let is_comment = line.trim_start().starts_with("//");
        let looked_at = if is_page || is_comment { line } else { code };
        for word in NOT_USED.iter().filter(|word| has_part(looked_at, word)) {
            complain(format!("the word {word} is not used here"));
        }
        if !is_page {
            for name in NO_NAMES
                .iter()
                .filter(|name| words(code, name).next().is_some())
            {
                complain(format!("{name} is no name"));
            }
        }
    }
    complaints
}

/// Whether a lower-case word is in the line, by itself or as a part of a name.
fn has_part(line: &str, word: &str) -> bool {
    let lower = line.to_ascii_lowercase();
    lower.match_indices(word).any(|(at, _)| {
        let end = at + word.len();
        let (before, found, after) = (&line[..at], &line[at..end], &line[end..]);
        let begins = !before.ends_with(char::is_alphabetic)
            || before.ends_with(char::is_lowercase) && found.starts_with(char::is_uppercase);
        let ends = !after.starts_with(char::is_alphabetic)
            || found.ends_with(char::is_lowercase) && after.starts_with(char::is_uppercase);
        begins && ends
    })
}

#[test]
fn wide_lines() {
    let wide = "é".repeat(MAX_COLUMNS + 1);
    let count = |line: &str| check_lines("docs/a.md", line).len();
    assert_eq!(count(&wide), 1);
    assert_eq!(count(&wide['é'.len_utf8()..]), 0);
    assert_eq!(count(&format!("https://{wide}")), 0);
}

#[test]
fn words_that_are_not_used() {
    let count = |line: &str| check_lines("src/a.rs", line).len();
    assert_eq!(count(concat!("// It men", "ds.")), 1);
    assert_eq!(count(concat!("fn open_to_men", "d() {}")), 1);
    assert_eq!(count(concat!("struct BeforeMen", "dRow;")), 1);
    assert_eq!(count(concat!("struct To", "ld;")), 1);
    assert_eq!(count(concat!("f(\"men", "d\"); // recommend")), 0);
    assert_eq!(count("fn amend_extended() {} // the caller is told"), 0);
    let text = concat!("It men", "ds what it is told.");
    assert_eq!(check_lines("docs/a.md", text).len(), 1);
}
