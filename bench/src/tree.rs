//! A tree of files like one of source code, the same on every machine: sizes between 256 bytes and
//! 64 KiB, evenly distributed over their logarithms, incompressible contents, directories up to
//! four deep, a few symbolic links and executable files. Also the generator of all bytes that are
//! written.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const SEED: u64 = 0x6269_6c61_7965_7221;
const FILES_PER_DIRECTORY: usize = 16;
const DEEPEST: usize = 4;
const ONE_LINK_IN: u64 = 50;
const ONE_EXECUTABLE_IN: u64 = 20;

/// SplitMix64 (Steele, Lea and Flood 2014): small, fast, and incompressible enough.
#[derive(Debug)]
pub struct Bytes(u64);

impl Bytes {
    /// Seeds differ, and so do the bytes.
    pub fn new(seed: u64) -> Self {
        Self(SEED ^ seed)
    }

    /// The next 8 of them.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.word() % limit.max(1) as u64) as usize
    }

    /// Fills `out`.
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// The contents of a tree.
#[derive(Clone, Copy, Debug)]
pub struct TreeSize {
    /// Files, links included.
    pub files: usize,
    /// Directories, the tree's own included.
    pub directories: usize,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Creates the tree at `top`, which must not exist.
///
/// # Errors
/// Something could not be written.
pub fn make(top: &Path, files: usize) -> io::Result<TreeSize> {
    let mut random = Bytes::new(1);
    fs::create_dir(top)?;
    let directories = make_directories(top, files.div_ceil(FILES_PER_DIRECTORY), &mut random)?;
    let mut contents = vec![0; 64 << 10];
    let mut bytes = 0;
    for number in 0..files {
        let directory = &directories[random.below(directories.len())];
        let name = directory.join(format!("{}-{number}.c", name(&mut random)));
        if random.word().is_multiple_of(ONE_LINK_IN) {
            symlink(format!("../{number:x}/target"), name)?;
            continue;
        }
        let scale = 256 << random.below(8);
        let contents = &mut contents[..scale + random.below(scale)];
        random.fill(contents);
        fs::write(&name, &*contents)?;
        bytes += contents.len() as u64;
        if random.word().is_multiple_of(ONE_EXECUTABLE_IN) {
            fs::set_permissions(&name, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(TreeSize {
        files,
        directories: directories.len(),
        bytes,
    })
}

fn make_directories(top: &Path, count: usize, random: &mut Bytes) -> io::Result<Vec<PathBuf>> {
    let mut directories = vec![(top.to_path_buf(), 0)];
    while directories.len() < count {
        let (parent, depth) = &directories[random.below(directories.len())];
        if *depth < DEEPEST {
            let path = parent.join(format!("{}-{}", name(random), directories.len()));
            let depth = depth + 1;
            fs::create_dir(&path)?;
            directories.push((path, depth));
        }
    }
    Ok(directories.into_iter().map(|(path, _)| path).collect())
}

/// 3 to 18 letters.
fn name(random: &mut Bytes) -> String {
    let length = 3 + random.below(16);
    (0..length)
        .map(|_| char::from(b'a' + random.below(26) as u8))
        .collect()
}
