//! Sequences of operations on a filesystem and on its model, which must stay equal.

use arbitrary::{Result, Unstructured};

use crate::operation::{Kind, NAMES, Operation, Place, TITLES, Target, Title};
use crate::world::World;
use crate::{CHUNK, Mount, PAGE};

/// No operation grows a file that is larger than this.
const LARGEST: u32 = CHUNK as u32 + 20_000;
/// Maximum number of operations of one case.
const OPERATIONS_MAX: usize = 60;

/// The bytes are a list of operations.
pub fn target(data: &[u8]) {
    let operations = decode(data);
    if operations.is_empty() {
        return;
    }
    let mut world = World::new(Mount::new(), LARGEST as usize);
    for (number, operation) in operations.iter().enumerate() {
        if let Err(mismatch) = world.apply(operation) {
            panic!("operation {number} of {operations:?}: {mismatch:?}");
        }
        world.compare_attributes();
    }
    world.compare();
    world.compare_kept();
    world.reopen();
    world.compare();
    world.compare_kept();
    world.mount.take().unwrap().finish();
}

fn decode(data: &[u8]) -> Vec<Operation> {
    let mut input = Unstructured::new(data);
    let mut operations = Vec::new();
    while !input.is_empty() && operations.len() < OPERATIONS_MAX {
        match operation(&mut input) {
            Ok(operation) => operations.push(operation),
            Err(_) => break,
        }
    }
    operations
}

fn place(input: &mut Unstructured<'_>) -> Result<Place> {
    let [directory, name] = input.arbitrary()?;
    let name = name % NAMES.len() as u8;
    Ok(Place { directory, name })
}

fn file(input: &mut Unstructured<'_>) -> Result<Target> {
    Ok(Target(input.arbitrary()?))
}

fn title(input: &mut Unstructured<'_>) -> Result<Title> {
    Ok(Title(input.arbitrary::<u8>()? % TITLES.len() as u8))
}

fn kind(input: &mut Unstructured<'_>) -> Result<Kind> {
    Ok(match input.arbitrary()? {
        true => Kind::Snapshot,
        false => Kind::Image,
    })
}

/// Offsets and lengths: a unit, a multiple of it, and a little more or less.
fn amount(input: &mut Unstructured<'_>, most: u32) -> Result<u32> {
    let [unit, count, more] = input.arbitrary::<[u8; 3]>()?;
    let unit = [1, 64, PAGE as u32, CHUNK as u32 / 2][usize::from(unit % 4)];
    let near = unit * u32::from(count) + u32::from(more);
    Ok(near.saturating_sub(128).min(most))
}

fn operation(input: &mut Unstructured<'_>) -> Result<Operation> {
    use Operation as O;
    let at = |input: &mut Unstructured<'_>| amount(input, LARGEST);
    let short = |input: &mut Unstructured<'_>| amount(input, 60_000);
    let long = |input: &mut Unstructured<'_>| amount(input, 3 * CHUNK as u32);
    Ok(match input.arbitrary::<u8>()? % 36 {
        0 | 1 => O::Create {
            at: place(input)?,
            perm: input.arbitrary::<u16>()? & 0o777,
            keep: input.arbitrary()?,
        },
        2 => O::Mkdir(place(input)?),
        3 => O::Symlink(place(input)?),
        4 => O::Fifo(place(input)?),
        5 => O::Link(file(input)?, place(input)?),
        6 => O::Unlink(place(input)?),
        7 => O::Rmdir(place(input)?),
        8 => O::Rename(place(input)?, place(input)?, input.arbitrary::<u8>()? % 10),
        9 => O::Open(file(input)?),
        10 => O::Close(input.arbitrary()?),
        11..=13 => O::Write {
            file: file(input)?,
            offset: at(input)?,
            len: short(input)?,
            seed: input.arbitrary()?,
        },
        14 => O::Read {
            file: file(input)?,
            offset: at(input)?,
            len: long(input)?,
        },
        15 => O::Truncate {
            file: file(input)?,
            size: at(input)?,
        },
        16 => O::Punch {
            file: file(input)?,
            offset: at(input)?,
            len: long(input)?,
        },
        17 => O::Zero {
            file: file(input)?,
            offset: at(input)?,
            len: short(input)?,
            keep: input.arbitrary()?,
        },
        18 => O::Allocate {
            file: file(input)?,
            offset: at(input)?,
            len: short(input)?,
            keep: input.arbitrary()?,
        },
        19 | 20 => O::Copy {
            from: file(input)?,
            to: file(input)?,
            at: at(input)?,
            to_at: at(input)?,
            len: long(input)?,
        },
        21 => O::Chmod(place(input)?, input.arbitrary::<u16>()? & 0o777),
        22 => O::SetTime(place(input)?, i64::from(input.arbitrary::<i32>()?)),
        23 => O::SetXattr {
            at: place(input)?,
            name: input.arbitrary::<u8>()? % 3,
            len: input.arbitrary::<u16>()? % 600,
            mode: input.arbitrary::<u8>()? % 3,
        },
        24 => O::RemoveXattr {
            at: place(input)?,
            name: input.arbitrary::<u8>()? % 3,
        },
        25 => O::List(input.arbitrary()?),
        26 => O::Seek(file(input)?),
        27 => O::Fsync(file(input)?),
        28 => O::Commit,
        29 => match input.arbitrary::<u8>()? % 3 {
            0 => O::Reopen,
            1 => O::Kill,
            _ => O::Purge,
        },
        30 => O::Keep(kind(input)?, title(input)?),
        31 => O::KeepAgain {
            from: title(input)?,
            title: title(input)?,
        },
        32 => O::Drop(kind(input)?, title(input)?),
        33 => match input.arbitrary::<u8>()? % 3 {
            0 => O::OpenKept(input.arbitrary()?, file(input)?),
            1 => O::CloseKept(input.arbitrary()?),
            _ => O::RenameKept(kind(input)?, title(input)?, title(input)?),
        },
        34 => O::RestorePath(title(input)?, input.arbitrary()?, input.arbitrary()?),
        _ => match input.arbitrary::<bool>()? {
            true => O::Restore(title(input)?),
            false => O::Diff(title(input)?, Some(title(input)?)),
        },
    })
}
