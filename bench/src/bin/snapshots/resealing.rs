//! The cost of giving no data key to another holder: deploying an image by links, deploying it to
//! another customer key, and exporting and importing it, alternately and with cold caches.
//! Everything that was created is compared with what was written.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use bilayer_bench::Outcome;
use bilayer_bench::filesystems::{Filesystem, Programs, done, drop_caches, sync_backing};
use bilayer_bench::spread::Spread;

use crate::deploying::{Contents, FILE_BYTES};
use crate::{Arguments, volume};

/// The variants, and the rates of each round in MiB/s.
#[derive(Default)]
struct Rates {
    linked: Vec<f64>,
    resealed: Vec<f64>,
    exported: Vec<f64>,
    imported: Vec<f64>,
}

pub(crate) fn run(programs: &Programs, backing: &Path, arguments: &Arguments) -> Outcome<()> {
    let source = volume(programs, backing, "image")?;
    let files = ((arguments.reseal_gib << 30) / FILE_BYTES).max(1);
    let contents = Contents::common(files as usize);
    contents.make(source.root())?;
    sync_backing(backing)?;
    let command = |words: &[&str]| {
        let mut command = source.bilayer();
        command.arg("image").args(words);
        command
    };
    done(command(&["create"]).arg(source.root()).arg("base"))?;
    let key = backing.join("other.pem");
    done(source.bilayer().arg("keygen").arg(&key))?;
    let key = format!("file:{}", key.display());
    let (stream, passphrase) = (backing.join("stream"), backing.join("words"));
    fs::write(&passphrase, "for the bench alone\n")?;

    let mib = ((files * FILE_BYTES) >> 20) as f64;
    let timed = |command: &mut Command| -> Outcome<f64> {
        sync_backing(backing)?;
        drop_caches();
        let begin = Instant::now();
        done(command)?;
        Ok(mib / begin.elapsed().as_secs_f64())
    };
    let mut rates = Rates::default();
    for round in 0..arguments.rounds {
        let last = round + 1 == arguments.rounds;
        let from = |words: &[&str]| {
            let mut command = command(words);
            command.arg(source.root()).arg("base");
            command
        };
        let copy = source.beside(&format!("linked-{round}-"))?;
        let rate = timed(from(&["deploy"]).arg(copy.sealed()))?;
        rates.linked.push(rate);
        clear(copy, &contents, last)?;

        let copy = source.beside(&format!("resealed-{round}-"))?;
        let mut deploy = from(&["deploy"]);
        deploy.arg(copy.sealed()).args(["--customer-key", &key]);
        rates.resealed.push(timed(&mut deploy)?);
        clear(copy, &contents, last)?;

        let mut export = from(&["export"]);
        export.arg(&stream).arg("--transport-passphrase-file");
        rates.exported.push(timed(export.arg(&passphrase))?);

        let copy = source.beside(&format!("imported-{round}-"))?;
        let mut import = command(&["import"]);
        import.arg(&stream).arg(copy.sealed());
        import.arg("--transport-passphrase-file").arg(&passphrase);
        rates.imported.push(timed(&mut import)?);
        clear(copy, &contents, last)?;
        fs::remove_file(&stream)?;
    }
    rates.print(mib);
    Ok(())
}

/// After the last round, compares what was created with what was written, and removes it.
fn clear(mut copy: Filesystem, contents: &Contents, compare: bool) -> Outcome<()> {
    if compare {
        copy.mount_cold()?;
        contents.check(copy.root())?;
        copy.unmount()?;
    }
    fs::remove_dir_all(copy.sealed())?;
    Ok(())
}

impl Rates {
    fn print(self, mib: f64) {
        println!("  {mib:.0} MiB of contents, in MiB/s, durable at the end:");
        for (what, rates) in [
            ("deployed by links (same holder)", self.linked),
            ("deployed to another customer key", self.resealed),
            ("exported", self.exported),
            ("imported", self.imported),
        ] {
            if let Some(spread) = Spread::of(rates) {
                println!("  {what:<34} {spread}");
            }
        }
    }
}
