//! Builds: cargo and make decide by modification times, the programs that they build run from the
//! mount, and compilers and linkers write and read by mmap.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::real::{Outcome, Place, run_within};
use crate::script::{SCRIPT_LIMIT, TEST_LIMIT, equipped, script};

const FILES: [(&str, &str); 6] = [
    (
        "Cargo.toml",
        "[workspace]\nmembers = [\"tool\", \"part\"]\nresolver = \"3\"\n",
    ),
    (
        "tool/Cargo.toml",
        "[package]\nname = \"tool\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\
         [dependencies]\npart = { path = \"../part\" }\n",
    ),
    (
        "tool/src/main.rs",
        "fn main() {\n    println!(\"{} {}\", part::sum(&[1, 2, 3]), include_str!(\"text\"));\n}\n",
    ),
    ("tool/src/text", "text"),
    (
        "part/Cargo.toml",
        "[package]\nname = \"part\"\nversion = \"0.1.0\"\nedition = \"2024\"\n",
    ),
    (
        "part/src/lib.rs",
        "pub fn sum(numbers: &[u64]) -> u64 {\n    numbers.iter().sum()\n}\n\
         #[test]\nfn sums() {\n    assert_eq!(sum(&[1, 2]), 3);\n}\n",
    ),
];

/// cargo with this home directory's tool chain, and without the environment of the cargo that runs
/// the tests.
#[track_caller]
fn cargo(dir: &Path, arguments: &[&str]) -> Outcome {
    let mut cargo = Command::new(env!("CARGO"));
    let ours = |name: &str| name.starts_with("CARGO") && name != "CARGO_HOME";
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name) || name.starts_with("RUSTC")) {
        cargo.env_remove(name);
    }
    cargo.env_remove("RUSTFLAGS").env_remove("LD_LIBRARY_PATH");
    cargo.env("CARGO_TARGET_DIR", dir.join("target"));
    cargo.env("CARGO_TERM_COLOR", "never").current_dir(dir);
    let arguments = cargo.args(arguments).args(["--offline", "--verbose"]);
    run_within(arguments, SCRIPT_LIMIT).done()
}

fn built(outcome: &Outcome, package: &str) -> bool {
    let compiled = outcome.stderr.contains(&format!("Compiling {package} "));
    let fresh = outcome.stderr.contains(&format!("Fresh {package} "));
    assert_ne!(compiled, fresh, "{}", outcome.stderr);
    compiled
}

#[test]
fn cargo_rebuilds_changed_sources() {
    let test = "cargo";
    let Some(place) = Place::new(test, TEST_LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    let dir = mounted.path("workspace");
    for (name, text) in FILES {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let first = cargo(&dir, &["build"]);
    assert!(built(&first, "tool") && built(&first, "part"));
    let runs = |says: &str| {
        let program = run_within(
            &mut Command::new(dir.join("target/debug/tool")),
            SCRIPT_LIMIT,
        );
        assert_eq!(program.done().stdout, format!("{says}\n"));
    };
    runs("6 text");
    let again = cargo(&dir, &["build"]);
    assert!(!built(&again, "tool") && !built(&again, "part"));

    fs::write(dir.join("tool/src/text"), "another text").unwrap();
    let changed = cargo(&dir, &["build"]);
    assert!(built(&changed, "tool") && !built(&changed, "part"));
    runs("6 another text");
    cargo(&dir, &["test", "--package", "part"]);
    mounted.unmount();

    let mounted = place.mount("vol", "mnt", "");
    let remounted = cargo(&dir, &["build"]);
    assert!(!built(&remounted, "tool") && !built(&remounted, "part"));
    runs("6 another text");
    fs::write(
        dir.join("part/src/lib.rs"),
        "pub fn sum(numbers: &[u64]) -> u64 {\n    10 * numbers.iter().sum::<u64>()\n}\n",
    )
    .unwrap();
    let changed = cargo(&dir, &["build"]);
    assert!(built(&changed, "tool") && built(&changed, "part"));
    runs("60 another text");
    cargo(&dir, &["clean"]);
    assert!(!dir.join("target").exists());
    mounted.unmount();
}

const MAKE: &str = "mkdir make; cd make
    printf '%s\\n' '%.o: %.c part.h' '\t$(CC) -c -o $@ $<' 'program: main.o part.o' \
        '\t$(CC) -o $@ $^' 'counted:' '\techo x >> $@' > Makefile
    echo 'int part(void);' > part.h
    printf '#include \"part.h\"\nint part(void) { return 42; }\n' > part.c
    printf '#include \"part.h\"\nint main(void) { return part(); }\n' > main.c
    is() { code=0; ./program || code=$?; [ $code = $1 ]; }
    make program
    is 42
    make -q program
    sleep 0.05; sed -i s/42/43/ part.c
    code=0; make -q program || code=$?; [ $code = 1 ]
    make program | tee log; is 43
    not grep -q main.c log
    # A time in the past is older than everything.
    touch -d 1975-01-01 part.c; make -q program
    touch part.h
    code=0; make -q program || code=$?; [ $code = 1 ]
    make -j4 -B program; is 43
    cp program running
    strip program; is 43";

#[test]
fn make_rebuilds_outdated_targets() {
    let test = "make";
    let programs = [("make", "make"), ("cc", "gcc"), ("strip", "binutils")];
    if !equipped(test, &programs) {
        return;
    }
    let Some(place) = Place::new(test, TEST_LIMIT) else {
        return;
    };
    let mounted = place.fresh("", "");
    script(&place, mounted.dir(), MAKE);
    mounted.unmount();
    let mounted = place.mount("vol", "mnt", "");
    let text = "code=0; ./running || code=$?; [ $code = 43 ]; ldd program > /dev/null";
    script(&place, &mounted.path("make"), text);
    mounted.unmount();
}
