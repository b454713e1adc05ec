//! No circles of imports between the files of `src`, and no command that uses another one.
//!
//! One file imports another if its code names an item of it by a path that begins with `crate`,
//! `super` or `self`, in a `use` or in place. A re-export is looked through: the file that defines
//! the item counts, not the `mod.rs` that passes it on. Test code does not count.
//!
//! The `mod.rs` of a folder and the files below that folder belong together: a module declares its
//! children, holds what they share, and often spreads the `impl` blocks of one type over them. So
//! imports between a `mod.rs` and files below its folder do not count, in either direction. All
//! other imports do, within a folder and between folders, and they must not lead in a circle.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    blank_comments_and_literals, inline_modules, is_word, module_path, test_ranges, words,
};

/// Re-exports are followed through this many modules.
const REEXPORTS_MAX: usize = 16;

/// A path, by its names.
type NamePath = Vec<String>;

/// Complaints about circles among these files: pairs of a path relative to the repository and text.
pub(crate) fn check_circles(sources: &[(String, String)]) -> Vec<String> {
    let complaint = |circle: &Vec<String>| {
        let files = circle.join(", ");
        format!("files that import each other in a circle: {files}")
    };
    let circles = circles(sources);
    let circles = circles.iter().map(complaint);
    circles.chain(commands_of_commands(sources)).collect()
}

/// Commands of the command line that use another command.
fn commands_of_commands(sources: &[(String, String)]) -> Vec<String> {
    let house = House::new(sources);
    // The files of a folder are one command.
    let command_of = |path: &str| -> Option<String> {
        let path = path.strip_prefix("src/cli/commands/")?;
        let name = path.split('/').next()?.trim_end_matches(".rs");
        (name != "mod").then(|| name.to_owned())
    };
    let mut complaints = Vec::new();
    for (at, file) in house.files.iter().enumerate() {
        for other in house.imports_of(at) {
            let other = &house.files[other].path;
            let (own, other_command) = (command_of(&file.path), command_of(other));
            if own.is_some() && other_command.is_some() && own != other_command {
                complaints.push(format!(
                    "{}: a command uses another one, {other}",
                    file.path
                ));
            }
        }
    }
    complaints
}

/// The circles: each with its files, in order.
fn circles(sources: &[(String, String)]) -> Vec<Vec<String>> {
    let house = House::new(sources);
    let imports: Vec<BTreeSet<usize>> = (0..house.files.len())
        .map(|file| house.imports_of(file))
        .collect();
    let reachable: Vec<BTreeSet<usize>> = (0..imports.len())
        .map(|file| reachable_from(file, &imports))
        .collect();
    let circle_of = |file: usize| -> Vec<String> {
        let members = reachable[file]
            .iter()
            .filter(|other| reachable[**other].contains(&file));
        let mut names: Vec<String> = members.map(|&at| house.files[at].path.clone()).collect();
        names.sort();
        names
    };
    let circles: BTreeSet<Vec<String>> = (0..imports.len()).map(circle_of).collect();
    circles
        .into_iter()
        .filter(|circle| !circle.is_empty())
        .collect()
}

fn reachable_from(file: usize, imports: &[BTreeSet<usize>]) -> BTreeSet<usize> {
    let mut reachable = BTreeSet::new();
    let mut waiting: Vec<usize> = imports[file].iter().copied().collect();
    while let Some(next) = waiting.pop() {
        if reachable.insert(next) {
            waiting.extend(&imports[next]);
        }
    }
    reachable
}

/// A file of the library that is no test.
struct SourceFile {
    path: String,
    module: NamePath,
    /// Its code, with everything blanked out that does not count.
    code: String,
}

/// All files, and what their modules re-export.
struct House {
    files: Vec<SourceFile>,
    by_module: BTreeMap<NamePath, usize>,
    /// By module and name: the path that the name stands for.
    reexports: BTreeMap<(NamePath, String), NamePath>,
}

impl House {
    fn new(sources: &[(String, String)]) -> Self {
        let files: Vec<SourceFile> = sources.iter().filter_map(SourceFile::new).collect();
        let by_module = files.iter().enumerate();
        let by_module = by_module
            .map(|(at, file)| (file.module.clone(), at))
            .collect();
        let mut house = Self {
            files,
            by_module,
            reexports: BTreeMap::new(),
        };
        for file in &house.files {
            for (path, name) in file.reexports() {
                let (start, rest) = file.start_of(&path);
                let target = [start, rest].concat();
                house.reexports.insert((file.module.clone(), name), target);
            }
        }
        house
    }

    fn imports_of(&self, at: usize) -> BTreeSet<usize> {
        let file = &self.files[at];
        let targets = file
            .paths()
            .into_iter()
            .filter_map(|path| self.file_of(path));
        targets
            .filter(|&other| !are_one_module(file, &self.files[other]))
            .collect()
    }

    /// The file that defines the item of an absolute path.
    fn file_of(&self, mut path: NamePath) -> Option<usize> {
        for _ in 0..REEXPORTS_MAX {
            let mut depth = 0;
            while depth < path.len() && self.by_module.contains_key(&path[..=depth]) {
                depth += 1;
            }
            let name = path.get(depth).cloned();
            let key = name.map(|name| (path[..depth].to_vec(), name));
            match key.and_then(|key| self.reexports.get(&key)) {
                Some(target) => path = [target.clone(), path[depth + 1..].to_vec()].concat(),
                None => return self.by_module.get(&path[..depth]).copied(),
            }
        }
        None
    }
}

/// True for a file itself, and for a `mod.rs` and a file below its folder.
fn are_one_module(one: &SourceFile, other: &SourceFile) -> bool {
    let is_above = |upper: &SourceFile, lower: &SourceFile| {
        upper.path.ends_with("/mod.rs") && lower.module.starts_with(&upper.module)
    };
    one.path == other.path || is_above(one, other) || is_above(other, one)
}

impl SourceFile {
    fn new((path, text): &(String, String)) -> Option<Self> {
        let module: NamePath = module_path(path)
            .iter()
            .map(|name| (*name).to_owned())
            .collect();
        if module.is_empty() || module.iter().any(|name| name == "tests") {
            return None;
        }
        let mut code = blank_comments_and_literals(text).into_bytes();
        let tests = test_ranges(&String::from_utf8_lossy(&code));
        for range in tests {
            code[range]
                .iter_mut()
                .filter(|byte| **byte != b'\n')
                .for_each(|byte| *byte = b' ');
        }
        Some(Self {
            path: path.clone(),
            module,
            code: String::from_utf8(code).unwrap_or_default(),
        })
    }

    /// The absolute paths that the code names.
    fn paths(&self) -> Vec<NamePath> {
        let inline = inline_modules(&self.code);
        let mut paths = Vec::new();
        for start in ["crate", "super", "self"] {
            for at in words(&self.code, start) {
                let is_start = !self.code[..at].ends_with("::")
                    && self.code[at + start.len()..].starts_with("::");
                if !is_start {
                    continue;
                }
                let nesting = inline.iter().filter(|range| range.contains(&at)).count();
                for (path, _) in expand(&self.code[at..]) {
                    let (start, rest) = self.start_within(&path, nesting);
                    paths.push([start, rest].concat());
                }
            }
        }
        paths
    }

    /// What the file re-exports: the path as it is written, and the name that it gets here.
    fn reexports(&self) -> Vec<(NamePath, String)> {
        let mut found = Vec::new();
        for at in words(&self.code, "use") {
            let before = self.code[..at].trim_end();
            let is_public = before.ends_with("pub")
                || (before.ends_with(')')
                    && before.rsplit("pub").next().is_some_and(is_visibility));
            if is_public {
                found.extend(expand(self.code[at + "use".len()..].trim_start()));
            }
        }
        found
    }

    fn start_of(&self, path: &[String]) -> (NamePath, NamePath) {
        self.start_within(path, 0)
    }

    /// The module in which a path begins, and the rest of the path. `nesting`: how many modules
    /// within the file the path is in.
    fn start_within(&self, path: &[String], nesting: usize) -> (NamePath, NamePath) {
        let supers = path.iter().take_while(|name| *name == "super").count();
        let levels = self.module.len() - supers.saturating_sub(nesting).min(self.module.len());
        match path.first().map(String::as_str) {
            Some("crate") => (Vec::new(), path[1..].to_vec()),
            Some("super") => (self.module[..levels].to_vec(), path[supers..].to_vec()),
            Some("self") => (self.module.clone(), path[1..].to_vec()),
            _ => (self.module.clone(), path.to_vec()),
        }
    }
}

/// The rest of `pub(crate)`, `pub(super)` or `pub(in path)`.
fn is_visibility(text: &str) -> bool {
    let inside = text
        .strip_prefix('(')
        .and_then(|text| text.strip_suffix(')'));
    inside.is_some_and(|inside| inside.chars().all(|c| is_word(c) || c == ':' || c == ' '))
}

/// The paths that text begins with, groups written out, each with the name that it introduces.
fn expand(text: &str) -> Vec<(NamePath, String)> {
    let mut paths = Vec::new();
    expand_after(text, &[], &mut paths);
    paths
}

/// Adds the paths and returns what follows them.
fn expand_after<'a>(
    text: &'a str,
    prefix: &[String],
    paths: &mut Vec<(NamePath, String)>,
) -> &'a str {
    let mut rest = text.trim_start();
    let mut path = prefix.to_vec();
    loop {
        if let Some(mut group) = rest.strip_prefix('{') {
            loop {
                group = group.trim_start();
                if let Some(after) = group.strip_prefix('}') {
                    return after;
                }
                let after = expand_after(group, &path, paths).trim_start();
                let after = after.strip_prefix(',').unwrap_or(after);
                // Something that is no path: nothing more can be read from this.
                if after.len() == group.len() {
                    return after;
                }
                group = after;
            }
        }
        let end = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
        if end == 0 {
            return rest;
        }
        // `a::{self}` names `a`.
        if &rest[..end] != "self" || path.is_empty() {
            path.push(rest[..end].to_owned());
        }
        rest = rest[end..].trim_start();
        match rest.strip_prefix("::") {
            Some(after) => rest = after.trim_start(),
            None => break,
        }
    }
    let mut name = path.last().cloned().unwrap_or_default();
    if let Some(after) = rest.strip_prefix("as ") {
        let after = after.trim_start();
        let end = after.find(|c: char| !is_word(c)).unwrap_or(after.len());
        name = after[..end].to_owned();
        rest = &after[end..];
    }
    paths.push((path, name));
    rest
}

/// The check against samples: it finds circles, and only those.
mod samples {
    use super::*;

    fn circles_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let owned = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
        circles(&files.iter().map(owned).collect::<Vec<_>>())
    }

    #[track_caller]
    fn accepts(files: &[(&str, &str)]) {
        assert_eq!(circles_of(files), Vec::<Vec<String>>::new());
    }

    #[track_caller]
    fn finds(files: &[(&str, &str)], circle: &[&str]) {
        assert_eq!(circles_of(files), [circle.to_vec()]);
    }

    #[test]
    fn commands_that_use_a_command() {
        let owned = |(path, text): (&str, &str)| (path.to_owned(), text.to_owned());
        let of = |text| {
            let files = [
                ("src/cli/mod.rs", "mod commands; mod output;"),
                ("src/cli/commands/mod.rs", "mod a; mod b;"),
                ("src/cli/commands/a.rs", text),
                ("src/cli/commands/b.rs", "use crate::cli::output::print;"),
                ("src/cli/output/mod.rs", ""),
            ];
            commands_of_commands(&files.map(owned)).len()
        };
        assert_eq!(of("use super::b::run;"), 1);
        assert_eq!(of("fn f() { crate::cli::commands::b::run() }"), 1);
        assert_eq!(of("use crate::cli::output::print;"), 0);
    }

    #[test]
    fn siblings_that_import_each_other() {
        finds(
            &[
                ("src/a/mod.rs", "mod b; mod c;"),
                ("src/a/b.rs", "use super::c::C;"),
                ("src/a/c.rs", "fn f() { crate::a::b::g() }"),
                ("src/a/d.rs", "use super::{b, c};"),
            ],
            &["src/a/b.rs", "src/a/c.rs"],
        );
    }

    #[test]
    fn longer_circles_across_folders() {
        finds(
            &[
                ("src/a/mod.rs", "pub mod b;"),
                ("src/a/b.rs", "use crate::x::{y::{Y, self}, Z};"),
                ("src/x/mod.rs", "pub mod y;"),
                ("src/x/y.rs", "use crate::d::D;"),
                ("src/d.rs", "use crate::a::b;"),
            ],
            &["src/a/b.rs", "src/d.rs", "src/x/y.rs"],
        );
    }

    #[test]
    fn reexports_are_looked_through() {
        let b = ("src/a/b.rs", "use super::{C, Renamed};");
        let parent = "mod b; mod c; mod d; pub use c::C; pub(crate) use self::d::D as Renamed;";
        finds(
            &[
                ("src/a/mod.rs", parent),
                b,
                ("src/a/c.rs", "use super::b::B;"),
                ("src/a/d.rs", ""),
            ],
            &["src/a/b.rs", "src/a/c.rs"],
        );
        finds(
            &[
                ("src/a/mod.rs", parent),
                b,
                ("src/a/c.rs", ""),
                ("src/a/d.rs", "use crate::a::b::B;"),
            ],
            &["src/a/b.rs", "src/a/d.rs"],
        );
    }

    #[test]
    fn a_module_and_what_is_below_it_belong_together() {
        accepts(&[
            (
                "src/a/mod.rs",
                "mod b; mod c; use b::B; use c::deep::C; struct A(B);",
            ),
            ("src/a/b.rs", "use super::A; impl A {}"),
            ("src/a/c/mod.rs", "pub mod deep; use super::A;"),
            (
                "src/a/c/deep.rs",
                "use crate::a::A; use super::super::A as Again;",
            ),
        ]);
        // A folder beside a file is different.
        finds(
            &[
                ("src/a/mod.rs", ""),
                ("src/a/b.rs", "use super::c::C;"),
                ("src/a/c/mod.rs", "use super::b::B; struct C;"),
            ],
            &["src/a/b.rs", "src/a/c/mod.rs"],
        );
    }

    #[test]
    fn tests_comments_and_literals_do_not_count() {
        accepts(&[
            ("src/a/mod.rs", ""),
            ("src/a/b.rs", "use super::c::C;"),
            (
                "src/a/c.rs",
                "// use super::b::B;\n#[cfg(test)]\nmod tests { use crate::a::b::B; }",
            ),
            ("src/a/tests.rs", "use super::b::B;"),
        ]);
        accepts(&[
            ("src/a/mod.rs", ""),
            ("src/a/b.rs", "use super::c::C;"),
            ("src/a/c.rs", "const T: &str = \"crate::a::b\";"),
        ]);
    }

    #[test]
    fn modules_within_a_file_are_the_file() {
        finds(
            &[
                ("src/a/mod.rs", ""),
                (
                    "src/a/b.rs",
                    "mod inner { use super::super::c::C; use super::X; }",
                ),
                ("src/a/c.rs", "use super::b::inner::Y;"),
            ],
            &["src/a/b.rs", "src/a/c.rs"],
        );
    }
}
