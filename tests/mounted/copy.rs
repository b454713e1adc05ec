//! Large copies: they read back identical, and the volume reveals nothing of their contents.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::noise::{chi_square, is_noise};
use crate::real::{Mounted, Place, command, have, need, run_within};
use crate::tree;

const LIMIT: Duration = Duration::from_secs(200);
/// Header of a page, of which some fields are plain numbers: nonce, tags, epoch, sequence.
const PAGE_HEADER_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;
const META_STRIDE_BYTES: usize = 4608;
const META_PAGE_BYTES: usize = 64 + 4096;

#[test]
fn a_copied_tree_comes_back_and_the_volume_reveals_nothing() {
    let test = "copy";
    let Some(place) = Place::new(test, LIMIT) else {
        return;
    };
    for tool in ["cp", "diff", "rsync", "grep"] {
        if !need(have(tool), test, &format!("{tool} is missing; install it")) {
            return;
        }
    }
    let generated = place.path("generated");
    tree::make(&generated);
    let sources: Vec<PathBuf> = ["/usr/include", "/usr/share/doc"]
        .map(PathBuf::from)
        .into_iter()
        .filter(|path| {
            need(
                path.is_dir(),
                test,
                &format!("there is no {}", path.display()),
            )
        })
        .chain([generated])
        .collect();

    place.run("keygen key.pem --bits 2048").done();
    let mounted = place.fresh("--customer-key file:key.pem", "dev,suid");
    for source in &sources {
        let mut copy = command("cp", ["-a"]);
        run_within(copy.arg(source).arg(mounted.dir()), LIMIT).silent();
    }
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "dev,suid");
    for source in &sources {
        assert_same(source, &mounted);
    }
    mounted.unmount();
    let volume = place.path("vol");
    assert_nothing_is_found(&place, &sources, &volume);
    let pages = assert_noise(&volume);
    assert!(pages > 1000, "only {pages} pages were looked at");
}

fn assert_same(source: &Path, mounted: &Mounted<'_>) {
    let copied = mounted.dir().join(source.file_name().unwrap());
    // diff reports two fifos as different in any case; rsync compares them.
    let mut diff = command("diff", ["-r", "--no-dereference", "-x", "fifo"]);
    run_within(diff.arg(source).arg(&copied), LIMIT).silent();
    let with_slash = |path: &Path| format!("{}/", path.display());
    let mut rsync = command("rsync", ["-anHAXc", "--delete", "--itemize-changes"]);
    rsync.arg(with_slash(source)).arg(with_slash(&copied));
    run_within(&mut rsync, LIMIT).silent();
}

/// The volume contains no name and no line of the sources. The same search finds them in the
/// sources.
fn assert_nothing_is_found(place: &Place, sources: &[PathBuf], volume: &Path) {
    let (mut names, mut lines) = (BTreeSet::new(), BTreeSet::new());
    for source in sources {
        collect(source, &mut names, &mut lines);
    }
    // Words of the superblock that are also the names of C headers.
    place.run("create empty").done();
    let said = fs::read_to_string(place.path("empty/volume.json")).unwrap();
    names.retain(|name| !said.contains(name));
    assert!(names.len() > 100 && lines.len() > 100);
    let patterns = place.path("patterns");
    let mut file = File::create(&patterns).unwrap();
    for pattern in names.iter().step_by(names.len() / 150 + 1) {
        writeln!(file, "{pattern}").unwrap();
    }
    for pattern in lines.iter().step_by(lines.len() / 150 + 1) {
        writeln!(file, "{pattern}").unwrap();
    }
    writeln!(file, "{}", tree::LINE).unwrap();
    let grep = |options: &str, place: &Path| {
        let mut grep = command("grep", ["-a", "-F", options, "-f"]);
        run_within(grep.arg(&patterns).arg(place), LIMIT)
    };
    let in_sources = grep("-rlc", sources.last().unwrap());
    assert!(in_sources.done().stdout.lines().count() > 50);
    let in_volume = grep("-rl", volume);
    assert_eq!(
        (in_volume.code, in_volume.stdout.as_str()),
        (1, ""),
        "{}",
        in_volume.stderr
    );
    let matches = run_within(command("find", [volume]).args(["-name", "*guess*"]), LIMIT).done();
    assert_eq!(matches.stdout, "");
}

/// Names that are long enough not to occur by chance, and lines of text.
fn collect(dir: &Path, names: &mut BTreeSet<String>, lines: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.len() >= 8 && name.chars().all(|c| c.is_ascii_graphic()) {
            names.insert(name);
        }
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            collect(&entry.path(), names, lines);
        } else if kind.is_file() && entry.metadata().unwrap().len() < 100_000 {
            let text = fs::read(entry.path()).unwrap();
            let text = String::from_utf8_lossy(&text);
            let long = text.lines().find(|line| {
                (24..200).contains(&line.len())
                    && line.chars().all(|c| c == ' ' || c.is_ascii_graphic())
            });
            lines.extend(long.map(str::to_owned));
        }
    }
}

/// Every page's payload looks like noise. Returns the number of pages.
fn assert_noise(volume: &Path) -> usize {
    let mut pages = 0;
    for folder in fs::read_dir(volume.join("objects")).unwrap() {
        for object in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = object.unwrap().path();
            pages += check_pages(&path, PAGE_BYTES, PAGE_BYTES);
        }
    }
    pages + check_pages(&volume.join("meta"), META_STRIDE_BYTES, META_PAGE_BYTES)
}

fn check_pages(path: &Path, stride: usize, page: usize) -> usize {
    let mut bytes = Vec::new();
    File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    let mut pages = 0;
    for (number, stride) in bytes.chunks(stride).enumerate() {
        // Pages that were never written or were punched are holes of the backing file.
        if stride.iter().all(|&byte| byte == 0) {
            continue;
        }
        assert!(
            stride.len() >= page,
            "{}: page {number} is incomplete",
            path.display()
        );
        let payload = &stride[PAGE_HEADER_BYTES..page];
        assert!(
            is_noise(payload),
            "{}: page {number} is not noise: chi-square {}",
            path.display(),
            chi_square(payload)
        );
        assert!(stride[page..].iter().all(|&byte| byte == 0));
        pages += 1;
    }
    pages
}
