//! The architecture as a test: imports point down and lead in no circle ([`circles`]), `unsafe`
//! stays fenced, there are no marks of unfinished work, no file is too long, only the command line
//! prints, and the top level of the repository has the expected entries.
//!
//! The checks work on text, after comments and literals have been blanked out: they need no
//! compiler and see code that a feature leaves out.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

mod circles;
mod lines;

/// Each module of the library with those it may use, lowest first. An entry that no file uses is a
/// complaint, so that the table shows what depends on what.
const MAY_USE: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("errno", &[]),
    ("planted", &[]),
    ("sys", &[]),
    ("audit", &["ids", "sys"]),
    ("store", &["errno", "sys"]),
    ("layers", &["ids", "sys"]),
    (
        "sealed",
        &["errno", "ids", "planted", "sys", "store", "layers"],
    ),
    ("keys", &["audit", "ids", "sys", "store", "layers"]),
    (
        "volume",
        &[
            "audit", "errno", "ids", "sys", "store", "layers", "sealed", "keys",
        ],
    ),
    (
        "meta",
        &[
            "errno", "ids", "planted", "sys", "store", "layers", "sealed",
        ],
    ),
    (
        "object",
        &[
            "errno", "ids", "planted", "store", "layers", "sealed", "meta",
        ],
    ),
    ("snapshot", &["ids", "meta"]),
    (
        "check",
        &[
            "ids", "sys", "store", "sealed", "keys", "volume", "meta", "object",
        ],
    ),
    (
        "image",
        &[
            "audit", "errno", "ids", "planted", "store", "layers", "sealed", "keys", "volume",
            "meta", "object", "check",
        ],
    ),
    (
        "salvage",
        &[
            "errno", "ids", "sys", "store", "layers", "sealed", "volume", "meta", "object",
        ],
    ),
    (
        "fs",
        &[
            "audit", "errno", "ids", "planted", "store", "layers", "sealed", "keys", "volume",
            "meta", "object", "snapshot", "image", "check",
        ],
    ),
    ("fuse", &["audit", "errno", "sys", "fs"]),
    (
        "diagnostics",
        &["check", "errno", "fs", "image", "keys", "sys", "volume"],
    ),
    (
        "control",
        &[
            "audit",
            "check",
            "diagnostics",
            "fs",
            "fuse",
            "keys",
            "layers",
            "store",
            "sys",
            "volume",
        ],
    ),
    (
        "daemon",
        &[
            "audit",
            "check",
            "control",
            "diagnostics",
            "errno",
            "fs",
            "fuse",
            "ids",
            "image",
            "keys",
            "store",
            "sys",
            "volume",
        ],
    ),
    (
        "cli",
        &[
            "audit",
            "ids",
            "sys",
            "store",
            "layers",
            "sealed",
            "keys",
            "volume",
            "meta",
            "image",
            "salvage",
            "check",
            "fs",
            "fuse",
            "diagnostics",
            "control",
            "daemon",
        ],
    ),
];

/// Entries of the top level, besides those whose name starts with a dot.
const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "src",
    "mount-helper",
    "tests",
    "bench",
    "docs",
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "deny.toml",
    "rustfmt.toml",
    "clippy.toml",
    // Created by cargo, and ignored by git.
    "target",
];

/// Only these write to the standard streams.
const PRINTS: [&str; 2] = ["src/cli/", "src/diagnostics/"];

const MAX_LINES: usize = 700;

#[test]
fn the_repository_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut complaints = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        complaints.extend(check_top_level(&name));
    }
    let mut sources = Vec::new();
    for dir in ["src", "mount-helper", "tests", "bench"] {
        collect_sources(&root.join(dir), &mut sources);
    }
    assert!(sources.len() > 10, "found too few sources: {sources:?}");
    let mut library = Vec::new();
    for source in sources {
        let path = source.strip_prefix(root).unwrap().to_str().unwrap();
        let text = fs::read_to_string(&source).unwrap();
        complaints.extend(check_module_style(path, source.with_extension("").is_dir()));
        complaints.extend(check_source(path, &text));
        if path.starts_with("src/") {
            library.push((path.to_owned(), text));
        }
    }
    complaints.extend(circles::check_circles(&library));
    complaints.extend(check_table(MAY_USE, &library));
    complaints.extend(lines::check(root));
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

fn collect_sources(dir: &Path, sources: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
}

fn check_top_level(name: &str) -> Option<String> {
    let known = name.starts_with('.') || TOP_LEVEL.contains(&name);
    (!known).then(|| format!("{name}: not something for the top level of the repository"))
}

/// A module with modules of its own is `name/mod.rs`, so that a folder is whole by itself.
fn check_module_style(path: &str, has_folder: bool) -> Option<String> {
    has_folder.then(|| format!("{path}: a module that has a folder is the folder's mod.rs"))
}

/// All complaints about one file; `path` is relative to the repository.
fn check_source(path: &str, text: &str) -> Vec<String> {
    let code = blank_comments_and_literals(text);
    let mut complaints = Vec::new();
    let mut complain = |at: usize, what: String| {
        let line = 1 + text.as_bytes()[..at]
            .iter()
            .filter(|&&b| b == b'\n')
            .count();
        complaints.push(format!("{path}:{line}: {what}"));
    };
    if text.lines().count() > MAX_LINES {
        complain(0, format!("more than {MAX_LINES} lines"));
    }
    for mark in [concat!("TO", "DO"), concat!("FIX", "ME")] {
        for at in words(text, mark) {
            complain(at, format!("a mark of unfinished work: {mark}"));
        }
    }
    for (at, _) in code.match_indices(concat!("#[", "path")) {
        complain(at, "a module is where its name says".to_owned());
    }
    for name in ["todo", "unimplemented"] {
        for at in words(&code, name).filter(|&at| is_macro(&code, at + name.len())) {
            complain(at, format!("{name} macro"));
        }
    }
    if !path.starts_with("src/sys/") {
        for at in words(&code, concat!("un", "safe")) {
            complain(at, "unsafe code outside src/sys".to_owned());
        }
    }
    if path.starts_with("src/") && !PRINTS.iter().any(|prefix| path.starts_with(prefix)) {
        let tests = test_ranges(&code);
        for name in ["print", "println", "eprint", "eprintln"] {
            for at in words(&code, name).filter(|&at| is_macro(&code, at + name.len())) {
                if !tests.iter().any(|range| range.contains(&at)) {
                    complain(at, format!("{name} outside the command line"));
                }
            }
        }
    }
    for (at, what) in check_imports(path, &code) {
        complain(at, what);
    }
    complaints
}

/// Imports that point up, with their places.
fn check_imports(path: &str, code: &str) -> Vec<(usize, String)> {
    let Some(&top) = module_path(path).first() else {
        return Vec::new();
    };
    let Some((_, may_use)) = MAY_USE.iter().find(|(name, _)| *name == top) else {
        return vec![(0, format!("module {top} has no place in the architecture"))];
    };
    let used = imported_modules(path, code).into_iter();
    let refused = used.filter(|(_, name)| *name != top && !may_use.contains(name));
    refused
        .map(|(at, name)| (at, format!("{top} must not use {name}")))
        .collect()
}

/// Entries of the table that no file uses.
fn check_table(may_use: &[(&str, &[&str])], library: &[(String, String)]) -> Vec<String> {
    let mut used: BTreeSet<(String, String)> = BTreeSet::new();
    for (path, text) in library {
        let code = blank_comments_and_literals(text);
        if let Some(&top) = module_path(path).first() {
            let names = imported_modules(path, &code).into_iter();
            used.extend(names.map(|(_, name)| (top.to_owned(), name.to_owned())));
        }
    }
    let entries = may_use
        .iter()
        .flat_map(|(top, names)| names.iter().map(move |name| (*top, *name)));
    entries
        .filter(|(top, name)| !used.contains(&((*top).to_owned(), (*name).to_owned())))
        .map(|(top, name)| format!("{top} does not use {name}: remove it from the table"))
        .collect()
}

/// The modules of the top level that a file names, with the places.
fn imported_modules<'a>(path: &str, code: &'a str) -> Vec<(usize, &'a str)> {
    let module = module_path(path);
    let inline = inline_modules(code);
    let mut used = Vec::new();
    for at in words(code, "crate") {
        if let Some(rest) = code[at + "crate".len()..].strip_prefix("::") {
            used.extend(first_names(rest).into_iter().map(|name| (at, name)));
        }
    }
    for at in words(code, "super").filter(|&at| !code[..at].ends_with("super::")) {
        let chain = code[at..].split("::").take_while(|&part| part == "super");
        let levels = chain.count();
        let nesting = inline.iter().filter(|range| range.contains(&at)).count();
        if levels == module.len() + nesting {
            let rest = &code[at + levels * "super::".len()..];
            used.extend(first_names(rest).into_iter().map(|name| (at, name)));
        }
    }
    used.retain(|(_, name)| MAY_USE.iter().any(|(module, _)| module == name));
    used
}

/// `src/a/b.rs` is the module a::b; none for files outside the library and its root.
fn module_path(path: &str) -> Vec<&str> {
    let Some(inside) = path
        .strip_prefix("src/")
        .and_then(|p| p.strip_suffix(".rs"))
    else {
        return Vec::new();
    };
    let mut module: Vec<&str> = inside.split('/').collect();
    if module.last() == Some(&"mod") {
        module.pop();
    }
    match module[..] {
        ["lib" | "main"] => Vec::new(),
        _ => module,
    }
}

/// The first name of a path, or those of each path of a group.
fn first_names(rest: &str) -> Vec<&str> {
    let first = |text| -> &str {
        let text: &str = str::trim_start(text);
        let end = text.find(|c: char| !is_word(c)).unwrap_or(text.len());
        &text[..end]
    };
    let Some(group) = rest.trim_start().strip_prefix('{') else {
        return vec![first(rest)];
    };
    let mut names = vec![first(group)];
    let mut depth = 1;
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => names.push(first(&group[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Places where the word stands alone.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| {
            !text[..at].ends_with(is_word) && !text[at + word.len()..].starts_with(is_word)
        })
}

fn is_macro(code: &str, end: usize) -> bool {
    code[end..].starts_with('!')
}

/// From an opening brace to after the one that closes it.
fn braces(code: &str, open: usize) -> Range<usize> {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open..at + 1;
        }
    }
    open..code.len()
}

/// Bodies of modules written within the file.
fn inline_modules(code: &str) -> Vec<Range<usize>> {
    words(code, "mod")
        .filter_map(|at| {
            let stop = at + code[at..].find(['{', ';'])?;
            code[stop..].starts_with('{').then(|| braces(code, stop))
        })
        .collect()
}

/// Items under `#[cfg(test)]`.
fn test_ranges(code: &str) -> Vec<Range<usize>> {
    code.match_indices("#[cfg(test)]")
        .filter_map(|(at, _)| {
            let stop = at + code[at..].find(['{', ';'])?;
            Some(at..braces(code, stop).end)
        })
        .collect()
}

/// The same text, byte for byte as long, with comments, strings and characters made of spaces.
fn blank_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = skipped_until(text, at);
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(code).unwrap_or_default()
}

/// End of the comment or literal that starts here; `at` when none does.
fn skipped_until(text: &str, at: usize) -> usize {
    let Some(rest) = text.get(at..) else {
        return at;
    };
    let to = |length: Option<usize>| at + length.unwrap_or(rest.len());
    if rest.starts_with("//") {
        return to(rest.find('\n'));
    }
    if rest.starts_with("/*") {
        return to(block_comment(rest));
    }
    if rest.starts_with('"') {
        return to(quoted(rest, b'"'));
    }
    if let Some(inside) = rest.strip_prefix('\'') {
        // A lifetime has no closing quote after one character.
        let mut characters = inside.chars();
        let first = characters.next();
        let closed = first == Some('\\') || characters.next() == Some('\'');
        return if closed { to(quoted(rest, b'\'')) } else { at };
    }
    let before = text[..at].strip_suffix(['b', 'c']).unwrap_or(&text[..at]);
    match rest.strip_prefix('r') {
        Some(raw) if !before.ends_with(is_word) => raw_string(raw).map_or(at, |n| at + 1 + n),
        _ => at,
    }
}

/// Length of a raw string's hashes, quotes and text; none when it is not one.
fn raw_string(raw: &str) -> Option<usize> {
    let body = raw.trim_start_matches('#').strip_prefix('"')?;
    let start = raw.len() - body.len();
    let close = format!("\"{}", "#".repeat(start - 1));
    let length = body.find(&close).map_or(body.len(), |n| n + close.len());
    Some(start + length)
}

fn block_comment(rest: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    let (mut depth, mut at) = (0, 0);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn quoted(rest: &str, quote: u8) -> Option<usize> {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}

/// The checker against samples: it can fail, and it does not cry wolf.
mod samples {
    use super::*;

    #[track_caller]
    fn complains(path: &str, text: &str, expected: &str) {
        let complaints = check_source(path, text);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].contains(expected), "{complaints:?}");
    }

    #[track_caller]
    fn accepts(path: &str, text: &str) {
        assert_eq!(check_source(path, text), Vec::<String>::new());
    }

    #[test]
    fn imports_that_point_up() {
        complains(
            "src/store/mod.rs",
            "use crate::sealed::Page;",
            "store must not use sealed",
        );
        complains(
            "src/sealed/meta.rs",
            "use crate::keys;",
            "sealed must not use keys",
        );
        complains(
            "src/keys/a.rs",
            "fn f() { crate::sealed::g() }",
            "keys must not use sealed",
        );
        complains(
            "src/meta/a.rs",
            "use crate::object::X;",
            "meta must not use object",
        );
        complains(
            "src/errno.rs",
            "use crate::ids::Ino;",
            "errno must not use ids",
        );
        complains(
            "src/fs/a.rs",
            "\nuse crate::{ids::{A, B}, fuse::C};",
            "src/fs/a.rs:2: fs must",
        );
        complains(
            "src/store/a.rs",
            "use super::super::cli::X;",
            "store must not use cli",
        );
        complains(
            "src/store/mod.rs",
            "use super::fs;",
            "store must not use fs",
        );
        let nested = "mod tests { use super::super::fuse::X; }";
        complains("src/store/mod.rs", nested, "store must not use fuse");
        complains("src/misc/mod.rs", "", "no place in the architecture");
    }

    #[test]
    fn imports_that_point_down() {
        accepts(
            "src/object/mod.rs",
            "use crate::meta::X; use crate::{ids, store::{self, Y}};",
        );
        accepts(
            "src/store/faulty/file.rs",
            "use super::super::contents; use crate::store::X;",
        );
        accepts(
            "src/store/mod.rs",
            "mod tests { use super::*; } use crate::errno::Errno;",
        );
        accepts("src/lib.rs", "pub mod cli; pub use crate::cli::run;");
        accepts("tests/x.rs", "use crate::fuse::X;");
        accepts(
            "src/store/mod.rs",
            "// use crate::fs::X;\nconst A: &str = \"crate::fs\";",
        );
    }

    #[test]
    fn the_table_lists_what_is_used() {
        let table: &[(&str, &[&str])] = &[("ids", &[]), ("sys", &["errno", "ids"])];
        let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
        let both = [
            file("src/sys/a.rs", "use crate::ids::Ino;"),
            file("src/sys/mod.rs", "fn f() { crate::errno::g() }"),
        ];
        assert_eq!(check_table(table, &both), Vec::<String>::new());
        let unused = check_table(table, &both[..1]);
        assert_eq!(unused.len(), 1);
        assert!(unused[0].contains("sys does not use errno"), "{unused:?}");
        let other = [both[0].clone(), file("src/fs/a.rs", "use crate::errno::E;")];
        assert_eq!(check_table(table, &other).len(), 1);
    }

    #[test]
    fn fenced_code() {
        let text = concat!("fn f() { un", "safe { g() } }");
        complains("src/store/a.rs", text, "outside src/sys");
        complains("mount-helper/src/main.rs", text, "outside src/sys");
        accepts("src/sys/files.rs", text);
        accepts(
            "src/store/a.rs",
            concat!("#![deny(un", "safe_code)] // un", "safe"),
        );
    }

    #[test]
    fn unfinished_work() {
        complains("src/ids.rs", concat!("// TO", "DO: more"), "unfinished");
        complains("tests/a.rs", concat!("/* FIX", "ME */"), "unfinished");
        complains(
            "src/ids.rs",
            concat!("fn f() { to", "do!() }"),
            "todo macro",
        );
        complains(
            "src/ids.rs",
            concat!("fn f() { unimple", "mented!(\"x\") }"),
            "unimplemented",
        );
        accepts("src/ids.rs", "fn todo() {} // methodology");
    }

    #[test]
    fn printing() {
        complains(
            "src/fs/a.rs",
            "fn f() { println!(\"x\") }",
            "println outside",
        );
        complains(
            "src/fs/a.rs",
            "fn f() { std::eprint!(\"x\") }",
            "eprint outside",
        );
        accepts("src/cli/mod.rs", "fn f() { println!(\"x\") }");
        accepts("mount-helper/src/main.rs", "fn f() { eprintln!(\"x\") }");
        accepts(
            "src/fs/a.rs",
            "#[cfg(test)]\nmod tests { fn f() { println!(\"x\") } }",
        );
        complains(
            "src/fs/a.rs",
            "#[cfg(test)]\nmod tests;\nfn f() { println!(\"x\") }",
            "println outside",
        );
    }

    #[test]
    fn long_files() {
        complains(
            "src/fs/a.rs",
            &"\n".repeat(MAX_LINES + 1),
            "more than 700 lines",
        );
        accepts("src/fs/a.rs", &"\n".repeat(MAX_LINES));
    }

    #[test]
    fn modules_in_other_places() {
        let text = concat!("#[", "path = \"../a.rs\"]\nmod a;");
        complains("tests/b/main.rs", text, "where its name says");
    }

    #[test]
    fn top_level() {
        assert!(check_top_level("notes.txt").is_some());
        assert!(check_top_level("scripts").is_some());
        assert_eq!(check_top_level(".github"), None);
        assert_eq!(check_top_level("src"), None);
    }

    #[test]
    fn literals_and_comments_are_blanked() {
        let blank = |text| blank_comments_and_literals(text);
        assert_eq!(blank("a /* b /* c */ d */ e"), "a                   e");
        assert_eq!(blank("a // b\nc"), "a     \nc");
        assert_eq!(
            blank(r#"f("\"x", 'y', '\'', 'a)"#),
            "f(     ,    ,     , 'a)"
        );
        assert_eq!(blank("r#\"a\"b\"# c"), "         c");
        assert_eq!(blank("r#try br"), "r#try br");
        assert_eq!(blank("br\"a\" for"), "b     for");
        assert_eq!(blank("\"é\"é"), "    é");
    }
}
